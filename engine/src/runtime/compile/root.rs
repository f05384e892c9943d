//! The root file system's part of a plan: layers mounted detached, bind sources cloned, everything else as operations.

mod idmapped;

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;

use super::super::plan::{LaunchPlan, MountSource, PlannedMount, Propagation, RootPlan};
use super::{Compiler, LaunchError, open_error, text};
use crate::cgroup::Cgroup;
use crate::sys::child::{Base, Entry, Op, OverlayOptions, Place, Root};
use crate::sys::raw::{self, MountAttr};
use crate::sys::{overlay_of_single_layers, own};

/// fsconfig(2) copies at most this many bytes of a string, its NUL included.
const FSCONFIG_LIMIT: usize = 256;

/// mount(2) copies at most one page of options.
const PAGE: usize = 4096;

impl Compiler<'_> {
    /// The root and, for each of its operations, what an error calls it.
    pub(super) fn root(&mut self, plan: &LaunchPlan, cgroup: &Cgroup) -> Result<(Root, Vec<String>), LaunchError> {
        if plan.root.volatile {
            forget_volatile(&plan.root.work)?;
        }
        let base = match self.own_ids {
            Some(_) => Base::Idmapped(self.idmapped_layers(&plan.root)?),
            None => self.overlay(&plan.root)?,
        };
        let mut ops = Vec::new();
        let mut names = Vec::new();
        for mount in &plan.mounts {
            for op in self.mount(mount, plan, cgroup)? {
                ops.push(op);
                names.push(mount.target.clone());
            }
        }
        for device in &plan.devices {
            let (directory, name) = device.target.rsplit_once('/').unwrap_or(("", &device.target));
            let directory = if directory.is_empty() { "/" } else { directory };
            let name = text("a device", name)?;
            let (uid, gid) = (self.owner(device.uid), self.owner(device.gid));
            let node = Entry::Node { name, mode: device.mode, device: device.device, uid, gid };
            ops.push(Op::Populate { directory: text("a device", directory)?, entries: vec![node] });
            names.push(device.target.clone());
        }
        // Masks after everything that could cover what they cover.
        for (paths, read_only) in [(&plan.read_only_paths, true), (&plan.masked, false)] {
            for path in paths {
                let target = text("a masked path", path)?;
                ops.push(if read_only { Op::ReadOnly { target } } else { Op::Mask { target } });
                names.push(path.clone());
            }
        }
        let root = Root {
            base,
            mountpoint: path_text(&plan.root.mountpoint)?,
            scratch: path_text(&plan.root.upper)?,
            read_only: plan.root.read_only,
            ops,
        };
        Ok((root, names))
    }

    /// The layers as a detached tree; as options for mount(2) before Linux 6.8, whose fsconfig takes no `lowerdir+` and only 256
    /// bytes of `lowerdir`.
    fn overlay(&mut self, root: &RootPlan) -> Result<Base, LaunchError> {
        if self.launcher.old_kernel {
            return overlay_options(root).map(Base::Options);
        }
        let refused = |what: &str| {
            let what = what.to_owned();
            move |errno: Errno| LaunchError::Overlay { what, source: errno.into() }
        };
        let Some(context) = overlay_of_single_layers().map_err(refused("fsopen"))? else {
            return overlay_options(root).map(Base::Options);
        };
        let set = |key: &CStr, value: &CStr| raw::fsconfig_string(context.as_raw_fd(), key, value);
        set(c"source", c"overlay").map_err(refused("source"))?;
        // An index would let nobody else look at the layer while a former mount is still being taken down.
        set(c"index", c"off").map_err(refused("index=off"))?;
        for lower in root.lower.iter().rev() {
            let value = self.short_path(lower)?;
            match set(c"lowerdir+", &value) {
                Err(Errno::EINVAL) => return overlay_options(root).map(Base::Options),
                other => other.map_err(refused(&format!("lowerdir+={}", lower.display())))?,
            }
        }
        for (key, path) in [(c"upperdir", &root.upper), (c"workdir", &root.work)] {
            let value = self.short_path(path)?;
            set(key, &value).map_err(refused(&format!("{}={}", key.to_string_lossy(), path.display())))?;
        }
        if root.volatile {
            raw::fsconfig_flag(context.as_raw_fd(), c"volatile").map_err(refused("volatile"))?;
        }
        raw::fsconfig_create(context.as_raw_fd()).map_err(refused("create"))?;
        let tree = raw::fsmount(context.as_raw_fd(), 0).map_err(refused("fsmount"))?;
        Ok(Base::Tree(self.keep(own(tree))))
    }

    fn directory(&mut self, path: &Path) -> Result<RawFd, LaunchError> {
        let name = path_text(path)?;
        let fd = raw::openat(libc::AT_FDCWD, &name, libc::O_PATH | libc::O_DIRECTORY)
            .map_err(|errno| open_error("open the directory", path, errno))?;
        Ok(self.keep(own(fd)))
    }

    /// A path that fits fsconfig(2).
    fn short_path(&mut self, path: &Path) -> Result<CString, LaunchError> {
        if path.as_os_str().len() < FSCONFIG_LIMIT {
            return path_text(path);
        }
        let fd = self.directory(path)?;
        text("a layer", &format!("/proc/self/fd/{fd}"))
    }

    fn mount(&mut self, mount: &PlannedMount, plan: &LaunchPlan, cgroup: &Cgroup) -> Result<Vec<Op>, LaunchError> {
        let target = text("a mount's target", &mount.target)?;
        let attrs = mount.attrs;
        let fresh = |kind: &'static CStr, options: &[(&str, &str)], place: Place| -> Result<Op, LaunchError> {
            let pair = |(key, value): &(&str, &str)| Ok((text("a mount option", key)?, text("a mount option", value)?));
            let mut options = options.iter().map(pair).collect::<Result<Vec<_>, LaunchError>>()?;
            if options.iter().all(|(key, _)| key.as_c_str() != c"source") {
                // What mount(8) shows as the device.
                options.push((c"source".to_owned(), kind.to_owned()));
            }
            let terminals = kind == c"devpts";
            Ok(Op::Fresh { kind, options, attrs, target: target.clone(), place, inherit_mode: false, terminals })
        };
        Ok(match &mount.source {
            MountSource::Proc => vec![Op::Proc { target, attrs }],
            MountSource::Sys => vec![fresh(c"sysfs", &[], Place::Ordinary)?],
            MountSource::Mqueue => vec![fresh(c"mqueue", &[], Place::Directory)?],
            // gid 5 is `tty` in every distribution; the terminal's group decides who may write to it.
            MountSource::DevPts => {
                let terminal_group = self.owner(5).to_string();
                vec![fresh(
                    c"devpts",
                    &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", &terminal_group)],
                    Place::Directory,
                )?]
            }
            MountSource::Dev => {
                vec![
                    fresh(c"tmpfs", &[("mode", "755"), ("size", "65536k")], Place::Ordinary)?,
                    default_devices(&target, self.owner(0)),
                ]
            }
            MountSource::Cgroup => self.cgroup(mount, plan, cgroup)?,
            MountSource::Tmpfs { options, inherit_mode } => {
                let options = self.with_own_ids(options)?;
                let options: Vec<_> = options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                let mut op = fresh(c"tmpfs", &options, Place::Directory)?;
                if let Op::Fresh { inherit_mode: inherit, .. } = &mut op {
                    *inherit = *inherit_mode;
                }
                vec![op]
            }
            MountSource::Bind { source, subpath, create, recursive, replace, mapped, propagation } => {
                if *create {
                    fs::DirBuilder::new()
                        .recursive(true)
                        .mode(0o755)
                        .create(source)
                        .or_else(|error| if source.exists() { Ok(()) } else { Err(error) })
                        .map_err(|source_error| open_error("make the directory", source, source_error))?;
                }
                let tree = self.bind(source, subpath, (*recursive, *propagation), attrs, *mapped)?;
                let stat = raw::fstat(tree.as_raw_fd()).map_err(|errno| open_error("look at", source, errno))?;
                let place = match (stat.st_mode & libc::S_IFMT == libc::S_IFDIR, *replace) {
                    (true, _) => Place::Directory,
                    (false, true) => Place::Replaceable,
                    (false, false) => Place::File,
                };
                vec![Op::Tree { tree: self.keep(tree), target, place }]
            }
            MountSource::Foreign { container, path } => {
                let file = format!("/proc/{}/ns/mnt", container.pid);
                let opened = File::open(&file).map_err(|source| open_error("open", Path::new(&file), source))?;
                // Opened first, then checked: a number that was reused is seen.
                if !container.exists() {
                    return Err(LaunchError::Gone { pid: container.pid });
                }
                let mount_namespace = self.keep(opened.into());
                vec![Op::Foreign { mount_namespace, source: text("a mount's source", path)?, attrs, target }]
            }
        })
    }

    /// cgroup v2: a new view, rooted by the namespace. v1: a tmpfs with one bind per hierarchy, as images expect it.
    fn cgroup(&mut self, mount: &PlannedMount, plan: &LaunchPlan, cgroup: &Cgroup) -> Result<Vec<Op>, LaunchError> {
        let target = text("a mount's target", &mount.target)?;
        let layout = &plan.cgroup.layout;
        if layout.v1.is_empty() {
            let op = Op::Fresh {
                kind: c"cgroup2",
                options: Vec::new(),
                attrs: mount.attrs,
                target,
                place: Place::Directory,
                inherit_mode: false,
                terminals: false,
            };
            return Ok(vec![op]);
        }
        let base = raw::MOUNT_ATTR_NOSUID | raw::MOUNT_ATTR_NODEV | raw::MOUNT_ATTR_NOEXEC;
        let mut ops = vec![Op::Fresh {
            kind: c"tmpfs",
            options: vec![(c"mode".to_owned(), c"755".to_owned())],
            attrs: base,
            target: target.clone(),
            place: Place::Directory,
            inherit_mode: false,
            terminals: false,
        }];
        for (directory, names) in cgroup.v1_views() {
            // `cpu,cpuacct` as one directory, and a link for each word of it.
            let joined =
                names.iter().map(|name| name.strip_prefix("name=").unwrap_or(name)).collect::<Vec<_>>().join(",");
            let tree = open_bind(&directory, "", false)?;
            set_attributes(&tree, &directory, (false, Propagation::Private), mount.attrs)?;
            let inside = text("a control group", &format!("{}/{joined}", mount.target))?;
            ops.push(Op::Tree { tree: self.keep(tree), target: inside, place: Place::Directory });
            if names.len() > 1 {
                let link = |name: &String| {
                    Ok(Entry::Link { name: text("a controller", name)?, target: text("a controller", &joined)? })
                };
                let entries = names.iter().map(link).collect::<Result<_, LaunchError>>()?;
                ops.push(Op::Populate { directory: target.clone(), entries });
            }
        }
        ops.push(Op::ReadOnly { target });
        if mount.attrs & raw::MOUNT_ATTR_RDONLY == 0 {
            ops.pop();
        }
        Ok(ops)
    }
}

/// Overlayfs marks what a volatile mount has used and refuses it ever after, for it cannot know whether the power was cut meanwhile. Here it
/// was not: what comes back after that is removed, not started.
fn forget_volatile(work: &Path) -> Result<(), LaunchError> {
    match fs::remove_dir_all(work.join("work/incompat/volatile")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(LaunchError::Overlay { what: format!("volatile={}", work.display()), source: e })
        }
        _ => Ok(()),
    }
}

/// mount(2)'s options fit one page, so layers are named from the deepest directory that all lie in: some fifty fit. By descriptor more
/// would, but the kernel takes no directory that was opened in another mount namespace.
fn overlay_options(root: &RootPlan) -> Result<OverlayOptions, LaunchError> {
    let all = || root.lower.iter().chain([&root.upper, &root.work]);
    let mut common = root.upper.as_path();
    while let Some(parent) = common.parent() {
        common = parent;
        if all().all(|path| path.starts_with(common)) {
            break;
        }
    }
    let relative = |path: &Path| {
        let text = path.strip_prefix(common).unwrap_or(path).to_string_lossy().into_owned();
        // The characters that the option's own grammar uses.
        text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
    };
    let lower = root.lower.iter().rev().map(|path| relative(path)).collect::<Vec<_>>().join(":");
    let mut options =
        format!("index=off,lowerdir={lower},upperdir={},workdir={}", relative(&root.upper), relative(&root.work));
    if root.volatile {
        options.push_str(",volatile");
    }
    if options.len() >= PAGE {
        return Err(LaunchError::Overlay {
            what: format!("{} layers, more than this kernel takes; Linux 6.8 and later take them", root.lower.len()),
            source: io::Error::from(io::ErrorKind::ArgumentListTooLong),
        });
    }
    Ok(OverlayOptions { directory: path_text(common)?, options: text("the layers", &options)? })
}

/// Clones a path of the host as a detached tree.
fn open_bind(source: &Path, subpath: &str, recursive: bool) -> Result<OwnedFd, LaunchError> {
    let mut opened = own(raw::openat(libc::AT_FDCWD, &path_text(source)?, libc::O_PATH)
        .map_err(|errno| open_error("open the mount's source", source, errno))?);
    if !subpath.is_empty() {
        let resolve = raw::IN_ROOT | raw::NO_MAGICLINKS;
        let below = raw::openat2(opened.as_raw_fd(), &text("a subpath", subpath)?, libc::O_PATH, 0, resolve);
        opened = own(below.map_err(|errno| open_error("open the mount's source", &source.join(subpath), errno))?);
    }
    let flags = raw::OPEN_TREE_CLONE | raw::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    let flags = flags | if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let tree = raw::open_tree(opened.as_raw_fd(), c"", flags).map_err(|errno| open_error("bind", source, errno))?;
    Ok(own(tree))
}

/// Gives a detached tree, whole or its top mount only, attributes and propagation.
fn set_attributes(
    tree: &OwnedFd,
    source: &Path,
    (recursive, propagation): (bool, Propagation),
    attrs: u64,
) -> Result<(), LaunchError> {
    // One call: read-only for the whole tree, no window in which a part of it is writable.
    let attr = MountAttr { set: attrs, propagation: propagation_flag(propagation), ..MountAttr::default() };
    raw::mount_setattr(tree.as_raw_fd(), recursive, &attr)
        .map_err(|errno| open_error("set the mount attributes of", source, errno))
}

fn propagation_flag(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    }
}

/// The six devices every container has, the links beside them, and the directories that other mounts need.
fn default_devices(dev: &CStr, owner: u32) -> Op {
    let node = |name: &CStr, major, minor| Entry::Node {
        name: name.to_owned(),
        mode: libc::S_IFCHR | 0o666,
        device: libc::makedev(major, minor),
        uid: owner,
        gid: owner,
    };
    let link = |name: &CStr, target: &CStr| Entry::Link { name: name.to_owned(), target: target.to_owned() };
    let directory = |name: &CStr| Entry::Directory { name: name.to_owned(), mode: 0o755 };
    let mut entries = vec![
        node(c"null", 1, 3),
        node(c"zero", 1, 5),
        node(c"full", 1, 7),
        node(c"random", 1, 8),
        node(c"urandom", 1, 9),
        node(c"tty", 5, 0),
        link(c"ptmx", c"pts/ptmx"),
        link(c"fd", c"/proc/self/fd"),
        link(c"stdin", c"/proc/self/fd/0"),
        link(c"stdout", c"/proc/self/fd/1"),
        link(c"stderr", c"/proc/self/fd/2"),
        directory(c"pts"),
        directory(c"shm"),
        directory(c"mqueue"),
    ];
    if Path::new("/proc/kcore").exists() {
        entries.push(link(c"core", c"/proc/kcore"));
    }
    Op::Populate { directory: dev.to_owned(), entries }
}

fn path_text(path: &Path) -> Result<CString, LaunchError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| open_error("name", path, io::Error::from(io::ErrorKind::InvalidInput)))
}
