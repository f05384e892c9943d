//! Named hosts that commands can go to: a small file of the person's own, read by every command and changed by `orch context`.
//!
//! Which host a command goes to is the first of these that is said: `--host` or `--context`, `ORCH_HOST`, `ORCH_CONTEXT`, what
//! `orch context use` chose, this machine.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};

/// The context that is always there: this machine's own agent.
pub(crate) const DEFAULT: &str = "default";

/// A named host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Context {
    /// What `--host` would be.
    pub host: String,
    /// The folder with the client certificate of a `tcp://` host; `None` = as without a context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_path: Option<PathBuf>,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Contexts {
    /// The one that commands go to when nothing else is said; empty = this machine.
    pub current: String,
    /// By name.
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Reads the file; an empty one when there is none, or nobody whose it could be.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(crate) fn read() -> Result<Self, Failure> {
        let Some(path) = path() else { return Ok(Self::default()) };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                return Ok(Self::default());
            }
            Err(e) => {
                return Err(Failure::new(Exit::Failed, format!("the file of contexts {}: {e}", path.display())).hint(
                    "it says where commands go; `--context default` is this machine, ORCH_CONFIG_DIR names another folder",
                ));
            }
        };
        serde_json::from_str(&text).map_err(|e| {
            Failure::new(Exit::Failed, format!("{} is not a file of contexts: {e}", path.display()))
                .hint("mend it, or remove it and make its contexts again with `orch context create`")
        })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written, or there is no folder for it.
    pub(crate) fn write(&self) -> Result<(), Failure> {
        let Some(path) = path() else {
            return Err(Failure::new(Exit::Failed, "there is no folder to keep contexts in")
                .hint("set HOME, XDG_CONFIG_HOME or ORCH_CONFIG_DIR"));
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let written = std::fs::create_dir_all(folder).and_then(|()| {
            let mut file = tempfile_in(folder)?;
            serde_json::to_writer_pretty(&mut file.1, self)?;
            file.1.write_all(b"\n")?;
            file.1.sync_all()?;
            std::fs::rename(&file.0, &path)
        });
        written.map_err(|e| Failure::new(Exit::Failed, format!("write {}: {e}", path.display())))
    }

    /// A context by name; `None` for this machine.
    ///
    /// # Errors
    /// When there is none of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&Context>, Failure> {
        if name.is_empty() || name == DEFAULT {
            return Ok(None);
        }
        self.contexts.get(name).map(Some).ok_or_else(|| {
            Failure::usage(format!("there is no context {name}")).hint("`orch context ls` lists those that there are")
        })
    }
}

/// A new file beside the one that it will replace.
fn tempfile_in(folder: &Path) -> std::io::Result<(PathBuf, std::fs::File)> {
    let path = folder.join(format!(".contexts.{}", std::process::id()));
    let file = std::fs::File::create(&path)?;
    Ok((path, file))
}

/// Where contexts are kept: `ORCH_CONFIG_DIR`, else the XDG base directory for configuration, else its default.
fn path() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = variable("ORCH_CONFIG_DIR")
        .or_else(|| Some(variable("XDG_CONFIG_HOME")?.join("orch")))
        .or_else(|| Some(variable("HOME")?.join(".config/orch")))?;
    Some(folder.join("contexts.json"))
}
