//! Capabilities by name.

use super::prepare::PrepareError;

/// Names in the order of their numbers (include/uapi/linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Docker's default set: what images were built and tested with.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a name, with or without `CAP_`, in any case.
pub(crate) fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).map(|index| 1 << index)
}

/// The set from additions and removals. `ALL` among the additions makes the removals exceptions to everything; among the removals it
/// leaves only the additions. Never more than this process may hand on.
pub(super) fn resolve(add: &[String], remove: &[String], privileged: bool) -> Result<u64, PrepareError> {
    let mask = |field: &str, names: &[String]| {
        let known = |name: &String| {
            if name.eq_ignore_ascii_case("ALL") {
                return Ok(0);
            }
            bit(name).ok_or_else(|| {
                PrepareError::invalid(field, format!("{name:?} is not a capability; `man 7 capabilities` lists them"))
            })
        };
        names.iter().map(known).try_fold(0, |mask, bit| bit.map(|bit| mask | bit))
    };
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let (added, removed) = (mask("cap_add", add)?, mask("cap_drop", remove)?);
    let everything = (1 << NAMES.len()) - 1;
    let default = DEFAULT.iter().filter_map(|name| bit(name)).sum::<u64>();
    let wanted = match () {
        () if privileged => everything,
        () if all(add) => everything & !removed,
        () if all(remove) => added,
        () => (default & !removed) | added,
    };
    Ok(wanted & own_bounding())
}

/// What this process may hand on, from /proc: in a confined environment it is less than everything.
fn own_bounding() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// Whether this process has a capability in effect.
pub(super) fn have(name: &str) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    bit(name).is_some_and(|bit| mask.unwrap_or(0) & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_default_set_is_dockers() {
        assert_eq!(resolve(&[], &[], false).unwrap(), 0xa804_25fb & own_bounding());
    }

    #[test]
    fn names_are_taken_with_and_without_prefix_in_any_case() {
        assert_eq!(bit("cap_net_admin"), bit("NET_ADMIN"));
        assert_eq!(bit("Net_Admin"), Some(1 << 12));
        assert!(resolve(&strings(&["NET_ADMINS"]), &[], false).is_err());
    }

    #[test]
    fn all_among_the_removals_leaves_the_additions() {
        assert_eq!(resolve(&strings(&["CHOWN"]), &strings(&["ALL"]), false).unwrap(), 1);
        let all_but = resolve(&strings(&["all"]), &strings(&["CHOWN"]), false).unwrap();
        assert_eq!(all_but & 1, 0);
        assert_eq!(all_but & 2, 2);
    }
}
