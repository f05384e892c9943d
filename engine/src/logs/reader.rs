//! Reading a container's log: the last lines, a span of time, and on as it grows.
//!
//! A reader opens all files newest first, so that a rotation in between shows it the same file twice (known by its inode) and never
//! hides one. Following, it watches the directory with inotify and looks at the newest file's inode when it comes to the end of its own:
//! the writer never adds to a file it has renamed, so "renamed, then read to its end" is the whole of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::entry::{self, LogLine};
use super::{FILE_NAME, Stream, file_name};

/// Files beyond this number are not looked for: a log of a thousand files was not made by us.
const MAX_FILES: u32 = 1000;
/// One read: some hundred lines.
const READ_STEP: usize = 64 << 10;
/// An entry is bounded by the writer (16 KiB of text, each byte escaped to six at most); more without a newline is no log of ours.
const MAX_ENTRY: usize = 1 << 20;
/// How often a follower looks whether its container is still there when the file system tells it nothing.
const LOOK: Duration = Duration::from_millis(200);

/// A log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read the log in {directory}")]
pub struct LogError {
    /// The container's directory.
    pub directory: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Only the last so many lines of those chosen by `stream`; `None` = all.
    pub tail: Option<u64>,
    /// Nothing older, ns since 1970.
    pub since: Option<i64>,
    /// Nothing newer, ns since 1970; a follower ends when that time has come.
    pub until: Option<i64>,
    /// Wait for more until the container has ended.
    pub follow: bool,
    /// Only this stream.
    pub stream: Option<Stream>,
}

/// What [`LogReader::next_within`] found.
#[derive(Debug)]
pub enum Next {
    /// A line.
    Line(LogLine),
    /// Nothing new in the given time.
    Idle,
    /// There will be no more.
    End,
}

/// Ends a follower from another thread.
#[derive(Debug, Clone)]
pub struct LogStop(Arc<AtomicBool>);

impl LogStop {
    /// The reader says [`Next::End`] within a fraction of a second.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An open log. Also an iterator, which waits where it follows.
pub struct LogReader {
    directory: PathBuf,
    query: LogQuery,
    /// The file being read first.
    files: VecDeque<File>,
    /// Where the next unread entry of that file begins.
    offset: u64,
    buffer: Vec<u8>,
    /// Read part of the buffer.
    used: usize,
    /// Files were rotated away before they were read.
    gap: bool,
    watch: Option<Inotify>,
    ended: Box<dyn Fn() -> bool + Send>,
    stopped: Arc<AtomicBool>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader")
            .field("directory", &self.directory)
            .field("query", &self.query)
            .finish_non_exhaustive()
    }
}

impl LogReader {
    /// Opens the log in a container's directory. `ended` says whether the writer has finished: a follower then reads the rest and ends.
    ///
    /// # Errors
    /// When a file is there but cannot be read. No log at all is an empty log.
    pub fn open(
        directory: &Path,
        query: LogQuery,
        ended: impl Fn() -> bool + Send + 'static,
    ) -> Result<Self, LogError> {
        let fail = |source| LogError { directory: directory.to_owned(), source };
        // The watch is set before the files are opened, or a line between the two would wait for the next.
        let watch = if query.follow { watch(directory) } else { None };
        let (files, _) = open_files(directory, None).map_err(fail)?;
        let mut reader = Self {
            directory: directory.to_owned(),
            query,
            files,
            offset: 0,
            buffer: Vec::new(),
            used: 0,
            gap: false,
            watch,
            ended: Box::new(ended),
            stopped: Arc::new(AtomicBool::new(false)),
        };
        if let Some(tail) = reader.query.tail {
            reader.seek_tail(tail).map_err(fail)?;
        }
        Ok(reader)
    }

    /// A handle that ends this reader.
    pub fn stopper(&self) -> LogStop {
        LogStop(Arc::clone(&self.stopped))
    }

    /// The next line, waiting for at most `wait` where it follows.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn next_within(&mut self, wait: Duration) -> Result<Next, LogError> {
        let deadline = Instant::now().checked_add(wait);
        loop {
            // Asked before the last look at the file: what was written before the end is then seen.
            let over = !self.query.follow || self.is_over();
            match self.read_line() {
                Ok(Some(line)) => {
                    if self.wants(&line) {
                        return Ok(Next::Line(line));
                    }
                }
                Ok(None) if over => return Ok(Next::End),
                Ok(None) => {
                    let left = deadline.map_or(LOOK, |d| d.saturating_duration_since(Instant::now()));
                    if left.is_zero() {
                        return Ok(Next::Idle);
                    }
                    self.wait(left.min(LOOK));
                }
                Err(source) => return Err(LogError { directory: self.directory.clone(), source }),
            }
        }
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
            || (self.ended)()
            || self.query.until.is_some_and(|until| {
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .is_ok_and(|now| now.as_nanos() > until.unsigned_abs().into())
            })
    }

    fn wants(&self, line: &LogLine) -> bool {
        self.query.stream.is_none_or(|stream| stream == line.stream)
            && self.query.since.is_none_or(|since| line.time >= since)
            && self.query.until.is_none_or(|until| line.time <= until)
    }

    /// The next whole entry, going from file to file.
    fn read_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            if let Some(length) = self.buffer[self.used..].iter().position(|&b| b == b'\n') {
                let line = entry::decode(&self.buffer[self.used..self.used + length]);
                self.used += length + 1;
                self.offset += length as u64 + 1;
                if line.is_some() {
                    return Ok(line);
                }
                continue;
            }
            if self.fill()? {
                continue;
            }
            // The end of this file, perhaps with half an entry that the writer may still take back: it is read again later.
            self.buffer.clear();
            self.used = 0;
            if self.files.len() < 2 {
                let newer = self.newer_files()?;
                if newer.is_empty() {
                    return Ok(None);
                }
                let first = self.files.is_empty();
                self.files.extend(newer);
                if first {
                    self.offset = 0;
                    continue;
                }
                // What was added before the renaming was seen is read before the file is left.
                if self.fill()? {
                    continue;
                }
            }
            self.files.pop_front();
            self.offset = 0;
            if std::mem::take(&mut self.gap) {
                return Ok(Some(gap_notice()));
            }
        }
    }

    /// Adds bytes behind the unread ones. False at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(file) = self.files.front() else { return Ok(false) };
        self.buffer.drain(..self.used);
        self.used = 0;
        let held = self.buffer.len();
        if held > MAX_ENTRY {
            // No entry of ours: skip what we have of it, the rest will not decode.
            self.offset += held as u64;
            self.buffer.clear();
        }
        let held = self.buffer.len();
        self.buffer.resize(held + READ_STEP, 0);
        let got = loop {
            match file.read_at(&mut self.buffer[held..], self.offset + held as u64) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(held + got.as_ref().copied().unwrap_or(0));
        Ok(got? > 0)
    }

    /// Files made since the one being read, oldest first.
    fn newer_files(&mut self) -> io::Result<VecDeque<File>> {
        let Some(current) = self.files.front() else { return Ok(open_files(&self.directory, None)?.0) };
        let current = identity(current)?;
        match std::fs::metadata(self.directory.join(FILE_NAME)) {
            Ok(newest) if (newest.dev(), newest.ino()) == current => Ok(VecDeque::new()),
            Ok(_) => {
                let (files, gap) = open_files(&self.directory, Some(current))?;
                self.gap |= gap;
                Ok(files)
            }
            // Between the renaming and the making of the new file, or the container is being removed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(VecDeque::new()),
            Err(e) => Err(e),
        }
    }

    /// Goes back from the end to where the last `tail` wanted lines begin. A line in pieces counts once.
    fn seek_tail(&mut self, tail: u64) -> io::Result<()> {
        let mut lines = 0;
        let mut first = true;
        for index in (0..self.files.len()).rev() {
            let mut entries = Backward::new(&self.files[index])?;
            while let Some((start, length)) = entries.previous()? {
                let Some(line) = entry::decode(&entries.held[entries.held.len() - length..]) else { continue };
                if self.query.stream.is_some_and(|stream| stream != line.stream) {
                    continue;
                }
                // Going back, a line is entered by its last piece: the one with the newline, or the very last of the log.
                lines += u64::from(first || !line.is_partial());
                first = false;
                if lines > tail {
                    self.files.drain(..index);
                    self.offset = start + length as u64 + 1;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn wait(&self, limit: Duration) {
        let Some(watch) = &self.watch else {
            std::thread::sleep(limit);
            return;
        };
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::from(200_u8));
        if poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) {
            let mut events = [0_u8; 4096];
            // Only that something happened counts; a full buffer leaves the descriptor readable.
            let _ = nix::unistd::read(watch.as_fd(), &mut events);
        }
    }
}

impl Iterator for LogReader {
    type Item = Result<LogLine, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_within(Duration::from_secs(3600)) {
                Ok(Next::Line(line)) => return Some(Ok(line)),
                Ok(Next::Idle) => {}
                Ok(Next::End) => return None,
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// Entries of a file from its end to its beginning.
struct Backward<'a> {
    file: &'a File,
    /// Where `held` begins in the file.
    position: u64,
    /// Not yet visited; behind it comes the entry visited last.
    held: Vec<u8>,
    /// Bytes at the end of `held` that have been visited: the entry and its newline.
    visited: usize,
}

impl<'a> Backward<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        let mut entries = Self { file, position: file.metadata()?.len(), held: Vec::new(), visited: 0 };
        // Behind the last newline is at most a torn entry.
        loop {
            if let Some(newline) = entries.held.iter().rposition(|&b| b == b'\n') {
                entries.held.truncate(newline + 1);
                return Ok(entries);
            }
            entries.held.clear();
            if !entries.read_more()? {
                return Ok(entries);
            }
        }
    }

    /// The entry before: where it begins in the file, and its length. Its bytes are the last of `held`.
    fn previous(&mut self) -> io::Result<Option<(u64, usize)>> {
        self.held.truncate(self.held.len() - self.visited);
        self.visited = 0;
        // The newline that ends the entry.
        loop {
            let Some(end) = self.held.len().checked_sub(1) else {
                if self.read_more()? {
                    continue;
                }
                return Ok(None);
            };
            let start = match self.held[..end].iter().rposition(|&b| b == b'\n') {
                Some(newline) => newline + 1,
                None if self.held.len() < MAX_ENTRY && self.read_more()? => continue,
                None => 0,
            };
            self.held.truncate(end);
            self.visited = end - start;
            return Ok(Some((self.position + start as u64, end - start)));
        }
    }

    /// Puts the block before in front. False at the beginning of the file.
    fn read_more(&mut self) -> io::Result<bool> {
        let step = (READ_STEP as u64).min(self.position);
        if step == 0 {
            return Ok(false);
        }
        let mut block = vec![0_u8; usize::try_from(step).expect("at most READ_STEP")];
        self.file.read_exact_at(&mut block, self.position - step)?;
        self.position -= step;
        block.append(&mut self.held);
        self.held = block;
        Ok(true)
    }
}

/// Never silently: who follows more slowly than the container writes is told where lines are missing.
fn gap_notice() -> LogLine {
    let time =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    let text = "orch: log lines are missing here: they were rotated away before they could be read\n".to_owned();
    LogLine { time, stream: Stream::Stderr, text }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|meta| (meta.dev(), meta.ino()))
}

/// Opens the files newer than `after`, or all, oldest first. While the writer renames, one name in the middle may be missing for a
/// moment: two in a row are the end. True when `after` is not among them any more: what was written between is gone.
fn open_files(directory: &Path, after: Option<(u64, u64)>) -> io::Result<(VecDeque<File>, bool)> {
    let mut files = VecDeque::new();
    let mut seen = Vec::new();
    let mut missing = 0;
    for age in 0..MAX_FILES {
        let file = match File::open(directory.join(file_name(age))) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                missing += 1;
                if missing == 2 {
                    break;
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        missing = 0;
        let identity = identity(&file)?;
        if Some(identity) == after {
            return Ok((files, false));
        }
        if !seen.contains(&identity) {
            seen.push(identity);
            files.push_front(file);
        }
    }
    Ok((files, after.is_some()))
}

/// `None` where the user's inotify instances are used up: the follower then looks by the clock.
fn watch(directory: &Path) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    let what = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(directory, what).ok()?;
    Some(inotify)
}
