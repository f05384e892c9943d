//! Unpacks a layer's tar into a directory that overlayfs can use as a lower layer.
//!
//! Safety. Everything is done relative to descriptors: the parent of each entry is opened anew with `openat2` beneath the layer's
//! root, following no symbolic link; what is created is one name in that parent, created exclusively and never followed. Parents
//! are *not* cached between entries: containerd's cache of them was CVE-2025-47290. The layer is private to the unpacker until it
//! is complete.
//!
//! Meaning. A path means what it would mean if the layer were extracted over the layers below it, as Docker does, although each
//! layer is unpacked apart: see [`tree`]. Order does not matter for whiteouts: they hide what is below, never what the same layer
//! brings (OCI image specification, "Whiteouts").
//!
//! Order for each entry: create, owner, attributes, mode, times. Changing the owner clears set-user-id bits and file capabilities;
//! changing anything moves times. A directory's own time is put back after each entry made in it.

mod tree;

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens, makedev, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use super::archive::{Archive, ArchiveError, Entry, Kind};
use super::disk::Disk;
use crate::sys::xattr;
use tree::{Names, Tree};

/// Bounds of one layer. What exceeds them is refused by name instead of filling the disk.
#[derive(Debug, Clone)]
pub struct UnpackLimits {
    /// Bytes of all files together, holes counted, and of the uncompressed archive.
    pub bytes: u64,
    /// Headers in the archive.
    pub entries: u64,
    /// Bytes of a path or link target.
    pub path: usize,
    /// Directories above an entry. Real trees stay below 100; removing a tree recursively holds one descriptor a level.
    pub depth: usize,
    /// Uncompressed bytes for one compressed byte. Real layers stay below 100; gzip cannot exceed 1032.
    pub ratio: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { bytes: 20 << 30, entries: 2_000_000, path: 4096, depth: 256, ratio: 1000 }
    }
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is unreadable.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Larger than orch accepts.
    #[error("{entry:?}: {what} exceeds the limit of {limit}")]
    Limit {
        /// Which bound.
        what: &'static str,
        /// Its value.
        limit: u64,
        /// The entry that went beyond it.
        entry: String,
    },
    /// An entry that no well-meant image has.
    #[error("entry {entry:?} {reason}")]
    Entry {
        /// The entry's path as in the archive.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel refused.
    #[error("cannot {doing} {entry:?}")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// To which entry.
        entry: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// The kernel's answer or the source's failure, when one of them is the cause.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Kernel { source, .. } | Self::Archive(ArchiveError::Read { source, .. }) => Some(source),
            _ => None,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Entries of the archive.
    pub(crate) entries: u64,
    /// Bytes of its files as stored.
    pub(crate) bytes: u64,
}

/// Unpacks `source` into the empty directory `root`. `lowers` are the layers below it, the nearest first.
pub(crate) fn unpack(
    source: impl Read,
    root: &Path,
    lowers: &[PathBuf],
    limits: &UnpackLimits,
    disk: &Disk,
) -> Result<Unpacked, UnpackError> {
    let open = |path: &PathBuf| -> Result<OwnedFd, UnpackError> {
        let directory = File::options().read(true).open(path);
        directory.map(OwnedFd::from).map_err(|source| kernel("open the layer", &path.to_string_lossy(), source))
    };
    let root_fd = open(&root.to_owned())?;
    let lowers = lowers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut unpacker =
        Unpacker { tree: Tree::new(root_fd, lowers), limits, totals: Unpacked::default(), buffer: vec![0; 256 << 10] };
    unpacker.adopt_root()?;
    let mut archive = Archive::new(source);
    while let Some(entry) = archive.next()? {
        disk.unpacking(root).map_err(|source| kernel("unpack", &shown(&entry.path), source))?;
        unpacker.entry(&mut archive, &entry)?;
    }
    archive.drain()?;
    unpacker.finish()
}

/// Names that carry a meaning of their own, after AUFS.
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const OVERLAY_OPAQUE: &CStr = c"trusted.overlay.opaque";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

struct Unpacker<'a> {
    tree: Tree,
    limits: &'a UnpackLimits,
    totals: Unpacked,
    buffer: Vec<u8>,
}

/// The directory an entry is made in, and its times before that.
struct Parent {
    fd: OwnedFd,
    before: FileStat,
}

impl Unpacker<'_> {
    /// The root of a layer whose archive does not mention it looks like the root below it.
    fn adopt_root(&mut self) -> Result<(), UnpackError> {
        let doing = |source| kernel("prepare", "/", source);
        let root = self.tree.root().map_err(doing)?;
        match self.tree.lower_directory(&[]).map_err(doing)? {
            Some(lower) => {
                let acl = copy_directory(&lower, &root).map_err(doing)?;
                acl.map_or(Ok(()), |acl| self.tree.keep_default_acl(Names::new(), &acl).map_err(doing))
            }
            None => fchmod(&root, Mode::from_bits_truncate(0o755)).map_err(|errno| doing(errno.into())),
        }
    }

    fn entry(&mut self, archive: &mut Archive<impl Read>, entry: &Entry) -> Result<(), UnpackError> {
        self.check(archive, entry)?;
        let names = self.names(&entry.path, entry)?;
        let Some((name, parents)) = names.split_last() else {
            return self.root_entry(entry);
        };
        let parent = self.parent(parents, entry)?;
        let name = OsStr::from_bytes(name);
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            self.whiteout(&parent, name, hidden, entry)?;
        } else {
            match entry.kind {
                Kind::File => self.file(archive, &parent, name, entry)?,
                Kind::Directory => self.directory(&parent, name, entry)?,
                Kind::Symlink => self.symlink(&parent, name, entry)?,
                Kind::HardLink => self.hard_link(&parent, parents, name, entry)?,
                Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => self.node(&parent, name, entry)?,
            }
            if let (Kind::Directory, Some((_, acl))) =
                (entry.kind, entry.xattrs.iter().find(|(name, _)| name == DEFAULT_ACL.to_bytes()))
            {
                self.keep_default_acl(names.clone(), acl, entry)?;
            }
        }
        // The parent's time as its own entry, or the layer below, said.
        let times = [TimeSpec::UTIME_OMIT, TimeSpec::new(parent.before.st_mtime, parent.before.st_mtime_nsec)];
        futimens(&parent.fd, &times[0], &times[1]).map_err(|errno| failed("set the time above", entry, errno))
    }

    fn check(&mut self, archive: &Archive<impl Read>, entry: &Entry) -> Result<(), UnpackError> {
        let over = |what, limit| Err(UnpackError::Limit { what, limit, entry: shown(&entry.path) });
        self.totals.entries += 1;
        // Holes count: a sparse file of 8 EiB costs nothing here, but whoever reads it would never end.
        self.totals.bytes = self.totals.bytes.saturating_add(entry.size);
        if archive.headers() > self.limits.entries {
            return over("the number of entries", self.limits.entries);
        }
        if self.totals.bytes > self.limits.bytes {
            return over("the size of all files", self.limits.bytes);
        }
        if entry.path.len() > self.limits.path || entry.link.len() > self.limits.path {
            return over("the length of a path", self.limits.path as u64);
        }
        Ok(())
    }

    /// A path as names below the root: an absolute one is taken from the root, one with `..` is refused.
    fn names(&self, path: &[u8], entry: &Entry) -> Result<Names, UnpackError> {
        let mut names = Names::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(refused(entry, "has '..' in its path: it could leave the image")),
                name => names.push(name.to_vec()),
            }
        }
        self.check_depth(&names[..names.len().saturating_sub(1)], entry)?;
        Ok(names)
    }

    fn check_depth(&self, directories: &[Vec<u8>], entry: &Entry) -> Result<(), UnpackError> {
        if directories.len() > self.limits.depth {
            let limit = self.limits.depth as u64;
            return Err(UnpackError::Limit { what: "the depth of directories", limit, entry: shown(&entry.path) });
        }
        Ok(())
    }

    fn parent(&mut self, parents: &[Vec<u8>], entry: &Entry) -> Result<Parent, UnpackError> {
        let doing = |source| kernel("open the directory of", &shown(&entry.path), source);
        let fd = match self.tree.open(parents).map_err(doing)? {
            Some(fd) => fd,
            None => {
                let real = self.tree.resolve(parents).map_err(doing)?;
                // A symbolic link may have led deeper than the path itself.
                self.check_depth(&real, entry)?;
                self.tree.make(&real).map_err(doing)?
            }
        };
        let before = fstat(&fd).map_err(|errno| doing(errno.into()))?;
        Ok(Parent { fd, before })
    }

    /// An entry for the root itself: `./`, `/`.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            // CVE-2021-29136: the root replaced by a symbolic link.
            return Err(refused(entry, "is the root of the image but no directory"));
        }
        let root = self.tree.root().map_err(|source| kernel("open", "/", source))?;
        set_metadata(&root, entry)?;
        if let Some((_, acl)) = entry.xattrs.iter().find(|(name, _)| name == DEFAULT_ACL.to_bytes()) {
            self.keep_default_acl(Names::new(), acl, entry)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        archive: &mut Archive<impl Read>,
        parent: &Parent,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let create = || openat(&parent.fd, name, flags, Mode::from_bits_truncate(0o600));
        let fd = self.replacing(parent, name, entry, create)?;
        let mut file = File::from(fd);
        match &entry.sparse {
            None => {
                let mut left = entry.size;
                while left > 0 {
                    left -= self.copy(archive, &mut file, entry)?;
                }
            }
            Some(extents) => {
                for extent in extents {
                    let at = SeekFrom::Start(extent.offset);
                    file.seek(at).map_err(|source| kernel("write", &shown(&entry.path), source))?;
                    let mut left = extent.length;
                    while left > 0 {
                        left -= self.copy_up_to(archive, &mut file, entry, left)?;
                    }
                }
                file.set_len(entry.size).map_err(|source| kernel("write", &shown(&entry.path), source))?;
            }
        }
        set_metadata(&file, entry)
    }

    fn copy(&mut self, archive: &mut Archive<impl Read>, file: &mut File, entry: &Entry) -> Result<u64, UnpackError> {
        self.copy_up_to(archive, file, entry, u64::MAX)
    }

    fn copy_up_to(
        &mut self,
        archive: &mut Archive<impl Read>,
        file: &mut File,
        entry: &Entry,
        most: u64,
    ) -> Result<u64, UnpackError> {
        let most = most.min(self.buffer.len() as u64) as usize;
        let count = archive.read_data(&mut self.buffer[..most])?;
        if count == 0 {
            return Err(refused(entry, "stores fewer bytes than its size"));
        }
        file.write_all(&self.buffer[..count]).map_err(|source| kernel("write", &shown(&entry.path), source))?;
        Ok(count as u64)
    }

    fn directory(&mut self, parent: &Parent, name: &OsStr, entry: &Entry) -> Result<(), UnpackError> {
        let fd = self
            .tree
            .make_directory(&parent.fd, name)
            .map_err(|source| kernel("create", &shown(&entry.path), source))?;
        set_metadata(&fd, entry)
    }

    fn symlink(&mut self, parent: &Parent, name: &OsStr, entry: &Entry) -> Result<(), UnpackError> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(refused(entry, "is a symbolic link to nothing"));
        }
        let target = OsStr::from_bytes(&entry.link);
        self.replacing(parent, name, entry, || symlinkat(target, &parent.fd, name))?;
        set_owner_and_time(parent, name, entry)
    }

    /// Device nodes and FIFOs.
    fn node(&mut self, parent: &Parent, name: &OsStr, entry: &Entry) -> Result<(), UnpackError> {
        let kind = match entry.kind {
            Kind::CharDevice => SFlag::S_IFCHR,
            Kind::BlockDevice => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        if entry.device.0 > 0xfff || entry.device.1 > 0xf_ffff {
            return Err(refused(entry, "has a device number that Linux does not have"));
        }
        if entry.kind == Kind::CharDevice && entry.device == (0, 0) {
            // Overlayfs would take it for a whiteout: an image could hide files without saying so.
            return Err(refused(entry, "is the device 0:0, which marks deleted files in overlayfs"));
        }
        let device = makedev(entry.device.0, entry.device.1);
        self.replacing(parent, name, entry, || {
            mknodat(&parent.fd, name, kind, Mode::from_bits_truncate(0o600), device)
        })?;
        fchownat(&parent.fd, name, Some(uid(entry)?), Some(gid(entry)?), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("set the owner of", entry, errno))?;
        // A device must not be opened to change its mode, and fchmodat follows links: so through a descriptor that is only a
        // path, made sure to be the node just created.
        let node = openat(&parent.fd, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| failed("open", entry, errno))?;
        let stat = fstat(&node).map_err(|errno| failed("look at", entry, errno))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != kind {
            return Err(refused(entry, "changed while it was created"));
        }
        fchmodat(
            AT_FDCWD,
            &tree::through_proc(&node),
            Mode::from_bits_truncate(entry.mode),
            FchmodatFlags::FollowSymlink,
        )
        .map_err(|errno| failed("set the mode of", entry, errno))?;
        utimensat(&parent.fd, name, &TimeSpec::UTIME_OMIT, &time(entry), UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| failed("set the time of", entry, errno))
    }

    fn hard_link(
        &mut self,
        parent: &Parent,
        parents: &[Vec<u8>],
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let target = self.names(&entry.link, entry)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(refused(entry, "is a hard link to the root"));
        };
        if target_name.starts_with(WHITEOUT) {
            return Err(refused(entry, "is a hard link to a deletion mark"));
        }
        if target_parents == parents && target_name == name.as_bytes() {
            return Err(refused(entry, "is a hard link to itself"));
        }
        let doing = |source| kernel("find the target of the hard link", &shown(&entry.path), source);
        let real = self.tree.resolve(target_parents).map_err(doing)?;
        self.check_depth(&real, entry)?;
        let target_name = OsStr::from_bytes(target_name);
        let found = self.tree.fetch(&real, target_name).map_err(doing)?;
        let Some(target_parent) = found else {
            return Err(refused(entry, &format!("is a hard link to {:?}, which does not exist", shown(&entry.link))));
        };
        let stat = fstatat(&target_parent, target_name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("look at the target of", entry, errno))?;
        if tree::is_directory(&stat) {
            return Err(refused(entry, "is a hard link to a directory"));
        }
        self.replacing(parent, name, entry, || linkat(&target_parent, target_name, &parent.fd, name, AtFlags::empty()))
    }

    /// `.wh.NAME` and its relatives, whatever kind of entry carries the name.
    fn whiteout(&mut self, parent: &Parent, name: &OsStr, hidden: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let doing = |source| kernel("carry out the deletion", &shown(&entry.path), source);
        match (name.as_bytes(), hidden) {
            (OPAQUE, _) => {
                if self.tree.has_lowers() {
                    xattr::set(&parent.fd, OVERLAY_OPAQUE, b"y").map_err(doing)?;
                }
                Ok(())
            }
            // AUFS's own bookkeeping (.wh..wh.plnk, .wh..wh.aufs): no part of the image.
            (name, _) if name.starts_with(WHITEOUT_META) => Ok(()),
            (_, b"" | b"." | b"..") => Err(refused(entry, "deletes no name")),
            (_, hidden) => self.tree.hide(&parent.fd, OsStr::from_bytes(hidden)).map_err(doing),
        }
    }

    /// Creates a name, replacing what an earlier entry of the same layer put there.
    fn replacing<T>(
        &mut self,
        parent: &Parent,
        name: &OsStr,
        entry: &Entry,
        create: impl Fn() -> nix::Result<T>,
    ) -> Result<T, UnpackError> {
        match create() {
            Err(Errno::EEXIST) => {
                remove(&parent.fd, name).map_err(|source| kernel("replace", &shown(&entry.path), source))?;
                create().map_err(|errno| failed("create", entry, errno))
            }
            result => result.map_err(|errno| failed("create", entry, errno)),
        }
    }

    fn keep_default_acl(&mut self, names: Names, acl: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        self.tree
            .keep_default_acl(names, acl)
            .map_err(|source| kernel("keep the default ACL of", &shown(&entry.path), source))
    }

    fn finish(self) -> Result<Unpacked, UnpackError> {
        for (names, acl) in self.tree.default_acls() {
            // The directory may have been replaced since; then its ACL went with it.
            let Ok(Some(fd)) = self.tree.open(names) else { continue };
            set_xattr(&fd, DEFAULT_ACL.to_bytes(), acl)
                .map_err(|source| kernel("set the default ACL of", &shown(&names.join(&b'/')), source))?;
        }
        Ok(self.totals)
    }
}

/// Owner, attributes, mode and time of an open file or directory, in that order.
fn set_metadata(fd: &impl AsFd, entry: &Entry) -> Result<(), UnpackError> {
    fchown(fd, Some(uid(entry)?), Some(gid(entry)?)).map_err(|errno| failed("set the owner of", entry, errno))?;
    for (name, value) in &entry.xattrs {
        if name != DEFAULT_ACL.to_bytes() && is_kept(name) {
            set_xattr(fd, name, value)
                .map_err(|source| kernel("set an extended attribute of", &shown(&entry.path), source))?;
        }
    }
    fchmod(fd, Mode::from_bits_truncate(entry.mode)).map_err(|errno| failed("set the mode of", entry, errno))?;
    futimens(fd, &TimeSpec::UTIME_OMIT, &time(entry)).map_err(|errno| failed("set the time of", entry, errno))
}

/// Of a symbolic link, which has no mode, and no attributes that are kept.
fn set_owner_and_time(parent: &Parent, name: &OsStr, entry: &Entry) -> Result<(), UnpackError> {
    fchownat(&parent.fd, name, Some(uid(entry)?), Some(gid(entry)?), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|errno| failed("set the owner of", entry, errno))?;
    utimensat(&parent.fd, name, &TimeSpec::UTIME_OMIT, &time(entry), UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| failed("set the time of", entry, errno))
}

/// Attributes that belong to an image: file capabilities, ACLs, the user's own. The rest binds to a host (SELinux labels, IMA, NFS)
/// or steers overlayfs (`trusted.overlay.*`, `user.overlay.*`), by which an image could redirect names.
fn is_kept(name: &[u8]) -> bool {
    matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// Sets an attribute; a file system without attributes, or without this class of them, keeps the file without it.
fn set_xattr(fd: &impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    match xattr::set(fd, &name, value) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {
            tracing::warn!(attribute = ?name, "the file system of the images keeps no such extended attribute; it is left out");
            Ok(())
        }
        result => result,
    }
}

/// Copies owner, kept attributes, mode and time from one directory to another; the default ACL is given back, to be set last.
fn copy_directory(from: &OwnedFd, to: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    copy_xattrs(from, to)?;
    fchmod(to, Mode::from_bits_truncate(stat.st_mode))?;
    futimens(to, &TimeSpec::UTIME_OMIT, &TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))?;
    xattr::get(from, DEFAULT_ACL)
}

fn copy_xattrs(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    for name in xattr::list(from)? {
        if is_kept(name.as_bytes())
            && name.as_c_str() != DEFAULT_ACL
            && let Some(value) = xattr::get(from, &name)?
        {
            set_xattr(to, name.as_bytes(), &value)?;
        }
    }
    Ok(())
}

/// Removes a name of the layer being unpacked, with everything below it.
fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        // remove_dir_all follows no link below the directory it is given, and gives that directory itself without following.
        Err(Errno::EISDIR) => std::fs::remove_dir_all(tree::through_proc(parent).join(name)),
        result => Ok(result?),
    }
}

fn uid(entry: &Entry) -> Result<Uid, UnpackError> {
    id(entry.uid, entry).map(Uid::from_raw)
}

fn gid(entry: &Entry) -> Result<Gid, UnpackError> {
    id(entry.gid, entry).map(Gid::from_raw)
}

/// All ones would mean "leave unchanged" to chown.
fn id(id: u64, entry: &Entry) -> Result<u32, UnpackError> {
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| refused(entry, &format!("has the owner {id}, beyond what Linux has")))
}

/// Times outside 1970 to 2242 become 1970, as with Docker: some file systems cannot keep them.
fn time(entry: &Entry) -> TimeSpec {
    match entry.mtime {
        (seconds @ 0..=0x2_0000_0000, nanoseconds) => TimeSpec::new(seconds, i64::from(nanoseconds)),
        _ => TimeSpec::new(0, 0),
    }
}

/// A path for an error: readable, short.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.chars().count() <= 200 {
        return text.into_owned();
    }
    text.chars().take(200).chain("…".chars()).collect()
}

fn refused(entry: &Entry, reason: &str) -> UnpackError {
    UnpackError::Entry { entry: shown(&entry.path), reason: reason.to_owned() }
}

fn failed(doing: &'static str, entry: &Entry, errno: Errno) -> UnpackError {
    kernel(doing, &shown(&entry.path), errno.into())
}

fn kernel(doing: &'static str, entry: &str, source: io::Error) -> UnpackError {
    UnpackError::Kernel { doing, entry: entry.to_owned(), source }
}
