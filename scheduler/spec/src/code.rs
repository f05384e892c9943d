//! The table of problem codes: one line for each, stable across releases; `orch explain CODE` prints the text.

use std::fmt;

/// A problem's kind, shown as `ORCH0107`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

impl fmt::Display for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ORCH{:04}", self.0)
    }
}

impl Code {
    /// What this kind of problem means; `None` for a number that is not in the table.
    pub fn explanation(self) -> Option<&'static str> {
        CODES.iter().find(|(code, _)| *code == self).map(|(_, text)| *text)
    }

    /// The code that a text such as `ORCH0107` or `107` names, when it is in the table.
    pub fn find(text: &str) -> Option<Self> {
        let digits = text.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let code = Self(digits.parse().ok()?);
        code.explanation().map(|_| code)
    }
}

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: Code = Code($number);)*
        /// Every code with its explanation.
        pub const CODES: &[(Code, &str)] = &[$(($name, $text)),*];
    };
}

codes! {
    UNREADABLE = 1, "A file that the stack needs cannot be read: it is missing, a folder, or not allowed. Relative paths of `-f` files count from the folder of the first one, those of included and extended files from their own folder.";
    TOO_LARGE = 2, "A file is larger than orch reads. Stack files and environment files hold settings; large data belongs into volumes or images.";
    NOT_TEXT = 3, "A file is not UTF-8 text or holds NUL bytes.";
    NO_STACK_FILE = 4, "No stack file was named, and none of the usual names exists in this folder or above it.";
    PROJECT_NAME = 5, "A project name given by `-p` or `COMPOSE_PROJECT_NAME` holds lower-case letters, digits, `-` and `_`, and begins with a letter or digit.";
    YAML_SYNTAX = 10, "The text is not YAML. Frequent causes: a tab used for indentation, a missing blank after a colon, an unclosed quote, or a value with `: ` in it that needs quotes.";
    DUPLICATE_KEY = 11, "A mapping has the same key twice. YAML would let one of them win silently, so it is refused.";
    YAML_LIMIT = 12, "The document is nested too deeply or grows too large when its aliases are expanded.";
    KEY_NOT_TEXT = 13, "Keys are texts. YAML reads an unquoted `123`, `true` or `null` as something else; put it in quotes.";
    NOT_A_MAPPING = 14, "A stack file is a mapping with `services` and other top-level keys.";
    MERGE_KEY = 15, "`<<` takes a mapping, or a list of mappings, usually by aliases.";
    EMPTY_FILE = 16, "The stack file has nothing in it.";
    ALIAS_CYCLE = 17, "An alias stands inside of what it refers to.";
    INTERPOLATION = 20, "A `$` begins a variable: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:?message}` or `${NAME:+replacement}`. A `$` that is meant literally is written `$$`.";
    REQUIRED_VARIABLE = 21, "The file demands a variable by `${NAME:?message}` that is not set (or is empty).";
    UNSET_VARIABLE = 22, "A variable is not set, so the empty text is used. Set it in the environment or in `.env`, or give a default: `${NAME:-default}`. A `$` that is meant literally is written `$$`.";
    ENV_FILE_SYNTAX = 23, "Lines of an environment file are `KEY=VALUE`; values may be quoted.";
    EXTENDS = 30, "`extends` names a service of this file, or one of another file by `{file: …, service: …}`.";
    EXTENDS_CYCLE = 31, "Services extend each other in a circle.";
    INCLUDE_CYCLE = 32, "Files include each other in a circle.";
    CANNOT_OVERRIDE = 34, "A later file gives a key a value of another kind (a list instead of a mapping, for example). Use `!override` to replace the whole value.";
    REMOTE = 35, "Files at remote places (`oci://…`, git addresses) are not fetched by orch. Fetch them first and name the local path.";
    WRONG_TYPE = 101, "The value has the wrong kind: a text where a list is needed, for example.";
    MISSING_KEY = 102, "A key that is needed here is missing.";
    NOT_A_CHOICE = 103, "The value is not one of those that are possible.";
    BAD_VALUE = 104, "The value cannot be understood or is out of range.";
    LISTED_TWICE = 106, "A list that is a set has the same entry twice.";
    UNKNOWN_KEY = 107, "The Compose specification has no such key here. Keys beginning with `x-` are free.";
    BAD_NAME = 108, "Names of services, networks, volumes, secrets and configs hold letters, digits, `.`, `_` and `-`.";
    BAD_PORT = 110, "A port is `[[HOST_IP:]PUBLISHED:]TARGET[/tcp|udp|sctp]`, where PUBLISHED and TARGET may be ranges of the same length.";
    BAD_MOUNT = 111, "A mount is `[SOURCE:]TARGET[:OPTIONS]`. A source beginning with `.`, `/` or `~` is a path, any other the name of a volume.";
    EXCLUSIVE_KEYS = 112, "Keys exclude each other.";
    NO_IMAGE = 201, "A service needs `image`, `build` or `provider`.";
    UNDEFINED_NETWORK = 202, "A service uses a network that the top level does not declare.";
    UNDEFINED_VOLUME = 203, "A service uses a volume that the top level does not declare. For a path on the host begin the source with `./` or `/`.";
    UNDEFINED_SECRET = 204, "A service uses a secret that the top level does not declare.";
    UNDEFINED_CONFIG = 205, "A service uses a config that the top level does not declare.";
    UNDEFINED_MODEL = 206, "A service uses a model that the top level does not declare.";
    UNDEFINED_SERVICE = 212, "A service refers to another one that does not exist or that no active profile turns on.";
    DEPENDENCY_CYCLE = 213, "Services wait for each other in a circle, so none of them could start first.";
    TWINS_DISAGREE = 215, "The Compose specification has two places for the same setting; where both are used, they must agree.";
    FIXED_NAME = 216, "A container name is unique, so a service with `container_name` has one task, and no two services share it.";
    MOUNTED_TWICE = 218, "Two mounts of a service have the same target.";
    CONTENT_SOURCE = 219, "A secret or config has exactly one source for its content.";
    BUILD = 220, "The `build` section contradicts itself or the rest of the stack.";
    WATCH = 221, "An entry of `develop.watch` is incomplete.";
    ADDRESS = 222, "An address does not fit its network.";
    NOT_CARRIED_OUT = 301, "The Compose specification has this key, and orch reads and checks it, but does not act on it.";
    OBSOLETE = 302, "The key is obsolete and ignored.";
    BOOLEAN_WORD = 303, "YAML 1.2 knows only `true` and `false`.";
    EXTERNAL_EXTRAS = 304, "What is `external` is made elsewhere, so further settings of it have no effect.";
    UNKNOWN_OPTION = 305, "A mount option is not known and has no effect.";
    SEVERAL_FILES = 306, "Several files with usual names lie in the same folder; the first in orch's order is used.";
    OPTIONAL_MISSING = 307, "Something that the file marks as optional is not there.";
    SELECTION = 308, "The command line names a service that the stack does not have.";
}
