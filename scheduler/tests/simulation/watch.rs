//! Those who follow what happens at some manager, and go on at another when that one is gone: what they are told is complete and in order,
//! over a change of the leader and over a snapshot.
//!
//! What they are told is what the real streams would tell: [`EventTail`] and [`StackTail`].

use std::collections::BTreeMap;

use orch_api::control::{Event as Happening, StackChange, StackView, TaskView};
use orch_core::State;
use orch_scheduler::server::tail::{EventTail, StackTail};

use super::World;
use crate::simulated_disk::Random;

/// The stack that is followed.
const STACK: &str = "web";

/// Everything that has happened, as the log says it.
#[derive(Debug, Default)]
pub(crate) struct Happened {
    /// Index → its events.
    all: BTreeMap<u64, Vec<Happening>>,
    /// The last index that was looked at.
    last: u64,
    /// From where on the log was forgotten, each time it was.
    forgotten: Vec<u64>,
}

impl Happened {
    /// An entry was applied.
    pub(crate) fn applied(&mut self, state: &State) {
        if state.index <= self.last {
            return;
        }
        // Entries that are none of ours, such as a new leader's first, have no events.
        let events = EventTail::after(self.last).next(state, None);
        self.last = state.index;
        if !events.is_empty() {
            self.all.insert(state.index, events);
        }
    }

    /// What came after this index has never been.
    pub(crate) fn forget(&mut self, last: u64) {
        self.all.split_off(&(last + 1));
        self.last = self.last.min(last);
        self.forgotten.push(last);
    }
}

/// Somebody who follows.
#[derive(Debug)]
pub(super) struct Watcher {
    /// The manager and its life.
    at: Option<(usize, u64)>,
    events: EventTail,
    /// Index of the last event that it was told.
    last: u64,
    /// Index up to which it was told everything.
    seen: u64,
    /// How much of the log had been forgotten when it looked last.
    forgotten: usize,
    stack: StackTail,
    copy: Option<StackView>,
}

/// All of them, with chance of their own: whether there are any changes nothing for the others.
pub(super) struct Watchers {
    random: Random,
    all: Vec<Watcher>,
}

impl Watchers {
    pub(super) fn new(seed: u64) -> Self {
        let watcher = || Watcher {
            at: None,
            events: EventTail::after(0),
            last: 0,
            seen: 0,
            forgotten: 0,
            stack: StackTail::default(),
            copy: None,
        };
        Self { random: Random(seed ^ 0x0057_a7c4), all: (0..2).map(|_| watcher()).collect() }
    }
}

impl Watcher {
    /// A new connection: it asks for what follows the last event that it was told, and for the whole stack.
    fn connect(&mut self, place: usize, life: u64) {
        self.at = Some((place, life));
        self.events = EventTail::after(self.last);
        self.begin_stack();
    }

    fn begin_stack(&mut self) {
        (self.stack, self.copy) = (StackTail::default(), None);
    }

    /// Reads what the stream has for it; gives how many events that were.
    fn read(&mut self, state: &State, happened: &Happened) -> usize {
        for last in &happened.forgotten[self.forgotten..] {
            self.seen = self.seen.min(*last);
            self.last = self.last.min(*last);
        }
        if happened.forgotten.len() > self.forgotten {
            self.forgotten = happened.forgotten.len();
            self.events = EventTail::after(self.last);
        }
        let told = self.events.next(state, None);
        let from = self.seen + 1;
        let due = if state.index < from { BTreeMap::new() } else { happened.all.range(from..=state.index).collect() };
        let due: Vec<&Happening> = due.into_values().flatten().collect();
        assert!(
            told.iter().eq(due.iter().copied()),
            "a watcher who knew all up to {} is told {told:#?} at {}, and not {due:#?}",
            self.seen,
            state.index
        );
        self.seen = self.seen.max(state.index);
        self.last = told.last().map_or(self.last, |event| event.index);
        self.follow_stack(state);
        told.len()
    }

    /// A copy that is kept by the changes alone is the stack as it is.
    fn follow_stack(&mut self, state: &State) {
        let (changes, over) = self.stack.next(state, STACK);
        for change in changes {
            take(&mut self.copy, change);
        }
        if over {
            assert_eq!(self.copy, None, "the end of a stack takes all of it along");
            return self.begin_stack();
        }
        let (whole, _) = StackTail::default().next(state, STACK);
        let Some(StackChange::Stack { stack }) = whole.into_iter().next() else {
            panic!("a stack is told whole first")
        };
        let copy = self.copy.as_ref().expect("what is not over was told");
        assert_eq!(content(copy), content(&stack), "a copy of the stack at {}", state.index);
    }
}

/// What there is to compare: what follows from tasks (how many run) is for the reader to see.
fn content(view: &StackView) -> StackView {
    let mut view = StackView { index: 0, status: String::new(), ..view.clone() };
    for service in &mut view.services {
        (service.running, service.ready) = (0, 0);
    }
    view.tasks.sort_by(|a, b| a.id.cmp(&b.id));
    view.networks.sort_by(|a, b| a.name.cmp(&b.name));
    view.volumes.sort_by(|a, b| a.name.cmp(&b.name));
    view
}

/// Changes a copy as a line says it.
fn take(copy: &mut Option<StackView>, change: StackChange) {
    let Some(stack) = copy else {
        match change {
            StackChange::Stack { stack } => *copy = Some(*stack),
            StackChange::Removed { .. } => {}
            other => panic!("a stream begins with {other:?}"),
        }
        return;
    };
    match change {
        StackChange::Stack { stack: whole } => *stack = *whole,
        StackChange::Task { task, .. } => {
            stack.tasks.retain(|other: &TaskView| other.id != task.id);
            stack.tasks.push(*task);
        }
        StackChange::TaskRemoved { id, .. } => stack.tasks.retain(|task| task.id != id),
        StackChange::Network { network, .. } => {
            stack.networks.retain(|other| other.name != network.name);
            stack.networks.push(network);
        }
        StackChange::NetworkRemoved { name, .. } => stack.networks.retain(|network| network.name != name),
        StackChange::Volume { volume, .. } => {
            stack.volumes.retain(|other| other.name != volume.name);
            stack.volumes.push(volume);
        }
        StackChange::VolumeRemoved { name, .. } => stack.volumes.retain(|volume| volume.name != name),
        StackChange::Removed { .. } => *copy = None,
    }
}

impl World {
    /// A manager's state is another one: those who follow it are told so, unless they are slow, and those who follow nobody may come.
    pub(super) fn watch(&mut self, place: usize, restored: bool) {
        let node = &self.nodes[place];
        let Some(up) = node.up.as_ref().filter(|up| !up.twisted) else { return };
        let here = (place, node.life);
        for watcher in &mut self.watchers.all {
            let chance = self.watchers.random.below(64);
            let stands = watcher
                .at
                .is_some_and(|(place, life)| self.nodes[place].life == life && self.nodes[place].up.is_some());
            if watcher.at != Some(here) && (!stands && chance < 24 || chance == 0) {
                watcher.connect(place, node.life);
                self.summary.attached += 1;
            }
            if watcher.at == Some(here) && (restored || chance < 20) {
                self.summary.skipped += u64::from(restored);
                self.summary.followed += watcher.read(&up.state, &self.oracle.happened) as u64;
            }
        }
    }

    /// Everything is quiet: whoever follows the leader knows all.
    pub(super) fn watch_to_the_end(&mut self, leader: usize) {
        let node = &self.nodes[leader];
        let Some(up) = &node.up else { return };
        for watcher in &mut self.watchers.all {
            watcher.connect(leader, node.life);
            self.summary.followed += watcher.read(&up.state, &self.oracle.happened) as u64;
            assert_eq!(watcher.seen, up.state.index, "whoever follows the leader knows all");
        }
    }
}
