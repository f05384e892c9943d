//! Who may call what: read from the caller's certificate, the cluster's members, and [`orch_api::access`], before any handler runs.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{MatchedPath, Request, State as Inject};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use orch_api::access::{self, Access};
use orch_api::clock;
use orch_api::error::{ErrorDetail, REMOVED};
use orch_api::tls::whenever_valid;
use orch_spec::role::Role;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::Peers;
use crate::control::Control;
use crate::identity::certificate::{Certificate, Validity};
use crate::server::Refused;

/// Who calls.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Somebody on this host who may open the unix socket.
    Socket,
    /// Somebody who has shown no certificate.
    Nobody,
    /// Somebody with a certificate of this cluster's authority; whether it still counts has not been looked at.
    Certified(Arc<Certificate>),
}

/// Who calls, when that is somebody who is let in: for handlers, which must not believe what a request says of itself.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The node's id or the client's name.
    pub name: String,
    /// What it is, by its certificate and by its record.
    pub role: Role,
    /// SHA-256 of its public key, hexadecimal.
    pub key: String,
}

/// Whether a certificate counts.
pub trait Admission: Send + Sync + 'static {
    /// As what its holder is let in; the time has been looked at.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, certificate: &Certificate) -> Result<Role, ErrorDetail>;
}

/// A manager knows all members.
#[derive(Debug, Clone)]
pub struct Members {
    /// What it knows them by.
    pub control: Control,
    /// Its own membership.
    pub peers: Peers,
}

impl Admission for Members {
    fn admit(&self, certificate: &Certificate) -> Result<Role, ErrorDetail> {
        let subject = &certificate.subject;
        let (is_open, cluster, role, is_removed) = self.control.read(|state| {
            let security = &state.security;
            let admitted = security.admits(&subject.name, subject.role, &certificate.key);
            let is_removed = subject.role.is_node() && security.revoked.contains_key(&subject.name);
            (security.is_open(), state.cluster.clone(), admitted, is_removed)
        });
        if !is_open {
            // A new manager has no state before another one has sent it: until then a manager's certificate must do.
            let own = self.peers.membership().borrow().as_ref().map(|membership| membership.cluster.clone());
            if subject.role == Role::Manager && own.as_ref() == Some(&subject.cluster) {
                return Ok(Role::Manager);
            }
            return Err(ErrorDetail::new("unavailable", "this manager has just joined and knows nobody yet"));
        }
        if cluster != subject.cluster {
            return Err(ErrorDetail::new("forbidden", format!("this is not cluster {}", subject.cluster)));
        }
        role.ok_or_else(|| {
            let (role, name) = (subject.role, &subject.name);
            if is_removed {
                let hint = "`orch cluster leave` on that host gives it a new identity; then it can join again";
                return ErrorDetail::new(REMOVED, format!("{role} {name} was removed from this cluster"))
                    .with_hint(hint);
            }
            let hint = "a client asks for a new certificate, a node for `orch cluster leave --force` and a join";
            ErrorDetail::new("forbidden", format!("{role} {name} is not known here, or was shut out")).with_hint(hint)
        })
    }
}

/// A worker serves managers only, and knows whom they have shut out.
#[derive(Debug, Clone, Default)]
pub struct ManagersOnly {
    /// The cluster.
    pub cluster: String,
    /// Names that are never let in again.
    pub revoked: Arc<RwLock<BTreeSet<String>>>,
}

impl Admission for ManagersOnly {
    fn admit(&self, certificate: &Certificate) -> Result<Role, ErrorDetail> {
        let subject = &certificate.subject;
        let is_revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(&subject.name);
        if subject.role != Role::Manager || subject.cluster != self.cluster || is_revoked {
            let text = "this node is a worker: it serves managers only";
            return Err(ErrorDetail::new("forbidden", text).with_hint("ask a manager"));
        }
        Ok(Role::Manager)
    }
}

/// Puts a guard before a router: what the table does not allow never reaches a handler.
pub fn guarded(router: Router, admission: Arc<dyn Admission>) -> Router {
    router.layer(from_fn_with_state(admission, check))
}

async fn check(Inject(admission): Inject<Arc<dyn Admission>>, mut request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let rule = path.as_deref().and_then(|path| access::of(request.method().as_str(), path));
    // Whoever is no caller at all came in by a way that forgot to say so.
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Nobody);
    match judge(&caller, rule, admission.as_ref(), clock::now()) {
        Ok(admitted) => {
            if let Some(admitted) = admitted {
                request.extensions_mut().insert(admitted);
            }
            next.run(request).await
        }
        Err(mut detail) => {
            detail.message = format!("{} {}: {}", request.method(), request.uri().path(), detail.message);
            Refused::from(detail).into_response()
        }
    }
}

/// Decides; `None` in the answer = let in without a name.
fn judge(
    caller: &Caller,
    rule: Option<Access>,
    admission: &dyn Admission,
    now: SystemTime,
) -> Result<Option<Admitted>, ErrorDetail> {
    if matches!(caller, Caller::Socket) {
        return Ok(None);
    }
    // A route that the table does not know is for nobody, and nobody is told whether it exists.
    let rule = rule.unwrap_or(Access::Socket);
    let Caller::Certified(certificate) = caller else {
        if rule == Access::Everybody {
            return Ok(None);
        }
        return Err(ErrorDetail::new("unauthenticated", format!("this needs {}", rule.needs()))
            .with_hint("`orch cluster client create NAME` on a manager makes a client certificate"));
    };
    let subject = &certificate.subject;
    match certificate.validity(now) {
        Validity::Valid => {}
        Validity::Expired if rule == Access::Renewal => {}
        Validity::Expired => return Err(about_time(certificate, now, "expired", certificate.not_after)),
        Validity::Early => return Err(about_time(certificate, now, "begins", certificate.not_before)),
    }
    let role = admission.admit(certificate)?;
    if !rule.allows(role) {
        let text = format!("{role} {} may not do this; it needs {}", subject.name, rule.needs());
        return Err(ErrorDetail::new("forbidden", text));
    }
    Ok(Some(Admitted { name: subject.name.clone(), role, key: certificate.key.clone() }))
}

fn about_time(certificate: &Certificate, now: SystemTime, what: &str, when: SystemTime) -> ErrorDetail {
    let name = &certificate.subject.name;
    let text = match now.duration_since(when) {
        Ok(since) => format!("the certificate of {name} {what} {} ago by this host's clock", hours(since)),
        Err(ahead) => format!("the certificate of {name} {what} in {} by this host's clock", hours(ahead.duration())),
    };
    ErrorDetail::new("unauthenticated", text).with_hint("are the clocks of both hosts right?")
}

fn hours(time: Duration) -> String {
    let minutes = (time.as_secs() + 30) / 60;
    if minutes < 120 { format!("{minutes} min") } else { format!("{} h", (minutes + 30) / 60) }
}

/// Clients' certificates by their signatures alone: the time is looked at by the guard, which can say what is wrong and lets an expired
/// node ask for its next one.
#[derive(Debug)]
pub(super) struct WheneverValid(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for WheneverValid {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        whenever_valid(UnixTime::since_unix_epoch(clock::since_epoch()), |now| {
            self.0.verify_client_cert(end_entity, intermediates, now)
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::certificate::Subject;

    struct Everyone;

    impl Admission for Everyone {
        fn admit(&self, certificate: &Certificate) -> Result<Role, ErrorDetail> {
            Ok(certificate.subject.role)
        }
    }

    fn caller(role: Role, now: SystemTime) -> Caller {
        let hour = Duration::from_secs(3600);
        Caller::Certified(Arc::new(Certificate {
            subject: Subject { name: "x".to_owned(), role, cluster: "c".to_owned() },
            key: String::new(),
            not_before: now - hour,
            not_after: now + hour,
        }))
    }

    fn code(caller: &Caller, rule: Option<Access>, now: SystemTime) -> String {
        match judge(caller, rule, &Everyone, now) {
            Ok(_) => "ok".to_owned(),
            Err(detail) => format!("{} {}", detail.code, detail.message),
        }
    }

    #[test]
    fn without_a_certificate_only_admission_may_be_asked_for() {
        let now = SystemTime::now();
        for rule in access::RULES {
            let answer = code(&Caller::Nobody, Some(rule.access), now);
            assert_eq!(answer == "ok", rule.path == "/v1/peer/admission", "{} {}", rule.method, rule.path);
        }
        assert!(code(&Caller::Nobody, None, now).starts_with("unauthenticated"));
    }

    #[test]
    fn a_route_that_the_table_lacks_is_for_nobody_but_the_socket() {
        let now = SystemTime::now();
        for role in Role::ALL {
            assert!(code(&caller(role, now), None, now).starts_with("forbidden"), "{role}");
        }
        assert_eq!(code(&Caller::Socket, None, now), "ok");
    }

    #[test]
    fn an_expired_certificate_may_ask_for_the_next_and_for_nothing_else() {
        let (made, later) = (SystemTime::now(), SystemTime::now() + Duration::from_secs(4 * 3600));
        let node = caller(Role::Worker, made);
        for rule in access::RULES.iter().filter(|rule| rule.access.allows(Role::Worker)) {
            let answer = code(&node, Some(rule.access), later);
            // What needs no certificate is not for those who have one that does not count.
            assert_eq!(answer == "ok", rule.access == Access::Renewal, "{}: {answer}", rule.path);
        }
        let answer = code(&node, Some(Access::Node), later);
        assert!(answer.contains("expired 3 h ago by this host's clock"), "{answer}");
        assert_eq!(code(&node, Some(Access::Node), made + Duration::from_secs(2 * 3600)), "ok", "an hour is forgiven");
        let early = code(&node, Some(Access::Node), made - Duration::from_secs(4 * 3600));
        assert!(early.contains("begins in 3 h by this host's clock"), "{early}");
    }
}
