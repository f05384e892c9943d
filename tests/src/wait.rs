//! Waiting for a condition, with a deadline.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a condition is looked at: often enough that no test waits for nothing, seldom enough that looking costs little.
const PERIOD: Duration = Duration::from_millis(25);

/// How long most things may take on a loaded machine. A bound against hanging, not a promise of speed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` gives a value, and returns it; its error says what was seen instead.
///
/// # Panics
/// When the deadline passes first, with what was last seen.
#[track_caller]
pub fn eventually<T, E: Display>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Result<T, E>) -> T {
    let until = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= until => panic!("{what}: not within {deadline:?}; last seen: {seen}"),
            Err(_) => std::thread::sleep(PERIOD),
        }
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// When the deadline passes first.
#[track_caller]
pub fn until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually(deadline, what, || if condition() { Ok(()) } else { Err("it does not hold") });
}

/// Says how long something took since `begun`: for people, who see it with `--no-capture`. A test asserts no time.
pub fn took(what: &str, begun: Instant) {
    saw(&format!("{what}: {:.2} s", begun.elapsed().as_secs_f64()));
}

/// Says something that was seen, for people: see [`took`].
#[expect(clippy::print_stdout, reason = "the harness of the tests shows it on request")]
pub fn saw(what: &str) {
    println!("seen: {what}");
}
