//! orch: stacks of containers on one host or many, in one binary.
//!
//! args → settings → command → printer. This file decides which of the program's faces is asked for: the short-lived command, the
//! agent, or the shim. The shim comes first, before anything is allocated that it does not need: it lives as long as its containers.
#![forbid(unsafe_code)]

mod agent_process;
mod args;
mod commands;
mod connect;
mod contexts;
mod diagnostics;
mod exit;
mod grammar;
mod later;
mod printer;
mod progress;
mod settings;
mod stack_file;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        return orch_engine::shim::main(&arguments.collect::<Vec<_>>());
    }
    commands::main()
}
