//! A manager's end of its conversation with a node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderValue, Response, StatusCode};
use orch_api::error::ErrorDetail;
use orch_api::session::{self, AssignmentChange, Said, Told};
use orch_core::{Command, State, Turn};
use orch_spec::assignment::{Assignment, NodeId, NodeReport};
use orch_spec::role::Role;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::Upgraded;
use super::forward::{Leader, Place, managers};
use super::guard::Admitted;
use crate::link::merge;

/// Reports that wait for the log. A node that is faster waits in turn.
const QUEUE: usize = 256;
/// How long a node may be told nothing because this manager's state is behind what the node has seen already.
const CATCH_UP: Duration = Duration::from_secs(10);

/// How long a manager that knows no leader keeps a node: it may have been cut off, or removed without having heard of it, and others may
/// know one. Longer than an election takes.
pub const LEADERLESS: Duration = Duration::from_secs(3);

/// Takes the promise of an upgraded connection out of a request.
///
/// # Errors
/// When it asks for no upgrade to this protocol.
pub fn upgrade(request: &mut Request, protocol: &'static str) -> Result<hyper::upgrade::OnUpgrade, ErrorDetail> {
    let asked = request.headers().get(UPGRADE).is_some_and(|value| value == protocol);
    if !asked {
        return Err(ErrorDetail::new("invalid", format!("this route needs `Upgrade: {protocol}`")));
    }
    Ok(hyper::upgrade::on(request))
}

/// `101 Switching Protocols`.
pub fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

/// Talks to a node until either end goes away, or the node is shut out. `since` is the version of the last assignment that it has seen:
/// it is told nothing older. `number` is that of the session: what it says is taken only until the node speaks in a later one.
pub async fn serve(leader: Leader, admitted: Admitted, number: u64, since: u64, connection: Upgraded) {
    let (reader, writer) = tokio::io::split(connection);
    let node = NodeId(admitted.name.clone());
    if !leader.control.wait_until(CATCH_UP, |state| state.index >= since).await {
        tracing::info!(%node, since, "a node knows more than this manager: it asks another");
        return;
    }
    let (said, reports) = mpsc::channel(QUEUE);
    let (took, taken) = mpsc::channel(QUEUE);
    let reading = tokio::spawn(read(reader, said));
    let connection = reading.abort_handle();
    let turn = Turn { session: number, number: 0 };
    let delivering = tokio::spawn(deliver(leader.clone(), node.clone(), turn, reports, took));
    let ended = tell(&leader, &admitted, writer, taken, reading).await;
    tracing::info!(%node, reason = ended.map_or_else(|e| e.to_string(), str::to_owned), "a node's session ended");
    delivering.abort();
    // Whoever reads has half of the connection: the node would wait at it until it has something to say, and go to no other manager.
    connection.abort();
}

async fn read(mut reader: impl AsyncRead + Unpin, said: mpsc::Sender<Said>) {
    while let Ok(Some(message)) = session::read(&mut reader).await {
        if said.send(message).await.is_err() {
            return;
        }
    }
}

/// Puts what the node says into the log, and acknowledges it.
async fn deliver(
    leader: Leader,
    node: NodeId,
    mut turn: Turn,
    mut reports: mpsc::Receiver<Said>,
    took: mpsc::Sender<u64>,
) {
    let mut waiting = Vec::new();
    while reports.recv_many(&mut waiting, QUEUE).await > 0 {
        let number = waiting.last().map_or(0, |said: &Said| said.number);
        let merged = merge(waiting.drain(..).map(|said| said.report).collect());
        for report in merged {
            turn.number += 1;
            match propose(&leader, &node, turn, report).await {
                Delivery::Taken => {}
                // Its session ends with this: the node goes on in its other one.
                Delivery::Superseded(_) | Delivery::Hopeless => return,
            }
        }
        if took.send(number).await.is_err() {
            return;
        }
    }
}

/// What became of a report.
pub(super) enum Delivery {
    /// It is in the log, or was refused for good.
    Taken,
    /// The node has said something newer in the session of this number.
    Superseded(u64),
    /// There is no control plane any more.
    Hopeless,
}

/// Proposes until it is taken, or there is no sense in going on.
pub(super) async fn propose(leader: &Leader, node: &NodeId, turn: Turn, report: NodeReport) -> Delivery {
    loop {
        match leader.propose(Command::Report { node: node.clone(), turn, report: report.clone() }).await {
            Ok(()) => return Delivery::Taken,
            Err(error) if error.code == "unavailable" => {}
            Err(error) if error.code == "superseded" => {
                return Delivery::Superseded(leader.control.read(|state| heard(state, node).session));
            }
            Err(error) => {
                // Repeating what is refused would hold up everything behind it.
                tracing::warn!(%node, %error, "a report of this node was not taken");
                return Delivery::Taken;
            }
        }
        if leader.place() == Place::Here && leader.control.is_gone() {
            return Delivery::Hopeless;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// When a node said what this manager's state has of it.
pub fn heard(state: &State, node: &NodeId) -> Turn {
    state.nodes.get(node).map(|node| node.heard).unwrap_or_default()
}

async fn tell(
    leader: &Leader,
    admitted: &Admitted,
    mut writer: impl AsyncWrite + Unpin,
    mut taken: mpsc::Receiver<u64>,
    mut reading: tokio::task::JoinHandle<()>,
) -> std::io::Result<&'static str> {
    let control = &leader.control;
    let node = NodeId(admitted.name.clone());
    let mut assignments = control.assignments(node.clone());
    let mut applied = control.watch();
    let mut leadership = control.leadership();
    let mut told: Option<Arc<Assignment>> = None;
    let mut number = 0;
    let mut known = None;
    let mut role_told = admitted.role;
    let mut lonely_since: Option<Instant> = None;
    loop {
        // Who manages, and whether this node still belongs: both follow from the state, and change seldom.
        let (role, present) = control.read(|state| {
            let role = state.security.admits(&admitted.name, Role::Manager, &admitted.key);
            let revoked: Vec<String> = state.security.revoked.keys().cloned().collect();
            (role, (managers(state), revoked))
        });
        let Some(role) = role else { return Ok("it was shut out") };
        if role != role_told {
            role_told = role;
            session::write(&mut writer, &Told::Role(role.to_string())).await?;
        }
        let leads = leadership.borrow_and_update().leader.clone().map_or_else(String::new, |leader| leader.0);
        lonely_since = if leads.is_empty() { lonely_since.or_else(|| Some(Instant::now())) } else { None };
        let patience = lonely_since.map(|since| LEADERLESS.saturating_sub(since.elapsed()));
        let present = (present.0, leads, present.1);
        if known.as_ref() != Some(&present) {
            let (managers, leader, revoked) = present.clone();
            session::write(&mut writer, &Told::Managers { managers, leader, revoked }).await?;
            known = Some(present);
        }
        let assignment = assignments.borrow_and_update().clone();
        if assignment.version > 0 && told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &assignment)) {
            let message = match &told {
                None => Told::Complete(Box::new((*assignment).clone())),
                Some(old) => {
                    number += 1;
                    Told::Change { number, change: Box::new(AssignmentChange::between(old, &assignment)) }
                }
            };
            session::write(&mut writer, &message).await?;
            told = Some(assignment);
        }
        tokio::select! {
            changed = assignments.changed() => if changed.is_err() { return Ok("another session of the node began") },
            changed = applied.changed() => if changed.is_err() { return Ok("the control plane is gone") },
            changed = leadership.changed() => if changed.is_err() { return Ok("the control plane is gone") },
            number = taken.recv() => match number {
                Some(number) => session::write(&mut writer, &Told::Taken(number)).await?,
                None => return Ok("its reports are not taken: it has another session, or there is no control plane"),
            },
            _ = &mut reading => return Ok("the node went away"),
            () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => {
                return Ok("this manager knows no leader");
            }
        }
    }
}
