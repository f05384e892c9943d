//! Builds clap's command of [`crate::args`] and reads what was typed.
//!
//! `-f` and `-p` mean the stack's file and name before and after a stack verb (`orch -f a.yaml up`, `orch up -f a.yaml`), except after
//! verbs that have used the letter for something else as long as there have been containers (`logs -f`, `rm -f`, `run -p`). clap's own
//! global arguments cannot give way like that, so the two are added here to every verb that leaves the letter free.

use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches};

use crate::args::{Cli, STACK_OPTIONS};

/// Verbs that work on a stack file.
const STACK_VERBS: [&str; 27] = [
    "up", "down", "plan", "config", "ps", "logs", "exec", "run", "create", "start", "stop", "restart", "kill", "pause",
    "unpause", "rm", "attach", "port", "top", "stats", "events", "cp", "wait", "scale", "images", "graph", "ls",
];

/// Stack verbs that have used one of the two letters for something else.
const TAKEN: [(&str, char); 3] = [("logs", 'f'), ("rm", 'f'), ("run", 'p')];

/// What people's fingers and scripts say that is so anyway: `exec` and `run` have a terminal where there is one, nothing is asked.
const ANYWAY: [(&str, char, &str); 4] =
    [("exec", 't', "tty"), ("run", 't', "tty"), ("up", 'y', "yes"), ("create", 'y', "yes")];

const FILE: &str = "file-after-verb";
const PROJECT: &str = "project-name-after-verb";

/// The whole grammar. What a verb takes is put together when it was typed: for all of them that would take longer than most commands.
pub(crate) fn command() -> clap::Command {
    // The last of an option that stands twice counts, as with Docker: people have the first one in an alias.
    let all = Cli::command().args_override_self(true);
    all.mut_subcommands(|verb| if STACK_VERBS.contains(&verb.get_name()) { of_a_stack(verb) } else { verb })
}

fn of_a_stack(verb: clap::Command) -> clap::Command {
    let free = |letter: char| Some(letter).filter(|letter| !TAKEN.contains(&(verb.get_name(), *letter)));
    let file = clap::Arg::new(FILE)
        .short(free('f'))
        .long("file")
        .action(ArgAction::Append)
        .value_name("FILE")
        .help_heading(STACK_OPTIONS)
        .help("Stack file; repeat to merge several; `-` reads standard input");
    let project = clap::Arg::new(PROJECT)
        .short(free('p'))
        .long("project-name")
        .value_name("NAME")
        .help_heading(STACK_OPTIONS)
        .help("Name of the stack");
    let anyway = ANYWAY.into_iter().filter(|(name, ..)| *name == verb.get_name());
    let anyway: Vec<_> = anyway
        .map(|(_, letter, word)| clap::Arg::new(word).short(letter).long(word).action(ArgAction::SetTrue).hide(true))
        .collect();
    verb.arg(file).arg(project).args(anyway)
}

/// Reads the command line.
///
/// # Errors
/// clap's, which know how to print themselves: usage errors, and `--help` and `--version`.
pub(crate) fn parse<I, T>(arguments: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let matches = command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Some((verb, sub)) = matches.subcommand()
        && STACK_VERBS.contains(&verb)
    {
        after_verb(&mut cli, sub);
    }
    Ok(cli)
}

fn after_verb(cli: &mut Cli, sub: &ArgMatches) {
    if let Some(files) = sub.get_many::<String>(FILE) {
        cli.global.files.extend(files.cloned());
    }
    if let Some(name) = sub.get_one::<String>(PROJECT) {
        cli.global.project_name = Some(name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;

    #[test]
    fn the_grammar_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_file_may_stand_before_and_after_the_verb() {
        let before = parse(["orch", "-f", "a.yaml", "up", "-d"]).unwrap();
        let after = parse(["orch", "up", "-d", "-f", "a.yaml"]).unwrap();
        assert_eq!(before.global.files, ["a.yaml"]);
        assert_eq!(after.global.files, ["a.yaml"]);
    }

    #[test]
    fn f_after_logs_means_follow() {
        let cli = parse(["orch", "-f", "a.yaml", "logs", "-f", "web"]).unwrap();
        let Command::Logs(logs) = cli.command else { panic!("not logs") };
        assert!(logs.follow);
        assert_eq!(logs.services, ["web"]);
        assert_eq!(cli.global.files, ["a.yaml"]);
    }

    #[test]
    fn the_usual_letters_of_exec_and_run_take_nothing_for_their_value() {
        for letters in ["-it", "-i", "-t", "-ti", "-iT", "--interactive=true"] {
            let Command::Exec(exec) = parse(["orch", "exec", letters, "db", "sh"]).unwrap().command else { panic!() };
            assert_eq!(
                (exec.service.as_str(), exec.interactive, exec.no_tty),
                ("db", true, letters == "-iT"),
                "{letters}"
            );
            let Command::Run(run) = parse(["orch", "run", letters, "db", "sh"]).unwrap().command else { panic!() };
            assert_eq!((run.service.as_str(), run.interactive), ("db", true), "{letters}");
        }
        let Command::Run(run) = parse(["orch", "run", "--interactive=false", "db"]).unwrap().command else { panic!() };
        assert!(!run.interactive);
    }

    #[test]
    fn what_follows_the_service_of_exec_belongs_to_its_command() {
        let cli = parse(["orch", "exec", "-T", "db", "psql", "-U", "app", "-f", "x.sql"]).unwrap();
        let Command::Exec(exec) = cli.command else { panic!("not exec") };
        assert_eq!(exec.command, ["psql", "-U", "app", "-f", "x.sql"]);
        assert!(cli.global.files.is_empty());
    }
}
