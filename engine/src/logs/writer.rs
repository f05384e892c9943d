//! The shim's end of a log. Never loses a line while the disk takes it, never blocks for a reader, never leaves half a line.
//!
//! When the disk is full the container goes on: what cannot be written is dropped and counted, and the first line that fits again is
//! preceded by a notice that says how much is missing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{FILE_NAME, Stream, entry, file_name};
use crate::shim::protocol::LogPlan;

/// A longer line is cut into pieces of at most this many bytes: Docker's buffer, which readers of json-file logs know.
pub const LINE_LIMIT: usize = 16 << 10;
/// At the opening of a log at most this much of its end is searched for a torn line: an entry of 16 KiB with every byte escaped to six,
/// and its frame.
const TORN_LIMIT: u64 = 6 * (LINE_LIMIT as u64) + 256;

/// What could not be written since the last line that was.
#[derive(Debug)]
struct Dropped {
    entries: u64,
    bytes: u64,
    why: io::Error,
}

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
struct Pending {
    /// Below [`LINE_LIMIT`] bytes; empty memory is given back.
    text: Vec<u8>,
    /// When the line began: all pieces of a line carry it.
    since: Option<i64>,
}

/// Writes one container's log.
#[derive(Debug)]
pub struct LogWriter {
    directory: OwnedFd,
    plan: LogPlan,
    file: Option<File>,
    size: u64,
    pending: [Pending; 2],
    last_time: i64,
    dropped: Option<Dropped>,
}

impl LogWriter {
    /// Opens the log in a container's directory, going on where a former run stopped. A log that cannot be opened does not keep the
    /// container from running: its lines count as dropped until it can.
    pub fn new(directory: OwnedFd, plan: LogPlan) -> Self {
        let mut writer = Self {
            directory,
            plan,
            file: None,
            size: 0,
            pending: [Pending::default(), Pending::default()],
            last_time: 0,
            dropped: None,
        };
        if !plan.none {
            // An error shows again, and is counted, when the first line comes.
            let _ = writer.open();
        }
        writer
    }

    /// Takes output as it came from the container at `now` (ns since 1970). `scratch` is lent so that idle containers hold no buffer.
    pub fn take(&mut self, stream: Stream, mut data: &[u8], now: i64, scratch: &mut Vec<u8>) {
        if self.plan.none {
            return;
        }
        // The wall clock may be set back; the order of the lines may not.
        self.last_time = self.last_time.max(now);
        scratch.clear();
        while !data.is_empty() {
            let held = self.pending[index(stream)].text.len();
            let room = LINE_LIMIT - held;
            let window = &data[..data.len().min(room)];
            let (length, complete) = match window.iter().position(|&b| b == b'\n') {
                Some(at) => (at + 1, true),
                None if window.len() == room => (room, true),
                None => (window.len(), false),
            };
            let (piece, rest) = data.split_at(length);
            data = rest;
            if complete {
                self.line(stream, piece, scratch);
            } else {
                let pending = &mut self.pending[index(stream)];
                pending.since.get_or_insert(self.last_time);
                pending.text.extend_from_slice(piece);
            }
        }
        self.flush(scratch);
    }

    /// The stream has ended: what is left of a line without a newline is written.
    pub fn end(&mut self, stream: Stream, scratch: &mut Vec<u8>) {
        scratch.clear();
        if !self.pending[index(stream)].text.is_empty() {
            self.line(stream, &[], scratch);
        }
        self.pending[index(stream)] = Pending::default();
        self.flush(scratch);
    }

    /// Hands everything to the disk: after the container's end, before its exit is told.
    pub fn sync(&self) {
        if let Some(file) = &self.file {
            // A disk that cannot do it has been reported by the write before.
            let _ = file.sync_data();
        }
    }

    /// Puts the pending text and `piece` into the scratch buffer as one entry.
    fn line(&mut self, stream: Stream, piece: &[u8], scratch: &mut Vec<u8>) {
        let pending = std::mem::take(&mut self.pending[index(stream)]);
        let since = pending.since.unwrap_or(self.last_time);
        let before = scratch.len();
        let mut whole = pending.text;
        let whole = if whole.is_empty() {
            piece
        } else {
            whole.extend_from_slice(piece);
            &whole
        };
        if whole.last() == Some(&b'\n') {
            entry::encode(scratch, since, stream, whole);
        } else {
            // A piece of a long line. A character cut in two goes to the next piece; at the end of the stream there is no next.
            let end = if piece.is_empty() { whole.len() } else { whole_characters(whole) };
            entry::encode(scratch, since, stream, &whole[..end]);
            self.pending[index(stream)] = Pending { text: whole[end..].to_vec(), since: Some(since) };
        }
        let full = self.plan.max_size > 0 && self.size + scratch.len() as u64 > self.plan.max_size;
        if full && (self.size > 0 || before > 0) {
            let entry = scratch.split_off(before);
            self.flush(scratch);
            if self.size > 0 {
                self.rotate();
            }
            *scratch = entry;
        }
    }

    /// Writes the scratch buffer, whole or not at all.
    fn flush(&mut self, scratch: &mut Vec<u8>) {
        if scratch.is_empty() {
            return;
        }
        if let Some(dropped) = &self.dropped {
            let text = format!(
                "orch: {} log lines ({} bytes) are missing here: {}\n",
                dropped.entries, dropped.bytes, dropped.why
            );
            let mut notice = Vec::new();
            entry::encode(&mut notice, self.last_time, Stream::Stderr, text.as_bytes());
            notice.append(scratch);
            *scratch = notice;
        }
        let result = match &self.file {
            Some(_) => Ok(()),
            None => self.open(),
        };
        let result = result.and_then(|()| {
            let file = self.file.as_mut().expect("opened just above");
            file.write_all(scratch).inspect_err(|_| {
                // Half a line must not stay: the next would be glued to it. Truncating needs no space.
                let _ = file.set_len(self.size);
            })
        });
        match result {
            Ok(()) => {
                self.size += scratch.len() as u64;
                self.dropped = None;
            }
            Err(why) => {
                let notice = u64::from(self.dropped.is_some());
                let entries = scratch.iter().filter(|&&b| b == b'\n').count() as u64 - notice;
                let bytes = scratch.len() as u64;
                let total = self.dropped.get_or_insert(Dropped { entries: 0, bytes: 0, why });
                total.entries += entries;
                total.bytes += bytes;
            }
        }
        scratch.clear();
    }

    fn open(&mut self) -> io::Result<()> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = File::from(openat(self.directory.as_fd(), FILE_NAME, flags, Mode::from_bits_truncate(0o640))?);
        let size = file.metadata()?.len();
        self.size = whole_lines(&file, size)?;
        if self.size < size {
            file.set_len(self.size)?;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Renames N−1 → N, …, the newest → 1 and begins a new file. With one file it is replaced, not truncated, so that a reader keeps
    /// what it has open.
    fn rotate(&mut self) {
        self.file = None;
        let kept = self.plan.max_file.max(1) - 1;
        if kept == 0 {
            let _ = unlinkat(self.directory.as_fd(), FILE_NAME, UnlinkatFlags::NoRemoveDir);
        }
        for age in (0..kept).rev() {
            // A missing older file is normal; one that cannot be renamed makes the newest grow past its bound, and nothing is lost.
            let (from, to) = (file_name(age), file_name(age + 1));
            let _ = renameat(self.directory.as_fd(), from.as_str(), self.directory.as_fd(), to.as_str());
        }
        self.size = 0;
        let _ = self.open();
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

/// How many bytes of `text` to take so that no UTF-8 character is cut: at most three fewer than there are.
fn whole_characters(text: &[u8]) -> usize {
    for back in 1..=text.len().min(3) {
        let at = text.len() - back;
        let needs = match text[at] {
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF7 => 4,
            0x80..=0xBF => continue,
            _ => return text.len(),
        };
        return if needs > back { at } else { text.len() };
    }
    text.len()
}

/// The length of the file up to its last newline: a power cut may have left the first part of an entry.
fn whole_lines(file: &File, size: u64) -> io::Result<u64> {
    let from = size.saturating_sub(TORN_LIMIT);
    let mut step = [0_u8; 4096];
    let mut end = size;
    while end > from {
        let start = end.saturating_sub(step.len() as u64).max(from);
        let part = &mut step[..usize::try_from(end - start).expect("at most 4096")];
        file.read_exact_at(part, start)?;
        if let Some(at) = part.iter().rposition(|&b| b == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(from)
}
