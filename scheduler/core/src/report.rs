//! What nodes say, taken into the state. A report repeats what is, so taking it in twice changes nothing.

use std::collections::BTreeSet;

use orch_spec::assignment::{Health, NetworkName, NodeId, NodeReport, TaskState, TaskStatus};

use crate::command::Changes;
use crate::error::Refusal;
use crate::plan::Moment;
use crate::settle::{Settling, is_leaving};
use crate::state::{State, Turn};

impl State {
    /// A connection that is dead on one side only, or a proposal that was given up, may bring what a node said long ago after what it says
    /// now: that is refused.
    pub(crate) fn report(
        &mut self,
        moment: Moment,
        node: &NodeId,
        turn: Turn,
        report: &NodeReport,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let is_known = turn != Turn::default();
        if let Some(record) = self.nodes.get(node).filter(|record| is_known && turn < record.heard) {
            return Err(Refusal::Superseded { node: node.0.clone(), session: record.heard.session });
        }
        self.take_report(moment, node, report, changes);
        if let Some(record) = self.nodes.get_mut(node).filter(|_| is_known) {
            record.heard = turn;
        }
        Ok(())
    }

    fn take_report(&mut self, moment: Moment, node: &NodeId, report: &NodeReport, changes: &mut Changes) {
        match report {
            NodeReport::Facts(facts) => self.take_facts(moment, node, facts, changes),
            NodeReport::Tasks(statuses) => self.take_statuses(moment, node, statuses, changes),
            NodeReport::NetworksRemoved(names) => self.take_networks_removed(moment, node, names, changes),
            NodeReport::VolumesRemoved(names) => self.take_volumes_removed(moment, node, names, changes),
            NodeReport::Applied { version } => self.take_applied(moment, node, *version, changes),
            NodeReport::Underlay(trouble) => self.take_underlay(moment, node, trouble, changes),
        }
    }

    fn take_statuses(&mut self, moment: Moment, node: &NodeId, statuses: &[TaskStatus], changes: &mut Changes) {
        let index = self.index;
        let (mut touched, mut failing) = (Vec::new(), BTreeSet::new());
        for status in statuses {
            let Some(task) = self.tasks.get_mut(&status.task) else { continue };
            // A node speaks only of what it was told to run.
            if task.node.as_ref() != Some(node) || task.told.is_none() || task.status == *status {
                continue;
            }
            let former = std::mem::replace(&mut task.status, status.clone());
            task.changed = index;
            self.refresh_presence(&status.task);
            if self.note_failure(moment, &status.task, &former) {
                failing.extend(self.tasks.get(&status.task).map(|task| task.stack.clone()));
            }
            self.status_events(moment, &former, status);
            touched.push(status.task.clone());
        }
        let mut settling = Settling::new(self, moment, changes);
        for id in &touched {
            settling.mark_task(id);
        }
        failing.iter().for_each(|stack: &String| settling.mark_relocation(stack));
        for status in
            statuses.iter().filter(|status| status.state == TaskState::Removed && touched.contains(&status.task))
        {
            settling.remove_task(&status.task);
        }
        settling.run();
    }

    /// What happened between two statuses of one task.
    fn status_events(&mut self, moment: Moment, old: &TaskStatus, new: &TaskStatus) {
        let id = &new.task;
        let mut emit = |action: &'static str, attributes: &[(&'static str, String)]| {
            self.task_event(moment, id, action, attributes)
        };
        if old.container.is_empty() && !new.container.is_empty() {
            emit("create", &[("container", new.container.clone()), ("image", new.image_id.clone())]);
        }
        let code = [("exit_code", new.exit_code.map_or_else(String::new, |code| code.to_string()))];
        let ended = new.finished_at.is_some() && new.finished_at != old.finished_at;
        if ended {
            if new.oom_killed {
                emit("oom", &[]);
            }
            emit("die", &code);
        }
        if new.started_at.is_some() && new.started_at != old.started_at {
            emit(if old.started_at.is_some() { "restart" } else { "start" }, &[]);
        }
        if new.health != old.health && new.health != Health::None {
            let health = match new.health {
                Health::None | Health::Starting => "starting",
                Health::Healthy => "healthy",
                Health::Unhealthy => "unhealthy",
            };
            emit("health_status", &[("health", health.to_owned())]);
        }
        if new.state == old.state {
            return;
        }
        match new.state {
            TaskState::Paused => emit("pause", &[]),
            TaskState::Running if old.state == TaskState::Paused => emit("unpause", &[]),
            TaskState::Failed => emit("fail", &[("error", new.error.clone())]),
            TaskState::Exited if !ended => emit("die", &code),
            TaskState::Removed => emit("destroy", &[]),
            _ => {}
        }
    }

    fn take_applied(&mut self, moment: Moment, node: &NodeId, version: u64, changes: &mut Changes) {
        let Some(node) = self.nodes.get_mut(node).filter(|node| node.applied < version) else { return };
        node.applied = version;
        let mut settling = Settling::new(self, moment, changes);
        settling.mark_withdrawing();
        settling.run();
    }

    fn take_networks_removed(&mut self, moment: Moment, node: &NodeId, names: &[NetworkName], changes: &mut Changes) {
        for name in names {
            // One that is wanted is being made again by its node; only those that were to go count.
            if let Some(network) = self.networks.get_mut(name).filter(|network| is_leaving(network)) {
                network.nodes.remove(node);
            }
        }
        let mut settling = Settling::new(self, moment, changes);
        for name in names {
            settling.mark_network(name);
        }
        settling.run();
    }

    fn take_volumes_removed(
        &mut self,
        moment: Moment,
        node: &NodeId,
        names: &[(String, Option<String>)],
        changes: &mut Changes,
    ) {
        let index = self.index;
        for (name, error) in names {
            let Some(volume) = self.volumes.get_mut(name).filter(|volume| volume.removing && volume.users.is_empty())
            else {
                continue;
            };
            match error {
                None => {
                    volume.nodes.remove(node);
                }
                Some(error) => {
                    volume.removing = false;
                    volume.error.clone_from(error);
                    let stack = volume.stack.clone();
                    self.event(moment, "volume", "fail", name, name, &stack, &[("error", error.clone())]);
                }
            }
            if let Some(volume) = self.volumes.get_mut(name) {
                volume.changed = index;
            }
            changes.objects = true;
        }
        let stacks: Vec<String> =
            names.iter().filter_map(|(name, _)| self.volumes.get(name)).map(|volume| volume.stack.clone()).collect();
        let mut settling = Settling::new(self, moment, changes);
        for (name, _) in names {
            settling.mark_volume(name);
        }
        for stack in stacks {
            settling.mark_stack(&stack);
        }
        settling.run();
    }
}
