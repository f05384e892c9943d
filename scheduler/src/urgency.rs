//! Threads that must not wait for others: those that say that this node lives, and that keep a leader in office: raft and its log.

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
