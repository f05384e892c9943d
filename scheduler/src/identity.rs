//! Who a node is, provably: its key, its certificate, and the cluster that it is a member of, in a folder of the data directory.
//!
//! The key is made once and never leaves the host; certificates for it are short-lived and come and go. [`authority`] issues them,
//! [`certificate`] reads them, [`token`] is what a new node proves with that it may have one. Deliberately absent: deciding who is let
//! in, which is the replicated state's ([`orch_core::Security`]).

pub mod authority;
pub mod certificate;
pub mod token;

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use orch_api::tls::Credentials;
use orch_spec::assignment::NodeId;
use orch_spec::role::Role;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

/// The key.
const KEY: &str = "key.pem";
/// The node's certificate.
const CERTIFICATE: &str = "cert.pem";
/// The authority's.
const AUTHORITY: &str = "ca.pem";
/// Which cluster this is.
const MEMBERSHIP: &str = "membership.json";

/// The identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is in a file.
    #[error("{path} does not hold what it should")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Making a key or asking for a certificate.
    #[error("make a key or a request for a certificate")]
    Key(#[from] rcgen::Error),
}

/// Which cluster a node is a member of, as what, and whom it knows there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster's id.
    pub cluster: String,
    /// What it is there.
    pub role: Role,
    /// Where others reach it, `address:port`.
    pub advertise: String,
    /// Where it listens, `address:port`.
    pub listen: String,
    /// The first is none of this host's own addresses (somebody translates), so that nothing here says when it changes.
    #[serde(default)]
    pub translated: bool,
    /// Managers that it has heard of. Any of them will do.
    pub managers: Vec<ManagerAddress>,
}

impl Membership {
    /// Whether other managers are known.
    pub fn has_others(&self) -> bool {
        self.managers.iter().any(|manager| manager.address != self.advertise)
    }
}

/// Where a manager is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerAddress {
    /// The manager; empty = not known, any will do.
    pub node: NodeId,
    /// `address:port`.
    pub address: String,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Identity {
    folder: PathBuf,
}

/// Writes a file that only its owner may read: whole and durable, or not at all.
///
/// # Errors
/// The system's.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// SHA-256 of a public key (SubjectPublicKeyInfo), hexadecimal.
pub fn key_digest(info: &[u8]) -> String {
    hex(&orch_api::tls::digest(info))
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Identity {
    /// The identity that is kept in a folder, which need not exist.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::Io { doing: "read", path, source }),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
        let path = self.path(name);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.and_then(|()| write_private(&path, bytes)).map_err(|source| IdentityError::Io {
            doing: "write",
            path,
            source,
        })
    }

    /// The node's key, made when there is none.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn key(&self) -> Result<KeyPair, IdentityError> {
        if let Some(bytes) = self.read(KEY)? {
            let path = self.path(KEY);
            let wrong = |source| IdentityError::Content { path, source };
            let text = String::from_utf8(bytes).map_err(|e| wrong.clone()(e.into()))?;
            return KeyPair::from_pem(&text).map_err(|e| wrong(e.into()));
        }
        let key = KeyPair::generate()?;
        self.write(KEY, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    /// A request for a certificate, signed by the node's key.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        // What it shall say is the authority's business: only the key counts.
        Ok(CertificateParams::default().serialize_request(&self.key()?)?.der().to_vec())
    }

    /// SHA-256 of the node's public key, hexadecimal.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn key_digest(&self) -> Result<String, IdentityError> {
        Ok(key_digest(&self.key()?.subject_public_key_info()))
    }

    /// Keeps a certificate and the authority that has issued it.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn keep_certificate(&self, certificate: &[u8], authority: &[u8]) -> Result<(), IdentityError> {
        self.write(AUTHORITY, pem(authority).as_bytes())?;
        // The authority is shown along: whoever joins knows its digest only.
        self.write(CERTIFICATE, (pem(certificate) + &pem(authority)).as_bytes())
    }

    /// Certificate and key; `None` before there are any.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn credentials(&self) -> Result<Option<Credentials>, IdentityError> {
        let (Some(authority), Some(chain)) = (self.read(AUTHORITY)?, self.read(CERTIFICATE)?) else { return Ok(None) };
        let wrong = |name| {
            let path = self.path(name);
            move |e: rustls::pki_types::pem::Error| IdentityError::Content { path, source: e.into() }
        };
        let authority = CertificateDer::from_pem_slice(&authority).map_err(wrong(AUTHORITY))?;
        let chain =
            CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>().map_err(wrong(CERTIFICATE))?;
        let key = PrivatePkcs8KeyDer::from(self.key()?.serialize_der()).into();
        Ok(Some(Credentials { authority, chain, key }))
    }

    /// The cluster that the node is a member of; `None` = only of its own.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn membership(&self) -> Result<Option<Membership>, IdentityError> {
        let Some(bytes) = self.read(MEMBERSHIP)? else { return Ok(None) };
        let path = self.path(MEMBERSHIP);
        serde_json::from_slice(&bytes).map(Some).map_err(|e| IdentityError::Content { path, source: e.into() })
    }

    /// Remembers the membership.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn keep_membership(&self, membership: &Membership) -> Result<(), IdentityError> {
        let text = serde_json::to_vec_pretty(membership)
            .map_err(|e| IdentityError::Content { path: self.path(MEMBERSHIP), source: e.into() })?;
        self.write(MEMBERSHIP, &text)
    }

    /// Forgets membership, certificates and key: the next cluster sees somebody new.
    ///
    /// # Errors
    /// The system's.
    pub fn forget(&self) -> Result<(), IdentityError> {
        // The membership first: without it the rest is not looked at.
        for name in [MEMBERSHIP, CERTIFICATE, AUTHORITY, KEY] {
            let path = self.path(name);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(IdentityError::Io { doing: "remove", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A certificate as text (RFC 7468).
pub fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}
