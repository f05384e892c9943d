//! Files made for a container that has ids of its own.

use std::io;

use nix::errno::Errno;

use crate::runtime::IdRange;
use crate::sys::raw;

/// Capabilities stay when ids change (`SECBIT_NO_SETUID_FIXUP`).
const NO_SETUID_FIXUP: u64 = 1 << 2;

/// While it lives, files that this thread makes are those of the container's root: in mounts that map owners nobody else's can be made.
/// What the thread may do stays as it was.
#[derive(Debug)]
pub(super) struct MakesAsRoot {
    former: u32,
    bits: u64,
    dumpable: u64,
    /// It is about this very thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl MakesAsRoot {
    pub(super) fn of(ids: IdRange) -> io::Result<Self> {
        let ask = |option| raw::prctl(option, 0, 0).map(|answer| u64::try_from(answer).unwrap_or(0));
        let (bits, dumpable) = (ask(libc::PR_GET_SECUREBITS)?, ask(libc::PR_GET_DUMPABLE)?);
        // Where this fails nothing has changed; afterwards dropping puts everything back.
        raw::prctl(libc::PR_SET_SECUREBITS, bits | NO_SETUID_FIXUP, 0)?;
        let former = nix::unistd::geteuid().as_raw();
        let guard = Self { former, bits, dumpable, _here: std::marker::PhantomData };
        raw::setfsids(ids.first)?;
        Ok(guard)
    }
}

impl Drop for MakesAsRoot {
    fn drop(&mut self) {
        let back = || -> Result<(), Errno> {
            raw::setfsids(self.former)?;
            raw::prctl(libc::PR_SET_SECUREBITS, self.bits, 0)?;
            // Changed by the kernel with any change of ids, for the whole process.
            raw::prctl(libc::PR_SET_DUMPABLE, self.dumpable, 0).map(drop)
        };
        if let Err(errno) = back() {
            tracing::error!(%errno, "a thread cannot take its own ids back");
        }
    }
}
