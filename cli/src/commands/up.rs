//! `up`, `create`, `plan` and `scale`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use orch_api::client::Client;
use orch_api::control::{ActRequest, Action, ApplyOptions, ApplyRequest, ApplyResponse, ScaleRequest, StackChange};
use orch_spec::assignment::{DesiredTask, TaskState};
use tokio::signal::unix::{SignalKind, signal};

use super::collector::{Collector, Style};
use super::follow::{Follow, Watch, follow};
use super::push::with_images;
use super::{client, escape};
use crate::args::{Create, Plan, Scale, Up, UpCommon};
use crate::exit::{Exit, Failure};
use crate::later;
use crate::printer;
use crate::progress::{Board, Goal};
use crate::settings::Settings;
use crate::stack_file::{self, Loaded};

fn options(common: &UpCommon, services: &[String]) -> Result<ApplyOptions, Failure> {
    later::check_pull(common.pull.as_deref())?;
    Ok(ApplyOptions {
        services: services.to_vec(),
        no_deps: common.no_deps,
        force_recreate: common.force_recreate,
        no_recreate: common.no_recreate,
        always_recreate_deps: common.always_recreate_deps,
        renew_anonymous_volumes: common.renew_anon_volumes,
        remove_orphans: common.remove_orphans,
        no_start: false,
        scale: scales(&common.scale)?,
        timeout: common.timeout,
    })
}

fn scales(texts: &[String]) -> Result<BTreeMap<String, u32>, Failure> {
    texts
        .iter()
        .map(|text| {
            text.split_once('=')
                .and_then(|(service, number)| Some((service.to_owned(), number.parse().ok()?)))
                .ok_or_else(|| Failure::usage(format!("--scale {text}: write SERVICE=NUMBER, for example web=3")))
        })
        .collect()
}

fn apply_request(loaded: &Loaded, options: ApplyOptions) -> Result<ApplyRequest, Failure> {
    for service in options.services.iter().chain(options.scale.keys()) {
        if !loaded.spec.services.contains_key(service) {
            let names: Vec<&str> = loaded.spec.services.keys().map(String::as_str).collect();
            return Err(Failure::new(Exit::Failed, format!("no such service: {service}"))
                .hint(format!("services of the file: {}", names.join(", "))));
        }
    }
    Ok(ApplyRequest { spec: loaded.spec.clone(), files: loaded.files.clone(), options })
}

/// What `apply` would do: nothing is sent, no image either.
async fn planned(client: &Client, request: &ApplyRequest) -> Result<ApplyResponse> {
    let path = format!("/v1/stacks/{}/plan", escape(&request.spec.name));
    let response: ApplyResponse = client.post(&path, request).await?;
    response.warnings.iter().for_each(|w| printer::say(&format!("warning: {w}")));
    Ok(response)
}

async fn apply(settings: &Settings, client: &Client, request: &ApplyRequest) -> Result<ApplyResponse> {
    let path = format!("/v1/stacks/{}/apply", escape(&request.spec.name));
    let response: ApplyResponse = with_images(settings, client, async || client.post(&path, request).await).await?;
    response.warnings.iter().for_each(|w| printer::say(&format!("warning: {w}")));
    Ok(response)
}

/// `plan`.
pub(super) async fn plan(settings: &Settings, args: Plan) -> Result<Exit> {
    let loaded = stack_file::load(settings, &args.services)?;
    let client = client(settings)?;
    let request = apply_request(&loaded, options(&args.common, &args.services)?)?;
    let response = planned(&client, &request).await?;
    print_plan(&response, args.format == "json")?;
    Ok(if response.plan.operations.is_empty() { Exit::Done } else { Exit::Changes })
}

fn print_plan(response: &ApplyResponse, as_json: bool) -> Result<()> {
    if as_json {
        return printer::json(&response.plan);
    }
    if response.plan.operations.is_empty() {
        printer::line("nothing to do");
    }
    response.plan.operations.iter().for_each(|op| printer::line(&op.to_string()));
    Ok(())
}

/// Everything a stack needs is started for the chosen services: they and, transitively, what they depend on.
fn with_dependencies(loaded: &Loaded, services: &[String], no_deps: bool) -> Option<BTreeSet<String>> {
    if services.is_empty() {
        return None;
    }
    let mut set: BTreeSet<String> = services.iter().cloned().collect();
    let mut queue: Vec<String> = services.to_vec();
    while let Some(service) = queue.pop().filter(|_| !no_deps) {
        let Some(spec) = loaded.spec.services.get(&service) else { continue };
        for dependency in spec.depends_on.keys() {
            if set.insert(dependency.clone()) {
                queue.push(dependency.clone());
            }
        }
    }
    Some(set)
}

/// `create`.
pub(super) async fn create(settings: &Settings, args: Create) -> Result<Exit> {
    let loaded = stack_file::load(settings, &args.services)?;
    let client = client(settings)?;
    let options = ApplyOptions { no_start: true, ..options(&args.common, &args.services)? };
    let request = apply_request(&loaded, options)?;
    if settings.dry_run {
        print_plan(&planned(&client, &request).await?, false)?;
        return Ok(Exit::Done);
    }
    apply(settings, &client, &request).await?;
    let services = with_dependencies(&loaded, &args.services, args.common.no_deps);
    let stack = &loaded.spec.name;
    let what =
        Follow { stack, services, goal: Goal::Created, timeout: None, show_logs: false, made: Vec::new(), since: None };
    follow(&client, settings, &what).await?;
    Ok(Exit::Done)
}

/// `scale`.
pub(super) async fn scale(settings: &Settings, args: Scale) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let request = ScaleRequest { services: scales(&args.scale)?, no_deps: args.no_deps, timeout: None };
    let services: BTreeSet<String> = request.services.keys().cloned().collect();
    let response: ApplyResponse = client.post(&format!("/v1/stacks/{}/scale", escape(&stack)), &request).await?;
    response.warnings.iter().for_each(|w| printer::say(&format!("warning: {w}")));
    let goal = if args.wait { Goal::Ready } else { Goal::Started };
    let what = Follow {
        stack: &stack,
        services: Some(services),
        goal,
        timeout: None,
        show_logs: true,
        made: Vec::new(),
        since: Some(response.index),
    };
    follow(&client, settings, &what).await?;
    Ok(Exit::Done)
}

/// `up`.
pub(super) async fn up(settings: &Settings, args: Up) -> Result<Exit> {
    check(&args)?;
    let loaded = stack_file::load(settings, &args.services)?;
    let client = client(settings)?;
    let options = ApplyOptions { no_start: args.no_start, ..options(&args.common, &args.services)? };
    let request = apply_request(&loaded, options)?;
    if settings.dry_run {
        print_plan(&planned(&client, &request).await?, false)?;
        return Ok(Exit::Done);
    }
    let response = apply(settings, &client, &request).await?;
    if response.plan.operations.is_empty() {
        printer::say(&format!("stack {} is up to date: nothing to do", loaded.spec.name));
    }
    let services = with_dependencies(&loaded, &args.services, args.common.no_deps);
    let goal = match () {
        () if args.no_start => Goal::Created,
        () if args.wait => Goal::Ready,
        () => Goal::Started,
    };
    let timeout = args.wait_timeout.map(Duration::from_secs);
    let stack = loaded.spec.name.clone();
    let (made, since) = (made(&response), Some(response.index));
    let what = Follow { stack: &stack, services: services.clone(), goal, timeout, show_logs: true, made, since };
    if args.detach || args.wait || args.no_start {
        follow(&client, settings, &what).await?;
        return Ok(Exit::Done);
    }
    attached(settings, &client, &args, &loaded, services).await
}

/// Networks and volumes that the plan makes: their records are there as soon as it is applied.
fn made(response: &ApplyResponse) -> Vec<String> {
    let objects =
        response.plan.operations.iter().filter(|op| op.action == "create" && !op.resource.starts_with("container "));
    objects.map(|op| op.resource.clone()).collect()
}

fn check(args: &Up) -> Result<(), Failure> {
    if args.build {
        return Err(Failure::new(Exit::Failed, "--build: orch cannot build images yet")
            .hint("build elsewhere and `orch image load` the result"));
    }
    let attached = args.abort_on_container_exit
        || args.abort_on_container_failure
        || args.exit_code_from.is_some()
        || args.attach_dependencies;
    if args.wait && attached {
        return Err(Failure::usage(
            "--wait returns when everything is up; it does not go with options of the attached `up`",
        ));
    }
    Ok(())
}

/// The attached `up`: logs until everything has ended or somebody interrupts.
async fn attached(
    settings: &Settings,
    client: &Client,
    args: &Up,
    loaded: &Loaded,
    services: Option<BTreeSet<String>>,
) -> Result<Exit> {
    let stack = &loaded.spec.name;
    if let Some(from) = &args.exit_code_from
        && !loaded.spec.services.contains_key(from)
    {
        return Err(Failure::new(Exit::Failed, format!("--exit-code-from: no such service: {from}")).into());
    }
    let style = Style {
        prefix: !args.style.no_log_prefix,
        color: settings.color_stdout && !args.style.no_color,
        timestamps: args.style.timestamps,
    };
    let mut collector = Collector::new(client.clone(), style, true);
    let shown = |service: &str| {
        let chosen = if !args.attach.is_empty() {
            args.attach.iter().any(|s| s == service)
        } else if args.services.is_empty() || args.attach_dependencies {
            services.as_ref().is_none_or(|s| s.contains(service))
        } else {
            args.services.iter().any(|s| s == service)
        };
        let silent =
            args.attach.is_empty() && loaded.spec.services.get(service).is_some_and(|spec| spec.attach == Some(false));
        chosen && !silent && !args.no_attach.iter().any(|s| s == service)
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupts = 0u32;
    let mut stopping: Option<Exit> = None;
    let mut board = Board::default();
    let mut ended: BTreeSet<String> = BTreeSet::new();
    let mut painter = crate::progress::Painter::new(plain(settings), settings.color_stderr);
    let mut watch = Watch::open(settings, client, stack).await?;
    loop {
        tokio::select! {
            change = watch.next() => {
                let change = change?;
                let removed = matches!(change, StackChange::Removed { .. });
                for step in board.fold(change) {
                    painter.show(&step);
                }
                if removed {
                    break;
                }
                for task in board.tasks.values().filter(|t| !t.one_off && shown(&t.service)) {
                    // The log of one that never ran never ends.
                    if task.status.started_at.is_some() {
                        collector.add(&task.service, task.slot, &task.status.container);
                    }
                }
                let tasks = board.tasks.values().filter(|t| !t.one_off);
                let tasks = tasks.filter(|t| services.as_ref().is_none_or(|s| s.contains(&t.service)));
                let over = |t: &&orch_api::control::TaskView| {
                    matches!(t.status.state, TaskState::Exited | TaskState::Failed | TaskState::Removed)
                        || !t.blocked.is_empty()
                        || (matches!(t.desired, DesiredTask::Stopped | DesiredTask::Created)
                            && t.status.state < TaskState::Starting)
                };
                let tasks: Vec<_> = tasks.collect();
                if stopping.is_none() {
                    let newly: Vec<_> = tasks.iter().copied().filter(over).filter(|t| !ended.contains(&t.id)).collect();
                    for task in newly {
                        ended.insert(task.id.clone());
                        if let Some(exit) = ends_all(args, task) {
                            stopping = Some(exit);
                            stop_all(client, stack, &services, args.common.timeout).await?;
                            break;
                        }
                    }
                }
                if !tasks.is_empty() && tasks.iter().all(over) {
                    let failed = tasks.iter().find(|t| t.status.state == TaskState::Failed || !t.blocked.is_empty());
                    if stopping.is_none() && let Some(task) = failed {
                        collector.drain().await;
                        let why = if task.blocked.is_empty() { &task.status.error } else { &task.blocked };
                        let exit = task.status.error_code.map_or(Exit::Failed, Exit::Code);
                        return Err(Failure::new(exit, format!("container {}: {why}", task.container_name)).into());
                    }
                    break;
                }
            }
            () = collector.print_next() => {}
            _ = interrupt.recv() => {
                interrupts += 1;
                interrupted(client, stack, &services, interrupts, args.common.timeout).await?;
                stopping = Some(Exit::Code(130));
            }
            _ = terminate.recv() => {
                interrupts += 1;
                interrupted(client, stack, &services, interrupts, args.common.timeout).await?;
                stopping = Some(Exit::Code(143));
            }
        }
    }
    collector.drain().await;
    painter.finish();
    Ok(stopping.unwrap_or(Exit::Done))
}

/// Drawn lines and log lines do not mix: the attached `up` says its progress in plain lines.
fn plain(settings: &Settings) -> crate::settings::Progress {
    use crate::settings::Progress;
    if settings.progress == Progress::Tty { Progress::Plain } else { settings.progress }
}

/// Whether the end of this task ends the whole `up`, and with which code.
fn ends_all(args: &Up, task: &orch_api::control::TaskView) -> Option<Exit> {
    let code = task.status.exit_code.or(task.status.error_code).unwrap_or(1);
    if let Some(from) = &args.exit_code_from {
        if task.service == *from {
            return Some(Exit::Code(code));
        }
        let others = args.abort_on_container_exit || (args.abort_on_container_failure && code != 0);
        // A dependency that failed for good keeps the awaited service from ever running.
        return (others && code != 0).then_some(Exit::Code(code));
    }
    let all = args.abort_on_container_exit || (args.abort_on_container_failure && code != 0);
    all.then_some(Exit::Code(code))
}

async fn interrupted(
    client: &Client,
    stack: &str,
    services: &Option<BTreeSet<String>>,
    times: u32,
    timeout: Option<i64>,
) -> Result<()> {
    if times == 1 {
        printer::say("stopping; press Ctrl-C again to kill");
        return stop_all(client, stack, services, timeout).await;
    }
    act_all(client, stack, services, Action::Kill, None).await
}

async fn stop_all(
    client: &Client,
    stack: &str,
    services: &Option<BTreeSet<String>>,
    timeout: Option<i64>,
) -> Result<()> {
    act_all(client, stack, services, Action::Stop, timeout).await
}

async fn act_all(
    client: &Client,
    stack: &str,
    services: &Option<BTreeSet<String>>,
    action: Action,
    timeout: Option<i64>,
) -> Result<()> {
    let request = ActRequest {
        services: services.iter().flatten().cloned().collect(),
        tasks: Vec::new(),
        action,
        timeout,
        signal: None,
        no_deps: false,
        remove_volumes: false,
        stop: false,
    };
    client.post::<ApplyResponse>(&format!("/v1/stacks/{}/act", escape(stack)), &request).await?;
    Ok(())
}
