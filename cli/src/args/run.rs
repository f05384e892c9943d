//! The grammar of `container run`: Docker's options of it, as far as they mean something here. [`crate::later`] answers the others.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use clap::{ArgAction, Args};

#[derive(Debug, Args)]
pub(crate) struct ContainerRun {
    /// In the background; prints the id
    #[arg(short = 'd', long)]
    pub detach: bool,
    /// Keep standard input open
    #[arg(short = 'i', long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Remove it once it has exited
    #[arg(long)]
    pub rm: bool,
    /// Its name
    #[arg(long)]
    pub name: Option<String>,
    /// Write its id into a file that is not there yet
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// never or missing: orch fetches no images from registries
    #[arg(long, value_name = "WHEN")]
    pub pull: Option<String>,
    /// Set a variable, or pass one on; repeatable
    #[arg(short = 'e', long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// Mount: [SOURCE:]TARGET[:OPTIONS]; repeatable
    #[arg(short = 'v', long, value_name = "VOLUME")]
    pub volume: Vec<String>,
    /// Mount: type=bind|volume|tmpfs,source=…,target=…[,readonly][,…]; repeatable
    #[arg(long, value_name = "MOUNT")]
    pub mount: Vec<String>,
    /// All mounts of another container: NAME[:ro]; repeatable
    #[arg(long, value_name = "CONTAINER")]
    pub volumes_from: Vec<String>,
    /// Mount a tmpfs; repeatable
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Publish: [[HOST_IP:]HOST_PORT:]PORT[/PROTOCOL]; repeatable
    #[arg(short = 'p', long, value_name = "PORT")]
    pub publish: Vec<String>,
    /// Publish every port that the image and --expose name, each at a free one of the host
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Name a port for --publish-all: PORT[-PORT][/PROTOCOL]; repeatable
    #[arg(long, value_name = "PORT")]
    pub expose: Vec<String>,
    /// `bridge`, `none`, `host`, `container:NAME`, or a network; repeatable for networks
    #[arg(long, value_name = "NETWORK", alias = "net")]
    pub network: Vec<String>,
    /// Further name on its network; repeatable
    #[arg(long, value_name = "NAME", alias = "net-alias")]
    pub network_alias: Vec<String>,
    /// IPv4 address on its network
    #[arg(long, value_name = "IP")]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address on its network
    #[arg(long, value_name = "IP")]
    pub ip6: Option<Ipv6Addr>,
    /// Host name inside
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Domain name inside
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// Hardware address on its network
    #[arg(long, value_name = "MAC")]
    pub mac_address: Option<String>,
    /// Run as this user
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Supplementary group; repeatable
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// In this folder
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Instead of the image's entry point
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Processors
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// Which processors: 0-1,3
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Relative processor weight
    #[arg(short = 'c', long, value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period, instead of --cpus
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// Microseconds of such a period
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// Memory: 512m
    #[arg(short = 'm', long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Memory plus swap; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// Memory that is left to it when memory is short
    #[arg(long, value_name = "BYTES")]
    pub memory_reservation: Option<String>,
    /// Relative weight of its block input and output, 10..1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Parent of its control group
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// Processes
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES")]
    pub shm_size: Option<String>,
    /// Root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability; repeatable
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Drop a capability; repeatable
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=…, systempaths=unconfined; repeatable
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// Everything allowed
    #[arg(long)]
    pub privileged: bool,
    /// Device HOST[:INSIDE[:rwm]]; repeatable
    #[arg(long, value_name = "DEVICE")]
    pub device: Vec<String>,
    /// Rule for devices, such as `c 1:3 mr`; repeatable
    #[arg(long, value_name = "RULE")]
    pub device_cgroup_rule: Vec<String>,
    /// A small init as PID 1
    #[arg(long)]
    pub init: bool,
    /// no, always, on-failure[:N], unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Limit NAME=SOFT[:HARD]; repeatable
    #[arg(long, value_name = "LIMIT")]
    pub ulimit: Vec<String>,
    /// Kernel parameter KEY=VALUE; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub sysctl: Vec<String>,
    /// Label KEY=VALUE; repeatable
    #[arg(short = 'l', long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// File of labels; repeatable
    #[arg(long, value_name = "FILE")]
    pub label_file: Vec<String>,
    /// Host entry HOST:IP; repeatable
    #[arg(long, value_name = "HOST:IP")]
    pub add_host: Vec<String>,
    /// Name server; repeatable
    #[arg(long, value_name = "IP")]
    pub dns: Vec<String>,
    /// Domain that names are searched in; repeatable
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Option of the resolver; repeatable
    #[arg(long, value_name = "OPTION", alias = "dns-opt")]
    pub dns_option: Vec<String>,
    /// PID namespace: host or container:NAME
    #[arg(long, value_name = "MODE")]
    pub pid: Option<String>,
    /// IPC namespace: private, host, none, shareable or container:NAME
    #[arg(long, value_name = "MODE")]
    pub ipc: Option<String>,
    /// UTS namespace: host
    #[arg(long, value_name = "MODE")]
    pub uts: Option<String>,
    /// Cgroup namespace: private or host
    #[arg(long, value_name = "MODE")]
    pub cgroupns: Option<String>,
    /// User namespace: host, or auto for one with ids of its own
    #[arg(long, value_name = "MODE")]
    pub userns: Option<String>,
    /// Signal that stops it
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds before it is killed
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub stop_timeout: Option<i64>,
    /// Annotation KEY=VALUE; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Where its output is kept: json-file, or none
    #[arg(long, value_name = "DRIVER")]
    pub log_driver: Option<String>,
    /// Log option KEY=VALUE; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub log_opt: Vec<String>,
    /// -1000..1000
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub oom_score_adj: Option<i64>,
    /// Health probe run by a shell
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between probes
    #[arg(long, value_name = "DURATION")]
    pub health_interval: Option<String>,
    /// Time that a probe may take
    #[arg(long, value_name = "DURATION")]
    pub health_timeout: Option<String>,
    /// Time after the start in which failures do not count
    #[arg(long, value_name = "DURATION")]
    pub health_start_period: Option<String>,
    /// Time between probes in that time
    #[arg(long, value_name = "DURATION")]
    pub health_start_interval: Option<String>,
    /// Without the image's health probe
    #[arg(long, conflicts_with = "health_cmd")]
    pub no_healthcheck: bool,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "N")]
    pub health_retries: Option<u32>,
    /// Keys that detach
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
    /// Pass signals on to it [default: true]
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, hide_default_value = true)]
    pub sig_proxy: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,
    /// The image
    pub image: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
