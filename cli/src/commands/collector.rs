//! Logs of several containers, on whatever nodes, as one: in the order of their times, each line when it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Poll;
use std::time::Duration;

use orch_api::client::{Client, ClientError};
use orch_api::error::chain;
use orch_api::node::LogLine;
use tokio::sync::mpsc;

use super::follow::{GONE_FOR, LOOK_FOR_AGENT};
use crate::printer;

/// Lines of one container waiting to be printed: a terminal that stands still holds the readers up, not the memory.
const QUEUE: usize = 256;

/// How long the lines of others wait for one of a container whose log is followed: what was written long ago comes at once, and what is
/// written now must not wait for the silent.
const PATIENCE: Duration = Duration::from_millis(50);

/// Bytes of one line that are put together before it is printed in parts.
const LONGEST: usize = 4 << 20;

/// Colours of prefixes, bright enough on dark and light ground.
const COLORS: [&str; 10] = ["36", "33", "32", "35", "34", "36;1", "33;1", "32;1", "35;1", "34;1"];

/// How lines look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// `service-1  | ` in front.
    pub prefix: bool,
    /// Prefixes in colour.
    pub color: bool,
    /// The time in front.
    pub timestamps: bool,
}

/// Reads the logs of several containers at once and prints their lines in the order of their times.
pub(super) struct Collector {
    client: Client,
    style: Style,
    /// Whether logs grow while they are read: then nothing is waited for longer than [`PATIENCE`].
    follow: bool,
    known: BTreeSet<String>,
    sources: Vec<Source>,
    /// Beginnings of lines that are longer than one entry of the log, by prefix and stream.
    partial: BTreeMap<(String, String), String>,
    width: usize,
}

/// The log of one container.
struct Source {
    name: String,
    lines: mpsc::Receiver<LogLine>,
    /// Its next line, once that has come.
    head: Option<LogLine>,
    /// Had nothing to say lately: others do not wait for it.
    silent: bool,
    ended: bool,
}

impl Collector {
    /// A collector of nothing yet.
    pub(super) fn new(client: Client, style: Style, follow: bool) -> Self {
        let (known, sources, partial) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
        Self { client, style, follow, known, sources, partial, width: 0 }
    }

    /// Follows this container to its end, unless it is followed already.
    pub(super) fn add(&mut self, service: &str, slot: u32, container: &str) {
        self.add_query(service, slot, container, "follow=true&until_end=end");
    }

    /// The same with a query of its own.
    pub(super) fn add_query(&mut self, service: &str, slot: u32, container: &str, query: &str) {
        if !self.known.insert(container.to_owned()) {
            return;
        }
        let name = if slot == 0 { format!("{service}-run") } else { format!("{service}-{slot}") };
        self.width = self.width.max(name.chars().count());
        let (sender, lines) = mpsc::channel(QUEUE);
        let log = Log {
            client: self.client.clone(),
            path: format!("/v1/containers/{container}/logs?{query}"),
            again: self.follow,
            last: String::new(),
            seen: 0,
        };
        self.sources.push(Source { name: name.clone(), lines, head: None, silent: false, ended: false });
        tokio::spawn(async move {
            if let Err(e) = log.read(&sender).await {
                printer::say(&format!("warning: the log of {name} cannot be read on: {}", chain(&e)));
            }
        });
    }

    /// Prints the next line. Never ends by itself: there may always come another container. Loses nothing when dropped half-way.
    pub(super) async fn print_next(&mut self) {
        match self.next().await {
            Some((name, line)) => self.print(&name, &line),
            None => std::future::pending().await,
        }
    }

    /// Prints everything up to the end of all logs.
    pub(super) async fn drain(mut self) {
        while let Some((name, line)) = self.next().await {
            self.print(&name, &line);
        }
        // Last words without a newline.
        for ((name, stream), log) in std::mem::take(&mut self.partial) {
            self.print(&name, &LogLine { time: String::new(), stream, log: log + "\n" });
        }
    }

    /// The oldest line that nobody has printed; `None` when all logs have ended.
    async fn next(&mut self) -> Option<(String, LogLine)> {
        loop {
            for source in &mut self.sources {
                source.look();
            }
            self.sources.retain(|source| !source.ended || source.head.is_some());
            if self.sources.is_empty() {
                return None;
            }
            let waits = self.sources.iter().any(|source| source.head.is_none() && !source.silent);
            if !waits && let Some(line) = self.take_oldest() {
                return Some(line);
            }
            let patience = if waits && self.follow { PATIENCE } else { Duration::MAX };
            if tokio::time::timeout(patience, self.any()).await.is_err() {
                let quiet = self.sources.iter_mut().filter(|source| source.head.is_none());
                quiet.for_each(|source| source.silent = true);
            }
        }
    }

    fn take_oldest(&mut self) -> Option<(String, LogLine)> {
        let headed = self.sources.iter_mut().filter(|source| source.head.is_some());
        let oldest = headed.min_by(|a, b| a.time().cmp(b.time()))?;
        Some((oldest.name.clone(), oldest.head.take()?))
    }

    /// Waits until a log without a head has one, or ends.
    async fn any(&mut self) {
        let sources = &mut self.sources;
        std::future::poll_fn(|context| {
            let mut came = Poll::Pending;
            for source in sources.iter_mut().filter(|source| source.head.is_none() && !source.ended) {
                if let Poll::Ready(line) = source.lines.poll_recv(context) {
                    source.take(line);
                    came = Poll::Ready(());
                }
            }
            came
        })
        .await;
    }

    /// Prints a line once it is whole, or as it is when it is longer than anybody reads.
    fn print(&mut self, name: &str, line: &LogLine) {
        let key = (name.to_owned(), line.stream.clone());
        let begun = self.partial.remove(&key).unwrap_or_default();
        let whole = line.log.ends_with('\n') || begun.len() > LONGEST;
        let log = begun + &line.log;
        if !whole {
            self.partial.insert(key, log);
            return;
        }
        let mut text = String::new();
        if self.style.prefix {
            let padded = format!("{name:width$}  | ", width = self.width);
            if self.style.color {
                let sum: usize = name.bytes().map(usize::from).sum();
                text.push_str(&format!("\x1b[{}m{padded}\x1b[0m", COLORS[sum % COLORS.len()]));
            } else {
                text.push_str(&padded);
            }
        }
        if self.style.timestamps {
            text.push_str(&line.time);
            text.push(' ');
        }
        text.push_str(log.strip_suffix('\n').unwrap_or(&log));
        printer::line(&text);
    }
}

impl Source {
    /// Takes the next line as head when it is there.
    fn look(&mut self) {
        if self.head.is_some() || self.ended {
            return;
        }
        match self.lines.try_recv() {
            Ok(line) => self.take(Some(line)),
            Err(mpsc::error::TryRecvError::Disconnected) => self.take(None),
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
    }

    fn take(&mut self, line: Option<LogLine>) {
        self.ended = line.is_none();
        self.head = line;
        self.silent = false;
    }

    /// Times have nine digits after the second and `Z`: they sort as text.
    fn time(&self) -> &str {
        self.head.as_ref().map_or("", |line| &line.time)
    }
}

/// Reads one log, and goes on where it was when the agent went away and came back.
struct Log {
    client: Client,
    path: String,
    /// Whether to come back.
    again: bool,
    /// Time of the last line.
    last: String,
    /// Lines of that time that have been passed on.
    seen: usize,
}

impl Log {
    async fn read(mut self, to: &mpsc::Sender<LogLine>) -> Result<(), ClientError> {
        loop {
            match self.read_once(to).await {
                Ok(()) => return Ok(()),
                // The container has been removed before its log was asked for.
                Err(ClientError::Refused(refusal)) if refusal.code == "not_found" => return Ok(()),
                Err(e) if self.again && e.is_lost() => self.come_back(e).await?,
                Err(e) => return Err(e),
            }
        }
    }

    async fn read_once(&mut self, to: &mpsc::Sender<LogLine>) -> Result<(), ClientError> {
        let (path, mut passed) = match self.last.as_str() {
            "" => (self.path.clone(), 0),
            // What was there before is known; `since` includes its own time.
            last => (format!("{}&since={}", without(&self.path, &["tail", "since"]), super::escape(last)), self.seen),
        };
        let mut log = self.client.lines::<LogLine>(&path).await?;
        while let Some(line) = log.next().await? {
            if passed > 0 && line.time == self.last {
                passed -= 1;
                continue;
            }
            passed = 0;
            self.seen = if line.time == self.last { self.seen + 1 } else { 1 };
            self.last.clone_from(&line.time);
            if to.send(line).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits until an agent answers again.
    async fn come_back(&self, lost: ClientError) -> Result<(), ClientError> {
        let until = tokio::time::Instant::now() + GONE_FOR;
        let mut lost = lost;
        while tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK_FOR_AGENT).await;
            match self.client.endpoint().connect().await {
                Ok(_) => return Ok(()),
                Err(source) => lost = ClientError::Connect { to: self.client.endpoint().to_string(), source },
            }
        }
        Err(lost)
    }
}

/// A path without these parameters of its query.
fn without(path: &str, keys: &[&str]) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let kept = query.split('&').filter(|part| !keys.contains(&part.split('=').next().unwrap_or_default()));
    format!("{path}?{}", kept.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: u32, text: &str) -> LogLine {
        let time = format!("2026-01-01T00:00:{time:02}.000000000Z");
        LogLine { time, stream: "stdout".into(), log: format!("{text}\n") }
    }

    fn collector(follow: bool, logs: Vec<mpsc::Receiver<LogLine>>) -> Collector {
        let style = Style { prefix: true, color: false, timestamps: false };
        let mut collector = Collector::new(Client::unix("/nobody"), style, follow);
        collector.sources = (0..)
            .zip(logs)
            .map(|(n, lines)| Source { name: format!("s-{n}"), lines, head: None, silent: false, ended: false })
            .collect();
        collector
    }

    async fn said(collector: &mut Collector) -> String {
        collector.next().await.map_or_else(|| "end".to_owned(), |(name, line)| format!("{name} {}", line.log.trim()))
    }

    #[tokio::test]
    async fn logs_that_have_ended_come_in_the_order_of_their_times_however_late_one_is_read() {
        let ((a, from_a), (b, from_b)) = (mpsc::channel(4), mpsc::channel(4));
        let mut collector = collector(false, vec![from_a, from_b]);
        a.send(line(2, "two")).await.unwrap();
        a.send(line(4, "four")).await.unwrap();
        drop(a);
        let late = tokio::spawn(async move {
            tokio::task::yield_now().await;
            b.send(line(1, "one")).await.unwrap();
            b.send(line(3, "three")).await.unwrap();
        });
        for expected in ["s-1 one", "s-0 two", "s-1 three", "s-0 four", "end"] {
            assert_eq!(said(&mut collector).await, expected);
        }
        late.await.unwrap();
    }

    #[tokio::test]
    async fn a_silent_container_holds_nobody_up_while_logs_are_followed() {
        let ((a, from_a), (b, from_b)) = (mpsc::channel(4), mpsc::channel(4));
        let mut collector = collector(true, vec![from_a, from_b]);
        a.send(line(2, "two")).await.unwrap();
        assert_eq!(said(&mut collector).await, "s-0 two");
        b.send(line(1, "late")).await.unwrap();
        assert_eq!(said(&mut collector).await, "s-1 late");
        drop((a, b));
        assert_eq!(said(&mut collector).await, "end");
    }

    #[test]
    fn a_log_is_read_on_from_a_time_and_no_longer_by_its_tail() {
        assert_eq!(without("/l?follow=true&tail=5&until_end=end", &["tail", "since"]), "/l?follow=true&until_end=end");
    }
}
