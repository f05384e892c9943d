//! Why a node does not take a task, and the same for all nodes in one sentence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use orch_spec::assignment::{NodeId, TaskId};
use orch_spec::model::{Constraint, ConstraintOperator, ServiceSpec};

use super::{Judge, former};
use crate::error::{Refusal, SpecFault};
use crate::state::{Availability, Node, NodeState, State};

/// What keeps a task from a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// It is not ready.
    State(NodeState),
    /// It takes no tasks.
    Availability(Availability),
    /// It has too little left of something.
    Resource(&'static str),
    /// It is not what a constraint wants.
    Constraint(String),
    /// It is another platform.
    Platform(String),
    /// Its image was made for another platform.
    Image(String),
    /// Somebody else has a port there.
    Port(u16),
    /// It has as many of the service as one node may have.
    MaxReplicas(u32),
    /// The data is elsewhere.
    Volume(String),
    /// It is meant for another node.
    Elsewhere,
}

impl PartialOrd for Availability {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Availability {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Obstacle {
    /// The word for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::State(_) => "state",
            Self::Availability(_) => "availability",
            Self::Resource(_) => "resources",
            Self::Constraint(_) => "constraint",
            Self::Platform(_) | Self::Image(_) => "platform",
            Self::Port(_) => "port",
            Self::MaxReplicas(_) => "max_replicas_per_node",
            Self::Volume(_) => "volume",
            Self::Elsewhere => "other_node",
        }
    }

    /// What it is, of one node.
    pub fn on_one(&self) -> String {
        self.of(1)
    }

    fn of(&self, nodes: usize) -> String {
        let (is, does, has) = if nodes == 1 { ("is", "does", "has") } else { ("are", "do", "have") };
        match self {
            Self::State(state) => format!("{is} {}", state.as_str()),
            Self::Availability(Availability::Drain) => format!("{is} drained"),
            Self::Availability(_) => format!("{does} not take new tasks (pause)"),
            Self::Resource(kind) => format!("{has} too little {kind} left"),
            Self::Constraint(constraint) => format!("{does} not meet `{constraint}`"),
            Self::Platform(platform) => format!("{does} not run {platform}"),
            Self::Image(platform) => format!("{does} not run {platform}, which the image was made for"),
            Self::Port(port) => format!("{has} port {port} taken"),
            Self::MaxReplicas(most) => format!("{has} {most} of it already (max_replicas_per_node)"),
            Self::Volume(volume) => format!("{does} not have volume {volume}"),
            Self::Elsewhere => format!("{has} a task of its own, or none"),
        }
    }
}

/// What keeps a task from each node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Every node with what is in the way; nothing = the task fits there.
    pub nodes: Vec<(NodeId, Option<Obstacle>)>,
}

impl Explanation {
    /// Explains where a task could go; `None` when there is no such task.
    pub fn of(state: &State, task: &TaskId) -> Option<Self> {
        let task = state.tasks.get(task)?;
        Some(Self::by(&Judge::new(state, task), Some(task)))
    }

    pub(crate) fn by(judge: &Judge<'_>, task: Option<&crate::state::Task>) -> Self {
        let state = judge.state;
        let former = task.and_then(|task| former(state, task));
        let of = |(id, node): (&NodeId, &Node)| (id.clone(), judge.obstacle(id, node, former));
        Self { nodes: state.nodes.iter().map(of).collect() }
    }

    /// Each reason with the number of nodes it keeps the task from. Together with the nodes where the task fits they are all nodes.
    pub fn counts(&self) -> BTreeMap<Obstacle, usize> {
        let mut counts = BTreeMap::new();
        for obstacle in self.nodes.iter().filter_map(|(_, obstacle)| obstacle.clone()) {
            *counts.entry(obstacle).or_default() += 1;
        }
        counts
    }

    /// Nodes where the task fits.
    pub fn fitting(&self) -> usize {
        self.nodes.iter().filter(|(_, obstacle)| obstacle.is_none()).count()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes.is_empty() {
            return f.write_str("there is no node");
        }
        let mut counts: Vec<(Obstacle, usize)> = self.counts().into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let parts: Vec<String> = counts
            .iter()
            .map(|(obstacle, count)| {
                format!("{count} node{} {}", if *count == 1 { "" } else { "s" }, obstacle.of(*count))
            })
            .collect();
        match self.fitting() {
            0 => write!(f, "no suitable node: {}", parts.join("; ")),
            fitting if parts.is_empty() => write!(f, "it fits on {fitting} nodes"),
            fitting => write!(f, "it fits on {fitting} nodes; {}", parts.join("; ")),
        }
    }
}

/// Properties that constraints and preferences may name, beside labels.
const PROPERTIES: [&str; 6] =
    ["node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch"];
/// Beginnings of labels' names: those that people give, and those that a node gives itself.
const LABELS: [&str; 2] = ["node.labels.", "engine.labels."];

/// A property of a node by the name that constraints use; `None` when it has none of that name.
pub(super) fn property(key: &str, id: &NodeId, node: &Node) -> Option<String> {
    if let Some(label) = key.strip_prefix(LABELS[0]) {
        return node.labels.get(label).cloned();
    }
    if let Some(label) = key.strip_prefix(LABELS[1]) {
        return node.facts.labels.get(label).cloned();
    }
    let mut platform = node.facts.platform.split('/');
    match key {
        "node.id" => Some(id.0.clone()),
        "node.hostname" => Some(node.facts.hostname.clone()),
        "node.ip" => node.facts.address.map(|address| address.to_string()),
        "node.role" => Some(node.role.as_str().to_owned()),
        "node.platform.os" => platform.next().map(str::to_owned),
        "node.platform.arch" => platform.nth(1).map(|arch| architecture(arch).to_owned()),
        _ => None,
    }
}

/// One name for each architecture: uname's and the images' differ.
fn architecture(name: &str) -> &str {
    match name {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether a node is what a constraint wants. Values are compared without regard to case, and a label that is not there is empty, as
/// Swarm has it.
pub(super) fn holds(constraint: &Constraint, id: &NodeId, node: &Node) -> bool {
    let property = property(&constraint.key, id, node);
    let found = property.as_deref().unwrap_or_default();
    let is = |wanted: &String| match (&node.facts.address, wanted.parse::<ipnet::IpNet>()) {
        (Some(address), Ok(net)) if constraint.key == "node.ip" => net.contains(address),
        _ if constraint.key == "node.platform.arch" => found == architecture(wanted),
        _ => found.eq_ignore_ascii_case(wanted),
    };
    match constraint.operator {
        ConstraintOperator::Equal | ConstraintOperator::In => constraint.values.iter().any(is),
        ConstraintOperator::NotEqual | ConstraintOperator::NotIn => !constraint.values.iter().any(is),
        ConstraintOperator::Exists => property.is_some(),
        ConstraintOperator::Missing => property.is_none(),
    }
}

/// Whether a node runs what an image's platform wants; a node that has not said what it is runs everything.
pub(super) fn runs_on(wanted: &str, node: &Node) -> bool {
    if node.facts.platform.is_empty() {
        return true;
    }
    let mut wanted = wanted.split('/');
    let mut has = node.facts.platform.split('/');
    let os = wanted.next() == has.next();
    let arch = |name: Option<&str>| name.map(|name| architecture(name).to_owned());
    os && wanted.next().is_none_or(|wanted| arch(Some(wanted)) == arch(has.next()))
}

/// What somebody meant who wrote this instead of a property: "did you mean `node.hostname`?".
pub(crate) fn meant(key: &str) -> Option<String> {
    let label = key.splitn(3, '.').nth(2).unwrap_or_default();
    let labels: Vec<String> = LABELS.iter().map(|prefix| format!("{prefix}{label}")).collect();
    let labels = labels.iter().map(String::as_str).filter(|_| !label.is_empty());
    orch_spec::suggest(key, PROPERTIES.iter().copied().chain(labels))
}

/// Images whose platform is remembered; beyond that, those that no task has are forgotten.
const PLATFORMS: usize = 1024;

impl State {
    /// Takes in what images were made for.
    pub(crate) fn note_platforms(&mut self, platforms: &BTreeMap<String, String>) {
        if self.platforms.len() + platforms.len() > PLATFORMS {
            let used: BTreeSet<&String> = self.tasks.values().map(|task| &task.image_id).collect();
            self.platforms.retain(|image, _| used.contains(image));
        }
        self.platforms.extend(platforms.iter().map(|(image, platform)| (image.clone(), platform.clone())));
    }

    /// Of these images with their platforms, those to be noted: a host that is alone runs what it has.
    pub fn unnoted_platforms(&self, images: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
        let is_new = |(image, platform): &(String, String)| {
            self.is_cluster() && !platform.is_empty() && self.platforms.get(image) != Some(platform)
        };
        images.filter(is_new).collect()
    }
}

/// Refuses constraints and preferences on what no node can have: a slip of the keyboard would keep the service waiting for ever.
pub(crate) fn check_constraints(service: &str, spec: &ServiceSpec) -> Result<(), Refusal> {
    let placement = &spec.deploy.placement;
    let known = |key: &str| {
        let label = LABELS.iter().any(|prefix| key.strip_prefix(prefix).is_some_and(|label| !label.is_empty()));
        label || PROPERTIES.contains(&key)
    };
    let keys = placement.constraints.iter().map(|constraint| constraint.key.as_str());
    match keys.chain(placement.spread.iter().map(String::as_str)).find(|key| !known(key)) {
        None => Ok(()),
        Some(key) => {
            let (service, key) = (service.to_owned(), key.to_owned());
            Err(SpecFault::Property { service, key }.into())
        }
    }
}
