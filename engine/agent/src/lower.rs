//! Lowers a task to what the engine runs: a pure function of the assignment and the image's defaults.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use orch_engine::config::{
    BlkioLimit, ContainerConfig, ContainerId, Device, InjectedFile, Logging, Mount, MountKind, Namespaces, NetworkNs,
    ProcessConfig, Resources, Seccomp, Share, UserNamespace,
};
use orch_engine::container::merge::{ContainerRequest, MergeError, Merged, merge};
use orch_engine::image::{Healthcheck, ImageConfig};
use orch_spec::assignment::{TaskAssignment, TaskId, TaskNetwork};
use orch_spec::model::{HealthTest, MountSource, NamespaceMode, SeccompProfile, ServiceSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Labels by which the agent finds its containers again. Image labels of this prefix are dropped: an image must not be able to pretend
/// that it is somebody's task.
pub mod label {
    /// Prefix of all of them.
    pub const PREFIX: &str = "orch.";
    /// The stack; absent on containers of none.
    pub const STACK: &str = "orch.stack";
    /// The service.
    pub const SERVICE: &str = "orch.service";
    /// The task.
    pub const TASK: &str = "orch.task";
    /// The replica number.
    pub const SLOT: &str = "orch.slot";
    /// The control plane that had it made.
    pub const CLUSTER: &str = "orch.cluster";
    /// Digest of the specification.
    pub const HASH: &str = "orch.spec-hash";
    /// Prefix of Compose's own labels, which tools look for.
    pub const COMPOSE: &str = "com.docker.compose.";
}

/// What lowering needs beside the task.
#[derive(Debug, Clone)]
pub struct LowerContext<'a> {
    /// Identity of the container to make.
    pub id: ContainerId,
    /// The image's id and defaults.
    pub image_id: &'a str,
    /// See `image_id`.
    pub image: &'a ImageConfig,
    /// Containers of the tasks whose namespaces can be joined.
    pub containers: &'a BTreeMap<TaskId, ContainerId>,
    /// The host's names, for containers in its network.
    pub host: HostNames,
    /// Mounts that other containers lend it (`volumes_from`).
    pub lent: Vec<Mount>,
    /// The task whose network this one shares, with its container: they have one set of names.
    pub network_owner: Option<(&'a TaskAssignment, ContainerId)>,
    /// What `host-gateway` in `extra_hosts` means for this container.
    pub host_gateway: Option<IpAddr>,
    /// Content of /etc/resolv.conf.
    pub resolv_conf: String,
    /// Volumes that are a path of the host under a name (`type: none`, `o: bind`): full name → path.
    pub bound_volumes: &'a BTreeMap<String, PathBuf>,
    /// The control plane that has it made.
    pub cluster: &'a str,
    /// Now, ns since the epoch.
    pub now: i64,
    /// It is removed with its end.
    pub ephemeral: bool,
}

/// What the host calls itself and others.
#[derive(Debug, Clone, Default)]
pub struct HostNames {
    /// Its own name.
    pub hostname: String,
    /// Its /etc/hosts.
    pub hosts: String,
}

/// What is wrong with a task so that no container can be made of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// The service and the image's defaults do not go together.
    #[error("{0}")]
    Merge(#[from] MergeError),
    /// A namespace of a task that has no container.
    #[error("{what} of task {task} cannot be joined: it has no container")]
    NoOwner {
        /// `network`, `pid`, `ipc`.
        what: &'static str,
        /// The task.
        task: TaskId,
    },
    /// A kind of mount that this version does not carry out.
    #[error("mounts of type `{kind}` (at {target}) are not supported")]
    MountKind {
        /// As the file says it.
        kind: String,
        /// Path inside.
        target: String,
    },
    /// A named volume that the control plane did not resolve.
    #[error("volume `{0}` is not declared")]
    Volume(String),
    /// CDI devices need an injector that orch does not have.
    #[error("device `{0}` is a CDI name, which is not supported; give a path below /dev")]
    Cdi(String),
}

/// Docker's code for all of them: the engine could not start the container.
pub const LOWER_EXIT_CODE: i32 = 125;

/// What the agent must find again about a container after a restart: stored with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallerData {
    /// Its health probe, image and file brought together.
    pub healthcheck: Option<Healthcheck>,
    /// When it was made, ns since the epoch.
    pub created_at: i64,
}

/// The container for a task.
///
/// # Errors
/// See [`LowerError`].
pub fn lower(task: &TaskAssignment, context: &LowerContext<'_>) -> Result<ContainerConfig, LowerError> {
    let spec = &*task.spec;
    let hostname = hostname(task, context);
    let merged = merged(task, context)?;
    let caller = CallerData { healthcheck: merged.healthcheck.clone(), created_at: context.now };
    Ok(ContainerConfig {
        id: context.id.clone(),
        name: task.container_name.clone(),
        group: if task.stack.is_empty() { "containers".to_owned() } else { task.stack.clone() },
        image: spec.image.clone(),
        image_id: context.image_id.to_owned(),
        etc_hosts: Some(etc_hosts(task, &hostname, context)),
        process: process(task, &merged),
        hostname,
        domainname: spec.domainname.clone().unwrap_or_default(),
        namespaces: Namespaces {
            // A namespace of netd's is given at every start, since it is made then.
            network: if task.network == TaskNetwork::Host { NetworkNs::Host } else { NetworkNs::None },
            pid: share("pid", &spec.pid, task.pid_of.as_ref(), context)?,
            ipc: share("ipc", &spec.ipc, task.ipc_of.as_ref(), context)?,
            uts: own_or_host(&spec.uts),
            cgroup: own_or_host(&spec.cgroup),
        },
        user_namespace: match spec.userns_mode {
            NamespaceMode::Private => UserNamespace::Auto,
            _ => UserNamespace::Host,
        },
        mounts: merged.mounts,
        files: files(task),
        etc_resolv_conf: Some(context.resolv_conf.clone()),
        resources: resources(spec),
        devices: devices(spec)?,
        device_cgroup_rules: spec.device_cgroup_rules.clone(),
        sysctls: spec.sysctls.clone(),
        privileged: spec.privileged,
        systempaths_unconfined: spec.security_opt.systempaths_unconfined,
        read_only: spec.read_only,
        shm_size: spec.shm_size.and_then(|s| s.limit()).unwrap_or(0),
        init: spec.init.unwrap_or(false),
        stop_signal: merged.stop_signal,
        stop_timeout: stop_seconds(spec),
        logging: logging(spec),
        labels: labels(task, context.cluster, merged.labels),
        annotations: spec.annotations.clone(),
        auto_remove: false,
        ephemeral: context.ephemeral,
        // Plain data: it always serialises.
        caller: serde_json::to_value(caller).unwrap_or_default(),
    })
}

/// The service over the image's defaults.
fn merged(task: &TaskAssignment, context: &LowerContext<'_>) -> Result<Merged, LowerError> {
    let spec = &*task.spec;
    let reserved = |key: &String| key.starts_with(label::PREFIX) || key.starts_with(label::COMPOSE);
    let request = ContainerRequest {
        entrypoint: spec.entrypoint.clone(),
        command: spec.command.clone(),
        env: spec
            .environment
            .iter()
            .map(|(k, v)| v.as_ref().map_or_else(|| k.clone(), |v| format!("{k}={v}")))
            .collect(),
        working_dir: spec.working_dir.clone(),
        user: spec.user.clone(),
        stop_signal: spec.stop_signal.clone(),
        healthcheck: spec.healthcheck.as_ref().map(health),
        labels: spec.labels.iter().filter(|(k, _)| !reserved(k)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        mounts: mounts(task, context)?,
        tty: spec.tty,
    };
    let own = request.mounts.len();
    let mut merged: Merged = merge(&request, context.image, String::new)?;
    for mount in merged.mounts.iter_mut().skip(own) {
        if let MountKind::Volume { name, .. } = &mut mount.kind {
            *name = anonymous_volume(task, &mount.target);
        }
    }
    Ok(merged)
}

fn health(check: &orch_spec::model::Healthcheck) -> Healthcheck {
    let nanos = |d: Option<orch_spec::model::Duration>| d.and_then(|d| u64::try_from(d.as_nanos()).ok()).unwrap_or(0);
    Healthcheck {
        test: match &check.test {
            HealthTest::Inherit => Vec::new(),
            HealthTest::Disabled => vec!["NONE".to_owned()],
            HealthTest::Command(args) => ["CMD".to_owned()].into_iter().chain(args.iter().cloned()).collect(),
            HealthTest::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
        },
        interval: nanos(check.interval),
        timeout: nanos(check.timeout),
        start_period: nanos(check.start_period),
        start_interval: nanos(check.start_interval),
        retries: check.retries.map_or(0, u64::from),
    }
}

/// Whole seconds of grace, rounded up so that half a second is not "at once".
fn stop_seconds(spec: &ServiceSpec) -> i64 {
    let nanos = spec.stop_timeout().as_nanos();
    nanos.div_euclid(1_000_000_000) + i64::from(nanos.rem_euclid(1_000_000_000) > 0)
}

/// Host name inside: the file's, that of whose network it is in, else the short id (Docker's rule).
fn hostname(task: &TaskAssignment, context: &LowerContext<'_>) -> String {
    let named = |task: &TaskAssignment, id: &ContainerId| match (&task.spec.hostname, &task.network) {
        (Some(name), _) => name.clone(),
        (None, TaskNetwork::Host) if !context.host.hostname.is_empty() => context.host.hostname.clone(),
        (None, _) => id.short().to_owned(),
    };
    match &context.network_owner {
        Some((owner, id)) if task.spec.hostname.is_none() => named(owner, id),
        _ => named(task, &context.id),
    }
}

fn process(task: &TaskAssignment, merged: &Merged) -> ProcessConfig {
    let spec = &*task.spec;
    ProcessConfig {
        // Whoever runs one container by hand feeds it by hand: the end of that input is the end of its input.
        stdin_once: spec.stdin_open && (task.one_off || task.stack.is_empty()),
        group_add: spec.group_add.clone(),
        stdin_open: spec.stdin_open,
        cap_add: spec.cap_add.clone(),
        cap_drop: spec.cap_drop.clone(),
        no_new_privileges: spec.security_opt.no_new_privileges.unwrap_or(false),
        seccomp: match &spec.security_opt.seccomp {
            Some(SeccompProfile::Unconfined) => Seccomp::Unconfined,
            Some(SeccompProfile::Profile(text)) => Seccomp::Profile(text.clone()),
            Some(SeccompProfile::Builtin) | None => Seccomp::Default,
        },
        ulimits: spec.ulimits.iter().map(|(name, limit)| (name.clone(), (limit.soft, limit.hard))).collect(),
        oom_score_adj: spec.oom_score_adj.unwrap_or(0),
        ..merged.process.clone()
    }
}

fn addresses(task: &TaskAssignment) -> Vec<IpAddr> {
    match &task.network {
        TaskNetwork::Endpoints { endpoints, .. } => {
            endpoints.iter().flat_map(|e| [e.ipv4.map(IpAddr::V4), e.ipv6.map(IpAddr::V6)]).flatten().collect()
        }
        TaskNetwork::None | TaskNetwork::Host | TaskNetwork::Task(_) => Vec::new(),
    }
}

/// What every container's /etc/hosts begins with.
const LOOPBACK_HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
     ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// /etc/hosts as Docker writes it: the loop-back lines, the container's own addresses, then `extra_hosts`. In the host's network the
/// host's takes the place of the first two; in another container's network its addresses and hosts are ours too.
fn etc_hosts(task: &TaskAssignment, hostname: &str, context: &LowerContext<'_>) -> String {
    use std::fmt::Write;
    let owner = context.network_owner.as_ref().map(|(owner, _)| *owner);
    let network = owner.unwrap_or(task);
    let mut text = match (&network.network, context.host.hosts.as_str()) {
        (TaskNetwork::Host, hosts) if !hosts.is_empty() => hosts.trim_end_matches('\n').to_owned() + "\n",
        _ => LOOPBACK_HOSTS.to_owned(),
    };
    let names = match task.spec.domainname.as_ref().or(network.spec.domainname.as_ref()) {
        Some(domain) => format!("{hostname}.{domain} {hostname}"),
        // One with its domain in it is found by its first part too.
        None => match hostname.split_once('.') {
            Some((first, _)) => format!("{hostname} {first}"),
            None => hostname.to_owned(),
        },
    };
    // Writing to a string cannot fail.
    for address in addresses(network) {
        let _ = writeln!(text, "{address}\t{names}");
    }
    for (host, targets) in owner.into_iter().chain([task]).flat_map(|task| &task.spec.extra_hosts) {
        for target in targets {
            match (target.as_str(), context.host_gateway) {
                ("host-gateway", Some(gateway)) => {
                    let _ = writeln!(text, "{gateway}\t{host}");
                }
                ("host-gateway", None) => {}
                (address, _) => {
                    let _ = writeln!(text, "{address}\t{host}");
                }
            }
        }
    }
    text
}

/// A namespace that cannot be joined; the loader says so where a file asks for it.
fn own_or_host(mode: &NamespaceMode) -> Share {
    if *mode == NamespaceMode::Host { Share::Host } else { Share::Private }
}

fn share(
    what: &'static str,
    mode: &NamespaceMode,
    of: Option<&TaskId>,
    context: &LowerContext<'_>,
) -> Result<Share, LowerError> {
    Ok(match mode {
        NamespaceMode::Default | NamespaceMode::Private | NamespaceMode::Shareable => Share::Private,
        NamespaceMode::None => Share::None,
        NamespaceMode::Host => Share::Host,
        // Of no stack: the id itself.
        NamespaceMode::Container(id) if of.is_none() => Share::Container(ContainerId(id.clone())),
        NamespaceMode::Service(name) | NamespaceMode::Container(name) => {
            let task = of.cloned().unwrap_or_else(|| TaskId::from(name.as_str()));
            let owner = context.containers.get(&task).ok_or(LowerError::NoOwner { what, task })?;
            Share::Container(owner.clone())
        }
    })
}

fn mounts(task: &TaskAssignment, context: &LowerContext<'_>) -> Result<Vec<Mount>, LowerError> {
    let spec = &*task.spec;
    let mut mounts = Vec::new();
    for mount in &spec.volumes {
        let target = mount.target.clone();
        let kind = match &mount.source {
            MountSource::Volume { name, nocopy, subpath, .. } => {
                let subpath = subpath.clone().unwrap_or_default();
                let name = match name {
                    Some(key) => task.volumes.get(key).cloned().ok_or_else(|| LowerError::Volume(key.clone()))?,
                    None => anonymous_volume(task, &target),
                };
                match context.bound_volumes.get(&name) {
                    Some(path) => bind(path.join(subpath.trim_start_matches('/'))),
                    None => MountKind::Volume { name, nocopy: *nocopy, subpath },
                }
            }
            MountSource::Bind { path, create_host_path, propagation, recursive, .. } => MountKind::Bind {
                source: PathBuf::from(path),
                create_host_path: *create_host_path,
                propagation: propagation.clone().unwrap_or_default(),
                recursive: recursive.as_deref() != Some("disabled"),
            },
            MountSource::Tmpfs { size, mode } => {
                let size = size.and_then(|s| s.limit()).map(|s| format!("size={s}"));
                let mode = mode.map(|m| format!("mode={m:o}"));
                MountKind::Tmpfs { options: size.into_iter().chain(mode).collect::<Vec<_>>().join(",") }
            }
            MountSource::Image { .. } => return Err(LowerError::MountKind { kind: "image".into(), target }),
            MountSource::Other { kind, .. } => return Err(LowerError::MountKind { kind: kind.clone(), target }),
        };
        mounts.push(Mount { target, kind, read_only: mount.read_only });
    }
    for tmpfs in &spec.tmpfs {
        let kind = MountKind::Tmpfs { options: tmpfs.options.join(",") };
        mounts.push(Mount { target: tmpfs.target.clone(), kind, read_only: false });
    }
    // Its own come first; of two lenders the first (Docker's rule).
    for lent in &context.lent {
        if !mounts.iter().any(|mount| mount.target.trim_end_matches('/') == lent.target.trim_end_matches('/')) {
            mounts.push(lent.clone());
        }
    }
    Ok(mounts)
}

/// What a container lends of its mounts: those that outlive it.
pub fn lent(mounts: &[Mount], read_only: bool) -> impl Iterator<Item = Mount> {
    let lasting = |mount: &&Mount| !matches!(mount.kind, MountKind::Tmpfs { .. });
    mounts.iter().filter(lasting).map(move |mount| {
        let mut lent = Mount { read_only: mount.read_only || read_only, ..mount.clone() };
        if let MountKind::Volume { nocopy, .. } = &mut lent.kind {
            // Whoever has it for its own fills it.
            *nocopy = true;
        }
        lent
    })
}

/// A volume that is a path of the host: the path must be there, as mount(8) wants it.
fn bind(source: PathBuf) -> MountKind {
    MountKind::Bind { source, create_host_path: false, propagation: String::new(), recursive: true }
}

/// Name of an anonymous volume: 64 hex digits, derived from the slot and the path, so that a new container of the slot takes over what
/// the former one wrote (Compose's rule). A one-off, a container of no stack and `-V` start with an empty one.
pub fn anonymous_volume(task: &TaskAssignment, target: &str) -> String {
    let fresh = task.one_off || task.stack.is_empty() || task.renew_anonymous_volumes;
    let owner = if fresh { task.id.as_str() } else { "" };
    let mut hasher = Sha256::new();
    for part in [owner, &task.stack, &task.service, &task.slot.to_string(), target.trim_end_matches('/')] {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Secrets and configs of a task, as the engine wants them; given again at every start, since they live on a tmpfs only.
pub fn files(task: &TaskAssignment) -> Vec<InjectedFile> {
    task.files
        .iter()
        .map(|file| InjectedFile {
            target: file.target.clone(),
            content: file.content.0.clone(),
            digest: file.digest.clone(),
            uid: file.uid,
            gid: file.gid,
            mode: file.mode,
            secret: file.secret,
        })
        .collect()
}

fn resources(spec: &ServiceSpec) -> Resources {
    let from = spec.resources();
    let mut blkio = Vec::new();
    if let Some(config) = &from.blkio {
        let mut add = |kind: &str, path: &String, value: u64| {
            blkio.push(BlkioLimit { path: path.clone(), kind: kind.to_owned(), value });
        };
        config.weight_device.iter().for_each(|(path, weight)| add("weight", path, u64::from(*weight)));
        config.device_read_bps.iter().for_each(|(path, rate)| add("read_bps", path, *rate));
        config.device_write_bps.iter().for_each(|(path, rate)| add("write_bps", path, *rate));
        config.device_read_iops.iter().for_each(|(path, rate)| add("read_iops", path, *rate));
        config.device_write_iops.iter().for_each(|(path, rate)| add("write_iops", path, *rate));
    }
    Resources {
        nano_cpus: from.cpus.map(|c| c.0),
        cpu_period: from.cpu_period,
        cpu_quota: from.cpu_quota,
        cpu_shares: from.cpu_shares,
        cpuset: from.cpuset,
        memory: from.memory.and_then(|m| m.limit()),
        memory_swap: from.memory_swap.map(|m| m.0),
        memory_reservation: from.reserved_memory.and_then(|m| m.limit()),
        memory_swappiness: from.memory_swappiness.map(u64::from),
        oom_kill_disable: spec.oom_kill_disable,
        pids: from.pids,
        blkio_weight: from.blkio.and_then(|b| b.weight),
        blkio,
        cgroup_parent: spec.cgroup_parent.clone(),
    }
}

fn devices(spec: &ServiceSpec) -> Result<Vec<Device>, LowerError> {
    spec.devices
        .iter()
        .map(|device| {
            if device.is_cdi() {
                return Err(LowerError::Cdi(device.source.clone()));
            }
            Ok(Device {
                source: device.source.clone(),
                target: if device.target.is_empty() { device.source.clone() } else { device.target.clone() },
                permissions: if device.permissions.is_empty() { "rwm".to_owned() } else { device.permissions.clone() },
            })
        })
        .collect()
}

fn logging(spec: &ServiceSpec) -> Logging {
    let mut logging = Logging::default();
    let Some(from) = &spec.logging else { return logging };
    logging.none = from.driver.as_deref() == Some("none");
    if let Some(size) = from.options.get("max-size").and_then(|text| text.parse::<orch_spec::model::ByteSize>().ok()) {
        logging.max_size = size.limit().unwrap_or(0);
    }
    if let Some(files) = from.options.get("max-file").and_then(|text| text.parse().ok()) {
        logging.max_file = std::cmp::max(files, 1);
    }
    logging
}

fn labels(task: &TaskAssignment, cluster: &str, mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.insert(label::TASK.to_owned(), task.id.to_string());
    labels.insert(label::HASH.to_owned(), task.spec_hash.clone());
    if !task.stack.is_empty() {
        labels.insert(label::CLUSTER.to_owned(), cluster.to_owned());
        labels.insert(label::STACK.to_owned(), task.stack.clone());
        labels.insert(label::SERVICE.to_owned(), task.service.clone());
        labels.insert(label::SLOT.to_owned(), task.slot.to_string());
        let mut compose = |key: &str, value: &str| labels.insert(format!("{}{key}", label::COMPOSE), value.to_owned());
        compose("project", &task.stack);
        compose("service", &task.service);
        compose("container-number", &task.slot.to_string());
        compose("oneoff", if task.one_off { "True" } else { "False" });
        compose("config-hash", &task.spec_hash);
    }
    labels
}
