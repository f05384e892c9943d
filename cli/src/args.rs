//! What can be typed: the grammar of the command line, nothing else. What was meant is worked out in [`crate::settings`] and the commands.

mod cluster;
mod objects;
mod run;
mod service;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use cluster::{ClientCommand, ClusterCommand, ClusterInit, ClusterJoin, ClusterToken};
pub(crate) use objects::{
    ContainerCommand, ContainerLogs, ContainerLs, ContainerRm, ContainerStop, ContextCommand, ImageCommand,
    NetworkCommand, ObjectCommand, SystemCommand, VolumeCommand,
};
pub(crate) use run::ContainerRun;
pub(crate) use service::{
    AvailabilityArg, NodeCommand, NodeUpdateArgs, RoleArg, ServiceCommand, ServiceUpdateArgs, ServiceWait, TaskCommand,
};

/// Stacks of containers, on one host or many, from one file.
#[derive(Debug, Parser)]
#[command(
    name = "orch",
    version,
    disable_help_subcommand = false,
    infer_long_args = false,
    after_help = "Start with `orch up -d --wait` beside a stack.yaml or compose.yaml; `orch plan` says what it would do.\n\
                  Exit codes: 0 done, 1 failed, 2 wrong usage or stack file, 10 `plan` found changes, 124 deadline passed,\n\
                  125/126/127 container not started / command not executable / not found, 128+N died of signal N."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of the options that say which stack is meant.
pub(crate) const STACK_OPTIONS: &str = "Which stack";
const COMMON_OPTIONS: &str = "Options of every command";

/// Options that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Stack file; repeat to merge several; `-` reads standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", help_heading = STACK_OPTIONS)]
    pub files: Vec<String>,
    /// Name of the stack; default: the file's `name`, else its folder's
    #[arg(short = 'p', long, value_name = "NAME", help_heading = STACK_OPTIONS)]
    pub project_name: Option<String>,
    /// Folder that relative paths start from; default: that of the first file
    #[arg(long, global = true, value_name = "DIR", help_heading = STACK_OPTIONS)]
    pub project_directory: Option<PathBuf>,
    /// Turn on a profile; repeatable, `*` for all
    #[arg(long = "profile", global = true, value_name = "NAME", help_heading = STACK_OPTIONS)]
    pub profiles: Vec<String>,
    /// File of variables for interpolation, instead of `.env`; after `container run` and `container exec`: for what runs there; repeatable
    #[arg(long = "env-file", global = true, value_name = "FILE", help_heading = STACK_OPTIONS)]
    pub env_files: Vec<String>,
    /// Accepted as Compose's, and without effect: each node does at most 16 things at once
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, help_heading = COMMON_OPTIONS)]
    pub parallel: Option<i32>,
    /// The agent to talk to: unix://PATH, tcp://HOST:PORT with the client certificate in $ORCH_CERT_PATH, or ssh://[USER@]HOST[:PORT];
    /// default: $ORCH_HOST, else the context
    #[arg(long, global = true, value_name = "URL", help_heading = COMMON_OPTIONS)]
    pub host: Option<String>,
    /// The host of this name, made by `orch context create`; default: $ORCH_CONTEXT, else what `orch context use` chose
    #[arg(long, global = true, value_name = "NAME", help_heading = COMMON_OPTIONS)]
    pub context: Option<String>,
    /// How to show progress
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t = ProgressMode::Auto,
        env = "ORCH_PROGRESS",
        help_heading = COMMON_OPTIONS
    )]
    pub progress: ProgressMode,
    /// When to use colour
    #[arg(long, alias = "ansi", global = true, value_enum, default_value_t = ColorMode::Auto, help_heading = COMMON_OPTIONS)]
    pub color: ColorMode,
    /// Say only what is asked for: names and ids
    #[arg(short = 'q', long, global = true, help_heading = COMMON_OPTIONS)]
    pub quiet: bool,
    /// Show what would be done and do nothing, with the verbs that change a stack; refused where it would not be kept
    #[arg(long, global = true, help_heading = COMMON_OPTIONS)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    Auto,
    Tty,
    Plain,
    Json,
    Quiet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorMode {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Make the host match the stack file and show the logs
    Up(Up),
    /// Stop and remove what `up` made
    Down(Down),
    /// Say what `up` would do, and why; exit code 10 when there is something to do
    Plan(Plan),
    /// Check the stack file and print the merged, canonical model; or manage configs that stacks name as external
    Config(Config),
    /// List the stack's containers
    Ps(Ps),
    /// Show the logs of services
    Logs(Logs),
    /// Run a command in a running container of a service
    Exec(Exec),
    /// Run a one-off container of a service
    Run(Run),
    /// Make the containers without starting them
    Create(Create),
    /// Start containers that exist
    Start(Start),
    /// Stop containers without removing them
    Stop(Stop),
    /// Stop and start containers; on a cluster as many of a service at a time as an update replaces
    Restart(Restart),
    /// Send a signal to the containers of services
    Kill(Kill),
    /// Freeze the containers of services
    Pause(Services),
    /// Thaw them
    Unpause(Services),
    /// Remove stopped containers of services
    Rm(Rm),
    /// Attach to a service's running container
    Attach(Attach),
    /// Print the host's address of a published port
    Port(Port),
    /// Show the processes of the stack's containers
    Top(Services),
    /// Show what the stack's containers use
    Stats(Stats),
    /// Show what happens, as it happens
    Events(Events),
    /// Copy files between a container and here
    Cp(Cp),
    /// Wait until services' containers have exited
    Wait(Wait),
    /// Set the number of replicas
    Scale(Scale),
    /// List stacks
    Ls(Ls),
    /// List the images that the stack's containers use
    Images(ListFormat),
    /// Draw the stack's dependency graph
    Graph(Graph),
    /// Containers, one by one
    #[command(subcommand)]
    Container(Box<ContainerCommand>),
    /// Images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Secrets that stacks name as external
    #[command(subcommand)]
    Secret(ObjectCommand),
    /// Networks
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Several hosts as one
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Nodes of the cluster
    #[command(subcommand)]
    Node(NodeCommand),
    /// Services, one by one
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Tasks, one by one
    #[command(subcommand)]
    Task(TaskCommand),
    /// Names for hosts that commands can go to
    #[command(subcommand)]
    Context(ContextCommand),
    /// This machine
    #[command(subcommand)]
    System(SystemCommand),
    /// Run the node agent in the foreground
    Agent(Agent),
    /// Print a completion script
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one page a command into a folder
    Man {
        /// Folder to write into
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Explain an error code of a stack file, such as ORCH0107
    Explain {
        /// The code
        code: String,
    },
    /// Print the version
    Version {
        /// Only the number
        #[arg(long)]
        short: bool,
        /// `json` for programs
        #[arg(long, value_name = "FORMAT")]
        format: Option<String>,
    },
}

#[derive(Debug, Default, Args)]
pub(crate) struct UpCommon {
    /// Make all containers anew
    #[arg(long)]
    pub force_recreate: bool,
    /// Keep containers even when their configuration changed
    #[arg(long, conflicts_with = "force_recreate")]
    pub no_recreate: bool,
    /// Make containers of dependencies anew too
    #[arg(long, conflicts_with = "no_recreate")]
    pub always_recreate_deps: bool,
    /// Start anonymous volumes empty
    #[arg(short = 'V', long)]
    pub renew_anon_volumes: bool,
    /// Leave the services alone that the named ones depend on
    #[arg(long)]
    pub no_deps: bool,
    /// Remove containers of services that the file no longer has
    #[arg(long)]
    pub remove_orphans: bool,
    /// Replicas of a service, SERVICE=N; repeatable
    #[arg(long, value_name = "SERVICE=N")]
    pub scale: Vec<String>,
    /// Seconds before a container that must go is killed
    #[arg(short = 't', long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub timeout: Option<i64>,
    /// When to look for images elsewhere: only `missing` and `never` have a meaning while there is no registry client
    #[arg(long, value_name = "POLICY")]
    pub pull: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub common: UpCommon,
    /// Go on in the background
    #[arg(short = 'd', long)]
    pub detach: bool,
    /// Wait until everything runs and is healthy, or has done its one-shot work; implies -d
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after so many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS")]
    pub wait_timeout: Option<u64>,
    /// Make everything, start nothing
    #[arg(long)]
    pub no_start: bool,
    /// Stop everything when one container has exited
    #[arg(long, conflicts_with = "detach")]
    pub abort_on_container_exit: bool,
    /// Stop everything when one container has failed
    #[arg(long, conflicts_with = "detach")]
    pub abort_on_container_failure: bool,
    /// Exit with the code of this service's container; implies --abort-on-container-exit
    #[arg(long, value_name = "SERVICE", conflicts_with = "detach")]
    pub exit_code_from: Option<String>,
    /// Show logs of these services only; repeatable
    #[arg(long, value_name = "SERVICE")]
    pub attach: Vec<String>,
    /// Show no logs of these services; repeatable
    #[arg(long, value_name = "SERVICE")]
    pub no_attach: Vec<String>,
    /// Show logs of the dependencies too
    #[arg(long)]
    pub attach_dependencies: bool,
    #[command(flatten)]
    pub style: LogStyle,
    /// Build images first (not carried out yet: a named error)
    #[arg(long)]
    pub build: bool,
    /// Do not build images
    #[arg(long, conflicts_with = "build")]
    pub no_build: bool,
    /// Only these services and what they depend on
    pub services: Vec<String>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct LogStyle {
    /// No `service-1 |` in front of lines
    #[arg(long)]
    pub no_log_prefix: bool,
    /// No colour in prefixes
    #[arg(long)]
    pub no_color: bool,
    /// Time in front of lines
    #[arg(long)]
    pub timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// Remove the stack's volumes too, except external ones
    #[arg(short = 'v', long)]
    pub volumes: bool,
    /// Remove images: `all`, or `local` for those without a name of their own
    #[arg(long, value_name = "WHICH")]
    pub rmi: Option<String>,
    /// Remove containers of services that the file no longer has
    #[arg(long)]
    pub remove_orphans: bool,
    /// Seconds before a container is killed
    #[arg(short = 't', long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub timeout: Option<i64>,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub common: UpCommon,
    /// `text` or `json`
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub format: String,
    /// Only these services and what they depend on
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Config {
    /// What is done with configs that people make; without it, the stack file is checked
    #[command(subcommand)]
    pub command: Option<ObjectCommand>,
    /// `yaml` or `json`
    #[arg(long, value_name = "FORMAT", default_value = "yaml", value_parser = ["yaml", "json"])]
    pub format: String,
    /// Only the names of the services
    #[arg(id = "only-services", long = "services")]
    pub services: bool,
    /// Only the names of the images
    #[arg(id = "only-images", long = "images")]
    pub images: bool,
    /// Only the names of the volumes
    #[arg(id = "only-volumes", long = "volumes")]
    pub volumes: bool,
    /// Only the names of the networks
    #[arg(id = "only-networks", long = "networks")]
    pub networks: bool,
    /// Only the names of the profiles
    #[arg(id = "only-profiles", long = "profiles")]
    pub profiles: bool,
    /// Print each service's hash: `*` or a list with commas
    #[arg(long, value_name = "SERVICES")]
    pub hash: Option<String>,
    /// Write into this file
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Leave variables as they are
    #[arg(long)]
    pub no_interpolate: bool,
    /// Only these services
    pub only: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ListFormat {
    /// `table`, `json`, or a template such as `{{.Name}}`
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Full ids
    #[arg(long)]
    pub no_trunc: bool,
}

/// The states of a container, as `ps` shows them.
const STATES: [&str; 12] = [
    "pending",
    "assigned",
    "preparing",
    "created",
    "starting",
    "running",
    "paused",
    "restarting",
    "stopping",
    "exited",
    "failed",
    "removed",
];

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Those that do not run, too
    #[arg(short = 'a', long)]
    pub all: bool,
    /// Only names of services
    #[arg(long = "services")]
    pub only_services: bool,
    /// Only containers in this state; repeatable
    #[arg(long, value_name = "STATE", value_parser = STATES)]
    pub status: Vec<String>,
    #[command(flatten)]
    pub list: ListFormat,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogSelection {
    /// Go on as lines come
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Only the last N lines of each container, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub tail: String,
    /// Not before: a time, or how long ago (10m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Not after
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Go on as lines come (after this verb `-f` means this; the stack file is `--file`)
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Only the last N lines of each container, or `all`
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub tail: String,
    /// Not before: a time, or how long ago (10m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Not after
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Time in front of lines
    #[arg(short = 't', long)]
    pub timestamps: bool,
    /// No `service-1 |` in front of lines
    #[arg(long)]
    pub no_log_prefix: bool,
    /// No colour in prefixes
    #[arg(long)]
    pub no_color: bool,
    /// Only this replica
    #[arg(long, value_name = "N")]
    pub index: Option<u32>,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct ExecOptions {
    /// Do not wait for it
    #[arg(short = 'd', long)]
    pub detach: bool,
    /// Set a variable; repeatable
    #[arg(short = 'e', long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Run as this user
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// In this folder
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// With all capabilities and no filter
    #[arg(long)]
    pub privileged: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub options: ExecOptions,
    /// In this replica
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub index: u32,
    /// Without a terminal
    #[arg(short = 'T', long, alias = "no-TTY")]
    pub no_tty: bool,
    /// Keep standard input open (it is unless you say `--interactive=false`)
    #[arg(short = 'i', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub interactive: bool,
    /// The service
    pub service: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Remove it once it has exited
    #[arg(long)]
    pub rm: bool,
    /// In the background
    #[arg(short = 'd', long)]
    pub detach: bool,
    /// Set a variable; repeatable
    #[arg(short = 'e', long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Instead of the image's entry point
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Set a label; repeatable
    #[arg(short = 'l', long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Its name
    #[arg(long)]
    pub name: Option<String>,
    /// Do not start what the service depends on
    #[arg(long)]
    pub no_deps: bool,
    /// File of variables for it; repeatable
    #[arg(long, value_name = "FILE")]
    pub env_from_file: Vec<String>,
    /// Add a capability; repeatable
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Drop a capability; repeatable
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// Remove containers of services that the file does not have any more
    #[arg(long)]
    pub remove_orphans: bool,
    /// When to look for images elsewhere: see `orch up --help`
    #[arg(long, value_name = "POLICY")]
    pub pull: Option<String>,
    /// Publish a port; repeatable
    #[arg(short = 'p', long, value_name = "PORT")]
    pub publish: Vec<String>,
    /// Publish the service's ports
    #[arg(short = 'P', long)]
    pub service_ports: bool,
    /// Answer to the service's names too
    #[arg(long)]
    pub use_aliases: bool,
    /// Run as this user
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Mount a volume; repeatable
    #[arg(short = 'v', long, value_name = "VOLUME")]
    pub volume: Vec<String>,
    /// In this folder
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Without a terminal
    #[arg(short = 'T', long, alias = "no-TTY")]
    pub no_tty: bool,
    /// Keep standard input open (it is unless you say `--interactive=false`)
    #[arg(short = 'i', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub interactive: bool,
    /// The service
    pub service: String,
    /// Instead of the service's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub common: UpCommon,
    /// Only these services and what they depend on
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Services {
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Wait until everything runs and is healthy
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub wait_timeout: Option<u64>,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Seconds before a container is killed
    #[arg(short = 't', long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub timeout: Option<i64>,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// Seconds before a container is killed
    #[arg(short = 't', long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub timeout: Option<i64>,
    /// Leave the services alone that depend on these
    #[arg(long)]
    pub no_deps: bool,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// The signal, by name or number
    #[arg(short = 's', long, default_value = "SIGKILL")]
    pub signal: String,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Do not ask
    #[arg(short = 'f', long)]
    pub force: bool,
    /// Stop them first
    #[arg(short = 's', long)]
    pub stop: bool,
    /// Remove their anonymous volumes too
    #[arg(short = 'v', long)]
    pub volumes: bool,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// This replica
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub index: u32,
    #[command(flatten)]
    pub options: AttachOptions,
    /// The service
    pub service: String,
}

#[derive(Debug, Default, Args)]
pub(crate) struct AttachOptions {
    /// Without standard input
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the container
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Keys that detach
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
}

#[derive(Debug, Args)]
pub(crate) struct Port {
    /// `tcp` or `udp`, where the port does not say it
    #[arg(long, default_value = "tcp")]
    pub protocol: String,
    /// Of this replica
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub index: u32,
    /// The service
    pub service: String,
    /// The port inside: 80, or 53/udp
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: String,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Once, instead of again and again
    #[arg(long)]
    pub no_stream: bool,
    #[command(flatten)]
    pub list: ListFormat,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// `text` or `json`
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: String,
    /// The same as `--format json`
    #[arg(long)]
    pub json: bool,
    /// Start after this index
    #[arg(long, value_name = "INDEX")]
    pub since_index: Option<u64>,
    /// End with what there is
    #[arg(long)]
    pub no_follow: bool,
    /// Only these services
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// Of this replica
    #[arg(long, value_name = "N")]
    pub index: Option<u32>,
    /// Keep owners
    #[arg(short = 'a', long)]
    pub archive: bool,
    /// Follow links in the source
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// SERVICE:PATH or a path here; `-` is a tar stream
    pub source: String,
    /// SERVICE:PATH or a path here; `-` is a tar stream
    pub destination: String,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Take the stack down when they have exited
    #[arg(long)]
    pub down_project: bool,
    /// These services
    #[arg(required = true)]
    pub services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// Leave the services alone that these depend on
    #[arg(long)]
    pub no_deps: bool,
    /// Wait until they run and are healthy
    #[arg(long)]
    pub wait: bool,
    /// SERVICE=N
    #[arg(required = true, value_name = "SERVICE=N")]
    pub scale: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Those without a running container, too
    #[arg(short = 'a', long)]
    pub all: bool,
    #[command(flatten)]
    pub list: ListFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Graph {
    /// `dot`, `mermaid` or `svg`
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "dot")]
    pub output: String,
}

#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// Where state is kept
    #[arg(long, value_name = "DIR", env = "ORCH_DATA_DIR", default_value = "/var/lib/orch")]
    pub data_dir: PathBuf,
    /// Where sockets and namespaces are
    #[arg(long, value_name = "DIR", env = "ORCH_RUN_DIR", default_value = "/run/orch")]
    pub run_dir: PathBuf,
    /// Name of this agent among several on one kernel
    #[arg(long, value_name = "NAME", env = "ORCH_INSTANCE", default_value = "")]
    pub instance: String,
    /// Go away when nothing has run for so many seconds; 0 = stay
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub idle_exit: u64,
}
