//! Answers of upstream servers, kept for a short time.
//!
//! Two generations: what is used moves to the young one; when that is full it becomes the old one, and the former old one is
//! dropped whole. That is bounded, forgets what nobody asks for, and takes no list to keep in order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::reply::UpstreamReply;
use super::table::Server;
use crate::config::SandboxId;

/// Answers in one generation: more distinct names than the containers of one host use within a minute.
const MOST_ENTRIES: usize = 4096;
/// Bytes in one generation.
const MOST_BYTES: usize = 2 << 20;
/// Larger answers are passed on and not kept.
const LARGEST: usize = 16 << 10;

/// What was asked, and of whom: answers of one set of servers are never given to who asks another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// In wire form and lower case.
    pub(crate) name: Box<[u8]>,
    pub(crate) kind: u16,
    pub(crate) dnssec: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) upstreams: Arc<Upstreams>,
}

/// The servers that a question goes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Upstreams {
    pub(crate) servers: Vec<Server>,
    /// The asker, when any server is asked from inside it: the same address is another server elsewhere.
    pub(crate) sandbox: Option<SandboxId>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Question, Arc<UpstreamReply>>,
    young_bytes: usize,
    old: HashMap<Question, Arc<UpstreamReply>>,
}

/// The cache.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    generations: Mutex<Generations>,
}

impl Cache {
    /// An answer that still holds.
    pub(crate) fn get(&self, question: &Question, now: Instant) -> Option<Arc<UpstreamReply>> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reply) = generations.young.get(question) {
            return reply.is_fresh(now).then(|| reply.clone());
        }
        let (question, reply) = generations.old.remove_entry(question)?;
        if !reply.is_fresh(now) {
            return None;
        }
        generations.put(question, reply.clone());
        Some(reply)
    }

    /// Keeps an answer, if it is one to keep.
    pub(crate) fn put(&self, question: &Question, reply: &Arc<UpstreamReply>) {
        if reply.lifetime.is_zero() || reply.size() > LARGEST {
            return;
        }
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.put(question.clone(), reply.clone());
    }

    /// How many answers are held, fresh or not.
    pub(crate) fn len(&self) -> usize {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.len() + generations.old.len()
    }
}

impl Generations {
    fn put(&mut self, question: Question, reply: Arc<UpstreamReply>) {
        if self.young.len() >= MOST_ENTRIES || self.young_bytes >= MOST_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        let cost = |question: &Question, reply: &UpstreamReply| question.name.len() + reply.size();
        self.young_bytes += cost(&question, &reply);
        let key = question.name.len();
        if let Some(replaced) = self.young.insert(question, reply) {
            self.young_bytes -= key + replaced.size();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};

    use super::super::reply::UpstreamQuery;
    use super::*;

    fn question(number: usize) -> Question {
        let label = format!("n{number:06}");
        let mut name = vec![7];
        name.extend_from_slice(label.as_bytes());
        name.push(0);
        Question { name: name.into(), kind: 1, dnssec: false, checking_disabled: false, upstreams: Arc::default() }
    }

    fn reply(question: &Question) -> Arc<UpstreamReply> {
        let query = UpstreamQuery::new(&question.name, 1, false, false, false);
        let mut message = Message::from_vec(&query.bytes).unwrap();
        message.metadata.message_type = MessageType::Response;
        let name = message.queries[0].name.clone();
        message.add_answer(Record::from_rdata(name, 30, RData::A(A::new(192, 0, 2, 1))));
        Arc::new(UpstreamReply::read(&message.to_vec().unwrap(), &query).unwrap())
    }

    #[test]
    fn it_stays_bounded_and_keeps_what_is_used() {
        let cache = Cache::default();
        let now = Instant::now();
        let used = question(0);
        cache.put(&used, &reply(&used));
        for number in 1..20_000 {
            let question = question(number);
            cache.put(&question, &reply(&question));
            assert!(cache.get(&used, now).is_some(), "{number}");
        }
        assert!(cache.len() <= 2 * MOST_ENTRIES, "{}", cache.len());
        assert!(cache.get(&question(1), now).is_none());
    }

    #[test]
    fn what_is_over_is_not_given_out() {
        let cache = Cache::default();
        let question = question(1);
        cache.put(&question, &reply(&question));
        assert!(cache.get(&question, Instant::now() + Duration::from_secs(29)).is_some());
        assert!(cache.get(&question, Instant::now() + Duration::from_secs(31)).is_none());
    }

    #[test]
    fn other_servers_and_other_kinds_of_question_are_kept_apart() {
        let cache = Cache::default();
        let one = question(1);
        cache.put(&one, &reply(&one));
        let sandbox = Arc::new(Upstreams { servers: Vec::new(), sandbox: Some("a".into()) });
        for other in [
            Question { upstreams: sandbox, ..one.clone() },
            Question { dnssec: true, ..one.clone() },
            Question { checking_disabled: true, ..one.clone() },
            Question { kind: 28, ..one.clone() },
        ] {
            assert!(cache.get(&other, Instant::now()).is_none());
        }
    }
}
