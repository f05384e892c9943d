//! `down`.

use std::collections::BTreeSet;

use anyhow::Result;
use orch_api::client::ClientError;
use orch_api::control::{ApplyResponse, DownRequest, StackView};

use super::escape;
use super::follow::{Follow, follow};
use crate::args::Down;
use crate::exit::{Exit, Failure};
use crate::progress::Goal;
use crate::settings::Settings;
use crate::{connect, printer, stack_file};

/// Takes a stack down and waits until it is gone.
pub(super) async fn run(settings: &Settings, args: Down) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let nothing = || printer::say(&format!("warning: nothing to remove for stack {stack}"));
    let Some(client) = connect::connect_existing(settings)? else {
        nothing();
        return Ok(Exit::Done);
    };
    let view: Option<StackView> = match client.get(&format!("/v1/stacks/{}", escape(&stack))).await {
        Ok(view) => Some(view),
        // An earlier `down` may have kept its volumes, or a network that others were on.
        Err(ClientError::Refused(e)) if e.code == "not_found" => None,
        Err(e) => return Err(e.into()),
    };
    let images: BTreeSet<String> = view.iter().flat_map(|v| &v.services).map(|s| s.image.clone()).collect();
    let request = DownRequest {
        volumes: args.volumes,
        services: args.services.clone(),
        timeout: args.timeout,
        // `down` of the whole stack takes orphans too: what belongs to the stack goes with it.
        remove_orphans: args.remove_orphans || args.services.is_empty(),
    };
    if settings.dry_run {
        let containers = view.map_or(0, |view| view.tasks.len());
        printer::say(&format!("would remove {containers} containers of stack {stack}"));
        return Ok(Exit::Done);
    }
    let response: ApplyResponse = match client.post(&format!("/v1/stacks/{}/down", escape(&stack)), &request).await {
        Ok(response) => response,
        Err(ClientError::Refused(e)) if e.code == "not_found" && view.is_none() => {
            nothing();
            return Ok(Exit::Done);
        }
        Err(e) => return Err(e.into()),
    };
    response.warnings.iter().for_each(|w| printer::say(&format!("warning: {w}")));
    let (services, goal) = if args.services.is_empty() {
        (None, Goal::Gone)
    } else {
        (Some(args.services.into_iter().collect()), Goal::Removed)
    };
    follow(
        &client,
        settings,
        &Follow { stack: &stack, services, goal, timeout: None, show_logs: false, made: Vec::new(), since: None },
    )
    .await?;
    match args.rmi.as_deref() {
        None => {}
        // Without a builder every image has a name of its own, so `local` has none to remove.
        Some("local") => {}
        Some("all") => {
            for image in images {
                let path = format!("/v1/image?name={}", escape(&image));
                match client.delete::<serde_json::Value>(&path).await {
                    Ok(_) => printer::say(&format!("image {image}  Removed")),
                    Err(e) => printer::say(&format!("warning: image {image} stays: {e}")),
                }
            }
        }
        Some(other) => return Err(Failure::usage(format!("--rmi {other}: write `all` or `local`")).into()),
    }
    Ok(Exit::Done)
}
