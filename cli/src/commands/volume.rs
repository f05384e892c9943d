//! `volume …`: the volumes of this node.

use std::collections::BTreeMap;

use anyhow::Result;
use orch_api::node::{PruneRequest, Pruned, VolumeView};

use super::{client, confirmed, escape, size};
use crate::args::VolumeCommand;
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// `KEY=VALUE` texts as a map.
pub fn labels(texts: &[String]) -> BTreeMap<String, String> {
    texts
        .iter()
        .map(|text| text.split_once('=').unwrap_or((text, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Runs one of the verbs.
pub async fn run(settings: &Settings, command: VolumeCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        VolumeCommand::Ls(list) => {
            let volumes: Vec<VolumeView> = client.get("/v1/node/volumes").await?;
            let cells = |v: &VolumeView| vec![v.driver.clone(), v.name.clone(), v.used_by.join(", ")];
            let format = Format::parse(&list.format)?;
            printer::listing(&format, settings.quiet, &volumes, &["DRIVER", "NAME", "USED BY"], cells, |v| v.name.clone())?;
        }
        VolumeCommand::Create { label, name } => {
            let request = VolumeView { name, labels: labels(&label), ..VolumeView::default() };
            let made: VolumeView = client.post("/v1/node/volumes", &request).await?;
            printer::line(&made.name);
        }
        VolumeCommand::Inspect { volumes } => {
            let mut found = Vec::new();
            for name in &volumes {
                found.push(client.get::<VolumeView>(&format!("/v1/node/volumes/{}", escape(name))).await?);
            }
            printer::json_pretty(&found)?;
        }
        VolumeCommand::Rm { force, volumes } => {
            for name in &volumes {
                match client.delete::<()>(&format!("/v1/node/volumes/{}", escape(name))).await {
                    Ok(()) => printer::line(name),
                    Err(orch_api::client::ClientError::Refused(e)) if force && e.code == "not_found" => {}
                    Err(e) => return Err(e.into()),
                }
            }
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

/// Prunes and says what is gone.
pub async fn prune(client: &orch_api::client::Client, request: &PruneRequest) -> Result<()> {
    let pruned: Pruned = client.post("/v1/prune", request).await?;
    pruned.removed.iter().for_each(|name| printer::line(name));
    printer::say(&format!("reclaimed {}", size(pruned.reclaimed)));
    Ok(())
}
