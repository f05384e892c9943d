//! What was meant: globals and environment worked out once, before any command runs.

use std::io::IsTerminal;
use std::path::PathBuf;

use orch_api::client::Endpoint;
use orch_api::cluster::PORT;
use orch_api::tls::{Credentials, MANAGER_NAME, Trust, client_config};

use crate::args::{ColorMode, Global, ProgressMode};
use crate::contexts::{Context, Contexts, DEFAULT};
use crate::exit::Failure;

/// Default of `ORCH_DATA_DIR`.
const DATA_DIR: &str = "/var/lib/orch";
/// Default of `ORCH_RUN_DIR`.
const RUN_DIR: &str = "/run/orch";

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A line a resource, redrawn in place.
    Tty,
    /// One line a change.
    Plain,
    /// One JSON object a change.
    Json,
    /// Nothing.
    Quiet,
}

/// Settings of one run of the command line.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Stack files as typed; empty = look for one.
    pub files: Vec<String>,
    /// Name of the stack as typed.
    pub project_name: Option<String>,
    /// Where relative paths start.
    pub project_directory: Option<PathBuf>,
    /// Profiles that are on.
    pub profiles: Vec<String>,
    /// Variable files instead of `.env`.
    pub env_files: Vec<String>,
    /// Those of `--env-file` alone.
    pub typed_env_files: Vec<String>,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Another host's agent instead.
    pub remote: Option<Endpoint>,
    /// Whether to start an agent where none listens: only for the default socket, an explicit `--host` names one that must be there.
    pub start_agent: bool,
    /// For an agent that is started.
    pub data_dir: PathBuf,
    /// See `data_dir`.
    pub run_dir: PathBuf,
    /// See `data_dir`.
    pub instance: String,
    /// How progress is shown.
    pub progress: Progress,
    /// Colour on stdout.
    pub color_stdout: bool,
    /// Colour on stderr.
    pub color_stderr: bool,
    /// Only names and ids.
    pub quiet: bool,
    /// Change nothing.
    pub dry_run: bool,
}

impl Settings {
    /// Works the settings out.
    ///
    /// # Errors
    /// When `--host` names something that this version cannot reach.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let run_dir = variable("ORCH_RUN_DIR").map_or_else(|| PathBuf::from(RUN_DIR), PathBuf::from);
        let data_dir = variable("ORCH_DATA_DIR").map_or_else(|| PathBuf::from(DATA_DIR), PathBuf::from);
        let target = target(global)?;
        let (socket, remote) = match &target {
            None => (run_dir.join("orch.sock"), None),
            Some(target) => match target.host.strip_prefix("unix://") {
                Some(path) if path.starts_with('/') => (PathBuf::from(path), None),
                _ => (PathBuf::new(), Some(remote(target)?)),
            },
        };
        let start_agent = target.is_none();
        let stderr = std::io::stderr().is_terminal();
        let dumb = variable("TERM").is_some_and(|term| term == "dumb");
        let color = |terminal: bool| match global.color {
            ColorMode::Always => true,
            ColorMode::Never => false,
            ColorMode::Auto => terminal && !dumb && variable("NO_COLOR").is_none(),
        };
        let progress = match global.progress {
            _ if global.quiet => Progress::Quiet,
            ProgressMode::Tty => Progress::Tty,
            ProgressMode::Plain => Progress::Plain,
            ProgressMode::Json => Progress::Json,
            ProgressMode::Quiet => Progress::Quiet,
            ProgressMode::Auto if stderr && !dumb => Progress::Tty,
            ProgressMode::Auto => Progress::Plain,
        };
        let list = |name: &str, separator: char| -> Vec<String> {
            let text = std::env::var(name).unwrap_or_default();
            text.split(separator).map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
        };
        let or = |typed: &[String], fallback: Vec<String>| if typed.is_empty() { fallback } else { typed.to_vec() };
        Ok(Self {
            files: global.files.clone(),
            project_name: global.project_name.clone(),
            project_directory: global.project_directory.clone(),
            profiles: or(&global.profiles, list("COMPOSE_PROFILES", ',')),
            typed_env_files: global.env_files.clone(),
            env_files: or(&global.env_files, list("COMPOSE_ENV_FILES", ',')),
            socket,
            remote,
            start_agent,
            data_dir,
            run_dir,
            instance: std::env::var("ORCH_INSTANCE").unwrap_or_default(),
            progress,
            color_stdout: color(std::io::stdout().is_terminal()),
            color_stderr: color(stderr),
            quiet: global.quiet,
            dry_run: global.dry_run,
        })
    }

    /// Whether this can be a host at all; nothing is connected to.
    ///
    /// # Errors
    /// When it cannot.
    pub(crate) fn check_host(host: &str) -> Result<(), Failure> {
        let absolute = host.strip_prefix("unix://").is_some_and(|path| path.starts_with('/'));
        let named = host.strip_prefix("tcp://").is_some_and(|address| !address.is_empty());
        if absolute || named { Ok(()) } else { ssh(host).map(drop) }
    }
}

/// Where commands go; `None` = this machine.
///
/// # Errors
/// When two are named, or one that is not there.
fn target(global: &Global) -> Result<Option<Context>, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let host = |host: String| Some(Context { host, ..Context::default() });
    match (&global.host, &global.context) {
        (Some(_), Some(_)) => return Err(Failure::usage("--host and --context exclude each other")),
        (Some(typed), None) => return Ok(host(typed.clone())),
        (None, Some(name)) if name == DEFAULT => return Ok(None),
        (None, Some(name)) => return Ok(Contexts::read()?.find(name)?.cloned()),
        (None, None) => {}
    }
    if let Some(named) = variable("ORCH_HOST") {
        return Ok(host(named));
    }
    let known = Contexts::read()?;
    let name = variable("ORCH_CONTEXT").unwrap_or_else(|| known.current.clone());
    Ok(known.find(&name)?.cloned())
}

/// Another host: `tcp://` with a client certificate, or `ssh://` with whatever ssh has.
fn remote(target: &Context) -> Result<Endpoint, Failure> {
    let host = target.host.as_str();
    if let Some(address) = host.strip_prefix("tcp://") {
        let address = address.trim_end_matches('/');
        let has_port = address.rsplit_once(':').is_some_and(|(before, port)| {
            port.parse::<u16>().is_ok() && (!before.contains(':') || before.ends_with(']'))
        });
        let address = if has_port { address.to_owned() } else { format!("{address}:{PORT}") };
        let folder = target.cert_path.clone().unwrap_or_else(certificates);
        let prepared = Credentials::read(&folder).and_then(|own| {
            let trust = Trust::Authority(own.authority.clone());
            client_config(trust, Some(&own))
        });
        let config = prepared.map_err(|e| {
            let source = std::error::Error::source(&e).map(|s| format!(": {s}")).unwrap_or_default();
            Failure::usage(format!("--host {host} needs a client certificate, and {e}{source}"))
                .hint("`orch cluster client create NAME` on a manager makes one; name its folder with ORCH_CERT_PATH")
        })?;
        return Ok(Endpoint::Tls { address, name: MANAGER_NAME.to_owned(), config });
    }
    ssh(host)
}

/// A host behind ssh.
fn ssh(host: &str) -> Result<Endpoint, Failure> {
    let wrong = || {
        Failure::usage(format!("--host {host} is not understood"))
            .hint("write unix:///path/to/orch.sock, tcp://HOST[:PORT] or ssh://[USER@]HOST[:PORT]")
    };
    let rest = host.strip_prefix("ssh://").ok_or_else(wrong)?.trim_end_matches('/');
    let (target, port) = match rest.rsplit_once(':') {
        Some((target, port)) if port.parse::<u16>().is_ok() => (target, Some(port)),
        _ => (rest, None),
    };
    // A target that begins with a dash would be an option to ssh.
    if target.is_empty() || target.starts_with('-') || target.contains(char::is_whitespace) {
        return Err(wrong());
    }
    let program = std::env::var("ORCH_SSH").ok().filter(|p| !p.is_empty()).unwrap_or_else(|| "ssh".to_owned());
    let mut words = vec![program, "-T".to_owned()];
    words.extend(port.into_iter().flat_map(|port| ["-p".to_owned(), port.to_owned()]));
    words.extend(["--", target, "orch", "system", "dial-stdio"].map(str::to_owned));
    Ok(Endpoint::Program(words))
}

/// The folder with ca.pem, cert.pem and key.pem.
fn certificates() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("ORCH_CERT_PATH").unwrap_or_else(|| variable("HOME").unwrap_or_default().join(".orch"))
}
