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
