//! Plans: what a command will do, as a value.
//!
//! Planning reads the state and decides everything: which containers, which addresses, in which order. The result has two faces. The
//! [`Plan`] is the graph of operations for people. The draft's records are what executing copies into the state. Both come from the
//! same run of the same function, so the first cannot lie about the second.

mod act;
mod allocate;
mod attach;
mod diff;
mod down;
mod draft;
mod everywhere;
mod misplaced;
mod objects;
mod publish;
mod replicas;
mod revision;
mod roll;
mod run;
mod scale;
mod task;
mod up;

use std::collections::BTreeSet;

use orch_spec::assignment::TaskId;
use orch_spec::model::StackSpec;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

pub use diff::explain_changes;
pub(crate) use draft::Records;
pub(crate) use publish::entitled;
pub(crate) use replicas::{ends_by_itself, namespace_services};
pub(crate) use roll::{Move, plan_moves, plan_slots, replaces_beside};

use crate::command::{Act, Answer, ApplyStack, Down, RunOneOff, Scale};
use crate::error::Refusal;
use crate::state::State;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Make it; a container is started too, unless the cause says otherwise.
    Create,
    /// Make it anew in place of the former one.
    Recreate,
    /// Start what exists.
    Start,
    /// Stop.
    Stop,
    /// Stop and start.
    Restart,
    /// Freeze.
    Pause,
    /// Thaw.
    Unpause,
    /// End at once.
    Kill,
    /// Remove.
    Remove,
}

impl Verb {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Recreate => "recreate",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Kill => "kill",
            Self::Remove => "remove",
        }
    }
}

/// What an operation is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceKind {
    /// A network.
    Network,
    /// A named volume.
    Volume,
    /// A task's container.
    Container,
}

impl ResourceKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Volume => "volume",
            Self::Container => "container",
        }
    }
}

/// One act on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What is done.
    pub verb: Verb,
    /// To what.
    pub kind: ResourceKind,
    /// Its name.
    pub name: String,
    /// Why; empty when the verb says it all.
    pub cause: String,
    /// The service, for containers.
    pub service: String,
    /// The task, for containers: the one that is there afterwards, if any.
    pub task: Option<TaskId>,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.verb.as_str(), self.kind.as_str(), self.name)?;
        if self.cause.is_empty() { Ok(()) } else { write!(f, ": {}", self.cause) }
    }
}

/// An operation's place in its plan.
pub type OperationId = NodeIndex<u32>;

/// A graph of operations; an edge goes from what comes first to what waits for it.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    graph: DiGraph<Operation, ()>,
}

impl Plan {
    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.graph.node_count()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn add(&mut self, operation: Operation) -> OperationId {
        self.graph.add_node(operation)
    }

    /// `second` waits for `first`.
    pub(crate) fn order(&mut self, first: OperationId, second: OperationId) {
        if first != second {
            self.graph.update_edge(first, second, ());
        }
    }

    /// Lets go of the order among operations that wait for each other in a circle. No file has one, but tasks that were made from
    /// several versions of a file may; the gate lets those go without order, too.
    pub(crate) fn break_circles(&mut self) {
        let mut circle_of = vec![usize::MAX; self.len()];
        for (number, circle) in petgraph::algo::tarjan_scc(&self.graph).into_iter().enumerate() {
            circle.into_iter().for_each(|node| circle_of[node.index()] = number);
        }
        self.graph.retain_edges(|graph, edge| {
            graph.edge_endpoints(edge).is_none_or(|(from, to)| circle_of[from.index()] != circle_of[to.index()])
        });
    }

    /// The operations, each after all that it waits for and otherwise in the order in which they were planned, numbered from 1, with
    /// the numbers of those that they wait for.
    pub fn operations(&self) -> Vec<(u32, &Operation, Vec<u32>)> {
        let mut missing: Vec<usize> = self
            .graph
            .node_indices()
            .map(|node| self.graph.edges_directed(node, Direction::Incoming).count())
            .collect();
        let mut ready: BTreeSet<OperationId> =
            self.graph.node_indices().filter(|node| missing[node.index()] == 0).collect();
        let mut numbers = vec![0_u32; self.len()];
        let mut listed = Vec::with_capacity(self.len());
        while let Some(node) = ready.pop_first() {
            let number = u32::try_from(listed.len() + 1).unwrap_or(u32::MAX);
            numbers[node.index()] = number;
            let mut waits: Vec<u32> = self
                .graph
                .edges_directed(node, Direction::Incoming)
                .map(|edge| numbers[edge.source().index()])
                .collect();
            waits.sort_unstable();
            listed.push((number, &self.graph[node], waits));
            for edge in self.graph.edges_directed(node, Direction::Outgoing) {
                let next = edge.target();
                missing[next.index()] -= 1;
                if missing[next.index()] == 0 {
                    ready.insert(next);
                }
            }
        }
        debug_assert_eq!(listed.len(), self.len(), "a plan has no circle");
        listed
    }
}

impl std::fmt::Display for Plan {
    /// One line an operation.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, operation, waits) in self.operations() {
            write!(f, "{number} {operation}")?;
            if !waits.is_empty() {
                let waits: Vec<String> = waits.iter().map(u32::to_string).collect();
                write!(f, " (after {})", waits.join(" "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// When and with which seed a plan is made; the log entry's own when it is applied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// Milliseconds since the epoch.
    pub now_ms: u64,
    /// Seed of new ids.
    pub nonce: u64,
}

/// A finished draft: what to tell the user, and what to put into the state.
pub(crate) struct Planned {
    pub(crate) answer: Answer,
    pub(crate) records: Records,
}

/// The services that `up` of these (none = all) is about: themselves and, unless `no_deps`, what they depend on.
///
/// # Errors
/// A service that the stack does not have.
pub fn selected_services(
    state: &State,
    spec: &StackSpec,
    services: &[String],
    no_deps: bool,
) -> Result<BTreeSet<String>, Refusal> {
    let mut draft = draft::Draft::new(state, &spec.name, Moment::default());
    up::select(&mut draft, spec, services, no_deps).map(|selection| selection.all)
}

/// What `up` would do.
///
/// # Errors
/// Why it cannot be done.
pub fn up(state: &State, request: &ApplyStack, moment: Moment) -> Result<Answer, Refusal> {
    up::plan(state, request, moment).map(|planned| planned.answer)
}

/// What `down` would do.
///
/// # Errors
/// Why it cannot be done.
pub fn down(state: &State, request: &Down, moment: Moment) -> Result<Answer, Refusal> {
    down::plan(state, request, moment).map(|planned| planned.answer)
}

/// What starting, stopping … would do.
///
/// # Errors
/// Why it cannot be done.
pub fn act(state: &State, request: &Act, moment: Moment) -> Result<Answer, Refusal> {
    act::plan(state, request, moment).map(|planned| planned.answer)
}

/// What scaling would do.
///
/// # Errors
/// Why it cannot be done.
pub fn scale(state: &State, request: &Scale, moment: Moment) -> Result<Answer, Refusal> {
    scale::plan(state, request, moment).map(|planned| planned.answer)
}

/// What running a one-off would do.
///
/// # Errors
/// Why it cannot be done.
pub fn run(state: &State, request: &RunOneOff, moment: Moment) -> Result<Answer, Refusal> {
    run::plan(state, request, moment).map(|planned| planned.answer)
}

pub(crate) use act::plan as plan_act;
pub(crate) use act::plan_desired;
pub(crate) use attach::{plan_attach, plan_detach};
pub(crate) use down::plan as plan_down;
pub(crate) use objects::{is_name, plan_network, plan_reservation, plan_volume};
pub(crate) use run::plan as plan_run;
pub(crate) use scale::plan as plan_scale;
pub(crate) use up::plan as plan_up;
pub(crate) use up::{plan_files, plan_service};
