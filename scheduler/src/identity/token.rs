//! Join tokens as people see them: `ORCH-1-<role>-<expiry>-<digest of the authority>-<public half>-<secret half>`.
//!
//! The digest lets a new node know the cluster before it says anything to it, the secret lets the cluster believe the node. Role and expiry
//! are there for people and for early errors; what counts is what the cluster remembers of the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orch_spec::role::Role;
use ring::rand::{SecureRandom, SystemRandom};

/// First word; the number is the format's.
const MAGIC: &str = "ORCH";
/// See [`MAGIC`].
const FORMAT: &str = "1";
/// Base 32 with the digits in the order of their values (RFC 4648 §7), lower case.
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
/// Bytes of the public half: enough that two never meet.
const ID: usize = 5;
/// Bytes of the secret half: 160 bits cannot be guessed.
const SECRET: usize = 20;

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What whoever shows it becomes.
    pub role: Role,
    /// Until when it counts, milliseconds since the epoch in whole seconds; 0 = for ever.
    pub expires_at: u64,
    /// SHA-256 of the authority's certificate.
    pub authority: [u8; 32],
    /// The half that it is known by.
    pub id: String,
    /// The half that proves it.
    pub secret: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("role", &self.role).field("id", &self.id).finish_non_exhaustive()
    }
}

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("this is not a join token: {0}")]
    Malformed(&'static str),
    /// A later version's.
    #[error("this join token has format {0}, which this version of orch does not know")]
    Format(String),
}

impl JoinToken {
    /// A fresh one.
    ///
    /// # Panics
    /// When the system has no random numbers.
    pub fn make(role: Role, authority: [u8; 32], life: Option<Duration>, now: SystemTime) -> Self {
        let random = |length: usize| {
            let mut bytes = vec![0; length];
            SystemRandom::new().fill(&mut bytes).expect("a running system has random numbers");
            base32(&bytes)
        };
        let seconds = life.map_or(0, |life| (now + life).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        Self { role, expires_at: seconds * 1000, authority, id: random(ID), secret: random(SECRET) }
    }

    /// SHA-256 of the secret half, hexadecimal: what the cluster keeps of it.
    pub fn digest(&self) -> String {
        secret_digest(&self.secret)
    }
}

/// SHA-256 of a token's secret half, hexadecimal.
pub fn secret_digest(secret: &str) -> String {
    super::key_digest(secret.as_bytes())
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = if self.role == Role::Manager { "m" } else { "w" };
        let seconds = self.expires_at / 1000;
        let authority = base32(&self.authority);
        write!(f, "{MAGIC}-{FORMAT}-{role}-{seconds:x}-{authority}-{}-{}", self.id, self.secret)
    }
}

impl std::str::FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        let [magic, format, rest @ ..] = parts.as_slice() else {
            return Err(TokenError::Malformed("it has no parts"));
        };
        if *magic != MAGIC {
            return Err(TokenError::Malformed("it does not begin with ORCH-"));
        }
        if *format != FORMAT {
            return Err(TokenError::Format((*format).to_owned()));
        }
        let [role, expiry, authority, id, secret] = rest else {
            return Err(TokenError::Malformed("a part is missing; was it copied whole?"));
        };
        let role = match *role {
            "w" => Role::Worker,
            "m" => Role::Manager,
            _ => return Err(TokenError::Malformed("it names no role")),
        };
        let seconds = u64::from_str_radix(expiry, 16).map_err(|_| TokenError::Malformed("its expiry is no number"))?;
        let digits = |text: &str, bytes: usize| text.len() == (bytes * 8).div_ceil(5) && unbase32(text).is_some();
        if !digits(id, ID) || !digits(secret, SECRET) {
            return Err(TokenError::Malformed("it is too short or too long; was it copied whole?"));
        }
        let authority = unbase32(authority).and_then(|bytes| bytes.try_into().ok());
        let authority = authority.ok_or(TokenError::Malformed("its digest is not one; was it copied whole?"))?;
        let (id, secret) = ((*id).to_owned(), (*secret).to_owned());
        Ok(Self { role, expires_at: seconds.saturating_mul(1000), authority, id, secret })
    }
}

fn base32(bytes: &[u8]) -> String {
    let (mut out, mut bits, mut held) = (String::new(), 0_u32, 0_u32);
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            out.push(char::from(DIGITS[(bits >> held & 31) as usize]));
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        out.push(char::from(DIGITS[(bits << (5 - held) & 31) as usize]));
    }
    out
}

fn unbase32(text: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
    for digit in text.bytes() {
        let value = DIGITS.iter().position(|known| *known == digit)?;
        bits = (bits << 5) | u32::try_from(value).ok()?;
        held += 5;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 255).ok()?);
        }
        bits &= (1 << held) - 1;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::make(Role::Manager, [0xab; 32], Some(Duration::from_secs(60)), SystemTime::now())
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for life in [None, Some(Duration::from_secs(60))] {
            let made = JoinToken::make(Role::Worker, [7; 32], life, SystemTime::now());
            assert_eq!(made.to_string().parse(), Ok(made.clone()));
            assert_eq!(format!(" {made}\n").parse(), Ok(made), "as it is copied from a terminal");
        }
        assert_ne!(token().secret, token().secret);
        assert!(!format!("{:?}", token()).contains(&token().secret));
    }

    #[test]
    fn what_is_no_token_is_told_so_with_the_reason() {
        let text = token().to_string();
        let problem = |text: &str| text.parse::<JoinToken>().unwrap_err().to_string();
        for end in 0..text.len() {
            assert!(text[..end].parse::<JoinToken>().is_err(), "{}", &text[..end]);
        }
        assert!(problem("SWMTKN-1-abc-def").contains("does not begin with ORCH-"));
        assert!(problem(&text.replacen("ORCH-1", "ORCH-2", 1)).contains("format 2"));
        assert!(problem(&text[..text.len() - 3]).contains("copied whole"));
        assert!(problem(&text.replacen("-m-", "-x-", 1)).contains("names no role"));
    }
}
