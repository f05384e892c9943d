//! The layer being unpacked over the layers below it, seen as one tree.
//!
//! Layers are unpacked apart from each other but were made one over the other. Three things need the view of the whole: a parent
//! directory that the archive does not mention must look like the one below; a parent that is a symbolic link below (`var/run ->
//! /run`) must be followed, inside the image, or a directory would hide the link; a hard link may name a file of a layer below.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};

use super::{OVERLAY_OPAQUE, copy_directory, copy_xattrs};
use crate::sys::xattr;

/// A path as names below the root of the image, none of them empty, `.` or `..`.
pub(super) type Names = Vec<Vec<u8>>;

/// The kernel's own limit of links followed in one path.
const MAX_LINKS: usize = 40;

/// Bytes of default ACLs kept until the end; real layers have none or a handful.
const MAX_DEFAULT_ACLS: usize = 16 << 20;

pub(super) struct Tree {
    top: OwnedFd,
    lowers: Vec<OwnedFd>,
    /// Default ACLs of directories wait for the end: children made later would inherit them.
    default_acls: Vec<(Names, Vec<u8>)>,
    default_acl_bytes: usize,
}

/// Where a name was found.
struct Found {
    /// Its directory, in whichever layer.
    parent: OwnedFd,
    stat: FileStat,
}

impl Tree {
    pub(super) fn new(top: OwnedFd, lowers: Vec<OwnedFd>) -> Self {
        Self { top, lowers, default_acls: Vec::new(), default_acl_bytes: 0 }
    }

    pub(super) fn default_acls(&self) -> &[(Names, Vec<u8>)] {
        &self.default_acls
    }

    pub(super) fn keep_default_acl(&mut self, names: Names, acl: &[u8]) -> io::Result<()> {
        // A name costs its bytes and about as much again for its vector.
        self.default_acl_bytes += acl.len() + names.iter().map(|name| name.len() + 32).sum::<usize>() + 64;
        if self.default_acl_bytes > MAX_DEFAULT_ACLS {
            return Err(io::Error::other(format!(
                "the default ACLs of this layer exceed the limit of {MAX_DEFAULT_ACLS} bytes"
            )));
        }
        self.default_acls.push((names, acl.to_vec()));
        Ok(())
    }

    pub(super) fn has_lowers(&self) -> bool {
        !self.lowers.is_empty()
    }

    pub(super) fn root(&self) -> io::Result<OwnedFd> {
        self.top.try_clone()
    }

    /// Opens a directory of the layer being unpacked; `None` when a name on the way is missing, a link, or no directory.
    pub(super) fn open(&self, names: &[Vec<u8>]) -> io::Result<Option<OwnedFd>> {
        if names.is_empty() {
            return self.root().map(Some);
        }
        let how =
            OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        match openat2(&self.top, OsStr::from_bytes(&names.join(&b'/')), how) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Follows symbolic links of this and the lower layers inside the image; what does not exist stays as it is written.
    pub(super) fn resolve(&self, names: &[Vec<u8>]) -> io::Result<Names> {
        let mut real = Names::new();
        let mut ahead: VecDeque<Vec<u8>> = names.iter().cloned().collect();
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                // Only links bring these; above the root is the root.
                b".." => {
                    real.pop();
                    continue;
                }
                _ => real.push(name),
            }
            let Some(found) = self.find(&real, true)? else { continue };
            if file_type(&found.stat) != SFlag::S_IFLNK {
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let Some(name) = real.pop() else { continue };
            let target = readlinkat(&found.parent, OsStr::from_bytes(&name))?.into_vec();
            if target.starts_with(b"/") {
                real.clear();
            }
            for name in target.split(|byte| *byte == b'/').rev() {
                ahead.push_front(name.to_vec());
            }
            // A short path can name many links whose targets are long.
            if ahead.len() > 4096 {
                return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
            }
        }
        Ok(real)
    }

    /// Makes a path of directories in the layer being unpacked, each like the one it covers below.
    pub(super) fn make(&mut self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let mut directory = self.root()?;
        for depth in 0..names.len() {
            let name = OsStr::from_bytes(&names[depth]);
            let before = fstat(&directory)?;
            let existing = stat_of(&directory, name)?;
            let next = match &existing {
                Some(stat) if is_directory(stat) => open_directory(&directory, name)?,
                Some(stat) if !is_whiteout(stat) => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
                _ => {
                    let made = self.make_directory(&directory, name)?;
                    // Behind a whiteout there is nothing to look like.
                    match self.lower_directory(&names[..=depth])?.filter(|_| existing.is_none()) {
                        Some(lower) => {
                            if let Some(acl) = copy_directory(&lower, &made)? {
                                self.keep_default_acl(names[..=depth].to_vec(), &acl)?;
                            }
                        }
                        None => fchmod(&made, Mode::from_bits_truncate(0o755))?,
                    }
                    futimens(&directory, &TimeSpec::UTIME_OMIT, &TimeSpec::new(before.st_mtime, before.st_mtime_nsec))?;
                    made
                }
            };
            directory = next;
        }
        Ok(directory)
    }

    /// Makes a directory, or takes the one that is there. One that replaces something else of this layer hides what is below: the
    /// entry replaced, a whiteout or a file, had hidden it already.
    pub(super) fn make_directory(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
        let mode = Mode::from_bits_truncate(0o700);
        match mkdirat(parent, name, mode) {
            Ok(()) => open_directory(parent, name),
            Err(Errno::EEXIST) => {
                if stat_of(parent, name)?.is_some_and(|stat| is_directory(&stat)) {
                    return open_directory(parent, name);
                }
                unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
                mkdirat(parent, name, mode)?;
                let made = open_directory(parent, name)?;
                if self.has_lowers() {
                    xattr::set(&made, OVERLAY_OPAQUE, b"y")?;
                }
                Ok(made)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Hides a name of the layers below. What this layer itself has under the name stays, but a directory of it is no longer
    /// merged with the one below.
    pub(super) fn hide(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        if !self.has_lowers() {
            return Ok(());
        }
        match mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => match stat_of(parent, name)? {
                Some(stat) if is_directory(&stat) => xattr::set(open_directory(parent, name)?, OVERLAY_OPAQUE, b"y"),
                _ => Ok(()),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    /// The directory below that a directory at this path would be merged with.
    pub(super) fn lower_directory(&self, names: &[Vec<u8>]) -> io::Result<Option<OwnedFd>> {
        let Some((name, _)) = names.split_last() else {
            return self.lowers.first().map(OwnedFd::try_clone).transpose();
        };
        match self.find(names, false)? {
            Some(found) if is_directory(&found.stat) => {
                open_directory(&found.parent, OsStr::from_bytes(name)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The directory in this layer of a file at a path, copied up from below when it is there; `None` when it does not exist.
    pub(super) fn fetch(&mut self, directory: &[Vec<u8>], name: &OsStr) -> io::Result<Option<OwnedFd>> {
        if let Some(fd) = self.open(directory)?
            && let Some(stat) = stat_of(&fd, name)?
        {
            return Ok((!is_whiteout(&stat)).then_some(fd));
        }
        let mut names = directory.to_vec();
        names.push(name.as_bytes().to_vec());
        let Some(found) = self.find(&names, true)? else { return Ok(None) };
        let parent = self.make(directory)?;
        let before = fstat(&parent)?;
        if is_directory(&found.stat) {
            // The caller refuses it; there is no need to copy it first.
            return Ok(Some(found.parent));
        }
        copy_up(&found, &parent, name)?;
        futimens(&parent, &TimeSpec::UTIME_OMIT, &TimeSpec::new(before.st_mtime, before.st_mtime_nsec))?;
        Ok(Some(parent))
    }

    /// Looks a path up as overlayfs would: the nearest layer that has it, unless something nearer hides it. The names lead through
    /// no link: [`Tree::resolve`] saw to that. Without `with_top` only the lower layers are searched, still hidden by the top.
    fn find(&self, names: &[Vec<u8>], with_top: bool) -> io::Result<Option<Found>> {
        for (layer, root) in std::iter::once(&self.top).chain(&self.lowers).enumerate() {
            let counts = layer > 0 || with_top;
            match look(root, names)? {
                Look::Found(found) if counts => return Ok((!is_whiteout(&found.stat)).then_some(found)),
                // The top's own directory at the path is what is being made; it hides what is below only when it is opaque.
                Look::Found(_) | Look::Absent { hidden: false } => {}
                Look::Absent { hidden: true } => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// What one layer says of a path.
enum Look {
    Found(Found),
    /// `hidden`: this layer also hides it in the layers below.
    Absent {
        hidden: bool,
    },
}

fn look(root: &OwnedFd, names: &[Vec<u8>]) -> io::Result<Look> {
    let mut directory = root.try_clone()?;
    let mut hidden = is_opaque(&directory)?;
    for (at, name) in names.iter().enumerate() {
        let name = OsStr::from_bytes(name);
        let Some(stat) = stat_of(&directory, name)? else { return Ok(Look::Absent { hidden }) };
        if at + 1 == names.len() {
            return Ok(Look::Found(Found { parent: directory, stat }));
        }
        if !is_directory(&stat) {
            return Ok(Look::Absent { hidden: true });
        }
        directory = open_directory(&directory, name)?;
        hidden |= is_opaque(&directory)?;
    }
    Ok(Look::Absent { hidden })
}

/// Copies a file of a lower layer into the layer being unpacked, all but its other links.
fn copy_up(found: &Found, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let stat = &found.stat;
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    let kind = file_type(stat);
    if kind == SFlag::S_IFREG {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut from = File::from(openat(&found.parent, name, flags, Mode::empty())?);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut to = File::from(openat(parent, name, flags, Mode::from_bits_truncate(0o600))?);
        io::copy(&mut from, &mut to)?;
        fchown(&to, uid, gid)?;
        copy_xattrs(&from, &to)?;
        fchmod(&to, Mode::from_bits_truncate(stat.st_mode))?;
        return Ok(futimens(&to, &TimeSpec::UTIME_OMIT, &mtime)?);
    }
    if kind == SFlag::S_IFLNK {
        symlinkat(readlinkat(&found.parent, name)?.as_os_str(), parent, name)?;
    } else {
        mknodat(parent, name, kind, Mode::from_bits_truncate(0o600), stat.st_rdev)?;
        let node = openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        std::fs::set_permissions(
            through_proc(&node),
            std::os::unix::fs::PermissionsExt::from_mode(stat.st_mode & 0o7777),
        )?;
    }
    fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(utimensat(parent, name, &TimeSpec::UTIME_OMIT, &mtime, UtimensatFlags::NoFollowSymlink)?)
}

/// A path that leads to the open file itself: for the calls that take no descriptor.
pub(super) fn through_proc(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn open_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn stat_of(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

pub(super) fn is_directory(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFDIR
}

fn is_whiteout(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == makedev(0, 0)
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    Ok(xattr::get(directory, OVERLAY_OPAQUE)?.is_some_and(|value| value == b"y"))
}
