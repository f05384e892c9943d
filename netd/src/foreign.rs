//! Getting along with other firewalls. What our table accepts is not final: a chain of somebody else's that drops forwarded
//! packets by default (ufw, Docker) drops ours too. So three rules go into that chain, or into the one that its owner
//! reads first and leaves to others, and they go away with the last network.
//!
//! They are written as `iptables` would write them: it refuses to list or change a table that holds an expression it does
//! not know, and the owner of that chain lives by it. Hence the old `conntrack` match and not the `ct` expression.

use std::collections::BTreeSet;

use crate::name::{BRIDGE_PREFIX, TUNNEL_PREFIX};
use crate::netd::{Shared, lock};
use crate::netlink::{NetlinkError, NetlinkSocket};
use crate::nft::expression::{Meta, Verdict};
use crate::nft::{self, Family, ObservedChain, Rule, Transaction};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// Bits of the `conntrack` match's state (`XT_CONNTRACK_STATE_*`).
const XT_ESTABLISHED: u16 = 1 << 1;
const XT_RELATED: u16 = 1 << 2;
const XT_DNAT: u16 = 1 << 7;
/// Rules put into one chain for one pattern of bridges.
const RULES: usize = 3;

/// Our rules in other programs' tables.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// The text by which our rules are found again.
    comment: String,
    warned_of_firewalld: bool,
}

/// A chain of somebody else's.
type Place = (Family, String, String);

impl Foreign {
    pub(crate) fn new(instance: &str) -> Foreign {
        Foreign { comment: format!("orch {instance}"), warned_of_firewalld: false }
    }

    /// Puts our rules where they are needed and takes them away where they are not; `patterns` are the bridges' names, or
    /// what they begin with (ending in `+`). No pattern: none are needed anywhere.
    fn refresh(&mut self, socket: &mut NetlinkSocket, patterns: &BTreeSet<String>) -> Result<(), NetlinkError> {
        for family in [Family::Ipv4, Family::Ipv6] {
            let chains = nft::chains(socket, family)?;
            let needed: BTreeSet<(String, String)> =
                if patterns.is_empty() { BTreeSet::new() } else { places(&chains) };
            for chain in &chains {
                let place = (family, chain.table.clone(), chain.name.clone());
                let wanted = needed.contains(&(chain.table.clone(), chain.name.clone()));
                self.refresh_chain(socket, &place, if wanted { Some(patterns) } else { None })?;
            }
        }
        self.look_for_firewalld(socket, patterns)
    }

    fn refresh_chain(
        &self,
        socket: &mut NetlinkSocket,
        (family, table, chain): &Place,
        patterns: Option<&BTreeSet<String>>,
    ) -> Result<(), NetlinkError> {
        // Only chains that we may have written to: to list the rules of all would cost, and concern us not.
        if patterns.is_none() && !is_candidate(chain) {
            return Ok(());
        }
        let rules = nft::rules(socket, *family, table, chain)?;
        let ours: Vec<u64> = rules
            .iter()
            .filter(|rule| rule.comment.as_deref() == Some(&*self.comment))
            .map(|rule| rule.handle)
            .collect();
        let wanted: Vec<Rule> = patterns.into_iter().flatten().flat_map(|pattern| accepting(pattern)).collect();
        // Ours stand first, or somebody has put a drop before them.
        let first = rules.iter().take(ours.len()).all(|rule| ours.contains(&rule.handle));
        if ours.len() == wanted.len() && first {
            return Ok(());
        }
        let mut transaction = Transaction::new();
        ours.iter().for_each(|handle| transaction.delete_rule(*family, table, chain, *handle));
        for rule in wanted.into_iter().rev() {
            transaction.rule_first(*family, table, chain, &rule.comment(&self.comment));
        }
        tracing::info!(table, chain, "adjusted the rules by which another firewall lets containers' traffic pass");
        transaction.commit(socket)
    }

    fn look_for_firewalld(
        &mut self,
        socket: &mut NetlinkSocket,
        patterns: &BTreeSet<String>,
    ) -> Result<(), NetlinkError> {
        if patterns.is_empty() || self.warned_of_firewalld {
            return Ok(());
        }
        if nft::chains(socket, Family::Inet)?.iter().any(|chain| chain.table == "firewalld") {
            self.warned_of_firewalld = true;
            tracing::warn!(
                "firewalld is active and rejects what it forwards for interfaces it does not know; let it trust ours: \
                 firewall-cmd --permanent --zone=trusted --add-interface={BRIDGE_PREFIX}+ && firewall-cmd --reload"
            );
        }
        Ok(())
    }
}

/// Names of chains that are ever written to: base chains have the name that iptables gives them.
fn is_candidate(chain: &str) -> bool {
    matches!(chain, "DOCKER-USER" | "ufw-user-forward" | "ufw6-user-forward" | "FORWARD")
}

/// The chains that need our rules: where forwarded packets are dropped by default, the chain meant for users if there is
/// one, else the very chain.
fn places(chains: &[ObservedChain]) -> BTreeSet<(String, String)> {
    let mut places = BTreeSet::new();
    for base in chains.iter().filter(|chain| chain.hook == Some(FORWARD) && chain.policy == Some(0)) {
        let for_users = ["DOCKER-USER", "ufw-user-forward", "ufw6-user-forward"]
            .into_iter()
            .find(|name| chains.iter().any(|chain| chain.table == base.table && chain.name == *name));
        places.insert((base.table.clone(), for_users.unwrap_or(&base.name).to_owned()));
    }
    places
}

/// `-i PATTERN -j ACCEPT`, `-o PATTERN -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
/// `-o PATTERN -m conntrack --ctstate DNAT -j ACCEPT`.
fn accepting(pattern: &str) -> [Rule; RULES] {
    let of = |meta| {
        let rule = Rule::new().meta(meta, 0);
        match pattern.strip_suffix('+') {
            // A comparison of as many bytes as the prefix has.
            Some(prefix) => rule.equal(0, prefix.as_bytes()),
            None => rule.equal(0, &[pattern.as_bytes(), &[0]].concat()),
        }
    };
    let accept = |rule: Rule| rule.counter().verdict(Verdict::Accept);
    [
        accept(of(Meta::InputName)),
        accept(of(Meta::OutputName).xt_match("conntrack", 3, &conntrack_match(XT_RELATED | XT_ESTABLISHED))),
        accept(of(Meta::OutputName).xt_match("conntrack", 3, &conntrack_match(XT_DNAT))),
    ]
}

/// `struct xt_conntrack_mtinfo3`: eight addresses of 16 bytes, two times, five ports; then what to match, what to invert,
/// the states, the statuses, four ports; 164 bytes, rounded up to the alignment of a `u64`.
fn conntrack_match(states: u16) -> [u8; 168] {
    /// `XT_CONNTRACK_STATE`: match the state.
    const BY_STATE: u16 = 1;
    let mut info = [0; 168];
    info[146..148].copy_from_slice(&BY_STATE.to_ne_bytes());
    info[150..152].copy_from_slice(&states.to_ne_bytes());
    info
}

impl Shared {
    /// Looks at other firewalls again. What they refuse is said and does not stop us.
    pub(crate) fn refresh_foreign(&self) {
        let mut patterns: BTreeSet<String> = {
            let state = lock(&self.state);
            let bridges = state.networks.values().map(|network| &network.record.bridge);
            let pattern = |bridge: &String| {
                if bridge.starts_with(BRIDGE_PREFIX) { format!("{BRIDGE_PREFIX}+") } else { bridge.clone() }
            };
            bridges.map(pattern).collect()
        };
        // What comes by the mesh's wire, or leaves by it, is forwarded too.
        let meshed = lock(&self.cluster).desired.mesh.is_some();
        patterns.extend(meshed.then(|| format!("{TUNNEL_PREFIX}+")));
        let mut foreign = lock(&self.foreign);
        if let Err(error) = foreign.refresh(lock(&self.table).socket(), &patterns) {
            tracing::warn!(%error, "cannot look after another firewall's forward chain: it may drop containers' traffic");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str, forward_policy: Option<u32>) -> ObservedChain {
        let hook = forward_policy.map(|_| FORWARD);
        ObservedChain { table: table.into(), name: name.into(), hook, policy: forward_policy }
    }

    #[test]
    fn rules_go_into_the_chain_meant_for_users_where_forwarding_is_dropped() {
        let docker = [chain("filter", "FORWARD", Some(0)), chain("filter", "DOCKER-USER", None)];
        assert_eq!(places(&docker), [("filter".to_owned(), "DOCKER-USER".to_owned())].into());
        let plain = [chain("filter", "FORWARD", Some(0))];
        assert_eq!(places(&plain), [("filter".to_owned(), "FORWARD".to_owned())].into());
        let open = [chain("filter", "FORWARD", Some(1)), chain("filter", "DOCKER-USER", None)];
        assert_eq!(places(&open), BTreeSet::new());
    }
}
