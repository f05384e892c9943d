//! What happens on this host, told to whoever listens.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::config::ContainerId;
use crate::engine::{lock, now};

/// Events kept for a listener that does not read: five hundred containers may start and end at once. One that falls further behind is
/// told so and looks at the state itself, which is what counts.
const LIMIT: usize = 4096;

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// ns since 1970.
    pub time: i64,
    /// To which container; empty for [`EventKind::Lagged`].
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// Made.
    Created,
    /// Its process runs.
    Started {
        /// Host pid.
        pid: i32,
    },
    /// Its process has ended.
    Exited {
        /// Exit code, 128+N for a signal.
        code: i32,
        /// The kernel killed one of its processes for lack of memory.
        oom: bool,
        /// Why, if not by itself.
        error: String,
    },
    /// Frozen.
    Paused,
    /// Thawed.
    Unpaused,
    /// Gone.
    Removed,
    /// This listener was too slow and has missed events: look at the state.
    Lagged,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    lagged: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Channel {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// The listeners.
#[derive(Debug, Default)]
pub(crate) struct EventHub {
    listeners: Mutex<Vec<Weak<Channel>>>,
}

impl EventHub {
    pub(crate) fn send(&self, container: &ContainerId, name: &str, kind: EventKind) {
        let event = Event { time: now(), container: container.clone(), name: name.to_owned(), kind };
        lock(&self.listeners).retain(|listener| {
            let Some(channel) = listener.upgrade() else { return false };
            let mut queue = lock(&channel.queue);
            if queue.events.len() >= LIMIT {
                queue.events.clear();
                queue.lagged = true;
            }
            queue.events.push_back(event.clone());
            channel.filled.notify_one();
            true
        });
    }

    pub(crate) fn listen(&self) -> EventReceiver {
        let channel = Arc::new(Channel::default());
        lock(&self.listeners).push(Arc::downgrade(&channel));
        EventReceiver { channel }
    }
}

impl Drop for EventHub {
    fn drop(&mut self) {
        for channel in lock(&self.listeners).iter().filter_map(Weak::upgrade) {
            lock(&channel.queue).closed = true;
            channel.filled.notify_all();
        }
    }
}

/// One listener's end. Dropping it ends the listening.
#[derive(Debug)]
pub struct EventReceiver {
    channel: Arc<Channel>,
}

impl EventReceiver {
    /// The next event; waits. `None` when the engine is gone.
    pub fn receive(&self) -> Option<Event> {
        loop {
            match self.receive_within(Duration::from_secs(3600)) {
                Ok(event) => return Some(event),
                Err(closed) if closed => return None,
                Err(_) => {}
            }
        }
    }

    /// The next event within a time.
    ///
    /// # Errors
    /// `true` when the engine is gone, `false` when the time is over.
    pub fn receive_within(&self, wait: Duration) -> Result<Event, bool> {
        let deadline = Instant::now() + wait;
        let mut queue = lock(&self.channel.queue);
        loop {
            if std::mem::take(&mut queue.lagged) {
                let container = ContainerId(String::new());
                return Ok(Event { time: now(), container, name: String::new(), kind: EventKind::Lagged });
            }
            if let Some(event) = queue.events.pop_front() {
                return Ok(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if queue.closed || left.is_zero() {
                return Err(queue.closed);
            }
            queue = self.channel.filled.wait_timeout(queue, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}
