//! Requests and answers about the cluster itself, and between its nodes.
//!
//! The routes are in [`crate::openapi`], but those between nodes: `POST /v1/peer/admission` ([`AdmissionRequest`], [`Admission`]),
//! `/v1/peer/certificate` ([`CertificateRequest`], [`CertificateAnswer`]), `/v1/peer/readmission`
//! ([`ReadmissionRequest`], [`Readmission`]), `/v1/peer/departure`, and the upgrades of [`crate::session`].

use orch_spec::role::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a cluster listens unless it is told otherwise.
pub const PORT: u16 = 7373;

/// The cluster as one of its nodes sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ClusterView {
    /// Its id.
    pub id: String,
    /// Whether others can join.
    pub open: bool,
    /// The node that answers.
    pub node: String,
    /// What that node is: `manager` or `worker`.
    pub role: String,
    /// Where it is reached; empty when it is alone.
    pub address: String,
    /// The node that leads; empty when none does, or when a worker answers.
    pub leader: String,
    /// How many elections there were before this one, and tries of them; 0 where it is not known.
    #[serde(default)]
    pub term: u64,
    /// Who manages.
    pub managers: Vec<PeerView>,
    /// Nodes of the managers whose votes count, when a manager answers: more than half of them must reach each other. An odd number;
    /// a manager that has just joined votes once it has caught up and the number stays odd.
    #[serde(default)]
    pub voters: Vec<String>,
    /// All members, when a manager answers.
    pub members: Vec<PeerView>,
    /// SHA-256 of the authority's certificate, hexadecimal.
    pub authority: String,
    /// When the certificate of the node that answers ends, milliseconds since the epoch.
    pub certificate_until: Option<u64>,
    /// Whether that node's connection to a manager stands. Always so on a manager.
    pub connected: bool,
    /// Whether a manager has said that this node was removed: what runs there goes on until it leaves.
    #[serde(default)]
    pub removed: bool,
}

/// A node by its name and place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PeerView {
    /// The node.
    pub node: String,
    /// `manager` or `worker`.
    pub role: String,
    /// `address:port`.
    pub address: String,
}

/// Open the cluster of one to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct InitRequest {
    /// Where others reach this node, `address` or `address:port`; empty = the address of the default route.
    pub advertise: String,
    /// Where it listens, `address:port`; empty = the port of `advertise` at all addresses.
    pub listen: String,
    /// Life of node certificates in seconds; 0 = a week.
    pub certificate_life: u64,
}

/// Join another host's cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct JoinRequest {
    /// The token.
    pub token: String,
    /// A manager: `address` or `address:port`.
    pub manager: String,
    /// See [`InitRequest::advertise`]; empty = the address that the connection to the manager has.
    pub advertise: String,
    /// See [`InitRequest::listen`].
    pub listen: String,
}

/// A node is let in; its agent starts again as a member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Joined {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: String,
    /// What it is there.
    pub role: String,
    /// What people should know, such as a clock that is off.
    pub warnings: Vec<String>,
}

/// Leave the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LeaveRequest {
    /// Also when nobody can be told, when it is the last manager, or when it has data that is nowhere else.
    pub force: bool,
}

/// A new token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRequest {
    /// What whoever shows it becomes.
    pub role: Role,
    /// No earlier one of this role counts any more.
    #[serde(default)]
    pub rotate: bool,
    /// Seconds that it counts; 0 = for ever; `None` = a day.
    #[serde(default)]
    pub life: Option<u64>,
    /// For one node only.
    #[serde(default)]
    pub once: bool,
}

/// A token, told once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenText {
    /// The whole token.
    pub token: String,
    /// Managers to join at.
    pub managers: Vec<String>,
    /// Milliseconds since the epoch; 0 = for ever.
    pub expires_at: u64,
}

/// A token as the cluster remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    /// Its public half.
    pub id: String,
    /// What whoever shows it becomes.
    pub role: Role,
    /// Milliseconds since the epoch; 0 = for ever.
    pub expires_at: u64,
    /// For one node only.
    pub once: bool,
    /// Milliseconds since the epoch.
    pub created_at: u64,
}

/// A certificate for a person or program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientRequest {
    /// Who.
    pub name: String,
    /// What they may do: `read`, `deploy`, `admin`.
    pub role: Role,
    /// Seconds that it counts; `None` = 90 days.
    #[serde(default)]
    pub life: Option<u64>,
}

/// Certificate and key, told once, as text (PEM).
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientCertificate {
    /// The name in it.
    pub name: String,
    /// The authority.
    pub ca: String,
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
    /// Milliseconds since the epoch.
    pub expires_at: u64,
    /// Managers to connect to.
    pub managers: Vec<String>,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A client certificate as the cluster remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientView {
    /// The name in it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Milliseconds since the epoch.
    pub expires_at: u64,
    /// Milliseconds since the epoch.
    pub created_at: u64,
}

/// A new node asks to be let in.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionRequest {
    /// Public half of its token.
    pub token: String,
    /// Secret half.
    pub secret: String,
    /// Its id.
    pub node: String,
    /// Its request for a certificate (PKCS #10, base 64).
    pub request: String,
    /// Where it is reached.
    pub address: String,
    /// Version of its orch.
    pub version: String,
    /// Its clock, milliseconds since the epoch.
    pub now_ms: u64,
}

impl std::fmt::Debug for AdmissionRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmissionRequest").field("token", &self.token).field("node", &self.node).finish_non_exhaustive()
    }
}

/// It is let in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Admission {
    /// The cluster's id.
    pub cluster: String,
    /// What it is there.
    pub role: String,
    /// Its certificate (base 64).
    pub certificate: String,
    /// The authority's (base 64).
    pub authority: String,
    /// Who manages.
    pub managers: Vec<PeerView>,
    /// Its number among the managers, when it is one.
    pub manager_number: Option<u64>,
    /// The cluster's clock, milliseconds since the epoch.
    pub now_ms: u64,
}

/// The next certificate, please.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// Request (PKCS #10, base 64), signed by the key that the cluster knows.
    pub request: String,
}

/// The next certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateAnswer {
    /// It (base 64).
    pub certificate: String,
    /// What the node is.
    pub role: String,
    /// Its number among the managers, when it has become one.
    pub manager_number: Option<u64>,
}

/// A manager that has lost what it had promised asks to take part as another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadmissionRequest {
    /// Its number among the managers so far, which is never used again.
    pub former: u64,
}

/// It may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readmission {
    /// Who asked.
    pub node: String,
    /// Its number from now on.
    pub manager_number: u64,
    /// The cluster's id.
    pub cluster: String,
}
