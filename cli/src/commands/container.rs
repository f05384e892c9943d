//! `container …`: containers one by one, those of stacks included.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::IpAddr;

use anyhow::Result;
use orch_api::client::{Client, ClientError};
use orch_api::control::{ActRequest, Action, ApplyResponse, DesiredRequest, IndexResponse};
use orch_api::node::{ContainerRequest, ContainerView, Created, PruneRequest, StopRequest};
use orch_spec::assignment::{DesiredTask, TaskState};
use orch_spec::model::{HealthTest, Healthcheck, NamespaceMode, NetworkAttachment, NetworkMode, ServiceSpec};

use super::list::{short, state_word};
use super::push::with_images;
use super::session::{self, SessionOptions};
use super::{ago, client, confirmed, copy, escape, logs, one_off, statistics};
use crate::args::{ContainerCommand, ContainerLs, ContainerRm, ContainerRun, ContainerStop};
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;
use crate::stack_file;

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
        ContainerCommand::Run(args) => run_one(settings, *args).await,
        ContainerCommand::Ls(args) => ls(settings, args).await,
        ContainerCommand::Inspect { containers } => {
            let client = client(settings)?;
            let mut found = Vec::new();
            for container in &containers {
                let path = format!("/v1/containers/{}/inspect", escape(container));
                found.push(client.get::<serde_json::Value>(&path).await?);
            }
            printer::json_pretty(&found)?;
            Ok(Exit::Done)
        }
        ContainerCommand::Logs(args) => logs::container(settings, args).await,
        ContainerCommand::Exec(args) => {
            let client = client(settings)?;
            let request =
                one_off::exec_request(&args.options, &args.command, args.tty, args.interactive && !args.options.detach);
            one_off::exec_in(&client, &args.container, &request).await
        }
        ContainerCommand::Attach { options, container } => {
            one_off::attach_to(&client(settings)?, &container, &options, false).await
        }
        ContainerCommand::Start { containers } => {
            each(settings, &containers, Change::Start, &StopRequest::default()).await
        }
        ContainerCommand::Stop(args) => stop(settings, args, Change::Stop).await,
        ContainerCommand::Restart(args) => stop(settings, args, Change::Restart).await,
        ContainerCommand::Kill { signal, containers } => {
            let request = StopRequest { timeout: None, signal: Some(signal) };
            each(settings, &containers, Change::Kill, &request).await
        }
        ContainerCommand::Pause { containers } => {
            each(settings, &containers, Change::Pause, &StopRequest::default()).await
        }
        ContainerCommand::Unpause { containers } => {
            each(settings, &containers, Change::Unpause, &StopRequest::default()).await
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
            for container in &containers {
                let code: i32 = client.post(&format!("/v1/containers/{}/wait", escape(container)), &()).await?;
                printer::line(&code.to_string());
            }
            Ok(Exit::Done)
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

async fn each(settings: &Settings, containers: &[String], change: Change, request: &StopRequest) -> Result<Exit> {
    let client = client(settings)?;
    for container in containers {
        let view = view(&client, container).await?;
        match change.action(request.signal.as_deref()).filter(|_| !view.stack.is_empty()) {
            Some(action) => act_on_task(&client, &view, action, request).await?,
            None => {
                let path = format!("/v1/containers/{}/{}", escape(&view.id), change.verb());
                client.post::<serde_json::Value>(&path, request).await?;
            }
        }
        printer::line(container);
    }
    Ok(Exit::Done)
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
    client.post::<ApplyResponse>(&format!("/v1/stacks/{}/act", escape(&view.stack)), &request).await?;
    let reached = |state: TaskState| match action {
        Action::Stop | Action::Kill => {
            matches!(state, TaskState::Exited | TaskState::Created | TaskState::Failed | TaskState::Removed)
        }
        Action::Pause => state == TaskState::Paused,
        _ => matches!(state, TaskState::Running | TaskState::Exited | TaskState::Failed),
    };
    loop {
        let task: orch_api::control::TaskView = client.get(&format!("/v1/tasks/{}", escape(&view.task))).await?;
        let starts = matches!(action, Action::Start | Action::Restart);
        if starts && task.status.state == TaskState::Failed {
            let message = format!("container {}: {}", view.name, task.status.error);
            return Err(Failure::new(task.status.error_code.map_or(Exit::Failed, Exit::Code), message).into());
        }
        if !task.blocked.is_empty() {
            return Err(Failure::new(Exit::Failed, format!("container {}: {}", view.name, task.blocked)).into());
        }
        if !task.again && reached(task.status.state) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn stop(settings: &Settings, args: ContainerStop, change: Change) -> Result<Exit> {
    let request = StopRequest { timeout: args.timeout, signal: args.signal };
    each(settings, &args.containers, change, &request).await
}

async fn remove(settings: &Settings, args: ContainerRm) -> Result<Exit> {
    let client = client(settings)?;
    for container in &args.containers {
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
        printer::line(container);
    }
    Ok(Exit::Done)
}

/// `container run`.
async fn run_one(settings: &Settings, args: ContainerRun) -> Result<Exit> {
    let mut spec = service(&args, &settings.typed_env_files)?;
    if args.tty && args.interactive && !args.detach && !std::io::stdin().is_terminal() {
        let message = "-t with -i needs a terminal, and standard input is none";
        return Err(Failure::usage(message).hint("leave -t out, or run it from a terminal").into());
    }
    spec.stdin_open = args.interactive;
    let client = client(settings)?;
    let request = ContainerRequest {
        name: args.name.clone().unwrap_or_default(),
        spec,
        auto_remove: args.rm,
        start: true,
        size: if args.tty { session::window() } else { None },
        attach_stdin: args.interactive && !args.detach,
    };
    if args.detach {
        let make = async || client.post("/v1/containers", &request).await;
        let made: Created = with_images(settings, &client, make).await.map_err(run_failure)?;
        printer::line(&made.id);
        return Ok(Exit::Done);
    }
    let begin = async || client.upgrade("/v1/containers/run", &request).await;
    let connection = with_images(settings, &client, begin).await.map_err(run_failure)?;
    let options = SessionOptions {
        stdin: args.interactive,
        tty: args.tty,
        signals: true,
        detach_keys: if args.rm { "" } else { &args.detach_keys },
    };
    Ok(session::run(connection, &options).await.map_err(run_failure)?.exit())
}

/// What keeps a container from being started is exit code 125, Docker's, unless the node says 126 or 127.
fn run_failure(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<orch_api::client::ClientError>() {
        Ok(orch_api::client::ClientError::Refused(mut detail)) => {
            detail.exit_code = detail.exit_code.or(Some(125));
            orch_api::client::ClientError::Refused(detail).into()
        }
        Ok(other) => other.into(),
        Err(other) => other,
    }
}

/// The options of `run` as a service, so that one way leads from either to a container.
fn service(args: &ContainerRun, env_files: &[String]) -> Result<ServiceSpec> {
    let mut map: BTreeMap<&str, serde_json::Value> = BTreeMap::new();
    let mut put = |key: &'static str, value: serde_json::Value| {
        map.insert(key, value);
    };
    put("image", args.image.clone().into());
    let lists: [(&'static str, &Vec<String>); 16] = [
        ("volumes", &args.volume),
        ("tmpfs", &args.tmpfs),
        ("ports", &args.publish),
        ("group_add", &args.group_add),
        ("cap_add", &args.cap_add),
        ("cap_drop", &args.cap_drop),
        ("security_opt", &args.security_opt),
        ("devices", &args.device),
        ("sysctls", &args.sysctl),
        ("labels", &args.label),
        ("extra_hosts", &args.add_host),
        ("dns", &args.dns),
        ("dns_search", &args.dns_search),
        ("dns_opt", &args.dns_option),
        ("annotations", &args.annotation),
        ("environment", &args.env.iter().filter_map(|e| one_off::variable(e)).collect()),
    ];
    for (key, list) in lists {
        if !list.is_empty() {
            put(key, list.clone().into());
        }
    }
    if !env_files.is_empty() {
        // As Docker reads them: every line is a variable as it stands.
        let raw = env_files.iter().map(|path| serde_json::json!({"path": path, "format": "raw"}));
        put("env_file", raw.collect::<Vec<_>>().into());
    }
    let texts = [
        ("hostname", &args.hostname),
        ("user", &args.user),
        ("working_dir", &args.workdir),
        ("cpus", &args.cpus),
        ("cpuset", &args.cpuset_cpus),
        ("mem_limit", &args.memory),
        ("memswap_limit", &args.memory_swap),
        ("shm_size", &args.shm_size),
        ("restart", &args.restart),
        ("stop_signal", &args.stop_signal),
        ("uts", &args.uts),
        ("userns_mode", &args.userns),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            put(key, text.clone().into());
        }
    }
    let numbers = [
        ("pids_limit", args.pids_limit),
        ("oom_score_adj", args.oom_score_adj),
        ("cpu_shares", args.cpu_shares.and_then(|n| i64::try_from(n).ok())),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            put(key, number.into());
        }
    }
    for (key, flag) in
        [("read_only", args.read_only), ("privileged", args.privileged), ("init", args.init), ("tty", args.tty)]
    {
        if flag {
            put(key, true.into());
        }
    }
    if let Some(seconds) = args.stop_timeout {
        put("stop_grace_period", format!("{seconds}s").into());
    }
    if !args.ulimit.is_empty() {
        put("ulimits", ulimits(&args.ulimit)?);
    }
    if !args.log_opt.is_empty() {
        let options: BTreeMap<String, String> = super::volume::labels(&args.log_opt);
        put("logging", serde_json::json!({"driver": "json-file", "options": options}));
    }
    let mut spec = stack_file::service(&serde_json::to_value(map)?)?;
    if !args.command.is_empty() {
        spec.command = Some(args.command.clone());
    }
    if let Some(entrypoint) = &args.entrypoint {
        spec.entrypoint = Some(if entrypoint.is_empty() { Vec::new() } else { vec![entrypoint.clone()] });
    }
    spec.healthcheck = healthcheck(args)?.or(spec.healthcheck);
    spec.pid = namespace("pid", args.pid.as_deref(), spec.pid)?;
    spec.ipc = namespace("ipc", args.ipc.as_deref(), spec.ipc)?;
    network(args, &mut spec)?;
    Ok(spec)
}

/// The options of the health probe; `None` when there are none.
fn healthcheck(args: &ContainerRun) -> Result<Option<Healthcheck>, Failure> {
    let duration = |option: &str, text: &Option<String>| -> Result<Option<orch_spec::model::Duration>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let wrong =
            |_| Failure::usage(format!("--{option} {text} is not a duration")).hint("write for example 1m30s or 500ms");
        text.parse().map(Some).map_err(wrong)
    };
    let test = match (&args.health_cmd, args.no_healthcheck) {
        (_, true) => HealthTest::Disabled,
        (Some(command), _) => HealthTest::Shell(command.clone()),
        (None, _) => HealthTest::Inherit,
    };
    let check = Healthcheck {
        test,
        interval: duration("health-interval", &args.health_interval)?,
        timeout: duration("health-timeout", &args.health_timeout)?,
        retries: args.health_retries,
        start_period: duration("health-start-period", &args.health_start_period)?,
        start_interval: None,
    };
    Ok((check != Healthcheck::default()).then_some(check))
}

fn namespace(option: &str, text: Option<&str>, default: NamespaceMode) -> Result<NamespaceMode, Failure> {
    Ok(match text {
        None => default,
        Some("private" | "") => NamespaceMode::Private,
        Some("host") => NamespaceMode::Host,
        Some("none") if option == "ipc" => NamespaceMode::None,
        Some("shareable") if option == "ipc" => NamespaceMode::Shareable,
        Some(other) => match other.strip_prefix("container:").filter(|name| !name.is_empty()) {
            Some(id) => NamespaceMode::Container(id.to_owned()),
            None => {
                let more = if option == "ipc" { ", none, shareable" } else { "" };
                return Err(Failure::usage(format!("--{option} {other} is not known"))
                    .hint(format!("write private, host{more} or container:NAME")));
            }
        },
    })
}

fn network(args: &ContainerRun, spec: &mut ServiceSpec) -> Result<(), Failure> {
    spec.networks.clear();
    spec.network_mode = NetworkMode::Bridge;
    for name in &args.network {
        match name.as_str() {
            "bridge" | "default" => {}
            "none" => spec.network_mode = NetworkMode::None,
            "host" => spec.network_mode = NetworkMode::Host,
            other => match other.strip_prefix("container:") {
                Some(id) => spec.network_mode = NetworkMode::Container(id.to_owned()),
                None => {
                    spec.network_mode = NetworkMode::Stack;
                    let attachment = NetworkAttachment {
                        aliases: args.network_alias.clone(),
                        ipv4_address: args.ip.map(IpAddr::V4),
                        ipv6_address: args.ip6.map(IpAddr::V6),
                        ..NetworkAttachment::default()
                    };
                    spec.networks.insert(other.to_owned(), attachment);
                }
            },
        }
    }
    let address = args.ip.is_some() || args.ip6.is_some();
    if (address && spec.networks.len() != 1) || (!args.network_alias.is_empty() && spec.networks.is_empty()) {
        return Err(Failure::usage(
            "--ip and --ip6 want one network that somebody has made, --network-alias at least one",
        )
        .hint("`orch network create NAME --subnet 10.9.0.0/24`, then `--network NAME`"));
    }
    let alone = args.network.len() > 1
        && (!matches!(spec.network_mode, NetworkMode::Stack) || spec.networks.len() < args.network.len());
    if alone {
        return Err(Failure::usage("`bridge`, `none`, `host` and `container:NAME` do not go with further networks")
            .hint("give the names of networks only; `orch network ls` lists them"));
    }
    Ok(())
}

fn ulimits(texts: &[String]) -> Result<serde_json::Value> {
    let mut map = serde_json::Map::new();
    for text in texts {
        let parsed = text.split_once('=').and_then(|(name, limits)| {
            let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
            Some((name, soft.parse::<i64>().ok()?, hard.parse::<i64>().ok()?))
        });
        let Some((name, soft, hard)) = parsed else {
            return Err(Failure::usage(format!(
                "--ulimit {text}: write NAME=SOFT[:HARD], for example nofile=1024:4096"
            ))
            .into());
        };
        map.insert(name.to_owned(), serde_json::json!({"soft": soft, "hard": hard}));
    }
    Ok(serde_json::Value::Object(map))
}
