//! `secret …` and `config ls|create|inspect|update|rm`: what people make for stacks that name it as external.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result};
use orch_api::client::Client;
use orch_api::object::{ObjectCreate, ObjectUpdate, ObjectView};
use orch_spec::model::ContentBytes;

use super::volume::labels;
use super::{ago, client, each, escape, service, size};
use crate::args::{ObjectCommand, ServiceWait};
use crate::exit::Exit;
use crate::printer::{self, Format};
use crate::settings::Settings;

/// More than a secret or config may ever have: what is longer is refused by the other side, and need not be read to its end.
const MOST: u64 = 2 << 20;

/// The bytes of a file, or of standard input for `-`.
fn content(file: &str) -> Result<Arc<ContentBytes>> {
    let mut bytes = Vec::new();
    if file == "-" {
        std::io::stdin().lock().take(MOST).read_to_end(&mut bytes).context("read standard input")?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("open {file}"))?;
        opened.take(MOST).read_to_end(&mut bytes).with_context(|| format!("read {file}"))?;
    }
    Ok(Arc::new(ContentBytes(bytes)))
}

/// Waits until the services that use it have what it is now, stack after stack.
async fn followed(settings: &Settings, client: &Client, wait: ServiceWait, made: &ObjectView) -> Result<()> {
    let mut stacks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for id in &made.used_by {
        let found = service::get(client, id).await?.service;
        stacks.entry(found.stack).or_default().insert(found.name);
    }
    for (stack, services) in stacks {
        service::until_done(settings, client, wait, &stack, services, made.changed).await?;
    }
    Ok(())
}

/// Runs one of the verbs. `kind` is `secret` or `config`.
pub(super) async fn run(settings: &Settings, kind: &str, command: ObjectCommand) -> Result<Exit> {
    let client = client(settings)?;
    let all = format!("/v1/{kind}s");
    let path = |name: &str| format!("/v1/{kind}s/{}", escape(name));
    match command {
        ObjectCommand::Ls(list) => {
            let found: Vec<ObjectView> = client.get(&all).await?;
            let cells = |object: &ObjectView| {
                let version = object.version.to_string();
                let used = object.used_by.join(", ");
                vec![object.name.clone(), version, size(object.size), ago(Some(object.updated_at)), used]
            };
            let titles = ["NAME", "VERSION", "SIZE", "UPDATED", "USED BY"];
            let format = Format::parse(&list.format)?;
            printer::listing(&format, settings.quiet, &found, &titles, cells, |object| object.name.clone())?;
        }
        ObjectCommand::Create { label, name, file } => {
            let request = ObjectCreate { name, content: content(&file)?, labels: labels(&label) };
            let made: ObjectView = client.post(&all, &request).await?;
            printer::line(&made.name);
        }
        ObjectCommand::Inspect { names } => {
            return each::inspect(settings, &names, async |name| Ok(client.get::<ObjectView>(&path(name)).await?))
                .await;
        }
        ObjectCommand::Update { wait, name, file } => {
            let made: ObjectView = client.post(&path(&name), &ObjectUpdate { content: content(&file)? }).await?;
            printer::say(&format!("{kind} {name} is version {} now", made.version));
            if !made.used_by.is_empty() && made.changed > 0 {
                printer::say(&format!("its services follow: {}", made.used_by.join(", ")));
                followed(settings, &client, wait, &made).await?;
            }
            printer::line(&made.name);
        }
        ObjectCommand::Rm { names } => {
            return each::each(settings, &names, async |name| {
                client.delete::<()>(&path(name)).await?;
                printer::line(name);
                Ok(())
            })
            .await;
        }
    }
    Ok(Exit::Done)
}
