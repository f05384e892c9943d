//! `exec`, `attach` and `run`: one process of a service.

use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::Result;
use orch_api::client::{Client, ClientError};
use orch_api::control::{
    ApplyOptions, ApplyRequest, ApplyResponse, DesiredRequest, IndexResponse, RunRequest, RunResponse, TaskView,
};
use orch_api::node::{AttachRequest, ExecRequest};
use orch_spec::assignment::{DesiredTask, TaskState};
use orch_spec::model::ServiceSpec;
use serde_json::json;

use super::follow::{Follow, follow};
use super::push::with_images;
use super::session::{self, Ended, SessionOptions};
use super::{act, client, escape};
use crate::args::{Attach, Exec, ExecOptions, Run};
use crate::exit::{Exit, Failure};
use crate::progress::Goal;
use crate::settings::Settings;
use crate::{later, printer, stack_file};

/// How long what has ended may take to go.
const GONE: std::time::Duration = std::time::Duration::from_secs(10);

async fn replica(client: &Client, stack: &str, service: &str, index: u32) -> Result<TaskView> {
    let running = act::running(client, stack, &[service.to_owned()]).await?;
    let found = running.into_iter().find(|t| t.slot == index);
    found.ok_or_else(|| {
        Failure::new(Exit::Failed, format!("service {service} has no running container {index}"))
            .hint(format!("`orch ps -a` shows what there is; `orch start {service}` starts it"))
            .into()
    })
}

/// The request of `exec`.
pub(super) fn exec_request(options: &ExecOptions, command: &[String], tty: bool, stdin: bool) -> ExecRequest {
    let env = options.env.iter().filter_map(|entry| variable(entry)).collect();
    ExecRequest {
        command: command.to_vec(),
        env,
        user: options.user.clone().unwrap_or_default(),
        workdir: options.workdir.clone().unwrap_or_default(),
        tty,
        stdin,
        privileged: options.privileged,
        detach: options.detach,
        size: if tty { session::window() } else { None },
    }
}

/// `KEY=VALUE`, or `KEY` taken from our own environment.
pub(super) fn variable(entry: &str) -> Option<String> {
    if entry.contains('=') {
        return Some(entry.to_owned());
    }
    std::env::var(entry).ok().map(|value| format!("{entry}={value}"))
}

/// What files of variables say, as Docker reads them: every line is a variable as it stands.
pub(super) fn variables(files: &[String]) -> Result<Vec<String>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let files: Vec<_> = files.iter().map(|path| json!({"path": path, "format": "raw"})).collect();
    let read = stack_file::service(&json!({"image": "x", "env_file": files}))?.environment;
    Ok(read.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?))).collect())
}

/// Runs a command in a container and passes its exit code on.
pub(super) async fn exec_in(client: &Client, container: &str, request: &ExecRequest) -> Result<Exit> {
    let connection = client.upgrade(&format!("/v1/containers/{}/exec", escape(container)), request).await?;
    let options = SessionOptions { stdin: request.stdin, tty: request.tty, signals: true, detach_keys: "" };
    Ok(session::run(connection, &options).await?.exit())
}

/// `exec`.
pub(super) async fn exec(settings: &Settings, args: Exec) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let task = replica(&client, &stack, &args.service, args.index).await?;
    let tty = !args.no_tty && !args.options.detach && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let request = exec_request(&args.options, &args.command, tty, args.interactive && !args.options.detach);
    exec_in(&client, &task.status.container, &request).await
}

/// `attach`.
pub(super) async fn attach(settings: &Settings, args: Attach) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let task = replica(&client, &stack, &args.service, args.index).await?;
    attach_to(&client, &task.status.container, &args.options, false).await
}

/// Attaches to a container; its exit code is ours.
pub(super) async fn attach_to(
    client: &Client,
    container: &str,
    options: &crate::args::AttachOptions,
    start: bool,
) -> Result<Exit> {
    let tty = super::container::view(client, container).await?.tty;
    let stdin = !options.no_stdin;
    let request = AttachRequest { stdin, size: session::window(), start };
    let connection = client.upgrade(&format!("/v1/containers/{}/attach", escape(container)), &request).await?;
    let options = SessionOptions { stdin, tty, signals: options.sig_proxy, detach_keys: &options.detach_keys };
    Ok(session::run(connection, &options).await?.exit())
}

/// `run`: a one-off container beside the service's replicas.
pub(super) async fn run(settings: &Settings, args: Run) -> Result<Exit> {
    later::check_pull(args.pull.as_deref())?;
    let chosen = [args.service.clone()];
    let loaded = stack_file::load(settings, &chosen)?;
    let Some(service) = loaded.spec.services.get(&args.service) else {
        return Err(Failure::new(Exit::Failed, format!("no such service: {}", args.service)).into());
    };
    let client = client(settings)?;
    let stack = loaded.spec.name.clone();
    let dependencies: Vec<String> = service.depends_on.keys().cloned().collect();
    if !args.no_deps && !dependencies.is_empty() {
        let options = ApplyOptions { services: dependencies.clone(), ..ApplyOptions::default() };
        let request = ApplyRequest { spec: loaded.spec.clone(), files: loaded.files.clone(), options };
        let path = format!("/v1/stacks/{}/apply", escape(&stack));
        with_images(settings, &client, async || client.post::<ApplyResponse>(&path, &request).await).await?;
        let services = Some(dependencies.into_iter().collect());
        let what = Follow {
            stack: &stack,
            services,
            goal: Goal::Ready,
            timeout: None,
            show_logs: true,
            made: Vec::new(),
            since: None,
        };
        follow(&client, settings, &what).await?;
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let tty = !args.no_tty && !args.detach && terminal;
    let stdin = !args.detach && args.interactive;
    let spec = overridden(service, &args, tty, stdin)?;
    let request = RunRequest {
        service: args.service.clone(),
        spec: Arc::new(spec),
        stack: Some(loaded.spec.clone()),
        files: loaded.files.clone(),
        no_deps: args.no_deps,
        remove_orphans: args.remove_orphans,
        container_name: args.name.clone(),
        start: args.detach,
        use_aliases: args.use_aliases,
    };
    let path = format!("/v1/stacks/{}/run", escape(&stack));
    let made: RunResponse = with_images(settings, &client, async || client.post(&path, &request).await).await?;
    let task = wait_created(&client, &made.task, args.detach).await?;
    if args.detach {
        printer::line(&made.container_name);
        return Ok(Exit::Done);
    }
    let attach = AttachRequest { stdin, size: session::window(), start: false };
    let path = format!("/v1/containers/{}/attach", task.status.container);
    let connection = client.upgrade(&path, &attach).await?;
    // Attached before it starts, so that not one byte is missed.
    desired(&client, &made.task, DesiredTask::Running, false).await?;
    let options = SessionOptions { stdin, tty, signals: true, detach_keys: "ctrl-p,ctrl-q" };
    let ended = session::run(connection, &options).await;
    if args.rm
        && !matches!(ended, Ok(Ended::Detached))
        && let Err(error) = remove(&client, &made.task).await
    {
        // What the command inside has said counts.
        printer::say(&format!("warning: container {} may be left: {error}", made.container_name));
    }
    Ok(ended?.exit())
}

/// Removes a one-off and waits until it is gone, so that whoever looks next does not find it.
async fn remove(client: &Client, task: &str) -> Result<()> {
    desired(client, task, DesiredTask::Removed, true).await?;
    let begun = tokio::time::Instant::now();
    let path = format!("/v1/tasks/{}", escape(task));
    while begun.elapsed() < GONE {
        match client.get::<TaskView>(&path).await {
            Err(ClientError::Refused(detail)) if detail.code == "not_found" => return Ok(()),
            found => found?,
        };
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Err(Failure::new(Exit::Deadline, format!("it has not gone within {} s", GONE.as_secs())).into())
}

async fn desired(client: &Client, task: &str, desired: DesiredTask, remove_volumes: bool) -> Result<()> {
    let request = DesiredRequest { desired, timeout: None, signal: None, remove_volumes };
    client.post::<IndexResponse>(&format!("/v1/tasks/{}/desired", escape(task)), &request).await?;
    Ok(())
}

async fn wait_created(client: &Client, task: &str, started: bool) -> Result<TaskView> {
    loop {
        let view: TaskView = client.get(&format!("/v1/tasks/{}", escape(task))).await?;
        let failed = view.status.state == TaskState::Failed || !view.blocked.is_empty();
        if failed {
            let why = if view.blocked.is_empty() { view.status.error.clone() } else { view.blocked.clone() };
            let exit = view.status.error_code.map_or(Exit::Code(125), Exit::Code);
            desired(client, task, DesiredTask::Removed, true).await?;
            return Err(Failure::new(exit, format!("container {}: {why}", view.container_name)).into());
        }
        let reached = match view.status.state {
            TaskState::Created => !started,
            TaskState::Running | TaskState::Exited | TaskState::Paused | TaskState::Restarting => true,
            _ => false,
        };
        if reached {
            return Ok(view);
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// The service with what the command line says on top.
fn overridden(service: &ServiceSpec, args: &Run, tty: bool, stdin: bool) -> Result<ServiceSpec> {
    let mut spec = service.clone();
    if !args.command.is_empty() {
        spec.command = Some(args.command.clone());
    }
    if let Some(entrypoint) = &args.entrypoint {
        spec.entrypoint = Some(entrypoint.split_whitespace().map(str::to_owned).collect());
        if args.command.is_empty() {
            spec.command = None;
        }
    }
    let files: Vec<_> = args.env_from_file.iter().map(|path| json!({"path": path})).collect();
    let typed = json!({"image": "x", "cap_add": args.cap_add, "cap_drop": args.cap_drop, "env_file": files});
    let typed = stack_file::service(&typed)?;
    spec.cap_add.extend(typed.cap_add);
    spec.cap_drop.extend(typed.cap_drop);
    spec.environment.extend(typed.environment);
    for entry in &args.env {
        let (key, value) = match entry.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (entry.clone(), std::env::var(entry).ok()),
        };
        spec.environment.insert(key, value);
    }
    for label in &args.label {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        spec.labels.insert(key.to_owned(), value.to_owned());
    }
    if let Some(user) = &args.user {
        spec.user = Some(user.clone());
    }
    if let Some(workdir) = &args.workdir {
        spec.working_dir = Some(workdir.clone());
    }
    let ports = stack_file::ports(&args.publish)?;
    if !args.service_ports {
        spec.ports.clear();
    }
    spec.ports.extend(ports);
    spec.volumes.extend(stack_file::mounts(&args.volume)?);
    spec.tty = tty;
    spec.stdin_open = stdin;
    spec.container_name = None;
    // A one-off is not checked and not restarted.
    spec.healthcheck = None;
    spec.restart = None;
    spec.deploy.restart_policy = None;
    Ok(spec)
}
