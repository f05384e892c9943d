//! How a node comes into a cluster, opens its own, and leaves.
//!
//! Joining and leaving change what the process is made of (a control plane or none, another log), so both end by starting it again; what
//! runs on the host is not touched by that.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use orch_api::client::connect_tls;
use orch_api::clock::{self, now_ms};
use orch_api::cluster::{
    Admission, AdmissionRequest, InitRequest, JoinRequest, Joined, PORT, Readmission, ReadmissionRequest,
};
use orch_api::error::{ErrorDetail, chain};
use orch_api::tls::{CLOCK_SKEW, MANAGER_NAME, Trust, client_config, node_name};
use orch_core::security::Candidate;
use orch_core::{Command, MemberChange, SecurityCommand, State};
use orch_spec::role::Role;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use super::renewal::renew_here;
use super::{CallError, Peers, post, whereabouts};
use crate::control::{Control, Invitation};
use crate::identity::authority::Authority;
use crate::identity::token::JoinToken;
use crate::identity::{ManagerAddress, Membership, write_private};
use crate::replica::FIRST;
use crate::server::Refused;

/// Clocks that are further apart are told of, milliseconds.
const CLOCKS_APART: u64 = 60_000;
/// How long joining may take: a new manager must be taken into the log by most of the others.
const JOIN_TIME: Duration = Duration::from_secs(30);

/// What a node needs of its process to come and go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its connections and identity.
    pub peers: Peers,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Version of orch.
    pub version: String,
    /// Takes sockets that others connect to.
    pub listeners: mpsc::Sender<TcpListener>,
    /// Wakes whoever starts the process again.
    pub restart: Arc<Notify>,
}

/// The file with a new manager's number.
const INVITATION: &str = "invitation.json";

fn failed(doing: &str, error: &dyn std::error::Error) -> ErrorDetail {
    ErrorDetail::new("failed", format!("{doing}: {}", chain(error)))
}

fn invalid(text: String) -> ErrorDetail {
    ErrorDetail::new("invalid", text)
}

/// `address`, `address:port` or `[address]:port` as an address with a port.
///
/// # Errors
/// When it is none. Names are not looked up: a cluster must come up when no name server does.
pub fn place(text: &str, what: &str) -> Result<SocketAddr, ErrorDetail> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = text.parse().or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)));
    address.map_err(|_| invalid(format!("{what} `{text}` is not an IP address, with or without a port")))
}

/// The address that this host is reached at by the rest of the world, as its routes say it. Nothing is sent.
fn default_address() -> Result<IpAddr, ErrorDetail> {
    let routed = || -> std::io::Result<IpAddr> {
        // RFC 5737: documentation, so that the default route decides.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    routed().map_err(|e| {
        let text = format!("this host has no default route that would say its address: {e}");
        ErrorDetail::new("invalid", text).with_hint("say it with --advertise-addr")
    })
}

/// Checks that others can be told an address, and binds what they connect to.
async fn listen(advertise: SocketAddr, listen: &str) -> Result<(TcpListener, SocketAddr), ErrorDetail> {
    if advertise.ip().is_unspecified() || advertise.ip().is_multicast() || advertise.port() == 0 {
        return Err(invalid(format!("{advertise} is not an address that others could connect to")));
    }
    let listen = if listen.is_empty() {
        let any: IpAddr = if advertise.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        SocketAddr::new(any, advertise.port())
    } else {
        place(listen, "--listen-addr")?
    };
    let listener = TcpListener::bind(listen).await.map_err(|e| {
        ErrorDetail::new("conflict", format!("cannot listen at {listen}: {e}"))
            .with_hint("another program may have the port: choose one with --listen-addr and --advertise-addr")
    })?;
    Ok((listener, listen))
}

/// Where this node already belongs; joining and opening are for those that belong nowhere.
fn require_alone(peers: &Peers) -> Result<(), ErrorDetail> {
    match &*peers.membership().borrow() {
        None => Ok(()),
        Some(membership) => {
            let text = format!("this node is a {} of cluster {} already", membership.role, membership.cluster);
            Err(ErrorDetail::new("conflict", text).with_hint("`orch cluster leave` first"))
        }
    }
}

/// Opens the cluster of one to others. Nothing that runs notices.
///
/// # Errors
/// When it is open, or its address cannot be.
pub async fn init(host: &Host, control: &Control, request: &InitRequest) -> Result<(), ErrorDetail> {
    require_alone(&host.peers)?;
    let advertise = if request.advertise.is_empty() {
        SocketAddr::new(default_address()?, PORT)
    } else {
        place(&request.advertise, "--advertise-addr")?
    };
    let (listener, listen) = listen(advertise, &request.listen).await?;
    let cluster = control.read(|state| state.cluster.clone());
    let node = host.peers.node().clone();
    // A former try may have come so far and no further.
    if !control.read(|state| state.security.is_open()) {
        let authority =
            Authority::make(&cluster, clock::now()).map_err(|e| failed("make the certificate authority", &e))?;
        let key = host.peers.identity().key_digest().map_err(|e| failed("make this node's key", &e))?;
        let open = SecurityCommand::Open {
            authority: authority.certificate().to_vec(),
            key: authority.key(),
            certificate_life: request.certificate_life,
            first: Candidate { node: node.clone(), key, address: advertise.to_string() },
        };
        propose(control, Command::Security(open)).await?;
    }
    renew_here(control, &host.peers).map_err(|e| failed("issue this node's certificate", &e))?;
    let address = advertise.to_string();
    announce(control, &node, &address).await?;
    let membership = Membership {
        cluster,
        role: Role::Manager,
        advertise: address.clone(),
        listen: listen.to_string(),
        translated: !whereabouts::is_own(advertise.ip()),
        managers: vec![ManagerAddress { node, address }],
    };
    host.peers.set_membership(membership).map_err(|e| failed("remember the cluster", &e))?;
    let _ = host.listeners.send(listener).await;
    Ok(())
}

/// Says in the log where this manager is.
///
/// # Errors
/// What the state machine has against it.
pub async fn announce(
    control: &Control,
    node: &orch_spec::assignment::NodeId,
    address: &str,
) -> Result<(), ErrorDetail> {
    let (is_empty, known) = control.read(|state| {
        let member = state.members.managers.values().find(|member| member.node == *node);
        (state.members.managers.is_empty(), member.map(|member| member.address.clone()))
    });
    if known.as_deref() == Some(address) {
        return Ok(());
    }
    let (node, address) = (node.clone(), address.to_owned());
    let change = if is_empty { MemberChange::Found { node, address } } else { MemberChange::Address { node, address } };
    propose(control, Command::Member(change)).await
}

async fn propose(control: &Control, command: Command) -> Result<(), ErrorDetail> {
    control.propose(command).await.map(drop).map_err(|e| Refused::from(e).into_detail())
}

/// Why a host cannot give up its own cluster of one.
fn owns(state: &State) -> Option<String> {
    let stacks: Vec<&str> = state.stacks.keys().map(String::as_str).collect();
    let held: Vec<&str> =
        state.networks.values().flat_map(|n| n.reservations.values()).map(|r| r.name.as_str()).collect();
    let list = |kind: &str, names: &[&str]| (!names.is_empty()).then(|| format!("{kind} {}", names.join(", ")));
    list("runs the stacks", &stacks).or_else(|| list("runs the containers", &held))
}

/// Joins the cluster of another host. When this returns, the process must start again.
///
/// # Errors
/// When this node belongs somewhere, runs something of its own, cannot reach the manager, or is not let in.
pub async fn join(host: &Host, control: Option<&Control>, request: &JoinRequest) -> Result<Joined, ErrorDetail> {
    require_alone(&host.peers)?;
    if let Some(control) = control {
        if control.read(|state| state.security.is_open()) {
            return Err(ErrorDetail::new("conflict", "this host has opened a cluster of its own")
                .with_hint("`orch cluster leave --force` gives it up"));
        }
        if let Some(what) = control.read(owns) {
            return Err(ErrorDetail::new("conflict", format!("this host {what}, which the cluster would not know"))
                .with_hint("take them down first; their volumes stay"));
        }
    }
    let token: JoinToken = request.token.parse().map_err(|e| failed("read the token", &e).with_token_hint())?;
    let manager = place(&request.manager, "the manager's address")?;
    let config = client_config(Trust::Digest(token.authority), None).map_err(|e| failed("prepare TLS", &e))?;
    let address = manager.to_string();
    let connecting = connect_tls(&address, MANAGER_NAME, config);
    let stream = match tokio::time::timeout(JOIN_TIME, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(not_connected(manager, &error)),
        Err(_) => return Err(ErrorDetail::new("unavailable", format!("{manager} does not answer"))),
    };
    let advertise = if request.advertise.is_empty() {
        let own = stream.get_ref().0.local_addr().map_err(|e| failed("find this host's own address", &e))?;
        SocketAddr::new(own.ip(), PORT)
    } else {
        place(&request.advertise, "--advertise-addr")?
    };
    let (listener, listen) = listen(advertise, &request.listen).await?;
    let own_request = host.peers.identity().request().map_err(|e| failed("make this node's key", &e))?;
    let asked = AdmissionRequest {
        token: token.id.clone(),
        secret: token.secret.clone(),
        node: host.peers.node().0.clone(),
        request: BASE64.encode(own_request),
        address: advertise.to_string(),
        version: host.version.clone(),
        now_ms: now_ms(),
    };
    let body = serde_json::to_vec(&asked).map_err(|e| failed("write the request", &e))?;
    let answer = match tokio::time::timeout(JOIN_TIME, post(stream, "/v1/peer/admission", body)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(CallError::Refused(detail))) => return Err(detail),
        Ok(Err(error)) => return Err(ErrorDetail::new("unavailable", format!("{manager}: {}", chain(&error)))),
        Err(_) => return Err(ErrorDetail::new("unavailable", format!("{manager} does not answer"))),
    };
    let admission: Admission = serde_json::from_slice(&answer).map_err(|e| failed("read the manager's answer", &e))?;
    // The port is free again before the next process wants it.
    drop(listener);
    keep(host, &admission, advertise, listen)?;
    let role = admission.role.clone();
    let warnings = clock_warning(now_ms(), admission.now_ms).into_iter().collect();
    Ok(Joined { cluster: admission.cluster, node: host.peers.node().0.clone(), role, warnings })
}

trait TokenHint {
    fn with_token_hint(self) -> Self;
}

impl TokenHint for ErrorDetail {
    fn with_token_hint(mut self) -> Self {
        "invalid".clone_into(&mut self.code);
        self.with_hint("`orch cluster token worker` or `orch cluster token manager` on a manager prints one")
    }
}

/// Why TLS did not come about, in words.
fn not_connected(manager: SocketAddr, error: &std::io::Error) -> ErrorDetail {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            let text = format!("{manager} does not belong to the cluster that this token is for");
            ErrorDetail::new("forbidden", text)
                .with_hint("compare the token and the address; somebody in between would look the same")
        }
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
        )) => ErrorDetail::new("invalid", format!("{manager} is a node of the cluster, but not a manager"))
            .with_hint("`orch cluster info` on any node says where the managers are"),
        Some(other) => {
            ErrorDetail::new("failed", format!("{manager} does not speak as a manager of orch does: {other}"))
        }
        None => ErrorDetail::new("unavailable", format!("cannot connect to {manager}: {error}"))
            .with_hint("has `orch cluster init` been said there, and is the port open?"),
    }
}

/// Remembers what was given: last the membership, which makes it count.
fn keep(host: &Host, admission: &Admission, advertise: SocketAddr, listen: SocketAddr) -> Result<(), ErrorDetail> {
    let decode = |text: &str| BASE64.decode(text).map_err(|e| failed("read the manager's answer", &e));
    let identity = host.peers.identity();
    let kept = identity.keep_certificate(&decode(&admission.certificate)?, &decode(&admission.authority)?);
    kept.map_err(|e| failed("keep the certificate", &e))?;
    let role: Role = admission.role.parse().map_err(|e| failed("read the manager's answer", &e))?;
    keep_invitation(host, admission.manager_number, &admission.cluster)?;
    let manager = |peer: &orch_api::cluster::PeerView| ManagerAddress {
        node: peer.node.as_str().into(),
        address: peer.address.clone(),
    };
    let membership = Membership {
        cluster: admission.cluster.clone(),
        role,
        advertise: advertise.to_string(),
        translated: !whereabouts::is_own(advertise.ip()),
        listen: listen.to_string(),
        managers: admission.managers.iter().map(manager).collect(),
    };
    host.peers.set_membership(membership).map_err(|e| failed("remember the cluster", &e))
}

/// Keeps a new manager's number, which its control plane starts with.
///
/// # Errors
/// The system's.
pub fn keep_invitation(host: &Host, number: Option<u64>, cluster: &str) -> Result<(), ErrorDetail> {
    let Some(id) = number else { return Ok(()) };
    let text = serde_json::to_vec(&Invitation { id, cluster: cluster.to_owned() })
        .map_err(|e| failed("write the invitation", &e))?;
    write_private(&host.data_dir.join("identity").join(INVITATION), &text)
        .map_err(|e| failed("keep the invitation", &e))
}

/// A new manager's number, when it has been given one.
pub fn invitation(data_dir: &Path) -> Option<Invitation> {
    let bytes = std::fs::read(data_dir.join("identity").join(INVITATION)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The number by which the other managers know this one.
pub fn number(data_dir: &Path) -> u64 {
    invitation(data_dir).map_or(FIRST, |invitation| invitation.id)
}

/// How long a manager that has lost its log asks the others: they may be starting, too.
const READMISSION_TIME: Duration = Duration::from_secs(60);
/// Pause between two rounds of asking them.
const READMISSION_PAUSE: Duration = Duration::from_millis(500);

/// This manager's control log is lost or must not be believed: it asks the others for another number, with which it learns everything from
/// them. What it has promised under the former one nobody counts on any more.
///
/// # Errors
/// When nobody could be asked, or they cannot do without it.
pub async fn readmit(host: &Host) -> Result<(), ErrorDetail> {
    let former = number(&host.data_dir);
    let body = serde_json::to_vec(&ReadmissionRequest { former }).map_err(|e| failed("write the request", &e))?;
    let until = tokio::time::Instant::now() + READMISSION_TIME;
    loop {
        let managers = host.peers.membership().borrow().as_ref().map(|m| m.managers.clone()).unwrap_or_default();
        let mut refused = ErrorDetail::new("unavailable", "no other manager is known");
        for manager in managers.into_iter().filter(|manager| manager.node != *host.peers.node()) {
            let name = if manager.node.0.is_empty() { MANAGER_NAME.to_owned() } else { node_name(&manager.node.0) };
            let asking = host.peers.post(&manager.address, &name, "/v1/peer/readmission", body.clone());
            match tokio::time::timeout(JOIN_TIME, asking).await {
                Ok(Ok(answer)) => {
                    let Readmission { node, manager_number, cluster } =
                        serde_json::from_slice(&answer).map_err(|e| failed("read the manager's answer", &e))?;
                    // A number that is another's, or was this one's, would let two vote as one.
                    if node != host.peers.node().0 || manager_number <= former {
                        let text = format!("{} gives number {manager_number} to {node}", manager.address);
                        return Err(ErrorDetail::new("failed", text));
                    }
                    tracing::warn!(number = manager_number, "this manager takes part anew");
                    return keep_invitation(host, Some(manager_number), &cluster);
                }
                Ok(Err(CallError::Refused(detail))) => refused = detail,
                Ok(Err(error)) => {
                    refused = ErrorDetail::new("unavailable", format!("{}: {}", manager.address, chain(&error)));
                }
                Err(_) => refused = ErrorDetail::new("unavailable", format!("{} does not answer", manager.address)),
            }
        }
        if tokio::time::Instant::now() > until {
            return Err(refused);
        }
        tokio::time::sleep(READMISSION_PAUSE).await;
    }
}

/// Says how far a clock is off, when that is far.
fn clock_warning(own: u64, theirs: u64) -> Option<String> {
    let apart = own.abs_diff(theirs);
    let side = if own > theirs { "ahead of" } else { "behind" };
    (theirs > 0 && apart > CLOCKS_APART).then(|| {
        let apart = roughly(apart);
        format!("this host's clock is {apart} {side} the cluster's; certificates tolerate 90 minutes, people do not")
    })
}

/// A number of milliseconds, for people.
fn roughly(milliseconds: u64) -> String {
    match (milliseconds + 500) / 1000 {
        seconds @ ..120 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

/// Refuses a node whose clock is off by more than certificates allow: it could talk to nobody, and its token would be used up. 0 = unknown.
///
/// # Errors
/// How far it is off.
pub fn check_clock(theirs: u64, own: u64) -> Result<(), ErrorDetail> {
    let apart = own.abs_diff(theirs);
    if theirs == 0 || apart <= CLOCK_SKEW * 1000 {
        return Ok(());
    }
    let side = if theirs > own { "ahead of" } else { "behind" };
    let text = format!("the node's clock is {} {side} the cluster's; certificates tolerate 90 minutes", roughly(apart));
    Err(ErrorDetail::new("conflict", text).with_hint("set the clock that is wrong, and join again"))
}

/// The mark of a node that has left and has yet to forget: what it leaves undone its next start does.
const LEFT: &str = "left";

/// Marks this node as one that has left. Its next start makes it somebody new and alone; volumes and images stay.
///
/// # Errors
/// The system's.
pub fn mark_left(host: &Host) -> Result<(), ErrorDetail> {
    write_private(&host.data_dir.join(LEFT), b"").map_err(|e| failed("note that this node has left", &e))
}

/// Whether this node has left and not yet forgotten.
pub fn has_left(data_dir: &Path) -> bool {
    data_dir.join(LEFT).exists()
}

/// Forgets the cluster of a node that has left: identity, log, its own id. Done again after a crash, it ends the same.
///
/// # Errors
/// The system's.
pub fn finish_leaving(data_dir: &Path) -> std::io::Result<()> {
    let gone = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(std::fs::remove_dir_all(data_dir.join("identity")))?;
    gone(std::fs::remove_dir_all(data_dir.join("control")))?;
    gone(std::fs::remove_file(data_dir.join("node-id")))?;
    gone(std::fs::remove_file(data_dir.join(LEFT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_usual_port_unless_they_say_another() {
        let read = |text| place(text, "it").map(|address| address.to_string()).map_err(|e| e.message);
        assert_eq!(read("192.0.2.1"), Ok("192.0.2.1:7373".to_owned()));
        assert_eq!(read("192.0.2.1:99"), Ok("192.0.2.1:99".to_owned()));
        assert_eq!(read("2001:db8::1"), Ok("[2001:db8::1]:7373".to_owned()));
        assert_eq!(read("[2001:db8::1]:99"), Ok("[2001:db8::1]:99".to_owned()));
        assert!(read("host.example").unwrap_err().contains("not an IP address"));
    }

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        assert_eq!(clock_warning(100_000, 130_000), None);
        assert!(clock_warning(3_660_000, 60_000).unwrap().contains("60 min ahead of"));
        assert!(clock_warning(60_000, 3_660_000).unwrap().contains("60 min behind"));
        assert!(clock_warning(60_000, 3_659_000).unwrap().contains("60 min behind"));
    }

    #[test]
    fn a_clock_that_certificates_do_not_tolerate_is_refused() {
        let hour = 3_600_000;
        assert_eq!(check_clock(0, 9 * hour), Ok(()), "one that has not said its time");
        assert_eq!(check_clock(10 * hour, 9 * hour), Ok(()));
        let refused = |theirs| check_clock(theirs, 9 * hour).unwrap_err().message;
        assert!(refused(13 * hour).contains("240 min ahead of the cluster's"));
        assert!(refused(5 * hour).contains("240 min behind the cluster's"));
    }
}
