//! `logs`, and the collector that interleaves the logs of several containers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use orch_api::client::Client;
use orch_api::control::{StackChange, StackView};
use orch_api::node::LogLine;
use tokio::sync::mpsc;

use super::{client, escape};
use crate::args::{ContainerLogs, LogSelection, Logs};
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{printer, stack_file};

/// Lines waiting to be printed: a terminal that stands still holds the readers up, not the memory.
const QUEUE: usize = 1024;

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

/// Reads the logs of several containers at once and prints their lines as they come.
pub(super) struct Collector {
    client: Client,
    style: Style,
    known: BTreeSet<String>,
    /// Beginnings of lines that are longer than one entry of the log, by prefix and stream.
    partial: BTreeMap<(String, String), String>,
    width: usize,
    sender: mpsc::Sender<(String, LogLine)>,
    lines: mpsc::Receiver<(String, LogLine)>,
}

impl Collector {
    /// A collector of nothing yet.
    pub(super) fn new(client: Client, style: Style) -> Self {
        let (sender, lines) = mpsc::channel(QUEUE);
        Self { client, style, known: BTreeSet::new(), partial: BTreeMap::new(), width: 0, sender, lines }
    }

    /// Follows this container, unless it is followed already.
    pub(super) fn add(&mut self, service: &str, slot: u32, container: &str) {
        self.add_query(service, slot, container, "follow=true&until_end=end".to_owned());
    }

    /// The same with a query of its own.
    pub(super) fn add_query(&mut self, service: &str, slot: u32, container: &str, query: String) {
        if !self.known.insert(container.to_owned()) {
            return;
        }
        let name = if slot == 0 { format!("{service}-run") } else { format!("{service}-{slot}") };
        self.width = self.width.max(name.chars().count());
        let (client, sender) = (self.client.clone(), self.sender.clone());
        let path = format!("/v1/containers/{container}/logs?{query}");
        tokio::spawn(async move {
            let Ok(mut log) = client.lines::<LogLine>(&path).await else { return };
            while let Ok(Some(line)) = log.next().await {
                if sender.send((name.clone(), line)).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Prints the next line. Never ends by itself: there may always come another container.
    pub(super) async fn print_next(&mut self) {
        if let Some((name, line)) = self.lines.recv().await {
            self.print(&name, &line);
        }
    }

    /// Prints everything up to the end of all logs.
    pub(super) async fn drain(mut self) {
        drop(std::mem::replace(&mut self.sender, mpsc::channel(1).0));
        while let Some((name, line)) = self.lines.recv().await {
            self.print(&name, &line);
        }
        // Last words without a newline.
        for ((name, stream), log) in std::mem::take(&mut self.partial) {
            self.print(&name, &LogLine { time: String::new(), stream, log: log + "\n" });
        }
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

/// The query of a selection.
fn query(select: &LogSelection) -> Result<String, Failure> {
    let mut parts = vec![format!("follow={}", select.follow)];
    match select.tail.as_str() {
        "all" | "-1" => {}
        text => {
            let number: u64 =
                text.parse().map_err(|_| Failure::usage(format!("--tail {text}: write a number of lines or `all`")))?;
            parts.push(format!("tail={number}"));
        }
    }
    for (key, text) in [("since", &select.since), ("until", &select.until)] {
        if let Some(text) = text {
            parts.push(format!("{key}={}", escape(&time(key, text)?)));
        }
    }
    Ok(parts.join("&"))
}

/// A point in time: RFC 3339, seconds since the epoch, or how long ago (`10m`, `1h30m`).
fn time(flag: &str, text: &str) -> Result<String, Failure> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.to_string());
    }
    if let Some(at) = text.parse::<i64>().ok().and_then(|s| jiff::Timestamp::from_second(s).ok()) {
        return Ok(at.to_string());
    }
    let back = text.parse::<orch_spec::model::Duration>().ok();
    back.and_then(|d| jiff::Timestamp::now().checked_sub(d.to_std()).ok()).map(|at| at.to_string()).ok_or_else(|| {
        Failure::usage(format!("--{flag} {text}: write a time like 2026-01-31T12:00:00Z, or how long ago: 10m"))
    })
}

/// `logs`.
pub(super) async fn stack(settings: &Settings, args: Logs) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    of_stack(settings, &stack, args).await
}

/// The logs of services of a stack.
pub(super) async fn of_stack(settings: &Settings, stack: &str, args: Logs) -> Result<Exit> {
    let client = client(settings)?;
    let select = LogSelection {
        follow: args.follow,
        tail: args.tail.clone(),
        since: args.since.clone(),
        until: args.until.clone(),
    };
    // By service: a container that is stopped may be started again, and is followed until it is gone.
    let query = query(&select)? + "&until_end=removal";
    let style = Style {
        prefix: !args.no_log_prefix,
        color: settings.color_stdout && !args.no_color,
        timestamps: args.timestamps,
    };
    let wanted = |service: &str, slot: u32| {
        (args.services.is_empty() || args.services.iter().any(|s| s == service)) && args.index.is_none_or(|i| i == slot)
    };
    let view: StackView = client.get(&format!("/v1/stacks/{}", escape(stack))).await?;
    super::act::check_services(&view, &args.services)?;
    let mut collector = Collector::new(client.clone(), style);
    // Prefixes line up from the first line on.
    for task in view.tasks.iter().filter(|t| wanted(&t.service, t.slot) && !t.status.container.is_empty()) {
        collector.width = collector.width.max(task.service.chars().count() + 1 + task.slot.to_string().len());
    }
    for task in view.tasks.iter().filter(|t| wanted(&t.service, t.slot) && !t.status.container.is_empty()) {
        collector.add_query(&task.service, task.slot, &task.status.container, query.clone());
    }
    if !args.follow {
        collector.drain().await;
        return Ok(Exit::Done);
    }
    // By service, not by container: what is made anew or scaled up while we follow is followed too.
    let mut changes = client.lines::<StackChange>(&format!("/v1/stacks/{}/watch", escape(stack))).await?;
    loop {
        tokio::select! {
            change = changes.next() => match change? {
                Some(StackChange::Task { task, .. }) => {
                    if wanted(&task.service, task.slot) && !task.status.container.is_empty() {
                        let query = "follow=true&until_end=removal".to_owned();
                        collector.add_query(&task.service, task.slot, &task.status.container, query);
                    }
                }
                Some(StackChange::Removed { .. }) | None => break,
                Some(_) => {}
            },
            () = collector.print_next() => {}
        }
    }
    collector.drain().await;
    Ok(Exit::Done)
}

/// `container logs`: stdout to stdout, stderr to stderr.
pub(super) async fn container(settings: &Settings, args: ContainerLogs) -> Result<Exit> {
    let client = client(settings)?;
    let path = format!("/v1/containers/{}/logs?{}", escape(&args.container), query(&args.select)?);
    let mut log = client.lines::<LogLine>(&path).await?;
    while let Some(line) = log.next().await? {
        let text = if args.timestamps { format!("{} {}", line.time, line.log) } else { line.log };
        if line.stream == "stderr" {
            printer::error_bytes(text.as_bytes());
        } else {
            printer::out(&text);
        }
    }
    Ok(Exit::Done)
}
