//! The log's time, which timers are measured by: it goes on from the last entry as this process's stopwatch runs, whatever clocks say.
//!
//! Two managers' clocks may differ by an hour. If timers were compared with the leader's clock, a leader that follows another one whose clock
//! was ahead would let every update, every pause and every grace wait for that hour, and one whose own is ahead would end them all at once.
//! The clocks are for people, for tokens and for certificates.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// See the module. Time that passes while no manager runs does not count: what waits then waits on.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch(Mutex<Option<(u64, Instant)>>);

fn after(time: u64, since: Instant) -> u64 {
    time.saturating_add(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX))
}

impl Stopwatch {
    /// The state has this time now. The watch is never set back: an entry that comes late does not make time slower.
    pub(crate) fn see(&self, time: u64) {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A state in which nothing has happened yet has none.
        if time > 0 && begun.is_none_or(|(begun, since)| after(begun, since) < time) {
            *begun = Some((time, Instant::now()));
        }
    }

    /// The log's time now, in milliseconds; `clock` is where it begins.
    pub(crate) fn read(&self, clock: u64) -> u64 {
        let begun = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.map_or(clock, |(time, since)| after(time, since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn the_logs_time_goes_on_from_the_last_entry_whatever_the_clock_says() {
        let watch = Stopwatch::default();
        assert_eq!(watch.read(10 * HOUR), 10 * HOUR, "the first entry brings the first manager's clock");
        watch.see(0);
        assert_eq!(watch.read(10 * HOUR), 10 * HOUR);
        watch.see(10 * HOUR);
        for clock in [9 * HOUR, 11 * HOUR] {
            let now = watch.read(clock);
            assert!((10 * HOUR..10 * HOUR + HOUR / 2).contains(&now), "by a clock that says {clock}: {now}");
        }
    }

    #[test]
    fn an_entry_that_comes_late_does_not_set_it_back() {
        let watch = Stopwatch::default();
        watch.see(10 * HOUR);
        watch.see(9 * HOUR);
        assert!(watch.read(0) >= 10 * HOUR);
        watch.see(12 * HOUR);
        assert!(watch.read(0) >= 12 * HOUR);
    }
}
