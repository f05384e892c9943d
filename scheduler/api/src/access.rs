//! Who may call what: one table of every route of every server, read before a request reaches its handler. A route that is not in it is
//! for nobody.
//!
//! The unix socket is not asked: whoever may open it is root in effect. It is for connections between hosts that this table speaks.

use orch_spec::role::Role;

/// Who may call a route from another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody: it is about the very host that it is called on.
    Socket,
    /// Everybody, without a certificate: the one call by which a new node asks to be let in.
    Everybody,
    /// Nodes, also with a certificate that has expired: the call that asks for the next one.
    Renewal,
    /// Nodes, each for itself: what it is told and what it says is bound to the name in its certificate.
    Node,
    /// Managers.
    Manager,
    /// Clients that look, and those that may do more.
    Read,
    /// Clients that bring stacks up and down, and those that may do more.
    Deploy,
    /// Clients that may do everything.
    Admin,
}

impl Access {
    /// Whether somebody with this role may. Managers hold the whole state, so nothing is kept from them.
    pub fn allows(self, role: Role) -> bool {
        match self {
            Self::Socket => false,
            Self::Everybody => true,
            Self::Renewal | Self::Node => role.is_node(),
            Self::Manager => role == Role::Manager,
            Self::Read => matches!(role, Role::Read | Role::Deploy | Role::Admin | Role::Manager),
            Self::Deploy => matches!(role, Role::Deploy | Role::Admin | Role::Manager),
            Self::Admin => matches!(role, Role::Admin | Role::Manager),
        }
    }

    /// What it needs, for people.
    pub fn needs(self) -> &'static str {
        match self {
            Self::Socket => "the unix socket of that host",
            Self::Everybody => "nothing",
            Self::Renewal | Self::Node => "a node's certificate",
            Self::Manager => "a manager's certificate",
            Self::Read => "a client certificate (read, deploy or admin)",
            Self::Deploy => "a client certificate with the role deploy or admin",
            Self::Admin => "a client certificate with the role admin",
        }
    }
}

/// A route with who may call it.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The method.
    pub method: &'static str,
    /// The path with its parameters, as routers write it.
    pub path: &'static str,
    /// Who.
    pub access: Access,
}

const fn rule(method: &'static str, path: &'static str, access: Access) -> Rule {
    Rule { method, path, access }
}

use Access::{Admin, Deploy, Everybody, Manager, Node, Read, Renewal, Socket};

/// The table.
pub const RULES: &[Rule] = &[
    // The cluster.
    rule("GET", "/v1/cluster", Read),
    rule("POST", "/v1/cluster/init", Socket),
    rule("POST", "/v1/cluster/join", Socket),
    rule("POST", "/v1/cluster/leave", Socket),
    rule("GET", "/v1/cluster/tokens", Admin),
    rule("POST", "/v1/cluster/tokens", Admin),
    rule("DELETE", "/v1/cluster/tokens", Admin),
    rule("GET", "/v1/cluster/clients", Admin),
    rule("POST", "/v1/cluster/clients", Admin),
    rule("DELETE", "/v1/cluster/clients/{name}", Admin),
    // Between nodes.
    rule("POST", "/v1/peer/admission", Everybody),
    rule("POST", "/v1/peer/certificate", Renewal),
    rule("POST", "/v1/peer/session", Node),
    rule("POST", "/v1/peer/heartbeat", Node),
    rule("POST", "/v1/peer/addresses/{name}", Node),
    rule("DELETE", "/v1/peer/addresses/{name}", Node),
    rule("POST", "/v1/peer/departure", Node),
    rule("GET", "/v1/peer/images/{id}", Node),
    rule("GET", "/v1/peer/images/{id}/offer", Node),
    rule("GET", "/v1/peer/images/{id}/blobs/{digest}", Node),
    rule("DELETE", "/v1/peer/managers/{name}", Manager),
    rule("POST", "/v1/peer/readmission", Manager),
    rule("POST", "/v1/peer/raft", Manager),
    rule("POST", "/v1/peer/proposal", Manager),
    // Stacks and what they are made of.
    rule("GET", "/v1/stacks", Read),
    rule("GET", "/v1/stacks/{name}", Read),
    rule("GET", "/v1/stacks/{name}/watch", Read),
    rule("GET", "/v1/stacks/{name}/reachable", Read),
    rule("POST", "/v1/stacks/{name}/plan", Read),
    rule("POST", "/v1/stacks/{name}/apply", Deploy),
    rule("POST", "/v1/stacks/{name}/down", Deploy),
    rule("POST", "/v1/stacks/{name}/act", Deploy),
    rule("POST", "/v1/stacks/{name}/scale", Deploy),
    rule("POST", "/v1/stacks/{name}/run", Deploy),
    rule("GET", "/v1/tasks", Read),
    rule("GET", "/v1/tasks/{id}", Read),
    rule("POST", "/v1/tasks/{id}/desired", Deploy),
    rule("POST", "/v1/tasks/{id}/networks", Deploy),
    rule("DELETE", "/v1/tasks/{id}/networks/{name}", Deploy),
    rule("GET", "/v1/events", Read),
    rule("GET", "/v1/networks", Read),
    rule("POST", "/v1/networks", Deploy),
    rule("GET", "/v1/networks/{name}", Read),
    rule("DELETE", "/v1/networks/{name}", Deploy),
    rule("POST", "/v1/networks/{name}/addresses", Socket),
    rule("DELETE", "/v1/networks/{name}/addresses", Socket),
    rule("GET", "/v1/volumes", Read),
    rule("POST", "/v1/volumes", Deploy),
    rule("GET", "/v1/volumes/{name}", Read),
    rule("DELETE", "/v1/volumes/{name}", Deploy),
    rule("GET", "/v1/secrets", Read),
    rule("POST", "/v1/secrets", Deploy),
    rule("GET", "/v1/secrets/{name}", Read),
    rule("POST", "/v1/secrets/{name}", Deploy),
    rule("DELETE", "/v1/secrets/{name}", Deploy),
    rule("GET", "/v1/configs", Read),
    rule("POST", "/v1/configs", Deploy),
    rule("GET", "/v1/configs/{name}", Read),
    rule("POST", "/v1/configs/{name}", Deploy),
    rule("DELETE", "/v1/configs/{name}", Deploy),
    rule("GET", "/v1/tasks/{id}/why", Read),
    rule("GET", "/v1/services", Read),
    rule("GET", "/v1/services/{id}", Read),
    rule("DELETE", "/v1/services/{id}", Deploy),
    rule("POST", "/v1/services/{id}/update", Deploy),
    rule("POST", "/v1/services/{id}/rollback", Deploy),
    rule("GET", "/v1/nodes", Read),
    rule("GET", "/v1/nodes/{id}", Read),
    rule("POST", "/v1/nodes/{id}", Admin),
    rule("DELETE", "/v1/nodes/{id}", Admin),
    // One node: its containers, images and volumes. What people do there, they do through a manager.
    rule("GET", "/v1/openapi.json", Read),
    rule("GET", "/v1/info", Read),
    rule("GET", "/v1/df", Read),
    rule("POST", "/v1/prune", Admin),
    rule("GET", "/v1/containers", Read),
    rule("POST", "/v1/containers", Deploy),
    rule("POST", "/v1/containers/run", Deploy),
    rule("GET", "/v1/containers/{id}", Read),
    rule("DELETE", "/v1/containers/{id}", Deploy),
    rule("GET", "/v1/containers/{id}/inspect", Read),
    rule("POST", "/v1/containers/{id}/networks", Deploy),
    rule("DELETE", "/v1/containers/{id}/networks/{name}", Deploy),
    rule("POST", "/v1/containers/{id}/start", Deploy),
    rule("POST", "/v1/containers/{id}/stop", Deploy),
    rule("POST", "/v1/containers/{id}/restart", Deploy),
    rule("POST", "/v1/containers/{id}/kill", Deploy),
    rule("POST", "/v1/containers/{id}/pause", Deploy),
    rule("POST", "/v1/containers/{id}/unpause", Deploy),
    rule("POST", "/v1/containers/{id}/wait", Read),
    rule("POST", "/v1/containers/{id}/attach", Deploy),
    rule("POST", "/v1/containers/{id}/exec", Deploy),
    rule("GET", "/v1/containers/{id}/logs", Read),
    rule("GET", "/v1/containers/{id}/stats", Read),
    rule("GET", "/v1/containers/{id}/top", Read),
    rule("GET", "/v1/containers/{id}/archive", Deploy),
    rule("PUT", "/v1/containers/{id}/archive", Deploy),
    rule("GET", "/v1/containers/{id}/archive/directory", Read),
    rule("GET", "/v1/images", Read),
    rule("GET", "/v1/image", Read),
    rule("DELETE", "/v1/image", Deploy),
    rule("POST", "/v1/image/tag", Deploy),
    rule("GET", "/v1/image/history", Read),
    rule("GET", "/v1/images/resolve", Read),
    rule("GET", "/v1/images/offer", Deploy),
    rule("POST", "/v1/images/offer", Deploy),
    rule("GET", "/v1/images/blobs/{digest}", Deploy),
    rule("PUT", "/v1/images/blobs/{digest}", Deploy),
    rule("POST", "/v1/images/import", Deploy),
    rule("POST", "/v1/images/load", Deploy),
    rule("GET", "/v1/images/save", Deploy),
    rule("GET", "/v1/node/volumes", Read),
    rule("POST", "/v1/node/volumes", Deploy),
    rule("GET", "/v1/node/volumes/{name}", Read),
    rule("DELETE", "/v1/node/volumes/{name}", Deploy),
];

/// Who may call a route; `None` = it is not in the table.
pub fn of(method: &str, path: &str) -> Option<Access> {
    // A router answers HEAD by what GET would.
    let method = if method == "HEAD" { "GET" } else { method };
    RULES.iter().find(|rule| rule.method == method && rule.path == path).map(|rule| rule.access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_listed_once_and_one_that_is_not_listed_is_for_nobody() {
        for (place, one) in RULES.iter().enumerate() {
            assert!(
                !RULES[..place].iter().any(|other| (other.method, other.path) == (one.method, one.path)),
                "{} {} is listed twice",
                one.method,
                one.path
            );
        }
        assert_eq!(of("GET", "/v1/unheard-of"), None);
        assert_eq!(of("DELETE", "/v1/stacks"), None);
        assert_eq!(of("HEAD", "/v1/stacks"), Some(Access::Read));
    }

    #[test]
    fn a_worker_may_call_nothing_but_what_is_between_nodes() {
        for rule in RULES.iter().filter(|rule| rule.access.allows(Role::Worker)) {
            assert!(rule.path.starts_with("/v1/peer/"), "{} {}", rule.method, rule.path);
        }
        assert!(!of("POST", "/v1/peer/raft").unwrap().allows(Role::Worker));
        assert!(!of("POST", "/v1/peer/proposal").unwrap().allows(Role::Worker));
    }

    #[test]
    fn who_reads_changes_nothing_and_who_deploys_lets_nobody_in() {
        let changes = ["plan", "wait"];
        for rule in RULES.iter().filter(|rule| rule.access == Access::Read && rule.method != "GET") {
            assert!(changes.iter().any(|end| rule.path.ends_with(end)), "{} {}", rule.method, rule.path);
        }
        for rule in RULES.iter().filter(|rule| rule.access == Access::Deploy) {
            assert!(!rule.path.starts_with("/v1/cluster"), "{} {}", rule.method, rule.path);
        }
    }
}
