//! What the Compose specification allows where: one table says the kind of each key, how it merges, what makes its list
//! entries the same, and whether orch carries it out.
//!
//! The facts are those of the specification's own JSON schema (2026-07); checking, merging and canonicalisation all walk
//! these tables, so that a key is described in one place only.

mod build;
mod deploy;
mod service;
mod top;

pub(crate) use service::SERVICE;
pub(crate) use top::{INCLUDE, STACK};

use crate::node::Node;

/// What a value must be, and what it is turned into.
pub(crate) enum Kind {
    /// Anything at all.
    Any,
    /// A text; the function checks it and gives its canonical form.
    Text(Parse),
    /// A text, number or boolean that is taken as text.
    Scalar(Parse),
    /// Any scalar, taken as text.
    Plain,
    /// A boolean, or a text that says one.
    Bool,
    /// A boolean or a text, kept as text.
    BoolOrText,
    /// A whole number, or a text that says one.
    Int(i64, i64),
    /// A number, or a text that says one.
    Number,
    /// One of some texts.
    Choice(&'static [&'static str]),
    /// Permission bits: a number as YAML reads it, or a text in octal.
    FileMode,
    /// A number of devices, or `all`.
    Count,
    /// Nothing, a shell-like line, or a list of arguments.
    Command,
    /// A mapping of scalars or a list of `KEY=VALUE`.
    KeyValues,
    /// A mapping of scalars.
    Scalars,
    /// A list.
    List(&'static Kind, Unique),
    /// A list, or one entry of it.
    OneOrList(&'static Kind, Unique),
    /// Names that a person chose, each with a value.
    Named(&'static Kind),
    /// Fixed keys.
    Table(&'static Table),
    /// The other kind, or nothing.
    Nullable(&'static Kind),
    /// A short form that is turned into the long one, which is then of the other kind.
    Short(Short, &'static Kind),
}

/// Checks a text and gives its canonical form, or says what is wrong.
pub(crate) type Parse = Option<fn(&str) -> Result<String, String>>;

/// The short forms of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// `build: PATH`.
    Build,
    /// `depends_on: [a, b]`.
    DependsOn,
    /// A list of names instead of a mapping of them.
    Names,
    /// `ports: ["8080:80"]`, the whole list.
    Ports,
    /// One entry of `volumes`.
    Mount,
    /// One entry of `devices`.
    Device,
    /// One entry of `secrets` or `configs`.
    Grant,
    /// `env_file`, the whole value.
    EnvFile,
    /// `extra_hosts`, the whole value.
    ExtraHosts,
    /// `gpus: all`.
    Gpus,
    /// A `ulimit` as one number.
    Ulimit,
    /// `build.ssh`.
    Ssh,
    /// `external: {name: …}`, the whole resource.
    External,
    /// One entry of `include`.
    Include,
    /// One entry of `develop.watch`: nothing is lengthened, but its parts belong together.
    Watch,
}

/// When two entries of a list are the same one.
#[derive(Clone, Copy)]
pub(crate) enum Unique {
    /// Never; all stay.
    No,
    /// When they are equal as a whole; the second is dropped.
    Whole,
    /// When the function gives the same text for both; the later one takes the earlier one's place.
    By(fn(&Node) -> Option<String>),
}

/// How a later file's value joins an earlier one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Merge {
    /// As its kind says: mappings deeply, lists by appending, others by replacing.
    #[default]
    ByKind,
    /// It replaces the whole, also with nothing.
    Replace,
    /// `logging`: another driver replaces the whole.
    Logging,
    /// `ipam.config`: pools are matched by subnet.
    Pools,
}

/// Whether orch acts on a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Support {
    /// It does.
    #[default]
    Full,
    /// It does not; the text says why, or what to use.
    None(&'static str),
    /// It has no meaning any more.
    Obsolete(&'static str),
}

/// One key of a table.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) merge: Merge,
    pub(crate) required: bool,
    pub(crate) support: Support,
}

/// Fixed keys.
pub(crate) struct Table {
    pub(crate) fields: &'static [Field],
    /// Whether `x-*` keys may stand beside them.
    pub(crate) extensions: bool,
}

impl Table {
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

const fn key(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, merge: Merge::ByKind, required: false, support: Support::Full }
}

impl Field {
    const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    const fn merged(self, merge: Merge) -> Self {
        Self { merge, ..self }
    }

    const fn unsupported(self, why: &'static str) -> Self {
        Self { support: Support::None(why), ..self }
    }

    const fn obsolete(self, why: &'static str) -> Self {
        Self { support: Support::Obsolete(why), ..self }
    }
}

// A static's destructor would be needed for `..self` otherwise; `Kind` holds only references.
const TEXT: Kind = Kind::Text(None);
static TEXT_ITEM: Kind = Kind::Text(None);
static SCALAR_ITEM: Kind = Kind::Scalar(None);
const ANY_INT: Kind = Kind::Int(i64::MIN, i64::MAX);
const NATURAL: Kind = Kind::Int(0, i64::MAX);
const TEXTS: Kind = Kind::List(&TEXT_ITEM, Unique::Whole);
const ALL_TEXTS: Kind = Kind::List(&TEXT_ITEM, Unique::No);
const ONE_OR_TEXTS: Kind = Kind::OneOrList(&TEXT_ITEM, Unique::Whole);
const KEYED_TEXTS: Kind = Kind::List(&TEXT_ITEM, Unique::By(before_equals));
const ONE_OR_KEYED_TEXTS: Kind = Kind::OneOrList(&TEXT_ITEM, Unique::By(before_equals));

const fn table(fields: &'static [Field]) -> Table {
    Table { fields, extensions: true }
}

const fn closed_table(fields: &'static [Field]) -> Table {
    Table { fields, extensions: false }
}

fn before_equals(node: &Node) -> Option<String> {
    let text = node.scalar_text()?;
    Some(text.split_once('=').map_or(text.as_str(), |(key, _)| key).to_owned())
}
