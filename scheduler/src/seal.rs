//! Encryption of what the control plane writes down: entries and snapshots hold secrets, and disks are lost, copied and backed up.
//!
//! XChaCha20-Poly1305 with a random nonce of 24 bytes for each piece, which may be drawn without counting. Every manager has a key of its
//! own beside its log, readable by root only; it never leaves the host, since managers exchange entries over mutual TLS and each encrypts
//! what it writes. What is a secret is not asked: everything is encrypted.

use std::io;
use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ring::rand::{SecureRandom, SystemRandom};

/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of a nonce, before what is encrypted.
const NONCE: usize = 24;
/// Bytes that proves it is what was written (Poly1305's tag), behind it.
const TAG: usize = 16;

/// A key that encrypts and decrypts.
#[derive(Clone)]
pub struct Seal {
    cipher: XChaCha20Poly1305,
    random: SystemRandom,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

/// It was not encrypted with this key, or is not what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was encrypted with another key, or is damaged")]
pub struct Broken;

impl Seal {
    /// Bytes that encryption adds.
    pub const OVERHEAD: usize = NONCE + TAG;

    /// With this key.
    pub fn new(key: [u8; KEY]) -> Self {
        Self { cipher: XChaCha20Poly1305::new(&key.into()), random: SystemRandom::new() }
    }

    /// With the key in this file, which is made, durably and for root alone, when it is not there.
    ///
    /// # Errors
    /// The system's, or [`io::ErrorKind::InvalidData`] when the file is no key.
    pub fn at(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => {
                let key = bytes.try_into().map_err(|bytes: Vec<u8>| {
                    let text = format!("{} has {} bytes and is no key of {KEY}", path.display(), bytes.len());
                    io::Error::new(io::ErrorKind::InvalidData, text)
                })?;
                Ok(Self::new(key))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; KEY];
                SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("no random numbers"))?;
                crate::identity::write_private(path, &key)?;
                Ok(Self::new(key))
            }
            Err(error) => Err(error),
        }
    }

    /// Encrypts. `kind` says what it is, so that one thing cannot be passed off as another.
    ///
    /// # Panics
    /// When the system has no random numbers, which it always has once it is up (getrandom(2)).
    pub fn seal(&self, kind: u8, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce).expect("a running system has random numbers");
        let payload = Payload { msg: plain, aad: &[kind] };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload);
        // It fails for more than 256 GiB only.
        let sealed = sealed.expect("a record is far smaller than the cipher's bound");
        [&nonce[..], &sealed].concat()
    }

    /// Decrypts.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn open(&self, kind: u8, sealed: &[u8]) -> Result<Vec<u8>, Broken> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(Broken)?;
        self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &[kind] }).map_err(|_| Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_by_its_key_as_its_kind_and_whole_only() {
        let (seal, other) = (Seal::new([1; KEY]), Seal::new([2; KEY]));
        let sealed = seal.seal(7, b"hunter2");
        assert_eq!(sealed.len(), 7 + Seal::OVERHEAD);
        assert!(!sealed.windows(4).any(|part| part == b"hunt"));
        assert_eq!(seal.open(7, &sealed).as_deref(), Ok(&b"hunter2"[..]));
        assert_eq!(other.open(7, &sealed), Err(Broken));
        assert_eq!(seal.open(8, &sealed), Err(Broken));
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(seal.open(7, &changed), Err(Broken), "byte {place}");
            assert_eq!(seal.open(7, &sealed[..place]), Err(Broken), "cut at {place}");
        }
        assert_ne!(seal.seal(7, b"hunter2"), sealed, "a nonce is never used twice");
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let sealed = Seal::at(&path).unwrap().seal(1, b"x");
        assert_eq!(Seal::at(&path).unwrap().open(1, &sealed).as_deref(), Ok(&b"x"[..]));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, b"short").unwrap();
        assert!(Seal::at(&path).unwrap_err().to_string().contains("is no key"));
    }
}
