//! What was meant: globals and environment worked out once, before any command runs.

use std::io::IsTerminal;
use std::path::PathBuf;

use crate::args::{ColorMode, Global, ProgressMode};
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
    /// The agent's socket.
    pub socket: PathBuf,
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
        let (socket, start_agent) = match &global.host {
            None => (run_dir.join("orch.sock"), true),
            Some(host) => match host.strip_prefix("unix://") {
                Some(path) if path.starts_with('/') => (PathBuf::from(path), false),
                _ => {
                    return Err(Failure::usage(format!(
                        "--host {host}: only unix:///path/to/orch.sock can be reached yet"
                    ))
                    .hint("remote hosts come with the cluster; until then run orch on the host itself"));
                }
            },
        };
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
            env_files: or(&global.env_files, list("COMPOSE_ENV_FILES", ',')),
            socket,
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
}
