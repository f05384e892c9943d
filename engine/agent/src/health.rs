//! Health probes: one small task a container that has one.
//!
//! The rules are Docker's: a probe every `interval` (or `start_interval` within the start period), `timeout` for each, `retries`
//! failures in a row make it unhealthy, failures within the start period do not count, one success makes it healthy. A probe that takes
//! too long is killed with all its children.

use std::sync::Arc;
use std::time::Duration;

use orch_engine::config::{ContainerId, ProcessConfig};
use orch_engine::image::Healthcheck;
use orch_spec::assignment::{Health, TaskId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::task::KnownHealth;
use crate::{Shared, execute};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u64 = 3;
/// Output of a probe that is kept: Docker's figure.
pub const OUTPUT: usize = 4096;
/// Probes at once on this node: hundreds that come due together must not starve what they probe.
pub const PROBES_AT_ONCE: usize = 8;

/// What a probe is to do, worked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    command: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u64,
}

impl Probe {
    /// The probe of a health check; `None` when it has no command.
    pub fn new(check: &Healthcheck) -> Option<Self> {
        let (kind, rest) = check.test.split_first()?;
        let command = match kind.as_str() {
            "CMD" => rest.to_vec(),
            "CMD-SHELL" => ["/bin/sh", "-c"].into_iter().map(str::to_owned).chain(rest.iter().cloned()).collect(),
            _ => return None,
        };
        let or = |nanos: u64, default: Duration| if nanos == 0 { default } else { Duration::from_nanos(nanos) };
        let start_period = Duration::from_nanos(check.start_period);
        let interval = or(check.interval, INTERVAL);
        Some(Self {
            command,
            interval,
            timeout: or(check.timeout, TIMEOUT),
            start_period,
            start_interval: or(check.start_interval, START_INTERVAL),
            retries: if check.retries == 0 { RETRIES } else { check.retries },
        })
    }
}

/// What is known of a container's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// What to report.
    pub health: Health,
    /// Failures in a row that count.
    pub failures: u64,
}

impl Course {
    /// Before the first probe.
    pub const START: Self = Self { health: Health::Starting, failures: 0 };

    /// After a probe: a pure step.
    pub fn step(self, success: bool, within_start_period: bool, retries: u64) -> Self {
        if success {
            return Self { health: Health::Healthy, failures: 0 };
        }
        // Docker: once it was healthy the start period is over.
        if within_start_period && self.health == Health::Starting {
            return self;
        }
        let failures = self.failures + 1;
        let health = if failures >= retries { Health::Unhealthy } else { self.health };
        Self { health, failures }
    }
}

/// One run of a container that is probed.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its task.
    pub task: TaskId,
    /// The container.
    pub container: ContainerId,
    /// When it began, in milliseconds since the epoch.
    pub started_at: Option<u64>,
    /// How long ago that is.
    pub age: Duration,
    /// What an earlier agent knew of its health.
    pub known: Health,
}

/// Probes a container until it ends; aborted by dropping its handle.
pub async fn watch(shared: Arc<Shared>, probes: Arc<Semaphore>, run: Run, probe: Probe) {
    let container = &run.container;
    let started = Instant::now().checked_sub(run.age).unwrap_or_else(Instant::now);
    let mut course = Course { health: run.known, failures: 0 };
    // An adopted container is not kept waiting: what is known of it is old.
    let mut first = run.age > probe.interval || run.known != Health::Starting;
    loop {
        let starting = course.health == Health::Starting && started.elapsed() < probe.start_period;
        if !first {
            tokio::time::sleep(if starting { probe.start_interval.min(probe.interval) } else { probe.interval }).await;
        }
        first = false;
        let Ok(_turn) = probes.acquire().await else { return };
        if !shared.lock().runs(container) {
            return;
        }
        let within = started.elapsed() < probe.start_period;
        let (success, output) = ask(&shared, container, &probe).await;
        course = course.step(success, within, probe.retries);
        let Some(is_news) = take_in(&shared, &run, course, success, output) else { return };
        shared.touch();
        if is_news {
            let (shared, task) = (shared.clone(), run.task.clone());
            // Whether it could be written is said in the log; the probe goes on.
            let _ = tokio::task::spawn_blocking(move || execute::save(&shared, &task)).await;
        }
    }
}

/// Takes what a probe said into the memory. Whether that is other than what the record says; `None` when the container is gone.
fn take_in(shared: &Shared, run: &Run, course: Course, success: bool, output: String) -> Option<bool> {
    let mut state = shared.lock();
    let seen = state.observed.tasks.get_mut(&run.task)?;
    if seen.container.as_ref().is_none_or(|c| c.id != run.container) {
        return None;
    }
    seen.health = course.health;
    seen.health_output = if success { String::new() } else { output };
    let known = (course.health != Health::Starting)
        .then_some(KnownHealth { health: course.health, started_at: run.started_at });
    let is_news = seen.record.health != known;
    seen.record.health = known;
    Some(is_news)
}

/// One probe: whether it succeeded, and what it said.
async fn ask(shared: &Arc<Shared>, container: &ContainerId, probe: &Probe) -> (bool, String) {
    let process = ProcessConfig { args: probe.command.clone(), ..ProcessConfig::default() };
    let (engine, container, timeout) = (shared.engine.clone(), container.clone(), probe.timeout);
    let result = tokio::task::spawn_blocking(move || crate::probe::run(&engine, &container, process, timeout)).await;
    match result {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(e)) => (false, crate::chain(&e)),
        Err(_) => (false, "the probe could not be run".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy() {
        let mut course = Course::START;
        course = course.step(false, false, 2);
        assert_eq!(course.health, Health::Starting);
        course = course.step(false, false, 2);
        assert_eq!(course.health, Health::Unhealthy);
        course = course.step(true, false, 2);
        assert_eq!(course, Course { health: Health::Healthy, failures: 0 });
    }

    #[test]
    fn failures_within_the_start_period_do_not_count_until_it_was_healthy() {
        let course = Course::START.step(false, true, 1);
        assert_eq!(course, Course::START);
        let course = course.step(true, true, 1).step(false, true, 1);
        assert_eq!(course.health, Health::Unhealthy);
    }
}
