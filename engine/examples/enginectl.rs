//! A tiny host for the engine, for its tests and for trying things by hand.
//!
//! ```text
//! enginectl shim SOCKET                       the shim's program; the engine starts it
//! enginectl hold DATA RUN INSTANCE            opens the engine, starts every container that was never started, says `ready`, and
//!                                             holds it until its stdin ends
//! enginectl ls DATA RUN INSTANCE              lists the containers
//! enginectl times DATA RUN INSTANCE COUNT     starts COUNT containers of busybox one after the other and prints what the steps take
//! ```

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::ffi::OsString;
use std::io::Read;
use std::process::ExitCode;
use std::time::Instant;

use orch_engine::config::ContainerConfig;
use orch_engine::container::Phase;
use orch_engine::engine::{Engine, EngineConfig, EngineError};
use orch_engine::image::ImportOptions;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    match words.as_slice() {
        ["shim", ..] => orch_engine::shim::main(&arguments[1..]),
        ["hold", data, run, instance] => report(open(data, run, instance).and_then(|engine| hold(&engine))),
        ["ls", data, run, instance] => report(open(data, run, instance).map(|engine| list(&engine))),
        ["times", data, run, instance, count] => {
            report(open(data, run, instance).and_then(|engine| times(&engine, count)))
        }
        _ => {
            eprintln!("usage: enginectl shim SOCKET | hold|ls DATA RUN INSTANCE | times DATA RUN INSTANCE COUNT");
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
        resident_groups: vec!["times".to_owned()],
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

/// Starts `count` containers one after the other that end at once, and prints the medians of each step.
fn times(engine: &Engine, count: &str) -> Result<(), EngineError> {
    let image = import_busybox(engine)?;
    let mut steps: Vec<(&str, Vec<u64>)> = Vec::new();
    let mut note = |name: &'static str, ns: u64| match steps.iter_mut().find(|(known, _)| *known == name) {
        Some((_, values)) => values.push(ns),
        None => steps.push((name, vec![ns])),
    };
    let ns = |begun: Instant| u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    for number in 0..count.parse().unwrap_or(100) {
        let config = container(number, &image);
        let id = config.id.clone();
        let whole = Instant::now();
        let begun = Instant::now();
        engine.create(config)?;
        note("create", ns(begun));
        let begun = Instant::now();
        engine.start(&id, None)?;
        note("start", ns(begun));
        let begun = Instant::now();
        engine.wait(&id, None)?;
        note("wait", ns(begun));
        let times = engine.start_times(&id)?.unwrap_or_default();
        note("  prepare", times.prepare);
        note("  ask", times.ask);
        note("    shim", times.shim.whole);
        note("      cgroup", times.shim.cgroup);
        note("      compile", times.shim.compile);
        note("      clone", times.shim.clone);
        note("      child", times.shim.child);
        let begun = Instant::now();
        engine.remove(&id, false, true)?;
        note("remove", ns(begun));
        note("all", ns(whole));
    }
    engine.retire();
    for (name, values) in &mut steps {
        values.sort_unstable();
        println!(
            "{name:14} median {:7} µs  max {:7} µs",
            values[values.len() / 2] / 1000,
            values[values.len() - 1] / 1000
        );
    }
    Ok(())
}

fn import_busybox(engine: &Engine) -> Result<String, EngineError> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["bin/", "etc/", "proc/", "dev/", "sys/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, name, std::io::empty()).expect("memory takes it");
    }
    tar.append_path_with_name("/bin/busybox", "bin/true").expect("busybox-static is installed");
    let layer = tar.into_inner().expect("memory takes it");
    Ok(engine.images().import(layer.as_slice(), &ImportOptions::default())?.id.to_string())
}

fn container(number: u64, image: &str) -> ContainerConfig {
    let text = serde_json::json!({
        "id": format!("{number:064x}"), "name": format!("t{number}"), "group": "times", "image": "busybox", "image_id": image,
        "process": {"args": ["/bin/true"], "env": []}, "hostname": "",
        "namespaces": {"network": "none", "pid": "private", "ipc": "private", "uts": "private", "cgroup": "private"},
        "stop_signal": 15, "stop_timeout": 10,
    });
    serde_json::from_value(text).expect("a configuration")
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
