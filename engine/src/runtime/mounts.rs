//! Which mounts a container gets, in which order.

use std::fs;
use std::path::{Component, Path};

use super::plan::{MountSource, NamespacePlan, PlannedMount, Propagation, Space};
use super::prepare::{PrepareContext, PrepareError};
use crate::config::{ContainerConfig, Mount, MountKind, Share};
use crate::sys::raw::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
};

/// Docker's default size of /dev/shm.
const SHM_SIZE: u64 = 64 << 20;

const QUIET: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

/// Paths that tell about the host or change it, covered with nothing. The per-processor ones are those that this host has.
pub(super) fn masked() -> Vec<String> {
    let fixed = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ];
    let mut masked: Vec<String> = fixed.map(str::to_owned).to_vec();
    for entry in fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten() {
        let throttle = entry.path().join("thermal_throttle");
        if throttle.is_dir() {
            masked.push(throttle.to_string_lossy().into_owned());
        }
    }
    masked.sort();
    masked
}

/// Paths through which the kernel is changed.
pub(super) fn read_only() -> Vec<String> {
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(str::to_owned).to_vec()
}

/// The default mounts, the generated files, then the user's by depth. A user's mount at a default's target replaces it.
pub(super) fn plan(
    config: &ContainerConfig,
    context: &PrepareContext,
    namespaces: &NamespacePlan,
) -> Result<Vec<PlannedMount>, PrepareError> {
    let mut asked = Vec::new();
    for mount in &config.mounts {
        asked.push(user_mount(mount, context)?);
    }
    for (index, file) in config.files.iter().enumerate() {
        let target = clean("files", &file.target)?;
        let Some(directory) = &context.files else {
            return Err(PrepareError::invalid("files", format!("{target} has no content to show")));
        };
        let mut mount = bind(target, directory.join(index.to_string()), QUIET | MOUNT_ATTR_RDONLY);
        made_for_it(&mut mount);
        asked.push(mount);
    }
    let taken = |target: &str| asked.iter().any(|mount| mount.target == target);
    let below_dev = |mount: &PlannedMount| taken("/dev") && mount.target.starts_with("/dev/");
    let mut planned: Vec<_> =
        defaults(config, namespaces).into_iter().filter(|mount| !taken(&mount.target) && !below_dev(mount)).collect();
    let generated = [
        ("/etc/resolv.conf", &context.resolv_conf),
        ("/etc/hostname", &context.hostname),
        ("/etc/hosts", &context.hosts),
    ];
    for (target, source) in generated {
        if let Some(source) = source.as_ref().filter(|_| !taken(target)) {
            let mut mount =
                bind(target.to_owned(), source.clone(), if config.read_only { MOUNT_ATTR_RDONLY } else { 0 });
            made_for_it(&mut mount);
            if let MountSource::Bind { replace, .. } = &mut mount.source {
                *replace = true;
            }
            planned.push(mount);
        }
    }
    // Stable, so that equals keep the order in which they were written.
    asked.sort_by_key(|mount| mount.target.split('/').count());
    planned.extend(asked);
    Ok(planned)
}

fn defaults(config: &ContainerConfig, namespaces: &NamespacePlan) -> Vec<PlannedMount> {
    let mount = |target: &str, source, attrs| PlannedMount { target: target.to_owned(), source, attrs };
    let locked = if config.privileged { 0 } else { MOUNT_ATTR_RDONLY };
    let mut planned = vec![
        mount("/proc", MountSource::Proc, QUIET),
        mount("/dev", MountSource::Dev, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME),
        mount("/dev/pts", MountSource::DevPts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC),
        mount("/sys", MountSource::Sys, QUIET | locked),
        mount("/sys/fs/cgroup", MountSource::Cgroup, QUIET | locked),
    ];
    let host = |path: &str| MountSource::Bind {
        source: path.into(),
        subpath: String::new(),
        create: false,
        recursive: false,
        replace: false,
        mapped: true,
        propagation: Propagation::Private,
    };
    let size = if config.shm_size == 0 { SHM_SIZE } else { config.shm_size };
    let shm = |size: u64| MountSource::Tmpfs {
        options: vec![
            ("source".to_owned(), "shm".to_owned()),
            ("mode".to_owned(), "1777".to_owned()),
            ("size".to_owned(), size.to_string()),
        ],
        inherit_mode: false,
    };
    match namespaces.ipc {
        Space::Host => {
            if Path::new("/dev/mqueue").is_dir() {
                planned.push(mount("/dev/mqueue", host("/dev/mqueue"), QUIET));
            }
            planned.push(mount("/dev/shm", host("/dev/shm"), QUIET));
        }
        Space::Of(container) => {
            planned.push(mount("/dev/mqueue", MountSource::Mqueue, QUIET));
            planned.push(mount("/dev/shm", MountSource::Foreign { container, path: "/dev/shm".to_owned() }, QUIET));
        }
        Space::New => {
            planned.push(mount("/dev/mqueue", MountSource::Mqueue, QUIET));
            if config.namespaces.ipc != Share::None {
                planned.push(mount("/dev/shm", shm(size), QUIET));
            }
        }
    }
    planned
}

fn bind(target: String, source: std::path::PathBuf, attrs: u64) -> PlannedMount {
    let source = MountSource::Bind {
        source,
        subpath: String::new(),
        create: false,
        recursive: true,
        replace: false,
        mapped: true,
        propagation: Propagation::Private,
    };
    PlannedMount { target, source, attrs }
}

/// A file that the engine made for this container belongs to its ids already; the tmpfs it may be on maps none before Linux 6.3.
fn made_for_it(mount: &mut PlannedMount) {
    if let MountSource::Bind { mapped, .. } = &mut mount.source {
        *mapped = false;
    }
}

fn user_mount(mount: &Mount, context: &PrepareContext) -> Result<PlannedMount, PrepareError> {
    let target = clean("volumes", &mount.target)?;
    let locked = if mount.read_only { MOUNT_ATTR_RDONLY } else { 0 };
    let refuse = |problem: String| PrepareError::invalid(format!("volumes.{target}"), problem);
    match &mount.kind {
        MountKind::Bind { source, create_host_path, propagation, recursive } => {
            if !source.is_absolute() {
                return Err(refuse(format!("the host path {} is not absolute", source.display())));
            }
            let propagation = match propagation.as_str() {
                "" | "private" | "rprivate" => Propagation::Private,
                "slave" | "rslave" => Propagation::Slave,
                "shared" | "rshared" => Propagation::Shared,
                other => {
                    return Err(refuse(format!("{other:?} is not a propagation; write rprivate, rslave or rshared")));
                }
            };
            let mut planned = bind(target, source.clone(), locked);
            if let MountSource::Bind {
                create, recursive: planned_recursive, propagation: planned_propagation, ..
            } = &mut planned.source
            {
                (*create, *planned_recursive, *planned_propagation) = (*create_host_path, *recursive, propagation);
            }
            Ok(planned)
        }
        MountKind::Volume { name, subpath, .. } => {
            let Some(directory) = context.volumes.get(name) else {
                return Err(refuse(format!("there is no volume {name:?}")));
            };
            let local =
                |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if !local(Path::new(subpath)) {
                return Err(refuse(format!("the subpath {subpath:?} must be relative and without `..`")));
            }
            let mut planned = bind(target, directory.clone(), locked);
            if let MountSource::Bind { subpath: planned_subpath, .. } = &mut planned.source {
                planned_subpath.clone_from(subpath);
            }
            Ok(planned)
        }
        MountKind::Tmpfs { options } => {
            let (options, attrs) = tmpfs_options(options).map_err(refuse)?;
            // What is at /dev/shm is a directory that we made: it says nothing of what whoever writes there may do.
            let inherit_mode = target != "/dev/shm" && !options.iter().any(|(key, _)| key == "mode");
            Ok(PlannedMount { target, source: MountSource::Tmpfs { options, inherit_mode }, attrs: attrs | locked })
        }
    }
}

/// mount(8)'s words over Docker's defaults; what is no mount attribute goes to the file system.
fn tmpfs_options(text: &str) -> Result<(Vec<(String, String)>, u64), String> {
    let mut attrs = QUIET;
    let mut options = Vec::new();
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let flag = |attr: u64, on: bool, attrs: &mut u64| if on { *attrs |= attr } else { *attrs &= !attr };
        match word {
            "ro" => flag(MOUNT_ATTR_RDONLY, true, &mut attrs),
            "rw" => flag(MOUNT_ATTR_RDONLY, false, &mut attrs),
            "nosuid" => flag(MOUNT_ATTR_NOSUID, true, &mut attrs),
            "suid" => flag(MOUNT_ATTR_NOSUID, false, &mut attrs),
            "nodev" => flag(MOUNT_ATTR_NODEV, true, &mut attrs),
            "dev" => flag(MOUNT_ATTR_NODEV, false, &mut attrs),
            "noexec" => flag(MOUNT_ATTR_NOEXEC, true, &mut attrs),
            "exec" => flag(MOUNT_ATTR_NOEXEC, false, &mut attrs),
            "noatime" => flag(MOUNT_ATTR_NOATIME, true, &mut attrs),
            "strictatime" => flag(MOUNT_ATTR_STRICTATIME, true, &mut attrs),
            // The kernel's default, and propagation that is private anyway.
            "relatime" | "private" | "rprivate" | "defaults" => {}
            _ => {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                if !matches!(key, "size" | "mode" | "uid" | "gid" | "nr_inodes" | "nr_blocks" | "huge" | "mpol")
                    || value.is_empty()
                {
                    return Err(format!("{word:?} is not an option of tmpfs"));
                }
                options.retain(|(known, _): &(String, String)| known != key);
                options.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    Ok((options, attrs))
}

/// An absolute path inside without `.`, `..` and repeated slashes. Never the root, never procfs or inside it.
fn clean(field: &str, target: &str) -> Result<String, PrepareError> {
    let refuse = |problem: &str| Err(PrepareError::invalid(format!("{field}.{target}"), problem));
    if !target.starts_with('/') {
        return refuse("the target is not an absolute path");
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    match parts[..] {
        [] => refuse("the target is the root itself"),
        ["proc", ..] => refuse("nothing may be mounted on or inside /proc"),
        _ => Ok(format!("/{}", parts.join("/"))),
    }
}
