//! Container logs: JSON lines as Docker's json-file writes them, split at 16 KiB, rotated by size.
//!
//! One writer, the shim ([`writer::LogWriter`]), and any number of readers in the agent ([`reader::LogReader`]), which meet only in the
//! files of the container's directory. There is no index and no lock: the writer appends whole lines and renames, the readers know
//! the file they are in by its inode.

pub mod entry;
pub mod reader;
pub mod writer;

/// Name of the newest file; older ones are `log.json.1`, `log.json.2`, ….
pub const FILE_NAME: &str = "log.json";

/// The name of the file `age` rotations ago.
pub fn file_name(age: u32) -> String {
    if age == 0 { FILE_NAME.to_owned() } else { format!("{FILE_NAME}.{age}") }
}

/// Which of a container's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output, and everything of a container with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}
