//! From a [`ContainerConfig`](crate::config::ContainerConfig) to a running process.
//!
//! Two halves with plain data between them. [`prepare`] runs in the agent: it reads the image's passwd, compiles the filter,
//! orders the mounts, and answers with a [`LaunchPlan`]. A [`Launcher`] lives in the shim, a small single-threaded process, and
//! carries plans out: cgroup and limits first, then one clone, whose child only makes system calls
//! ([`sys::child`](crate::sys)) until it executes the user's program. Entering a running container is the same twice:
//! [`prepare_exec`], [`Launcher::launch_exec`].
//!
//! What a container gets is Docker's default set (namespaces, mounts, masked paths, capabilities, filter), so that images made for
//! it run unchanged; a user namespace where it is asked for. Absent on purpose: AppArmor and SELinux labels.

mod capabilities;
mod compile;
mod devices;
mod environment;
mod identity;
mod ids;
mod init_layer;
mod launch;
mod limits;
mod mounts;
mod plan;
mod prepare;
mod stdio;
mod sysctls;
mod user;
mod user_namespace;

pub use crate::sys::seal::{is_sealed, sealed_executable};
pub(crate) use capabilities::bit as capability_bit;
pub use ids::IdRange;
pub use init_layer::{create_init_layer, has_init_layer};
pub use launch::{LAUNCH_PATIENCE, LaunchError, LaunchTimes, Launched, Launcher, Launching};
pub use plan::{
    ExecPlan, Identity, LaunchPlan, MountSource, NamespacePlan, PlannedDevice, PlannedMount, ProcessPlan, Propagation,
    RootPlan, Space,
};
pub use prepare::{ExecConfig, PrepareContext, PrepareError, RunningContainer, cgroup_path, prepare, prepare_exec};
pub(crate) use prepare::{cgroup_below, cgroup_root, check_user_namespace};
pub use stdio::{PipeEnds, Stdio};
pub use user::UserError;
pub(crate) use user_namespace::missing as user_namespaces_missing;
