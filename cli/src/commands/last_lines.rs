//! The last lines of what fails in an update. It may be gone when it is known to have failed, for a rollback takes it away at once: so the
//! logs of containers that come up are read from the moment they are made.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use orch_api::client::Client;
use orch_api::control::TaskView;
use orch_api::node::LogLine;
use orch_spec::assignment::Health;

use crate::printer;
use crate::progress::Board;

/// How many of the last lines of a container that failed are shown.
pub(super) const LINES: usize = 20;
/// Logs that are read at once.
const READERS: usize = 16;
/// Containers that are kept: the first that failed say why.
const KEPT: usize = 4;

/// See the module.
pub(super) struct LastLines {
    client: Client,
    /// The oldest first.
    readers: VecDeque<Reader>,
    /// Tasks whose log was read, if only for a while.
    followed: BTreeSet<String>,
    failed: BTreeSet<String>,
}

struct Reader {
    task: String,
    container: String,
    lines: Arc<Mutex<VecDeque<String>>>,
    reading: tokio::task::JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl LastLines {
    pub(super) fn new(client: &Client) -> Self {
        let (readers, followed, failed) = (VecDeque::new(), BTreeSet::new(), BTreeSet::new());
        Self { client: client.clone(), readers, followed, failed }
    }

    /// Looks who has come, who is well and who has failed.
    pub(super) fn look(&mut self, board: &Board) {
        for task in board.failed_in_update().map(|task| &task.id) {
            if self.failed.len() < KEPT {
                self.failed.insert(task.clone());
            }
        }
        for task in board.tasks.values().filter(|task| board.is_updated_to(task)) {
            if task.status.health == Health::Healthy {
                self.readers.retain(|reader| reader.task != task.id);
            } else if !task.status.container.is_empty() && self.followed.insert(task.id.clone()) {
                self.readers.push_back(read(self.client.clone(), task));
                self.make_room();
            }
        }
    }

    /// Who came up first and has not failed since is the least likely to.
    fn make_room(&mut self) {
        if self.readers.len() > READERS
            && let Some(place) = self.readers.iter().position(|reader| !self.failed.contains(&reader.task))
        {
            self.readers.remove(place);
        }
    }

    /// Says what those who failed have said last. Where none was seen to fail, it went too fast: what the last to come up said.
    pub(super) fn say(&self) {
        let is_meant = |reader: &&Reader| self.failed.is_empty() || self.failed.contains(&reader.task);
        for reader in self.readers.iter().rev().filter(is_meant).take(KEPT) {
            let lines = reader.lines.lock().unwrap_or_else(PoisonError::into_inner);
            say(&reader.container, lines.iter());
        }
    }
}

/// Says what a container has said last.
pub(super) fn say<'l>(container: &str, lines: impl ExactSizeIterator<Item = &'l String>) {
    if lines.len() > 0 {
        printer::say(&format!("--- last lines of {container}"));
        lines.for_each(|line| printer::say(line.trim_end_matches('\n')));
    }
}

/// Reads a log until its container is gone.
fn read(client: Client, task: &TaskView) -> Reader {
    let lines = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&lines);
    let path = format!("/v1/containers/{}/logs?tail={LINES}&follow=true&until_end=removal", task.status.container);
    let reading = tokio::spawn(async move {
        let Ok(mut log) = client.lines::<LogLine>(&path).await else { return };
        while let Ok(Some(line)) = log.next().await {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back(line.log);
            while kept.len() > LINES {
                kept.pop_front();
            }
        }
    });
    Reader { task: task.id.clone(), container: task.container_name.clone(), lines, reading }
}
