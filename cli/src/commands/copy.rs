//! `cp`: tar streams between a container and here. Packing and unpacking on this side is done by the `tar` library; what is scoped in
//! the container is the node's business.

use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use hyper::Method;
use orch_api::client::Client;

use super::image::chunks;
use super::{act, client, escape};
use crate::args::Cp;
use crate::exit::{Exit, Failure};
use crate::printer;
use crate::settings::Settings;
use crate::stack_file;

/// One side of a copy.
enum Side {
    Inside(String, String),
    Here(PathBuf),
    Stream,
}

/// `NAME:PATH`, a path, or `-`. A colon after a slash belongs to the path.
fn side(text: &str) -> Side {
    if text == "-" {
        return Side::Stream;
    }
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => {
            Side::Inside(name.to_owned(), path.to_owned())
        }
        _ => Side::Here(PathBuf::from(text)),
    }
}

/// `cp` of a stack.
pub(super) async fn stack(settings: &Settings, args: Cp) -> Result<Exit> {
    let stack = stack_file::name(settings)?;
    let client = client(settings)?;
    let containers = async |service: String| -> Result<Vec<String>> {
        let tasks = act::running(&client, &stack, std::slice::from_ref(&service)).await?;
        let found: Vec<String> =
            tasks.into_iter().filter(|t| args.index.is_none_or(|i| i == t.slot)).map(|t| t.status.container).collect();
        if found.is_empty() {
            return Err(Failure::new(Exit::Failed, format!("service {service} has no such running container")).into());
        }
        Ok(found)
    };
    match (side(&args.source), side(&args.destination)) {
        (Side::Inside(service, path), to) => {
            let from = containers(service).await?;
            out(&client, from.first().map_or("", String::as_str), &path, to).await
        }
        (from, Side::Inside(service, path)) => {
            let to = containers(service).await?;
            for container in to {
                into(&client, &from, &container, &path, args.archive).await?;
            }
            Ok(Exit::Done)
        }
        _ => Err(neither().into()),
    }
}

fn neither() -> Failure {
    Failure::usage("one side of a copy must be in a container: NAME:PATH")
}

/// `container cp`.
pub(super) async fn containers(settings: &Settings, archive: bool, source: &str, destination: &str) -> Result<Exit> {
    let client = client(settings)?;
    match (side(source), side(destination)) {
        (Side::Inside(container, path), to) => out(&client, &container, &path, to).await,
        (from, Side::Inside(container, path)) => {
            into(&client, &from, &container, &path, archive).await?;
            Ok(Exit::Done)
        }
        _ => Err(neither().into()),
    }
}

async fn out(client: &Client, container: &str, path: &str, to: Side) -> Result<Exit> {
    let url = format!("/v1/containers/{}/archive?path={}", escape(container), escape(path));
    let mut archive = client.download(&url).await?;
    let destination = match to {
        Side::Inside(..) => return Err(Failure::usage("copying from container to container is not possible").into()),
        Side::Stream => {
            while let Some(bytes) = archive.next().await? {
                printer::bytes(&bytes);
            }
            return Ok(Exit::Done);
        }
        Side::Here(path) => path,
    };
    // The archive goes through a pipe to a thread that unpacks it, so that a large copy needs little memory.
    let (reader, mut writer) = std::io::pipe().context("make a pipe")?;
    let unpack = std::thread::spawn(move || unpack(reader, &destination));
    let mut broken = None;
    loop {
        match archive.next().await {
            Ok(Some(bytes)) => {
                use std::io::Write;
                if writer.write_all(&bytes).is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(e) => {
                broken = Some(e);
                break;
            }
        }
    }
    drop(writer);
    let unpacked = unpack.join().map_err(|_| anyhow::anyhow!("unpacking ended unexpectedly"))?;
    if let Some(e) = broken {
        return Err(e.into());
    }
    unpacked?;
    Ok(Exit::Done)
}

/// Unpacks below the destination. Docker's rule for names: into a directory that exists the source keeps its name, else it takes that
/// of the destination.
fn unpack(reader: impl std::io::Read, destination: &Path) -> Result<()> {
    let into = destination.is_dir();
    let base = if into {
        destination
    } else {
        destination.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    };
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let mut components = path.components().filter(|c| !matches!(c, Component::CurDir));
        let first = components.next();
        let rest: PathBuf = components.collect();
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
        if first.is_some_and(|c| !plain(c)) || !rest.components().all(plain) {
            anyhow::bail!("the archive has the path {}, which leaves the destination", path.display());
        }
        let target = match (into, first) {
            (_, None) => continue,
            (true, Some(first)) => Path::new(first.as_os_str()).join(&rest),
            (false, Some(_)) => {
                let name = destination.file_name().map(PathBuf::from).unwrap_or_default();
                if rest.as_os_str().is_empty() { name } else { name.join(&rest) }
            }
        };
        let kind = entry.header().entry_type();
        if kind.is_fifo() || kind.is_character_special() || kind.is_block_special() {
            printer::say(&format!("warning: {} is left out: it is a pipe or a device", path.display()));
            continue;
        }
        // `unpack_in` follows no link out of the base and refuses `..`; hard links name paths of the archive, so they are taken as they
        // are only when names are kept.
        let header = entry.header().clone();
        if header.entry_type().is_hard_link() && !into {
            let link = entry.link_name()?.map(|l| l.into_owned()).unwrap_or_default();
            let renamed: PathBuf = destination
                .file_name()
                .map(PathBuf::from)
                .unwrap_or_default()
                .join(link.components().skip(1).collect::<PathBuf>());
            std::fs::hard_link(base.join(renamed), base.join(&target))
                .with_context(|| format!("link {}", target.display()))?;
            continue;
        }
        if into {
            entry.unpack_in(base).with_context(|| format!("unpack {}", path.display()))?;
        } else {
            let full = base.join(&target);
            if let Some(parent) = full.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            no_link_above(base, &target)?;
            entry.unpack(&full).with_context(|| format!("unpack {}", full.display()))?;
        }
    }
    Ok(())
}

/// An earlier entry may be a link that leads elsewhere; nothing is written through it.
fn no_link_above(base: &Path, target: &Path) -> Result<()> {
    let mut at = base.to_path_buf();
    let parts: Vec<_> = target.components().collect();
    for part in parts.iter().take(parts.len().saturating_sub(1)) {
        at.push(part);
        if at.symlink_metadata().is_ok_and(|m| m.file_type().is_symlink()) {
            anyhow::bail!("the archive writes through the link {}", at.display());
        }
    }
    Ok(())
}

async fn into(client: &Client, from: &Side, container: &str, path: &str, archive: bool) -> Result<()> {
    let url = |directory: &str| {
        format!("/v1/containers/{}/archive?path={}&owners={archive}", escape(container), escape(directory))
    };
    match from {
        Side::Inside(..) => Err(Failure::usage("copying from container to container is not possible").into()),
        Side::Stream => {
            client.upload::<(), _>(Method::PUT, &url(path), chunks(tokio::io::stdin())).await?;
            Ok(())
        }
        Side::Here(source) => {
            source.symlink_metadata().with_context(|| format!("find {}", source.display()))?;
            let absolute = source.canonicalize().unwrap_or_else(|_| source.clone());
            // `dir/.` means the content of the directory.
            let content = source.to_string_lossy().ends_with("/.");
            let name = absolute.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let asked = format!("/v1/containers/{}/archive/directory?path={}", escape(container), escape(path));
            // Into a directory that exists the source keeps its name; else it takes that of the destination.
            let (directory, name) = if client.get::<bool>(&asked).await? {
                (path.to_owned(), if content { ".".to_owned() } else { name })
            } else {
                let (parent, last) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
                (if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }, last.to_owned())
            };
            let (reader, writer) = std::io::pipe().context("make a pipe")?;
            let (packed, source) = (name, source.clone());
            let pack = std::thread::spawn(move || pack(writer, &source, &packed));
            let file = tokio::fs::File::from_std(std::fs::File::from(std::os::fd::OwnedFd::from(reader)));
            client.upload::<(), _>(Method::PUT, &url(&directory), chunks(file)).await?;
            pack.join().map_err(|_| anyhow::anyhow!("packing ended unexpectedly"))?
        }
    }
}

/// Packs a file or a folder. Sockets are left out: an archive holds none, and without its process one is nothing.
fn pack(writer: impl std::io::Write, source: &Path, name: &str) -> Result<()> {
    let mut builder = tar::Builder::new(writer);
    builder.follow_symlinks(false);
    let mut left = vec![(source.to_owned(), PathBuf::from(name))];
    while let Some((path, name)) = left.pop() {
        let read = || format!("read {}", path.display());
        let kind = path.symlink_metadata().with_context(read)?.file_type();
        if kind.is_socket() {
            printer::say(&format!("warning: {} is left out: it is a socket", path.display()));
            continue;
        }
        builder.append_path_with_name(&path, &name).with_context(read)?;
        if kind.is_dir() {
            for entry in path.read_dir().with_context(read)? {
                let entry = entry.with_context(read)?;
                left.push((entry.path(), name.join(entry.file_name())));
            }
        }
    }
    builder.finish()?;
    Ok(())
}
