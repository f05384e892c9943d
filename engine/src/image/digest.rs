//! Content addresses: `sha256:` and 64 lower-case hex digits, nothing else.
//!
//! A digest becomes a file name, so parsing is strict (CVE-2024-3727: a digest such as `sha256:../../etc` walked out of a store).

use std::fmt;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The sha256 of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Another algorithm, or none.
    #[error("digest {0:?} is not of the form sha256:<hex>")]
    Algorithm(String),
    /// Not 64 lower-case hex digits.
    #[error("digest {0:?} does not have 64 lower-case hex digits")]
    Hex(String),
}

impl Digest {
    /// Parses `sha256:<64 lower-case hex digits>`.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        // A hostile digest may be megabytes long: the error carries its beginning only.
        let shown = || text.chars().take(80).collect::<String>();
        let hex = text.strip_prefix("sha256:").ok_or_else(|| DigestError::Algorithm(shown()))?;
        Self::from_hex(hex).ok_or_else(|| DigestError::Hex(shown()))
    }

    /// From the hex digits alone.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let hex = hex.as_bytes();
        if hex.len() != 64 {
            return None;
        }
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hex digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Identity of a layer on top of `parent` (OCI image spec, "Layer ChainID"); of the lowest layer it is the diff id itself.
    pub fn chain(parent: Option<Digest>, diff_id: Digest) -> Self {
        match parent {
            None => diff_id,
            Some(parent) => Self::of(format!("{parent} {diff_id}").as_bytes()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl std::str::FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

/// A running sha256 with a byte count.
#[derive(Clone, Default)]
pub(crate) struct Hasher {
    state: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Takes some bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Digest and number of the bytes so far.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest(self.state.finalize().into()), self.bytes)
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_that_could_be_a_path_is_refused() {
        let good = Digest::of(b"").to_string();
        assert_eq!(Digest::parse(&good).unwrap().to_string(), good);
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "sha256:ABC",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce",
            &good.to_uppercase(),
            &good[..70],
            &format!("{good}0"),
            &format!(" {good}"),
            &format!("{good}\n"),
            &good.replace(':', "+"),
            &good[7..],
            &format!("sha256:{}/../{}", &good[7..30], &good[34..71]),
        ] {
            assert!(Digest::parse(bad).is_err(), "{bad:?} was taken for a digest");
        }
    }

    #[test]
    fn the_chain_of_two_layers_is_as_the_oci_specification_says() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(Digest::chain(None, a), a);
        assert_eq!(Digest::chain(Some(a), b), Digest::of(format!("{a} {b}").as_bytes()));
    }
}
