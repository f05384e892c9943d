//! This host's clock, as everything that is agreed between hosts reads it: certificates, tokens, entries of the log.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// By how many seconds the clock shall be wrong; for tests. Nothing else can make it so for one process: time namespaces leave
/// `CLOCK_REALTIME` alone (`time_namespaces(7)`), and a static binary loads no library that could stand in between. Whoever can set the
/// environment of an agent is root on its host and may set the clock as well.
pub const OFFSET: &str = "ORCH_CLOCK_OFFSET";

/// The time.
pub fn now() -> SystemTime {
    static OFFSET_SECONDS: OnceLock<i64> = OnceLock::new();
    let offset = *OFFSET_SECONDS
        .get_or_init(|| std::env::var(OFFSET).ok().and_then(|seconds| seconds.parse().ok()).unwrap_or_default());
    let by = Duration::from_secs(offset.unsigned_abs());
    let now = SystemTime::now();
    let moved = if offset < 0 { now.checked_sub(by) } else { now.checked_add(by) };
    moved.unwrap_or(now)
}

/// The same since the epoch; 0 before it.
pub fn since_epoch() -> Duration {
    now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The same in milliseconds.
pub fn now_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}
