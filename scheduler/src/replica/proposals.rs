//! Who waits for which entry, and what the log has room for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::replica::Failure;

/// Proposals that wait until the log has room; more are refused.
const PARKED: usize = 4096;

/// A command on its way into the log.
#[derive(Debug)]
pub(crate) struct Proposal {
    /// By which the proposer knows it.
    pub(crate) number: u64,
    /// The command.
    pub(crate) data: Vec<u8>,
    /// Whether it must be on disk before it counts even where nobody else could miss it.
    pub(crate) durable: bool,
    /// The change of raft's configuration that comes with it.
    pub(crate) change: Option<orch_core::MemberChange>,
}

/// Proposals under way.
///
/// An entry is known by index and term. By order would be wrong: what was proposed can be replaced by another leader's entry, and then whoever
/// is first in the queue would get another's answer.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    /// Index → term, number, and the tick at which hope ends.
    waiting: BTreeMap<u64, (u64, u64, Option<u64>)>,
    /// Indexes of entries that need no fsync.
    lazy: BTreeSet<u64>,
    /// In order, until there is room.
    pub(crate) parked: VecDeque<Proposal>,
}

impl Proposals {
    pub(crate) fn park(&mut self, proposal: Proposal) -> Result<(), u64> {
        if self.parked.len() >= PARKED {
            return Err(proposal.number);
        }
        self.parked.push_back(proposal);
        Ok(())
    }

    /// Notes where a proposal has gone.
    pub(crate) fn placed(&mut self, index: u64, term: u64, number: u64, durable: bool) {
        self.waiting.insert(index, (term, number, None));
        if !durable {
            self.lazy.insert(index);
        }
    }

    /// Whether this entry needs no fsync. Asked once, when it is written.
    pub(crate) fn take_lazy(&mut self, index: u64) -> bool {
        self.lazy.remove(&index)
    }

    /// Who waits for this committed entry. Somebody whose entry was replaced hears that it is lost: it will never be carried out.
    pub(crate) fn committed(&mut self, index: u64, term: u64, lost: &mut Vec<(u64, Failure)>) -> Option<u64> {
        let (proposed, number, _) = self.waiting.remove(&index)?;
        if proposed == term {
            return Some(number);
        }
        lost.push((number, Failure::Lost));
        None
    }

    /// A snapshot has covered everything up to this index: what became of the entries is not known any more.
    pub(crate) fn covered(&mut self, index: u64, lost: &mut Vec<(u64, Failure)>) {
        let later = self.waiting.split_off(&(index + 1));
        lost.extend(std::mem::replace(&mut self.waiting, later).into_values().map(|(_, n, _)| (n, Failure::Unknown)));
    }

    /// The leadership is gone: what is under way may still be committed by the next leader, until `deadline`.
    pub(crate) fn deposed(&mut self, deadline: u64) {
        for (_, _, end) in self.waiting.values_mut() {
            end.get_or_insert(deadline);
        }
        self.lazy.clear();
    }

    /// Ends hope where its time is over.
    pub(crate) fn expire(&mut self, tick: u64, lost: &mut Vec<(u64, Failure)>) {
        self.waiting.retain(|_, (_, number, end)| {
            let over = end.is_some_and(|end| end <= tick);
            if over {
                lost.push((*number, Failure::Unknown));
            }
            !over
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_proposal_is_lost_and_its_successor_gets_no_answer_of_its() {
        let mut proposals = Proposals::default();
        proposals.placed(5, 1, 100, true);
        proposals.placed(6, 1, 101, true);
        let mut lost = Vec::new();
        assert_eq!(proposals.committed(5, 2, &mut lost), None);
        assert_eq!(proposals.committed(6, 1, &mut lost), Some(101));
        assert_eq!(lost, [(100, Failure::Lost)]);
    }

    #[test]
    fn what_a_deposed_leader_proposed_is_unknown_when_its_time_is_over() {
        let mut proposals = Proposals::default();
        proposals.placed(5, 1, 100, true);
        proposals.deposed(10);
        let mut lost = Vec::new();
        proposals.expire(9, &mut lost);
        assert_eq!(lost, []);
        proposals.expire(10, &mut lost);
        assert_eq!(lost, [(100, Failure::Unknown)]);
    }
}
