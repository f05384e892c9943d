//! What happens to nodes: they join, are set, are seen well or not, and are removed; and how a host becomes one of several.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{NetworkName, NodeFacts, NodeId, TaskId};
use orch_spec::role::Role;

use crate::command::{Changes, UpdateNode};
use crate::error::{Missing, Refusal};
use crate::plan::Moment;
use crate::security::SecurityCommand;
use crate::settle::Settling;
use crate::state::{ClusterSettings, Network, NetworkPhase, NodeRole, NodeState, State, Timer};

impl State {
    /// Takes in what a node says of itself; the first time makes it a node.
    pub(crate) fn take_facts(&mut self, moment: Moment, id: &NodeId, facts: &NodeFacts, changes: &mut Changes) {
        if self.removed_nodes.contains(id) {
            return;
        }
        let is_new = !self.nodes.contains_key(id);
        let (number, role) = (self.free_number(), self.first_role(id));
        let index = self.index;
        let node = self.nodes.entry(id.clone()).or_default();
        if node.facts == *facts && !is_new {
            return;
        }
        let moved = node.facts.address != facts.address || node.facts.mtu != facts.mtu;
        node.facts = facts.clone();
        node.changed = index;
        if is_new {
            (node.number, node.role) = (number, role);
            (node.joined_at, node.since) = (moment.now_ms, moment.now_ms);
        }
        changes.objects = true;
        if is_new {
            self.event(moment, "node", "join", &id.0, &facts.hostname, "", &[]);
            self.give_objects(id);
        }
        if moved || is_new {
            self.touch_node_networks(id);
        }
        self.settle_node(moment, id, changes);
    }

    /// Takes in to which nodes packets of its containers do not get through. Placing does not look at it: a link that fails for a while must
    /// not move what runs.
    pub(crate) fn take_underlay(
        &mut self,
        moment: Moment,
        id: &NodeId,
        trouble: &BTreeMap<NodeId, String>,
        changes: &mut Changes,
    ) {
        let index = self.index;
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.underlay != *trouble) else { return };
        let before = std::mem::replace(&mut node.underlay, trouble.clone());
        node.changed = index;
        changes.objects = true;
        let name = node.facts.hostname.clone();
        for peer in before.keys().chain(trouble.keys().filter(|peer| !before.contains_key(*peer))) {
            if before.get(peer) == trouble.get(peer) {
                continue;
            }
            let to = self.nodes.get(peer).map(|node| node.facts.hostname.clone()).unwrap_or_default();
            let (action, why) = match trouble.get(peer) {
                Some(why) => ("underlay_fails", why.clone()),
                None => ("underlay_works", String::new()),
            };
            self.event(moment, "node", action, &id.0, &name, "", &[("to", to), ("why", why)]);
        }
    }

    /// The role of a node that is new: what its record says, or, before there are any, manager for the first.
    fn first_role(&self, id: &NodeId) -> NodeRole {
        match self.security.members.get(id) {
            Some(member) if member.role == Role::Manager => NodeRole::Manager,
            None if self.nodes.is_empty() => NodeRole::Manager,
            _ => NodeRole::Worker,
        }
    }

    /// A new node has at once what was made by hand: containers outside of stacks attach to it whenever they like.
    fn give_objects(&mut self, id: &NodeId) {
        for network in self.networks.values_mut().filter(|network| network.stack.is_empty() && network.is_active()) {
            network.nodes.insert(id.clone());
        }
        for volume in self.volumes.values_mut().filter(|volume| volume.stack.is_empty() && !volume.removing) {
            volume.nodes.insert(id.clone());
        }
    }

    /// Where a node is reached is not what it was.
    fn touch_node_networks(&mut self, id: &NodeId) {
        let index = self.index;
        for network in self.networks.values_mut().filter(|network| network.nodes.contains(id)) {
            network.endpoints_changed = index;
        }
        self.mesh_changed = index;
    }

    /// Looks at everything that depends on what a node is.
    fn settle_node(&mut self, moment: Moment, id: &NodeId, changes: &mut Changes) {
        let mut stacks: BTreeSet<String> = BTreeSet::new();
        let mut services: BTreeSet<(String, String)> = BTreeSet::new();
        let tasks: Vec<TaskId> = self.nodes.get(id).into_iter().flat_map(|node| &node.tasks).cloned().collect();
        tasks.iter().for_each(|task| self.refresh_presence(task));
        for task in tasks.iter().filter_map(|id| self.tasks.get(id)) {
            if !stacks.contains(&task.stack) {
                stacks.insert(task.stack.clone());
            }
            services.insert((task.stack.clone(), task.service.clone()));
        }
        // Services with a task on every node.
        for (name, stack) in &self.stacks {
            if stack.services.values().any(|service| self.revision(service.revision).spec.deploy.mode.is_global()) {
                stacks.insert(name.clone());
            }
        }
        let mut settling = Settling::new(self, moment, changes);
        for stack in stacks {
            settling.mark_changed(&stack);
            settling.mark_relocation(&stack);
        }
        for task in &tasks {
            settling.mark_one(task);
        }
        // Nobody waits for one that is lost to be well again.
        for (stack, service) in &services {
            settling.mark_service(stack, service);
        }
        settling.mark_leaving();
        settling.mark_withdrawing();
        settling.mark_placing();
        settling.run();
    }

    /// Takes in what the leader sees of a node.
    pub(crate) fn observe_node(
        &mut self,
        moment: Moment,
        id: &NodeId,
        observed: NodeState,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let (now, index) = (self.time, self.index);
        let Some(node) = self.nodes.get_mut(id) else { return Err(Missing::Node(id.0.clone()).into()) };
        let changed = node.observe(observed, now);
        let (state, ready_at, name) = (node.state, node.ready_at, node.facts.hostname.clone());
        if changed {
            (node.changed, node.since) = (index, moment.now_ms);
        }
        if let Some(at) = ready_at {
            self.set_timer(at, Timer::Node(id.clone()));
        }
        if changed {
            changes.objects = true;
            self.event(moment, "node", state.as_str(), &id.0, &name, "", &[]);
            self.settle_node(moment, id, changes);
        }
        Ok(())
    }

    /// A node that was held back because it left too often is looked at again.
    pub(crate) fn look_at_node(&mut self, moment: Moment, id: &NodeId, changes: &mut Changes) {
        let observed = self.nodes.get(id).map(|node| node.observed);
        if let Some(observed) = observed {
            // One that is gone meanwhile has no timer to answer.
            let _ = self.observe_node(moment, id, observed, changes);
        }
    }

    /// Sets what people say of a node.
    pub(crate) fn update_node(
        &mut self,
        moment: Moment,
        request: &UpdateNode,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let index = self.index;
        let Some(node) = self.nodes.get_mut(&request.node) else {
            return Err(Missing::Node(request.node.0.clone()).into());
        };
        let former = node.clone();
        node.availability = request.availability.unwrap_or(node.availability);
        node.labels.retain(|label, _| !request.remove_labels.contains(label));
        node.labels.extend(request.labels.clone());
        if *node == former {
            return Ok(());
        }
        node.changed = index;
        let (name, availability) = (node.facts.hostname.clone(), node.availability);
        let attributes = [("availability", availability.as_str().to_owned())];
        self.event(moment, "node", "update", &request.node.0, &name, "", &attributes);
        changes.objects = true;
        self.settle_node(moment, &request.node, changes);
        Ok(())
    }

    /// What follows for nodes from who belongs to the cluster: opening it to others makes the host one of several, roles are what their
    /// records say, and who is shut out is no node any more.
    pub(crate) fn follow_security(&mut self, moment: Moment, request: &SecurityCommand, changes: &mut Changes) {
        let mut roles = Vec::new();
        for (id, member) in &self.security.members {
            let role = if member.role == Role::Manager { NodeRole::Manager } else { NodeRole::Worker };
            if self.nodes.get(id).is_some_and(|node| node.role != role) {
                roles.push((id.clone(), role));
            }
        }
        for (id, role) in roles {
            if let Some(node) = self.nodes.get_mut(&id) {
                (node.role, node.changed) = (role, self.index);
            }
            self.settle_node(moment, &id, changes);
        }
        match request {
            SecurityCommand::Open { .. } if !self.is_cluster() => {
                self.form_cluster(moment, &ClusterSettings::default(), changes);
            }
            SecurityCommand::Remove { node } if self.nodes.contains_key(node) => self.drop_node(moment, node, changes),
            _ => {}
        }
    }

    /// Removes a node and, in the same entry, everything on it. What its services lack then is made elsewhere.
    pub(crate) fn remove_node(
        &mut self,
        moment: Moment,
        id: &NodeId,
        force: bool,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let Some(node) = self.nodes.get_mut(id) else { return Err(Missing::Node(id.0.clone()).into()) };
        if node.state == NodeState::Ready && !force {
            return Err(Refusal::Alive { node: node.facts.hostname.clone() });
        }
        // Whoever is a member is shut out with it, unless nobody would be left to decide.
        if self.security.members.contains_key(id) {
            self.secure(moment, &SecurityCommand::Remove { node: id.clone() }, changes)?;
        }
        self.drop_node(moment, id, changes);
        Ok(())
    }

    /// Volumes that are on a node and nowhere else, and that tasks use.
    pub fn only_copies(&self, node: &NodeId) -> Vec<String> {
        let there = self.volumes.values().filter(|volume| volume.pinned.as_ref() == Some(node));
        there.filter(|volume| !volume.users.is_empty()).map(|volume| volume.name.clone()).collect()
    }

    fn drop_node(&mut self, moment: Moment, id: &NodeId, changes: &mut Changes) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        // First its services get others in the place of what it has: down, it is where nothing stays.
        node.state = NodeState::Down;
        let name = node.facts.hostname.clone();
        for volume in self.volumes.values_mut() {
            volume.nodes.remove(id);
            if volume.pinned.as_ref() == Some(id) {
                volume.pinned = None;
            }
        }
        changes.objects = true;
        self.settle_node(moment, id, changes);
        let tasks: BTreeSet<TaskId> = self.nodes.get(id).map(|node| node.tasks.clone()).unwrap_or_default();
        let mut settling = Settling::new(self, moment, changes);
        for task in &tasks {
            settling.remove_task(task);
        }
        settling.run();
        self.nodes.remove(id);
        self.removed_nodes.insert(id.clone());
        let networks: Vec<NetworkName> = self.networks.keys().cloned().collect();
        let (index, volumes) = (self.index, self.volumes.keys().cloned().collect::<Vec<_>>());
        for network in self.networks.values_mut().filter(|network| network.nodes.contains(id)) {
            network.nodes.remove(id);
            network.endpoints_changed = index;
            // Whatever it goes on to run, nobody is led there any more.
            let there = network.reservations.iter().filter(|(_, container)| container.node.as_ref() == Some(id));
            let there: Vec<String> = there.map(|(container, _)| container.clone()).collect();
            for container in &there {
                network.release(container);
            }
        }
        self.mesh_changed = index;
        self.event(moment, "node", "remove", &id.0, &name, "", &[]);
        let stacks: Vec<String> = self.stacks.keys().cloned().collect();
        let mut settling = Settling::new(self, moment, changes);
        networks.iter().for_each(|network| settling.mark_network(network));
        volumes.iter().for_each(|volume| settling.mark_volume(volume));
        stacks.iter().for_each(|stack| settling.mark_stack(stack));
        settling.mark_withdrawing();
        settling.mark_placing();
        settling.run();
    }

    /// Makes the host one of several: networks of stacks get a number, data gets the place where it is.
    pub(crate) fn form_cluster(&mut self, moment: Moment, settings: &ClusterSettings, changes: &mut Changes) {
        let is_new = self.cluster_settings.is_none();
        self.cluster_settings = Some(settings.clone());
        changes.objects = true;
        self.mesh_changed = self.index;
        let index = self.index;
        for network in self.networks.values_mut() {
            network.endpoints_changed = index;
        }
        if is_new {
            let names: Vec<NetworkName> = self.networks.keys().cloned().collect();
            self.number_networks(&names);
            for volume in self.volumes.values_mut().filter(|volume| !volume.stack.is_empty()) {
                if let (1, Some(node)) = (volume.nodes.len(), volume.nodes.first()) {
                    volume.pinned = Some(node.clone());
                }
            }
            self.event(moment, "cluster", "form", "", "", "", &[]);
        }
        let stacks: Vec<String> = self.stacks.keys().cloned().collect();
        let mut settling = Settling::new(self, moment, changes);
        stacks.iter().for_each(|stack| settling.mark_stack(stack));
        settling.run();
    }

    /// Gives a number to each of these networks that reaches over to other nodes and has none.
    pub(crate) fn number_networks(&mut self, names: &[NetworkName]) {
        if !self.is_cluster() {
            return;
        }
        for name in names {
            let Some(network) = self.networks.get(name) else { continue };
            if network.vni.is_none() && network.reaches_over() {
                let vni = self.next_vni();
                if let Some(network) = self.networks.get_mut(name) {
                    network.vni = Some(vni);
                }
            }
            let successor = |network: &Network| match &network.phase {
                NetworkPhase::Replacing(successor) => successor.vni.is_none() && successor.reaches_over(),
                _ => false,
            };
            if self.networks.get(name).is_some_and(successor) {
                let vni = self.next_vni();
                if let Some(network) = self.networks.get_mut(name) {
                    network.planned_mut().vni = Some(vni);
                }
            }
        }
    }
}
