//! Applying log entries: plan, execute, settle.

use std::collections::{BTreeMap, BTreeSet};

use orch_spec::assignment::{NetworkName, TaskId};

use crate::command::{Answer, Changes, Command, Entry, Outcome};
use crate::error::{Missing, Refusal};
use crate::plan::{self, Moment, Planned, Records};
use crate::settle::Settling;
use crate::state::{Event, MeshPort, NetworkPhase, RevisionId, Stack, State, Task, Timer, vip_holder};
use crate::{endpoint, rollout};

impl State {
    /// Applies the next entry of the log. A refused command changes nothing but the index, and neither does one whose request was carried out
    /// before.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Outcome {
        self.index = index;
        self.time = self.time.max(entry.time_ms.unwrap_or(entry.now_ms));
        let mut changes = Changes::default();
        let moment = Moment { now_ms: entry.now_ms, nonce: entry.nonce };
        if let Some(answer) = entry.request.and_then(|request| self.requests.answer(request)) {
            return Outcome { result: Ok(answer), changes };
        }
        let result = self.dispatch(moment, &entry.command, &mut changes);
        if let (Some(request), Ok(answer)) = (entry.request, &result) {
            self.requests.note(request, self.time, answer);
        }
        Outcome { result, changes }
    }

    /// Passes over an entry that holds no command.
    pub fn skip(&mut self, index: u64) {
        self.index = index;
    }

    fn dispatch(&mut self, moment: Moment, command: &Command, changes: &mut Changes) -> Result<Answer, Refusal> {
        let planned = match command {
            Command::ApplyStack(request) => plan::plan_up(self, request, moment)?,
            Command::RemoveStack(request) => plan::plan_down(self, request, moment)?,
            Command::Act(request) => plan::plan_act(self, request, moment)?,
            Command::Scale(request) => plan::plan_scale(self, request, moment)?,
            Command::RunOneOff(request) => plan::plan_run(self, request, moment)?,
            Command::SetTaskDesired(request) => plan::plan_desired(self, request, moment)?,
            Command::CreateNetwork(request) => plan::plan_network(self, request, moment)?,
            Command::CreateVolume(request) => plan::plan_volume(self, request, moment)?,
            Command::ReserveAddress(request) => plan::plan_reservation(self, request, moment)?,
            Command::AttachTask(request) => {
                let Planned { answer, records } = plan::plan_attach(self, request, moment)?;
                self.execute(moment, command, records, changes);
                self.touch_endpoints(&request.task);
                return Ok(answer);
            }
            Command::DetachTask(request) => {
                let Planned { answer, records } = plan::plan_detach(self, request, moment)?;
                // Before it has left: the network is one of those that are not what they were.
                self.touch_endpoints(&request.task);
                self.execute(moment, command, records, changes);
                return Ok(answer);
            }
            Command::ReleaseAddress { network, holder } => {
                self.release_address(network, holder, changes)?;
                return Ok(Answer::default());
            }
            Command::RemoveNetwork { name } => {
                self.remove_network(moment, name, changes)?;
                return Ok(Answer::default());
            }
            Command::RemoveVolume { name } => {
                self.remove_volume(moment, name, changes)?;
                return Ok(Answer::default());
            }
            Command::Report { node, turn, report } => {
                self.report(moment, node, *turn, report, changes)?;
                return Ok(Answer::default());
            }
            Command::Member(change) => {
                self.change_members(change, changes)?;
                return Ok(Answer::default());
            }
            Command::Security(request) => {
                self.secure(moment, request, changes)?;
                self.follow_security(moment, request, changes);
                return Ok(Answer::default());
            }
            Command::FormCluster(settings) => {
                self.form_cluster(moment, settings, changes);
                return Ok(Answer::default());
            }
            Command::ObserveNode { node, state } => {
                self.observe_node(moment, node, *state, changes)?;
                return Ok(Answer::default());
            }
            Command::NotePlatforms(platforms) => {
                self.note_platforms(platforms);
                return Ok(Answer::default());
            }
            Command::UpdateNode(request) => {
                self.update_node(moment, request, changes)?;
                return Ok(Answer::default());
            }
            Command::RemoveNode { node, force } => {
                self.remove_node(moment, node, *force, changes)?;
                return Ok(Answer::default());
            }
            Command::UpdateService(request) => plan::plan_service(self, request, moment)?,
            Command::CreateObject(request) => {
                self.create_object(moment, request)?;
                return Ok(Answer::default());
            }
            Command::ChangeObject(request) => {
                self.change_object(moment, command, request, changes)?;
                return Ok(Answer::default());
            }
            Command::RemoveObject { kind, name } => {
                self.remove_object(moment, *kind, name)?;
                return Ok(Answer::default());
            }
            Command::RollbackService { stack, service } => {
                rollout::roll_back(self, moment, stack, service, changes)?;
                let mut settling = Settling::new(self, moment, changes);
                settling.mark_stack(stack);
                settling.run();
                return Ok(Answer::default());
            }
            Command::Tick => {
                self.tick(moment, changes);
                return Ok(Answer::default());
            }
        };
        let Planned { answer, records } = planned;
        self.execute(moment, command, records, changes);
        Ok(answer)
    }

    /// Copies a plan's records into the state, and looks at what may be affected.
    pub(crate) fn execute(&mut self, moment: Moment, command: &Command, records: Records, changes: &mut Changes) {
        let action = match command {
            Command::ApplyStack(_) => Some("apply"),
            Command::RemoveStack(_) => Some("down"),
            Command::Scale(_) => Some("scale"),
            Command::UpdateService(_) | Command::ChangeObject(_) => Some("update"),
            _ => None,
        };
        let is_new = records.stack.as_ref().is_some_and(|stack| !self.stacks.contains_key(&stack.name));
        let Some(name) = self.carry_out(moment, records, action, changes) else { return };
        self.drop_revisions();
        let mut settling = Settling::new(self, moment, changes);
        settling.mark_stack(&name);
        if !is_new {
            // What was made just now is where it should be.
            settling.mark_relocation(&name);
        }
        settling.mark_placing();
        settling.place();
        settling.run();
    }

    /// Looks at what is due.
    fn tick(&mut self, moment: Moment, changes: &mut Changes) {
        for timer in self.due_timers() {
            match timer {
                Timer::Node(node) => self.look_at_node(moment, &node, changes),
                Timer::Task(id) => {
                    let Some(task) = self.tasks.get(&id) else { continue };
                    let (stack, service) = (task.stack.clone(), task.service.clone());
                    let mut settling = Settling::new(self, moment, changes);
                    settling.mark_service(&stack, &service);
                    settling.run();
                }
                Timer::Rollout { stack, service } => {
                    let mut settling = Settling::new(self, moment, changes);
                    settling.mark_rollout(&stack, &service);
                    settling.run();
                }
            }
        }
    }

    /// Copies a plan's records into the state. Decides nothing. Says which stack it was about.
    pub(crate) fn carry_out(
        &mut self,
        moment: Moment,
        mut records: Records,
        action: Option<&'static str>,
        changes: &mut Changes,
    ) -> Option<String> {
        let (index, known) = (self.index, self.task_sequence);
        // A specification that is new has other needs; what plans take over from tasks that are there has not.
        let other_needs = action.is_some() || !records.revisions.is_empty();
        self.task_sequence = records.task_sequence;
        self.revision_sequence = records.revision_sequence;
        self.revisions.extend(records.revisions);
        changes.objects |= !records.networks.is_empty() || !records.volumes.is_empty();
        let networks: Vec<NetworkName> = records.networks.keys().cloned().collect();
        for (name, mut network) in records.networks {
            let former = self.networks.get(&name);
            let new = former.is_none();
            if former != Some(&network) {
                network.changed = index;
            }
            if former.is_some_and(|former| former.reservations != network.reservations || former.nodes != network.nodes)
            {
                network.endpoints_changed = index;
            }
            if new {
                self.event(moment, "network", "create", &name.0, &name.0, &network.stack, &[]);
            }
            self.networks.insert(name, network);
        }
        for (name, mut volume) in records.volumes {
            let former = self.volumes.get(&name);
            let new = former.is_none();
            if self.volumes.get(&name) != Some(&volume) {
                volume.changed = index;
            }
            if new {
                self.event(moment, "volume", "create", &name, &name, &volume.stack, &[]);
            }
            self.volumes.insert(name, volume);
        }
        let mut restless: Vec<TaskId> = Vec::new();
        let mut of_tasks = Revisions::new();
        // One that is not new shares its lists with the state until it is put there: a change now would copy them.
        let mut new_stack = records.stack.as_mut().filter(|stack| !self.stacks.contains_key(&stack.name));
        for (id, mut task) in records.tasks {
            for former in &task.after {
                self.successors.entry(former.clone()).or_default().insert(id.clone());
            }
            match new_stack.as_mut().filter(|stack| stack.name == task.stack) {
                Some(stack) => stack.note_rest(&task, false),
                None => restless.push(id.clone()),
            }
            note_revision(&mut of_tasks, &task);
            if task.sequence <= known {
                if self.tasks.get(&id) != Some(&task) {
                    task.changed = index;
                }
                self.tasks.insert(id, task);
                continue;
            }
            // A new one.
            task.changed = index;
            self.names.entry(task.container_name.clone()).or_default().insert((task.sequence, id.clone()));
            let has_node = task.node.is_some();
            self.tasks.insert(id.clone(), task);
            if has_node {
                self.enter_node(&id);
            } else {
                self.unplaced.insert(id);
            }
        }
        self.number_networks(&networks);
        let stack = records.stack?;
        let name = stack.name.clone();
        self.put_stack(moment, action, stack, other_needs.then_some(of_tasks));
        restless.iter().for_each(|id| self.unsettle(id));
        Some(name)
    }

    /// Puts a stack's record in. Where services may need others than before, `of_tasks` are the specifications of the tasks that came with
    /// it.
    fn put_stack(
        &mut self,
        moment: Moment,
        action: Option<&'static str>,
        mut stack: Stack,
        of_tasks: Option<Revisions>,
    ) {
        let former = self.stacks.get(&stack.name);
        let is_new = former.is_none();
        let same = former.is_some_and(|former| {
            former.services == stack.services && former.files == stack.files && former.removing == stack.removing
        });
        let fewer = former.is_some_and(|former| former.services.keys().any(|name| !stack.services.contains_key(name)));
        let other_ports = !published(&stack).eq(former.into_iter().flat_map(published));
        if let Some(action) = action.filter(|_| !same) {
            let name = stack.name.clone();
            self.event(moment, "stack", action, &name, &name, &name, &[]);
        }
        if !same {
            stack.changed = self.index;
        }
        stack.tasks.retain(|_, ids| !ids.is_empty());
        let name = stack.name.clone();
        let entitled = plan::entitled(&stack);
        self.stacks.insert(name.clone(), stack);
        if other_ports {
            self.mesh_changed = self.index;
        }
        if fewer {
            self.release_vips(&name, &entitled);
        }
        match of_tasks {
            // All of its tasks came with it.
            Some(of_tasks) if is_new => self.note_needs(&name, of_tasks),
            Some(_) => self.rebuild_needs(&name),
            None => {}
        }
    }

    /// Takes back the virtual addresses of services that a stack has no more.
    pub(crate) fn release_vips(&mut self, stack: &str, entitled: &BTreeSet<String>) {
        let prefix = endpoint::vip_key(stack, "");
        for network in self.networks.values_mut() {
            let mut both = vec![network];
            while let Some(network) = both.pop() {
                let gone = |key: &String| key.starts_with(&prefix) && !entitled.contains(key);
                let keys: Vec<String> = network.vips.keys().filter(|key| gone(key)).cloned().collect();
                for key in keys {
                    let holder = vip_holder(&key);
                    network.vips.remove(&key);
                    for pool in [&mut network.pool4, &mut network.pool6].into_iter().flatten() {
                        pool.held.retain(|_, present| *present != holder);
                    }
                }
                if let NetworkPhase::Replacing(successor) = &mut network.phase {
                    both.push(successor);
                }
            }
        }
    }

    /// Who needs whom, by the services' present specifications and by those of all tasks that are still there.
    pub(crate) fn rebuild_needs(&mut self, stack: &str) {
        let mut of_tasks = Revisions::new();
        self.stack_tasks(stack).for_each(|task| note_revision(&mut of_tasks, task));
        self.note_needs(stack, of_tasks);
    }

    fn note_needs(&mut self, stack: &str, mut revisions: Revisions) {
        let Some(record) = self.stacks.get(stack) else { return };
        for (name, service) in &record.services {
            revisions.entry(name.clone()).or_default().insert(service.revision);
        }
        let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut dependents: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (service, revisions) in revisions {
            for needed in revisions.iter().flat_map(|revision| crate::gate::needs(&self.revision(*revision).spec)) {
                needs.entry(service.clone()).or_default().insert(needed.to_owned());
                dependents.entry(needed.to_owned()).or_default().insert(service.clone());
            }
        }
        if let Some(record) = self.stacks.get_mut(stack) {
            (record.needs, record.dependents) = (needs, dependents);
        }
    }

    /// Forgets specifications that nothing refers to.
    pub(crate) fn drop_revisions(&mut self) {
        let services = self.stacks.values().flat_map(|stack| stack.services.values());
        let remembered = services.flat_map(|service| {
            let former = service.rollout.as_ref().and_then(|rollout| rollout.former.as_ref());
            let former = service.history.iter().chain(former).map(|former| former.revision);
            former.chain([service.revision])
        });
        let remembered: BTreeSet<RevisionId> = remembered.collect();
        // Few are only tasks' own, and only for these all tasks are looked at.
        if self.revisions.keys().all(|id| remembered.contains(id)) {
            return;
        }
        let of_tasks: BTreeSet<RevisionId> = self.tasks.values().map(|task| task.revision).collect();
        self.revisions.retain(|id, _| remembered.contains(id) || of_tasks.contains(id));
    }

    fn release_address(&mut self, name: &NetworkName, holder: &str, changes: &mut Changes) -> Result<(), Refusal> {
        let index = self.index;
        let Some(network) = self.networks.get_mut(name) else { return Err(Missing::Network(name.0.clone()).into()) };
        if network.release(holder) {
            (network.changed, network.endpoints_changed) = (index, index);
            changes.objects = true;
        }
        Ok(())
    }

    fn remove_network(&mut self, moment: Moment, name: &NetworkName, changes: &mut Changes) -> Result<(), Refusal> {
        let Some(network) = self.networks.get(name) else { return Err(Missing::Network(name.0.clone()).into()) };
        let tasks =
            network.all_users().into_iter().filter_map(|id| self.tasks.get(id)).map(|task| task.container_name.clone());
        let users: Vec<String> =
            tasks.chain(network.reservations.values().map(|reservation| reservation.name.clone())).collect();
        if !users.is_empty() {
            return Err(Refusal::InUse { kind: "network", name: name.0.clone(), users });
        }
        let index = self.index;
        if let Some(network) = self.networks.get_mut(name) {
            network.phase = NetworkPhase::Removing;
            network.changed = index;
        }
        changes.objects = true;
        let mut settling = Settling::new(self, moment, changes);
        settling.mark_network(name);
        settling.run();
        Ok(())
    }

    fn remove_volume(&mut self, moment: Moment, name: &str, changes: &mut Changes) -> Result<(), Refusal> {
        let Some(volume) = self.volumes.get(name) else { return Err(Missing::Volume(name.to_owned()).into()) };
        let users: Vec<String> =
            volume.users.iter().filter_map(|id| self.tasks.get(id)).map(|task| task.container_name.clone()).collect();
        if !users.is_empty() {
            return Err(Refusal::InUse { kind: "volume", name: name.to_owned(), users });
        }
        let index = self.index;
        if let Some(volume) = self.volumes.get_mut(name) {
            volume.removing = true;
            volume.error.clear();
            volume.changed = index;
        }
        changes.objects = true;
        let mut settling = Settling::new(self, moment, changes);
        settling.mark_volume(name);
        settling.run();
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    pub(crate) fn event(
        &mut self,
        moment: Moment,
        kind: &'static str,
        action: &'static str,
        id: &str,
        name: &str,
        stack: &str,
        attributes: &[(&'static str, String)],
    ) {
        let attributes = attributes.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
        self.events.push(Event {
            time: moment.now_ms,
            index: self.index,
            kind: kind.into(),
            action: action.into(),
            id: id.to_owned(),
            name: name.to_owned(),
            stack: stack.to_owned(),
            attributes,
        });
    }

    /// An event of one task's container.
    pub(crate) fn task_event(
        &mut self,
        moment: Moment,
        id: &TaskId,
        action: &'static str,
        attributes: &[(&'static str, String)],
    ) {
        let Some(task) = self.tasks.get(id) else { return };
        let (name, stack) = (task.container_name.clone(), task.stack.clone());
        let mut all = vec![("service", task.service.clone()), ("slot", task.slot.to_string())];
        all.extend(task.node.iter().map(|node| ("node", node.0.clone())));
        all.extend(attributes.iter().cloned());
        self.event(moment, "container", action, id.as_str(), &name, &stack, &all);
    }
}

/// The specifications that each service's tasks have.
type Revisions = BTreeMap<String, BTreeSet<RevisionId>>;

fn note_revision(revisions: &mut Revisions, task: &Task) {
    match revisions.get_mut(&task.service) {
        Some(known) => drop(known.insert(task.revision)),
        None => drop(revisions.insert(task.service.clone(), [task.revision].into())),
    }
}

/// What every node publishes for a stack.
fn published(stack: &Stack) -> impl Iterator<Item = (&String, &MeshPort)> {
    stack.services.iter().flat_map(|(name, service)| service.mesh_ports.iter().map(move |port| (name, port)))
}
