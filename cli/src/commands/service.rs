//! `service …` and `task …`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use orch_api::client::Client;
use orch_api::control::{ApplyResponse, NodeView, ScaleRequest, ServiceView, TaskView};
use orch_api::service::{ServiceDetail, ServiceUpdate, TaskExplanation};
use serde::Serialize;

use super::follow::{Follow, follow};
use super::{ago, client, each, escape, list, logs};
use crate::args::{Logs, ServiceCommand, ServiceUpdateArgs, ServiceWait, TaskCommand};
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::progress::Goal;
use crate::settings::Settings;

/// Runs one of the verbs of services.
pub(super) async fn run(settings: &Settings, command: ServiceCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        ServiceCommand::Ls(list) => ls(settings, &client, &list.format).await?,
        ServiceCommand::Ps { list, services } => {
            let mut tasks = Vec::new();
            let found = each::each(settings, &services, async |name| {
                tasks.extend(get(&client, name).await?.tasks);
                Ok(())
            })
            .await;
            if found.is_ok() || services.len() > 1 {
                print_tasks(settings, &client, &list.format, &tasks).await?;
            }
            return found;
        }
        ServiceCommand::Inspect { services } => {
            return each::inspect(settings, &services, async |name| get(&client, name).await).await;
        }
        ServiceCommand::Logs { selection, style, service } => {
            let found = get(&client, &service).await?.service;
            let args = Logs {
                follow: selection.follow,
                tail: selection.tail,
                since: selection.since,
                until: selection.until,
                timestamps: style.timestamps,
                no_log_prefix: style.no_log_prefix,
                no_color: style.no_color,
                index: None,
                services: vec![found.name],
            };
            return logs::of_stack(settings, &found.stack, args).await;
        }
        ServiceCommand::Scale { wait, services } => return scale(settings, &client, wait, &services).await,
        ServiceCommand::Update(args) => update(settings, &client, *args).await?,
        ServiceCommand::Rollback { wait, service } => rollback(settings, &client, wait, &service).await?,
        ServiceCommand::Explain { format, service } => explain(&client, &format, &service).await?,
        ServiceCommand::Rm { services } => {
            return each::each(settings, &services, async |name| {
                client.delete::<ApplyResponse>(&format!("/v1/services/{}", escape(name))).await?;
                printer::line(name);
                Ok(())
            })
            .await;
        }
    }
    Ok(Exit::Done)
}

/// Runs one of the verbs of tasks.
pub(super) async fn task(settings: &Settings, command: TaskCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        TaskCommand::Ls(list) => {
            let tasks: Vec<TaskView> = client.get("/v1/tasks").await?;
            print_tasks(settings, &client, &list.format, &tasks).await?;
        }
        TaskCommand::Why { format, task } => {
            let why: TaskExplanation = client.get(&format!("/v1/tasks/{}/why", escape(&task))).await?;
            match format.as_str() {
                "json" => printer::json(&why)?,
                _ => print_why(&why),
            }
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn get(client: &Client, name: &str) -> Result<ServiceDetail> {
    Ok(client.get(&format!("/v1/services/{}", escape(name))).await?)
}

/// One row of `service ls`: the contract of the JSON output.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    stack: String,
    mode: String,
    desired: u32,
    running: u32,
    image: String,
    ports: Vec<String>,
    update_status: String,
}

async fn ls(settings: &Settings, client: &Client, format: &str) -> Result<()> {
    let services: Vec<ServiceView> = client.get("/v1/services").await?;
    let rows: Vec<Row> = services
        .into_iter()
        .map(|service| Row {
            ports: ports(&service),
            id: service.id,
            name: service.name,
            stack: service.stack,
            mode: service.mode,
            desired: service.desired,
            running: service.running,
            image: service.image,
            update_status: service.update_status,
        })
        .collect();
    let cells = |row: &Row| {
        let replicas = format!("{}/{}", row.running, row.desired);
        let (ports, update) = (row.ports.join(", "), row.update_status.clone());
        vec![row.id.clone(), row.mode.clone(), replicas, row.image.clone(), ports, update]
    };
    let titles = ["ID", "MODE", "REPLICAS", "IMAGE", "PORTS", "UPDATE"];
    printer::listing(&Format::parse(format)?, settings.quiet, &rows, &titles, cells, |row| row.id.clone())
}

/// `*:80->8080/tcp` where every node publishes it, as Swarm writes it.
fn ports(service: &ServiceView) -> Vec<String> {
    let text = |port: &orch_spec::assignment::PortAssignment| {
        let host = port.host_ip.map_or_else(|| "*".to_owned(), |address| address.to_string());
        let published = match port.host_ports {
            (0, 0) => String::new(),
            (first, last) if first == last => format!("{host}:{first}->"),
            (first, last) => format!("{host}:{first}-{last}->"),
        };
        format!("{published}{}/{}", port.target, port.protocol)
    };
    service.ports.iter().map(text).collect()
}

/// One row of a list of tasks.
#[derive(Debug, Serialize)]
struct TaskRow {
    id: String,
    name: String,
    stack: String,
    service: String,
    slot: u32,
    image: String,
    node: String,
    desired: String,
    state: String,
    since: Option<u64>,
    error: String,
    waiting_on: String,
}

/// Prints tasks with their nodes by host name.
pub(super) async fn print_tasks(settings: &Settings, client: &Client, format: &str, tasks: &[TaskView]) -> Result<()> {
    let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
    let hosts: BTreeMap<&str, &str> = nodes.iter().map(|node| (node.id.as_str(), node.hostname.as_str())).collect();
    let row = |task: &TaskView| {
        let status = &task.status;
        let desired = serde_json::to_value(task.desired).ok().and_then(|word| word.as_str().map(str::to_owned));
        let exit = status.exit_code.filter(|code| *code != 0).map(|code| format!("exit code {code}"));
        let error = if status.error.is_empty() { exit.unwrap_or_default() } else { status.error.clone() };
        TaskRow {
            id: task.id.clone(),
            name: task.container_name.clone(),
            stack: task.stack.clone(),
            service: task.service.clone(),
            slot: task.slot,
            image: task.image.clone(),
            node: hosts.get(task.node.as_str()).map_or(task.node.as_str(), |host| host).to_owned(),
            desired: desired.unwrap_or_default(),
            state: list::state_word(status.state),
            since: status.finished_at.or(status.started_at).or(status.created_at).or(Some(task.created_at)),
            error,
            waiting_on: match status.note.is_empty() {
                true => task.waiting_on.iter().map(|wait| wait.text.as_str()).collect::<Vec<_>>().join(", "),
                false => status.note.clone(),
            },
        }
    };
    let rows: Vec<TaskRow> = tasks.iter().map(row).collect();
    let cells = |row: &TaskRow| {
        let id = row.id.get(..12).unwrap_or(&row.id).to_owned();
        let state = format!("{} {}", row.state, ago(row.since));
        let why = if row.error.is_empty() { row.waiting_on.clone() } else { row.error.clone() };
        vec![id, row.name.clone(), row.image.clone(), row.node.clone(), row.desired.clone(), state, why]
    };
    let titles = ["ID", "NAME", "IMAGE", "NODE", "DESIRED", "STATE", "WHY"];
    printer::listing(&Format::parse(format)?, settings.quiet, &rows, &titles, cells, |row| row.id.clone())
}

async fn scale(settings: &Settings, client: &Client, wait: ServiceWait, services: &[String]) -> Result<Exit> {
    let mut stacks: BTreeMap<String, ScaleRequest> = BTreeMap::new();
    let parsed = |text: &str| {
        let (name, count) = text.split_once('=')?;
        Some((name.to_owned(), count.parse::<u32>().ok()?))
    };
    if let Some(text) = services.iter().find(|text| parsed(text).is_none()) {
        return Err(Failure::usage(format!("{text}: write SERVICE=N")).into());
    }
    let found = each::each(settings, services, async |text| {
        if let Some((name, count)) = parsed(text) {
            let found = get(client, &name).await?.service;
            stacks.entry(found.stack).or_default().services.insert(found.name, count);
        }
        Ok(())
    })
    .await;
    for (stack, request) in stacks {
        let names: BTreeSet<String> = request.services.keys().cloned().collect();
        let done: ApplyResponse = client.post(&format!("/v1/stacks/{}/scale", escape(&stack)), &request).await?;
        done.warnings.iter().for_each(|warning| printer::say(&format!("warning: {warning}")));
        until_done(settings, client, wait, &stack, names, done.index).await?;
    }
    found
}

async fn update(settings: &Settings, client: &Client, args: ServiceUpdateArgs) -> Result<()> {
    if args.rollback {
        return rollback(settings, client, args.wait, &args.service).await;
    }
    let mut env = BTreeMap::new();
    for text in &args.env_add {
        let (key, value) =
            text.split_once('=').ok_or_else(|| Failure::usage(format!("--env-add {text}: write KEY=VALUE")))?;
        env.insert(key.to_owned(), value.to_owned());
    }
    let found = get(client, &args.service).await?.service;
    let request = ServiceUpdate {
        image: args.image,
        replicas: args.replicas,
        env,
        remove_env: args.env_rm.into_iter().collect(),
        constraints: args.constraint_add,
        remove_constraints: args.constraint_rm,
        update_parallelism: args.update_parallelism,
        update_delay: args.update_delay,
        update_order: args.update_order,
        update_failure_action: args.update_failure_action,
        force: args.force,
    };
    let done: ApplyResponse = client.post(&format!("/v1/services/{}/update", escape(&found.id)), &request).await?;
    done.warnings.iter().for_each(|warning| printer::say(&format!("warning: {warning}")));
    until_done(settings, client, args.wait, &found.stack, BTreeSet::from([found.name]), done.index).await
}

async fn rollback(settings: &Settings, client: &Client, wait: ServiceWait, service: &str) -> Result<()> {
    let found = get(client, service).await?.service;
    let path = format!("/v1/services/{}/rollback", escape(&found.id));
    let done: ApplyResponse = client.post(&path, &()).await?;
    until_done(settings, client, wait, &found.stack, BTreeSet::from([found.name]), done.index).await
}

pub(super) async fn until_done(
    settings: &Settings,
    client: &Client,
    wait: ServiceWait,
    stack: &str,
    services: BTreeSet<String>,
    since: u64,
) -> Result<()> {
    if wait.detach {
        return Ok(());
    }
    let what = Follow {
        stack,
        services: Some(services),
        goal: Goal::Ready,
        timeout: wait.wait_timeout.map(Duration::from_secs),
        show_logs: true,
        made: Vec::new(),
        since: Some(since),
    };
    follow(client, settings, &what).await.map(drop)
}

/// Where the tasks of a service, or one of them, could go.
async fn explain(client: &Client, format: &str, name: &str) -> Result<()> {
    let (service, slot) = match name.rsplit_once('.') {
        Some((service, slot)) if slot.parse::<u32>().is_ok() => (service, slot.parse::<u32>().ok()),
        _ => (name, None),
    };
    let detail = get(client, service).await?;
    let wanted = |task: &&TaskView| slot.is_none_or(|slot| slot == task.slot);
    let mut found: Vec<TaskExplanation> = Vec::new();
    for task in detail.tasks.iter().filter(wanted) {
        found.push(client.get(&format!("/v1/tasks/{}/why", escape(&task.id))).await?);
    }
    if found.is_empty() {
        let what =
            slot.map_or_else(|| format!("service {service}"), |slot| format!("slot {slot} of service {service}"));
        return Err(Failure::new(Exit::Failed, format!("{what} has no task")).into());
    }
    if format == "json" {
        return printer::json(&found);
    }
    if let Some(update) = &detail.service.update {
        let why = if update.message.is_empty() { String::new() } else { format!(": {}", update.message) };
        let progress = format!("{} of {} slots done", update.done.min(update.total), update.total);
        printer::line(&format!("last update {}, {progress}{why}", update.state));
    }
    found.iter().for_each(|why| printer::line(&why.summary));
    print_nodes(&found[0]);
    Ok(())
}

fn print_nodes(why: &TaskExplanation) {
    let rows: Vec<Vec<String>> = why
        .nodes
        .iter()
        .map(|node| vec![node.hostname.clone(), if node.fits { "yes" } else { "no" }.to_owned(), node.text.clone()])
        .collect();
    printer::out(&printer::table(&["NODE", "ONE MORE", "WHY"], &rows));
}

fn print_why(why: &TaskExplanation) {
    printer::line(&why.summary);
    print_nodes(why);
    for event in &why.events {
        let detail: Vec<String> = event
            .attributes
            .iter()
            .filter(|(key, _)| !matches!(key.as_str(), "stack" | "service" | "slot" | "node"))
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        printer::line(&format!("{}  {} {}", super::timestamp(Some(event.time)), event.action, detail.join(" ")));
    }
}
