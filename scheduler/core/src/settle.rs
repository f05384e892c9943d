//! Settling: after a change, every task that may be affected passes the gate again, and what is finished goes away.
//!
//! Level-triggered: marks say only where to look, what is found there decides. A mark too many costs time, never correctness.

use std::collections::BTreeSet;

use orch_spec::assignment::{DesiredTask, NetworkName, NodeId, TaskId};

use crate::command::Changes;
use crate::endpoint::{LAST_ANSWERS_MS, WITHDRAWAL_MS, is_let_go};
use crate::gate::{self, Gate, Memory};
use crate::plan::Moment;
use crate::state::{Network, NetworkPhase, NodeState, Service, State, Timer, Withdrawal, holder_of};
use crate::{place, relocate, rollout};

/// One pass.
pub(crate) struct Settling<'s> {
    state: &'s mut State,
    moment: Moment,
    changes: &'s mut Changes,
    tasks: BTreeSet<TaskId>,
    services: BTreeSet<(String, String)>,
    networks: BTreeSet<NetworkName>,
    volumes: BTreeSet<String>,
    stacks: BTreeSet<String>,
    rollouts: BTreeSet<(String, String)>,
    relocations: BTreeSet<String>,
    placing: bool,
    memory: Memory,
}

impl<'s> Settling<'s> {
    pub(crate) fn new(state: &'s mut State, moment: Moment, changes: &'s mut Changes) -> Self {
        let (tasks, services, networks) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (volumes, stacks, memory) = (BTreeSet::new(), BTreeSet::new(), Memory::default());
        let (rollouts, relocations, placing) = (BTreeSet::new(), BTreeSet::new(), false);
        Self {
            state,
            moment,
            changes,
            tasks,
            services,
            networks,
            volumes,
            stacks,
            rollouts,
            relocations,
            placing,
            memory,
        }
    }

    /// Everything of a stack that is not at rest.
    pub(crate) fn mark_stack(&mut self, stack: &str) {
        self.changes.stacks.insert(stack.to_owned());
        self.stacks.insert(stack.to_owned());
        if let Some(record) = self.state.stacks.get(stack) {
            self.services.extend(record.restless.keys().map(|service| (stack.to_owned(), service.clone())));
            let rolling = record.services.iter().filter(|(_, service)| service.is_rolling());
            self.rollouts.extend(rolling.map(|(service, _)| (stack.to_owned(), service.clone())));
        }
        let own = self.state.networks.values().filter(|network| !network.is_active());
        self.networks.extend(own.map(|network| network.name.clone()));
    }

    /// Something of a stack is not what it was, though none of its tasks need to pass the gate again.
    pub(crate) fn mark_changed(&mut self, stack: &str) {
        self.changes.stacks.insert(stack.to_owned());
    }

    /// Networks and volumes that are on their way out, and the stacks that wait for that.
    pub(crate) fn mark_leaving(&mut self) {
        let networks = self.state.networks.values().filter(|network| !network.is_active());
        self.networks.extend(networks.map(|network| network.name.clone()));
        let volumes = self.state.volumes.values().filter(|volume| volume.removing);
        self.volumes.extend(volumes.map(|volume| volume.name.clone()));
        let stacks = self.state.stacks.values().filter(|stack| stack.removing.is_some());
        self.stacks.extend(stacks.map(|stack| stack.name.clone()));
    }

    /// Tasks that wait for nodes to let go of them.
    pub(crate) fn mark_withdrawing(&mut self) {
        let waiting = self.state.withdrawing.iter().filter_map(|id| self.state.tasks.get(id));
        self.services.extend(waiting.map(|task| (task.stack.clone(), task.service.clone())));
    }

    /// What nodes can take is not what it was.
    pub(crate) fn mark_placing(&mut self) {
        self.placing = true;
    }

    /// Tasks of a stack may be where they should not be.
    pub(crate) fn mark_relocation(&mut self, stack: &str) {
        self.relocations.insert(stack.to_owned());
    }

    /// A service's update is to be looked at.
    pub(crate) fn mark_rollout(&mut self, stack: &str, service: &str) {
        self.rollouts.insert((stack.to_owned(), service.to_owned()));
    }

    /// A task is to pass the gate again.
    pub(crate) fn mark_one(&mut self, id: &TaskId) {
        self.tasks.insert(id.clone());
    }

    /// A service's tasks that are not at rest are to pass the gate again.
    pub(crate) fn mark_service(&mut self, stack: &str, service: &str) {
        self.services.insert((stack.to_owned(), service.to_owned()));
    }

    pub(crate) fn mark_network(&mut self, name: &NetworkName) {
        self.networks.insert(name.clone());
    }

    pub(crate) fn mark_volume(&mut self, name: &str) {
        self.volumes.insert(name.to_owned());
    }

    /// A task is not what it was: it must look again, and with it what waits in its service, in those that depend on it and in those
    /// that it depends on.
    pub(crate) fn mark_task(&mut self, id: &TaskId) {
        self.tasks.insert(id.clone());
        self.mark_others(id);
    }

    /// Those that a task concerns.
    fn mark_others(&mut self, id: &TaskId) {
        let Some(task) = self.state.tasks.get(id) else { return };
        self.memory.forget(&task.stack, &task.service);
        let Some(record) = self.state.stacks.get(&task.stack) else { return };
        if !self.stacks.contains(&task.stack) {
            self.changes.stacks.insert(task.stack.clone());
            self.stacks.insert(task.stack.clone());
        }
        let mut concerned: BTreeSet<&String> = record.dependents.get(&task.service).into_iter().flatten().collect();
        concerned.insert(&task.service);
        // Downwards the order passes through what has ended, which any service may have.
        let mut needed: Vec<&String> = record.needs.get(&task.service).into_iter().flatten().collect();
        let mut passed = BTreeSet::new();
        while let Some(service) = needed.pop() {
            if passed.insert(service) {
                needed.extend(record.needs.get(service).into_iter().flatten());
            }
        }
        concerned.extend(passed);
        for service in concerned.into_iter().filter(|service| record.restless.contains_key(*service)) {
            self.services.insert((task.stack.clone(), service.clone()));
        }
    }

    /// Gives nodes to those that wait for one. Before everything else it saves those who get one from passing the gate in vain.
    pub(crate) fn place(&mut self) {
        for group in place::place(self.state, self.moment.nonce) {
            // They concern the same others.
            group.first().into_iter().for_each(|id| self.mark_others(id));
            self.tasks.extend(group);
        }
    }

    /// Looks everywhere that is marked until nothing is.
    pub(crate) fn run(&mut self) {
        loop {
            if let Some(id) = self.tasks.pop_first() {
                self.settle_task(&id);
            } else if let Some((stack, service)) = self.services.pop_first() {
                self.settle_service(&stack, &service);
            } else if let Some(network) = self.networks.pop_first() {
                self.settle_network(&network);
            } else if let Some(volume) = self.volumes.pop_first() {
                self.settle_volume(&volume);
            } else if let Some(stack) = self.stacks.pop_first() {
                self.settle_stack(&stack);
            } else if let Some((stack, service)) = self.rollouts.pop_first() {
                if rollout::step(self.state, self.moment, &stack, &service, self.changes) {
                    self.memory = Memory::default();
                    self.mark_stack(&stack);
                    self.placing = true;
                }
                // What could not be moved while its service was being updated: a guest whose host has been replaced.
                let record = self.state.stacks.get(&stack).and_then(|stack| stack.services.get(&service));
                if record.is_some_and(|service| !service.is_rolling()) {
                    self.mark_relocation(&stack);
                }
            } else if let Some(stack) = self.relocations.pop_first() {
                if relocate::step(self.state, self.moment, &stack, self.changes) {
                    self.memory = Memory::default();
                    self.mark_stack(&stack);
                    self.placing = true;
                }
            } else if std::mem::take(&mut self.placing) {
                self.place();
            } else {
                return;
            }
        }
    }

    fn settle_service(&mut self, stack: &str, service: &str) {
        let restless = self.state.stacks.get(stack).and_then(|record| record.restless.get(service));
        let restless = restless.cloned().unwrap_or_default();
        restless.iter().for_each(|id| self.settle_task(id));
        self.look_at_rollout(stack, service);
    }

    fn settle_task(&mut self, id: &TaskId) {
        let Some(task) = self.state.tasks.get(id) else { return };
        let record = self.state.stacks.get(&task.stack).and_then(|stack| stack.services.get(&task.service));
        if record.is_some_and(Service::is_rolling) {
            self.rollouts.insert((task.stack.clone(), task.service.clone()));
        }
        let gate = gate::evaluate(self.state, task, &mut self.memory);
        if gate.gone {
            self.remove_task(id);
            return;
        }
        self.enter(id, gate);
        self.state.refresh_presence(id);
        if self.state.refresh_serving(id)
            && let Some(task) = self.state.tasks.get(id)
        {
            self.changes.stacks.insert(task.stack.clone());
            self.changes.objects = true;
        }
    }

    fn look_at_rollout(&mut self, stack: &str, service: &str) {
        let record = self.state.stacks.get(stack).and_then(|stack| stack.services.get(service));
        if record.is_some_and(Service::is_rolling) {
            self.mark_rollout(stack, service);
        }
    }

    fn enter(&mut self, id: &TaskId, gate: Gate) {
        let index = self.state.index;
        let Some(task) = self.state.tasks.get_mut(id) else { return };
        let present = Gate {
            told: task.told,
            told_generation: task.told_generation,
            released: task.released,
            waiting: std::mem::take(&mut task.waiting),
            blocked: std::mem::take(&mut task.blocked),
            gone: false,
            withdraw: gate.withdraw,
            again_at: gate.again_at,
        };
        let is_new = present.told.is_none() && gate.told.is_some();
        let withdraws = gate.withdraw && task.withdrawn.is_none();
        let matters = withdraws
            || present.blocked != gate.blocked
            || present.told != gate.told
            || present.told_generation != gate.told_generation
            || present.released != gate.released;
        if present != gate {
            task.changed = index;
        }
        task.told = gate.told;
        task.told_generation = gate.told_generation;
        task.released = gate.released;
        task.waiting = gate.waiting;
        task.blocked = gate.blocked;
        let rests = gate::rests(task);
        if let Some(stack) = self.state.stacks.get_mut(&task.stack) {
            stack.note_rest(task, rests);
        }
        if gate.withdraw || task.withdrawn.is_some() {
            self.withdraw(id, gate.withdraw);
        }
        if let Some(at) = gate.again_at {
            self.state.set_timer(at, Timer::Task(id.clone()));
        }
        if is_new {
            self.give(id);
        }
        if matters {
            self.mark_others(id);
        }
    }

    /// Takes a task out of load balancing, or back in when it is to run after all.
    fn withdraw(&mut self, id: &TaskId, wanted: bool) {
        let (index, time) = (self.state.index, self.state.time);
        let Some(task) = self.state.tasks.get_mut(id) else { return };
        if wanted {
            let service = (task.stack.clone(), task.service.clone());
            if task.withdrawn.is_none() {
                let deadline = time.saturating_add(WITHDRAWAL_MS);
                task.withdrawn = Some(Withdrawal { index, deadline });
                self.state.set_timer(deadline, Timer::Task(id.clone()));
                self.services.insert(service);
            }
            self.let_last_answers_go(id);
            // Also one that was out before it had to wait for something else.
            self.state.withdrawing.insert(id.clone());
        } else if !wanted && task.withdrawn.is_some() {
            // One that is to be started again stays out until its node has done so.
            let restarts = task.told_generation > task.status.restart_generation;
            if matches!(task.goal, DesiredTask::Running | DesiredTask::Paused | DesiredTask::Created) && !restarts {
                task.withdrawn = None;
            }
            self.state.withdrawing.remove(id);
        }
    }

    /// Once nobody is sent to a task any more its stop is near.
    fn let_last_answers_go(&mut self, id: &TaskId) {
        let near = self.state.time.saturating_add(LAST_ANSWERS_MS);
        let Some(task) = self.state.tasks.get(id) else { return };
        if task.withdrawn.is_none_or(|withdrawal| withdrawal.deadline <= near) || !is_let_go(self.state, task) {
            return;
        }
        if let Some(withdrawal) = self.state.tasks.get_mut(id).and_then(|task| task.withdrawn.as_mut()) {
            withdrawal.deadline = near;
            self.state.set_timer(near, Timer::Task(id.clone()));
        }
    }

    /// The task's node is told of it for the first time, and with it of its networks and volumes.
    fn give(&mut self, id: &TaskId) {
        let Some(task) = self.state.tasks.get(id) else { return };
        let Some(node) = task.node.clone() else { return };
        let networks: Vec<NetworkName> = task.networks().cloned().collect();
        let volumes: Vec<String> = self.state.revision(task.revision).volumes.values().cloned().collect();
        self.state.touch_endpoints(id);
        for network in networks {
            if let Some(network) = self.state.networks.get_mut(&network) {
                self.changes.objects |= network.nodes.insert(node.clone());
            }
        }
        for volume in volumes {
            if let Some(volume) = self.state.volumes.get_mut(&volume) {
                self.changes.objects |= volume.nodes.insert(node.clone());
            }
        }
    }

    /// Takes a task out of every list that it is in, and out of its node's books.
    pub(crate) fn remove_task(&mut self, id: &TaskId) {
        self.mark_others(id);
        let index = self.state.index;
        self.state.touch_endpoints(id);
        let Some(task) = self.state.tasks.remove(id) else { return };
        self.state.withdrawing.remove(id);
        self.state.leave_node(&task);
        self.placing |= !self.state.unplaced.is_empty();
        for name in task.networks() {
            if let Some(network) = self.state.networks.get_mut(name) {
                leave_network(network, id, &task);
                network.changed = index;
                self.networks.insert(name.clone());
            }
        }
        if let Some(revision) = self.state.revisions.get(&task.revision) {
            for name in revision.volumes.values() {
                if let Some(volume) = self.state.volumes.get_mut(name) {
                    volume.users.remove(id);
                    volume.changed = index;
                    self.volumes.insert(name.clone());
                }
            }
        }
        if let Some(named) = self.state.names.get_mut(&task.container_name) {
            named.remove(&(task.sequence, id.clone()));
            if named.is_empty() {
                self.state.names.remove(&task.container_name);
            }
        }
        if let Some(record) = self.state.stacks.get_mut(&task.stack) {
            record.note_rest(&task, true);
        }
        if let Some(record) = self.state.stacks.get_mut(&task.stack)
            && let Some(ids) = record.tasks.get_mut(&task.service)
        {
            ids.remove(&task);
            if ids.is_empty() {
                record.tasks.remove(&task.service);
            }
        }
        self.inherit(&task);
        for successor in self.state.successors.remove(id).unwrap_or_default() {
            if let Some(waiting) = self.state.tasks.get_mut(&successor) {
                waiting.after.remove(id);
                self.services.insert((waiting.stack.clone(), waiting.service.clone()));
                self.changes.stacks.insert(waiting.stack.clone());
            }
        }
        for former in &task.after {
            if let Some(successors) = self.state.successors.get_mut(former) {
                successors.remove(id);
                if successors.is_empty() {
                    self.state.successors.remove(former);
                }
            }
        }
        self.changes.objects = true;
        self.drop_revision(&task);
    }

    /// What was to take over from a task that is gone takes over from whom that one was to take over from, if it is still there: they
    /// have one address and one place.
    fn inherit(&mut self, gone: &crate::state::Task) {
        let Some(former) = gone.takes_over.clone().filter(|former| self.state.tasks.contains_key(former)) else {
            return;
        };
        let heirs = self.state.successors.get(&gone.id).cloned().unwrap_or_default();
        for heir in heirs {
            let Some(task) = self.state.tasks.get_mut(&heir).filter(|task| task.takes_over.as_ref() == Some(&gone.id))
            else {
                continue;
            };
            task.takes_over = Some(former.clone());
            task.after.insert(former.clone());
            let node = task.node.clone();
            self.state.successors.entry(former.clone()).or_default().insert(heir);
            if let Some(node) = node {
                self.state.recount(&node);
            }
        }
    }

    /// Forgets the task's specification when it was the last that had it.
    fn drop_revision(&mut self, task: &crate::state::Task) {
        let stack = self.state.stacks.get(&task.stack);
        let of_service =
            stack.and_then(|stack| stack.services.get(&task.service)).is_some_and(|s| s.revision == task.revision);
        let of_history = stack
            .and_then(|stack| stack.services.get(&task.service))
            .is_some_and(|service| service.remembers(task.revision));
        // Last: where nobody has it any more this looks at all.
        let of_task =
            || self.state.service_tasks(&task.stack, &task.service).any(|other| other.revision == task.revision);
        if !of_service && !of_history && !of_task() {
            self.state.revisions.remove(&task.revision);
        }
    }

    fn settle_network(&mut self, name: &NetworkName) {
        let Some(network) = self.state.networks.get(name) else { return };
        // A node that is down removes by itself what it is not told of any more.
        let answers = |node: &NodeId| self.state.node_state(node) != NodeState::Down;
        if network.is_active()
            || !network.users.is_empty()
            || !network.reservations.is_empty()
            || network.nodes.iter().any(answers)
        {
            return;
        }
        let (stack, index) = (network.stack.clone(), self.state.index);
        self.changes.objects = true;
        self.stacks.insert(stack.clone());
        if let NetworkPhase::Replacing(successor) = network.phase.clone() {
            let mut successor = *successor;
            successor.changed = index;
            let waiting: Vec<_> = successor.users.iter().filter_map(|id| self.state.tasks.get(id)).collect();
            self.services.extend(waiting.into_iter().map(|task| (task.stack.clone(), task.service.clone())));
            self.state.networks.insert(name.clone(), successor);
            self.state.event(self.moment, "network", "recreate", &name.0, &name.0, &stack, &[]);
        } else {
            self.state.networks.remove(name);
            self.state.event(self.moment, "network", "destroy", &name.0, &name.0, &stack, &[]);
        }
        self.changes.stacks.insert(stack);
    }

    fn settle_volume(&mut self, name: &str) {
        let Some(volume) = self.state.volumes.get(name) else { return };
        if !volume.removing || !volume.users.is_empty() || !volume.nodes.is_empty() {
            return;
        }
        let stack = volume.stack.clone();
        self.state.volumes.remove(name);
        self.state.event(self.moment, "volume", "destroy", name, name, &stack, &[]);
        self.changes.objects = true;
        self.changes.stacks.insert(stack.clone());
        self.stacks.insert(stack);
    }

    /// A stack that is being taken down loses its networks after its last task, then its volumes, then itself.
    fn settle_stack(&mut self, name: &str) {
        let Some(stack) = self.state.stacks.get(name) else { return };
        let Some(removing) = stack.removing else { return };
        let is_orphan = |service: &String| stack.services.get(service).is_some_and(|service| service.orphan);
        // Orphans that are to stay hold nothing up; everything else must be gone first.
        if self.state.stack_tasks(name).any(|task| task.is_retiring() || !is_orphan(&task.service)) {
            return;
        }
        let index = self.state.index;
        let nodes = self.state.nodes.iter().filter(|(_, node)| node.state != NodeState::Down);
        let answers: BTreeSet<NodeId> = nodes.map(|(id, _)| id.clone()).collect();
        let mut left = false;
        for network in self.state.networks.values_mut().filter(|network| network.stack == name) {
            if !network.all_users().is_empty() || !network.reservations.is_empty() {
                continue;
            }
            left = true;
            if network.phase != NetworkPhase::Removing {
                network.phase = NetworkPhase::Removing;
                network.changed = index;
                self.changes.objects = true;
                self.networks.insert(network.name.clone());
            }
        }
        for volume in self.state.volumes.values_mut().filter(|volume| removing.volumes && volume.stack == name) {
            // One that a node could not remove stays, with its error: the rest goes on.
            if !volume.users.is_empty() || !volume.error.is_empty() {
                continue;
            }
            // The data on a node that is down is removed when that comes back, and the stack does not wait for it.
            left |= volume.nodes.is_empty() || volume.nodes.iter().any(|node| answers.contains(node));
            if !volume.removing {
                volume.removing = true;
                volume.changed = index;
                self.changes.objects = true;
                self.volumes.insert(volume.name.clone());
            }
        }
        if !left {
            self.finish_stack(name);
        }
    }

    fn finish_stack(&mut self, name: &str) {
        let index = self.state.index;
        let Some(stack) = self.state.stacks.get_mut(name) else { return };
        stack.services.retain(|_, service| service.orphan);
        let entitled = crate::plan::entitled(stack);
        self.state.release_vips(name, &entitled);
        let Some(stack) = self.state.stacks.get_mut(name) else { return };
        if stack.tasks.is_empty() {
            self.state.stacks.remove(name);
            self.state.event(self.moment, "stack", "remove", name, name, name, &[]);
        } else {
            stack.removing = None;
            stack.changed = index;
        }
        self.changes.stacks.insert(name.to_owned());
        self.state.drop_revisions();
    }
}

/// Takes a task off a network, and off its successor.
pub(crate) fn leave_network(network: &mut Network, id: &TaskId, task: &crate::state::Task) {
    let holder = holder_of(id);
    let mut both = vec![&mut *network];
    while let Some(one) = both.pop() {
        one.users.remove(id);
        let addresses = task.endpoints().iter().filter(|endpoint| endpoint.network == one.name);
        for endpoint in addresses {
            for pool in [&mut one.pool4, &mut one.pool6].into_iter().flatten() {
                let (ipv4, ipv6) = (endpoint.ipv4.map(Into::into), endpoint.ipv6.map(Into::into));
                for address in [ipv4, ipv6].into_iter().flatten() {
                    pool.release(address, &holder);
                }
            }
        }
        if let NetworkPhase::Replacing(successor) = &mut one.phase {
            both.push(successor);
        }
    }
}

/// Whether a network that goes is off every task, so that its nodes may remove it.
pub(crate) fn is_leaving(network: &Network) -> bool {
    !network.is_active() && network.users.is_empty() && network.reservations.is_empty()
}
