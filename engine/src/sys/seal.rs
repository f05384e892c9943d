//! This program's executable, unreachable for writing.
//!
//! Until it executes the user's program, a container's process shows this program's file as /proc/PID/exe, and a container whose
//! command is `#!/proc/self/exe` executes it. Through that link the file could be opened for writing once nobody executes it any more
//! (CVE-2019-5736). So the shim is started from a descriptor that leads to a read-only view of the file: a lower-only overlay that is
//! attached nowhere, which costs no memory and cannot be remounted by anyone; or, where overlayfs cannot show the file, from a sealed
//! copy in memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{own, raw};

/// Super block magic of overlayfs (include/uapi/linux/magic.h).
const OVERLAY_MAGIC: i64 = 0x794c_7630;

/// How often to seal a copy whose pages the kernel still works on.
const SEAL_ATTEMPTS: u32 = 20;

const ALL_SEALS: SealFlag =
    SealFlag::F_SEAL_SEAL.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// Whether this process runs from a file that no one can write to through it: opening it for writing must fail for a reason that
/// outlives this process (a file that is merely being executed refuses with ETXTBSY).
#[must_use]
pub fn is_sealed() -> bool {
    let Ok(executable) = File::open("/proc/self/exe") else { return false };
    if let Ok(seals) = fcntl(&executable, FcntlArg::F_GET_SEALS) {
        return SealFlag::from_bits_truncate(seals).contains(ALL_SEALS);
    }
    let overlay = raw::magic(executable.as_raw_fd()) == Ok(OVERLAY_MAGIC);
    let refused = File::options().write(true).open("/proc/self/exe").err().and_then(|error| error.raw_os_error());
    overlay && refused == Some(libc::EROFS)
}

/// A descriptor of this program's executable that cannot be written through, for starting the shim:
/// execute `/proc/self/fd/N`. Closed on exec.
///
/// # Errors
/// When neither an overlay nor a memory file can be made.
pub fn sealed_executable() -> io::Result<OwnedFd> {
    if is_sealed() {
        return File::open("/proc/self/exe").map(OwnedFd::from);
    }
    let path = std::fs::read_link("/proc/self/exe")?;
    overlay_view(&path).or_else(|_| memory_copy())
}

/// The executable's directory as the lower layer of an overlay without upper layer. Two layers are the least without an upper one: the
/// second is the root of sysfs, where no name is looked up once the first has it. (An empty tmpfs of our own would not do: kernels before
/// 6.15 take no layer from a mount that is attached nowhere.)
fn overlay_view(path: &Path) -> io::Result<OwnedFd> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let text = |bytes: &[u8]| std::ffi::CString::new(bytes).map_err(io::Error::from);
    let opened = File::open(directory)?;
    let lower = text(format!("/proc/self/fd/{}:/sys", opened.as_raw_fd()).as_bytes())?;
    let context = own(raw::fsopen(c"overlay")?);
    raw::fsconfig_string(context.as_raw_fd(), c"lowerdir", &lower)?;
    raw::fsconfig_create(context.as_raw_fd())?;
    let tree = own(raw::fsmount(context.as_raw_fd(), raw::MOUNT_ATTR_RDONLY | raw::MOUNT_ATTR_NODEV)?);
    let executable =
        raw::openat2(tree.as_raw_fd(), &text(name.as_bytes())?, libc::O_RDONLY, 0, raw::BENEATH | raw::NO_SYMLINKS)?;
    let executable = own(executable);
    // The same file, not what an upgrade has meanwhile put in its place.
    let same = |left: libc::stat, right: libc::stat| left.st_ino == right.st_ino && left.st_size == right.st_size;
    let running = File::open("/proc/self/exe")?;
    if !same(raw::fstat(executable.as_raw_fd())?, raw::fstat(running.as_raw_fd())?) {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(executable)
}

/// A copy in memory that the kernel lets nobody change.
fn memory_copy() -> io::Result<OwnedFd> {
    let copy = memfd_create(c"orch", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(copy);
    io::copy(&mut File::open("/proc/self/exe")?, &mut file)?;
    // On a busy host the kernel's own work on a large file's pages counts as use of them for longer than it waits by itself
    // (memfd_wait_for_pins in mm/memfd.c: 150 ms).
    let mut attempts = SEAL_ATTEMPTS;
    while let Err(errno) = fcntl(&file, FcntlArg::F_ADD_SEALS(ALL_SEALS)) {
        attempts -= 1;
        if errno != Errno::EBUSY || attempts == 0 {
            return Err(errno.into());
        }
    }
    // Opened again for reading: a descriptor open for writing keeps the file from being executed.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses_writing(executable: &OwnedFd) -> bool {
        let path = format!("/proc/self/fd/{}", executable.as_raw_fd());
        let opened = File::options().write(true).open(path);
        opened.is_err_and(|error| matches!(error.raw_os_error(), Some(libc::EROFS | libc::EPERM)))
    }

    #[test]
    fn an_ordinary_program_is_not_sealed() {
        assert!(!is_sealed());
    }

    #[test]
    fn neither_view_nor_copy_can_be_opened_for_writing() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let path = std::fs::read_link("/proc/self/exe").unwrap();
        assert!(refuses_writing(&overlay_view(&path).unwrap()));
        let copy = memory_copy().unwrap();
        // Opening a sealed file for writing succeeds; every write fails.
        let seals = SealFlag::from_bits_truncate(fcntl(&copy, FcntlArg::F_GET_SEALS).unwrap());
        assert!(seals.contains(ALL_SEALS));
        let reopened = File::options().write(true).open(format!("/proc/self/fd/{}", copy.as_raw_fd())).unwrap();
        assert_eq!(nix::unistd::write(&reopened, b"x"), Err(Errno::EPERM));
    }
}
