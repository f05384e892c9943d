//! The machine: information, disk use, clearing away, figures of containers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use orch_api::node::{DiskUse, Info, PruneRequest, Pruned, Stats, Top};
use orch_spec::assignment::{DesiredTask, TaskId};

use super::{Answer, blocking, find};
use crate::task::ContainerState;
use crate::{Shared, facts, local, view};

/// `GET openapi.json`.
pub(super) async fn description() -> Json<serde_json::Value> {
    Json(orch_api::openapi::document())
}

/// `GET info`.
pub(super) async fn info(State(shared): State<Arc<Shared>>) -> Answer<Info> {
    blocking(move || {
        let facts = facts(&shared.config, &shared.netd);
        let mut containers = BTreeMap::new();
        for view in view::all(&shared) {
            let word = serde_json::to_value(view.state).ok().and_then(|v| v.as_str().map(str::to_owned));
            *containers.entry(word.unwrap_or_default()).or_insert(0) += 1;
        }
        let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        Ok(Json(Info {
            version: facts.version,
            node: facts.id.0,
            hostname: facts.hostname,
            kernel: kernel.unwrap_or_default(),
            platform: facts.platform,
            cgroup: cgroup_mode(),
            cpus: facts.cpus,
            memory: facts.memory,
            agent_pid: std::process::id(),
            data_dir: shared.config.data_dir.display().to_string(),
            containers,
            images: u32::try_from(shared.engine.images().list()?.len()).unwrap_or(u32::MAX),
        }))
    })
    .await
}

fn cgroup_mode() -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let has = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    match (has("cgroup"), has("cgroup2")) {
        (false, true) => "v2",
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, false) => "none",
    }
    .to_owned()
}

/// `GET df`.
pub(super) async fn disk_use(State(shared): State<Arc<Shared>>) -> Answer<DiskUse> {
    blocking(move || {
        let usage = shared.engine.disk_usage()?;
        let stopped = usage.containers.iter().filter(|c| !c.running);
        Ok(Json(DiskUse {
            images: (usage.images.blobs + usage.images.layers, usage.images.reclaimable),
            containers: (
                usage.containers.iter().map(|c| c.layer + c.log).sum(),
                stopped.map(|c| c.layer + c.log).sum(),
            ),
            volumes: (
                usage.volumes.iter().map(|(_, bytes, _)| bytes).sum(),
                usage.volumes.iter().filter(|(_, _, users)| users.is_empty()).map(|(_, bytes, _)| bytes).sum(),
            ),
        }))
    })
    .await
}

/// `POST prune`.
pub(super) async fn prune(State(shared): State<Arc<Shared>>, Json(request): Json<PruneRequest>) -> Answer<Pruned> {
    let mut pruned = Pruned::default();
    if request.containers {
        for id in stopped(&shared) {
            local::change(&shared, &id, |task| task.desired = DesiredTask::Removed)?;
            let mut version = shared.version.subscribe();
            while shared.lock().observed.tasks.get(&id).is_some_and(|t| t.container.is_some()) {
                if version.changed().await.is_err() {
                    break;
                }
            }
            pruned.removed.push(id.to_string());
        }
    }
    blocking(move || {
        if request.images {
            let images = shared.engine.prune_images(request.all_images)?;
            pruned.reclaimed += images.bytes;
            pruned.removed.extend(images.untagged);
            pruned.removed.extend(images.deleted.iter().map(ToString::to_string));
        }
        if request.volumes {
            let volumes = prune_volumes(&shared, request.all_volumes)?;
            pruned.reclaimed += volumes.bytes;
            let mut state = shared.lock();
            for name in &volumes.volumes {
                state.observed.volumes.remove(name);
            }
            drop(state);
            pruned.removed.extend(volumes.volumes);
        }
        Ok(Json(pruned))
    })
    .await
}

/// Removes volumes that no container mounts and no stack that is up declares.
fn prune_volumes(shared: &Shared, all: bool) -> Result<orch_engine::engine::Pruned, super::Refusal> {
    if !all {
        return Ok(shared.engine.prune_volumes(false)?);
    }
    let kept: std::collections::BTreeSet<String> =
        shared.lock().assignment.volumes.iter().map(|v| v.name.clone()).collect();
    let mut pruned = orch_engine::engine::Pruned::default();
    let usage = shared.engine.disk_usage()?;
    for (volume, bytes, users) in usage.volumes {
        if users.is_empty() && !kept.contains(&volume.name) {
            shared.engine.remove_volume(&volume.name)?;
            pruned.bytes += bytes;
            pruned.volumes.push(volume.name);
        }
    }
    Ok(pruned)
}

/// Containers of no stack that do not run and will not by themselves.
fn stopped(shared: &Arc<Shared>) -> Vec<TaskId> {
    let state = shared.lock();
    let over = |id: &TaskId| {
        state.observed.tasks.get(id).is_some_and(|t| {
            t.activity.is_none()
                && t.container
                    .as_ref()
                    .is_some_and(|c| matches!(c.state, ContainerState::Exited | ContainerState::Created))
        })
    };
    state.locals.keys().filter(|id| over(id)).cloned().collect()
}

/// `GET containers/{id}/stats`: one sample.
pub(super) async fn stats(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<Stats> {
    let container = find(&shared, &id)?;
    blocking(move || {
        let info = shared.engine.inspect(&container)?;
        let stats = shared.engine.stats(&container)?;
        let (net_rx, net_tx) = network_bytes(info.state.pid);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Ok(Json(Stats {
            id: container.0.clone(),
            name: info.config.name.clone(),
            cpu_ns: stats.cpu_ns,
            time_ns: u64::try_from(now).unwrap_or(u64::MAX),
            memory: stats.memory,
            memory_limit: stats.memory_limit.unwrap_or(0),
            pids: stats.pids,
            net_rx,
            net_tx,
            block_read: stats.io_read,
            block_write: stats.io_write,
        }))
    })
    .await
}

/// Bytes received and sent by all interfaces of a process's namespace but `lo` (proc(5), `net/dev`).
fn network_bytes(pid: i32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let mut sum = (0, 0);
    for line in text.lines().skip(2) {
        let Some((name, rest)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let fields: Vec<u64> = rest.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        sum.0 += fields.first().copied().unwrap_or(0);
        sum.1 += fields.get(8).copied().unwrap_or(0);
    }
    sum
}

/// `GET containers/{id}/top`.
pub(super) async fn top(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<Top> {
    let container = find(&shared, &id)?;
    blocking(move || {
        let info = shared.engine.inspect(&container)?;
        let processes = shared.engine.top(&container)?;
        let rows = processes
            .iter()
            .map(|p| {
                let seconds = p.cpu_ms / 1000;
                let time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
                vec![
                    p.uid.to_string(),
                    p.pid.to_string(),
                    p.parent.to_string(),
                    p.state.to_string(),
                    time,
                    p.command.clone(),
                ]
            })
            .collect();
        let titles = ["UID", "PID", "PPID", "STATE", "TIME", "CMD"].map(str::to_owned).to_vec();
        Ok(Json(Top { id: container.0.clone(), name: info.config.name.clone(), titles, processes: rows }))
    })
    .await
}
