//! `container …`: containers one by one, those of stacks included.

mod run;

use anyhow::Result;
use orch_api::client::{Client, ClientError};
use orch_api::control::{ActRequest, Action, ApplyResponse, DesiredRequest, IndexResponse, TaskView};
use orch_api::node::{ContainerView, PruneRequest, StopRequest};
use orch_spec::assignment::{DesiredTask, TaskState};

use super::list::{short, state_word};
use super::{ago, client, confirmed, copy, each, escape, logs, one_off, statistics};
use crate::args::{ContainerCommand, ContainerLs, ContainerRm, ContainerStop};
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// Between two looks at whether a container has become what it was asked to be: it takes milliseconds.
pub(super) const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// A container as its node sees it, by its id, the beginning of that, or its name.
///
/// # Errors
/// When there is none, or the agent does not answer.
pub(super) async fn view(client: &Client, container: &str) -> Result<ContainerView, ClientError> {
    client.get(&format!("/v1/containers/{}", escape(container))).await
}

/// Runs one of the verbs.
pub(super) async fn run(settings: &Settings, command: ContainerCommand) -> Result<Exit> {
    match command {
        ContainerCommand::Run(args) => run::run(settings, *args).await,
        ContainerCommand::Ls(args) => ls(settings, args).await,
        ContainerCommand::Inspect { containers } => {
            let client = client(settings)?;
            each::inspect(settings, &containers, async |container| {
                let path = format!("/v1/containers/{}/inspect", escape(container));
                Ok(client.get::<serde_json::Value>(&path).await?)
            })
            .await
        }
        ContainerCommand::Logs(args) => logs::container(settings, args).await,
        ContainerCommand::Exec(args) => {
            let client = client(settings)?;
            let mut request =
                one_off::exec_request(&args.options, &args.command, args.tty, args.interactive && !args.options.detach);
            request.env.splice(..0, one_off::variables(&settings.typed_env_files)?);
            one_off::exec_in(&client, &args.container, &request).await
        }
        ContainerCommand::Attach { options, container } => {
            one_off::attach_to(&client(settings)?, &container, &options, false).await
        }
        ContainerCommand::Start { containers } => {
            change(settings, &containers, Change::Start, &StopRequest::default()).await
        }
        ContainerCommand::Stop(args) => stop(settings, args, Change::Stop).await,
        ContainerCommand::Restart(args) => stop(settings, args, Change::Restart).await,
        ContainerCommand::Kill { signal, containers } => {
            let request = StopRequest { timeout: None, signal: Some(signal) };
            change(settings, &containers, Change::Kill, &request).await
        }
        ContainerCommand::Pause { containers } => {
            change(settings, &containers, Change::Pause, &StopRequest::default()).await
        }
        ContainerCommand::Unpause { containers } => {
            change(settings, &containers, Change::Unpause, &StopRequest::default()).await
        }
        ContainerCommand::Rm(args) => remove(settings, args).await,
        ContainerCommand::Cp { archive, source, destination } => {
            copy::containers(settings, archive, &source, &destination).await
        }
        ContainerCommand::Stats { no_stream, list, containers } => {
            let client = client(settings)?;
            let containers = if containers.is_empty() {
                let views: Vec<ContainerView> = client.get("/v1/containers").await?;
                views.into_iter().map(|v| v.id).collect()
            } else {
                containers
            };
            statistics::show(settings, &client, &containers, &list, !no_stream).await
        }
        ContainerCommand::Top { container } => {
            statistics::show_top(&client(settings)?, &container).await?;
            Ok(Exit::Done)
        }
        ContainerCommand::Wait { containers } => {
            let client = client(settings)?;
            each::each(settings, &containers, async |container| {
                let code: i32 = client.post(&format!("/v1/containers/{}/wait", escape(container)), &()).await?;
                printer::line(&code.to_string());
                Ok(())
            })
            .await
        }
        ContainerCommand::Prune { force } => {
            if !force && !confirmed("Remove all stopped containers that belong to no stack?") {
                return Err(Failure::new(Exit::Failed, "nothing removed").hint("say yes, or use -f").into());
            }
            let request = PruneRequest { containers: true, ..PruneRequest::default() };
            super::volume::prune(&client(settings)?, &request).await?;
            Ok(Exit::Done)
        }
    }
}

async fn ls(settings: &Settings, args: ContainerLs) -> Result<Exit> {
    let format = Format::parse(&args.list.format)?;
    let client = client(settings)?;
    let views: Vec<ContainerView> = client.get(&format!("/v1/containers?all={}", args.all)).await?;
    let cells = |v: &ContainerView| {
        let mut status = state_word(v.state);
        if matches!(v.state, TaskState::Exited | TaskState::Restarting) {
            status.push_str(&format!(" ({})", v.exit_code.unwrap_or(0)));
        }
        let created = v.created_at.parse::<jiff::Timestamp>().ok();
        let created = created.and_then(|t| u64::try_from(t.as_millisecond()).ok());
        let ports: Vec<String> =
            v.ports.iter().map(|p| format!("{}:{}->{}/{}", p.host_ip, p.published, p.target, p.protocol)).collect();
        vec![short(&v.id, args.list.no_trunc), v.name.clone(), v.image.clone(), ago(created), status, ports.join(", ")]
    };
    let titles = ["ID", "NAME", "IMAGE", "CREATED", "STATUS", "PORTS"];
    printer::listing(&format, settings.quiet, &views, &titles, cells, |v| short(&v.id, args.list.no_trunc))?;
    Ok(Exit::Done)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Start,
    Stop,
    Restart,
    Kill,
    Pause,
    Unpause,
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
        }
    }

    /// What it means to the control plane, for a container of a stack: its desired state is there, and a change behind its back would
    /// be undone.
    fn action(self, signal: Option<&str>) -> Option<Action> {
        Some(match self {
            Self::Start => Action::Start,
            Self::Stop => Action::Stop,
            Self::Restart => Action::Restart,
            Self::Pause => Action::Pause,
            Self::Unpause => Action::Unpause,
            Self::Kill => match signal.map(str::to_ascii_uppercase).as_deref() {
                None | Some("KILL" | "SIGKILL" | "9") => Action::Kill,
                Some(_) => return None,
            },
        })
    }
}

async fn change(settings: &Settings, containers: &[String], what: Change, request: &StopRequest) -> Result<Exit> {
    let client = client(settings)?;
    let act = async |container: &str| {
        let view = view(&client, container).await?;
        match what.action(request.signal.as_deref()).filter(|_| !view.stack.is_empty()) {
            Some(action) => act_on_task(&client, &view, action, request).await?,
            None => {
                let path = format!("/v1/containers/{}/{}", escape(&view.id), what.verb());
                client.post::<serde_json::Value>(&path, request).await?;
            }
        }
        Ok(())
    };
    if !matches!(what, Change::Start | Change::Restart) {
        return each::all(settings, containers, act).await;
    }
    // One may live in the namespaces of another that is named before it.
    each::each(settings, containers, async |container| {
        act(container).await?;
        printer::line(container);
        Ok(())
    })
    .await
}

async fn act_on_task(client: &Client, view: &ContainerView, action: Action, stop: &StopRequest) -> Result<()> {
    let request = ActRequest {
        services: Vec::new(),
        tasks: vec![view.task.clone()],
        action,
        timeout: stop.timeout,
        signal: stop.signal.clone(),
        no_deps: true,
        remove_volumes: false,
        stop: false,
    };
    if matches!(action, Action::Pause | Action::Kill) && !matches!(view.state, TaskState::Running | TaskState::Paused) {
        return Err(Failure::new(Exit::Failed, format!("container {} does not run", view.name)).into());
    }
    let look = async || client.get::<TaskView>(&format!("/v1/tasks/{}", escape(&view.task))).await;
    let before = look().await?.status.started_at;
    client.post::<ApplyResponse>(&format!("/v1/stacks/{}/act", escape(&view.stack)), &request).await?;
    let reached = |state: TaskState| match action {
        Action::Stop | Action::Kill => {
            matches!(state, TaskState::Exited | TaskState::Created | TaskState::Failed | TaskState::Removed)
        }
        Action::Pause => state == TaskState::Paused,
        _ => matches!(state, TaskState::Running | TaskState::Exited | TaskState::Failed),
    };
    loop {
        let task = look().await?;
        let starts = matches!(action, Action::Start | Action::Restart);
        if starts && task.status.state == TaskState::Failed {
            let message = format!("container {}: {}", view.name, task.status.error);
            return Err(Failure::new(task.status.error_code.map_or(Exit::Failed, Exit::Code), message).into());
        }
        if !task.blocked.is_empty() {
            return Err(Failure::new(Exit::Failed, format!("container {}: {}", view.name, task.blocked)).into());
        }
        // A manager without a leader answers with what it has, which may be older than the change: only another run shows that it was made.
        let is_past = task.again || action == Action::Restart && task.status.started_at == before;
        if !is_past && reached(task.status.state) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn stop(settings: &Settings, args: ContainerStop, what: Change) -> Result<Exit> {
    let request = StopRequest { timeout: args.timeout, signal: args.signal };
    change(settings, &args.containers, what, &request).await
}

async fn remove(settings: &Settings, args: ContainerRm) -> Result<Exit> {
    let client = client(settings)?;
    each::all(settings, &args.containers, async |container| {
        let view = view(&client, container).await?;
        let runs = matches!(view.state, TaskState::Running | TaskState::Paused | TaskState::Restarting);
        if runs && !args.force {
            let message = format!("container {} runs", view.name);
            return Err(Failure::new(Exit::Failed, message).hint("stop it first, or use `rm -f`").into());
        }
        if view.stack.is_empty() {
            let path = format!("/v1/containers/{}?force={}&volumes={}", view.id, args.force, args.volumes);
            client.delete::<()>(&path).await?;
        } else {
            let desired = DesiredTask::Removed;
            let request = DesiredRequest { desired, timeout: Some(0), signal: None, remove_volumes: args.volumes };
            client.post::<IndexResponse>(&format!("/v1/tasks/{}/desired", escape(&view.task)), &request).await?;
            while self::view(&client, &view.id).await.is_ok() {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    })
    .await
}
