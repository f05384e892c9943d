//! Copying a tree of files by descriptors, with everything about them.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, futimens, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};

use super::LOOK;
use crate::sys::xattr;

/// Deeper trees are refused: each level holds two descriptors. PATH_MAX bounds what a container can name to 2048 levels.
const MAX_DEPTH: usize = 256;

/// What has been copied of files with several names: (device, inode) → the directory and name of the first.
type Links = BTreeMap<(u64, u64), (OwnedFd, std::ffi::CString)>;

/// Copies what is in `from` into the empty, private directory `to`.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    copy_level(from, to, &mut Links::new(), 0)
}

/// The names in a directory, sorted, without the two dots.
pub(super) fn names(directory: &OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    let opened = openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(opened)?.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Looks at an entry without opening it: what is looked at cannot be exchanged afterwards.
pub(super) fn look(directory: &OwnedFd, name: &CStr) -> io::Result<(OwnedFd, FileStat)> {
    let found = openat(directory, name, LOOK | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = fstat(&found)?;
    Ok((found, stat))
}

/// Opens for reading what was looked at: by its descriptor, never by its name again.
pub(super) fn reopen(found: &OwnedFd) -> io::Result<OwnedFd> {
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map(OwnedFd::from)
}

pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn copy_level(from: &OwnedFd, to: &OwnedFd, links: &mut Links, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::ENAMETOOLONG.into());
    }
    for name in names(from)? {
        let name = name.as_c_str();
        let (found, stat) = match look(from, name) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let kind = kind(&stat);
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            if let Some((directory, first)) = links.get(&(stat.st_dev, stat.st_ino)) {
                linkat(directory, first.as_c_str(), to, name, AtFlags::empty())?;
                continue;
            }
            links.insert((stat.st_dev, stat.st_ino), (to.try_clone()?, name.to_owned()));
        }
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let target = openat(
                    to,
                    name,
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )?;
                let source = reopen(&found)?;
                copy_level(&source, &target, links, depth + 1)?;
                copy_attributes(&source, &target)?;
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let target = openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                let source = reopen(&found)?;
                io::copy(&mut File::from(source.try_clone()?), &mut File::from(target.try_clone()?))?;
                copy_attributes(&source, &target)?;
            }
            SFlag::S_IFLNK => {
                let text: OsString = readlinkat(&found, c"")?;
                symlinkat(text.as_os_str(), to, name)?;
                set_without_opening(to, name, &stat, false)?;
            }
            // A socket without its process is nothing.
            SFlag::S_IFSOCK => {}
            node => {
                mknodat(to, name, node, Mode::S_IRUSR, stat.st_rdev)?;
                set_without_opening(to, name, &stat, true)?;
            }
        }
    }
    Ok(())
}

/// Owner, extended attributes, mode and times, in the order in which one does not undo another: a change of the owner takes set-id
/// bits and file capabilities away.
pub(crate) fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    for name in xattr::list(from)? {
        // The merged view shows none of overlayfs's own; a single layer does.
        if name.to_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        if let Some(value) = xattr::get(from, &name)? {
            match xattr::set(to, &name, &value) {
                // The other file system knows no such attributes: Docker goes on without, too.
                Err(e) if e.raw_os_error() == Some(libc::ENOTSUP) => {}
                other => other?,
            }
        }
    }
    fchmod(to.as_fd(), Mode::from_bits_truncate(stat.st_mode))?;
    let (accessed, modified) = times(&stat);
    futimens(to.as_fd(), &accessed, &modified)?;
    Ok(())
}

fn set_without_opening(directory: &OwnedFd, name: &CStr, stat: &FileStat, mode: bool) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if mode {
        // The directory is private: it is the node that was made a moment ago.
        let permissions = Mode::from_bits_truncate(stat.st_mode);
        nix::sys::stat::fchmodat(directory, name, permissions, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    }
    let (accessed, modified) = times(stat);
    utimensat(directory, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}
