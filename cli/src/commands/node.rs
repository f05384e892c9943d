//! `node …`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use orch_api::client::{Client, ClientError};
use orch_api::control::{IndexResponse, NodeView, TaskView};
use orch_api::service::NodeUpdate;
use serde::Serialize;

use super::{client, each, escape, service};
use crate::args::{AvailabilityArg, NodeCommand, NodeUpdateArgs, RoleArg};
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// How often a node that is drained is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long a change of who leads may take.
const HANDING_OVER: Duration = Duration::from_secs(10);

/// Runs one of the verbs.
pub(super) async fn run(settings: &Settings, command: NodeCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        NodeCommand::Ls(list) => ls(settings, &client, &list.format).await?,
        NodeCommand::Ps { list, nodes } => {
            let mut tasks = Vec::new();
            let found = each::each(settings, &nodes, async |name| {
                let node = get(&client, name).await?;
                let all: Vec<TaskView> = client.get(&format!("/v1/tasks?node={}", escape(&node.id))).await?;
                tasks.extend(all);
                Ok(())
            })
            .await;
            if found.is_ok() || nodes.len() > 1 {
                service::print_tasks(settings, &client, &list.format, &tasks).await?;
            }
            return found;
        }
        NodeCommand::Inspect { nodes } => {
            return each::inspect(settings, &nodes, async |name| get(&client, name).await).await;
        }
        NodeCommand::Update(args) => {
            let node = args.node.clone();
            let made = post(&client, &node, &request(args)?).await?;
            printer::line(&made.hostname);
        }
        NodeCommand::Drain { detach, wait_timeout, nodes } => {
            // All at once, lest what leaves the first goes to the next.
            return each::all(settings, &nodes, async |name| {
                let request = NodeUpdate { availability: Some("drain".to_owned()), ..NodeUpdate::default() };
                post(&client, name, &request).await?;
                if detach { Ok(()) } else { empty(&client, name, wait_timeout.map(Duration::from_secs)).await }
            })
            .await;
        }
        NodeCommand::Promote { nodes } => return set_role(settings, &client, &nodes, "manager").await,
        NodeCommand::Demote { nodes } => return set_role(settings, &client, &nodes, "worker").await,
        NodeCommand::Rm { force, nodes } => {
            return each::each(settings, &nodes, async |name| {
                client.delete::<IndexResponse>(&format!("/v1/nodes/{}?force={force}", escape(name))).await?;
                printer::line(name);
                Ok(())
            })
            .await;
        }
    }
    Ok(Exit::Done)
}

/// One row of `node ls`: the contract of the JSON output.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    hostname: String,
    address: String,
    role: String,
    leader: bool,
    state: String,
    availability: String,
    version: String,
    platform: String,
    tasks: u32,
    labels: BTreeMap<String, String>,
    /// To which nodes packets of its containers do not get through as they should, by host name, and why.
    underlay: BTreeMap<String, String>,
    /// Services whose tasks keep failing on it.
    faulty: Vec<String>,
}

async fn ls(settings: &Settings, client: &Client, format: &str) -> Result<()> {
    let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
    let rows: Vec<Row> = nodes
        .into_iter()
        .map(|node| Row {
            id: node.id,
            hostname: node.hostname,
            address: node.address,
            role: node.role,
            leader: node.leader,
            state: node.state,
            availability: node.availability,
            version: node.version,
            platform: node.platform,
            tasks: node.tasks,
            labels: node.labels,
            underlay: node.underlay,
            faulty: node.faulty,
        })
        .collect();
    let cells = |row: &Row| {
        let role = if row.leader { "leader".to_owned() } else { row.role.clone() };
        let id = row.id.get(..12).unwrap_or(&row.id).to_owned();
        let (state, availability) = (row.state.clone(), row.availability.clone());
        let (address, tasks) = (row.address.clone(), row.tasks.to_string());
        vec![id, row.hostname.clone(), state, availability, role, address, tasks, row.version.clone()]
    };
    let titles = ["ID", "HOSTNAME", "STATE", "AVAILABILITY", "ROLE", "ADDRESS", "TASKS", "VERSION"];
    printer::listing(&Format::parse(format)?, settings.quiet, &rows, &titles, cells, |row| row.id.clone())?;
    for row in &rows {
        for (to, why) in &row.underlay {
            printer::say(&format!("warning: from {} to {to}: {why}", row.hostname));
        }
        for service in &row.faulty {
            printer::say(&format!(
                "warning: on {} tasks of {service} keep failing: others get them first",
                row.hostname
            ));
        }
    }
    Ok(())
}

async fn get(client: &Client, name: &str) -> Result<NodeView> {
    Ok(client.get(&format!("/v1/nodes/{}", escape(name))).await?)
}

async fn post(client: &Client, name: &str, request: &NodeUpdate) -> Result<NodeView> {
    Ok(client.post(&format!("/v1/nodes/{}", escape(name)), request).await?)
}

async fn set_role(settings: &Settings, client: &Client, nodes: &[String], role: &str) -> Result<Exit> {
    let request = NodeUpdate { role: Some(role.to_owned()), ..NodeUpdate::default() };
    each::each(settings, nodes, async |name| {
        let begun = tokio::time::Instant::now();
        let made = loop {
            match client.post::<NodeView>(&format!("/v1/nodes/{}", escape(name)), &request).await {
                Ok(made) => break made,
                // A leader that is to resign hands over first; the next one answers.
                Err(error) if begun.elapsed() < HANDING_OVER && unavailable(&error) => tokio::time::sleep(LOOK).await,
                Err(error) => return Err(error.into()),
            }
        };
        printer::line(&made.hostname);
        Ok(())
    })
    .await
}

fn unavailable(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(detail) if detail.code == "unavailable")
}

fn request(args: NodeUpdateArgs) -> Result<NodeUpdate, Failure> {
    let mut labels = BTreeMap::new();
    for text in &args.label_add {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::usage(format!("--label-add {text}: write KEY=VALUE")))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    let availability = args.availability.map(|word| match word {
        AvailabilityArg::Active => "active",
        AvailabilityArg::Pause => "pause",
        AvailabilityArg::Drain => "drain",
    });
    let role = args.role.map(|word| match word {
        RoleArg::Manager => "manager",
        RoleArg::Worker => "worker",
    });
    let remove_labels: BTreeSet<String> = args.label_rm.into_iter().collect();
    let (availability, role) = (availability.map(str::to_owned), role.map(str::to_owned));
    Ok(NodeUpdate { availability, role, labels, remove_labels })
}

/// Waits until nothing runs on a node any more.
async fn empty(client: &Client, name: &str, timeout: Option<Duration>) -> Result<()> {
    let begun = tokio::time::Instant::now();
    loop {
        let node = get(client, name).await?;
        if node.tasks == 0 {
            return Ok(());
        }
        if timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            let tasks: Vec<TaskView> = client.get(&format!("/v1/tasks?node={}", escape(&node.id))).await?;
            let waits = |task: &TaskView| {
                let waits: Vec<&str> = task.waiting_on.iter().map(|wait| wait.text.as_str()).collect();
                let name = &task.container_name;
                if waits.is_empty() { name.clone() } else { format!("{name} waits for {}", waits.join(" and ")) }
            };
            let message = format!("node {name} still has {} tasks", node.tasks);
            return Err(Failure::new(Exit::Deadline, message).details(tasks.iter().map(waits).collect()).into());
        }
        tokio::time::sleep(LOOK).await;
    }
}
