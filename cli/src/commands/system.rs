//! `system …`, `version`, `completion`, `man`.

use std::path::Path;

use anyhow::{Context, Result};
use orch_api::cluster::ClusterView;
use orch_api::node::{DiskUse, Info, PruneRequest};
use serde::Serialize;

use super::{client, confirmed, size};
use crate::args::SystemCommand;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{grammar, printer};

/// `version`.
pub(super) fn version(short: bool, format: Option<&str>) -> Result<Exit> {
    let number = env!("CARGO_PKG_VERSION");
    match format {
        Some("json") => printer::json(&serde_json::json!({ "version": number }))?,
        _ if short => printer::line(number),
        _ => printer::line(&format!("orch {number}")),
    }
    Ok(Exit::Done)
}

/// `explain`.
pub(super) fn explain(code: &str) -> Result<Exit> {
    let Some(found) = orch_spec::code::Code::find(code) else {
        return Err(Failure::usage(format!("there is no error code {code}")).hint("codes look like ORCH0107").into());
    };
    printer::line(&format!("{found}: {}", found.explanation().unwrap_or_default()));
    Ok(Exit::Done)
}

/// `completion`.
pub(super) fn completion(shell: clap_complete::Shell) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar::command(), "orch", &mut script);
    printer::bytes(&script);
    Ok(Exit::Done)
}

/// `man`.
pub(super) fn man(dir: Option<&Path>) -> Result<Exit> {
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            clap_mangen::generate_to(grammar::command(), dir)
                .with_context(|| format!("write into {}", dir.display()))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(grammar::command()).render(&mut page)?;
            printer::bytes(&page);
        }
    }
    Ok(Exit::Done)
}

/// The line that says what the host is to others; empty for one that is alone.
fn membership(view: &ClusterView) -> String {
    match (view.open, view.removed) {
        (false, _) => String::new(),
        (true, false) => format!("{} of cluster {}\n", view.role, view.id),
        (true, true) => {
            format!("removed from cluster {}; `orch cluster leave` makes this host one of its own\n", view.id)
        }
    }
}

/// Runs one of the verbs.
pub(super) async fn run(settings: &Settings, command: SystemCommand) -> Result<Exit> {
    match command {
        SystemCommand::Info { format } => {
            let client = client(settings)?;
            let info: Info = client.get("/v1/info").await?;
            if format == "json" {
                printer::json(&info)?;
            } else {
                let states: Vec<String> = info.containers.iter().map(|(state, n)| format!("{n} {state}")).collect();
                printer::line(&format!(
                    "orch {}\nnode {} ({})\nkernel {} {}\ncgroup {}\n{} processors, {} of memory\nagent pid {}, data in {}\n{}containers: {}\nimages: {}",
                    info.version,
                    info.hostname,
                    info.node,
                    info.kernel,
                    info.platform,
                    info.cgroup,
                    info.cpus,
                    size(info.memory),
                    info.agent_pid,
                    info.data_dir,
                    membership(&client.get("/v1/cluster").await?),
                    if states.is_empty() { "none".to_owned() } else { states.join(", ") },
                    info.images
                ));
            }
            Ok(Exit::Done)
        }
        SystemCommand::Df { format } => {
            let usage: DiskUse = client(settings)?.get("/v1/df").await?;
            if format == "json" {
                printer::json(&usage)?;
            } else {
                let row = |name: &str, (total, free): (u64, u64)| vec![name.to_owned(), size(total), size(free)];
                let rows =
                    [row("images", usage.images), row("containers", usage.containers), row("volumes", usage.volumes)];
                printer::out(&printer::table(&["TYPE", "SIZE", "RECLAIMABLE"], &rows));
            }
            Ok(Exit::Done)
        }
        SystemCommand::Prune { all, volumes, force } => {
            let what = match (all, volumes) {
                (true, true) => "stopped containers of no stack, unused images and unused volumes",
                (true, false) => "stopped containers of no stack and unused images",
                (false, true) => "stopped containers of no stack, nameless images and anonymous volumes",
                (false, false) => "stopped containers of no stack and nameless images",
            };
            if !force && !confirmed(&format!("Remove {what}?")) {
                return Err(Failure::new(Exit::Failed, "nothing removed").hint("say yes, or use -f").into());
            }
            let request =
                PruneRequest { containers: true, images: true, all_images: all, volumes, all_volumes: all && volumes };
            super::volume::prune(&client(settings)?, &request).await?;
            Ok(Exit::Done)
        }
        SystemCommand::Doctor { format } => doctor(&format),
        SystemCommand::DialStdio => dial_stdio(settings).await,
    }
}

/// Passes bytes on, both ways, until the agent is done. The other side has ended when standard input has; its last answer may be under
/// way then.
async fn dial_stdio(settings: &Settings) -> Result<Exit> {
    let endpoint = client(settings)?.endpoint().clone();
    let (mut reader, mut writer) = tokio::io::split(endpoint.connect().await.context("connect to the agent")?);
    let up = async {
        tokio::io::copy(&mut tokio::io::stdin(), &mut writer).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut writer).await
    };
    let down = async {
        let mut stdout = tokio::io::stdout();
        tokio::io::copy(&mut reader, &mut stdout).await?;
        tokio::io::AsyncWriteExt::flush(&mut stdout).await
    };
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut down => ended.context("pass the agent's answer on")?,
        ended = &mut up => {
            ended.context("pass the request on")?;
            down.await.context("pass the agent's answer on")?;
        }
    }
    Ok(Exit::Done)
}

/// One finding of the doctor.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    found: String,
    remedy: &'static str,
}

/// Looks at the machine alone: it must help where no agent starts.
fn doctor(format: &str) -> Result<Exit> {
    let findings = findings();
    let bad = findings.iter().filter(|f| !f.ok).count();
    if format == "json" {
        findings.iter().try_for_each(printer::json)?;
    } else {
        for f in &findings {
            printer::line(&format!("{} {}: {}", if f.ok { "ok  " } else { "FAIL" }, f.check, f.found));
            if !f.ok {
                printer::line(&format!("     {}", f.remedy));
            }
        }
    }
    if bad == 0 {
        return Ok(Exit::Done);
    }
    Err(Failure::new(Exit::Failed, format!("{bad} of {} checks failed", findings.len())).into())
}

fn findings() -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut list = Vec::new();
    let mut check = |check, ok, found: String, remedy| list.push(Finding { check, ok, found, remedy });
    let root = nix::unistd::geteuid().is_root();
    check("user", root, if root { "root".into() } else { "not root".into() }, "the agent needs root: use sudo");
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    check(
        "kernel",
        version >= (5, 12),
        release,
        "orch needs Linux 5.12 or newer (mount_setattr); 6.1 and newer are tested",
    );
    let mounts = read("/proc/self/mounts");
    let has = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    let (v1, v2) = (has("cgroup"), has("cgroup2"));
    let cgroup = match (v1, v2) {
        (false, true) => "v2",
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, false) => "none",
    };
    check("control groups", v1 || v2, cgroup.into(), "mount cgroup2 at /sys/fs/cgroup");
    let filesystems = read("/proc/filesystems");
    let overlay = filesystems.lines().any(|l| l.trim_start_matches("nodev").trim() == "overlay");
    let loadable = |module: &str| read("/proc/modules").lines().any(|l| l.starts_with(module));
    check("overlayfs", overlay || loadable("overlay"), presence(overlay), "run `modprobe overlay`");
    for (name, path) in [
        ("network namespaces", "/proc/self/ns/net"),
        ("pid namespaces", "/proc/self/ns/pid"),
        ("ipc namespaces", "/proc/self/ns/ipc"),
        ("uts namespaces", "/proc/self/ns/uts"),
        ("cgroup namespaces", "/proc/self/ns/cgroup"),
    ] {
        let there = Path::new(path).exists();
        check(name, there, presence(there), "this kernel is built without them");
    }
    let seccomp = read("/proc/self/status").contains("Seccomp:");
    check("seccomp", seccomp, presence(seccomp), "this kernel is built without CONFIG_SECCOMP_FILTER");
    let forward = read("/proc/sys/net/ipv4/ip_forward");
    let note = if forward.trim() == "1" { "on" } else { "off; the agent turns it on with the first network" };
    check("forwarding", true, note.to_owned(), "");
    let conntrack = Path::new("/proc/sys/net/netfilter").exists() || loadable("nf_conntrack");
    check("connection tracking", true, presence(conntrack), "");
    list
}

fn presence(there: bool) -> String {
    if there { "there" } else { "missing" }.to_owned()
}
