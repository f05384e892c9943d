//! Device nodes and the rules of the device filter.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::plan::PlannedDevice;
use super::prepare::PrepareError;
use crate::cgroup::{DeviceRule, access_bits};
use crate::config::ContainerConfig;

/// What every container may use: making any node, the six default devices, terminals and tun (removed by runc 1.2.0 and brought back,
/// since VPN containers rely on it).
const DEFAULT_RULES: [&str; 12] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c 10:200 rwm",
];

/// Directories of /dev that are mounts of the container's own, and the nodes that it has anyway.
const OWN: [&str; 13] =
    ["pts", "shm", "mqueue", "console", "ptmx", "null", "zero", "full", "random", "urandom", "tty", "fd", "hugepages"];

/// A container's devices.
pub(super) struct Devices {
    pub(super) nodes: Vec<PlannedDevice>,
    /// `None`: all.
    pub(super) rules: Option<Vec<DeviceRule>>,
}

pub(super) fn plan(config: &ContainerConfig) -> Result<Devices, PrepareError> {
    let mut nodes = Vec::new();
    if config.privileged {
        // All that the host has; what vanishes meanwhile (a stick pulled out) is no error.
        for entry in fs::read_dir("/dev").into_iter().flatten().flatten() {
            let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if !link && !OWN.iter().any(|own| entry.file_name() == *own) {
                let path = entry.path();
                collect(&path, &path, &mut nodes).ok();
            }
        }
    }
    let parse = |rule: &str| {
        rule.parse::<DeviceRule>().map_err(|problem| PrepareError::invalid("device_cgroup_rules", problem))
    };
    let mut rules = DEFAULT_RULES.iter().map(|rule| parse(rule)).collect::<Result<Vec<_>, _>>()?;
    for device in &config.devices {
        let invalid = |problem: String| PrepareError::invalid(format!("devices.{}", device.source), problem);
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        let access =
            access_bits(permissions).ok_or_else(|| invalid(format!("{permissions:?} is not some of `rwm`")))?;
        let target = if device.target.is_empty() { &device.source } else { &device.target };
        if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
            return Err(invalid(format!("the target {target:?} is not an absolute path")));
        }
        let before = nodes.len();
        let source = Path::new(&device.source);
        collect(source, Path::new(target), &mut nodes)
            .map_err(|error| PrepareError::Read { path: source.to_owned(), source: error })?;
        if nodes.len() == before {
            return Err(invalid("it is neither a device nor a directory with devices".to_owned()));
        }
        for node in &nodes[before..] {
            rules.push(DeviceRule {
                kind: if node.mode & libc::S_IFMT == libc::S_IFBLK { 'b' } else { 'c' },
                major: Some(libc::major(node.device)),
                minor: Some(libc::minor(node.device)),
                access,
            });
        }
    }
    for rule in &config.device_cgroup_rules {
        rules.push(parse(rule)?);
    }
    Ok(Devices { nodes, rules: if config.privileged { None } else { Some(rules) } })
}

/// One device, or all in a directory.
fn collect(source: &Path, target: &Path, nodes: &mut Vec<PlannedDevice>) -> std::io::Result<()> {
    // A link to a device (/dev/cdrom) is followed, as Docker does; directories below are not, which also ends recursion.
    let metadata = fs::metadata(source)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            if !entry.file_type()?.is_symlink() {
                collect(&entry.path(), &target.join(entry.file_name()), nodes)?;
            }
        }
    } else if metadata.file_type().is_char_device() || metadata.file_type().is_block_device() {
        nodes.push(PlannedDevice {
            target: target.to_string_lossy().into_owned(),
            mode: metadata.mode(),
            device: metadata.rdev(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
    }
    Ok(())
}
