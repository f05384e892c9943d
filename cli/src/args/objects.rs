//! The grammar of the verbs that work on single objects: containers, images, volumes, networks, the machine.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{AttachOptions, ContainerRun, ExecOptions, ListFormat, LogSelection, ServiceWait};

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ContainerCommand {
    /// Make and start a container
    #[command(disable_help_flag = true)]
    Run(Box<ContainerRun>),
    /// List containers
    #[command(alias = "list", alias = "ps")]
    Ls(ContainerLs),
    /// Show everything about containers
    Inspect {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Show the log
    Logs(ContainerLogs),
    /// Run a command in it
    Exec(ContainerExec),
    /// Attach to it
    Attach {
        #[command(flatten)]
        options: AttachOptions,
        /// Name or id
        container: String,
    },
    /// Start containers
    Start {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Stop containers
    Stop(ContainerStop),
    /// Stop and start containers
    Restart(ContainerStop),
    /// Send a signal
    Kill {
        /// The signal, by name or number
        #[arg(short = 's', long, default_value = "SIGKILL")]
        signal: String,
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Freeze containers
    Pause {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Thaw containers
    Unpause {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Remove containers
    Rm(ContainerRm),
    /// Copy files between a container and here
    Cp {
        /// Keep owners
        #[arg(short = 'a', long)]
        archive: bool,
        /// CONTAINER:PATH or a path here; `-` is a tar stream
        source: String,
        /// CONTAINER:PATH or a path here; `-` is a tar stream
        destination: String,
    },
    /// Show what containers use
    Stats {
        /// Once, instead of again and again
        #[arg(long)]
        no_stream: bool,
        #[command(flatten)]
        list: ListFormat,
        /// Names or ids; default: all that run
        containers: Vec<String>,
    },
    /// Show its processes
    Top {
        /// Name or id
        container: String,
    },
    /// Wait until containers have exited and print their codes
    Wait {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Remove all stopped containers that belong to no stack
    Prune {
        /// Do not ask
        #[arg(short = 'f', long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ContainerLs {
    /// Those that do not run, too
    #[arg(short = 'a', long)]
    pub all: bool,
    #[command(flatten)]
    pub list: ListFormat,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerLogs {
    #[command(flatten)]
    pub select: LogSelection,
    /// Time in front of lines
    #[arg(short = 't', long)]
    pub timestamps: bool,
    /// Name or id
    pub container: String,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerExec {
    #[command(flatten)]
    pub options: ExecOptions,
    /// Keep standard input open
    #[arg(short = 'i', long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Name or id
    pub container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerStop {
    /// Seconds before it is killed
    #[arg(short = 't', long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub timeout: Option<i64>,
    /// Signal instead of its own
    #[arg(short = 's', long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerRm {
    /// Kill it first
    #[arg(short = 'f', long)]
    pub force: bool,
    /// Remove its anonymous volumes too
    #[arg(short = 'v', long)]
    pub volumes: bool,
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ImageCommand {
    /// List images
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Make an image of a tar of a root file system
    Import {
        /// Apply a Dockerfile instruction: CMD, ENTRYPOINT, ENV, WORKDIR, USER, EXPOSE, LABEL, VOLUME, STOPSIGNAL; repeatable
        #[arg(short = 'c', long, value_name = "INSTRUCTION")]
        change: Vec<String>,
        /// A line for the history
        #[arg(short = 'm', long, value_name = "TEXT")]
        message: Option<String>,
        /// What it runs on, such as `linux/arm64` [default: what this host is]
        #[arg(long, value_name = "OS/ARCH")]
        platform: Option<String>,
        /// The tar; `-` reads standard input
        file: String,
        /// Name of the image
        reference: String,
    },
    /// Load images from an archive (docker save, OCI layout)
    Load {
        /// The archive; standard input when absent
        #[arg(short = 'i', long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// Write images into an archive
    Save {
        /// The archive; standard output when absent
        #[arg(short = 'o', long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove images
    Rm {
        /// Even when a container uses it
        #[arg(short = 'f', long)]
        force: bool,
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show everything about images
    Inspect {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Give an image a further name
    Tag {
        /// Name or id
        source: String,
        /// The further name
        target: String,
    },
    /// Show how an image was made
    History {
        #[command(flatten)]
        list: ListFormat,
        /// Name or id
        image: String,
    },
    /// Remove images that nothing uses
    Prune {
        /// Named ones too
        #[arg(short = 'a', long)]
        all: bool,
        /// Do not ask
        #[arg(short = 'f', long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum VolumeCommand {
    /// List volumes
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Make a volume
    Create {
        /// Label KEY=VALUE; repeatable
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// Its name
        name: String,
    },
    /// Show everything about volumes
    Inspect {
        /// Names
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove volumes and what is in them
    Rm {
        /// No error for one that is not there
        #[arg(short = 'f', long)]
        force: bool,
        /// Names
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove anonymous volumes that nothing uses
    Prune {
        /// Named ones too
        #[arg(short = 'a', long)]
        all: bool,
        /// Do not ask
        #[arg(short = 'f', long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ObjectCommand {
    /// List them
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Make one
    Create {
        /// Label KEY=VALUE; repeatable
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// Its name
        name: String,
        /// The file with its content; `-` is standard input
        file: String,
    },
    /// Show everything about some, but never a secret's content
    Inspect {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Give one other content: its next version; waits until the services that use it have it, on a cluster one task after the other
    Update {
        #[command(flatten)]
        wait: ServiceWait,
        /// Its name
        name: String,
        /// The file with its content; `-` is standard input
        file: String,
    },
    /// Remove some that no service uses
    Rm {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum NetworkCommand {
    /// List networks
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Make a network
    Create {
        /// Subnet, 10.9.0.0/24
        #[arg(long, value_name = "CIDR")]
        subnet: Option<String>,
        /// The bridge's address
        #[arg(long, value_name = "IP")]
        gateway: Option<String>,
        /// bridge: each node's containers for themselves; overlay: containers of stacks on all nodes
        #[arg(short = 'd', long, value_name = "DRIVER", default_value = "bridge", value_parser = ["bridge", "overlay"])]
        driver: String,
        /// No way out
        #[arg(long)]
        internal: bool,
        /// With IPv6
        #[arg(long)]
        ipv6: bool,
        /// Label KEY=VALUE; repeatable
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// Its name
        name: String,
    },
    /// Show everything about networks
    Inspect {
        /// Names
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Remove networks
    Rm {
        /// Names
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Take a container onto a further network, while it runs or for its next start
    Connect {
        /// IPv4 address there
        #[arg(long, value_name = "IP")]
        ip: Option<Ipv4Addr>,
        /// IPv6 address there
        #[arg(long, value_name = "IP")]
        ip6: Option<Ipv6Addr>,
        /// Further name there; repeatable
        #[arg(long, value_name = "NAME")]
        alias: Vec<String>,
        /// Full name of the network, as `orch network ls` shows it
        network: String,
        /// Name or id
        container: String,
    },
    /// Take a container off a network
    Disconnect {
        /// No error for one that is not there, or not on it
        #[arg(short = 'f', long)]
        force: bool,
        /// Full name of the network
        network: String,
        /// Name or id
        container: String,
    },
    /// Remove networks that no stack has and nothing uses
    Prune {
        /// Do not ask
        #[arg(short = 'f', long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ContextCommand {
    /// List contexts
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Print the name of the one that commands go to
    Show,
    /// Give a host a name: `orch context create prod --host ssh://root@192.0.2.1`
    Create {
        /// Folder with the client certificate for a tcp:// host; default: as without a context
        #[arg(long, value_name = "DIR")]
        cert_path: Option<PathBuf>,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// The name
        name: String,
    },
    /// Let commands go there when nothing else is said; `default` is this machine
    Use {
        /// Its name
        name: String,
    },
    /// Forget contexts
    Rm {
        /// The current one too
        #[arg(short = 'f', long)]
        force: bool,
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum SystemCommand {
    /// Connect standard input and output with the agent: the far end of `--host ssh://`
    #[command(hide = true)]
    DialStdio,
    /// What the machine and the agent are
    Info {
        /// `text` or `json`
        #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
        format: String,
    },
    /// Disk use
    Df {
        /// `text` or `json`
        #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
        format: String,
    },
    /// Remove what nothing uses
    Prune {
        /// Named images too
        #[arg(short = 'a', long)]
        all: bool,
        /// Volumes too
        #[arg(long)]
        volumes: bool,
        /// Do not ask
        #[arg(short = 'f', long)]
        force: bool,
    },
    /// Check whether this machine has what orch needs
    Doctor {
        /// `text` or `json`
        #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
        format: String,
    },
}
