//! The managers: who takes part in the replicated log, under which number, and where they are.
//!
//! Raft knows its members by numbers only. This record gives a number to a node once and never again, so that whatever a former member
//! still says can be told from what its successor says. The configuration of raft itself (who votes, who only learns) is derived from
//! this record: it is changed by the very entry that changes raft's, and a snapshot of the state therefore always holds the configuration
//! of its own index.

use std::collections::BTreeMap;

use orch_spec::assignment::NodeId;
use serde::{Deserialize, Serialize};

use crate::command::Changes;
use crate::error::Refusal;
use crate::state::State;

/// Managers at most. Seven already outlive three losses; every further one makes each change slower.
const MOST: usize = 9;

/// Everybody who takes part, and who did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Members {
    /// By raft's number. Empty until the first manager has said who it is: then number 1 votes alone.
    pub managers: BTreeMap<u64, Member>,
    /// Numbers that are never given again, with the node that had each.
    pub removed: BTreeMap<u64, NodeId>,
}

/// One who takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Where other managers reach it, `host:port`. Empty for one that has said nothing yet.
    pub address: String,
    /// Whether it votes.
    pub role: MemberRole,
}

/// Whether a manager votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// It gets the log and does not count.
    Learner,
    /// It votes and counts.
    Voter,
}

/// A change of the members. All but `Found` and `Address` come with a change of raft's own configuration, in one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberChange {
    /// The first manager says who it is.
    Found {
        /// The node.
        node: NodeId,
        /// Where it is.
        address: String,
    },
    /// A further one, which learns at first.
    Add {
        /// Its number: must be the next one.
        id: u64,
        /// The node.
        node: NodeId,
        /// Where it is.
        address: String,
    },
    /// A learner becomes a voter.
    Promote {
        /// Its number.
        id: u64,
    },
    /// One goes.
    Remove {
        /// Its number.
        id: u64,
    },
    /// One is somewhere else now.
    Address {
        /// The node.
        node: NodeId,
        /// Where it is.
        address: String,
    },
}

/// Why the members stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberRefusal {
    /// The node takes part already.
    #[error("node {node} is a manager already")]
    Known {
        /// The node.
        node: NodeId,
    },
    /// Another has this address.
    #[error("manager {node} has the address {address} already")]
    AddressTaken {
        /// Who has it.
        node: NodeId,
        /// The address.
        address: String,
    },
    /// The number is not the next one: somebody else was faster.
    #[error("the managers have changed meanwhile")]
    Outdated,
    /// No such manager.
    #[error("{0} is not a manager")]
    Unknown(String),
    /// Nobody would be left to decide anything.
    #[error("{node} is the last manager that votes")]
    Last {
        /// The node.
        node: NodeId,
    },
    /// Enough is enough.
    #[error("there are {MOST} managers already, and more make a cluster slower, not safer")]
    TooMany,
}

impl Members {
    /// The number that the next manager gets.
    pub fn next_id(&self) -> u64 {
        let given = self.managers.keys().chain(self.removed.keys()).max().copied();
        given.unwrap_or(1) + 1
    }

    /// The number of a node's manager.
    pub fn id_of(&self, node: &NodeId) -> Option<u64> {
        self.managers.iter().find(|(_, member)| member.node == *node).map(|(id, _)| *id)
    }

    /// Those who vote. Number 1 before anybody has said anything.
    pub fn voters(&self) -> Vec<u64> {
        if self.managers.is_empty() { vec![1] } else { self.with_role(MemberRole::Voter) }
    }

    /// Those who only learn.
    pub fn learners(&self) -> Vec<u64> {
        self.with_role(MemberRole::Learner)
    }

    fn with_role(&self, role: MemberRole) -> Vec<u64> {
        self.managers.iter().filter(|(_, member)| member.role == role).map(|(id, _)| *id).collect()
    }

    fn change(&mut self, change: &MemberChange) -> Result<(), MemberRefusal> {
        match change {
            MemberChange::Found { node, address } => {
                if let Some(first) = self.managers.values().next() {
                    return Err(MemberRefusal::Known { node: first.node.clone() });
                }
                let member = Member { node: node.clone(), address: address.clone(), role: MemberRole::Voter };
                self.managers.insert(1, member);
            }
            MemberChange::Add { id, node, address } => {
                if self.managers.is_empty() || *id != self.next_id() {
                    return Err(MemberRefusal::Outdated);
                }
                if self.id_of(node).is_some() {
                    return Err(MemberRefusal::Known { node: node.clone() });
                }
                self.require_free(node, address)?;
                if self.managers.len() >= MOST {
                    return Err(MemberRefusal::TooMany);
                }
                let member = Member { node: node.clone(), address: address.clone(), role: MemberRole::Learner };
                self.managers.insert(*id, member);
            }
            MemberChange::Promote { id } => {
                let member = self.managers.get_mut(id).ok_or_else(|| MemberRefusal::Unknown(id.to_string()))?;
                member.role = MemberRole::Voter;
            }
            MemberChange::Remove { id } => {
                let member = self.managers.get(id).ok_or_else(|| MemberRefusal::Unknown(id.to_string()))?;
                if self.voters() == [*id] {
                    return Err(MemberRefusal::Last { node: member.node.clone() });
                }
                let node = member.node.clone();
                self.managers.remove(id);
                self.removed.insert(*id, node);
            }
            MemberChange::Address { node, address } => {
                self.require_free(node, address)?;
                let member = self.managers.values_mut().find(|member| member.node == *node);
                member.ok_or_else(|| MemberRefusal::Unknown(node.0.clone()))?.address.clone_from(address);
            }
        }
        Ok(())
    }

    fn require_free(&self, node: &NodeId, address: &str) -> Result<(), MemberRefusal> {
        let holder = self.managers.values().find(|member| member.node != *node && member.address == address);
        match holder {
            Some(holder) if !address.is_empty() => {
                Err(MemberRefusal::AddressTaken { node: holder.node.clone(), address: address.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

impl State {
    /// Changes the members, or says why not.
    pub(crate) fn change_members(&mut self, change: &MemberChange, changes: &mut Changes) -> Result<(), Refusal> {
        self.members.change(change)?;
        changes.objects = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Members {
        let mut members = Members::default();
        members.change(&MemberChange::Found { node: "a".into(), address: "a:1".to_owned() }).expect("the first");
        members
    }

    fn add(members: &mut Members, node: &str) -> Result<u64, MemberRefusal> {
        let id = members.next_id();
        let address = format!("{node}:1");
        members.change(&MemberChange::Add { id, node: node.into(), address }).map(|()| id)
    }

    #[test]
    fn a_number_is_never_given_twice() {
        let mut members = found();
        let second = add(&mut members, "b").expect("a further one");
        members.change(&MemberChange::Remove { id: second }).expect("it goes");
        let third = add(&mut members, "b").expect("it comes back");
        assert!(third > second, "{third} after {second}");
        assert_eq!(members.removed.keys().copied().collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn one_learns_before_it_votes_and_the_last_voter_stays() {
        let mut members = found();
        let second = add(&mut members, "b").expect("a further one");
        assert_eq!((members.voters(), members.learners()), (vec![1], vec![second]));
        assert_eq!(
            members.change(&MemberChange::Remove { id: 1 }),
            Err(MemberRefusal::Last { node: "a".into() }),
            "a learner cannot decide anything"
        );
        members.change(&MemberChange::Promote { id: second }).expect("it has caught up");
        members.change(&MemberChange::Remove { id: 1 }).expect("the other decides now");
        assert_eq!(members.voters(), [second]);
    }

    #[test]
    fn nobody_takes_anothers_name_or_address_or_number() {
        let mut members = found();
        assert_eq!(add(&mut members, "a"), Err(MemberRefusal::Known { node: "a".into() }));
        let change = MemberChange::Add { id: 2, node: "b".into(), address: "a:1".to_owned() };
        assert!(matches!(members.change(&change), Err(MemberRefusal::AddressTaken { .. })));
        let change = MemberChange::Add { id: 7, node: "b".into(), address: "b:1".to_owned() };
        assert_eq!(members.change(&change), Err(MemberRefusal::Outdated));
    }

    #[test]
    fn an_address_changes_and_nothing_else() {
        let mut members = found();
        let before = members.managers[&1].clone();
        members.change(&MemberChange::Address { node: "a".into(), address: "z:9".to_owned() }).expect("it moved");
        assert_eq!(members.managers[&1], Member { address: "z:9".to_owned(), ..before });
    }
}
