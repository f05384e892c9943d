//! Looking at directory trees: a listing with everything that an image must keep, and an overlay mount.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sha2::{Digest, Sha256};

/// One line for each name below `root`, sorted: type and mode, owner, size, time, link target or content, attributes, link count.
pub(crate) fn listing(root: &Path) -> Vec<String> {
    let mut lines = xattrs(root);
    walk(root, Path::new(""), &mut lines);
    lines.sort();
    lines
}

fn walk(root: &Path, path: &Path, lines: &mut Vec<String>) {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        format!("-> {}", fs::read_link(&full).unwrap().as_os_str().as_bytes().escape_ascii())
    } else if kind.is_file() {
        let digest = Sha256::digest(fs::read(&full).unwrap());
        format!(
            "{} {} links={}",
            meta.len(),
            digest.iter().take(6).map(|b| format!("{b:02x}")).collect::<String>(),
            meta.nlink()
        )
    } else if kind.is_char_device() || kind.is_block_device() {
        format!("rdev={:x}", meta.rdev())
    } else {
        String::new()
    };
    lines.push(format!(
        "{} {:o} {}:{} {}.{:09} {content}",
        path.as_os_str().as_bytes().escape_ascii(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
    ));
    if kind.is_dir() {
        for entry in fs::read_dir(&full).unwrap() {
            walk(root, &path.join(entry.unwrap().file_name()), lines);
        }
    }
}

/// All attributes of the tree as lines of their own, by one process.
fn xattrs(root: &Path) -> Vec<String> {
    let output =
        Command::new("getfattr").args(["-RPhd", "-m", "-", "-e", "hex", "."]).current_dir(root).output().unwrap();
    let mut lines = Vec::new();
    let mut path = "";
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("# file: ") {
            Some(next) => path = next.strip_prefix("./").unwrap_or(next),
            None => lines.push(format!("{path} xattr {line}")),
        }
    }
    lines
}

/// Blocks a file takes, in bytes.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Layers mounted read-only with overlayfs, unmounted when dropped.
pub(crate) struct Overlay {
    at: tempfile::TempDir,
}

impl Overlay {
    /// `layers`: lowest first.
    pub(crate) fn mount(layers: &[PathBuf]) -> Self {
        let at = tempfile::tempdir().unwrap();
        let mut stack: Vec<OsString> = layers.iter().rev().map(|layer| layer.clone().into_os_string()).collect();
        let empty = at.path().join("empty");
        let merged = at.path().join("merged");
        fs::create_dir(&empty).unwrap();
        fs::create_dir(&merged).unwrap();
        // A single lower directory is no overlay without an upper one.
        stack.push(empty.into_os_string());
        let mut options = OsString::from("lowerdir=");
        options.push(stack.join(std::ffi::OsStr::new(":")));
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_os_str())).unwrap();
        Self { at }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.at.path().join("merged")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount2(&self.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// A small tmpfs, unmounted when dropped.
pub(crate) struct SmallDisk {
    at: tempfile::TempDir,
}

impl SmallDisk {
    pub(crate) fn new(bytes: u64) -> Self {
        let at = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},mode=700");
        mount(Some("tmpfs"), at.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { at }
    }

    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.at.path(), MntFlags::MNT_DETACH).unwrap();
    }
}
