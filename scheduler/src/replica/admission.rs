//! Proposals on their way into raft: only what the log has room for, and all of a batch together.

use raft::eraftpb::{Entry, Message, MessageType};

use super::{FRAME, Failure, Job, Proposal, Replica, SPARE, Unwritten, members};

impl Replica {
    /// Proposes when the log has room; what cannot be written is refused before raft hears of it.
    pub(super) fn admit(&mut self, proposal: Proposal) {
        if self.removed || !self.is_leader() {
            let leader = if self.removed { None } else { self.leader() };
            return self.fail(proposal.number, Failure::NotLeader(leader));
        }
        let needed = proposal.data.len() as u64 + FRAME + SPARE;
        let taken = self.unwritten.iter().map(|write| write.cost).sum::<u64>() + self.admitted;
        if self.proposals.parked.is_empty() && self.space.room >= taken + needed {
            return self.propose_now(proposal);
        }
        let park = self.proposals.park(proposal);
        match park {
            Err(number) => self.fail(number, Failure::Busy("too many changes wait for the disk".to_owned())),
            Ok(()) => self.reserve(),
        }
    }

    fn reserve(&mut self) {
        if self.reserving || self.proposals.parked.is_empty() {
            return;
        }
        self.reserving = true;
        let parked: u64 = self.proposals.parked.iter().map(|waiting| waiting.data.len() as u64 + FRAME).sum();
        // What is under way is written before the space is looked at.
        let bytes = usize::try_from(parked + 2 * SPARE).unwrap_or(usize::MAX);
        self.push_write(Job::Reserve(bytes), Unwritten { wish: true, ..Unwritten::default() });
    }

    fn propose_now(&mut self, proposal: Proposal) {
        self.admitted += proposal.data.len() as u64 + FRAME;
        let change = proposal.change.as_ref().and_then(members::configuration_change);
        match change {
            None => self.gathered.push(proposal),
            Some(change) => {
                self.propose_gathered();
                let Proposal { number, data, durable, .. } = proposal;
                match self.raw.propose_conf_change(data, change) {
                    Ok(()) => self.placed(&[(number, durable)]),
                    Err(error) => {
                        let failure = self.dropped(&error);
                        self.fail(number, failure);
                    }
                }
            }
        }
    }

    /// Gives raft all proposals of a batch at once: one message to each follower, one answer.
    pub(super) fn propose_gathered(&mut self) {
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.is_empty() {
            return;
        }
        if !self.is_leader() {
            // The library would send them on to the new leader: then whoever tries again has it done twice.
            let leader = self.leader();
            return gathered.iter().for_each(|gone| self.fail(gone.number, Failure::NotLeader(leader.clone())));
        }
        let places: Vec<_> = gathered.iter().map(|proposal| (proposal.number, proposal.durable)).collect();
        let entries: Vec<Entry> =
            gathered.into_iter().map(|proposal| Entry { data: proposal.data.into(), ..Entry::default() }).collect();
        let mut message = Message { from: self.identity.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        match self.raw.raft.step(message) {
            Ok(()) => self.placed(&places),
            Err(error) => {
                let failure = self.dropped(&error);
                places.into_iter().for_each(|(number, _)| self.fail(number, failure.clone()));
            }
        }
    }

    /// Why raft did not take a proposal.
    fn dropped(&self, error: &raft::Error) -> Failure {
        match error {
            raft::Error::ProposalDropped => match self.raw.raft.lead_transferee {
                Some(successor) => Failure::NotLeader(self.node_of(successor)),
                None => Failure::Busy("too many changes are under way".to_owned()),
            },
            other => Failure::Busy(other.to_string()),
        }
    }

    /// The last entries of the log are these proposals.
    fn placed(&mut self, proposals: &[(u64, bool)]) {
        let (last, term) = (self.raw.raft.raft_log.last_index(), self.raw.raft.term);
        let first = last + 1 - proposals.len() as u64;
        for (index, (number, durable)) in (first..).zip(proposals) {
            self.proposals.placed(index, term, *number, *durable);
        }
    }

    pub(super) fn release_parked(&mut self) {
        for proposal in std::mem::take(&mut self.proposals.parked) {
            self.admit(proposal);
        }
    }
}
