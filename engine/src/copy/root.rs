//! The root directory of a container or an image, as a descriptor: everything is reached below it, with openat2(RESOLVE_IN_ROOT), so
//! that neither `..` nor an absolute link leads out, also while somebody exchanges directories for links (CVE-2018-15664).

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use crate::runtime::{IdRange, Identity};
use crate::sys::{overlay_of_single_layers, own, raw};

/// A page, less the NUL: mount(2) takes no longer options.
const MOUNT_OPTIONS: usize = 4095;

/// A root directory.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
    /// The ids that owners are seen as from outside, where they are not those inside.
    ids: Option<IdRange>,
}

impl Root {
    /// That of a running process, with everything mounted in its namespace.
    pub(crate) fn of_process(process: Identity, ids: Option<IdRange>) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the container's process is gone");
        let root = File::options().read(true).custom_flags_directory().open(format!("/proc/{}/root", process.pid))?;
        // Looked at after opening: it was that process's root, or that of nobody who came later.
        if process.exists() { Ok(Self { directory: root.into(), ids }) } else { Err(gone()) }
    }

    /// The merged layers, lowest first; with `upper` and `work`, writable. Mounted nowhere; gone with the descriptor.
    pub(crate) fn of_layers(lower: &[PathBuf], upper: Option<(&Path, &Path)>, scratch: &Path) -> io::Result<Self> {
        if let ([only], None) = (lower, upper) {
            // Overlayfs wants two layers; one is its own merged view.
            return Ok(Self { directory: open_directory(only)?, ids: None });
        }
        match detached_overlay(lower, upper) {
            // Before Linux 6.8 layers come in one string of 256 bytes, too short for paths.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => mounted_overlay(lower, upper, scratch),
            other => other,
        }
        .map(|directory| Self { directory, ids: None })
    }

    /// Opens a path inside, links followed without leaving the root.
    pub(crate) fn open(&self, path: impl AsRef<OsStr>, flags: OFlag) -> io::Result<OwnedFd> {
        open_below(
            &self.directory,
            path.as_ref(),
            flags,
            ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        )
    }
}

impl Root {
    /// The ids that the container has for its own.
    pub(crate) fn ids(&self) -> Option<IdRange> {
        self.ids
    }
}

impl From<Root> for OwnedFd {
    fn from(root: Root) -> Self {
        root.directory
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn open_below(root: &OwnedFd, path: &OsStr, flags: OFlag, resolve: ResolveFlag) -> io::Result<OwnedFd> {
    // Within a root an absolute path means the same; an empty one is the root itself.
    let path = if path.is_empty() { OsStr::new(".") } else { path };
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(Mode::empty()).resolve(resolve);
    // EAGAIN: something was renamed while the kernel looked for `..`; it cannot say whether that led out.
    for _ in 0..128 {
        match openat2(root, path, how) {
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "the path keeps changing"))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    File::options().read(true).custom_flags_directory().open(path).map(OwnedFd::from)
}

trait DirectoryOnly {
    fn custom_flags_directory(&mut self) -> &mut Self;
}

impl DirectoryOnly for std::fs::OpenOptions {
    fn custom_flags_directory(&mut self) -> &mut Self {
        use std::os::unix::fs::OpenOptionsExt;
        self.custom_flags(libc::O_DIRECTORY)
    }
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(io::Error::from)
}

fn detached_overlay(lower: &[PathBuf], upper: Option<(&Path, &Path)>) -> io::Result<OwnedFd> {
    let Some(context) = overlay_of_single_layers()? else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let set = |key: &std::ffi::CStr, value: &Path| -> io::Result<()> {
        Ok(raw::fsconfig_string(context.as_raw_fd(), key, &text(value.as_os_str().as_bytes())?)?)
    };
    for layer in lower.iter().rev() {
        set(c"lowerdir+", layer)?;
    }
    if let Some((upper, work)) = upper {
        set(c"upperdir", upper)?;
        set(c"workdir", work)?;
        raw::fsconfig_string(context.as_raw_fd(), c"index", c"off")?;
    }
    raw::fsconfig_create(context.as_raw_fd())?;
    Ok(own(raw::fsmount(context.as_raw_fd(), 0)?))
}

/// Mounted for a moment on an empty directory of ours, then taken away again: the descriptor keeps it.
fn mounted_overlay(lower: &[PathBuf], upper: Option<(&Path, &Path)>, scratch: &Path) -> io::Result<OwnedFd> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let opened = |path: &Path| open_directory(path);
    let layers: Vec<OwnedFd> = lower.iter().rev().map(|path| opened(path)).collect::<io::Result<_>>()?;
    let by_number = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut options = format!("lowerdir={}", layers.iter().map(by_number).collect::<Vec<_>>().join(":"));
    let mut kept = Vec::new();
    if let Some((upper, work)) = upper {
        for (key, path) in [("upperdir", upper), ("workdir", work)] {
            let fd = opened(path)?;
            options = format!("{options},{key}={}", by_number(&fd));
            kept.push(fd);
        }
        options.push_str(",index=off");
    }
    if options.len() > MOUNT_OPTIONS {
        return Err(io::Error::new(
            io::ErrorKind::ArgumentListTooLong,
            format!("{} layers are too many for this kernel", lower.len()),
        ));
    }
    let _one_at_a_time = crate::engine::lock(&ONE_AT_A_TIME);
    mount(Some("overlay"), scratch, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    let root = open_directory(scratch);
    umount2(scratch, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    root
}
