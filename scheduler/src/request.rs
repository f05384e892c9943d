//! The request on whose behalf a command is proposed: it may be asked for again when nobody knows what became of it, and is carried out once.
//!
//! Whoever takes a request in gives it a [number](Number) and runs its handler [within it](within). What the handler proposes through
//! [`Control::propose`](crate::Control::propose) is then known in the log by that number and its place among what the handler proposes, so a
//! second run of the same handler changes nothing that the first has changed. What a handler does on a task of its own is not part of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use orch_api::tls::digest;

use crate::start::random;

tokio::task_local! {
    static PRESENT: Arc<AtomicU64>;
}

/// What a request is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number(u64);

impl Number {
    /// One that no other request has.
    pub(crate) fn new() -> Self {
        Self(random())
    }

    /// That of what a caller calls its request: the same for the same caller and word, wherever it asks.
    pub(crate) fn named(caller: &str, word: &[u8]) -> Self {
        let digest = digest(&[caller.as_bytes(), b"\0", word].concat());
        Self(digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for Number {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// Runs a handler as a request of this number.
pub(crate) async fn within<F: Future>(number: Number, handler: F) -> F::Output {
    PRESENT.scope(Arc::new(AtomicU64::new(number.0)), handler).await
}

/// What the next command of the present request is known by; `None` outside of one.
pub(crate) fn next() -> Option<u64> {
    PRESENT.try_with(|next| next.fetch_add(1, Ordering::Relaxed)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_run_of_a_handler_proposes_under_the_same_numbers() {
        let handler = || async { [next(), next()] };
        let number = Number::new();
        let first = within(number, handler()).await;
        assert_eq!(first, within(number, handler()).await);
        assert_ne!(first[0], first[1]);
        assert_ne!(first, within(Number::new(), handler()).await);
        assert_eq!(next(), None);
    }

    #[test]
    fn a_callers_word_is_its_own() {
        assert_eq!(Number::named("a", b"x"), Number::named("a", b"x"));
        assert_ne!(Number::named("a", b"x"), Number::named("b", b"x"));
        let number = Number::new();
        assert_eq!(number.to_string().parse(), Ok(number));
    }
}
