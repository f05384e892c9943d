//! Who belongs to the cluster, and by what proof: the certificate authority, join tokens, members, clients, and who is shut out.
//!
//! The state knows digests only: of the secrets in tokens and of members' public keys. The authority's private key is the exception; it
//! is in the state so that every manager can issue certificates, and the log encrypts what it writes. Whether a token still counts is
//! judged by the time in the log entry, so that all replicas judge alike.

use std::collections::BTreeMap;

use orch_spec::assignment::NodeId;
use orch_spec::role::Role;
use serde::{Deserialize, Serialize};

use crate::command::Changes;
use crate::error::Hint;
use crate::plan::Moment;
use crate::state::State;

/// Tokens that count at once: more were made by a mistake.
const TOKENS: usize = 256;
/// Clients that are known at once.
const CLIENTS: usize = 4096;

/// Bytes that are never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub Vec<u8>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} hidden bytes", self.0.len())
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// The authority's certificate (DER); empty = nobody can join yet.
    pub authority: Vec<u8>,
    /// Its private key (PKCS #8).
    pub authority_key: Hidden,
    /// How long certificates of nodes count, seconds; 0 = as long as orch thinks fit.
    pub certificate_life: u64,
    /// Join tokens by their public half.
    pub tokens: BTreeMap<String, Token>,
    /// Nodes that have a certificate.
    pub members: BTreeMap<NodeId, Member>,
    /// Certificates of clients, by the name in them.
    pub clients: BTreeMap<String, ClientGrant>,
    /// Names of nodes and clients that are never let in again → milliseconds since the epoch when that was decided.
    pub revoked: BTreeMap<String, u64>,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// What whoever shows it becomes.
    pub role: Role,
    /// SHA-256 of its secret half, hexadecimal.
    pub digest: String,
    /// Milliseconds since the epoch after which it does not count; 0 = never.
    pub expires_at: u64,
    /// It counts for one node only.
    pub once: bool,
    /// Milliseconds since the epoch.
    pub created_at: u64,
}

/// A node with a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// What it is; what it may do is what this and its certificate both allow.
    pub role: Role,
    /// SHA-256 of its public key, hexadecimal. A node is known by its id and this key, never by its address.
    pub key: String,
    /// Where it listens: `address:port`. Changes.
    pub address: String,
    /// Milliseconds since the epoch.
    pub joined_at: u64,
}

/// A certificate of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientGrant {
    /// What it may do.
    pub role: Role,
    /// Milliseconds since the epoch.
    pub expires_at: u64,
    /// Milliseconds since the epoch.
    pub created_at: u64,
}

/// A node that wants to belong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its id.
    pub node: NodeId,
    /// SHA-256 of its public key, hexadecimal.
    pub key: String,
    /// Where it listens.
    pub address: String,
}

/// A change of who belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityCommand {
    /// Give the cluster its authority and its first member, which manages.
    Open {
        /// Certificate (DER).
        authority: Vec<u8>,
        /// Private key (PKCS #8).
        key: Hidden,
        /// See [`Security::certificate_life`].
        certificate_life: u64,
        /// The node that says so.
        first: Candidate,
    },
    /// A new token.
    AddToken {
        /// Its public half.
        id: String,
        /// The token.
        token: Token,
        /// No other token of this role counts from now on.
        rotate: bool,
    },
    /// No token of the role counts any more.
    RevokeTokens {
        /// The role.
        role: Role,
    },
    /// A node shows a token. Repeating it with the same key changes nothing.
    Join {
        /// The token's public half.
        token: String,
        /// SHA-256 of the secret half that was shown.
        digest: String,
        /// Who shows it.
        candidate: Candidate,
    },
    /// A member listens elsewhere.
    Move {
        /// The member.
        node: NodeId,
        /// Where.
        address: String,
    },
    /// Promote or demote.
    SetRole {
        /// The member.
        node: NodeId,
        /// What it becomes.
        role: Role,
    },
    /// Shut a member out for good.
    Remove {
        /// The member.
        node: NodeId,
    },
    /// A client gets a certificate.
    Grant {
        /// The name in the certificate.
        name: String,
        /// What it may do.
        client: ClientGrant,
    },
    /// A client's certificate does not count any more.
    Revoke {
        /// The name in the certificate.
        name: String,
    },
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecurityFault {
    /// It has been opened.
    #[error("this cluster has been initialised already")]
    Open,
    /// It has not.
    #[error("this cluster has not been initialised")]
    Closed,
    /// No such token, or one that was rotated away, used up, or whose secret half is wrong.
    #[error("the join token does not count: {0}")]
    Token(&'static str),
    /// The node was removed.
    #[error("{0} was removed from the cluster and is not let in again")]
    Revoked(String),
    /// Another key under a known id.
    #[error("node {0} is a member of the cluster with another key")]
    OtherKey(NodeId),
    /// Not a member.
    #[error("node {0} is not a member of the cluster")]
    Stranger(NodeId),
    /// No such client.
    #[error("no client certificate has the name {0}")]
    Client(String),
    /// Nobody would be left to decide.
    #[error("node {0} is the last manager")]
    LastManager(NodeId),
    /// A role that does not fit.
    #[error("{role} is not a role of a {of}")]
    Role {
        /// The role.
        role: Role,
        /// `node` or `client`.
        of: &'static str,
    },
    /// More than makes sense.
    #[error("there are {0} already")]
    TooMany(&'static str),
}

impl Hint for SecurityFault {
    fn code(&self) -> &'static str {
        match self {
            Self::Open | Self::OtherKey(_) | Self::LastManager(_) | Self::TooMany(_) => "conflict",
            Self::Closed => "unavailable",
            Self::Token(_) | Self::Revoked(_) => "forbidden",
            Self::Stranger(_) | Self::Client(_) => "not_found",
            Self::Role { .. } => "invalid",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Open => "`orch cluster token worker` prints what another host joins with".to_owned(),
            Self::Closed => "`orch cluster init` opens it to others".to_owned(),
            Self::Token(_) => "`orch cluster token` on a manager prints a new one".to_owned(),
            Self::Revoked(_) => {
                "`orch cluster leave --force` on that host gives it a new identity; then join".to_owned()
            }
            Self::OtherKey(node) => format!("`orch node rm --force {node}` forgets the old one"),
            Self::LastManager(_) => {
                "promote another node first; `orch cluster leave --force` on it gives the cluster up".to_owned()
            }
            Self::Client(_) => "`orch cluster client ls` lists them".to_owned(),
            Self::TooMany(_) => "remove some first".to_owned(),
            Self::Stranger(_) | Self::Role { .. } => return None,
        })
    }
}

impl Security {
    /// Whether the cluster has an authority, so that others can join.
    pub fn is_open(&self) -> bool {
        !self.authority.is_empty()
    }

    /// Members that manage.
    pub fn managers(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.members.iter().filter(|(_, member)| member.role == Role::Manager)
    }

    /// Whether whoever shows a certificate with this name, role and key is let in, and as what: a node has what its certificate and its
    /// record both say, so a demoted manager is a worker at once.
    pub fn admits(&self, name: &str, role: Role, key: &str) -> Option<Role> {
        if self.revoked.contains_key(name) {
            return None;
        }
        if role.is_node() {
            let member = self.members.get(&NodeId(name.to_owned()))?;
            return (member.key == key).then(|| role.min(member.role));
        }
        self.clients.get(name).filter(|client| client.role == role).map(|client| client.role)
    }

    fn is_last_manager(&self, node: &NodeId) -> bool {
        let mut managers = self.managers().map(|(id, _)| id);
        managers.next() == Some(node) && managers.next().is_none()
    }

    fn take(&mut self, now_ms: u64, command: &SecurityCommand) -> Result<(), SecurityFault> {
        if !self.is_open() && !matches!(command, SecurityCommand::Open { .. }) {
            return Err(SecurityFault::Closed);
        }
        match command {
            SecurityCommand::Open { authority, key, certificate_life, first } => {
                if self.is_open() {
                    return Err(SecurityFault::Open);
                }
                self.authority.clone_from(authority);
                self.authority_key = key.clone();
                self.certificate_life = *certificate_life;
                self.admit(now_ms, Role::Manager, first);
            }
            SecurityCommand::AddToken { id, token, rotate } => self.add_token(now_ms, id, token, *rotate)?,
            SecurityCommand::RevokeTokens { role } => self.tokens.retain(|_, token| token.role != *role),
            SecurityCommand::Join { token, digest, candidate } => self.join(now_ms, token, digest, candidate)?,
            SecurityCommand::Move { node, address } => self.member(node)?.address.clone_from(address),
            SecurityCommand::SetRole { node, role } => {
                if !role.is_node() {
                    return Err(SecurityFault::Role { role: *role, of: "node" });
                }
                if *role == Role::Worker && self.is_last_manager(node) {
                    return Err(SecurityFault::LastManager(node.clone()));
                }
                self.member(node)?.role = *role;
            }
            SecurityCommand::Remove { node } => {
                if self.is_last_manager(node) {
                    return Err(SecurityFault::LastManager(node.clone()));
                }
                self.member(node)?;
                self.members.remove(node);
                self.revoked.insert(node.0.clone(), now_ms);
            }
            SecurityCommand::Grant { name, client } => {
                if client.role.is_node() {
                    return Err(SecurityFault::Role { role: client.role, of: "client" });
                }
                // Those whose certificates have expired by themselves need no record.
                self.clients.retain(|_, client| client.expires_at > now_ms);
                if self.clients.len() >= CLIENTS {
                    return Err(SecurityFault::TooMany("client certificates"));
                }
                self.clients.insert(name.clone(), client.clone());
            }
            SecurityCommand::Revoke { name } => {
                self.clients.remove(name).ok_or_else(|| SecurityFault::Client(name.clone()))?;
                self.revoked.insert(name.clone(), now_ms);
            }
        }
        Ok(())
    }

    fn member(&mut self, node: &NodeId) -> Result<&mut Member, SecurityFault> {
        self.members.get_mut(node).ok_or_else(|| SecurityFault::Stranger(node.clone()))
    }

    fn add_token(&mut self, now_ms: u64, id: &str, token: &Token, rotate: bool) -> Result<(), SecurityFault> {
        if !token.role.is_node() {
            return Err(SecurityFault::Role { role: token.role, of: "node" });
        }
        self.tokens.retain(|_, known| {
            let counts = known.expires_at == 0 || known.expires_at > now_ms;
            counts && !(rotate && known.role == token.role)
        });
        if self.tokens.len() >= TOKENS {
            return Err(SecurityFault::TooMany("tokens"));
        }
        self.tokens.insert(id.to_owned(), token.clone());
        Ok(())
    }

    fn join(&mut self, now_ms: u64, id: &str, digest: &str, candidate: &Candidate) -> Result<(), SecurityFault> {
        if self.revoked.contains_key(&candidate.node.0) {
            return Err(SecurityFault::Revoked(format!("node {}", candidate.node)));
        }
        if let Some(known) = self.members.get_mut(&candidate.node) {
            // The answer to its first try was lost: it is who it was, whatever has become of the token since.
            if known.key != candidate.key {
                return Err(SecurityFault::OtherKey(candidate.node.clone()));
            }
            known.address.clone_from(&candidate.address);
            return Ok(());
        }
        let Some(token) = self.tokens.get(id).filter(|token| token.digest == digest) else {
            return Err(SecurityFault::Token("it is not known, was rotated, or has been used up"));
        };
        if token.expires_at != 0 && token.expires_at <= now_ms {
            return Err(SecurityFault::Token("it has expired"));
        }
        let (role, once) = (token.role, token.once);
        if once {
            self.tokens.remove(id);
        }
        self.admit(now_ms, role, candidate);
        Ok(())
    }

    fn admit(&mut self, now_ms: u64, role: Role, candidate: &Candidate) {
        let member = Member { role, key: candidate.key.clone(), address: candidate.address.clone(), joined_at: now_ms };
        self.members.insert(candidate.node.clone(), member);
    }
}

impl State {
    pub(crate) fn secure(
        &mut self,
        moment: Moment,
        command: &SecurityCommand,
        changes: &mut Changes,
    ) -> Result<(), SecurityFault> {
        self.security.take(moment.now_ms, command)?;
        changes.objects = true;
        let (action, id) = match command {
            SecurityCommand::Open { .. } => ("init", self.cluster.clone()),
            SecurityCommand::AddToken { id, .. } => ("token", id.clone()),
            SecurityCommand::RevokeTokens { role } => ("token_revoke", role.to_string()),
            SecurityCommand::Join { candidate, .. } => ("admit", candidate.node.0.clone()),
            SecurityCommand::Move { node, .. } => ("move", node.0.clone()),
            SecurityCommand::SetRole { node, .. } => ("role", node.0.clone()),
            SecurityCommand::Remove { node } => ("shut_out", node.0.clone()),
            SecurityCommand::Grant { name, .. } => ("grant", name.clone()),
            SecurityCommand::Revoke { name } => ("revoke", name.clone()),
        };
        self.event(moment, "cluster", action, &id, &id, "", &[]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Entry};
    use crate::error::Refusal;

    struct Cluster {
        state: State,
        now_ms: u64,
    }

    impl Cluster {
        fn open() -> Self {
            let mut cluster = Self { state: State::new("c"), now_ms: 1000 };
            let first = candidate("first", "k0");
            let open = SecurityCommand::Open { authority: vec![1], key: Hidden(vec![2]), certificate_life: 0, first };
            assert_eq!(cluster.send(open), Ok(()));
            cluster
        }

        fn send(&mut self, command: SecurityCommand) -> Result<(), SecurityFault> {
            let entry = Entry {
                now_ms: self.now_ms,
                time_ms: None,
                nonce: 0,
                request: None,
                command: Command::Security(command),
            };
            match self.state.apply(self.state.index + 1, &entry).result {
                Ok(_) => Ok(()),
                Err(Refusal::Security(fault)) => Err(fault),
                Err(other) => panic!("another kind of refusal: {other}"),
            }
        }

        fn token(&mut self, id: &str, role: Role, expires_at: u64, once: bool, rotate: bool) {
            let token = Token { role, digest: format!("digest of {id}"), expires_at, once, created_at: self.now_ms };
            assert_eq!(self.send(SecurityCommand::AddToken { id: id.to_owned(), token, rotate }), Ok(()));
        }

        fn join(&mut self, token: &str, node: &str, key: &str) -> Result<(), SecurityFault> {
            let digest = format!("digest of {token}");
            self.send(SecurityCommand::Join { token: token.to_owned(), digest, candidate: candidate(node, key) })
        }

        fn admits(&self, name: &str, role: Role, key: &str) -> Option<Role> {
            self.state.security.admits(name, role, key)
        }
    }

    fn candidate(node: &str, key: &str) -> Candidate {
        Candidate { node: node.into(), key: key.to_owned(), address: format!("{node}:1") }
    }

    #[test]
    fn a_token_gives_its_role_and_no_other() {
        let mut cluster = Cluster::open();
        cluster.token("w", Role::Worker, 0, false, false);
        cluster.token("m", Role::Manager, 0, false, false);
        assert_eq!(cluster.join("w", "a", "ka"), Ok(()));
        assert_eq!(cluster.join("m", "b", "kb"), Ok(()));
        assert_eq!(cluster.admits("a", Role::Worker, "ka"), Some(Role::Worker));
        // A manager's certificate in a worker's hands, however it came by it, is a worker's.
        assert_eq!(cluster.admits("a", Role::Manager, "ka"), Some(Role::Worker));
        assert_eq!(cluster.admits("b", Role::Manager, "kb"), Some(Role::Manager));
        assert_eq!(cluster.admits("b", Role::Manager, "another"), None);
        assert_eq!(cluster.admits("nobody", Role::Manager, "k"), None);
    }

    #[test]
    fn tokens_that_are_wrong_expired_rotated_revoked_or_used_up_let_nobody_in() {
        let mut cluster = Cluster::open();
        cluster.token("short", Role::Worker, 2000, false, false);
        cluster.token("once", Role::Worker, 0, true, false);
        assert!(cluster.join("unheard-of", "a", "k").is_err());
        let wrong = SecurityCommand::Join {
            token: "once".to_owned(),
            digest: "of a guess".to_owned(),
            candidate: candidate("a", "k"),
        };
        assert!(matches!(cluster.send(wrong), Err(SecurityFault::Token(_))));
        assert_eq!(cluster.join("once", "a", "ka"), Ok(()));
        assert!(matches!(cluster.join("once", "b", "kb"), Err(SecurityFault::Token(_))), "it was used up");
        cluster.now_ms = 2000;
        assert_eq!(cluster.join("short", "b", "kb"), Err(SecurityFault::Token("it has expired")));
        cluster.token("old", Role::Worker, 0, false, false);
        cluster.token("boss", Role::Manager, 0, false, false);
        cluster.token("new", Role::Worker, 0, false, true);
        assert!(cluster.join("old", "b", "kb").is_err(), "it was rotated away");
        assert_eq!(cluster.join("new", "b", "kb"), Ok(()));
        assert_eq!(cluster.join("boss", "c", "kc"), Ok(()), "the other role's tokens still count");
        assert_eq!(cluster.send(SecurityCommand::RevokeTokens { role: Role::Manager }), Ok(()));
        assert!(cluster.join("boss", "d", "kd").is_err());
    }

    #[test]
    fn a_join_whose_answer_was_lost_can_be_repeated_by_the_same_key_only() {
        let mut cluster = Cluster::open();
        cluster.token("once", Role::Worker, 0, true, false);
        assert_eq!(cluster.join("once", "a", "ka"), Ok(()));
        assert_eq!(cluster.join("once", "a", "ka"), Ok(()));
        assert_eq!(cluster.join("once", "a", "other"), Err(SecurityFault::OtherKey("a".into())));
    }

    #[test]
    fn who_was_removed_is_never_let_in_again() {
        let mut cluster = Cluster::open();
        cluster.token("w", Role::Worker, 0, false, false);
        assert_eq!(cluster.join("w", "a", "ka"), Ok(()));
        assert_eq!(cluster.send(SecurityCommand::Remove { node: "a".into() }), Ok(()));
        assert_eq!(cluster.admits("a", Role::Worker, "ka"), None);
        assert!(matches!(cluster.join("w", "a", "ka"), Err(SecurityFault::Revoked(_))));
        let alice = ClientGrant { role: Role::Deploy, expires_at: 9000, created_at: 1000 };
        assert_eq!(cluster.send(SecurityCommand::Grant { name: "alice".to_owned(), client: alice }), Ok(()));
        assert_eq!(cluster.admits("alice", Role::Deploy, ""), Some(Role::Deploy));
        assert_eq!(cluster.admits("alice", Role::Admin, ""), None);
        assert_eq!(cluster.send(SecurityCommand::Revoke { name: "alice".to_owned() }), Ok(()));
        assert_eq!(cluster.admits("alice", Role::Deploy, ""), None);
    }

    #[test]
    fn the_last_manager_can_neither_be_removed_nor_demoted() {
        let mut cluster = Cluster::open();
        let last = Err(SecurityFault::LastManager("first".into()));
        assert_eq!(cluster.send(SecurityCommand::Remove { node: "first".into() }), last);
        assert_eq!(cluster.send(SecurityCommand::SetRole { node: "first".into(), role: Role::Worker }), last);
        cluster.token("m", Role::Manager, 0, false, false);
        assert_eq!(cluster.join("m", "b", "kb"), Ok(()));
        assert_eq!(cluster.send(SecurityCommand::SetRole { node: "first".into(), role: Role::Worker }), Ok(()));
        assert_eq!(cluster.admits("first", Role::Manager, "k0"), Some(Role::Worker), "at once, by its old certificate");
    }

    #[test]
    fn a_private_key_is_never_printed() {
        let cluster = Cluster::open();
        let shown = format!("{:?}", cluster.state.security);
        assert!(shown.contains("1 hidden bytes") && !shown.contains("Hidden"), "{shown}");
    }
}
