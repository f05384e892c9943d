//! What several clients asked for and were answered, and whether one order of it all explains every answer.
//!
//! Each key is a register with a version: a write makes its value the next version, a read sees value and version. A history is linearizable
//! (Herlihy and Wing, 1990) when every call can be given one moment between its begin and its end such that the calls, done one after the
//! other at these moments, give the answers that were seen. The search is that of Wing and Gong (1993) with Lowe's memory (2017): which calls
//! were taken together with the state they led to; what has been tried once is not tried again. Keys do not touch each other, so each is
//! searched for itself.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

/// What a register holds: its version and its value.
pub type Held = (u64, String);

/// What was asked for, with what was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Make this the value; it becomes the next version.
    Write(String),
    /// What the register held.
    Read(Held),
}

/// One call of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The register.
    pub key: String,
    /// What.
    pub act: Act,
    /// When it was begun, since the begin of the history.
    pub begun: Duration,
    /// When its answer was there; `None` = it never was: a write may have been done at any time since, or not at all.
    pub ended: Option<Duration>,
    /// Who asked whom, for people.
    pub by: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = self.ended.map_or("no answer".to_owned(), |ended| format!("{:.3}", ended.as_secs_f64()));
        write!(f, "{:.3} – {ended} {}: ", self.begun.as_secs_f64(), self.by)?;
        match &self.act {
            Act::Write(value) => write!(f, "write {value}"),
            Act::Read((version, value)) => write!(f, "read version {version}, {value}"),
        }
    }
}

/// The order of a register's writes that explains all answers: what each version was.
pub type Order = BTreeMap<u64, String>;

/// No order explains the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unexplained {
    /// The register.
    pub key: String,
    /// What the longest order that can be had leads to.
    pub held: Held,
    /// The calls that cannot be next in it, though one of them must be.
    pub stuck: Vec<Call>,
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: after version {}, {}, none of these can have been next:", self.key, self.held.0, self.held.1)?;
        self.stuck.iter().try_for_each(|call| write!(f, "\n  {call}"))
    }
}

/// Looks for an order of all calls of each key; `first` is what every register held before.
///
/// # Errors
/// The first key for which there is none.
pub fn linearize(calls: &[Call], first: &Held) -> Result<BTreeMap<String, Order>, Unexplained> {
    let mut keys: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        keys.entry(&call.key).or_default().push(call);
    }
    let each = keys.into_iter().map(|(key, calls)| {
        let order = Search::new(calls, first).run().map_err(|(held, stuck)| {
            let stuck = stuck.into_iter().cloned().collect();
            Unexplained { key: key.to_owned(), held, stuck }
        })?;
        Ok((key.to_owned(), order))
    });
    each.collect()
}

/// Which calls have been taken, as bits.
type Taken = Vec<u64>;

/// The search for one register.
struct Search<'a> {
    /// By their begins.
    calls: Vec<&'a Call>,
    first: Held,
    tried: HashSet<(Taken, Held)>,
    /// The most calls that were explained, what they lead to, and the calls of which none could follow.
    best: (usize, Held, Vec<&'a Call>),
}

/// A place in the search: what was taken so far, and which calls may be tried next.
struct Place {
    taken: Taken,
    /// Taken calls that have an answer.
    answered: usize,
    /// All calls before this one are taken.
    from: usize,
    held: Held,
    next: Vec<usize>,
}

fn has(taken: &Taken, call: usize) -> bool {
    taken[call / 64] >> (call % 64) & 1 == 1
}

impl<'a> Search<'a> {
    fn new(mut calls: Vec<&'a Call>, first: &Held) -> Self {
        // A read without an answer says nothing.
        calls.retain(|call| call.ended.is_some() || matches!(call.act, Act::Write(_)));
        calls.sort_by_key(|call| call.begun);
        Self { calls, first: first.clone(), tried: HashSet::new(), best: (0, first.clone(), Vec::new()) }
    }

    fn run(mut self) -> Result<Order, (Held, Vec<&'a Call>)> {
        let all = self.calls.iter().filter(|call| call.ended.is_some()).count();
        let taken = vec![0; self.calls.len().div_ceil(64)];
        let start = Place { taken, answered: 0, from: 0, held: self.first.clone(), next: Vec::new() };
        let mut path = vec![self.enter(start)];
        while let Some(place) = path.last_mut() {
            if place.answered == all {
                return Ok(path.into_iter().map(|place| place.held).collect());
            }
            let Some(call) = place.next.pop() else {
                path.pop();
                continue;
            };
            let Act::Write(value) = &self.calls[call].act else { continue };
            let held = (place.held.0 + 1, value.clone());
            let (taken, answered, from) = (place.taken.clone(), place.answered, place.from);
            let mut next = Place { taken, answered, from, held, next: Vec::new() };
            self.take(&mut next, call);
            let next = self.enter(next);
            if self.tried.insert((next.taken.clone(), next.held.clone())) {
                path.push(next);
            }
        }
        let (_, held, stuck) = self.best;
        Err((held, stuck))
    }

    fn take(&self, place: &mut Place, call: usize) {
        place.taken[call / 64] |= 1 << (call % 64);
        place.answered += usize::from(self.calls[call].ended.is_some());
        while place.from < self.calls.len() && has(&place.taken, place.from) {
            place.from += 1;
        }
    }

    /// Takes every read that sees what is held and may be next, for a read changes nothing and one moment is as good as another; then says
    /// which writes may be next: those that were begun before the first end of all that is not taken.
    fn enter(&mut self, mut place: Place) -> Place {
        loop {
            let mut until = Duration::MAX;
            let (mut next, mut read) = (Vec::new(), None);
            for call in place.from..self.calls.len() {
                if has(&place.taken, call) {
                    continue;
                }
                let found = self.calls[call];
                if found.begun > until {
                    break;
                }
                until = until.min(found.ended.unwrap_or(Duration::MAX));
                next.push(call);
                if found.act == Act::Read(place.held.clone()) {
                    read = Some(call);
                    break;
                }
            }
            if let Some(read) = read {
                self.take(&mut place, read);
                continue;
            }
            if place.answered >= self.best.0 {
                let stuck = next.iter().map(|call| self.calls[*call]).collect();
                self.best = (place.answered, place.held.clone(), stuck);
            }
            // The last is tried first: the one that ended first, most likely.
            next.sort_by_key(|call| std::cmp::Reverse(self.calls[*call].ended.unwrap_or(Duration::MAX)));
            place.next = next;
            return place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(begun: u64, ended: u64, act: Act) -> Call {
        let ended = (ended > 0).then(|| Duration::from_millis(ended));
        Call { key: "k".to_owned(), act, begun: Duration::from_millis(begun), ended, by: "a client".to_owned() }
    }

    fn write(begun: u64, ended: u64, value: &str) -> Call {
        call(begun, ended, Act::Write(value.to_owned()))
    }

    fn read(begun: u64, ended: u64, version: u64, value: &str) -> Call {
        call(begun, ended, Act::Read((version, value.to_owned())))
    }

    fn order(calls: &[Call]) -> Result<Order, Unexplained> {
        let mut orders = linearize(calls, &(1, "0".to_owned()))?;
        Ok(orders.remove("k").unwrap_or_default())
    }

    #[test]
    fn calls_at_one_time_may_have_been_in_any_order_that_explains_the_answers() {
        let calls = [write(1, 9, "a"), write(2, 8, "b"), read(3, 4, 2, "b"), read(10, 11, 3, "a")];
        let found = order(&calls).expect("b, then a");
        assert_eq!(found, Order::from([(1, "0".to_owned()), (2, "b".to_owned()), (3, "a".to_owned())]));
        order(&[write(1, 9, "a"), read(2, 3, 1, "0"), read(4, 5, 2, "a")]).expect("in the middle of the call");
    }

    #[test]
    fn a_read_of_what_was_overwritten_before_it_began_is_found() {
        let stale = [write(1, 2, "a"), write(3, 4, "b"), read(5, 6, 2, "a")];
        let found = order(&stale).expect_err("it is stale");
        assert_eq!((found.held.0, found.held.1.as_str(), found.stuck.len()), (3, "b", 1), "{found}");
        assert!(found.to_string().ends_with("0.005 – 0.006 a client: read version 2, a"), "{found}");
        order(&[write(1, 5, "a"), read(2, 3, 2, "a"), read(4, 5, 1, "0")])
            .expect_err("what was seen once is seen by all");
    }

    #[test]
    fn a_write_that_was_acknowledged_and_lost_is_found() {
        order(&[write(1, 2, "a"), read(3, 4, 1, "0")]).expect_err("lost at once");
        order(&[write(1, 2, "a"), write(3, 4, "b"), read(5, 6, 2, "b")]).expect_err("lost before another");
    }

    #[test]
    fn a_write_that_was_done_twice_is_found() {
        order(&[write(1, 2, "a"), read(3, 4, 3, "a")]).expect_err("its version says so");
        let between = [write(1, 9, "a"), read(2, 3, 2, "a"), write(4, 5, "b"), read(10, 11, 4, "a")];
        order(&between).expect_err("once before and once after another");
    }

    #[test]
    fn a_write_without_an_answer_is_done_late_or_never_and_not_before_it_was_asked_for() {
        order(&[write(1, 0, "a"), read(2, 3, 1, "0"), read(4, 5, 1, "0")]).expect("never");
        order(&[write(1, 0, "a"), read(2, 3, 1, "0"), read(4, 5, 2, "a")]).expect("late");
        order(&[write(1, 0, "a"), read(2, 3, 2, "a"), read(4, 5, 1, "0")]).expect_err("not done and undone");
        order(&[read(1, 2, 2, "a"), write(3, 0, "a")]).expect_err("not before");
    }

    #[test]
    fn what_nobody_wrote_is_found() {
        order(&[write(1, 2, "a"), read(3, 4, 2, "b")]).expect_err("nobody wrote it");
    }

    #[test]
    fn keys_are_looked_at_each_for_itself() {
        let mut other = read(5, 6, 2, "a");
        other.key = "other".to_owned();
        let found = linearize(&[write(1, 2, "a"), other], &(1, "0".to_owned())).expect_err("the other key has no a");
        assert_eq!(found.key, "other");
    }

    #[test]
    fn many_writes_at_one_time_are_searched_without_trying_all_their_orders() {
        // Fourteen at once have 14! orders, of which a look at each set of them once is enough.
        let mut calls: Vec<Call> = (0..14).map(|number| write(1, 100, &number.to_string())).collect();
        calls.push(read(101, 102, 15, "13"));
        order(&calls).expect("the thirteenth was last");
        calls.push(read(103, 104, 15, "12"));
        order(&calls).expect_err("one of the two reads is wrong");
    }
}
