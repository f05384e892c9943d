//! Chance that can be repeated: faults come at points drawn from a seed that is printed.

use std::time::Duration;

/// A small generator (xorshift64*): spread matters here, secrecy does not.
#[derive(Debug, Clone)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// From `$ORCH_TESTS_SEED`, else from the clock; says the seed, so that a failure can be repeated.
    ///
    /// # Panics
    /// When the variable is no number.
    #[must_use]
    pub fn new(what: &str) -> Self {
        let seed = match std::env::var("ORCH_TESTS_SEED") {
            Ok(text) => text.parse().expect("ORCH_TESTS_SEED is a number"),
            Err(_) => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                u64::from(now.subsec_nanos()) ^ now.as_secs() << 20
            }
        };
        #[expect(clippy::print_stdout, reason = "cargo shows what a failed test has printed")]
        {
            println!("{what}: ORCH_TESTS_SEED={seed}");
        }
        Self::from(seed)
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Lets a time shorter than `most` pass: not to wait for anything, but to meet whatever goes on at any of its points.
    pub fn delay(&mut self, most: Duration) -> Duration {
        let delay = Duration::from_micros(self.below(u64::try_from(most.as_micros()).unwrap_or(u64::MAX)));
        std::thread::sleep(delay);
        delay
    }
}

impl From<u64> for Chance {
    fn from(seed: u64) -> Self {
        // The state may not be 0.
        Self { state: seed ^ 0x9e37_79b9_7f4a_7c15 | 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again_and_another_gives_others() {
        let draw = |seed: u64| {
            let mut chance = Chance::from(seed);
            (0..8).map(|_| chance.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().any(|n| *n > 500) && draw(7).iter().any(|n| *n < 500));
    }
}
