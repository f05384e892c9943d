//! A tiny host for the engine, for its tests and for trying things by hand.
//!
//! ```text
//! enginectl shim SOCKET                       the shim's program; the engine starts it
//! enginectl hold DATA RUN INSTANCE            opens the engine, starts every container that was never started, says `ready`, and
//!                                             holds it until its stdin ends
//! enginectl ls DATA RUN INSTANCE              lists the containers
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::ffi::OsString;
use std::io::Read;
use std::process::ExitCode;

use orch_engine::container::Phase;
use orch_engine::engine::{Engine, EngineConfig, EngineError};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    match words.as_slice() {
        ["shim", ..] => orch_engine::shim::main(&arguments[1..]),
        ["hold", data, run, instance] => report(open(data, run, instance).and_then(|engine| hold(&engine))),
        ["ls", data, run, instance] => report(open(data, run, instance).map(|engine| list(&engine))),
        _ => {
            eprintln!("usage: enginectl shim SOCKET | hold DATA RUN INSTANCE | ls DATA RUN INSTANCE");
            ExitCode::from(2)
        }
    }
}

fn open(data: &str, run: &str, instance: &str) -> Result<Engine, EngineError> {
    Engine::open(EngineConfig {
        data_dir: data.into(),
        run_dir: run.into(),
        instance: instance.to_owned(),
        shim_command: vec!["/proc/self/exe".into(), "shim".into()],
        resident_groups: Vec::new(),
    })
}

fn hold(engine: &Engine) -> Result<(), EngineError> {
    for info in engine.list() {
        if info.state.phase == Phase::Created {
            engine.start(&info.config.id, None)?;
        }
    }
    println!("ready");
    let mut rest = Vec::new();
    // Its end is all that matters.
    let _ = std::io::stdin().read_to_end(&mut rest);
    Ok(())
}

fn list(engine: &Engine) {
    for info in engine.list() {
        println!("{} {} {} {}", info.config.id.short(), info.config.name, info.state.phase, info.state.pid);
    }
}

fn report(result: Result<(), EngineError>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        eprintln!("{error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
