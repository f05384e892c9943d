//! What a certificate makes of whoever shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The role in a certificate. Nodes are managers or workers; people and programs deploy, read, or do everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A node that runs tasks.
    Worker,
    /// A node that also keeps the state and decides.
    Manager,
    /// A client that looks.
    Read,
    /// A client that brings stacks up and down.
    Deploy,
    /// A client that may do everything.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Worker, Self::Manager, Self::Read, Self::Deploy, Self::Admin];

    /// The word, as in certificates and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }

    /// Whether it is a node's.
    pub fn is_node(self) -> bool {
        matches!(self, Self::Worker | Self::Manager)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// A word that is no role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownRole(pub String);

impl std::fmt::Display for UnknownRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no role `{}`; roles are worker, manager, read, deploy and admin", self.0)
    }
}

impl std::error::Error for UnknownRole {}
