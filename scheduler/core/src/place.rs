//! Which node a task goes to.
//!
//! Tasks of one service that wait for a node are placed together: every node is judged once for all of them, and then the tasks are dealt
//! out, to the emptiest branch of what they shall be spread over, there to the node with the fewest of the service, there to the one with
//! the fewest tasks; a hash of the entry's number decides between equals. A node is never given more than it has: what is placed counts
//! until it is gone from the node.

mod obstacle;
mod spread;

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{NodeId, PortAssignment, TaskId};
use orch_spec::model::ServiceSpec;

pub use obstacle::{Explanation, Obstacle};
pub(crate) use obstacle::{check_constraints, meant};
use spread::Candidate;

use crate::state::{Availability, Node, NodeState, Revision, State, Task, Usage};

/// What a task of a specification is promised.
pub(crate) fn demand(spec: &ServiceSpec) -> Usage {
    let resources = spec.resources();
    let unsigned = |amount: i64| u64::try_from(amount).unwrap_or(0);
    Usage {
        cpus: resources.reserved_cpus.map_or(0, |cpus| cpus.0),
        memory: resources.reserved_memory.map_or(0, |memory| unsigned(memory.0)),
        pids: resources.pids.map_or(0, unsigned),
        generic: resources.generic.iter().map(|(kind, count)| (kind.clone(), unsigned(*count))).collect(),
    }
}

/// Volumes of a specification that are where their data is, and so hold its tasks there: full names.
pub(crate) fn pinning<'s>(state: &'s State, revision: &'s Revision) -> impl Iterator<Item = &'s String> {
    let moves = revision.spec.deploy.mode.is_global();
    revision.volumes.values().filter(move |name| {
        !moves
            && state
                .volumes
                .get(*name)
                .is_some_and(|volume| volume.driver == "local" && !is_remote(&volume.driver_opts))
    })
}

impl State {
    /// Volumes that hold a task on its node: they are there and nowhere else.
    pub fn held_by(&self, task: &Task) -> Vec<String> {
        let volumes = pinning(self, self.revision(task.revision));
        let is_there = |name: &&String| self.volumes.get(*name).is_some_and(|volume| volume.pinned == task.node);
        volumes.filter(is_there).cloned().collect()
    }
}

/// Whether the local driver mounts something that is the same from every node.
fn is_remote(options: &BTreeMap<String, String>) -> bool {
    matches!(options.get("type").map(String::as_str), Some("nfs" | "nfs4" | "cifs" | "ceph" | "glusterfs" | "9p"))
}

/// A judge of nodes for the tasks of one service and specification.
pub(crate) struct Judge<'s> {
    state: &'s State,
    revision: &'s Revision,
    demand: Usage,
    ports: Vec<PortAssignment>,
    /// The only node that it may go to.
    bound: Option<&'s NodeId>,
    /// The platform of its image, when that is known.
    made_for: Option<&'s String>,
    /// Where its volumes hold it, and the first of these.
    pins: BTreeSet<&'s NodeId>,
    pinned_by: Option<&'s String>,
    /// Tasks of the service by node, with those that have been dealt out in this pass.
    present: BTreeMap<&'s NodeId, u32>,
    /// What has been dealt out in this pass.
    added: BTreeMap<&'s NodeId, Usage>,
}

impl<'s> Judge<'s> {
    pub(crate) fn new(state: &'s State, task: &'s Task) -> Self {
        Self::with(state, task, state.revision(task.revision))
    }

    /// The same by another specification than the task's own in the state.
    pub(crate) fn with(state: &'s State, task: &'s Task, revision: &'s Revision) -> Self {
        let mut present: BTreeMap<&NodeId, u32> = BTreeMap::new();
        let replicas = state.service_tasks(&task.stack, &task.service).filter(|other| other.is_replica());
        for node in replicas.filter_map(|other| other.node.as_ref()) {
            *present.entry(node).or_default() += 1;
        }
        let pinned =
            pinning(state, revision).filter_map(|name| Some((name, state.volumes.get(name)?.pinned.as_ref()?)));
        let pinned: Vec<(&String, &NodeId)> = pinned.collect();
        Self {
            state,
            revision,
            demand: demand(&revision.spec),
            made_for: state.platforms.get(&task.image_id),
            bound: task.bound.as_ref(),
            ports: task.ports().iter().filter(|port| port.host_ports != (0, 0)).cloned().collect(),
            pinned_by: pinned.first().map(|(name, _)| *name),
            pins: pinned.into_iter().map(|(_, node)| node).collect(),
            present,
            added: BTreeMap::new(),
        }
    }

    /// What keeps a task from a node; `None` when nothing does. `former` is the task whose place it takes. What people can do least about
    /// comes first.
    pub(crate) fn obstacle(&self, id: &NodeId, node: &Node, former: Option<&Task>) -> Option<Obstacle> {
        if self.bound.is_none_or(|bound| bound == id) && node.state != NodeState::Ready {
            return Some(Obstacle::State(node.state));
        }
        self.unfit(id, node, former)
    }

    /// The same of a node as if it answered.
    pub(crate) fn unfit(&self, id: &NodeId, node: &Node, former: Option<&Task>) -> Option<Obstacle> {
        let former = former.filter(|former| former.node.as_ref() == Some(id));
        if self.bound.is_some_and(|bound| bound != id) {
            return Some(Obstacle::Elsewhere);
        }
        if node.availability != Availability::Active {
            return Some(Obstacle::Availability(node.availability));
        }
        // On a host that is alone the file's wishes for placement mean nothing, as with Compose.
        if !self.state.is_cluster() {
            return None;
        }
        if let Some(kind) = self.lacking(id, node, former) {
            return Some(Obstacle::Resource(kind));
        }
        let placement = &self.revision.spec.deploy.placement;
        if let Some(missed) = placement.constraints.iter().find(|constraint| !obstacle::holds(constraint, id, node)) {
            return Some(Obstacle::Constraint(missed.to_string()));
        }
        if let Some(wanted) = self.revision.spec.platform.as_deref().filter(|wanted| !obstacle::runs_on(wanted, node)) {
            return Some(Obstacle::Platform(wanted.to_owned()));
        }
        if let Some(made_for) = self.made_for.filter(|made_for| !obstacle::runs_on(made_for, node)) {
            return Some(Obstacle::Image(made_for.clone()));
        }
        if let Some(port) = self.ports.first().filter(|_| self.added.contains_key(id)) {
            // One of this pass is going there: which port it gets is seen when it is there.
            return Some(Obstacle::Port(port.host_ports.0));
        }
        if let Some(port) = self.taken_port(node, former) {
            return Some(Obstacle::Port(port));
        }
        let most = placement.max_replicas_per_node;
        if most > 0 && self.present.get(id).copied().unwrap_or(0) >= most {
            return Some(Obstacle::MaxReplicas(most));
        }
        if let Some(volume) = self.pinned_by.filter(|_| self.pins.len() > 1 || !self.pins.contains(id)) {
            return Some(Obstacle::Volume(volume.clone()));
        }
        None
    }

    /// What the node's tasks may take, without what the former will leave to its successor.
    fn used(&self, id: &NodeId, node: &Node, former: Option<&Task>) -> Usage {
        let mut used = node.usage.clone();
        if let Some(former) = former {
            used.subtract(&demand(&self.state.revision(former.revision).spec).least(&self.demand));
        }
        if let Some(added) = self.added.get(id) {
            used.add(added);
        }
        used
    }

    /// The resource of which the node has too little left.
    fn lacking(&self, id: &NodeId, node: &Node, former: Option<&Task>) -> Option<&'static str> {
        let (used, capacity) = (self.used(id, node, former), node.capacity());
        let short = |wanted: u64, used: u64, has: u64| wanted > 0 && has > 0 && used.saturating_add(wanted) > has;
        if short(self.demand.cpus, used.cpus, capacity.cpus) {
            return Some("processor time");
        }
        if short(self.demand.memory, used.memory, capacity.memory) {
            return Some("memory");
        }
        if short(self.demand.pids, used.pids, capacity.pids) {
            return Some("processes");
        }
        let of = |amounts: &Usage, kind: &String| amounts.generic.get(kind).copied().unwrap_or(0);
        let missing = |(kind, wanted): (&String, &u64)| of(&used, kind).saturating_add(*wanted) > of(&capacity, kind);
        self.demand.generic.iter().any(missing).then_some("generic resources")
    }

    /// How many tasks fit on a node that nothing keeps them from, at most `wanted`.
    fn room(&self, id: &NodeId, node: &Node, wanted: usize) -> usize {
        if !self.state.is_cluster() {
            return wanted;
        }
        let (used, capacity) = (self.used(id, node, None), node.capacity());
        let mut room = wanted;
        let mut bound = |wanted: u64, used: u64, has: u64| {
            if wanted > 0 && has > 0 {
                room = room.min(usize::try_from(has.saturating_sub(used) / wanted).unwrap_or(usize::MAX));
            }
        };
        bound(self.demand.cpus, used.cpus, capacity.cpus);
        bound(self.demand.memory, used.memory, capacity.memory);
        bound(self.demand.pids, used.pids, capacity.pids);
        let of = |amounts: &Usage, kind: &String| amounts.generic.get(kind).copied().unwrap_or(0);
        for (kind, wanted) in self.demand.generic.iter().filter(|(_, wanted)| **wanted > 0) {
            let left = of(&capacity, kind).saturating_sub(of(&used, kind)) / wanted;
            room = room.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        let most = self.revision.spec.deploy.placement.max_replicas_per_node;
        if most > 0 {
            let present = self.present.get(id).copied().unwrap_or(0);
            room = room.min(most.saturating_sub(present) as usize);
        }
        if self.ports.is_empty() { room } else { room.min(1) }
    }

    /// A port that somebody else publishes on the node.
    fn taken_port(&self, node: &Node, former: Option<&Task>) -> Option<u16> {
        if self.ports.is_empty() {
            return None;
        }
        let others = node.tasks.iter().filter(|id| former.is_none_or(|former| former.id != **id));
        let others = others.filter_map(|id| self.state.tasks.get(id)).flat_map(Task::ports);
        let mut claims: Vec<(bool, &PortAssignment)> =
            others.filter(|port| port.host_ports != (0, 0)).map(|port| (false, port)).collect();
        claims.extend(self.ports.iter().map(|port| (true, port)));
        // Whose range ends first chooses first: when that fails, nothing else works.
        claims.sort_by_key(|(own, port)| (port.host_ports.1, port.host_ports.0, *own));
        let mut taken: BTreeSet<(&str, u16)> = BTreeSet::new();
        for (_, port) in claims {
            let free = (port.host_ports.0..=port.host_ports.1).find(|number| taken.insert((&port.protocol, *number)));
            if free.is_none() {
                return Some(port.host_ports.0);
            }
        }
        None
    }

    /// Takes in that one task more is going to a node, in the place of its former if that is there.
    fn deal(&mut self, id: &'s NodeId, former: Option<&Task>) {
        *self.present.entry(id).or_default() += 1;
        let mut own = self.demand.clone();
        if let Some(former) = former.filter(|former| former.node.as_ref() == Some(id)) {
            own.subtract(&demand(&self.state.revision(former.revision).spec).least(&self.demand));
        }
        self.added.entry(id).or_default().add(&own);
    }
}

/// The task whose place and resources a task takes over on its node: it starts only when that one is gone.
pub(crate) fn former<'s>(state: &'s State, task: &Task) -> Option<&'s Task> {
    task.takes_over.as_ref().and_then(|id| state.tasks.get(id))
}

/// What tasks that are placed together have in common: that they are no guests (or the number of the one that is), stack, service,
/// specification, and the node that they are bound to.
type GroupKey<'s> = (u64, &'s str, &'s str, u64, Option<&'s NodeId>);

/// Whether a node is what a specification wants nodes to be.
pub(crate) fn meets(spec: &ServiceSpec, id: &NodeId, node: &Node) -> bool {
    let platform = spec.platform.as_deref();
    spec.deploy.placement.constraints.iter().all(|constraint| obstacle::holds(constraint, id, node))
        && platform.is_none_or(|wanted| obstacle::runs_on(wanted, node))
}

/// The first wish of a specification that a node does not meet.
pub(crate) fn missed(spec: &ServiceSpec, id: &NodeId, node: &Node) -> Option<Obstacle> {
    let constraint = spec.deploy.placement.constraints.iter().find(|constraint| !obstacle::holds(constraint, id, node));
    let platform = || spec.platform.as_deref().filter(|wanted| !obstacle::runs_on(wanted, node));
    let constraint = constraint.map(|constraint| Obstacle::Constraint(constraint.to_string()));
    constraint.or_else(|| platform().map(|wanted| Obstacle::Platform(wanted.to_owned())))
}

/// The nodes that a service with a task on every node means.
pub(crate) fn hosts<'s>(state: &'s State, spec: &ServiceSpec) -> Vec<&'s NodeId> {
    let fits = |(id, node): &(&NodeId, &Node)| node.takes_tasks() && meets(spec, id, node);
    state.nodes.iter().filter(fits).map(|(id, _)| id).collect()
}

/// Tasks that wait for a node, by service and specification, and by the task whose namespace they join; those of a group by age.
fn groups(state: &State) -> Vec<Vec<TaskId>> {
    let mut groups: BTreeMap<GroupKey<'_>, Vec<(u64, TaskId)>> = BTreeMap::new();
    for task in state.unplaced.iter().filter_map(|id| state.tasks.get(id)).filter(|task| !task.is_retiring()) {
        // A guest comes after those whose namespaces it joins: these were made before it.
        let guest = if task.namespace_parents().next().is_some() { task.sequence } else { 0 };
        let key = (guest, task.stack.as_str(), task.service.as_str(), task.revision.0, task.bound.as_ref());
        groups.entry(key).or_default().push((task.sequence, task.id.clone()));
    }
    let by_age = |mut group: Vec<(u64, TaskId)>| {
        group.sort_unstable();
        group.into_iter().map(|(_, id)| id).collect()
    };
    groups.into_values().map(by_age).collect()
}

/// Gives a node to every task that waits for one and that some node can take; says which got one, and which are told another reason, each
/// with others of its service.
pub(crate) fn place(state: &mut State, nonce: u64) -> Vec<Vec<TaskId>> {
    let mut all = Vec::new();
    for mut tasks in groups(state) {
        let mut touched = Vec::new();
        // Of some kinds (those with ports) a node gets one in a round, and must be looked at again.
        loop {
            let chosen = decide(state, &tasks, nonce);
            if chosen.is_empty() {
                break;
            }
            state.assign(&chosen);
            tasks.retain(|id| !chosen.contains_key(id));
            touched.extend(chosen.into_keys());
        }
        let reason = tasks.first().map(|id| why_not(state, id)).unwrap_or_default();
        let index = state.index;
        for id in tasks {
            if let Some(task) = state.tasks.get_mut(&id).filter(|task| task.unplaced != reason) {
                task.unplaced.clone_from(&reason);
                task.changed = index;
                touched.push(id);
            }
        }
        all.push(touched);
    }
    all
}

/// Why a task has no node. On a host that is alone there is nothing to explain: there is no node, or it takes nothing.
fn why_not(state: &State, id: &TaskId) -> String {
    let Some(task) = state.tasks.get(id).filter(|_| state.is_cluster()) else { return String::new() };
    let Some(parent) = task.namespace_parents().find_map(|parent| state.tasks.get(parent)) else {
        return Explanation::of(state, id).map_or_else(String::new, |explanation| explanation.to_string());
    };
    let name = &parent.container_name;
    match parent.node.as_ref().and_then(|home| state.nodes.get_key_value(home)) {
        None => format!("{name}, whose namespace it shares, has no node yet"),
        Some((home, node)) => {
            let obstacle = Judge::new(state, task).obstacle(home, node, former(state, task));
            let why = obstacle.map_or_else(|| "its namespaces are on several nodes".to_owned(), |one| one.on_one());
            format!("it must run beside {name} on {}, which {why}", node.facts.hostname)
        }
    }
}

/// Nodes for the tasks of one group, as far as they go.
fn decide(state: &State, tasks: &[TaskId], nonce: u64) -> BTreeMap<TaskId, NodeId> {
    let mut chosen = BTreeMap::new();
    let records: Vec<&Task> = tasks.iter().filter_map(|id| state.tasks.get(id)).collect();
    let Some(first) = records.first().copied() else { return chosen };
    let mut judge = Judge::new(state, first);
    if first.namespace_parents().next().is_some() {
        return beside_parent(state, first, &judge);
    }
    // Where a former task was is where its image and its anonymous volumes are.
    let mut rest = Vec::new();
    for task in records {
        let former = former(state, task);
        let place = former.and_then(|former| former.node.as_ref()).and_then(|id| state.nodes.get_key_value(id));
        match place.filter(|(id, node)| judge.obstacle(id, node, former).is_none()) {
            Some((id, _)) => {
                judge.deal(id, former);
                chosen.insert(task.id.clone(), id.clone());
            }
            None => rest.push(task),
        }
    }
    let spread = &judge.revision.spec.deploy.placement.spread;
    let fitting = state.nodes.iter().filter(|(id, node)| judge.obstacle(id, node, None).is_none());
    let candidates = fitting.map(|(id, node)| Candidate {
        id,
        room: judge.room(id, node, rest.len()),
        present: judge.present.get(id).copied().unwrap_or(0) as usize,
        tasks: node.tasks.len(),
        tie: mix(nonce ^ u64::from(node.number)),
        domains: spread::domains(spread, id, node),
    });
    // Where its tasks keep failing it goes only when nobody else takes it.
    let (avoided, others) = candidates.partition(|candidate| state.is_avoided(candidate.id, first));
    let (mut deal, mut last) = (spread::Deal::new(others), spread::Deal::new(avoided));
    // A volume that is nowhere yet will be where the first task goes, and the others with it.
    let together = pinning(state, judge.revision).next().is_some() && judge.pins.is_empty();
    let mut home = None;
    for task in &rest {
        let node = match home.filter(|_| together) {
            Some(home) => deal.take(home).or_else(|| last.take(home)),
            None => deal.next().or_else(|| last.next()),
        };
        let Some(node) = node else { break };
        home = Some(node);
        chosen.insert(task.id.clone(), node.clone());
    }
    chosen
}

/// A guest of a namespace goes where that is.
fn beside_parent(state: &State, task: &Task, judge: &Judge<'_>) -> BTreeMap<TaskId, NodeId> {
    let parents = task.namespace_parents().filter_map(|id| state.tasks.get(id));
    let homes: BTreeSet<Option<&NodeId>> = parents.map(|parent| parent.node.as_ref()).collect();
    let home = homes.first().copied().flatten().filter(|_| homes.len() == 1);
    let fits = |home: &&NodeId| {
        state.nodes.get(*home).is_some_and(|node| judge.obstacle(home, node, former(state, task)).is_none())
    };
    home.filter(fits).map(|home| (task.id.clone(), home.clone())).into_iter().collect()
}

/// Mixes the bits of a number well (the finalizer of splitmix64): equal candidates must not always come in the same order.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl State {
    /// Puts tasks of one specification on nodes, for good.
    fn assign(&mut self, chosen: &BTreeMap<TaskId, NodeId>) {
        let index = self.index;
        let Some(revision) = chosen.keys().find_map(|id| self.tasks.get(id)).map(|task| task.revision) else { return };
        let record = self.revision(revision).clone();
        let own = demand(&record.spec);
        let pinned: Vec<String> = pinning(self, &record).cloned().collect();
        for (id, home) in chosen {
            self.unplaced.remove(id);
            let Some(task) = self.tasks.get_mut(id) else { continue };
            task.node = Some(home.clone());
            task.unplaced.clear();
            task.changed = index;
            if task.takes_over.is_some() {
                self.enter_node(id);
            } else if let Some(node) = self.nodes.get_mut(home)
                && node.tasks.insert(id.clone())
            {
                node.usage.add(&own);
            }
            for volume in &pinned {
                if let Some(volume) = self.volumes.get_mut(volume) {
                    volume.pinned.get_or_insert_with(|| home.clone());
                }
            }
        }
    }

    /// Enters a task that has a node in that node's books.
    pub(crate) fn enter_node(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get(id) else { return };
        let own = demand(&self.revision(task.revision).spec);
        let shared = self.shared_demand(task, &own);
        let Some(node) = task.node.clone() else { return };
        let id = id.clone();
        if let Some(node) = self.nodes.get_mut(&node)
            && node.tasks.insert(id)
        {
            node.usage.add(&own);
            node.usage.subtract(&shared);
        }
    }

    /// Takes a task that is being removed out of its node's books.
    pub(crate) fn leave_node(&mut self, task: &Task) {
        self.unplaced.remove(&task.id);
        let Some(id) = &task.node else { return };
        let own = demand(&self.revision(task.revision).spec);
        // What it shared with its former it takes back from; what its successor shares with it, that one has now alone.
        let mut shared = self.shared_demand(task, &own);
        for successor in self.successors.get(&task.id).into_iter().flatten().filter_map(|id| self.tasks.get(id)) {
            if successor.takes_over.as_ref() == Some(&task.id) && successor.node == task.node {
                let theirs = demand(&self.revision(successor.revision).spec);
                shared.add(&theirs.least(&own));
            }
        }
        if let Some(node) = self.nodes.get_mut(id)
            && node.tasks.remove(&task.id)
        {
            node.usage.add(&shared);
            node.usage.subtract(&own);
        }
    }

    /// Adds up anew what a node's tasks may take.
    pub(crate) fn recount(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let mut usage = Usage::default();
        for task in node.tasks.iter().filter_map(|id| self.tasks.get(id)) {
            let own = demand(&self.revision(task.revision).spec);
            let shared = self.shared_demand(task, &own);
            usage.add(&own);
            usage.subtract(&shared);
        }
        if let Some(node) = self.nodes.get_mut(id) {
            node.usage = usage;
        }
    }

    /// What a task has together with the one that it takes over from on the same node: only one of them runs at a time.
    fn shared_demand(&self, task: &Task, own: &Usage) -> Usage {
        let former = task.takes_over.as_ref().and_then(|id| self.tasks.get(id));
        match former.filter(|former| former.node == task.node) {
            Some(former) => demand(&self.revision(former.revision).spec).least(own),
            None => Usage::default(),
        }
    }
}
