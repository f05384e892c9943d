//! `image …`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::Stream;
use hyper::Method;
use orch_api::client::Client;
use orch_api::node::{ImageView, PruneRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::list::short;
use super::{client, confirmed, each, escape, size};
use crate::args::ImageCommand;
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// Bytes read at once from a file that is sent: the size of a pipe's buffer times four.
const CHUNK: usize = 256 * 1024;

/// A reader as a stream of its bytes.
pub(super) fn chunks<R: AsyncRead + Send + Sync + Unpin + 'static>(
    reader: R,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + Sync + 'static {
    futures_util::stream::try_unfold(reader, |mut reader| async move {
        let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
        let count = reader.read_buf(&mut buffer).await?;
        Ok((count > 0).then(|| (buffer.freeze(), reader)))
    })
}

async fn send<T: serde::de::DeserializeOwned>(client: &Client, path: &str, file: Option<&PathBuf>) -> Result<T> {
    Ok(match file {
        Some(file) => {
            let opened = tokio::fs::File::open(file).await.with_context(|| format!("open {}", file.display()))?;
            client.upload(Method::POST, path, chunks(opened)).await?
        }
        None => client.upload(Method::POST, path, chunks(tokio::io::stdin())).await?,
    })
}

/// Runs one of the verbs.
pub(super) async fn run(settings: &Settings, command: ImageCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        ImageCommand::Ls(list) => {
            let images: Vec<ImageView> = client.get("/v1/images").await?;
            let cells = |i: &ImageView| {
                let names = if i.references.is_empty() { "<none>".to_owned() } else { i.references.join(", ") };
                vec![names, short(&i.id, list.no_trunc), i.created.clone(), size(i.size), i.containers.to_string()]
            };
            let titles = ["IMAGE", "ID", "CREATED", "SIZE", "USED BY"];
            printer::listing(&Format::parse(&list.format)?, settings.quiet, &images, &titles, cells, |i| i.id.clone())?;
        }
        ImageCommand::Import { change, message, platform, file, reference } => {
            let mut path = format!("/v1/images/import?reference={}", escape(&reference));
            change.iter().for_each(|c| path.push_str(&format!("&change={}", escape(c))));
            message.iter().for_each(|m| path.push_str(&format!("&message={}", escape(m))));
            platform.iter().for_each(|p| path.push_str(&format!("&platform={}", escape(p))));
            let file = (file != "-").then(|| PathBuf::from(file));
            let image: ImageView = send(&client, &path, file.as_ref()).await?;
            printer::line(&image.id);
        }
        ImageCommand::Load { input } => {
            let images: Vec<ImageView> = send(&client, "/v1/images/load", input.as_ref()).await?;
            for image in images {
                let name = image.references.first().cloned().unwrap_or_else(|| image.id.clone());
                printer::line(&format!("loaded image: {name}"));
            }
        }
        ImageCommand::Save { output, images } => save(&client, output, &images).await?,
        ImageCommand::Rm { force, images } => {
            return each::each(settings, &images, async |image| {
                let path = format!("/v1/image?name={}&force={force}", escape(image));
                let gone: Vec<String> = client.delete(&path).await?;
                gone.iter().for_each(|line| printer::line(line));
                Ok(())
            })
            .await;
        }
        ImageCommand::Inspect { images } => {
            return each::inspect(settings, &images, async |image| {
                Ok(client.get::<serde_json::Value>(&format!("/v1/image?name={}", escape(image))).await?)
            })
            .await;
        }
        ImageCommand::Tag { source, target } => {
            let path = format!("/v1/image/tag?name={}&target={}", escape(&source), escape(&target));
            client.post::<()>(&path, &()).await?;
        }
        ImageCommand::History { list, image } => {
            let path = format!("/v1/image/history?name={}", escape(&image));
            let layers: Vec<serde_json::Value> = client.get(&path).await?;
            let text = |v: &serde_json::Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
            let cells = |v: &serde_json::Value| {
                vec![
                    text(v, "created"),
                    text(v, "created_by"),
                    size(v["size"].as_u64().unwrap_or(0)),
                    text(v, "comment"),
                ]
            };
            let titles = ["CREATED", "CREATED BY", "SIZE", "COMMENT"];
            printer::listing(&Format::parse(&list.format)?, settings.quiet, &layers, &titles, cells, |v| {
                text(v, "created_by")
            })?;
        }
        ImageCommand::Prune { all, force } => {
            let what = if all { "all images that nothing uses" } else { "images without a name that nothing uses" };
            if !force && !confirmed(&format!("Remove {what}?")) {
                return Err(Failure::new(Exit::Failed, "nothing removed").hint("say yes, or use -f").into());
            }
            let request = PruneRequest { images: true, all_images: all, ..PruneRequest::default() };
            super::volume::prune(&client, &request).await?;
        }
    }
    Ok(Exit::Done)
}

async fn save(client: &Client, output: Option<PathBuf>, images: &[String]) -> Result<()> {
    use std::io::IsTerminal;
    let names: Vec<String> = images.iter().map(|i| format!("name={}", escape(i))).collect();
    if output.is_none() && std::io::stdout().is_terminal() {
        return Err(Failure::usage("an archive is not for the terminal").hint("use -o FILE, or a pipe").into());
    }
    let mut archive = client.download(&format!("/v1/images/save?{}", names.join("&"))).await?;
    match output {
        None => {
            while let Some(bytes) = archive.next().await? {
                printer::bytes(&bytes);
            }
        }
        Some(path) => {
            // Complete or not there: written beside and renamed.
            let part = path.with_extension("part");
            let mut file = tokio::fs::File::create(&part).await.with_context(|| format!("make {}", part.display()))?;
            let written = async {
                while let Some(bytes) = archive.next().await? {
                    file.write_all(&bytes).await?;
                }
                file.flush().await?;
                file.sync_all().await?;
                anyhow::Ok(())
            }
            .await;
            if let Err(e) = written {
                let _ = tokio::fs::remove_file(&part).await;
                return Err(e.context(format!("write {}", path.display())));
            }
            tokio::fs::rename(&part, &path).await.with_context(|| format!("name {}", path.display()))?;
        }
    }
    Ok(())
}
