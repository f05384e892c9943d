//! Verbs that act on containers which exist: start, stop, restart, kill, pause, unpause, rm, wait.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use orch_api::client::Client;
use orch_api::control::{ActRequest, Action, ApplyResponse, StackView};
use orch_spec::assignment::TaskState;

use super::follow::{Follow, follow};
use super::{client, confirmed, escape};
use crate::args::{Kill, Restart, Rm, Services, Start, Stop, Wait};
use crate::exit::{Exit, Failure};
use crate::progress::Goal;
use crate::settings::Settings;
use crate::{printer, stack_file};

fn request(action: Action, services: &[String]) -> ActRequest {
    ActRequest {
        services: services.to_vec(),
        tasks: Vec::new(),
        action,
        timeout: None,
        signal: None,
        no_deps: false,
        remove_volumes: false,
        stop: false,
    }
}

fn scope(services: &[String]) -> Option<BTreeSet<String>> {
    (!services.is_empty()).then(|| services.iter().cloned().collect())
}

async fn act(client: &Client, settings: &Settings, stack: &str, request: &ActRequest) -> Result<bool> {
    if settings.dry_run {
        printer::say(&format!("would {:?} the services of stack {stack}", request.action).to_lowercase());
        return Ok(false);
    }
    let response: ApplyResponse = client.post(&format!("/v1/stacks/{}/act", escape(stack)), request).await?;
    response.warnings.iter().for_each(|w| printer::say(&format!("warning: {w}")));
    Ok(true)
}

async fn act_and_follow(settings: &Settings, request: ActRequest, goal: Goal, timeout: Option<u64>) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    if act(&client, settings, &stack, &request).await? {
        let services = scope(&request.services);
        let timeout = timeout.map(Duration::from_secs);
        follow(
            &client,
            settings,
            &Follow { stack: &stack, services, goal, timeout, show_logs: true, made: Vec::new(), since: None },
        )
        .await?;
    }
    Ok(Exit::Done)
}

/// `start`.
pub(super) async fn start(settings: &Settings, args: Start) -> Result<Exit> {
    let goal = if args.wait { Goal::Ready } else { Goal::Started };
    act_and_follow(settings, request(Action::Start, &args.services), goal, args.wait_timeout).await
}

/// `stop`.
pub(super) async fn stop(settings: &Settings, args: Stop) -> Result<Exit> {
    let request = ActRequest { timeout: args.timeout, ..request(Action::Stop, &args.services) };
    act_and_follow(settings, request, Goal::Stopped, None).await
}

/// `restart`.
pub(super) async fn restart(settings: &Settings, args: Restart) -> Result<Exit> {
    let request =
        ActRequest { timeout: args.timeout, no_deps: args.no_deps, ..request(Action::Restart, &args.services) };
    act_and_follow(settings, request, Goal::Started, None).await
}

/// `kill`: a signal that ends is an end that was asked for; any other one is only delivered.
pub(super) async fn kill(settings: &Settings, args: Kill) -> Result<Exit> {
    let name = args.signal.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if matches!(name, "KILL" | "9") {
        let request = ActRequest { signal: Some(args.signal), ..request(Action::Kill, &args.services) };
        return act_and_follow(settings, request, Goal::Stopped, None).await;
    }
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    for task in running(&client, &stack, &args.services).await? {
        if settings.dry_run {
            printer::say(&format!("would send {} to container {}", args.signal, task.container_name));
            continue;
        }
        let path = format!("/v1/containers/{}/kill", task.status.container);
        let body = orch_api::node::StopRequest { timeout: None, signal: Some(args.signal.clone()) };
        client.post::<serde_json::Value>(&path, &body).await?;
        printer::say(&format!("container {}  Sent {}", task.container_name, args.signal));
    }
    Ok(Exit::Done)
}

/// Tasks of these services that run.
pub(super) async fn running(
    client: &Client,
    stack: &str,
    services: &[String],
) -> Result<Vec<orch_api::control::TaskView>> {
    let view: StackView = client.get(&format!("/v1/stacks/{}", escape(stack))).await?;
    check_services(&view, services)?;
    Ok(view
        .tasks
        .into_iter()
        .filter(|t| services.is_empty() || services.contains(&t.service))
        .filter(|t| matches!(t.status.state, TaskState::Running | TaskState::Paused))
        .collect())
}

/// Refuses names that the stack does not have.
pub(super) fn check_services(view: &StackView, services: &[String]) -> Result<(), Failure> {
    for service in services {
        if !view.services.iter().any(|s| s.name == *service) {
            let names: Vec<&str> = view.services.iter().map(|s| s.name.as_str()).collect();
            return Err(Failure::new(Exit::Failed, format!("no such service: {service}")).hint(format!(
                "services of stack {}: {}",
                view.name,
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// `pause` and `unpause`.
pub(super) async fn pause(settings: &Settings, args: Services, pause: bool) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let action = if pause { Action::Pause } else { Action::Unpause };
    let request = request(action, &args.services);
    if act(&client, settings, &stack, &request).await? {
        // Both states count as started, so the goal is the state itself.
        let wanted = if pause { TaskState::Paused } else { TaskState::Running };
        let others = if pause { TaskState::Running } else { TaskState::Paused };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let view: StackView = client.get(&format!("/v1/stacks/{}", escape(&stack))).await?;
            let tasks: Vec<_> =
                view.tasks.iter().filter(|t| args.services.is_empty() || args.services.contains(&t.service)).collect();
            if !tasks.iter().any(|t| t.status.state == others) {
                for task in tasks.iter().filter(|t| t.status.state == wanted) {
                    let word = if pause { "Paused" } else { "Unpaused" };
                    printer::say(&format!("container {}  {word}", task.container_name));
                }
                break;
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Failure::new(Exit::Deadline, "containers could not be frozen or thawed within 30 s").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(Exit::Done)
}

/// `rm`.
pub(super) async fn remove(settings: &Settings, args: Rm) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let view: StackView = client.get(&format!("/v1/stacks/{}", escape(&stack))).await?;
    check_services(&view, &args.services)?;
    let chosen: Vec<_> = view
        .tasks
        .iter()
        .filter(|t| args.services.is_empty() || args.services.contains(&t.service))
        .filter(|t| args.stop || !matches!(t.status.state, TaskState::Running | TaskState::Paused))
        .collect();
    if chosen.is_empty() {
        printer::say("no stopped containers");
        return Ok(Exit::Done);
    }
    let names: Vec<&str> = chosen.iter().map(|t| t.container_name.as_str()).collect();
    if !args.force && !settings.dry_run && !confirmed(&format!("Remove {}?", names.join(", "))) {
        return Err(Failure::new(Exit::Failed, "nothing removed").hint("say yes, or use `rm -f`").into());
    }
    let request =
        ActRequest { stop: args.stop, remove_volumes: args.volumes, ..request(Action::Remove, &args.services) };
    if act(&client, settings, &stack, &request).await? {
        let services = scope(&args.services);
        let goal = Goal::Removed;
        follow(
            &client,
            settings,
            &Follow { stack: &stack, services, goal, timeout: None, show_logs: false, made: Vec::new(), since: None },
        )
        .await?;
    }
    Ok(Exit::Done)
}

/// `wait`.
pub(super) async fn wait(settings: &Settings, args: Wait) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let view: StackView = client.get(&format!("/v1/stacks/{}", escape(&stack))).await?;
    check_services(&view, &args.services)?;
    let mut code = 0;
    for task in view.tasks.iter().filter(|t| args.services.contains(&t.service) && !t.status.container.is_empty()) {
        let path = format!("/v1/containers/{}/wait", task.status.container);
        code = client.post::<i32>(&path, &()).await?;
        printer::line(&format!("container {} exited with status code {code}", task.container_name));
    }
    if args.down_project {
        let down =
            crate::args::Down { volumes: false, rmi: None, remove_orphans: false, timeout: None, services: Vec::new() };
        super::down::run(settings, down).await?;
    }
    Ok(Exit::Code(code))
}
