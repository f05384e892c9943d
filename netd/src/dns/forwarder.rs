//! The forwarder: one task that knows which questions are being asked upstream, so that each is asked once however many wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::ResponseCode;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};

use super::cache::Question;
use super::exchange::Exchange;
use super::reply::UpstreamReply;
use super::serve::{Counters, Forward, Shared};

/// Queries waiting to be taken by the forwarder. It takes them as fast as they come; a full queue means overload.
pub(crate) const QUEUE: usize = 4096;
/// Questions being asked upstream. Each has some sockets, and the agent's descriptors must not run out.
const MOST_QUESTIONS: usize = 512;

/// Runs until the sending side is gone.
pub(crate) async fn run(mut queries: mpsc::Receiver<Forward>, shared: Arc<Shared>) {
    let mut forwarder = Forwarder {
        shared,
        exchange: Arc::new(Exchange::default()),
        waiting: HashMap::new(),
        questions: HashMap::new(),
        running: JoinSet::new(),
    };
    loop {
        tokio::select! {
            query = queries.recv() => match query {
                Some(query) => forwarder.take(query),
                None => return,
            },
            Some(done) = forwarder.running.join_next_with_id() => match done {
                Ok((id, reply)) => forwarder.finish(id, reply),
                Err(error) => {
                    tracing::error!(%error, "a DNS exchange ended badly");
                    forwarder.finish(error.id(), None);
                }
            },
        }
    }
}

struct Forwarder {
    shared: Arc<Shared>,
    exchange: Arc<Exchange>,
    /// Who waits for a question. Bounded by the slots that each sandbox has.
    waiting: HashMap<Question, Vec<Forward>>,
    /// Which question a task asks.
    questions: HashMap<Id, Question>,
    running: JoinSet<Option<UpstreamReply>>,
}

impl Forwarder {
    fn take(&mut self, forward: Forward) {
        if let Some(waiting) = self.waiting.get_mut(&forward.question) {
            waiting.push(forward);
            return;
        }
        // Between the asker's look into the cache and now, the answer may have come.
        let now = Instant::now();
        if let Some(reply) = self.shared.cache.get(&forward.question, now) {
            let answer = reply.render(&forward.query, now);
            return forward.reply.send(answer);
        }
        if self.waiting.len() >= MOST_QUESTIONS || forward.question.upstreams.servers.is_empty() {
            return self.fail(forward);
        }
        let question = forward.question.clone();
        let (exchange, asked, namespace) = (self.exchange.clone(), question.clone(), forward.namespace.clone());
        let task = self.running.spawn(async move { exchange.ask(&asked, namespace).await });
        self.questions.insert(task.id(), question.clone());
        self.waiting.insert(question, vec![forward]);
    }

    fn finish(&mut self, task: Id, reply: Option<UpstreamReply>) {
        let Some(question) = self.questions.remove(&task) else { return };
        let waiting = self.waiting.remove(&question).unwrap_or_default();
        let Some(reply) = reply.map(Arc::new) else {
            return waiting.into_iter().for_each(|forward| self.fail(forward));
        };
        self.shared.cache.put(&question, &reply);
        let now = Instant::now();
        for forward in waiting {
            let answer = reply.render(&forward.query, now);
            forward.reply.send(answer);
        }
    }

    fn fail(&self, forward: Forward) {
        Counters::count(&self.shared.counters.failed);
        let answer = forward.query.failure(ResponseCode::ServFail);
        forward.reply.send(answer);
    }
}
