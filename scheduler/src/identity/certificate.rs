//! What a certificate says of whoever shows it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orch_api::tls::CLOCK_SKEW;
use orch_spec::role::Role;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates begin so long before they are issued: a clock that is behind by less sees nothing odd.
pub const BACKDATED: Duration = Duration::from_secs(CLOCK_SKEW);

/// Whoever a certificate is about. That it was signed by the authority has been checked by TLS before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// A node's id or a client's name.
    pub name: String,
    /// What it says that it is.
    pub role: Role,
    /// The cluster.
    pub cluster: String,
}

/// A certificate, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it is about.
    pub subject: Subject,
    /// SHA-256 of the public key, hexadecimal.
    pub key: String,
    /// From when.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

/// No certificate of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is not one of orch's: {0}")]
pub struct Unreadable(String);

/// How a certificate stands to the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// It counts.
    Valid,
    /// It does not count yet, by more than clocks may differ.
    Early,
    /// It does not count any more, by more than clocks may differ.
    Expired,
}

impl Certificate {
    /// Reads one (DER).
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let (_, read) = X509Certificate::from_der(der).map_err(|e| Unreadable(e.to_string()))?;
        let subject = read.subject();
        let text = |found: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>, what: &str| {
            let found = found.and_then(|part| part.as_str().ok()).filter(|text| !text.is_empty());
            found.map(str::to_owned).ok_or_else(|| Unreadable(format!("it has no {what}")))
        };
        let role = text(subject.iter_organizational_unit().next(), "role")?;
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(Self {
            subject: Subject {
                name: text(subject.iter_common_name().next(), "name")?,
                role: role.parse().map_err(|e: orch_spec::role::UnknownRole| Unreadable(e.to_string()))?,
                cluster: text(subject.iter_organization().next(), "cluster")?,
            },
            key: super::key_digest(read.public_key().raw),
            not_before: time(read.validity().not_before.timestamp()),
            not_after: time(read.validity().not_after.timestamp()),
        })
    }

    /// How it stands to the time, with as much patience as clocks may differ.
    pub fn validity(&self, now: SystemTime) -> Validity {
        let skew = Duration::from_secs(CLOCK_SKEW);
        if now + skew < self.not_before {
            Validity::Early
        } else if now > self.not_after + skew {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }

    /// When to renew it: at `share` (0 to 1) of the way from half to four fifths of its life, so that those that were made together are not
    /// renewed together.
    pub fn renew_at(&self, share: f64) -> SystemTime {
        let issued = self.not_before + BACKDATED;
        let life = self.not_after.duration_since(issued).unwrap_or_default();
        issued + life.mul_f64(0.5 + 0.3 * share.clamp(0.0, 1.0))
    }
}
