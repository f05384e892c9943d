//! The grammar of the cluster's verbs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ListFormat;

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ClusterCommand {
    /// Open this host's cluster of one to other hosts; nothing that runs is touched
    Init(ClusterInit),
    /// Make this host a node of another host's cluster
    Join(ClusterJoin),
    /// Leave the cluster: what it runs here ends, volumes and images stay
    Leave {
        /// Also when nobody can be told, as the last node, or with data that is nowhere else
        #[arg(long)]
        force: bool,
    },
    /// Print a token that another host joins with
    Token(ClusterToken),
    /// Show the cluster as this host sees it
    #[command(alias = "status")]
    Info {
        /// `text` or `json`
        #[arg(long, value_name = "FORMAT", default_value = "text")]
        format: String,
    },
    /// List the hosts of the cluster
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Certificates of people and programs that reach the cluster from elsewhere
    #[command(subcommand)]
    Client(ClientCommand),
}

#[derive(Debug, Args)]
pub(crate) struct ClusterInit {
    /// Where other hosts reach this one; default: the address of the default route
    #[arg(long, value_name = "IP[:PORT]")]
    pub advertise_addr: Option<String>,
    /// Where to listen; default: all addresses, the port of --advertise-addr
    #[arg(long, value_name = "IP[:PORT]")]
    pub listen_addr: Option<String>,
    /// Life of the nodes' certificates, which renew themselves (168h)
    #[arg(long, value_name = "TIME")]
    pub cert_expiry: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterJoin {
    /// The token, as `orch cluster token` on a manager prints it; `-` reads standard input
    #[arg(long, value_name = "TOKEN", env = "ORCH_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Where other hosts reach this one; default: the address that reaches the manager
    #[arg(long, value_name = "IP[:PORT]")]
    pub advertise_addr: Option<String>,
    /// Where to listen; default: all addresses, the port of --advertise-addr
    #[arg(long, value_name = "IP[:PORT]")]
    pub listen_addr: Option<String>,
    /// A manager of the cluster
    #[arg(value_name = "IP[:PORT]")]
    pub manager: String,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterToken {
    /// What the host becomes: `worker` or `manager`
    #[arg(default_value = "worker", value_parser = ["worker", "manager"])]
    pub role: String,
    /// Let no earlier token of this role count any more
    #[arg(long)]
    pub rotate: bool,
    /// Make none; let no token of this role count any more
    #[arg(long, conflicts_with_all = ["rotate", "ttl", "once"])]
    pub revoke: bool,
    /// How long it counts; 0 = for ever
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub ttl: String,
    /// For one host only
    #[arg(long)]
    pub once: bool,
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum ClientCommand {
    /// Make a certificate and write it with its key into a folder
    Create {
        /// Whose
        name: String,
        /// `read`, `deploy` or `admin`
        #[arg(long, default_value = "deploy", value_parser = ["read", "deploy", "admin"])]
        role: String,
        /// How long it counts
        #[arg(long, value_name = "TIME", default_value = "2160h")]
        ttl: String,
        /// Folder to write ca.pem, cert.pem and key.pem into; default: one of the client's name
        #[arg(short = 'o', long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// List certificates
    #[command(alias = "list")]
    Ls(ListFormat),
    /// Let certificates count no more
    #[command(alias = "revoke")]
    Rm {
        /// Names, as `ls` shows them; without what follows the dot, all of that name
        #[arg(required = true)]
        names: Vec<String>,
    },
}
