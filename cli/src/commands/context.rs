//! `context …`: names for hosts that commands can go to.

use anyhow::Result;
use serde::Serialize;

use super::each::Failures;
use crate::args::{ContextCommand, Global};
use crate::contexts::{Context, Contexts, DEFAULT};
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// A context as `ls` shows it.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    current: bool,
    host: String,
    description: String,
}

/// Runs one of the verbs. They need no agent, nor a host that can be reached.
pub(super) fn run(global: &Global, command: ContextCommand) -> Result<Exit> {
    let mut known = Contexts::read()?;
    match command {
        ContextCommand::Ls(list) => {
            let format = Format::parse(&list.format)?;
            let current = current(global, &known);
            let here = Context { description: "this machine".to_owned(), ..Context::default() };
            let all = [(DEFAULT.to_owned(), here)].into_iter().chain(known.contexts);
            let row = |(name, context): (String, Context)| Row {
                current: name == current,
                name,
                host: context.host,
                description: context.description,
            };
            let rows: Vec<Row> = all.map(row).collect();
            let cells = |row: &Row| {
                let mark = if row.current { "*" } else { "" };
                vec![row.name.clone(), mark.to_owned(), row.host.clone(), row.description.clone()]
            };
            let titles = ["NAME", "CURRENT", "HOST", "DESCRIPTION"];
            printer::listing(&format, global.quiet, &rows, &titles, cells, |row| row.name.clone())?;
        }
        ContextCommand::Show => printer::line(&current(global, &known)),
        ContextCommand::Create { cert_path, description, name } => {
            let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
            if name == DEFAULT || !first || !name.chars().all(valid) {
                return Err(Failure::usage(format!("`{name}` cannot be the name of a context"))
                    .hint("use letters, digits, `.`, `-` and `_`, a letter or digit first; `default` is this machine")
                    .into());
            }
            if known.contexts.contains_key(&name) {
                return Err(Failure::new(Exit::Failed, format!("there is a context {name} already"))
                    .hint(format!("remove it first: `orch context rm {name}`"))
                    .into());
            }
            let Some(host) = global.host.clone() else {
                return Err(Failure::usage("--host is missing: which host is it a name for?")
                    .hint(format!("for example `orch context create {name} --host ssh://root@192.0.2.1`"))
                    .into());
            };
            let cert_path = match cert_path {
                Some(path) => Some(std::path::absolute(&path)?),
                None => None,
            };
            Settings::check_host(&host)?;
            known.contexts.insert(name.clone(), Context { host, cert_path, description });
            known.write()?;
            printer::line(&name);
        }
        ContextCommand::Use { name } => {
            known.find(&name)?;
            known.current = if name == DEFAULT { String::new() } else { name.clone() };
            known.write()?;
            printer::line(&name);
            if let Some(variable) = ["ORCH_HOST", "ORCH_CONTEXT"].into_iter().find(|name| is_set(name)) {
                printer::say(&format!("note: {variable} is set, and wins over it"));
            }
        }
        ContextCommand::Rm { force, names } => {
            let mut failures = Failures::new(&names, false);
            for name in &names {
                failures.add(remove(&mut known, name, force))?;
            }
            return failures.end();
        }
    }
    Ok(Exit::Done)
}

fn remove(known: &mut Contexts, name: &str, force: bool) -> Result<()> {
    let here = || Failure::new(Exit::Failed, "the context `default` is this machine and stays");
    known.find(name).map_err(|unknown| Failure { exit: Exit::Failed, ..unknown })?.ok_or_else(here)?;
    if known.current == name {
        if !force {
            return Err(Failure::new(Exit::Failed, format!("the context {name} is the current one"))
                .hint("`orch context use default` first, or `rm -f`")
                .into());
        }
        known.current.clear();
    }
    known.contexts.remove(name);
    known.write()?;
    printer::line(name);
    Ok(())
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// The one that a command goes to now.
fn current(global: &Global, known: &Contexts) -> String {
    let variable = std::env::var("ORCH_CONTEXT").unwrap_or_default();
    let name = [global.context.as_deref().unwrap_or_default(), &variable, &known.current].into_iter();
    name.filter(|name| !name.is_empty()).map(str::to_owned).next().unwrap_or_else(|| DEFAULT.to_owned())
}
