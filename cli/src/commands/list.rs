//! Listings of a stack: `ps`, `ls`, `images`, `port`, `events`.

use std::collections::BTreeMap;

use anyhow::Result;
use orch_api::control::{Event, StackSummary, StackView, TaskView};
use orch_api::node::ImageView;
use orch_spec::assignment::{Health, TaskState};
use serde::Serialize;

use super::{ago, client, escape, size, timestamp};
use crate::args::{Events, ListFormat, Ls, Port, Ps};
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;
use crate::{connect, stack_file};

/// One row of `ps`: the contract of the JSON output.
#[derive(Debug, Serialize)]
struct PsRow {
    id: String,
    name: String,
    stack: String,
    service: String,
    task: String,
    slot: u32,
    image: String,
    node: String,
    state: TaskState,
    health: String,
    exit_code: Option<i32>,
    pid: Option<i32>,
    created_at: String,
    started_at: String,
    finished_at: String,
    ports: Vec<PsPort>,
    networks: BTreeMap<String, PsAddress>,
    restarts: u32,
    error: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    waiting_on: String,
    #[serde(skip)]
    created: Option<u64>,
}

#[derive(Debug, Serialize)]
struct PsPort {
    host_ip: String,
    published: u16,
    target: u16,
    protocol: String,
}

#[derive(Debug, Serialize)]
struct PsAddress {
    ipv4: String,
    ipv6: String,
}

fn health(health: Health) -> &'static str {
    match health {
        Health::None => "",
        Health::Starting => "starting",
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
    }
}

/// The state's word, as in JSON.
pub(super) fn state_word(state: TaskState) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Where a task's ports are published: by its node for it alone, and by every node for its service.
fn published(view: &StackView, task: &TaskView) -> Vec<PsPort> {
    let own = task.status.ports.iter().map(|port| PsPort {
        host_ip: port.host_ip.clone(),
        published: port.published,
        target: port.target,
        protocol: port.protocol.clone(),
    });
    let service = view.services.iter().find(|service| service.name == task.service && !task.one_off);
    let tasks = || view.tasks.iter().filter(|other| other.service == task.service);
    let everywhere = service.into_iter().flat_map(|service| &service.ports);
    // What a task publishes itself stands there, too.
    let everywhere = everywhere.filter(|port| !tasks().any(|task| task.ports.contains(port)));
    let runs = matches!(task.status.state, TaskState::Running | TaskState::Paused);
    let everywhere = everywhere.filter(|_| runs).map(|port| PsPort {
        host_ip: port.host_ip.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string()),
        published: port.host_ports.0,
        target: port.target,
        protocol: port.protocol.clone(),
    });
    own.chain(everywhere).collect()
}

fn row(view: &StackView, task: &TaskView) -> PsRow {
    let status = &task.status;
    let waiting = task.waiting_on.iter().map(|w| w.text.as_str()).collect::<Vec<_>>().join(", ");
    PsRow {
        id: status.container.clone(),
        name: task.container_name.clone(),
        stack: task.stack.clone(),
        service: task.service.clone(),
        task: task.id.clone(),
        slot: task.slot,
        image: task.image.clone(),
        node: task.node.clone(),
        state: status.state,
        health: health(status.health).to_owned(),
        exit_code: status.exit_code,
        pid: status.pid,
        created_at: timestamp(status.created_at.or(Some(task.created_at))),
        started_at: timestamp(status.started_at),
        finished_at: timestamp(status.finished_at),
        ports: published(view, task),
        networks: task
            .networks
            .iter()
            .map(|(key, e)| {
                let text = |a: Option<String>| a.unwrap_or_default();
                let ipv4 = text(e.ipv4.map(|a| a.to_string()));
                (key.clone(), PsAddress { ipv4, ipv6: text(e.ipv6.map(|a| a.to_string())) })
            })
            .collect(),
        restarts: status.restarts,
        error: if task.blocked.is_empty() { status.error.clone() } else { task.blocked.clone() },
        waiting_on: if status.note.is_empty() { waiting } else { status.note.clone() },
        created: status.created_at.or(Some(task.created_at)),
    }
}

fn status_text(row: &PsRow) -> String {
    let mut text = state_word(row.state);
    if row.state == TaskState::Exited || row.state == TaskState::Restarting {
        text.push_str(&format!(" ({})", row.exit_code.unwrap_or(0)));
    }
    if !row.health.is_empty() {
        text.push_str(&format!(" ({})", row.health));
    }
    if !row.error.is_empty() {
        text.push_str(&format!(": {}", row.error));
    } else if !row.waiting_on.is_empty() {
        text.push_str(&format!(": {}", row.waiting_on));
    }
    text
}

fn port_text(row: &PsRow) -> String {
    let mut texts: Vec<String> =
        row.ports.iter().map(|p| format!("{}:{}->{}/{}", p.host_ip, p.published, p.target, p.protocol)).collect();
    texts.dedup();
    texts.join(", ")
}

/// `ps`.
pub(super) async fn ps(settings: &Settings, args: Ps) -> Result<Exit> {
    let format = Format::parse(&args.list.format)?;
    let stack = stack_file::name(settings)?;
    let Some(client) = connect::connect_existing(settings)? else {
        return empty(&format, settings.quiet, &["NAME", "IMAGE", "SERVICE", "CREATED", "STATUS", "PORTS"]);
    };
    let view: StackView = match client.get(&format!("/v1/stacks/{}", escape(&stack))).await {
        Ok(view) => view,
        Err(orch_api::client::ClientError::Refused(e)) if e.code == "not_found" => StackView::default(),
        Err(e) => return Err(e.into()),
    };
    super::act::check_services(&view, &args.services)?;
    let alive = |state: TaskState| {
        !matches!(state, TaskState::Exited | TaskState::Created | TaskState::Removed | TaskState::Failed)
    };
    let rows: Vec<PsRow> = view
        .tasks
        .iter()
        .filter(|t| args.services.is_empty() || args.services.contains(&t.service))
        .filter(|t| {
            args.all
                || !args.status.is_empty()
                || (alive(t.status.state) && !t.one_off)
                || t.status.state == TaskState::Running
        })
        .filter(|t| args.status.is_empty() || args.status.contains(&state_word(t.status.state)))
        .map(|task| row(&view, task))
        .collect();
    if args.only_services {
        let mut names: Vec<&str> = rows.iter().map(|r| r.service.as_str()).collect();
        names.dedup();
        names.iter().for_each(|n| printer::line(n));
        return Ok(Exit::Done);
    }
    let titles = ["NAME", "IMAGE", "SERVICE", "CREATED", "STATUS", "PORTS"];
    let cells = |r: &PsRow| {
        vec![r.name.clone(), r.image.clone(), r.service.clone(), ago(r.created), status_text(r), port_text(r)]
    };
    printer::listing(&format, settings.quiet, &rows, &titles, cells, |r| r.id.clone())?;
    Ok(Exit::Done)
}

fn empty(format: &Format, quiet: bool, titles: &[&str]) -> Result<Exit> {
    printer::listing::<()>(format, quiet, &[], titles, |()| Vec::new(), |()| String::new())?;
    Ok(Exit::Done)
}

/// `ls`.
pub(super) async fn ls(settings: &Settings, args: Ls) -> Result<Exit> {
    let format = Format::parse(&args.list.format)?;
    let titles = ["NAME", "STATUS", "SERVICES", "FILES"];
    let Some(client) = connect::connect_existing(settings)? else {
        return empty(&format, settings.quiet, &titles);
    };
    let mut stacks: Vec<StackSummary> = client.get("/v1/stacks").await?;
    stacks.retain(|s| args.all || s.status.contains("running") || s.status.contains("paused") || s.removing);
    let cells = |s: &StackSummary| vec![s.name.clone(), s.status.clone(), s.services.to_string(), s.files.join(",")];
    printer::listing(&format, settings.quiet, &stacks, &titles, cells, |s| s.name.clone())?;
    Ok(Exit::Done)
}

/// One row of `images`.
#[derive(Debug, Serialize)]
struct ImageRow {
    container: String,
    image: String,
    id: String,
    size: u64,
}

/// `images`.
pub(super) async fn images(settings: &Settings, args: ListFormat) -> Result<Exit> {
    let format = Format::parse(&args.format)?;
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let view: StackView = client.get(&format!("/v1/stacks/{}", escape(&stack))).await?;
    let known: Vec<ImageView> = client.get("/v1/images").await?;
    let rows: Vec<ImageRow> = view
        .tasks
        .iter()
        .map(|t| {
            let id = if t.status.image_id.is_empty() { t.image_id.clone() } else { t.status.image_id.clone() };
            let size = known.iter().find(|i| i.id == id).map_or(0, |i| i.size);
            ImageRow { container: t.container_name.clone(), image: t.image.clone(), id, size }
        })
        .collect();
    let cells = |r: &ImageRow| vec![r.container.clone(), r.image.clone(), short(&r.id, args.no_trunc), size(r.size)];
    let titles = ["CONTAINER", "IMAGE", "IMAGE ID", "SIZE"];
    printer::listing(&format, settings.quiet, &rows, &titles, cells, |r| r.id.clone())?;
    Ok(Exit::Done)
}

/// The first twelve digits of an id.
pub(super) fn short(id: &str, full: bool) -> String {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    if full { id.to_owned() } else { digits.chars().take(12).collect() }
}

/// `port`.
pub(super) async fn port(settings: &Settings, args: Port) -> Result<Exit> {
    let (number, protocol) = args.port.split_once('/').unwrap_or((&args.port, &args.protocol));
    let number: u16 = number.parse().map_err(|_| {
        Failure::usage(format!("{} is not a port", args.port)).hint("write the port inside: 80, or 53/udp")
    })?;
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let view: StackView = client.get(&format!("/v1/stacks/{}", escape(&stack))).await?;
    super::act::check_services(&view, std::slice::from_ref(&args.service))?;
    let runs = |task: &&TaskView| matches!(task.status.state, TaskState::Running | TaskState::Paused);
    let mut tasks = view.tasks.iter().filter(|task| task.service == args.service).filter(runs);
    let ports = tasks.find(|task| task.slot == args.index).map(|task| published(&view, task)).unwrap_or_default();
    let Some(port) = ports.iter().find(|port| port.target == number && port.protocol == protocol) else {
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "no port {}/{} is published by container {} of service {}",
                number, protocol, args.index, args.service
            ),
        )
        .into());
    };
    let host = if port.host_ip.contains(':') { format!("[{}]", port.host_ip) } else { port.host_ip.clone() };
    printer::line(&format!("{host}:{}", port.published));
    Ok(Exit::Done)
}

/// `events`.
pub(super) async fn events(settings: &Settings, args: Events) -> Result<Exit> {
    let client = client(settings)?;
    let as_json = args.json || args.format == "json";
    let stack = stack_file::name_if_any(settings)?;
    let mut path = format!("/v1/events?follow={}", !args.no_follow);
    if let Some(index) = args.since_index {
        path.push_str(&format!("&since_index={index}"));
    }
    if let Some(stack) = &stack {
        path.push_str(&format!("&stack={}", escape(stack)));
    }
    let mut events = client.lines::<Event>(&path).await?;
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Code(130)),
        };
        let Some(event) = event else { return Ok(Exit::Done) };
        let service = event.attributes.get("service").cloned().unwrap_or_default();
        if !args.services.is_empty() && !args.services.contains(&service) {
            continue;
        }
        let time = timestamp(Some(event.time));
        if as_json {
            let mut value = serde_json::to_value(&event)?;
            value["time"] = serde_json::Value::String(time);
            printer::json(&value)?;
        } else {
            let attributes: Vec<String> = event.attributes.iter().map(|(k, v)| format!("{k}={v}")).collect();
            printer::line(&format!(
                "{time} {} {} {} ({})",
                event.kind,
                event.action,
                event.name,
                attributes.join(", ")
            ));
        }
    }
}
