//! Which requests were carried out lately, so that one that is asked for again is not done twice.
//!
//! Whoever passes a request on cannot always know what became of it: a leader that dies after it has proposed takes the answer along. So the
//! request is asked for again with the number that it had, and the log may hold it twice; the second entry finds the number here.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use orch_spec::assignment::TaskId;
use serde::{Deserialize, Serialize};

use crate::command::Answer;

/// A request is remembered for so long, milliseconds: whoever passes requests on tries for a few seconds.
const KEPT: u64 = 60_000;
/// So many at most, though they are younger: what a burst of changes may add to a snapshot is bounded.
const MOST: usize = 16_384;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// By number.
    done: BTreeMap<u64, Done>,
    /// Time and number, oldest first.
    order: VecDeque<(u64, u64)>,
}

/// What there is to say of a request that was carried out: what only its first answer could tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Done {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<TaskId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    v4: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    v6: Option<Ipv6Addr>,
}

impl Requests {
    /// The answer that a request had, without its plan; `None` when it was not carried out.
    pub(crate) fn answer(&self, request: u64) -> Option<Answer> {
        let Done { task, v4, v6 } = self.done.get(&request)?.clone();
        Some(Answer { task, addresses: (v4, v6), ..Answer::default() })
    }

    pub(crate) fn len(&self) -> usize {
        self.done.len()
    }

    /// One of so many pieces of it, by the requests' numbers, which are spread evenly.
    pub(crate) fn piece(&self, piece: u64, pieces: u64) -> impl Serialize {
        let width = u64::MAX / pieces;
        let (from, to) = (piece * width, if piece + 1 == pieces { u64::MAX } else { (piece + 1) * width - 1 });
        let done: Vec<(u64, Done)> = self.done.range(from..=to).map(|(number, done)| (*number, done.clone())).collect();
        let is_of = |(_, number): &&(u64, u64)| (from..=to).contains(number);
        let order: Vec<(u64, u64)> = self.order.iter().filter(is_of).copied().collect();
        (done, order)
    }

    /// Remembers a request, and forgets old ones. `now` is the log's time, milliseconds.
    pub(crate) fn note(&mut self, request: u64, now: u64, answer: &Answer) {
        let (v4, v6) = answer.addresses;
        self.done.insert(request, Done { task: answer.task.clone(), v4, v6 });
        self.order.push_back((now, request));
        while self.order.len() > MOST || self.order.front().is_some_and(|(time, _)| time + KEPT < now) {
            let Some((_, old)) = self.order.pop_front() else { break };
            self.done.remove(&old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Entry, NewVolume, State};

    #[test]
    fn a_command_whose_request_was_carried_out_changes_nothing_again() {
        let mut state = State::new("cluster".to_owned());
        let make = Command::CreateVolume(NewVolume { name: "v".to_owned(), ..NewVolume::default() });
        let entry = |request, command: &Command| Entry {
            now_ms: 5,
            time_ms: None,
            nonce: 1,
            request,
            command: command.clone(),
        };
        let done = |state: &mut State, index, request, command: &Command| {
            state.apply(index, &entry(request, command)).result.is_ok()
        };
        assert!(done(&mut state, 1, Some(7), &make));
        assert!(done(&mut state, 2, Some(7), &Command::RemoveVolume { name: "v".to_owned() }), "it was done before");
        assert!(state.volumes.contains_key("v"), "and is not done again as whatever comes under its number");
        assert!(done(&mut state, 3, Some(8), &Command::RemoveVolume { name: "v".to_owned() }));
        assert!(done(&mut state, 4, Some(7), &make));
        assert!(!state.volumes.contains_key("v"), "a late repetition undoes nothing");
        assert!(!done(&mut state, 5, Some(9), &Command::RemoveVolume { name: "v".to_owned() }), "what is refused");
        assert!(done(&mut state, 6, None, &make));
        assert!(done(&mut state, 7, Some(9), &Command::RemoveVolume { name: "v".to_owned() }), "may be done later");
        assert_eq!(state.index, 7);
    }

    #[test]
    fn a_request_is_known_for_a_minute_and_a_burst_pushes_the_oldest_out() {
        let mut requests = Requests::default();
        requests.note(7, 1000, &Answer { task: Some(TaskId::from("t")), ..Answer::default() });
        assert_eq!(requests.answer(7).and_then(|answer| answer.task), Some(TaskId::from("t")));
        assert!(requests.answer(8).is_none());
        requests.note(8, 1000 + KEPT, &Answer::default());
        assert!(requests.answer(7).is_some() && requests.answer(8).is_some());
        requests.note(9, 1001 + KEPT, &Answer::default());
        assert!(requests.answer(7).is_none() && requests.answer(8).is_some());
        for number in 0..MOST as u64 {
            requests.note(100 + number, 1001 + KEPT, &Answer::default());
        }
        assert_eq!((requests.done.len(), requests.order.len()), (MOST, MOST));
        assert!(requests.answer(9).is_none() && requests.answer(100).is_some());
    }
}
