//! `logs`.

use anyhow::Result;
use orch_api::control::{StackChange, StackView, TaskView};
use orch_api::node::LogLine;

use super::collector::{Collector, Style};
use super::follow::Watch;
use super::{client, escape};
use crate::args::{ContainerLogs, LogSelection, Logs};
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{printer, stack_file};

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

/// A point in time: RFC 3339, a date with or without a time of day in this place's zone, seconds since the epoch, or how long ago
/// (`10m`, `1h30m`).
fn time(flag: &str, text: &str) -> Result<String, Failure> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.to_string());
    }
    if let Some(at) = text.parse::<i64>().ok().and_then(|s| jiff::Timestamp::from_second(s).ok()) {
        return Ok(at.to_string());
    }
    let here = text.parse::<jiff::civil::DateTime>().ok();
    if let Some(at) = here.and_then(|at| at.to_zoned(jiff::tz::TimeZone::system()).ok()) {
        return Ok(at.timestamp().to_string());
    }
    let back = text.parse::<orch_spec::model::Duration>().ok();
    back.and_then(|d| jiff::Timestamp::now().checked_sub(d.to_std()).ok()).map(|at| at.to_string()).ok_or_else(|| {
        Failure::usage(format!("--{flag} {text}: write a time like 2026-01-31T12:00:00Z, a date, or how long ago: 10m"))
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
    let mut collector = Collector::new(client.clone(), style, args.follow);
    for task in view.tasks.iter().filter(|t| wanted(&t.service, t.slot) && !t.status.container.is_empty()) {
        collector.add_query(&task.service, task.slot, &task.status.container, &query);
    }
    if !args.follow {
        collector.drain().await;
        return Ok(Exit::Done);
    }
    // By service, not by container: what is made anew or scaled up while we follow is followed too.
    let follow = |collector: &mut Collector, task: &TaskView| {
        if wanted(&task.service, task.slot) && !task.status.container.is_empty() {
            let query = "follow=true&until_end=removal";
            collector.add_query(&task.service, task.slot, &task.status.container, query);
        }
    };
    let mut watch = Watch::open(settings, &client, stack).await?;
    loop {
        tokio::select! {
            change = watch.next() => match change? {
                StackChange::Task { task, .. } => follow(&mut collector, &task),
                // What it was when the agent came back.
                StackChange::Stack { stack } => stack.tasks.iter().for_each(|task| follow(&mut collector, task)),
                StackChange::Removed { .. } => break,
                _ => {}
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
