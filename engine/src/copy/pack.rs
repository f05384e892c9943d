//! From a container to a tar stream.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use tar::{Builder, EntryType, Header};

use super::root::Root;
use super::tree::{kind, look, names, reopen};
use super::{CopyError, LOOK, inside};
use crate::runtime::IdRange;
use crate::sys::xattr;

/// Deeper trees are refused: each level holds a descriptor.
const MAX_DEPTH: usize = 256;

/// What the kernel calls an owner that a container has no id for.
const NOBODY: u32 = 65534;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStat {
    /// Its last component, `/` for the root.
    pub name: OsString,
    /// Bytes.
    pub size: u64,
    /// As st_mode: type and permissions.
    pub mode: u32,
    /// ns since 1970.
    pub modified: i64,
    /// Where it leads, if it is a symbolic link.
    pub link: Option<PathBuf>,
}

/// Finds what to copy.
pub(super) fn find(root: &Root, path: &str, follow: bool) -> Result<(OwnedFd, PathStat), CopyError> {
    let failed = || inside("find", path);
    // A path that ends in `/` or `/.` means the directory behind a link.
    let follow = follow || path.ends_with('/') || path.ends_with("/.");
    let found = root.open(path, if follow { OFlag::O_PATH } else { LOOK }).map_err(failed())?;
    let stat = fstat(&found).map_err(io::Error::from).map_err(failed())?;
    let link = match kind(&stat) {
        SFlag::S_IFLNK => Some(readlinkat(&found, c"").map_err(io::Error::from).map_err(failed())?.into()),
        _ => None,
    };
    let name = Path::new(path).file_name().unwrap_or(OsStr::new("/")).to_owned();
    let modified = stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Ok((found, PathStat { name, size, mode: stat.st_mode, modified, link }))
}

/// Writes it and what is below.
pub(super) fn pack(top: OwnedFd, stat: &PathStat, ids: Option<IdRange>, to: impl Write) -> Result<(), CopyError> {
    let name = if stat.name == "/" { PathBuf::from(".") } else { PathBuf::from(&stat.name) };
    let mut packer = Packer { builder: Builder::new(to), links: BTreeMap::new(), ids };
    let metadata = fstat(&top).map_err(io::Error::from).map_err(inside("look at", &name))?;
    let packed = packer.entry(&top, &metadata, &name, 0);
    match packed.and_then(|()| packer.builder.finish().map_err(inside("pack", &name))) {
        // The reader has had enough.
        Err(CopyError::Inside { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// Files with several names: (device, inode) → the first name in the archive.
    links: BTreeMap<(u64, u64), PathBuf>,
    /// What the container's own ids are outside.
    ids: Option<IdRange>,
}

impl<W: Write> Packer<W> {
    fn entry(&mut self, found: &OwnedFd, stat: &FileStat, path: &Path, depth: usize) -> Result<(), CopyError> {
        let failed = |source: io::Error| CopyError::Inside { doing: "copy", path: path.to_owned(), source };
        if depth > MAX_DEPTH {
            return Err(failed(nix::errno::Errno::ENAMETOOLONG.into()));
        }
        let mut header = header(stat, self.ids);
        let kind = kind(stat);
        if kind != SFlag::S_IFDIR && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.builder.append_link(&mut header, path, first).map_err(failed);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match kind {
            SFlag::S_IFDIR => {
                header.set_entry_type(EntryType::Directory);
                let directory = reopen(found).map_err(failed)?;
                self.attributes(&directory).map_err(failed)?;
                self.builder.append_data(&mut header, path.join(""), io::empty()).map_err(failed)?;
                if !is_kernel_view(&directory) {
                    self.children(&directory, path, depth)?;
                }
                Ok(())
            }
            SFlag::S_IFREG => {
                header.set_entry_type(EntryType::Regular);
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                header.set_size(size);
                let file = reopen(found).map_err(failed)?;
                self.attributes(&file).map_err(failed)?;
                // A file that grows or shrinks meanwhile has the size it had: anything else breaks the archive.
                let content = Exactly { file: File::from(file), left: size };
                self.builder.append_data(&mut header, path, content).map_err(failed)
            }
            SFlag::S_IFLNK => {
                header.set_entry_type(EntryType::Symlink);
                let target = readlinkat(found, c"").map_err(io::Error::from).map_err(failed)?;
                self.builder.append_link(&mut header, path, PathBuf::from(target)).map_err(failed)
            }
            SFlag::S_IFSOCK => Ok(()),
            node => {
                header.set_entry_type(match node {
                    SFlag::S_IFIFO => EntryType::Fifo,
                    SFlag::S_IFBLK => EntryType::Block,
                    _ => EntryType::Char,
                });
                let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
                header.set_device_major(number(major(stat.st_rdev))).map_err(failed)?;
                header.set_device_minor(number(minor(stat.st_rdev))).map_err(failed)?;
                self.builder.append_data(&mut header, path, io::empty()).map_err(failed)
            }
        }
    }

    fn children(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> Result<(), CopyError> {
        for name in names(directory).map_err(inside("list", path))? {
            let child = path.join(OsStr::from_bytes(name.to_bytes()));
            match look(directory, &name) {
                Ok((found, stat)) => self.entry(&found, &stat, &child, depth + 1)?,
                // Gone since it was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(inside("look at", child)(e)),
            }
        }
        Ok(())
    }

    /// Extended attributes as GNU tar and Docker write them.
    fn attributes(&mut self, file: &OwnedFd) -> io::Result<()> {
        let mut found = Vec::new();
        for name in xattr::list(file)? {
            if let Some(value) = xattr::get(file, &name)? {
                found.push((format!("SCHILY.xattr.{}", lossless(&name)), value));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        self.builder.append_pax_extensions(found.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

fn lossless(name: &CStr) -> String {
    OsString::from_vec(name.to_bytes().to_vec()).to_string_lossy().into_owned()
}

fn header(stat: &FileStat, ids: Option<IdRange>) -> Header {
    // As the container sees it.
    let inside = |id: u32| ids.map_or(id, |ids| ids.inside(id).unwrap_or(NOBODY));
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(inside(stat.st_uid).into());
    header.set_gid(inside(stat.st_gid).into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// procfs, sysfs and control groups are views of the kernel, not files: copying `/` leaves them out.
fn is_kernel_view(directory: &OwnedFd) -> bool {
    let views = [PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC];
    fstatfs(directory).is_ok_and(|kind| views.contains(&kind.filesystem_type()))
}

/// Reads exactly so many bytes, zeros where the file has become shorter.
struct Exactly {
    file: File,
    left: u64,
}

impl io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..most];
        let mut count = self.file.read(buffer)?;
        if count == 0 {
            buffer.fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}
