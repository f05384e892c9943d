//! The cluster's own certificate authority.

use std::time::{Duration, SystemTime};

use orch_api::tls::{MANAGER_NAME, node_name};
use orch_core::security::Hidden;
use orch_spec::role::Role;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};

use super::certificate::{BACKDATED, Subject};

/// The authority itself lives as long as a cluster may: replacing it is an act of its own.
const LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// A node's certificate lives so long unless the cluster says otherwise: a stolen one is soon worthless, and a node that was switched off
/// for longer gets a new one by its key.
pub const NODE_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A client's certificate lives so long unless asked otherwise.
pub const CLIENT_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

/// The authority cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Making its own key and certificate.
    #[error("make the certificate authority")]
    Make(#[source] rcgen::Error),
    /// Reading them.
    #[error("read the certificate authority")]
    Read(#[source] rcgen::Error),
    /// Somebody's request.
    #[error("the request for a certificate is not understood, or is not signed by the key that it is for")]
    Request(#[source] rcgen::Error),
    /// Signing.
    #[error("issue a certificate")]
    Issue(#[source] rcgen::Error),
}

/// A request for a certificate whose signature has been checked: whoever sent it has the key.
pub struct Request(CertificateSigningRequestParams);

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Request").field(&self.key_digest()).finish()
    }
}

impl Request {
    /// Reads and checks one (PKCS #10, DER).
    ///
    /// # Errors
    /// [`AuthorityError::Request`].
    pub fn read(der: &[u8]) -> Result<Self, AuthorityError> {
        let read = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
        read.map(Self).map_err(AuthorityError::Request)
    }

    /// SHA-256 of the public key, hexadecimal.
    pub fn key_digest(&self) -> String {
        super::key_digest(&self.0.public_key.subject_public_key_info())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one for a cluster.
    ///
    /// # Errors
    /// [`AuthorityError::Make`].
    pub fn make(cluster: &str, now: SystemTime) -> Result<Self, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "orch");
        params.distinguished_name.push(DnType::OrganizationName, cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + LIFE).into();
        let key = KeyPair::generate().map_err(AuthorityError::Make)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Make)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// The one that the state holds.
    ///
    /// # Errors
    /// [`AuthorityError::Read`].
    pub fn read(certificate: &[u8], key: &Hidden) -> Result<Self, AuthorityError> {
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.0.as_slice())).map_err(AuthorityError::Read)?;
        let certificate = CertificateDer::from(certificate.to_vec());
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Read)?;
        Ok(Self { certificate, issuer })
    }

    /// Its certificate (DER).
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its private key (PKCS #8).
    pub fn key(&self) -> Hidden {
        Hidden(self.issuer.key().serialize_der())
    }

    /// Issues a certificate (DER) for the key of a request. What else the request asks for is not looked at.
    ///
    /// # Errors
    /// [`AuthorityError::Issue`].
    pub fn issue(
        &self,
        subject: &Subject,
        request: &Request,
        now: SystemTime,
        life: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        self.sign(subject, &request.0.public_key, now, life)
    }

    fn sign(
        &self,
        subject: &Subject,
        key: &impl PublicKeyData,
        now: SystemTime,
        life: Duration,
    ) -> Result<Vec<u8>, AuthorityError> {
        let names = match subject.role {
            Role::Manager => vec![node_name(&subject.name), MANAGER_NAME.to_owned()],
            Role::Worker => vec![node_name(&subject.name)],
            Role::Read | Role::Deploy | Role::Admin => Vec::new(),
        };
        let mut params = CertificateParams::new(names).map_err(AuthorityError::Issue)?;
        params.distinguished_name.push(DnType::CommonName, subject.name.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, subject.role.as_str());
        params.distinguished_name.push(DnType::OrganizationName, subject.cluster.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.role.is_node() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let mut serial = [0; 16];
        // Twenty octets at most and positive (RFC 5280 §4.1.2.2); without random numbers, rcgen derives one from the key.
        if SystemRandom::new().fill(&mut serial).is_ok() {
            serial[0] &= 0x7f;
            params.serial_number = Some(SerialNumber::from_slice(&serial));
        }
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + life).into();
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(key, &self.issuer).map_err(AuthorityError::Issue)?;
        Ok(signed.der().to_vec())
    }

    /// A key and its certificate in one, for a client that has no key yet: the key (PKCS #8, PEM) and the certificate (DER).
    ///
    /// # Errors
    /// [`AuthorityError::Issue`].
    pub fn issue_with_key(
        &self,
        subject: &Subject,
        now: SystemTime,
        life: Duration,
    ) -> Result<(String, Vec<u8>), AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Issue)?;
        let certificate = self.sign(subject, &key, now, life)?;
        Ok((key.serialize_pem(), certificate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::identity::certificate::{Certificate, Validity};

    fn subject(role: Role) -> Subject {
        Subject { name: "n1".to_owned(), role, cluster: "c1".to_owned() }
    }

    #[test]
    fn a_certificate_says_who_what_and_where_and_lasts_as_long_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::at(dir.path().join("identity"));
        let now = SystemTime::now();
        let authority = Authority::make("c1", now).unwrap();
        let again = Authority::read(authority.certificate(), &authority.key()).unwrap();
        let request = Request::read(&identity.request().unwrap()).unwrap();
        let life = Duration::from_secs(1000);
        let der = again.issue(&subject(Role::Worker), &request, now, life).unwrap();
        let read = Certificate::read(&der).unwrap();
        assert_eq!(read.subject, subject(Role::Worker));
        assert_eq!(read.key, identity.key_digest().unwrap());
        assert_eq!(read.key, request.key_digest());
        let hour = Duration::from_secs(3600);
        assert_eq!(read.validity(now), Validity::Valid);
        assert_eq!(read.validity(now - hour), Validity::Valid, "a clock may be an hour behind");
        assert_eq!(read.validity(now + life + hour), Validity::Valid, "or ahead");
        assert_eq!(read.validity(now - 4 * hour), Validity::Early);
        assert_eq!(read.validity(now + life + 2 * hour), Validity::Expired);
        for share in [0.0, 0.5, 1.0] {
            let at = read.renew_at(share).duration_since(now).unwrap();
            assert!(at >= Duration::from_secs(498) && at <= Duration::from_secs(802), "{at:?}");
        }
    }

    #[test]
    fn a_request_that_its_key_has_not_signed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut der = Identity::at(dir.path()).request().unwrap();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(matches!(Request::read(&der), Err(AuthorityError::Request(_))));
        assert!(Request::read(b"nothing").is_err());
    }

    #[test]
    fn what_is_kept_is_for_its_owner_only_and_read_again() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::at(dir.path().join("identity"));
        assert!(identity.credentials().unwrap().is_none());
        let authority = Authority::make("c1", SystemTime::now()).unwrap();
        let request = Request::read(&identity.request().unwrap()).unwrap();
        let der = authority.issue(&subject(Role::Manager), &request, SystemTime::now(), NODE_LIFE).unwrap();
        identity.keep_certificate(&der, authority.certificate()).unwrap();
        let credentials = identity.credentials().unwrap().unwrap();
        assert_eq!(credentials.chain[0].as_ref(), der);
        assert_eq!(credentials.chain[1], *authority.certificate());
        for entry in std::fs::read_dir(dir.path().join("identity")).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o77, 0, "{:?}", entry.path());
        }
        identity.forget().unwrap();
        assert!(identity.credentials().unwrap().is_none());
        assert_ne!(identity.key_digest().unwrap(), request.key_digest(), "the next cluster sees somebody new");
    }
}
