//! The raft library logs through slog; this is where that ends and tracing begins.

use slog::{Drain, Key, Level, Logger, OwnedKVList, Record, Serializer, o};

/// A logger whose records become tracing events.
pub(crate) fn logger() -> Logger {
    Logger::root(Bridge, o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
        let mut fields = Fields(String::new());
        // Formatting into a string cannot fail.
        let _ = slog::KV::serialize(&record.kv(), record, &mut fields);
        let (message, fields) = (record.msg(), fields.0);
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", %message, fields),
            Level::Warning => tracing::warn!(target: "raft", %message, fields),
            // What the library calls info is the daily business of an election.
            Level::Info | Level::Debug => tracing::debug!(target: "raft", %message, fields),
            Level::Trace => tracing::trace!(target: "raft", %message, fields),
        }
        Ok(())
    }
}

/// `key=value` pairs, separated by spaces.
struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        use std::fmt::Write;
        write!(self.0, "{key}={value} ").map_err(slog::Error::from)
    }
}
