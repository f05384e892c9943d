//! Reads that must see everything that was acknowledged before they began.

use std::collections::BTreeMap;

/// Asked again after so many ticks: a leader that has committed nothing in its term drops the question without a word.
const AGAIN: u64 = 4;
/// Given up after so many ticks.
const HOPELESS: u64 = 60;

/// See the module. One question to the leader serves all reads that wait.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Not asked yet: the read and the tick at which it came.
    new: Vec<(u64, u64)>,
    /// By what was sent along with the question.
    asked: BTreeMap<Vec<u8>, Asked>,
    questions: u64,
}

#[derive(Debug)]
struct Asked {
    at: u64,
    reads: Vec<(u64, u64)>,
}

impl Reads {
    pub(crate) fn begin(&mut self, number: u64, tick: u64) {
        self.new.push((number, tick));
    }

    /// What to ask the leader with now. The nonce is one of this life of the replica, so that no answer to its last is taken for one.
    pub(crate) fn question(&mut self, nonce: u64, id: u64, tick: u64) -> Option<Vec<u8>> {
        if self.new.is_empty() {
            return None;
        }
        self.questions += 1;
        let context: Vec<u8> = [nonce, id, self.questions].into_iter().flat_map(u64::to_le_bytes).collect();
        self.asked.insert(context.clone(), Asked { at: tick, reads: std::mem::take(&mut self.new) });
        Some(context)
    }

    /// Which reads an answer is for.
    pub(crate) fn answered(&mut self, context: &[u8]) -> Vec<u64> {
        let asked = self.asked.remove(context);
        asked.into_iter().flat_map(|asked| asked.reads).map(|(number, _)| number).collect()
    }

    /// Takes back what has had no answer, and says which reads are hopeless.
    pub(crate) fn tick(&mut self, tick: u64) -> Vec<u64> {
        let late: Vec<_> =
            self.asked.iter().filter(|(_, asked)| asked.at + AGAIN <= tick).map(|(key, _)| key.clone()).collect();
        for key in late {
            self.new.extend(self.asked.remove(&key).into_iter().flat_map(|asked| asked.reads));
        }
        let (over, waiting) = self.new.iter().partition(|(_, since)| since + HOPELESS <= tick);
        self.new = waiting;
        Vec::into_iter(over).map(|(number, _): (u64, u64)| number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_without_answer_is_asked_again_with_another_context_and_given_up_at_last() {
        let mut reads = Reads::default();
        reads.begin(1, 0);
        let first = reads.question(9, 1, 0).expect("one waits");
        reads.begin(2, 1);
        assert!(reads.tick(AGAIN).is_empty());
        let second = reads.question(9, 1, AGAIN).expect("both wait");
        assert_ne!(first, second);
        assert!(reads.answered(&first).is_empty(), "an answer to the former question came too late to be believed");
        let mut answered = reads.answered(&second);
        answered.sort_unstable();
        assert_eq!(answered, [1, 2]);
        reads.begin(3, 10);
        assert_eq!(reads.tick(10 + HOPELESS), [3]);
    }
}
