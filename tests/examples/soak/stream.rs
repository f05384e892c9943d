//! Requests from an undisturbed host to the published port of each host, all along.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use orch_tests::machine::Place;

use crate::fleet::Fleet;

/// What became of requests through one host.
#[derive(Debug, Default)]
struct Count {
    good: u64,
    bad: Vec<(Instant, String)>,
}

/// When requests may fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Excuse {
    /// Through which host; 0 = any.
    pub(crate) host: usize,
    /// From when on.
    pub(crate) from: Instant,
    /// Until when they may begin.
    pub(crate) until: Instant,
}

impl Excuse {
    fn explains(&self, host: usize, begun: Instant) -> bool {
        // A request that is under way when the fault begins waits as long as it waits for anything.
        let from = self.from.checked_sub(Duration::from_secs(5)).unwrap_or(self.from);
        (self.host == 0 || self.host == host) && from <= begun && begun <= self.until
    }
}

/// Whoever asks.
pub(crate) struct Stream {
    over: Arc<AtomicBool>,
    counts: Arc<Mutex<(Instant, BTreeMap<usize, Count>)>>,
    askers: Vec<JoinHandle<()>>,
}

impl Stream {
    pub(crate) fn start(fleet: &Fleet) -> Self {
        let counts = Arc::new(Mutex::new((Instant::now(), BTreeMap::new())));
        let over = Arc::new(AtomicBool::new(false));
        let asker = |number: usize| {
            let (over, counts, outside) = (over.clone(), counts.clone(), fleet.outside.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let answer = outside.page(Place::Host, Fleet::address(number), 8080, "/");
                    let mut counts = counts.lock().expect("nobody panics with it");
                    let count: &mut Count = counts.1.entry(number).or_default();
                    match answer {
                        Ok(_) => count.good += 1,
                        Err(why) => count.bad.push((begun, why)),
                    }
                    drop(counts);
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        let askers = (1..=fleet.count).map(asker).collect();
        Self { over, counts, askers }
    }

    /// A round begins.
    pub(crate) fn mark(&self) {
        *self.counts.lock().expect("nobody panics with it") = (Instant::now(), BTreeMap::new());
    }

    /// Says what failed in this round, and which of it nothing explains.
    pub(crate) fn tell(&self, excuses: &[Excuse]) {
        let counts = self.counts.lock().expect("nobody panics with it");
        for (number, count) in &counts.1 {
            let mut kinds: BTreeMap<(bool, &str), Vec<f64>> = BTreeMap::new();
            for (when, why) in &count.bad {
                let explained = excuses.iter().any(|excuse| excuse.explains(*number, *when));
                kinds.entry((explained, why)).or_default().push(when.duration_since(counts.0).as_secs_f64());
            }
            for ((explained, why), times) in kinds {
                let mark = if explained { "" } else { "UNEXPLAINED " };
                let (first, last) = (times[0], times[times.len() - 1]);
                println!(
                    "   {mark}host {number}: {} of {} requests failed, begun after {first:.1} to {last:.1} s: {why}",
                    times.len(),
                    count.good
                );
            }
        }
    }

    pub(crate) fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.askers.into_iter().for_each(|asker| drop(asker.join()));
    }
}
