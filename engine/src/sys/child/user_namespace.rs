//! What a child does otherwise when its container has a user namespace of its own.
//!
//! Everything is made from outside, with all privileges: the namespaces and mounts belong to the host's user namespace, so root inside
//! has no power over them. The container's namespace is entered last.
//!
//! Until then the child makes files *as* root inside (its file system ids are those): the layers are idmapped mounts, in which ids
//! that are not the container's cannot own anything, and what is made on a new tmpfs belongs to the container without further ado.

use std::ffi::{CStr, c_int};
use std::os::fd::RawFd;

use super::{At, Child, Failure, Step, fresh};
use crate::sys::program::IdmappedLayers;
use crate::sys::raw::{self, Sys};

/// Capabilities stay when ids change (`SECBIT_NO_SETUID_FIXUP`).
const NO_SETUID_FIXUP: u64 = 1 << 2;

impl Child<'_> {
    /// Files that are made from here on belong to root inside. The mounter of an overlay does what the overlay does below, so this
    /// comes before it.
    pub(super) fn make_as_owner(&self) -> Result<(), Failure> {
        let Some(namespace) = &self.program.user_namespace else { return Ok(()) };
        raw::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0).at(Step::UserNamespace)?;
        raw::setfsids(namespace.first).at(Step::UserNamespace)?;
        self.stay_hidden()
    }

    /// From here on ids are the container's, and every privilege is one over its own namespace only. All limits have been set.
    pub(super) fn enter_user_namespace(&self, namespace: RawFd) -> Result<(), Failure> {
        if namespace < 0 {
            return Ok(());
        }
        raw::setns(namespace, libc::CLONE_NEWUSER).at(Step::UserNamespace)?;
        raw::close(namespace);
        self.stay_hidden()
    }

    /// A change of credentials forgets both, whatever they were.
    fn stay_hidden(&self) -> Result<(), Failure> {
        raw::prctl(libc::PR_SET_DUMPABLE, 0, 0).at(Step::UserNamespace)?;
        raw::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at(Step::UserNamespace)?;
        Ok(())
    }

    /// Of the container's own file systems, those that belong to the host's root whoever makes them.
    pub(super) fn give_to_owner(&self, tree: RawFd) -> Sys<()> {
        match &self.program.user_namespace {
            Some(namespace) => raw::fchownat(tree, c"", namespace.first, namespace.first),
            None => Ok(()),
        }
    }

    /// The host's id of an id inside.
    pub(super) fn outside(&self, id: u32) -> u32 {
        // Preparing has refused what would not fit.
        self.program.user_namespace.as_ref().map_or(id, |namespace| namespace.first.wrapping_add(id))
    }
}

/// Mounts an overlay of idmapped layers. They hang in a tmpfs on `scratch` while that is done, since overlayfs takes only what hangs in
/// the caller's mount namespace (before Linux 6.15); it keeps copies of its own.
pub(super) fn mount_idmapped(layers: &IdmappedLayers, scratch: &CStr, mountpoint: &CStr) -> Sys<RawFd> {
    let place = raw::openat(libc::AT_FDCWD, scratch, DIRECTORY | libc::O_NOFOLLOW)?;
    let table = fresh(c"tmpfs", &[], Some(0o700), 0)?;
    raw::move_mount(table, place)?;
    raw::close(place);
    for (tree, name) in &layers.trees {
        raw::mkdirat(table, name, 0o700)?;
        let place = raw::openat(table, name, DIRECTORY | libc::O_NOFOLLOW)?;
        raw::move_mount(*tree, place)?;
        raw::close(place);
    }
    raw::fchdir(table)?;
    raw::close(table);
    raw::mount(c"overlay", mountpoint, Some(c"overlay"), 0, Some(&layers.options))?;
    let root = raw::openat(libc::AT_FDCWD, mountpoint, DIRECTORY)?;
    raw::fchdir(root)?;
    raw::umount2(scratch, libc::MNT_DETACH)?;
    Ok(root)
}

const DIRECTORY: c_int = libc::O_PATH | libc::O_DIRECTORY;

/// A child that does nothing in a new user namespace until it is killed; it dies with its parent. No signal tells of its end: it is
/// waited for with `__WALL`.
pub(crate) fn hold_user_namespace() -> Sys<i32> {
    let args = raw::CloneArgs { flags: libc::CLONE_NEWUSER as u64, ..raw::CloneArgs::default() };
    // A handler of the parent must not run in the child.
    let signals = raw::set_signal_mask(u64::MAX)?;
    // SAFETY: no CLONE_VM; the child makes system calls only and never returns; no pidfd is asked for.
    let cloned = unsafe { raw::clone3(&args) };
    if cloned == Ok(0) {
        if raw::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).is_ok() {
            // All signals are held: it waits until it is killed.
            while raw::wait_signal().is_ok() {}
        }
        raw::exit(1);
    }
    raw::set_signal_mask(signals)?;
    cloned
}
