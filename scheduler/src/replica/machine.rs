//! Committed entries on their way into the state.

use bytes::Bytes;
use orch_core::{Answer, Changes, Command, MemberChange, Members, Refusal, State};

use crate::replica::record::{self, Unreadable};

/// A committed entry.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What it holds.
    pub content: Content,
    /// The number under which it was proposed here and somebody waits for it.
    pub number: Option<u64>,
}

/// What a committed entry holds.
#[derive(Debug, Clone)]
pub enum Content {
    /// Nothing: raft's own.
    Nothing,
    /// A command.
    Command(Bytes),
    /// A command that changes the members, and raft's configuration with them unless the state refuses it.
    Members(Bytes),
}

/// How far the state is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Index of the last entry.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Changes of raft's configuration that the state has accepted, each with its index.
    pub changes: Vec<(u64, MemberChange)>,
    /// The members, when they are not what they were.
    pub members: Option<Members>,
    /// Sums of the state on the way, each with its index: see [`State::sum`].
    pub sums: Vec<(u64, u32)>,
}

/// What became of a proposal, by its number: index and answer, or why nothing was done.
pub type Verdict = (u64, Result<(u64, Answer), Refusal>);

/// What came of a batch.
#[derive(Debug, Default)]
pub struct Batch {
    /// For the replica.
    pub applied: Applied,
    /// For those who wait.
    pub answers: Vec<Verdict>,
    /// For those who keep something derived from the state.
    pub changes: Changes,
}

/// Applies entries, at least one.
///
/// # Errors
/// [`Unreadable`]: an entry is of a later version. The state must not go on then.
pub fn apply(state: &mut State, entries: Vec<Committed>) -> Result<Batch, Unreadable> {
    let mut batch = Batch::default();
    for entry in entries {
        apply_one(state, entry, &mut batch)?;
        batch.applied.sums.extend(state.sum().map(|sum| (state.index, sum)));
    }
    Ok(batch)
}

fn apply_one(state: &mut State, entry: Committed, batch: &mut Batch) -> Result<(), Unreadable> {
    let Committed { index, term, content, number } = entry;
    (batch.applied.index, batch.applied.term) = (index, term);
    let (data, configures) = match content {
        Content::Nothing => {
            state.skip(index);
            return Ok(());
        }
        Content::Command(data) => (data, false),
        Content::Members(data) => (data, true),
    };
    let entry = record::decode_command(index, &data)?;
    let outcome = state.apply(index, &entry);
    batch.changes.merge(outcome.changes);
    if let (Command::Member(change), true) = (entry.command, outcome.result.is_ok()) {
        batch.applied.members = Some(state.members.clone());
        if configures {
            batch.applied.changes.push((index, change));
        }
    }
    if let Some(number) = number {
        batch.answers.push((number, outcome.result.map(|answer| (index, answer))));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_rafts_own_changes_nothing_but_the_index() {
        let before = State::new("c");
        let mut state = before.clone();
        let empty = Committed { index: 7, term: 3, content: Content::Nothing, number: Some(1) };
        let batch = apply(&mut state, vec![empty]).expect("there is nothing to read in it");
        assert_eq!(state, State { index: 7, ..before });
        assert_eq!((batch.applied.index, batch.applied.term, batch.answers.len()), (7, 3, 0));
    }
}
