//! `volume …`: the volumes of this node.

use std::collections::BTreeMap;

use anyhow::Result;
use orch_api::client::{Client, ClientError};
use orch_api::control::{IndexResponse, VolumeCreate, VolumeView as ControlVolume};
use orch_api::error::ErrorDetail;
use orch_api::node::{PruneRequest, Pruned, VolumeView};

use super::{client, confirmed, each, escape, size};
use crate::args::VolumeCommand;
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// `KEY=VALUE` texts as a map.
pub(super) fn labels(texts: &[String]) -> BTreeMap<String, String> {
    texts
        .iter()
        .map(|text| text.split_once('=').unwrap_or((text, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Runs one of the verbs.
pub(super) async fn run(settings: &Settings, command: VolumeCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        VolumeCommand::Ls(list) => {
            let volumes: Vec<VolumeView> = client.get("/v1/node/volumes").await?;
            let cells = |v: &VolumeView| vec![v.driver.clone(), v.name.clone(), v.used_by.join(", ")];
            let format = Format::parse(&list.format)?;
            printer::listing(&format, settings.quiet, &volumes, &["DRIVER", "NAME", "USED BY"], cells, |v| {
                v.name.clone()
            })?;
        }
        VolumeCommand::Create { label, name } => {
            // The control plane must know it, so that stacks can name it as external; the node makes it.
            let request = VolumeCreate { name: name.clone(), labels: labels(&label), ..VolumeCreate::default() };
            match client.post::<ControlVolume>("/v1/volumes", &request).await {
                Ok(_) => {}
                // Made twice is made, as in Docker.
                Err(ClientError::Refused(e)) if e.code == "conflict" => {}
                Err(e) => return Err(e.into()),
            }
            until(&client, &name, true).await?;
            printer::line(&name);
        }
        VolumeCommand::Inspect { volumes } => {
            return each::inspect(settings, &volumes, async |name| {
                Ok(client.get::<VolumeView>(&format!("/v1/node/volumes/{}", escape(name))).await?)
            })
            .await;
        }
        VolumeCommand::Rm { force, volumes } => {
            return each::each(settings, &volumes, async |name| {
                match remove(&client, name).await {
                    Ok(()) => printer::line(name),
                    Err(ClientError::Refused(e)) if force && e.code == "not_found" => {}
                    Err(e) => return Err(e.into()),
                }
                Ok(())
            })
            .await;
        }
        VolumeCommand::Prune { all, force } => {
            let what = if all { "all volumes that nothing uses" } else { "anonymous volumes that nothing uses" };
            if !force && !confirmed(&format!("Remove {what}?")) {
                return Err(Failure::new(Exit::Failed, "nothing removed").hint("say yes, or use -f").into());
            }
            let request = PruneRequest { volumes: true, all_volumes: all, ..PruneRequest::default() };
            prune(&client, &request).await?;
        }
    }
    Ok(Exit::Done)
}

/// Removes a volume: where the control plane knows it, through it; else from the node alone.
async fn remove(client: &Client, name: &str) -> Result<(), ClientError> {
    // The node knows who mounts it; the control plane would only find out afterwards.
    let view: VolumeView = client.get(&format!("/v1/node/volumes/{}", escape(name))).await?;
    if let Some(user) = view.used_by.first() {
        let message = format!("volume {name} is in use by container {user}");
        return Err(ClientError::Refused(ErrorDetail::new("in_use", message).with_hint("remove its containers first")));
    }
    match client.delete::<IndexResponse>(&format!("/v1/volumes/{}", escape(name))).await {
        Ok(_) => until(client, name, false).await,
        Err(ClientError::Refused(e)) if e.code == "not_found" => {
            client.delete::<()>(&format!("/v1/node/volumes/{}", escape(name))).await
        }
        Err(e) => Err(e),
    }
}

/// Waits until the node has a volume, or has it no more.
async fn until(client: &Client, name: &str, there: bool) -> Result<(), ClientError> {
    let path = format!("/v1/node/volumes/{}", escape(name));
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        match client.get::<VolumeView>(&path).await {
            Ok(_) if there => return Ok(()),
            Err(ClientError::Refused(e)) if e.code == "not_found" && !there => return Ok(()),
            Ok(_) | Err(ClientError::Refused(_)) if tokio::time::Instant::now() < deadline => {}
            Ok(_) | Err(ClientError::Refused(_)) => {
                let message = format!("the node has not dealt with volume {name} within 30 s");
                return Err(ClientError::Refused(ErrorDetail::new("timeout", message)));
            }
            Err(e) => return Err(e),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Prunes and says what is gone.
pub(super) async fn prune(client: &orch_api::client::Client, request: &PruneRequest) -> Result<()> {
    let pruned: Pruned = client.post("/v1/prune", request).await?;
    pruned.removed.iter().for_each(|name| printer::line(name));
    printer::say(&format!("reclaimed {}", size(pruned.reclaimed)));
    Ok(())
}
