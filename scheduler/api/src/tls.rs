//! Mutual TLS between nodes, and from remote clients to managers: TLS 1.3 only, one authority, names that say who must answer.
//!
//! Nobody is known by an address. A node's certificate carries `<id>.node.orch.internal`, and a manager's also `manager.orch.internal`;
//! whoever connects says which of these it wants, so that a worker cannot pose as a manager and an address may change hands.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Clocks may differ by so much, seconds: an hour is what a machine with the wrong daylight saving is off.
pub const CLOCK_SKEW: u64 = 90 * 60;
/// The name that every manager's certificate has.
pub const MANAGER_NAME: &str = "manager.orch.internal";

/// The name that a node's certificate has.
pub fn node_name(id: &str) -> String {
    format!("{id}.node.orch.internal")
}

/// SHA-256, as certificates are pinned by.
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().unwrap_or([0; 32])
}

/// The cryptography that everything uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// What is in it.
    #[error("use the certificates")]
    Use(#[from] rustls::Error),
    /// What is in it.
    #[error("trust the certificate of the authority")]
    Trust(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A certificate with its key, and the authority that it comes from.
#[derive(Debug)]
pub struct Credentials {
    /// The authority.
    pub authority: CertificateDer<'static>,
    /// The certificate and those between it and the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { authority: self.authority.clone(), chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Credentials {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` of a folder.
    ///
    /// # Errors
    /// When one is not there or holds something else.
    pub fn read(folder: &Path) -> Result<Self, TlsError> {
        let at = |name: &str| folder.join(name);
        let wrong = |path: PathBuf| move |source| TlsError::Read { path, source };
        let authority = CertificateDer::from_pem_file(at("ca.pem")).map_err(wrong(at("ca.pem")))?;
        let chain = CertificateDer::pem_file_iter(at("cert.pem")).map_err(wrong(at("cert.pem")))?;
        let chain = chain.collect::<Result<Vec<_>, _>>().map_err(wrong(at("cert.pem")))?;
        let key = PrivateKeyDer::from_pem_file(at("key.pem")).map_err(wrong(at("key.pem")))?;
        Ok(Self { authority, chain, key })
    }
}

/// Whom to believe.
#[derive(Debug, Clone)]
pub enum Trust {
    /// This authority.
    Authority(CertificateDer<'static>),
    /// The authority whose certificate has this SHA-256, which the other side must show: all that a join token knows. Times are not
    /// looked at, since whoever joins may have a clock that is far off.
    Digest([u8; 32]),
}

/// How to connect.
///
/// # Errors
/// When the certificates cannot be used.
pub fn client_config(trust: Trust, credentials: Option<&Credentials>) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Authority(authority) => Arc::new(Known(verifier(authority)?)),
        Trust::Digest(digest) => Arc::new(Pinned { digest, provider: provider() }),
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(Arc::new(match credentials {
        Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        None => builder.with_no_client_auth(),
    }))
}

fn verifier(authority: CertificateDer<'static>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    builder.build().map_err(|e| TlsError::Trust(Box::new(e)))
}

fn by_our_clock() -> UnixTime {
    UnixTime::since_unix_epoch(crate::clock::since_epoch())
}

/// Whether a certificate is refused for the time alone.
fn is_about_time(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let rustls::Error::InvalidCertificate(error) = error else { return false };
    matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

/// Tries a check at the time, and as far before and after it as clocks may differ.
///
/// # Errors
/// That of the check at the time.
pub fn about<T>(now: UnixTime, check: impl Fn(UnixTime) -> Result<T, rustls::Error>) -> Result<T, rustls::Error> {
    let at = |seconds| check(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)));
    check(now).or_else(|error| {
        if !is_about_time(&error) {
            return Err(error);
        }
        at(now.as_secs().saturating_sub(CLOCK_SKEW))
            .or_else(|_| at(now.as_secs() + CLOCK_SKEW))
            .map_err(|_| in_words(error))
    })
}

/// What is wrong with a certificate's time, with the suspect named.
fn in_words(error: rustls::Error) -> rustls::Error {
    let minutes = |seconds: u64| (seconds + 30) / 60;
    let text = match &error {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            let ago = minutes(time.as_secs().saturating_sub(not_after.as_secs()));
            format!("its certificate expired {ago} min ago by this host's clock")
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            let ahead = minutes(not_before.as_secs().saturating_sub(time.as_secs()));
            format!("its certificate begins in {ahead} min by this host's clock")
        }
        _ => return error,
    };
    rustls::Error::General(format!("{text}; are the clocks of both hosts right?"))
}

/// Tries a check at the time, and else when the certificate is valid, whatever this host's clock says.
///
/// # Errors
/// What is wrong with it beside the time.
pub fn whenever_valid<T>(
    now: UnixTime,
    check: impl Fn(UnixTime) -> Result<T, rustls::Error>,
) -> Result<T, rustls::Error> {
    check(now).or_else(|error| match &error {
        rustls::Error::InvalidCertificate(
            CertificateError::ExpiredContext { not_after: valid, .. }
            | CertificateError::NotValidYetContext { not_before: valid, .. },
        ) => check(*valid),
        _ => Err(error),
    })
}

macro_rules! signatures_by {
    ($self:ident => $provider:expr) => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
        }

        fn verify_tls13_signature(
            &$self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &$provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&$self) -> Vec<SignatureScheme> {
            $provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Servers of a known authority.
#[derive(Debug)]
struct Known(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        about(by_our_clock(), |now| {
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        })
    }

    signatures_by!(self => provider());
}

/// Servers of an authority of which only the digest is known.
#[derive(Debug)]
struct Pinned {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = intermediates.iter().find(|shown| digest(shown) == self.digest);
        let authority = shown.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let verifier = verifier(authority.clone().into_owned()).map_err(|e| rustls::Error::General(e.to_string()))?;
        whenever_valid(by_our_clock(), |now| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        })
    }

    signatures_by!(self => self.provider);
}
