//! Runs what was asked for. One module a family of verbs; each ends with an [`Exit`] or an error that knows its own.

mod act;
mod cluster;
mod collector;
mod config;
mod container;
mod context;
mod copy;
mod down;
mod each;
mod follow;
mod graph;
mod image;
mod last_lines;
mod list;
mod logs;
mod network;
mod node;
mod object;
mod one_off;
mod push;
mod service;
mod session;
mod statistics;
mod system;
mod up;
mod volume;

use std::process::ExitCode;

use anyhow::Result;
use orch_api::client::Client;
pub(crate) use orch_api::client::escape;

use crate::args::{Cli, Command, Config};
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{agent_process, connect, grammar, later, printer};

/// Parses the command line and runs the command.
pub(crate) fn main() -> ExitCode {
    let cli = match grammar::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(e) => {
            let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
            if let Some(failure) = later::explain(&e, &arguments) {
                return printer::failure(&failure.into(), false).into();
            }
            let usage = e.use_stderr();
            // Help goes to stdout, errors to stderr: clap knows which.
            if e.print().is_err() && !usage {
                return Exit::Failed.into();
            }
            return if usage { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    if cli.global.dry_run
        && let Err(failure) = check_dry_run(&cli.command)
    {
        return printer::failure(&failure.into(), false).into();
    }
    // These mend what settings are made from.
    if let Command::Context(command) = cli.command {
        return context::run(&cli.global, command).unwrap_or_else(|e| printer::failure(&e, false)).into();
    }
    let settings = match Settings::new(&cli.global) {
        Ok(settings) => settings,
        Err(failure) => return printer::failure(&failure.into(), false).into(),
    };
    let color = settings.color_stderr;
    match run(cli, settings) {
        Ok(exit) => exit.into(),
        Err(e) => printer::failure(&e, color).into(),
    }
}

/// A command that would do it all the same must not take `--dry-run`.
fn check_dry_run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Up(_)
        | Command::Create(_)
        | Command::Down(_)
        | Command::Start(_)
        | Command::Stop(_)
        | Command::Restart(_)
        | Command::Kill(_)
        | Command::Pause(_)
        | Command::Unpause(_)
        | Command::Rm(_)
        | Command::Plan(_)
        | Command::Config(Config { command: None, .. })
        | Command::Ps(_)
        | Command::Ls(_)
        | Command::Images(_)
        | Command::Port(_)
        | Command::Logs(_)
        | Command::Graph(_)
        | Command::Top(_)
        | Command::Stats(_)
        | Command::Events(_)
        | Command::Version { .. } => Ok(()),
        _ => Err(Failure::usage("this command cannot be tried with --dry-run: nothing was done").hint(
            "it goes with up, create, down, start, stop, restart, kill, pause, unpause and rm; \
             `orch plan` says what `up` would do, also with `--scale`",
        )),
    }
}

fn run(cli: Cli, settings: Settings) -> Result<Exit> {
    if cli.global.parallel.is_some() {
        printer::say("note: --parallel has no effect: each node does at most 16 things at once");
    }
    // What needs neither agent nor runtime is answered without either.
    let command = match cli.command {
        Command::Agent(args) => return agent_process::run(&args),
        Command::Version { short, format } => return system::version(short, format.as_deref()),
        Command::Explain { code } => return system::explain(&code),
        Command::Completion { shell } => return system::completion(shell),
        Command::Man { dir } => return system::man(dir.as_deref()),
        Command::Config(args) if args.command.is_none() => return config::run(&settings, &args),
        Command::Graph(args) => return graph::run(&settings, &args),
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(dispatch(command, &settings));
    if let Some(index) = orch_api::client::stale_index() {
        let text = "note: no leader answers, so this is what the manager that was asked knows";
        printer::say(&format!("{text} (state {index}); it may be out of date"));
    }
    // A read of the terminal that never returns must not hold the process.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, settings: &Settings) -> Result<Exit> {
    match command {
        Command::Up(args) => up::up(settings, args).await,
        Command::Create(args) => up::create(settings, args).await,
        Command::Plan(args) => up::plan(settings, args).await,
        Command::Scale(args) => up::scale(settings, args).await,
        Command::Down(args) => down::run(settings, args).await,
        Command::Start(args) => act::start(settings, args).await,
        Command::Stop(args) => act::stop(settings, args).await,
        Command::Restart(args) => act::restart(settings, args).await,
        Command::Kill(args) => act::kill(settings, args).await,
        Command::Pause(args) => act::pause(settings, args, true).await,
        Command::Unpause(args) => act::pause(settings, args, false).await,
        Command::Rm(args) => act::remove(settings, args).await,
        Command::Wait(args) => act::wait(settings, args).await,
        Command::Ps(args) => list::ps(settings, args).await,
        Command::Ls(args) => list::ls(settings, args).await,
        Command::Images(args) => list::images(settings, args).await,
        Command::Port(args) => list::port(settings, args).await,
        Command::Events(args) => list::events(settings, args).await,
        Command::Logs(args) => logs::stack(settings, args).await,
        Command::Exec(args) => one_off::exec(settings, args).await,
        Command::Attach(args) => one_off::attach(settings, args).await,
        Command::Run(args) => one_off::run(settings, args).await,
        Command::Top(args) => statistics::top(settings, args).await,
        Command::Stats(args) => statistics::stack(settings, args).await,
        Command::Cp(args) => copy::stack(settings, args).await,
        Command::Container(command) => container::run(settings, *command).await,
        Command::Image(command) => image::run(settings, command).await,
        Command::Volume(command) => volume::run(settings, command).await,
        Command::Secret(command) => object::run(settings, "secret", command).await,
        Command::Config(Config { command: Some(command), .. }) => object::run(settings, "config", command).await,
        Command::Network(command) => network::run(settings, command).await,
        Command::Cluster(command) => cluster::run(settings, command).await,
        Command::Node(command) => node::run(settings, command).await,
        Command::Service(command) => service::run(settings, command).await,
        Command::Task(command) => service::task(settings, command).await,
        Command::System(command) => system::run(settings, command).await,
        Command::Agent(_)
        | Command::Context(_)
        | Command::Explain { .. }
        | Command::Version { .. }
        | Command::Completion { .. }
        | Command::Man { .. }
        | Command::Config(_)
        | Command::Graph(_) => Ok(Exit::Done),
    }
}

/// A client of the agent, started when needed.
fn client(settings: &Settings) -> Result<Client> {
    connect::connect(settings)
}

/// Asks a yes-or-no question on the terminal; without one the answer is no.
fn confirmed(question: &str) -> bool {
    use std::io::{BufRead, IsTerminal, Write};
    if !std::io::stdin().is_terminal() {
        return false;
    }
    let mut stderr = std::io::stderr().lock();
    let _ = write!(stderr, "{question} [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

/// `2 minutes ago`, from milliseconds since the epoch.
fn ago(then: Option<u64>) -> String {
    let Some(then) = then else { return String::new() };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map(|d| d.as_millis()).unwrap_or(0);
    let seconds = u64::try_from(now.saturating_sub(u128::from(then)) / 1000).unwrap_or(0);
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
}

/// Bytes for people: `12.3MB`.
fn size(bytes: u64) -> String {
    in_units(bytes, 1000, ["B", "kB", "MB", "GB", "TB"])
}

/// Bytes of memory for people, as its limits are written: `11.8MiB`.
fn memory_size(bytes: u64) -> String {
    in_units(bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB"])
}

fn in_units(bytes: u64, step: u64, units: [&str; 5]) -> String {
    let mut unit = 0;
    let mut scale = 1u64;
    while unit + 1 < units.len() && bytes / scale >= step {
        scale *= step;
        unit += 1;
    }
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    if unit == 0 { format!("{bytes}B") } else { format!("{}.{}{}", tenths / 10, tenths % 10, units[unit]) }
}

/// Milliseconds since the epoch as RFC 3339; empty for none.
fn timestamp(millis: Option<u64>) -> String {
    millis
        .and_then(|ms| jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok())
        .map(|t| t.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_decimal_but_those_of_memory_as_in_docker() {
        assert_eq!(size(999), "999B");
        assert_eq!(size(12_345_678), "12.3MB");
        assert_eq!(memory_size(20 << 20), "20.0MiB");
        assert_eq!(memory_size(1023), "1023B");
    }
}
