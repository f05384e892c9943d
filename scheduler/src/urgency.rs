//! Threads that must not wait for others: those that say that this node lives, and that keep a leader in office: raft, its log, and what
//! carries their messages.

use std::future::pending;
use std::io;

use tokio::runtime::{Builder, Handle};

/// The highest there is without real time (setpriority(2)): these threads run for microseconds, and whoever burns the processors for
/// hours, even at the same priority, is interrupted for them.
const NICEST: i32 = -20;

/// Puts the calling thread, and none other, before others. Without the right to, or below a control group that says otherwise, it stays as it
/// is.
pub(crate) fn urgent() {
    // On Linux a priority belongs to a thread, and the id of a thread is taken for a process's.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICEST) {
        tracing::debug!(%error, "a thread stays at its priority");
    }
}

/// Starts a thread, put before others, for small conversations with other nodes, and says how it is given some; it ends with the process.
/// What it carries must neither compute for long nor wait for a lock: all of it would stand still.
///
/// # Errors
/// When there can be no such thread.
pub fn runtime() -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let carry = move || {
        urgent();
        runtime.block_on(pending::<()>());
    };
    std::thread::Builder::new().name("urgent".to_owned()).spawn(carry)?;
    Ok(handle)
}
