//! Which control group hierarchies this host has and where in them we may make groups.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// Where the engine's own processes are below a base that is not the root: no group with controllers may have processes of its own. A
/// systemd unit names the same by `DelegateSubgroup=`.
pub(super) const LEAF: &str = "engine";

/// What went wrong with a control group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A group could not be made.
    #[error("cannot make the control group {}", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A group could not be removed.
    #[error("cannot remove the control group {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has content that no kernel writes.
    #[error("{} holds {content:?}, which is not what the kernel writes there", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What it holds.
        content: String,
    },
    /// No hierarchy is mounted.
    #[error("no control group file system is mounted; mount cgroup2 at /sys/fs/cgroup")]
    NotMounted,
    /// The host lacks what was asked for.
    #[error("{what} needs the {controller} controller, which this host does not have")]
    NoController {
        /// The limit.
        what: String,
        /// Its controller.
        controller: &'static str,
    },
    /// The device filter was refused.
    #[error("cannot {action} the device filter")]
    DeviceFilter {
        /// `load` or `attach`.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The group did not freeze, thaw or empty in time.
    #[error("the control group {} did not {what} within {seconds} s", path.display())]
    Timeout {
        /// Which.
        path: PathBuf,
        /// What it should have done.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// A limit that makes no sense.
    #[error("{limit}: {problem}")]
    Limit {
        /// Which.
        limit: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A path that would leave the engine's own tree.
    #[error("the control group path {path:?} is not a plain relative path")]
    Path {
        /// The path.
        path: String,
    },
}

impl CgroupError {
    /// Whether the group was not there, or went meanwhile: its files then say ENODEV to who has them open.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Create { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
            }
            _ => false,
        }
    }
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The group below the mount under which we make ours; empty is the mount itself.
    pub base: String,
    /// Its controllers: v1's words (`cpu`, `cpuacct`, `name=systemd`) or v2's.
    pub controllers: BTreeSet<String>,
}

impl Hierarchy {
    /// The directory of a group of ours.
    #[must_use]
    pub fn directory(&self, path: &str) -> PathBuf {
        let mut directory = self.mount.clone();
        for part in [self.base.as_str(), path] {
            directory.push(part.trim_start_matches('/'));
        }
        directory
    }
}

/// The host's hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// cgroup v2, with or without controllers.
    pub v2: Option<Hierarchy>,
    /// cgroup v1, one per mount.
    pub v1: Vec<Hierarchy>,
}

impl Layout {
    /// Looks at what is mounted.
    ///
    /// # Errors
    /// When procfs cannot be read or no control group file system is mounted.
    pub fn detect() -> Result<Self, CgroupError> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|source| CgroupError::Read { path: PathBuf::from(path), source })
        };
        let mut layout = Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        if layout.v2.is_none() && layout.v1.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        if let Some(v2) = &mut layout.v2 {
            v2.base = delegated_base(&v2.base, |group| is_delegated(&v2.mount.join(group)));
            v2.controllers = read_words(&v2.directory("cgroup.controllers"))?;
        }
        Ok(layout)
    }

    /// Makes the base of v2 the one below which a running container of ours is; `root` is the group of all of ours.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub(crate) fn go_on_where(&mut self, container: i32, root: &str) -> Result<(), CgroupError> {
        let Some(v2) = &mut self.v2 else { return Ok(()) };
        // One that has just ended says nothing.
        let groups = fs::read_to_string(format!("/proc/{container}/cgroup")).unwrap_or_default();
        let Some(base) = groups.lines().find_map(|line| base_above(line.strip_prefix("0::")?, root)) else {
            return Ok(());
        };
        // The mount may show a part of the hierarchy, whose paths begin elsewhere.
        if base != v2.base && v2.mount.join(&base).join(root).is_dir() {
            v2.base = base;
            v2.controllers = read_words(&v2.directory("cgroup.controllers"))?;
        }
        Ok(())
    }

    /// The pure part of [`Self::detect`]: hierarchies from mountinfo, v2's base being our own group.
    fn parse(mountinfo: &str, cgroups: &str) -> Self {
        let mut layout = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            let mut fields = left.split(' ').skip(3);
            let (Some(root), Some(mount)) = (fields.next(), fields.next()) else { continue };
            let mount = PathBuf::from(unescape(mount));
            match kind {
                "cgroup2" if layout.v2.is_none() => {
                    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
                    let base = own.strip_prefix(root).unwrap_or("").trim_matches('/').to_owned();
                    layout.v2 = Some(Hierarchy { mount, base, controllers: BTreeSet::new() });
                }
                "cgroup" => {
                    // Super block options: `rw,cpu,cpuacct` or `rw,xattr,name=systemd`.
                    let controllers: BTreeSet<String> = options
                        .split(',')
                        .filter(|word| {
                            !matches!(*word, "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "cpuset_v2_mode")
                        })
                        .filter(|word| !word.starts_with("release_agent="))
                        .map(str::to_owned)
                        .collect();
                    // Mounted twice: one is enough.
                    if !layout.v1.iter().any(|known| known.controllers == controllers) {
                        layout.v1.push(Hierarchy { mount, base: String::new(), controllers });
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// The v1 hierarchy of a controller.
    #[must_use]
    pub fn v1_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.contains(controller))
    }

    /// Whether a controller is had through v2.
    #[must_use]
    pub fn v2_has(&self, controller: &str) -> bool {
        self.v2.as_ref().is_some_and(|v2| v2.controllers.contains(controller))
    }
}

/// Below which group ours are made: the one that we are in if it was left to us; the one above if we are in the leaf of one that was;
/// else the root.
fn delegated_base(own: &str, delegated: impl Fn(&str) -> bool) -> String {
    let above = own.rsplit_once('/').filter(|(_, name)| *name == LEAF).map(|(above, _)| above);
    [Some(own), above].into_iter().flatten().find(|group| delegated(group)).unwrap_or("").to_owned()
}

/// The group that holds `root` on the way to a container's group.
fn base_above(path: &str, root: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let at = parts.iter().position(|part| *part == root)?;
    Some(parts[..at].join("/"))
}

/// systemd marks a group that it leaves to its service (`Delegate=yes`) with an extended attribute: `trusted.delegate` since 240,
/// `user.delegate` since 251.
fn is_delegated(directory: &Path) -> bool {
    ["trusted.delegate", "user.delegate"]
        .iter()
        .any(|name| crate::sys::extended_attribute(directory, name).is_some_and(|value| value == b"1"))
}

/// The words of a file such as `cgroup.controllers`.
fn read_words(path: &Path) -> Result<BTreeSet<String>, CgroupError> {
    let text = fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// mountinfo writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(layout: &Layout) -> Vec<String> {
        let line = |version: &str, hierarchy: &Hierarchy| {
            let controllers: Vec<_> = hierarchy.controllers.iter().map(String::as_str).collect();
            format!("{version} {} base={:?} {}", hierarchy.mount.display(), hierarchy.base, controllers.join(","))
        };
        layout.v2.iter().map(|v2| line("v2", v2)).chain(layout.v1.iter().map(|v1| line("v1", v1))).collect()
    }

    #[test]
    fn a_unified_host_has_one_hierarchy_and_our_own_group_as_base() {
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        let layout = Layout::parse(mountinfo, "0::/system.slice/orch.service\n");
        assert_eq!(shown(&layout), [r#"v2 /sys/fs/cgroup base="system.slice/orch.service" "#]);
    }

    #[test]
    fn the_base_is_what_was_delegated_also_from_its_leaf() {
        let delegated = |group: &str| group == "system.slice/orch.service";
        for (own, base) in [
            ("system.slice/orch.service", "system.slice/orch.service"),
            ("system.slice/orch.service/engine", "system.slice/orch.service"),
            ("system.slice/orch.service/other", ""),
            ("user.slice/session-1.scope", ""),
            ("engine", ""),
            ("", ""),
        ] {
            assert_eq!(delegated_base(own, delegated), base, "in {own:?}");
        }
    }

    #[test]
    fn the_base_is_what_holds_the_group_of_all_containers() {
        assert_eq!(base_above("/orch/s/6edc85441c44", "orch").as_deref(), Some(""));
        let unit = "/system.slice/orch.service/orch/orch/6edc85441c44";
        assert_eq!(base_above(unit, "orch").as_deref(), Some("system.slice/orch.service"));
        assert_eq!(base_above("/user.slice/session-1.scope", "orch"), None);
    }

    #[test]
    fn a_hybrid_host_has_combined_mounts_and_named_hierarchies() {
        let mountinfo = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:30 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n\
            42 31 0:30 / /mnt/memory rw - cgroup cgroup rw,memory\n";
        let layout = Layout::parse(mountinfo, "4:memory:/x\n0::/\n");
        assert_eq!(
            shown(&layout),
            [
                r#"v2 /sys/fs/cgroup/uni fied base="" "#,
                r#"v1 /sys/fs/cgroup/cpu,cpuacct base="" cpu,cpuacct"#,
                r#"v1 /sys/fs/cgroup/memory base="" memory"#,
                r#"v1 /sys/fs/cgroup/systemd base="" name=systemd"#,
            ]
        );
    }
}
