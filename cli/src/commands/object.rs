//! `secret …` and `config ls|create|inspect|update|rm`: what people make for stacks that name it as external.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result};
use orch_api::object::{ObjectCreate, ObjectUpdate, ObjectView};
use orch_spec::model::ContentBytes;

use super::volume::labels;
use super::{ago, client, each, escape, size};
use crate::args::ObjectCommand;
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
        ObjectCommand::Update { name, file } => {
            let changed: ObjectView = client.post(&path(&name), &ObjectUpdate { content: content(&file)? }).await?;
            printer::say(&format!("{kind} {name} is version {} now", changed.version));
            if !changed.used_by.is_empty() {
                printer::say(&format!("its services follow: {}", changed.used_by.join(", ")));
            }
            printer::line(&changed.name);
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
