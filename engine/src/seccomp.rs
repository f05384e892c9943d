//! System-call filters: Docker's default profile and profiles in its JSON, as programs for the kernel.
//!
//! A filter depends on the profile and on the container's capabilities (a container that may mount must be able to call mount). It is
//! compiled once for each such pair and kept.

mod assemble;
mod profile;
mod table;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Filters kept; a host has few pairs of profile and capabilities. A program has 3 to 6 KiB.
const KEPT: usize = 64;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not the JSON that Docker documents.
    #[error("the profile is not in Docker's format")]
    Json(#[from] serde_json::Error),
    /// A word that the format does not have, or that is not carried out (SCMP_ACT_NOTIFY).
    #[error("the profile's {what} {word:?} is not supported")]
    Word {
        /// `action`, `comparison` or `argument`.
        what: &'static str,
        /// The word.
        word: String,
    },
    /// Above the kernel's bound.
    #[error("the profile compiles to {instructions} instructions; the kernel takes 4096")]
    Size {
        /// How many.
        instructions: usize,
    },
}

/// By the profile's text (`None`: the default) and capabilities.
static COMPILED: Mutex<BTreeMap<Key, Vec<u8>>> = Mutex::new(BTreeMap::new());

type Key = (Option<String>, u64);

/// The default profile for a container with these capabilities (bit n is capability n), as `struct sock_filter`s in native order.
///
/// # Errors
/// None in fact; the type is that of [`custom_filter`].
pub fn default_filter(capabilities: u64) -> Result<Vec<u8>, ProfileError> {
    compiled(None, capabilities)
}

/// A profile in Docker's JSON schema for a container with these capabilities.
///
/// # Errors
/// [`ProfileError`].
pub fn custom_filter(profile: &str, capabilities: u64) -> Result<Vec<u8>, ProfileError> {
    compiled(Some(profile), capabilities)
}

fn compiled(text: Option<&str>, capabilities: u64) -> Result<Vec<u8>, ProfileError> {
    let key = (text.map(str::to_owned), capabilities);
    let lock = || COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = lock().get(&key) {
        return Ok(program.clone());
    }
    let policy = match text {
        None => profile::default_policy(capabilities),
        Some(text) => profile::custom_policy(text, capabilities)?,
    };
    let program = assemble::assemble(&policy);
    if program.len() / 8 > 4096 {
        return Err(ProfileError::Size { instructions: program.len() / 8 });
    }
    let mut kept = lock();
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(key, program.clone());
    Ok(program)
}
