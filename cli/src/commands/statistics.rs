//! `top` and `stats`, of a stack and of single containers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use orch_api::client::Client;
use orch_api::node::{Stats as Sample, Top};
use serde::Serialize;

use super::{act, client, escape, memory_size, size};
use crate::args::{ListFormat, Services, Stats};
use crate::exit::Exit;
use crate::printer::{self, Format};
use crate::settings::{Progress, Settings};
use crate::stack_file;

/// Between two samples: what Docker shows, too.
const INTERVAL: Duration = Duration::from_secs(1);

/// `top`.
pub(super) async fn top(settings: &Settings, args: Services) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    for task in act::running(&client, &stack, &args.services).await? {
        show_top(&client, &task.status.container).await?;
    }
    Ok(Exit::Done)
}

/// Processes of one container.
pub(super) async fn show_top(client: &Client, container: &str) -> Result<()> {
    let top: Top = client.get(&format!("/v1/containers/{}/top", escape(container))).await?;
    printer::line(&top.name);
    let titles: Vec<&str> = top.titles.iter().map(String::as_str).collect();
    printer::out(&printer::table(&titles, &top.processes));
    Ok(())
}

/// `stats`.
pub(super) async fn stack(settings: &Settings, args: Stats) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let tasks = act::running(&client, &stack, &args.services).await?;
    let containers: Vec<String> = tasks.into_iter().map(|t| t.status.container).collect();
    show(settings, &client, &containers, &args.list, !args.no_stream).await
}

/// One row of `stats`.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    cpu_percent: f64,
    memory: u64,
    memory_limit: u64,
    memory_percent: f64,
    net_rx: u64,
    net_tx: u64,
    block_read: u64,
    block_write: u64,
    pids: u64,
}

/// Samples of these containers, once or again and again.
pub(super) async fn show(
    settings: &Settings,
    client: &Client,
    containers: &[String],
    list: &ListFormat,
    stream: bool,
) -> Result<Exit> {
    let format = Format::parse(&list.format)?;
    let mut before: BTreeMap<String, Sample> = BTreeMap::new();
    loop {
        let mut rows = Vec::new();
        let first = before.is_empty();
        for container in containers {
            // A container that ended in between has no figures any more.
            let Ok(sample) = client.get::<Sample>(&format!("/v1/containers/{}/stats", escape(container))).await else {
                continue;
            };
            rows.push(row(before.get(&sample.id), &sample));
            before.insert(sample.id.clone(), sample);
        }
        if first && !containers.is_empty() {
            // The share of a processor needs two samples.
            tokio::time::sleep(if stream { INTERVAL } else { INTERVAL / 2 }).await;
            continue;
        }
        if stream && settings.progress == Progress::Tty {
            printer::out("\x1b[H\x1b[J");
        }
        print_rows(&format, &rows)?;
        if !stream || rows.is_empty() {
            return Ok(Exit::Done);
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "percentages for people")]
fn row(before: Option<&Sample>, now: &Sample) -> Row {
    let cpu_percent = before.map_or(0.0, |old| {
        let time = now.time_ns.saturating_sub(old.time_ns);
        if time == 0 { 0.0 } else { now.cpu_ns.saturating_sub(old.cpu_ns) as f64 * 100.0 / time as f64 }
    });
    let memory_percent = if now.memory_limit == 0 { 0.0 } else { now.memory as f64 * 100.0 / now.memory_limit as f64 };
    Row {
        id: now.id.clone(),
        name: now.name.clone(),
        cpu_percent,
        memory: now.memory,
        memory_limit: now.memory_limit,
        memory_percent,
        net_rx: now.net_rx,
        net_tx: now.net_tx,
        block_read: now.block_read,
        block_write: now.block_write,
        pids: now.pids,
    }
}

fn print_rows(format: &Format, rows: &[Row]) -> Result<()> {
    let titles = ["NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
    let cells = |r: &Row| {
        let limit = if r.memory_limit == 0 { "-".to_owned() } else { memory_size(r.memory_limit) };
        vec![
            r.name.clone(),
            format!("{:.2}%", r.cpu_percent),
            format!("{} / {limit}", memory_size(r.memory)),
            format!("{:.2}%", r.memory_percent),
            format!("{} / {}", size(r.net_rx), size(r.net_tx)),
            format!("{} / {}", size(r.block_read), size(r.block_write)),
            r.pids.to_string(),
        ]
    };
    printer::listing(format, false, rows, &titles, cells, |r| r.id.clone())
}
