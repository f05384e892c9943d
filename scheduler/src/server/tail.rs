//! What somebody who follows a stack, or what happens, is told next: a function of the state and of what was told before. Nothing is left
//! out and nothing is told twice, whichever manager's state it is and however far that has come meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use orch_api::control::{Event as EventView, StackChange};
use orch_core::{Event, State};
use orch_spec::assignment::{NetworkName, TaskId};

use super::view;

/// What somebody has been told of a stack: names only, since every record of the state says itself when it changed last.
#[derive(Debug, Default)]
pub struct StackTail {
    /// Index of the state that it was told of.
    index: Option<u64>,
    /// Task → its container's name.
    tasks: BTreeMap<TaskId, String>,
    networks: BTreeSet<String>,
    volumes: BTreeSet<String>,
}

impl StackTail {
    /// The lines from what was told to what is; `true` when the stack is gone. Costs a look at each record, and a view only of what changed.
    pub fn next(&mut self, state: &State, name: &str) -> (Vec<StackChange>, bool) {
        let index = state.index;
        let mut lines = Vec::new();
        let Some(stack) = state.stacks.get(name) else {
            let former = std::mem::take(self);
            gone(state, former, &StackTail::default(), &mut lines);
            lines.push(StackChange::Removed { index });
            return (lines, true);
        };
        let (networks, volumes) = view::objects(state, name);
        let now = StackTail {
            index: Some(index),
            tasks: state.stack_tasks(name).map(|task| (task.id.clone(), task.container_name.clone())).collect(),
            networks: networks.iter().map(|network| network.name.0.clone()).collect(),
            volumes: volumes.iter().map(|volume| volume.name.clone()).collect(),
        };
        let former = std::mem::replace(self, now);
        match former.index {
            Some(since) if stack.changed <= since => {
                let tasks = state.stack_tasks(name).filter(|task| task.changed > since);
                lines.extend(tasks.map(|task| StackChange::Task { index, task: Box::new(view::task(state, task)) }));
                let networks = networks.iter().filter(|network| network.changed > since);
                lines.extend(
                    networks.map(|network| StackChange::Network { index, network: view::network(state, network) }),
                );
                let volumes = volumes.iter().filter(|volume| volume.changed > since);
                lines.extend(volumes.map(|volume| StackChange::Volume { index, volume: view::volume(state, volume) }));
            }
            // Its services or files are others: everything anew, which also says what is there no more.
            _ => lines.extend(view::stack(state, name).map(|stack| StackChange::Stack { stack: Box::new(stack) })),
        }
        gone(state, former, self, &mut lines);
        (lines, false)
    }
}

/// What was told and does not belong to the stack any more.
fn gone(state: &State, former: StackTail, now: &StackTail, lines: &mut Vec<StackChange>) {
    let index = state.index;
    for (id, container_name) in former.tasks.into_iter().filter(|(id, _)| !now.tasks.contains_key(id)) {
        lines.push(StackChange::TaskRemoved { index, id: id.to_string(), container_name });
    }
    for name in former.networks.into_iter().filter(|name| !now.networks.contains(name)) {
        let kept = state.networks.contains_key(&NetworkName(name.clone()));
        lines.push(StackChange::NetworkRemoved { index, name, kept });
    }
    for name in former.volumes.into_iter().filter(|name| !now.volumes.contains(name)) {
        let kept = state.volumes.contains_key(&name);
        lines.push(StackChange::VolumeRemoved { index, name, kept });
    }
}

/// How far somebody has been told what happens.
#[derive(Debug)]
pub struct EventTail {
    since: u64,
    /// What is left out is said.
    is_complete: bool,
}

impl EventTail {
    /// Everything after an index, or where that is not known any more a line that says so.
    pub fn after(index: u64) -> Self {
        Self { since: index, is_complete: true }
    }

    /// What is known, and what follows.
    pub fn of_what_is_kept() -> Self {
        Self { since: 0, is_complete: false }
    }

    /// What has happened since the last time, of one stack or all.
    pub fn next(&mut self, state: &State, stack: Option<&str>) -> Vec<EventView> {
        let mut told: Vec<EventView> =
            self.is_complete.then(|| lost(state, self.since)).flatten().into_iter().collect();
        for found in state.events.since(self.since) {
            self.since = found.index;
            if stack.is_none_or(|wanted| wanted == found.stack) {
                told.push(event(found));
            }
        }
        told
    }
}

pub(super) fn event(event: &Event) -> EventView {
    let mut attributes: BTreeMap<String, String> =
        event.attributes.iter().map(|(key, value)| (key.clone().into_owned(), value.clone())).collect();
    if !event.stack.is_empty() {
        attributes.insert("stack".to_owned(), event.stack.clone());
    }
    EventView {
        time: event.time,
        index: event.index,
        kind: event.kind.clone().into_owned(),
        action: event.action.clone().into_owned(),
        id: event.id.clone(),
        name: event.name.clone(),
        attributes,
    }
}

/// What stands for events after `since` that are no longer known: a stream that leaves something out says so.
fn lost(state: &State, since: u64) -> Option<EventView> {
    let oldest = state.events.since(0).next().filter(|_| state.events.has_gap_since(since))?;
    let why = format!("what happened between {since} and {} may be missing: so much has happened since", oldest.index);
    Some(EventView {
        time: oldest.time,
        // Who goes on from here is told the rest.
        index: since,
        kind: "events".to_owned(),
        action: "lost".to_owned(),
        id: String::new(),
        name: String::new(),
        attributes: BTreeMap::from([("why".to_owned(), why)]),
    })
}

#[cfg(test)]
mod tests {
    use orch_core::{Command, Entry, UpdateNode};
    use orch_spec::assignment::{NodeFacts, NodeReport};

    use super::*;

    #[test]
    fn a_stream_that_cannot_tell_all_says_so() {
        let mut state = State::default();
        let apply = |state: &mut State, command| {
            let (index, now_ms) = (state.index + 1, 1_000_000 + state.index);
            let entry = Entry { time_ms: None, now_ms, nonce: 1, request: None, command };
            assert!(state.apply(index, &entry).result.is_ok());
        };
        let facts = NodeFacts { id: "n".into(), ..NodeFacts::default() };
        let report = NodeReport::Facts(facts);
        apply(&mut state, Command::Report { node: "n".into(), turn: orch_core::Turn::default(), report });
        let kept = |state: &State| state.events.since(0).count();
        let relabel = |number: usize| {
            let labels = BTreeMap::from([("x".to_owned(), number.to_string())]);
            Command::UpdateNode(UpdateNode { node: "n".into(), labels, ..UpdateNode::default() })
        };
        let mut before = 0;
        while kept(&state) > before {
            assert!(lost(&state, 1).is_none(), "everything is there");
            before = kept(&state);
            apply(&mut state, relabel(before));
        }
        apply(&mut state, relabel(0));
        let told = lost(&state, 1).expect("the first is gone");
        assert_eq!((told.action.as_str(), told.index), ("lost", 1));
        assert!(told.attributes["why"].starts_with("what happened between 1 and "), "{told:?}");
        assert!(lost(&state, state.index - 1).is_none(), "the last ones are there");
    }
}
