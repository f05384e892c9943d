//! The tree that a stack file is while it is worked on: values that know where they came from.

use crate::span::Span;
use indexmap::IndexMap;
use std::sync::Arc;

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it was written; for made-up values the place of what they were made from.
    pub span: Span,
    /// `!reset` or `!override`, until they are carried out.
    pub(crate) mark: Mark,
    /// Variables that took part in the text.
    pub(crate) variables: Option<Arc<[VariableUse]>>,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(Arc<str>),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping.
    Map(Map),
    /// Something that a problem has been reported about; every check passes it over in silence.
    Invalid,
}

/// A mapping in the order of the file.
pub type Map = IndexMap<Arc<str>, Entry>;

/// What stands under a key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where the key was written.
    pub key: Span,
    /// The value.
    pub node: Node,
}

/// Compose's tags that steer merging.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mark {
    #[default]
    None,
    /// Take the key away from what came before.
    Reset,
    /// Replace instead of merging.
    Override,
}

/// A variable that took part in a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VariableUse {
    pub(crate) name: String,
    pub(crate) origin: VariableOrigin,
}

/// Where a variable's value came from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum VariableOrigin {
    /// The process environment.
    Process,
    /// An environment file.
    File(Span),
    /// It is not set.
    Unset,
}

impl Node {
    pub(crate) fn new(value: Value, span: Span) -> Self {
        Self { value, span, mark: Mark::None, variables: None }
    }

    pub(crate) fn text(text: impl Into<Arc<str>>, span: Span) -> Self {
        Self::new(Value::Text(text.into()), span)
    }

    pub(crate) fn map(span: Span) -> Self {
        Self::new(Value::Map(Map::new()), span)
    }

    pub(crate) fn invalid(span: Span) -> Self {
        Self::new(Value::Invalid, span)
    }

    /// The same place and variables with another value.
    pub(crate) fn with(&self, value: Value) -> Self {
        Self { value, span: self.span, mark: Mark::None, variables: self.variables.clone() }
    }

    /// The value under a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.get(key).map(|entry| &entry.node)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.as_map_mut()?.get_mut(key).map(|entry| &mut entry.node)
    }

    /// The value under a key unless it is null.
    pub(crate) fn some(&self, key: &str) -> Option<&Node> {
        self.get(key).filter(|node| !matches!(node.value, Value::Null))
    }

    /// The mapping, if it is one.
    pub fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    pub(crate) fn as_map_mut(&mut self) -> Option<&mut Map> {
        match &mut self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The sequence, if it is one.
    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub(crate) fn as_list_mut(&mut self) -> Option<&mut Vec<Node>> {
        match &mut self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// Puts a value under a key; the key's place is the value's.
    pub(crate) fn put(&mut self, key: &str, node: Node) {
        if let Some(map) = self.as_map_mut() {
            let key_span = map.get(key).map_or(node.span, |entry| entry.key);
            map.insert(key.into(), Entry { key: key_span, node });
        }
    }

    /// The place of the key when there is one, else that of the whole value.
    pub(crate) fn key_span(&self, key: &str) -> Span {
        self.as_map().and_then(|map| map.get(key)).map_or(self.span, |entry| entry.key)
    }

    /// The entries of a mapping; none for anything else.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &Entry)> {
        self.as_map().into_iter().flatten()
    }

    /// The items of a sequence; none for anything else.
    pub(crate) fn items(&self) -> &[Node] {
        self.as_list().unwrap_or(&[])
    }

    /// The canonical text of a scalar: what `environment` makes of a number or a boolean.
    pub(crate) fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Int(value) => Some(value.to_string()),
            Value::Float(value) => Some(float_text(*value)),
            _ => None,
        }
    }

    /// How many values this is, itself included.
    pub(crate) fn count(&self) -> usize {
        match &self.value {
            Value::List(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
            Value::Map(map) => 1 + map.values().map(|entry| entry.node.count()).sum::<usize>(),
            _ => 1,
        }
    }

    /// What a message calls this kind of value.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Invalid => "invalid",
        }
    }

    /// Equal as data, places apart. Mappings are equal in any order.
    pub(crate) fn same(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(key, entry)| b.get(key).is_some_and(|other| entry.node.same(&other.node)))
            }
            _ => false,
        }
    }
}

/// A number the way Go prints it, which is what people see in a container's environment today.
pub(crate) fn float_text(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 || (1e-4..1e21).contains(&magnitude) || !value.is_finite() {
        return match value {
            _ if value.is_nan() => "NaN".into(),
            f64::INFINITY => "+Inf".into(),
            f64::NEG_INFINITY => "-Inf".into(),
            _ => value.to_string(),
        };
    }
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}
