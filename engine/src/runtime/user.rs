//! Who a process runs as: names resolved inside the image, never through the host's databases or any plug-in of libc.
//!
//! The files are hostile: they are opened inside the root without magic links, must be regular, and are read up to
//! [`LIMIT`] bytes (CVE-2026-47262).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::plan::Identity;
use super::prepare::PrepareError;
use crate::copy::root::Root;
use crate::sys::{overlay_of_single_layers, own, raw};

/// Bytes of a passwd or group file: a directory of 100 000 users fits.
const LIMIT: u64 = 10 << 20;

/// The largest user and group number: the kernel's last value means "unchanged", and what is above 2³¹ − 1 wraps to negative numbers in
/// some programs (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX as u32;

/// Why a user or group could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The name is not in the image's file.
    #[error("{kind} {name:?} is not in the image's {file}")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// As written.
        name: String,
        /// Which file.
        file: &'static str,
    },
    /// A number above what is allowed.
    #[error("{kind} {name} is above 2147483647")]
    Range {
        /// `user` or `group`.
        kind: &'static str,
        /// As written.
        name: String,
    },
    /// The file is not one.
    #[error("{file} in the image is not a regular file of at most 10 MiB")]
    NotPlain {
        /// Which file.
        file: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read {file} in the image")]
    Read {
        /// Which file.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A resolved user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups, sorted, the primary one among them (CVE-2022-36109).
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// A container's root as the agent sees it.
pub(super) struct View(OwnedFd);

impl View {
    /// The layers of a container that does not run, put together read-only. The container's own layer is the topmost: what it changed
    /// counts after a restart. Old kernels put many layers together only where they can mount them for a moment: on `scratch`.
    pub(super) fn of_layers(lower: &[PathBuf], upper: &Path, scratch: &Path) -> Result<Self, PrepareError> {
        let open = |path: &Path| {
            let opened = File::open(path).map_err(|source| PrepareError::Read { path: path.to_owned(), source })?;
            Ok::<_, PrepareError>(OwnedFd::from(opened))
        };
        // A new container has changed nothing.
        let mut layers: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        if upper.join("etc").symlink_metadata().is_ok() {
            layers.push(upper);
        }
        match layers[..] {
            [] => open(upper).map(Self),
            [only] => open(only).map(Self),
            _ => {
                let opened = layers.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
                let merged = merged(&opened).and_then(|merged| match merged {
                    Some(merged) => Ok(merged),
                    None => {
                        let layers: Vec<PathBuf> = layers.iter().map(|path| (*path).to_owned()).collect();
                        Root::of_layers(&layers, None, scratch).map(OwnedFd::from)
                    }
                });
                merged.map(Self).map_err(|source| PrepareError::Read { path: layers[0].to_owned(), source })
            }
        }
    }

    /// The root of a running process.
    pub(super) fn of_process(identity: Identity) -> Result<Self, PrepareError> {
        let gone = || PrepareError::Gone { pid: identity.pid };
        let root = File::open(format!("/proc/{}/root", identity.pid)).map_err(|_| gone())?;
        // Opened first, then checked: a number that was reused is seen.
        if identity.exists() { Ok(Self(root.into())) } else { Err(gone()) }
    }

    /// A text file inside; `None` when there is none.
    fn read(&self, file: &'static str) -> Result<Option<String>, UserError> {
        let failed = |source: io::Error| UserError::Read { file, source };
        let path = std::ffi::CString::new(file).map_err(|error| failed(error.into()))?;
        // First a handle, which opens no device and waits for no FIFO.
        let handle = match raw::openat2(self.0.as_raw_fd(), &path, libc::O_PATH, 0, raw::IN_ROOT | raw::NO_MAGICLINKS) {
            Ok(fd) => own(fd),
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => return Ok(None),
            Err(errno) => return Err(failed(errno.into())),
        };
        let stat = raw::fstat(handle.as_raw_fd()).map_err(|errno| failed(errno.into()))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || u64::try_from(stat.st_size).unwrap_or(u64::MAX) > LIMIT {
            return Err(UserError::NotPlain { file });
        }
        let opened = File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map_err(failed)?;
        let mut bytes = Vec::new();
        opened.take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LIMIT {
            return Err(UserError::NotPlain { file });
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// A detached, read-only overlay of layers, lowest first; `None` where the kernel puts so many together only by mounting them.
fn merged(layers: &[OwnedFd]) -> io::Result<Option<OwnedFd>> {
    let Some(context) = overlay_of_single_layers()? else {
        return merged_by_options(layers);
    };
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let text = |text: String| std::ffi::CString::new(text).map_err(io::Error::from);
    for layer in layers.iter().rev() {
        match raw::fsconfig_string(context.as_raw_fd(), c"lowerdir+", text(name(layer))?.as_c_str()) {
            // Before 6.8.
            Err(nix::errno::Errno::EINVAL) => return merged_by_options(layers),
            other => other?,
        }
    }
    raw::fsconfig_create(context.as_raw_fd())?;
    fsmount(&context).map(Some)
}

fn fsmount(context: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(own(raw::fsmount(context.as_raw_fd(), raw::MOUNT_ATTR_RDONLY | raw::MOUNT_ATTR_NODEV | raw::MOUNT_ATTR_NOEXEC)?))
}

/// fsconfig before 6.8 takes `lowerdir` in at most 255 bytes: ten layers by descriptors of up to six digits.
fn merged_by_options(layers: &[OwnedFd]) -> io::Result<Option<OwnedFd>> {
    if layers.len() > 10 {
        return Ok(None);
    }
    let context = own(raw::fsopen(c"overlay")?);
    let names: Vec<_> = layers.iter().rev().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    let value = std::ffi::CString::new(names.join(":"))?;
    raw::fsconfig_string(context.as_raw_fd(), c"lowerdir", &value)?;
    raw::fsconfig_create(context.as_raw_fd())?;
    fsmount(&context).map(Some)
}

/// A line of passwd (`name:x:uid:gid:comment:home:shell`) or group (`name:x:gid:members`).
#[derive(Debug, Clone, Copy, Default)]
struct Entry<'a> {
    name: &'a str,
    id: Option<u32>,
    /// passwd only.
    gid: Option<u32>,
    /// group only.
    members: &'a str,
    /// passwd only.
    home: &'a str,
}

fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut fields = line.split(':');
        let mut next = || fields.next().unwrap_or("");
        let (name, _, id, fourth, _, home) = (next(), next(), next(), next(), next(), next());
        Entry { name, id: id.parse().ok(), gid: fourth.parse().ok(), members: fourth, home }
    })
}

/// A number, if the text is one; digits that are too many are an error and never a name.
fn number(kind: &'static str, text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(number) if number <= MAX_ID => Ok(Some(number)),
        _ => Err(UserError::Range { kind, name: text.to_owned() }),
    }
}

fn in_range(kind: &'static str, name: &str, id: Option<u32>) -> Result<u32, UserError> {
    id.filter(|id| *id <= MAX_ID).ok_or_else(|| UserError::Range { kind, name: name.to_owned() })
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> UserError {
    UserError::Unknown { kind, name: name.to_owned(), file }
}

/// Resolves `user[:group]` and additional groups. A number is never looked up as a name (CVE-2016-3697); the first line that matches
/// counts.
pub(super) fn resolve(view: &View, user: &str, group_add: &[String]) -> Result<User, UserError> {
    let passwd = view.read("/etc/passwd")?.unwrap_or_default();
    let (name, group) = user.split_once(':').unwrap_or((user, ""));
    let name = if name.is_empty() { "0" } else { name };
    let entry = match number("user", name)? {
        Some(uid) => {
            entries(&passwd).find(|entry| entry.id == Some(uid)).unwrap_or(Entry { id: Some(uid), ..Entry::default() })
        }
        None => {
            entries(&passwd).find(|entry| entry.name == name).ok_or_else(|| unknown("user", name, "/etc/passwd"))?
        }
    };
    let uid = in_range("user", name, entry.id)?;
    let named_groups = !group.is_empty() || !group_add.is_empty();
    let own_groups = group.is_empty() && !entry.name.is_empty();
    // Read only when something depends on it: an odd file must not stop a container of numbers.
    let database =
        if named_groups || own_groups { view.read("/etc/group")?.unwrap_or_default() } else { String::new() };
    let lookup = |name: &str| match number("group", name)? {
        Some(gid) => Ok(gid),
        None => {
            let entry = entries(&database)
                .find(|entry| entry.name == name)
                .ok_or_else(|| unknown("group", name, "/etc/group"))?;
            in_range("group", name, entry.id)
        }
    };
    let gid = match group {
        "" => entry.gid.map_or(Ok(0), |gid| in_range("group", name, Some(gid)))?,
        group => lookup(group)?,
    };
    let mut groups = group_add.iter().map(|name| lookup(name)).collect::<Result<Vec<_>, _>>()?;
    groups.push(gid);
    if own_groups {
        let ours = entries(&database).filter(|group| group.members.split(',').any(|member| member == entry.name));
        groups.extend(ours.filter_map(|group| group.id).filter(|gid| *gid <= MAX_ID));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid, gid, groups, home: if entry.home.is_empty() { "/".to_owned() } else { entry.home.to_owned() } })
}
