//! The agent's half: from a configuration to a plan. Everything that reads what an image holds happens here, bounded, and never in
//! the shim.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::ids::IdRange;
use super::plan::{ExecPlan, Identity, LaunchPlan, NamespacePlan, ProcessPlan, RootPlan, Space};
use super::{capabilities, devices, environment, limits, mounts, sysctls, user};
use crate::cgroup::{self, CgroupError, CgroupPlan, Layout};
use crate::config::{ContainerConfig, ContainerId, NetworkNs, ProcessConfig, Seccomp, Share, UserNamespace};
use crate::seccomp;

/// Linux's limit for host names, without the NUL.
const HOST_NAME_MAX: usize = 64;

/// Why a configuration cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A value that is wrong by itself.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which part of the configuration.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A container whose namespace is to be shared does not run.
    #[error("container {id} does not run, so its {namespace} namespace cannot be shared")]
    NotRunning {
        /// Which container.
        id: ContainerId,
        /// Which namespace.
        namespace: &'static str,
    },
    /// The user could not be found in the image.
    #[error(transparent)]
    User(#[from] user::UserError),
    /// The image's layers or a device could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system-call filter.
    #[error("seccomp")]
    Filter(#[from] seccomp::ProfileError),
    /// The limits.
    #[error("resources")]
    Resources(#[from] CgroupError),
    /// The process to join is gone.
    #[error("the container's process {pid} is not running any more")]
    Gone {
        /// Its number.
        pid: i32,
    },
}

impl PrepareError {
    pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }
}

/// What the engine knows beyond the configuration.
#[derive(Debug, Clone)]
pub struct PrepareContext {
    /// The engine's instance; its groups are below `orch` or `orch-<instance>`. Empty is the default one.
    pub instance: String,
    /// The image's layers, lowest first.
    pub lower: Vec<PathBuf>,
    /// What lies between the image and the container's own layer ([`create_init_layer`](super::create_init_layer)).
    pub init_layer: Option<PathBuf>,
    /// The container's own layer: an existing directory.
    pub upper: PathBuf,
    /// Overlayfs's work directory beside it: existing and empty.
    pub work: PathBuf,
    /// An empty directory that the root is attached to, seen in the container's mount namespace only.
    pub mountpoint: PathBuf,
    /// The generated /etc/hosts.
    pub hosts: Option<PathBuf>,
    /// The generated /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// The generated /etc/hostname.
    pub hostname: Option<PathBuf>,
    /// A directory on a tmpfs that holds `config.files[i]` as the file `i` (decimal), with owner and mode set.
    pub files: Option<PathBuf>,
    /// The directory of each volume that the configuration names.
    pub volumes: BTreeMap<String, PathBuf>,
    /// The first process of each running container whose namespaces the configuration shares.
    pub containers: BTreeMap<ContainerId, Identity>,
    /// The host's control groups ([`Layout::detect`]).
    pub layout: Layout,
}

/// The group that all containers of an instance live in, below each hierarchy's base.
pub(crate) fn cgroup_root(instance: &str) -> String {
    if instance.is_empty() { "orch".to_owned() } else { format!("orch-{}", cgroup_part(instance)) }
}

/// The group that a container lives in, below each hierarchy's base: `orch[-instance]/[parent/]group/short id`.
#[must_use]
pub fn cgroup_path(instance: &str, config: &ContainerConfig) -> String {
    let parent = config.resources.cgroup_parent.as_deref().unwrap_or("");
    // Cleaned: a parent never leads above the engine's own root.
    let parents = parent.split('/').filter(|part| !part.is_empty()).map(cgroup_part);
    let parts: Vec<_> = std::iter::once(cgroup_root(instance))
        .chain(parents)
        .chain([cgroup_part(&config.group), config.id.short().to_owned()])
        .collect();
    parts.join("/")
}

/// The path of a group of this name below that of a group of containers, where they name no other parent.
pub(crate) fn cgroup_below(instance: &str, group: &str, name: &str) -> String {
    format!("{}/{}/{name}", cgroup_root(instance), cgroup_part(group))
}

/// One level's name: no slash, no dots alone, and never one of the kernel's own files, which all have a dot inside.
fn cgroup_part(name: &str) -> String {
    let clean: String = name
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' || letter == '_' { letter } else { '_' })
        .collect();
    if clean.is_empty() { "_".to_owned() } else { clean }
}

/// Compiles a container's configuration.
///
/// # Errors
/// [`PrepareError`]: nothing was changed anywhere.
pub fn prepare(config: &ContainerConfig, context: &PrepareContext) -> Result<LaunchPlan, PrepareError> {
    let namespaces = namespaces(config, context)?;
    let ids = own_ids(config)?;
    let private_uts = namespaces.uts == Space::New;
    let hostname = if config.hostname.is_empty() { config.id.short() } else { &config.hostname };
    if hostname.len() > HOST_NAME_MAX {
        return Err(PrepareError::invalid("hostname", format!("{hostname:?} has more than {HOST_NAME_MAX} bytes")));
    }
    let view = user::View::of_layers(&context.lower, &context.upper, &context.mountpoint)?;
    let user = user::resolve(&view, &config.process.user, &config.process.group_add)?;
    let env = environment::merge(&config.process, hostname, &user.home)?;
    let planned_devices = devices::plan(config)?;
    let confined = !config.privileged && !config.systempaths_unconfined;
    Ok(LaunchPlan {
        id: config.id.to_string(),
        root: RootPlan {
            lower: context.lower.iter().chain(&context.init_layer).cloned().collect(),
            upper: context.upper.clone(),
            work: context.work.clone(),
            mountpoint: context.mountpoint.clone(),
            read_only: config.read_only,
            volatile: !config.is_durable(),
        },
        hostname: private_uts.then(|| hostname.to_owned()),
        domainname: (private_uts && !config.domainname.is_empty()).then(|| config.domainname.clone()),
        mounts: mounts::plan(config, context, &namespaces)?,
        devices: planned_devices.nodes,
        masked: if confined { mounts::masked() } else { Vec::new() },
        read_only_paths: if confined { mounts::read_only() } else { Vec::new() },
        sysctls: sysctls::plan(config, &namespaces)?,
        cgroup: CgroupPlan {
            layout: context.layout.clone(),
            path: cgroup_path(&context.instance, config),
            settings: cgroup::settings(&config.resources, &context.layout)?,
            devices: planned_devices.rules,
        },
        process: process(&config.process, config.privileged, within(ids, user)?, env)?,
        ids,
        init: config.init && namespaces.pid == Space::New,
        namespaces,
    })
}

/// What to execute in a running container.
#[derive(Debug, Clone, Default)]
pub struct ExecConfig {
    /// The process. Environment and limits are added to the container's; an empty user or directory is the container's.
    pub process: ProcessConfig,
    /// All capabilities and no filter.
    pub privileged: bool,
}

/// A container to execute in.
#[derive(Debug, Clone)]
pub struct RunningContainer {
    /// Its first process.
    pub init: Identity,
    /// Its configuration.
    pub config: ContainerConfig,
    /// The engine's instance, as in [`PrepareContext`].
    pub instance: String,
    /// The host's control groups.
    pub layout: Layout,
}

/// Compiles a process for a running container.
///
/// # Errors
/// [`PrepareError`].
pub fn prepare_exec(exec: &ExecConfig, container: &RunningContainer) -> Result<ExecPlan, PrepareError> {
    let config = &container.config;
    let mut asked = exec.process.clone();
    // The container's own settings are the ground; what the caller says comes on top.
    asked.env = config.process.env.iter().chain(&exec.process.env).cloned().collect();
    for (name, value) in &config.process.ulimits {
        asked.ulimits.entry(name.clone()).or_insert(*value);
    }
    for (own, default) in [(&mut asked.user, &config.process.user), (&mut asked.cwd, &config.process.cwd)] {
        if own.is_empty() {
            own.clone_from(default);
        }
    }
    if asked.group_add.is_empty() {
        asked.group_add.clone_from(&config.process.group_add);
    }
    asked.cap_add.extend(config.process.cap_add.iter().cloned());
    asked.cap_drop.extend(config.process.cap_drop.iter().cloned());
    asked.no_new_privileges |= config.process.no_new_privileges;
    asked.seccomp = config.process.seccomp.clone();
    asked.oom_score_adj = config.process.oom_score_adj;
    let hostname = if config.hostname.is_empty() { config.id.short() } else { &config.hostname };
    let view = user::View::of_process(container.init)?;
    let user = user::resolve(&view, &asked.user, &asked.group_add)?;
    let env = environment::merge(&asked, hostname, &user.home)?;
    Ok(ExecPlan {
        id: config.id.to_string(),
        container: container.init,
        ids: config.user_namespace.ids(),
        cgroup: CgroupPlan {
            layout: container.layout.clone(),
            path: cgroup_path(&container.instance, config),
            settings: Vec::new(),
            devices: None,
        },
        process: process(
            &asked,
            exec.privileged || config.privileged,
            within(config.user_namespace.ids(), user)?,
            env,
        )?,
    })
}

fn process(
    config: &ProcessConfig,
    privileged: bool,
    user: user::User,
    env: Vec<String>,
) -> Result<ProcessPlan, PrepareError> {
    let capabilities = capabilities::resolve(&config.cap_add, &config.cap_drop, privileged)?;
    let filter = match &config.seccomp {
        _ if privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(seccomp::default_filter(capabilities)?),
        Seccomp::Profile(text) => Some(seccomp::custom_filter(text, capabilities)?),
    };
    let Some(command) = config.args.first().filter(|command| !command.is_empty()) else {
        return Err(PrepareError::invalid(
            "command",
            "there is nothing to execute: neither the image nor the configuration names a command",
        ));
    };
    if !(-1000..=1000).contains(&config.oom_score_adj) {
        return Err(PrepareError::invalid(
            "oom_score_adj",
            format!("{} is not within -1000..1000", config.oom_score_adj),
        ));
    }
    let cwd = if config.cwd.is_empty() { "/".to_owned() } else { config.cwd.clone() };
    if !cwd.starts_with('/') {
        return Err(PrepareError::invalid("working_dir", format!("{cwd:?} is not an absolute path")));
    }
    Ok(ProcessPlan {
        candidates: environment::candidates(command, &env),
        argv: config.args.clone(),
        env,
        cwd,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        capabilities,
        no_new_privileges: config.no_new_privileges,
        filter,
        limits: limits::plan(&config.ulimits)?,
        oom_score_adj: config.oom_score_adj,
    })
}

/// The ids of the container's own user namespace, with what does not go together with one refused.
fn own_ids(config: &ContainerConfig) -> Result<Option<IdRange>, PrepareError> {
    if config.user_namespace == UserNamespace::Auto {
        return Err(PrepareError::invalid("userns_mode", "no ids have been allotted"));
    }
    check_user_namespace(config)?;
    Ok(config.user_namespace.ids())
}

/// Whether what else is asked for goes together with a user namespace of the container's own.
pub(crate) fn check_user_namespace(config: &ContainerConfig) -> Result<(), PrepareError> {
    if config.user_namespace == UserNamespace::Host {
        return Ok(());
    }
    let refuse = |what: &str, why: &str| {
        let problem = format!("`auto` does not go together with {what}: {why}; leave one of them out");
        Err(PrepareError::invalid("userns_mode", problem))
    };
    if config.privileged {
        return refuse("`privileged`", "it gives powers over the host, which a user namespace takes away");
    }
    let spaces = &config.namespaces;
    if matches!(spaces.pid, Share::Host | Share::Container(_)) {
        return refuse("processes that are shared (`pid`)", "it could neither signal nor look into those of other ids");
    }
    if matches!(spaces.ipc, Share::Host | Share::Container(_)) {
        return refuse("memory that is shared (`ipc`)", "that belongs to other ids");
    }
    Ok(())
}

/// A user that the container's ids have room for.
fn within(ids: Option<IdRange>, user: user::User) -> Result<user::User, PrepareError> {
    let Some(ids) = ids else { return Ok(user) };
    let all = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
    match all.into_iter().find(|id| ids.outside(*id).is_none()) {
        None => Ok(user),
        Some(id) => Err(PrepareError::invalid(
            "user",
            format!("{id} is not among the {} ids of a container with `userns_mode: auto`", IdRange::LENGTH),
        )),
    }
}

fn namespaces(config: &ContainerConfig, context: &PrepareContext) -> Result<NamespacePlan, PrepareError> {
    let space = |share: &Share, namespace: &'static str| match share {
        Share::Private | Share::None => Ok(Space::New),
        Share::Host => Ok(Space::Host),
        Share::Container(id) => match context.containers.get(id) {
            Some(identity) if identity.exists() => Ok(Space::Of(*identity)),
            _ => Err(PrepareError::NotRunning { id: id.clone(), namespace }),
        },
    };
    let asked = &config.namespaces;
    if let NetworkNs::Path(path) = &asked.network
        && !path.is_absolute()
    {
        return Err(PrepareError::invalid("network", format!("{} is not an absolute path", path.display())));
    }
    Ok(NamespacePlan {
        network: asked.network.clone(),
        pid: space(&asked.pid, "pid")?,
        ipc: space(&asked.ipc, "ipc")?,
        uts: space(&asked.uts, "uts")?,
        cgroup: space(&asked.cgroup, "cgroup")?,
    })
}
