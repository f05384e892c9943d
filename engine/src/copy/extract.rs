//! From a tar stream into a container.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use super::root::Root;
use super::tree::{kind, look};
use super::{CopyError, LOOK, inside};
use crate::sys::xattr;

/// How to unpack.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyIn {
    /// Owners as in the archive; else everything becomes root's, as with `docker cp`.
    pub keep_owner: bool,
    /// Replace a directory by a file, or the other way round, instead of failing.
    pub replace_kinds: bool,
}

/// Unpacks into `directory`, which must exist.
pub(super) fn extract(root: &Root, directory: &str, archive: impl Read, options: &CopyIn) -> Result<(), CopyError> {
    let base = Path::new(directory);
    root.open(base, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(inside("find the directory", base))?;
    let mut archive = Archive::new(archive);
    // Directories get their times last, when nothing is written into them any more.
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(CopyError::Archive)? {
        let mut entry = entry.map_err(CopyError::Archive)?;
        let path = relative(&entry.path().map_err(CopyError::Archive)?)?;
        let target = base.join(&path);
        if path.as_os_str().is_empty() {
            continue;
        }
        let parent = make_parents(root, base, &path)?;
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let name = CString::new(name.as_bytes()).map_err(|_| CopyError::Outside(path.clone()))?;
        let modified = TimeSpec::new(i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0), 0);
        let place = Place { root, base, parent: &parent, name: &name, options };
        place.put(&mut entry, modified).map_err(|e| match e {
            Failure::Entry(e) => e,
            Failure::Io(source) => inside("write", &target)(source),
        })?;
        if entry.header().entry_type() == EntryType::Directory {
            directories.push((target, modified));
        }
    }
    for (path, modified) in directories.into_iter().rev() {
        // Its time is all that is missing; somebody may have removed it meanwhile.
        if let Ok(directory) = root.open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            let _ = futimens(directory.as_fd(), &TimeSpec::UTIME_NOW, &modified);
        }
    }
    Ok(())
}

/// An entry's path without a leading slash; never with `..`.
fn relative(path: &Path) -> Result<PathBuf, CopyError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(CopyError::Outside(path.to_owned())),
        }
    }
    Ok(clean)
}

/// The directory that an entry goes into; missing ones are made. Links on the way are followed inside the root, as the container itself
/// would follow them.
fn make_parents(root: &Root, base: &Path, path: &Path) -> Result<OwnedFd, CopyError> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    match root.open(base.join(parent), flags) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(inside("open", base.join(parent))),
    }
    let mut sofar = base.to_owned();
    let mut directory = root.open(&sofar, flags).map_err(inside("open", &sofar))?;
    for part in parent.components() {
        match mkdirat(&directory, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(inside("make", sofar.join(part))(errno.into())),
        }
        sofar.push(part);
        directory = root.open(&sofar, flags).map_err(inside("open", &sofar))?;
    }
    Ok(directory)
}

enum Failure {
    Entry(CopyError),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Where one entry goes.
struct Place<'a> {
    root: &'a Root,
    base: &'a Path,
    parent: &'a OwnedFd,
    name: &'a CString,
    options: &'a CopyIn,
}

impl Place<'_> {
    fn put(&self, entry: &mut Entry<'_, impl Read>, modified: TimeSpec) -> Result<(), Failure> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let (uid, gid) = self.owner(entry)?;
        let mode = Mode::from_bits_truncate(entry.header().mode()? & 0o7777);
        let attributes = attributes(entry)?;
        if kind == EntryType::Directory {
            self.make_way(true)?;
            match mkdirat(self.parent, self.name.as_c_str(), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let made = openat(self.parent, self.name.as_c_str(), flags, Mode::empty());
            // A link to a directory that was there before stays what it is.
            let Ok(made) = made else { return Ok(()) };
            return finish(&made, uid, gid, mode, &attributes, None);
        }
        self.make_way(false)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(self.parent, self.name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                io::copy(entry, &mut File::from(file.try_clone()?)).map_err(|e| {
                    // A write error is the container's, a read error the archive's; only the former has an OS code of a disk.
                    if e.raw_os_error().is_some() { Failure::Io(e) } else { Failure::Entry(CopyError::Archive(e)) }
                })?;
                finish(&file, uid, gid, mode, &attributes, Some(modified))
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or(Errno::EINVAL)?;
                symlinkat(OsStr::from_bytes(&target), self.parent, self.name.as_c_str())?;
                fchownat(self.parent, self.name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                utimensat(self.parent, self.name.as_c_str(), &modified, &modified, UtimensatFlags::NoFollowSymlink)?;
                Ok(())
            }
            EntryType::Link => {
                let link = entry.link_name()?.ok_or(Errno::EINVAL)?;
                let first = relative(&link).map_err(Failure::Entry)?;
                let directory = self.base.join(first.parent().unwrap_or(Path::new("")));
                let directory = self.root.open(&directory, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                let first = first.file_name().ok_or(Errno::EINVAL)?;
                linkat(&directory, first, self.parent, self.name.as_c_str(), AtFlags::empty())?;
                Ok(())
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let node = match kind {
                    EntryType::Fifo => SFlag::S_IFIFO,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFCHR,
                };
                let number = |number: io::Result<Option<u32>>| number.map(|number| u64::from(number.unwrap_or(0)));
                let device = makedev(number(entry.header().device_major())?, number(entry.header().device_minor())?);
                mknodat(self.parent, self.name.as_c_str(), node, mode, device)?;
                fchownat(self.parent, self.name.as_c_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                Ok(())
            }
            // Kinds that tar has for itself.
            _ => Ok(()),
        }
    }

    fn owner(&self, entry: &Entry<'_, impl Read>) -> io::Result<(Uid, Gid)> {
        if !self.options.keep_owner {
            let root = self.root.ids().map_or(0, |ids| ids.first);
            return Ok((Uid::from_raw(root), Gid::from_raw(root)));
        }
        // The highest numbers mean "leave it" to the kernel.
        let number = |number: u64| {
            let number = u32::try_from(number).ok().filter(|n| *n <= i32::MAX as u32);
            number.and_then(|n| self.root.ids().map_or(Some(n), |ids| ids.outside(n))).ok_or(io::ErrorKind::InvalidData)
        };
        Ok((Uid::from_raw(number(entry.header().uid()?)?), Gid::from_raw(number(entry.header().gid()?)?)))
    }

    /// Takes away what is in the way: an old file always, a thing of the other kind only when asked.
    fn make_way(&self, directory: bool) -> Result<(), Failure> {
        let (_, stat) = match look(self.parent, self.name) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let is_directory = match kind(&stat) {
            SFlag::S_IFDIR => true,
            // Where a directory is wanted, a link to one is as good.
            SFlag::S_IFLNK if directory => openat(self.parent, self.name.as_c_str(), LOOK, Mode::empty()).is_ok(),
            _ => false,
        };
        if directory && is_directory {
            return Ok(());
        }
        if directory != is_directory && !self.options.replace_kinds {
            return Err(Failure::Io(if directory { Errno::ENOTDIR } else { Errno::EISDIR }.into()));
        }
        let how = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        Ok(unlinkat(self.parent, self.name.as_c_str(), how)?)
    }
}

/// Extended attributes of an entry, as GNU tar and Docker write them.
fn attributes(entry: &mut Entry<'_, impl Read>) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut found = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr."))
                && let Ok(name) = CString::new(name)
            {
                found.push((name, extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(found)
}

fn finish(
    file: &OwnedFd,
    uid: Uid,
    gid: Gid,
    mode: Mode,
    attributes: &[(CString, Vec<u8>)],
    modified: Option<TimeSpec>,
) -> Result<(), Failure> {
    fchown(file, Some(uid), Some(gid))?;
    for (name, value) in attributes {
        match xattr::set(file, name, value) {
            // Overlayfs's own names are refused by it, others perhaps by the file system: Docker goes on without, too.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => {}
            other => other?,
        }
    }
    fchmod(file.as_fd(), mode)?;
    if let Some(modified) = modified {
        futimens(file.as_fd(), &TimeSpec::UTIME_NOW, &modified)?;
    }
    Ok(())
}
