//! User namespaces: made empty by the launcher, filled with their ids, entered by the container's first process as the last thing it
//! does with privileges.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::ids::IdRange;
use super::launch::LaunchError;
use crate::sys::child;

/// A new user namespace with these ids and nobody in it. A process holds it open while its maps are written; afterwards the
/// descriptor does.
///
/// # Errors
/// [`LaunchError::UserNamespace`].
pub(super) fn make(ids: IdRange) -> Result<OwnedFd, LaunchError> {
    let failed = |doing: &'static str| move |source: io::Error| LaunchError::UserNamespace { doing, source };
    let pid = child::hold_user_namespace().map_err(|errno| failed("make it")(errno.into()))?;
    let filled = fill(pid, ids);
    // Our child, not waited for yet: the number is its own.
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    while waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL)) == Err(nix::errno::Errno::EINTR) {}
    filled.map_err(failed("give it its ids"))
}

fn fill(pid: i32, ids: IdRange) -> io::Result<OwnedFd> {
    let map = format!("0 {} {}\n", ids.first, IdRange::LENGTH);
    for name in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{name}"), &map)?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// Why this kernel cannot give containers user namespaces of their own; `None` when it can.
pub(crate) fn missing() -> Option<String> {
    if !Path::new("/proc/self/ns/user").exists() {
        return Some("this kernel has no user namespaces (CONFIG_USER_NS)".to_owned());
    }
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    too_old(&release).then(|| format!("layers of images with ids of their own need Linux 5.19, and this is {release}"))
}

/// Overlayfs takes idmapped layers since 5.19. What cannot be read as a version is taken for a new one.
fn too_old(release: &str) -> bool {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (5, 19),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::too_old;

    #[test]
    fn kernels_before_5_19_are_too_old() {
        for release in ["5.10.0-28-amd64", "5.18.19", "4.19.0"] {
            assert!(too_old(release), "{release}");
        }
        for release in ["5.19.0", "6.1.0-18-cloud-amd64", "6.18.44-fc", "10.0"] {
            assert!(!too_old(release), "{release}");
        }
    }
}
