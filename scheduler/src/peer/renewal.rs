//! Keeps a node's certificate young: a new one at a random point between half and four fifths of its life, and at once when the node's
//! role has changed. A manager signs its own, everybody else asks one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use orch_api::clock;
use orch_api::cluster::{CertificateAnswer, CertificateRequest};
use orch_api::tls::{MANAGER_NAME, node_name};
use orch_spec::role::Role;
use ring::rand::{SecureRandom, SystemRandom};

use super::Peers;
use crate::control::{Control, Leadership, Standing};
use crate::identity::authority::{Authority, NODE_LIFE, Request};
use crate::identity::certificate::Subject;

/// Pause after a renewal that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// The first pause of a manager that has lost its place in the log and is still to hear what it is now.
const SOON: Duration = Duration::from_millis(200);
/// How often a node that was told of another role asks for it, each time after twice as long a pause: six seconds.
const TOLD_TRIES: u32 = 6;
/// How long a manager that others do not take for one hopes for a leader.
const DOUBT: Duration = Duration::from_secs(1);
/// A clock may be set: the time is looked at at least so often.
const LOOK: Duration = Duration::from_secs(3600);

/// Somebody cannot be given a certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The cluster is not open.
    #[error("the cluster has no certificate authority yet")]
    Closed,
    /// The authority.
    #[error(transparent)]
    Authority(#[from] crate::identity::authority::AuthorityError),
    /// What is kept.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// TLS.
    #[error(transparent)]
    Peer(#[from] super::PeerError),
    /// Asking.
    #[error("ask a manager for a certificate")]
    Ask(#[from] super::CallError),
    /// The answer.
    #[error("the manager's answer is not understood")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nobody to ask.
    #[error("no manager is known that could be asked")]
    Nobody,
}

/// The authority as the state has it, and the life of the certificates that it gives to nodes.
///
/// # Errors
/// See [`RenewalError`].
pub fn authority(control: &Control) -> Result<(Authority, Duration), RenewalError> {
    let (certificate, key, life) = control.read(|state| {
        let security = &state.security;
        (security.authority.clone(), security.authority_key.clone(), security.certificate_life)
    });
    if certificate.is_empty() {
        return Err(RenewalError::Closed);
    }
    let life = if life == 0 { NODE_LIFE } else { Duration::from_secs(life) };
    Ok((Authority::read(&certificate, &key)?, life))
}

/// Milliseconds since the epoch.
pub fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What a node is by the replicated state.
fn role_of(control: &Control, peers: &Peers) -> Option<(String, Role)> {
    control.read(|state| {
        let member = state.security.members.get(peers.node())?;
        Some((state.cluster.clone(), member.role))
    })
}

/// A manager signs its own certificate.
///
/// # Errors
/// See [`RenewalError`].
pub fn renew_here(control: &Control, peers: &Peers) -> Result<(), RenewalError> {
    let (authority, life) = authority(control)?;
    let Some((cluster, role)) = role_of(control, peers) else { return Err(RenewalError::Closed) };
    let subject = Subject { name: peers.node().0.clone(), role, cluster };
    let request = Request::read(&peers.identity().request()?)?;
    let certificate = authority.issue(&subject, &request, clock::now(), life)?;
    peers.identity().keep_certificate(&certificate, authority.certificate())?;
    peers.reload()?;
    Ok(())
}

/// Asks any manager for the next certificate, by the one that there is: it may have expired.
///
/// # Errors
/// See [`RenewalError`].
pub async fn renew_there(peers: &Peers) -> Result<CertificateAnswer, RenewalError> {
    let managers = peers.membership().borrow().as_ref().map(|m| m.managers.clone()).unwrap_or_default();
    let body = CertificateRequest { request: BASE64.encode(peers.identity().request()?) };
    let body = serde_json::to_vec(&body).map_err(|e| RenewalError::Answer(e.into()))?;
    let mut last = RenewalError::Nobody;
    // A manager that was removed from the log knows nothing newer about itself.
    for manager in managers.into_iter().filter(|manager| manager.node != *peers.node()) {
        let name = if manager.node.0.is_empty() { MANAGER_NAME.to_owned() } else { node_name(&manager.node.0) };
        match peers.post(&manager.address, &name, "/v1/peer/certificate", body.clone()).await {
            Ok(answer) => {
                let answer: CertificateAnswer =
                    serde_json::from_slice(&answer).map_err(|e| RenewalError::Answer(e.into()))?;
                let certificate = BASE64.decode(&answer.certificate).map_err(|e| RenewalError::Answer(e.into()))?;
                let credentials = peers.identity().credentials()?.ok_or(RenewalError::Closed)?;
                peers.identity().keep_certificate(&certificate, &credentials.authority)?;
                peers.reload()?;
                return Ok(answer);
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn random_share() -> f64 {
    let mut bytes = [0; 4];
    // Without random numbers the middle is as good.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// Waits until this manager has lost its place in the log; for ever on a node that has none.
async fn removed(leadership: &mut Option<tokio::sync::watch::Receiver<Leadership>>) {
    let gone = match leadership {
        Some(known) => known.wait_for(|known| known.standing == Standing::Removed).await.is_ok(),
        None => false,
    };
    if !gone {
        std::future::pending::<()>().await;
    }
}

/// Waits until another manager has not taken this one for a manager, and nobody leads it: it may have been made a worker while it could
/// not be told. For ever on a worker. Who only knows less than this manager refuses it too, but then there is a leader, at the latest in a
/// moment.
async fn doubted(peers: &Peers, leadership: Option<&tokio::sync::watch::Receiver<Leadership>>) {
    let Some(leadership) = leadership else { return std::future::pending().await };
    loop {
        peers.doubted().await;
        tokio::time::sleep(DOUBT).await;
        if leadership.borrow().leader.is_none() {
            return;
        }
    }
}

/// Renews for ever. `role_changed` wakes it; `control` is there on a manager, which has this number. Ends when the role is another one than the
/// membership says, or the manager has another number by now, and tells it: the process starts again as what it has become.
pub async fn keep(
    peers: Peers,
    control: Option<Control>,
    number: u64,
    role_changed: std::sync::Arc<tokio::sync::Notify>,
) -> CertificateAnswer {
    let mut share = random_share();
    let mut pause = SOON;
    let mut tries = 0;
    let mut leadership = control.as_ref().map(Control::leadership);
    loop {
        let Some(certificate) = peers.certificate() else {
            // Alone: there is nothing to renew before the cluster is opened.
            let mut membership = peers.membership();
            let _ = membership.changed().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let due = certificate.renew_at(share);
        let wait = due.duration_since(clock::now()).unwrap_or_default();
        let known = leadership.clone();
        let (mut is_doubted, mut is_told) = (false, false);
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait.min(LOOK)) => continue,
                () = role_changed.notified() => is_told = true,
                () = removed(&mut leadership) => {}
                () = doubted(&peers, known.as_ref()) => is_doubted = true,
            }
        }
        let is_removed =
            is_doubted || leadership.as_ref().is_some_and(|known| known.borrow().standing == Standing::Removed);
        let renewed = match &control {
            Some(control) if !is_removed => renew_here(control, &peers).map(|()| None),
            _ => renew_there(&peers).await.map(Some),
        };
        match renewed {
            Ok(answer) => {
                share = random_share();
                let until = peers.certificate().map_or(0, |certificate| millis(certificate.not_after));
                tracing::info!(until, "this node's certificate was renewed");
                let is = peers.membership().borrow().as_ref().map(|membership| membership.role.to_string());
                // Numbers only grow: one that was demoted and promoted while it was away has a greater one.
                let is_another = |answer: &CertificateAnswer| {
                    is.is_some_and(|is| is != answer.role)
                        || is_removed && answer.manager_number.is_some_and(|given| given > number)
                };
                if let Some(answer) = answer.filter(is_another) {
                    return answer;
                }
                tries = if is_told && tries < TOLD_TRIES { tries + 1 } else { 0 };
                if tries > 0 {
                    // Whoever was asked may be a manager that has not heard of it yet.
                    tokio::time::sleep(SOON * 2u32.pow(tries - 1)).await;
                    role_changed.notify_one();
                }
                if is_removed {
                    // The record of the new role may follow the place in the log by a moment.
                    tokio::time::sleep(pause).await;
                    pause = AGAIN.min(2 * pause);
                }
            }
            Err(error) => {
                if !peers.is_removed() {
                    tracing::warn!(
                        error = orch_api::error::chain(&error),
                        "this node's certificate could not be renewed"
                    );
                }
                peers.pause(AGAIN).await;
            }
        }
    }
}
