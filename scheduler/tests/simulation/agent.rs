//! A node's agent without a node: containers on the virtual clock, and its end of the conversation with the managers.
//!
//! What it says and repeats is the real [`Outbox`]; what it is told are the real messages. Only containers are simulated: they take time to
//! be made, to start and to become well, and some fail.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use orch_api::session::{Said, Told};
use orch_scheduler::peer::link::Outbox;
use orch_spec::assignment::{
    Assignment, DesiredTask, Health, NodeFacts, NodeId, NodeReport, TaskAssignment, TaskId, TaskState, TaskStatus,
};
use orch_spec::model::HealthTest;

use crate::simulated_disk::Random;

const MS: u64 = 1_000;

/// See the module. Containers and what was last applied outlive the process; everything else is a process's.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) name: NodeId,
    number: u8,
    /// Its process lives.
    pub(crate) up: bool,
    /// It and the managers can reach each other.
    pub(crate) linked: bool,
    /// Since when it has been up and linked without a break.
    pub(crate) well_since: u64,
    pub(crate) session: Option<Session>,
    /// Which manager it tries next.
    pub(crate) turn: usize,
    pub(crate) told: Assignment,
    pub(crate) containers: BTreeMap<TaskId, Container>,
    pub(crate) outbox: Outbox,
    /// What it has said of each task in this life.
    said: BTreeMap<TaskId, TaskStatus>,
    said_facts: bool,
    said_applied: u64,
    said_gone: BTreeSet<String>,
    /// Starts and ends of containers that nobody asked for.
    pub(crate) accidents: u64,
}

/// A container.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) status: TaskStatus,
    /// When its next step is over.
    due: u64,
}

/// The agent's end of a connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) number: u64,
    pub(crate) place: usize,
    pub(crate) life: u64,
    has_all: bool,
    changes: u64,
}

/// What may happen to containers.
#[derive(Debug, Default)]
pub(crate) struct Luck {
    /// Images whose containers end at once.
    pub(crate) broken: BTreeSet<String>,
    /// Containers end now and then by themselves.
    pub(crate) accidents: bool,
}

impl Agent {
    pub(crate) fn new(number: u8) -> Self {
        Self {
            name: NodeId(format!("agent-{number}")),
            number,
            up: true,
            linked: true,
            well_since: 0,
            session: None,
            turn: usize::from(number),
            told: Assignment::default(),
            containers: BTreeMap::new(),
            outbox: Outbox::default(),
            said: BTreeMap::new(),
            said_facts: false,
            said_applied: 0,
            said_gone: BTreeSet::new(),
            accidents: 0,
        }
    }

    pub(crate) fn is_well(&self) -> bool {
        self.up && self.linked
    }

    /// A connection stands; gives what it begins with.
    pub(crate) fn connect(&mut self, number: u64, place: usize, life: u64) -> Vec<Said> {
        self.session = Some(Session { number, place, life, has_all: false, changes: 0 });
        self.outbox.again()
    }

    /// The process ends; containers go on.
    pub(crate) fn kill(&mut self) {
        (self.up, self.session) = (false, None);
        (self.told, self.outbox) = (Assignment::default(), Outbox::default());
        self.said.clear();
        (self.said_facts, self.said_applied) = (false, 0);
        self.said_gone.clear();
    }

    /// A manager says something; says whether the connection goes on.
    pub(crate) fn hear(&mut self, told: Told) -> bool {
        let Some(session) = &mut self.session else { return false };
        match told {
            Told::Complete(assignment) => {
                assert!(
                    assignment.version >= self.told.version,
                    "N1: {} is told {} after {}",
                    self.name,
                    assignment.version,
                    self.told.version
                );
                session.has_all = true;
                self.told = *assignment;
            }
            Told::Change { number, change } => {
                session.changes += 1;
                assert!(session.has_all && number == session.changes, "a session has a gap");
                let new = change.apply(&self.told).expect("a session has no gap");
                assert!(new.version > self.told.version, "N1: {} is told something older", self.name);
                self.told = new;
            }
            Told::Taken(number) => self.outbox.taken(number),
            Told::Managers { .. } | Told::Role(_) => {}
        }
        true
    }

    /// One look at everything; gives what is new to say. Without a connection it is kept.
    pub(crate) fn look(&mut self, now: u64, luck: &Luck, random: &mut Random) -> Vec<Said> {
        let mut reports = Vec::new();
        if !self.said_facts {
            self.said_facts = true;
            reports.push(NodeReport::Facts(self.facts()));
        }
        // Nothing is removed before the first assignment of this life has come.
        if self.told.version > 0 {
            let wanted: BTreeSet<&TaskId> = self.told.tasks.iter().map(|task| &task.id).collect();
            self.containers.retain(|id, _| wanted.contains(id));
            self.said.retain(|id, _| wanted.contains(id));
            let statuses = self.run_tasks(now, luck, random);
            if !statuses.is_empty() {
                reports.push(NodeReport::Tasks(statuses));
            }
            if self.told.endpoints_version > self.said_applied {
                self.said_applied = self.told.endpoints_version;
                reports.push(NodeReport::Applied { version: self.said_applied });
            }
            reports.extend(self.removed());
        }
        reports.into_iter().map(|report| self.outbox.put(report)).collect()
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            id: self.name.clone(),
            hostname: self.name.0.clone(),
            cpus: 4,
            memory: 8 << 30,
            platform: "linux/amd64".to_owned(),
            address: Some(IpAddr::from([192, 168, 7, self.number])),
            ..NodeFacts::default()
        }
    }

    /// Networks and volumes that are to go are gone at once; said once as long as they are to go.
    fn removed(&mut self) -> Vec<NodeReport> {
        let networks = self.told.removed_networks.clone();
        let volumes = self.told.removed_volumes.clone();
        let going: BTreeSet<String> =
            networks.iter().map(|name| name.0.clone()).chain(volumes.iter().cloned()).collect();
        let is_new = going.difference(&self.said_gone).next().is_some();
        self.said_gone = going;
        let mut reports = Vec::new();
        if is_new && !networks.is_empty() {
            reports.push(NodeReport::NetworksRemoved(networks));
        }
        if is_new && !volumes.is_empty() {
            reports.push(NodeReport::VolumesRemoved(volumes.into_iter().map(|name| (name, None)).collect()));
        }
        reports
    }

    fn run_tasks(&mut self, now: u64, luck: &Luck, random: &mut Random) -> Vec<TaskStatus> {
        let mut statuses = Vec::new();
        for task in &self.told.tasks {
            let fresh = || Container { status: TaskStatus { task: task.id.clone(), ..TaskStatus::default() }, due: 0 };
            let mut container = self.containers.remove(&task.id).unwrap_or_else(fresh);
            if container.due <= now {
                let before = container.status.state;
                container.status = next(&container.status, task, now, luck, random);
                if container.status.restarts > 0 && before == TaskState::Running && container.status.state != before {
                    self.accidents += 1;
                }
                container.due = now + (20 + random.below(600) as u64) * MS;
            }
            if self.said.get(&task.id) != Some(&container.status) {
                self.said.insert(task.id.clone(), container.status.clone());
                statuses.push(container.status.clone());
            }
            if container.status.state != TaskState::Removed {
                self.containers.insert(task.id.clone(), container);
            }
        }
        statuses
    }
}

/// What becomes of a container in one step.
fn next(now: &TaskStatus, task: &TaskAssignment, time: u64, luck: &Luck, random: &mut Random) -> TaskStatus {
    let mut next = now.clone();
    let lives = matches!(now.state, TaskState::Running | TaskState::Paused | TaskState::Restarting);
    let behind = now.restart_generation < task.restart_generation;
    let time = time / MS;
    match task.desired {
        DesiredTask::Removed | DesiredTask::Stopped if lives => {
            (next.state, next.exit_code, next.finished_at) = (TaskState::Exited, Some(143), Some(time));
        }
        DesiredTask::Removed => next.state = TaskState::Removed,
        DesiredTask::Created | DesiredTask::Running | DesiredTask::Paused if now.state < TaskState::Preparing => {
            next.state = TaskState::Preparing;
        }
        DesiredTask::Created | DesiredTask::Running | DesiredTask::Paused if now.state < TaskState::Created => {
            next.state = TaskState::Created;
            next.container = format!("c{}", task.id);
            next.created_at = Some(time);
        }
        DesiredTask::Running | DesiredTask::Paused
            if now.state == TaskState::Created || now.state == TaskState::Restarting || behind =>
        {
            next.state = TaskState::Running;
            next.restart_generation = task.restart_generation;
            next.started_at = Some(time);
            let checked = task.spec.healthcheck.as_ref();
            let checked = checked.is_some_and(|c| matches!(c.test, HealthTest::Command(_) | HealthTest::Shell(_)));
            next.health = if checked { Health::Starting } else { Health::None };
        }
        DesiredTask::Running if lives && luck.broken.contains(&task.spec.image) => end(&mut next, time),
        DesiredTask::Running if lives && luck.accidents && random.below(60) == 0 => end(&mut next, time),
        DesiredTask::Running if lives && now.health == Health::Starting => next.health = Health::Healthy,
        DesiredTask::Paused if now.state == TaskState::Running => next.state = TaskState::Paused,
        DesiredTask::Running if now.state == TaskState::Paused => next.state = TaskState::Running,
        _ => {}
    }
    next
}

/// It ends by itself, and is started again in place.
fn end(status: &mut TaskStatus, time: u64) {
    (status.state, status.exit_code, status.finished_at) = (TaskState::Restarting, Some(1), Some(time));
    (status.health, status.restarts) = (Health::None, status.restarts + 1);
}
