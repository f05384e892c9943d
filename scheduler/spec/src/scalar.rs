//! Scalars with a form of their own: each function checks a text and gives its canonical form, or says what is wrong in
//! words that follow "`key`:".

use crate::model::{ByteSize, Constraint, Duration, ExposeSpec, NanoCpus, Ratio};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

type Canonical = Result<String, String>;

pub(crate) fn bytes(text: &str) -> Canonical {
    text.parse::<ByteSize>().map(|size| size.to_string()).map_err(|error| error.to_string())
}

pub(crate) fn duration(text: &str) -> Canonical {
    text.parse::<Duration>().map(|duration| duration.to_string()).map_err(|error| error.to_string())
}

pub(crate) fn cpus(text: &str) -> Canonical {
    text.parse::<NanoCpus>().map(|cpus| cpus.to_string()).map_err(|error| error.to_string())
}

pub(crate) fn ratio(text: &str) -> Canonical {
    text.parse::<Ratio>().map(|ratio| ratio.as_f64().to_string()).map_err(|error| error.to_string())
}

/// Whole microseconds, or a duration.
pub(crate) fn microseconds(text: &str) -> Canonical {
    if let Ok(micros) = text.trim().parse::<i64>() {
        return Ok(micros.to_string());
    }
    let duration: Duration = text
        .parse()
        .map_err(|_| format!("`{text}` is neither a number of microseconds nor a duration such as `50ms`"))?;
    Ok((duration.as_nanos() / 1000).to_string())
}

pub(crate) fn ip(text: &str) -> Canonical {
    text.parse::<IpAddr>().map(|_| text.to_owned()).map_err(|_| format!("invalid ip address: `{text}`"))
}

pub(crate) fn ipv4(text: &str) -> Canonical {
    text.parse::<Ipv4Addr>().map(|_| text.to_owned()).map_err(|_| format!("invalid ip address: `{text}` is not IPv4"))
}

pub(crate) fn ipv6(text: &str) -> Canonical {
    text.parse::<Ipv6Addr>().map(|_| text.to_owned()).map_err(|_| format!("invalid ip address: `{text}` is not IPv6"))
}

pub(crate) fn cidr(text: &str) -> Canonical {
    let parsed = text.split_once('/').and_then(|(address, bits)| {
        let address: IpAddr = address.parse().ok()?;
        let bits: u8 = bits.parse().ok()?;
        (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some(())
    });
    parsed.map(|()| text.to_owned()).ok_or_else(|| format!("`{text}` is not a subnet; write for example `10.5.0.0/16`"))
}

pub(crate) fn id(text: &str) -> Canonical {
    text.parse::<u32>().map(|id| id.to_string()).map_err(|_| format!("`{text}` is not a numeric user or group id"))
}

pub(crate) fn protocol(text: &str) -> Canonical {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "tcp" | "udp" | "sctp" => Ok(lower),
        _ => Err(format!("invalid proto: `{text}`; there are tcp, udp and sctp")),
    }
}

fn port(text: &str) -> Option<u16> {
    text.parse::<u16>().ok().filter(|port| *port > 0)
}

/// A port or range of ports as two numbers.
pub(crate) fn port_range(text: &str) -> Option<(u16, u16)> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (port(start)?, port(end)?);
    (start <= end).then_some((start, end))
}

/// A host port or range; empty and 0 leave the choice to the node.
pub(crate) fn published(text: &str) -> Canonical {
    if text.is_empty() || text == "0" || port_range(text).is_some() {
        return Ok(text.to_owned());
    }
    Err(format!("invalid hostPort: `{text}` is neither a port (1-65535) nor a range such as `8000-8010`"))
}

pub(crate) fn exposed(text: &str) -> Canonical {
    text.parse::<ExposeSpec>().map(|_| text.to_owned())
}

pub(crate) fn restart(text: &str) -> Canonical {
    let known = match text.split_once(':') {
        Some(("on-failure", attempts)) => attempts.parse::<u32>().is_ok(),
        Some(_) => false,
        None => matches!(text, "no" | "always" | "on-failure" | "unless-stopped" | ""),
    };
    if known {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is no restart policy; there are `no`, `always`, `on-failure[:ATTEMPTS]` and `unless-stopped`"
    ))
}

pub(crate) fn pull_policy(text: &str) -> Canonical {
    let known = match text.strip_prefix("every_") {
        Some(interval) => interval.parse::<Duration>().is_ok(),
        None => {
            matches!(text, "always" | "never" | "missing" | "if_not_present" | "build" | "daily" | "weekly" | "refresh")
        }
    };
    if known {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is no pull policy; there are `always`, `never`, `missing`, `build`, `daily`, `weekly` and `every_12h`"
    ))
}

pub(crate) fn container_name(text: &str) -> Canonical {
    let mut chars = text.chars();
    let ok = chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.len() > 1
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if ok {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is no container name: letters, digits, `_`, `.` and `-`, at least two of them, a letter or digit first"
    ))
}

pub(crate) fn hostname(text: &str) -> Canonical {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    if text.is_empty() || (text.len() <= 253 && text.split('.').all(label)) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is no host name: letters, digits and `-`, at most 63 between two dots"))
}

pub(crate) fn image(text: &str) -> Canonical {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("`{}` is no image reference: it holds a blank", text.escape_default()));
    }
    Ok(text.to_owned())
}

pub(crate) fn signal(text: &str) -> Canonical {
    let ok = text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number))
        || (!text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-')))
            && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if ok { Ok(text.to_owned()) } else { Err(format!("`{text}` is no signal; write for example `SIGINT`")) }
}

/// A word that nobody knows is refused, as Docker does: whoever mistypes `no-new-privileges` would run unprotected.
pub(crate) fn security_option(text: &str) -> Canonical {
    let (option, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    let known = match option {
        "no-new-privileges" => matches!(value, "" | "true" | "false"),
        "systempaths" => value == "unconfined",
        "seccomp" | "apparmor" | "label" | "writable-cgroups" | "credentialspec" => !value.is_empty(),
        _ => false,
    };
    if known {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is no security option; there are `no-new-privileges`, `seccomp=FILE|unconfined` and `systempaths=unconfined`"
    ))
}

pub(crate) fn cpuset(text: &str) -> Canonical {
    let part = |part: &str| {
        let (start, end) = part.split_once('-').unwrap_or((part, part));
        matches!((start.trim().parse::<u32>(), end.trim().parse::<u32>()), (Ok(start), Ok(end)) if start <= end)
    };
    if text.is_empty() || text.split(',').all(part) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is no set of processors; write for example `0-3` or `0,2`"))
}

pub(crate) fn cgroup_mode(text: &str) -> Canonical {
    match text {
        "host" | "private" => Ok(text.to_owned()),
        _ if text.starts_with("service:") || text.starts_with("container:") => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is no cgroup namespace; there are `host` and `private`")),
    }
}

/// Whose namespace of one kind: the words of that kind, or another container's where that can be.
fn namespace(text: &str, kind: &str, words: &[&str], joinable: bool) -> Canonical {
    let joined =
        text.split_once(':').is_some_and(|(whose, name)| matches!(whose, "service" | "container") && !name.is_empty());
    if text.is_empty() || words.contains(&text) || (joinable && joined) {
        return Ok(text.to_owned());
    }
    let mut words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    if joinable {
        words.extend(["`service:NAME`".to_owned(), "`container:NAME`".to_owned()]);
    }
    Err(format!("`{text}` is no {kind} namespace; there are {}", words.join(", ")))
}

pub(crate) fn pid_mode(text: &str) -> Canonical {
    namespace(text, "process", &["host", "private"], true)
}

pub(crate) fn ipc_mode(text: &str) -> Canonical {
    namespace(text, "IPC", &["host", "private", "shareable", "none"], true)
}

pub(crate) fn uts_mode(text: &str) -> Canonical {
    namespace(text, "host name", &["host", "private"], true)
}

/// `auto` is Podman's word for one of its own, with ids that nobody else has.
pub(crate) fn userns_mode(text: &str) -> Canonical {
    namespace(text, "user", &["host", "auto"], false)
}

/// Linux's capabilities as of 5.9, the last to add one (include/uapi/linux/capability.h), and `ALL`.
const CAPABILITIES: [&str; 42] = [
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

pub(crate) fn capability(text: &str) -> Canonical {
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if CAPABILITIES.contains(&bare) {
        return Ok(text.to_owned());
    }
    let near = crate::check::suggest(bare, CAPABILITIES.into_iter());
    Err(format!("`{text}` is no capability{}", near.map(|near| format!("; {near}")).unwrap_or_default()))
}

pub(crate) fn constraint(text: &str) -> Canonical {
    match text.parse::<Constraint>() {
        Ok(_) => Ok(text.to_owned()),
        Err(()) => Err(format!(
            "`{text}` is no constraint; write for example `node.role == manager`, `node.labels.zone in (a, b)` or `node.labels.ssd exists`"
        )),
    }
}
