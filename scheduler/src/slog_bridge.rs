//! The raft library logs through `slog`; its records end here, in `tracing`.

use slog::{Drain, Level, Logger, OwnedKVList, Record, o};

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        // Formatted only when somebody listens: the library says much on its hot paths.
        let message = record.msg();
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{message}"),
            Level::Warning => tracing::warn!(target: "raft", "{message}"),
            // The driver says who leads; the library's own news are for those who look for its bugs.
            Level::Info | Level::Debug => tracing::debug!(target: "raft", "{message}"),
            Level::Trace => tracing::trace!(target: "raft", "{message}"),
        }
        Ok(())
    }
}

/// A logger for the raft library.
pub(crate) fn logger() -> Logger {
    Logger::root(Bridge, o!())
}
