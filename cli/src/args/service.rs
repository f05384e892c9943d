//! The grammar of the verbs about nodes, services and tasks.

use clap::{Args, Subcommand, ValueEnum};

use super::{ListFormat, LogSelection, LogStyle};

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum NodeCommand {
    /// List the nodes
    #[command(alias = "list")]
    Ls(ListFormat),
    /// List the tasks on nodes
    Ps {
        #[command(flatten)]
        list: ListFormat,
        /// Ids or host names
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Show everything about nodes
    Inspect {
        /// Ids or host names
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Change a node's labels or whether it takes tasks
    Update(NodeUpdateArgs),
    /// Move all tasks away from nodes and wait until they are gone
    Drain {
        /// Do not wait
        #[arg(short = 'd', long)]
        detach: bool,
        /// Give up waiting after so many seconds (exit code 124)
        #[arg(long, value_name = "SECONDS")]
        wait_timeout: Option<u64>,
        /// Ids or host names
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make nodes managers
    Promote {
        /// Ids or host names
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make managers workers
    Demote {
        /// Ids or host names
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Remove nodes from the cluster for good; what they ran is made elsewhere
    Rm {
        /// Also when they still answer, or have data that is nowhere else
        #[arg(short = 'f', long)]
        force: bool,
        /// Ids or host names
        #[arg(required = true)]
        nodes: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NodeUpdateArgs {
    /// Set a label, KEY=VALUE; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub label_add: Vec<String>,
    /// Take a label away; repeatable
    #[arg(long, value_name = "KEY")]
    pub label_rm: Vec<String>,
    /// Whether it takes tasks
    #[arg(long, value_enum)]
    pub availability: Option<AvailabilityArg>,
    /// What it is for
    #[arg(long, value_enum)]
    pub role: Option<RoleArg>,
    /// Id or host name
    pub node: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AvailabilityArg {
    /// It takes tasks
    Active,
    /// No new ones
    Pause,
    /// None; those that it has go elsewhere
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    Manager,
    Worker,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ServiceCommand {
    /// List the services of all stacks
    #[command(alias = "list")]
    Ls(ListFormat),
    /// List the tasks of services
    Ps {
        #[command(flatten)]
        list: ListFormat,
        /// Names: STACK_SERVICE, or SERVICE when only one stack has it
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Show everything about services
    Inspect {
        /// Names
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Show the logs of a service's tasks
    Logs {
        #[command(flatten)]
        selection: LogSelection,
        #[command(flatten)]
        style: LogStyle,
        /// Name
        service: String,
    },
    /// Set numbers of replicas, SERVICE=N
    Scale {
        #[command(flatten)]
        wait: ServiceWait,
        /// SERVICE=N
        #[arg(required = true, value_name = "SERVICE=N")]
        services: Vec<String>,
    },
    /// Change a service as it was applied
    Update(Box<ServiceUpdateArgs>),
    /// Make a service what it was before its last change
    Rollback {
        #[command(flatten)]
        wait: ServiceWait,
        /// Name
        service: String,
    },
    /// Say where a service's tasks could go, and why they are not elsewhere
    Explain {
        /// `text` or `json`
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: String,
        /// SERVICE or SERVICE.SLOT
        service: String,
    },
    /// Remove services with their tasks
    Rm {
        /// Names
        #[arg(required = true)]
        services: Vec<String>,
    },
}

#[derive(Debug, Default, Clone, Copy, Args)]
pub(crate) struct ServiceWait {
    /// Do not wait until it is done
    #[arg(short = 'd', long)]
    pub detach: bool,
    /// Give up waiting after so many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS")]
    pub wait_timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceUpdateArgs {
    #[command(flatten)]
    pub wait: ServiceWait,
    /// Another image
    #[arg(long)]
    pub image: Option<String>,
    /// Another number of replicas
    #[arg(long)]
    pub replicas: Option<u32>,
    /// Set a variable; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub env_add: Vec<String>,
    /// Take a variable away; repeatable
    #[arg(long, value_name = "KEY")]
    pub env_rm: Vec<String>,
    /// Add a constraint such as `node.labels.disk == ssd`; repeatable
    #[arg(long, value_name = "CONSTRAINT")]
    pub constraint_add: Vec<String>,
    /// Take a constraint away; repeatable
    #[arg(long, value_name = "CONSTRAINT")]
    pub constraint_rm: Vec<String>,
    /// Tasks at a time; 0 = all
    #[arg(long, value_name = "N")]
    pub update_parallelism: Option<u32>,
    /// Rest after each, such as 10s
    #[arg(long, value_name = "DURATION")]
    pub update_delay: Option<String>,
    /// `stop-first` or `start-first`
    #[arg(long, value_name = "ORDER")]
    pub update_order: Option<String>,
    /// `pause`, `continue` or `rollback`
    #[arg(long, value_name = "ACTION")]
    pub update_failure_action: Option<String>,
    /// New containers although nothing changed
    #[arg(long)]
    pub force: bool,
    /// Go back to what it was before its last change
    #[arg(long)]
    pub rollback: bool,
    /// Name: STACK_SERVICE, or SERVICE when only one stack has it
    pub service: String,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum TaskCommand {
    /// List all tasks
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Say why a task is where and as it is
    Why {
        /// `text` or `json`
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: String,
        /// Id, or name of its container
        task: String,
    },
}
