//! A node's end of its conversation with the control plane: on a manager within the process, elsewhere with any manager that answers.
//!
//! Without a manager the node goes on with what it was last told. What it reports meanwhile is kept, the last status of each task only, and
//! is said again on every new connection: a report is the truth about now, so repeating it does no harm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use orch_api::clock::now_ms;
use orch_api::cluster::PeerView;
use orch_api::control::NodeLink;
use orch_api::error::ErrorDetail;
use orch_api::session::{self, SESSION, Said, Told};
use orch_api::tls::{MANAGER_NAME, node_name};
use orch_core::Turn;
use orch_spec::assignment::{Assignment, NodeFacts, NodeReport, TaskId, TaskState, TaskStatus};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, watch};

use super::forward::Leader;
use super::session::Delivery;
use super::{Lane, Peers, Upgraded, session as manager};
use crate::identity::ManagerAddress;
use crate::link::merge;

/// Reports of the agent that wait.
const QUEUE: usize = 256;
/// Longest pause between two tries to reach a manager: part of what a node still lacks after its link is back.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// First such pause.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What a worker knows of its cluster from its session.
#[derive(Debug, Clone, Default)]
pub struct Knowledge {
    /// Whether a session stands.
    pub connected: watch::Sender<bool>,
    /// Who leads; empty = nobody knows.
    pub leader: Arc<RwLock<String>>,
    /// Names that are never let in again.
    pub revoked: Arc<RwLock<BTreeSet<String>>>,
    /// The role has changed: a new certificate is wanted now.
    pub role_changed: Arc<Notify>,
}

/// Where containers of other nodes reach this one, which only the network of the cluster knows.
pub fn placed(peers: &Peers, report: NodeReport) -> NodeReport {
    let NodeReport::Facts(facts) = report else { return report };
    NodeReport::Facts(NodeFacts { address: advertised(peers).or(facts.address), ..facts })
}

/// The address that other nodes reach this one at; `None` for a host that is alone.
pub fn advertised(peers: &Peers) -> Option<IpAddr> {
    let membership = peers.membership();
    let known = membership.borrow();
    known.as_ref()?.advertise.parse::<std::net::SocketAddr>().ok().map(|address| address.ip())
}

/// Connects the agent of a manager's own process.
pub fn local(leader: Leader) -> NodeLink {
    let node = leader.peers.node().clone();
    let assignments = leader.control.assignments(node.clone());
    let (reports, mut receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut membership = leader.peers.membership();
        let mut facts: Option<NodeReport> = None;
        let mut waiting: Vec<NodeReport> = Vec::new();
        let mut turn = Turn { session: now_ms(), number: 0 };
        loop {
            tokio::select! {
                count = receiver.recv_many(&mut waiting, QUEUE) => if count == 0 { return },
                // The node's address is another one: its facts are said again with it.
                changed = membership.changed() => match (changed, &facts) {
                    (Ok(()), Some(facts)) => waiting.push(facts.clone()),
                    (Ok(()), None) => {}
                    (Err(_), _) => return,
                },
            }
            for report in merge(std::mem::take(&mut waiting)) {
                if matches!(report, NodeReport::Facts(_)) {
                    facts = Some(report.clone());
                }
                let report = placed(&leader.peers, report);
                turn.number += 1;
                loop {
                    match manager::propose(&leader, &node, turn, report.clone()).await {
                        Delivery::Taken => break,
                        // The clock was later in a former life of this process.
                        Delivery::Superseded(session) => turn.session = session.max(turn.session) + 1,
                        Delivery::Hopeless => return,
                    }
                }
            }
        }
    });
    NodeLink { assignments, reports }
}

/// What was reported and may have to be said again, without input and output.
#[derive(Debug, Default)]
pub struct Outbox {
    facts: Option<NodeReport>,
    statuses: BTreeMap<TaskId, TaskStatus>,
    /// Everything that was said on this connection and not acknowledged.
    waiting: VecDeque<Said>,
    number: u64,
}

impl Outbox {
    /// Takes a report in, and says how it is said on this connection.
    pub fn put(&mut self, report: NodeReport) -> Said {
        match &report {
            NodeReport::Facts(_) => self.facts = Some(report.clone()),
            NodeReport::Tasks(statuses) => {
                self.statuses.extend(statuses.iter().map(|status| (status.task.clone(), status.clone())));
            }
            _ => {}
        }
        self.number += 1;
        let said = Said { number: self.number, report };
        self.waiting.push_back(said.clone());
        said
    }

    /// The manager has everything up to this number.
    pub fn taken(&mut self, number: u64) {
        while self.waiting.front().is_some_and(|said| said.number <= number) {
            if let Some(Said { report: NodeReport::Tasks(statuses), .. }) = self.waiting.pop_front() {
                for status in statuses.iter().filter(|status| status.state == TaskState::Removed) {
                    // The last word about it, unless another has followed.
                    if self.statuses.get(&status.task) == Some(status) {
                        self.statuses.remove(&status.task);
                    }
                }
            }
        }
    }

    /// Everything that a new connection begins with.
    pub fn again(&mut self) -> Vec<Said> {
        let unsaid: Vec<NodeReport> = self.waiting.drain(..).map(|said| said.report).collect();
        self.number = 0;
        let mut reports: Vec<NodeReport> = self.facts.clone().into_iter().collect();
        if !self.statuses.is_empty() {
            reports.push(NodeReport::Tasks(self.statuses.values().cloned().collect()));
        }
        // Statuses are all in the list above.
        let rest = |report: &NodeReport| !matches!(report, NodeReport::Facts(_) | NodeReport::Tasks(_));
        reports.extend(unsaid.into_iter().filter(rest));
        reports.into_iter().map(|report| self.put(report)).collect()
    }
}

/// Connects the agent of a node that does not manage.
pub fn remote(peers: Peers, knowledge: Knowledge) -> NodeLink {
    let (reports, receiver) = mpsc::channel(QUEUE);
    let (sender, assignments) = watch::channel(Arc::default());
    tokio::spawn(converse(peers, knowledge, sender, receiver));
    NodeLink { assignments, reports }
}

async fn converse(
    peers: Peers,
    knowledge: Knowledge,
    assignments: watch::Sender<Arc<Assignment>>,
    mut reports: mpsc::Receiver<NodeReport>,
) {
    let mut outbox = Outbox::default();
    let (mut turn, mut pause) = (0, FIRST_PAUSE);
    let mut session = 0;
    loop {
        let managers = peers.membership().borrow().as_ref().map(|m| m.managers.clone()).unwrap_or_default();
        if let Some(manager) = managers.get(turn % managers.len().max(1)) {
            let since = assignments.borrow().version;
            session = now_ms().max(session + 1);
            match connect(&peers, manager, session, since).await {
                Ok(connection) => {
                    tracing::info!(manager = %manager.address, "connected to a manager");
                    pause = FIRST_PAUSE;
                    knowledge.connected.send_replace(true);
                    let conversation = Conversation {
                        peers: &peers,
                        knowledge: &knowledge,
                        assignments: &assignments,
                        outbox: &mut outbox,
                        reports: &mut reports,
                    };
                    let ended = conversation.hold(connection).await;
                    knowledge.connected.send_replace(false);
                    match ended {
                        Ok(End::Agent) => return,
                        Ok(End::Manager) => tracing::info!(manager = %manager.address, "the manager went away"),
                        Err(e) => tracing::info!(manager = %manager.address, error = %e, "the manager went away"),
                    }
                }
                Err(error) => {
                    if let super::CallError::Refused(detail) = &error
                        && let Some(last) = last_session(detail)
                    {
                        session = session.max(last);
                    }
                    // That it was removed has been said.
                    if !peers.is_removed() {
                        let error = orch_api::error::chain(&error);
                        tracing::info!(manager = %manager.address, error, "no session with this manager");
                    }
                }
            }
        }
        turn += 1;
        // What the agent says meanwhile is kept, so that it never waits for a manager.
        let over = peers.pause(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => break,
                report = reports.recv() => match report {
                    Some(report) => { outbox.put(placed(&peers, report)); }
                    None => return,
                },
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The number of this node's last session that a manager has heard of, when it refuses one for being older: this host's clock was set back.
fn last_session(detail: &ErrorDetail) -> Option<u64> {
    detail.subjects.first().filter(|_| detail.code == "superseded")?.parse().ok()
}

async fn connect(
    peers: &Peers,
    manager: &ManagerAddress,
    session: u64,
    since: u64,
) -> Result<Upgraded, super::CallError> {
    let name = if manager.node.0.is_empty() { MANAGER_NAME.to_owned() } else { node_name(&manager.node.0) };
    let path = format!("/v1/peer/session?number={session}&since={since}");
    let upgrading = peers.upgrade(Lane::Ordinary, &manager.address, &name, &path, SESSION);
    let elapsed = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    tokio::time::timeout(Duration::from_secs(5), upgrading).await.map_err(elapsed)?
}

/// Who has ended a conversation.
enum End {
    Agent,
    Manager,
}

struct Conversation<'a> {
    peers: &'a Peers,
    knowledge: &'a Knowledge,
    assignments: &'a watch::Sender<Arc<Assignment>>,
    outbox: &'a mut Outbox,
    reports: &'a mut mpsc::Receiver<NodeReport>,
}

impl Conversation<'_> {
    async fn hold(self, connection: Upgraded) -> std::io::Result<End> {
        let (reader, mut writer) = tokio::io::split(connection);
        let (heard, mut hearing) = mpsc::channel(16);
        // Frames are read by a task of their own: giving up half a frame for a report would lose the place in the stream.
        let reading = AbortOnDrop(tokio::spawn(read(reader, heard)));
        for said in self.outbox.again() {
            session::write(&mut writer, &said).await?;
        }
        let end = self.talk(&mut writer, &mut hearing).await;
        drop(reading);
        end
    }

    async fn talk(
        self,
        writer: &mut (impl AsyncWrite + Unpin),
        hearing: &mut mpsc::Receiver<Told>,
    ) -> std::io::Result<End> {
        let mut number = 0;
        let mut has_all = false;
        loop {
            tokio::select! {
                report = self.reports.recv() => {
                    let Some(report) = report else { return Ok(End::Agent) };
                    let said = self.outbox.put(placed(self.peers, report));
                    session::write(writer, &said).await?;
                }
                told = hearing.recv() => match told {
                    None => return Ok(End::Manager),
                    Some(Told::Complete(assignment)) => {
                        has_all = true;
                        self.assignments.send_replace(Arc::new(*assignment));
                    }
                    Some(Told::Change { number: next, change }) => {
                        number += 1;
                        let old = self.assignments.borrow().clone();
                        let new = if has_all && next == number { change.apply(&old).ok() } else { None };
                        // A gap: the next connection begins with everything.
                        let Some(new) = new else { return Ok(End::Manager) };
                        self.assignments.send_replace(Arc::new(new));
                    }
                    Some(Told::Taken(number)) => self.outbox.taken(number),
                    Some(Told::Role(_)) => self.knowledge.role_changed.notify_one(),
                    Some(Told::Managers { managers, leader, revoked }) => {
                        learn(self.peers, self.knowledge, managers, leader, revoked);
                    }
                },
            }
        }
    }
}

fn learn(peers: &Peers, knowledge: &Knowledge, managers: Vec<PeerView>, leader: String, revoked: Vec<String>) {
    *knowledge.leader.write().unwrap_or_else(PoisonError::into_inner) = leader;
    *knowledge.revoked.write().unwrap_or_else(PoisonError::into_inner) = revoked.into_iter().collect();
    let Some(mut membership) = peers.membership().borrow().clone() else { return };
    let known = |peer: PeerView| ManagerAddress { node: peer.node.into(), address: peer.address };
    membership.managers = managers.into_iter().map(known).collect();
    if let Err(error) = peers.set_membership(membership) {
        tracing::warn!(error = orch_api::error::chain(&error), "the managers could not be remembered");
    }
}

async fn read(mut reader: impl AsyncRead + Unpin, heard: mpsc::Sender<Told>) {
    while let Ok(Some(told)) = session::read(&mut reader).await {
        if heard.send(told).await.is_err() {
            return;
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(task: &str, state: TaskState) -> NodeReport {
        NodeReport::Tasks(vec![TaskStatus { task: task.into(), state, ..TaskStatus::default() }])
    }

    fn reports(said: Vec<Said>) -> Vec<NodeReport> {
        said.into_iter().map(|said| said.report).collect()
    }

    #[test]
    fn a_new_connection_begins_with_the_whole_truth_and_what_nobody_has_acknowledged() {
        let mut outbox = Outbox::default();
        outbox.put(NodeReport::Facts(NodeFacts::default()));
        outbox.put(tasks("a", TaskState::Starting));
        outbox.put(tasks("a", TaskState::Running));
        outbox.put(tasks("b", TaskState::Removed));
        outbox.put(NodeReport::NetworksRemoved(vec!["n".into()]));
        outbox.taken(3);
        let again = reports(outbox.again());
        assert_eq!(again[0], NodeReport::Facts(NodeFacts::default()));
        let NodeReport::Tasks(statuses) = &again[1] else { panic!("statuses come second") };
        let states: Vec<_> = statuses.iter().map(|s| (s.task.as_str(), s.state)).collect();
        assert_eq!(states, [("a", TaskState::Running), ("b", TaskState::Removed)]);
        assert_eq!(again[2..], [NodeReport::NetworksRemoved(vec!["n".into()])]);
        // All of it is taken: the next connection has only what is still true.
        outbox.taken(3);
        let again = reports(outbox.again());
        assert_eq!(again.len(), 2);
        assert_eq!(again[1], tasks("a", TaskState::Running));
    }
}
