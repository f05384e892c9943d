//! Resource limits by their short names.

use std::collections::BTreeMap;

use super::capabilities;
use super::prepare::PrepareError;

/// Name and number: RLIMIT_* of the generic architectures.
const NAMES: [(&str, u32); 16] = [
    ("cpu", libc::RLIMIT_CPU),
    ("fsize", libc::RLIMIT_FSIZE),
    ("data", libc::RLIMIT_DATA),
    ("stack", libc::RLIMIT_STACK),
    ("core", libc::RLIMIT_CORE),
    ("rss", libc::RLIMIT_RSS),
    ("nproc", libc::RLIMIT_NPROC),
    ("nofile", libc::RLIMIT_NOFILE),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("as", libc::RLIMIT_AS),
    ("locks", libc::RLIMIT_LOCKS),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
];

/// What a container gets where its configuration is silent: never the agent's own limits, which depend on how it was started.
/// `nofile` is systemd's default for services since 240 (a soft 1024 keeps select(2) safe, and programs that close every possible
/// descriptor fast); the others are unlimited as in Docker's unit.
pub(super) const DEFAULTS: [(&str, i64, i64); 3] = [("nofile", 1024, 524_288), ("nproc", -1, -1), ("core", -1, -1)];

/// The number of a limit.
pub(super) fn number(name: &str) -> Option<u32> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The name of a limit.
pub(super) fn name(number: u32) -> &'static str {
    NAMES.iter().find(|(_, known)| *known == number).map_or("unknown", |(name, _)| name)
}

/// The limits of a process: defaults and what the configuration says, by number.
pub(super) fn plan(asked: &BTreeMap<String, (i64, i64)>) -> Result<Vec<(u32, u64, u64)>, PrepareError> {
    let mut limits = BTreeMap::new();
    let may_raise = capabilities::have("SYS_RESOURCE");
    for (name, soft, hard) in DEFAULTS {
        let Some(number) = number(name) else { continue };
        let (mut soft, mut hard) = (value(soft), value(hard));
        if !may_raise {
            // In a confined environment a default must not make every start fail.
            hard = hard.min(own_hard_limit(number));
            soft = soft.min(hard);
        }
        limits.insert(number, (soft, hard));
    }
    for (name, (soft, hard)) in asked {
        let invalid = |problem: String| PrepareError::invalid(format!("ulimits.{name}"), problem);
        let short = name.strip_prefix("RLIMIT_").unwrap_or(name).to_ascii_lowercase();
        let Some(number) = number(&short) else {
            let known: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            return Err(invalid(format!("there is no such limit; there are {}", known.join(", "))));
        };
        if *soft < -1 || *hard < -1 {
            return Err(invalid("a limit is a number from 0, or -1 for unlimited".to_owned()));
        }
        if value(*soft) > value(*hard) {
            return Err(invalid(format!("the soft limit {soft} is above the hard limit {hard}")));
        }
        limits.insert(number, (value(*soft), value(*hard)));
    }
    Ok(limits.into_iter().map(|(number, (soft, hard))| (number, soft, hard)).collect())
}

/// −1 is unlimited, which the kernel writes as all ones.
fn value(limit: i64) -> u64 {
    u64::try_from(limit).unwrap_or(u64::MAX)
}

fn own_hard_limit(number: u32) -> u64 {
    crate::sys::hard_limit(number).unwrap_or(u64::MAX)
}
