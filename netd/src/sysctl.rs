//! Settings below `/proc/sys/net`: those of the namespace of the thread that writes.

use std::path::PathBuf;
use std::{fs, io};

/// Why a setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {name} to `{value}`: {source}")]
pub struct SysctlError {
    /// Its name, with dots.
    pub name: String,
    /// The value wanted.
    pub value: String,
    /// The kernel's answer.
    pub source: io::Error,
}

/// `net.ipv4.conf.eth0/1.rp_filter` → `/proc/sys/net/ipv4/conf/eth0.1/rp_filter`: as sysctl(8) has it, a slash in a name
/// stands for a dot.
fn path(name: &str) -> PathBuf {
    let relative: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    PathBuf::from("/proc/sys").join(relative)
}

/// An interface's name as a part of a setting's name.
pub(crate) fn interface(name: &str) -> String {
    name.replace('.', "/")
}

/// Reads a setting; `None` when this kernel does not have it.
pub(crate) fn read(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|text| text.trim_end().to_owned())
}

/// Writes a setting.
pub(crate) fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(path(name), value).map_err(|source| SysctlError { name: name.into(), value: value.into(), source })
}

/// Writes a setting that this kernel may lack (IPv6 not built in).
pub(crate) fn write_if_there(name: &str, value: &str) -> Result<(), SysctlError> {
    match write(name, value) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Whether a name is one of the network namespace's own settings, and stays below `/proc/sys/net`.
pub(crate) fn is_network(name: &str) -> bool {
    name.starts_with("net.")
        && !name.split('.').any(|part| part.is_empty() || part.contains(".."))
        && !name.contains("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_of_the_network_namespace_pass() {
        assert!(is_network("net.ipv4.ip_unprivileged_port_start"));
        for name in ["kernel.core_pattern", "net..core", "net./../kernel.x", "net.a//..b", "net.ipv4.//.//.kernel"] {
            assert!(!is_network(name), "{name}");
        }
    }
}
