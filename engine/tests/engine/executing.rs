//! Further processes in a container.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use orch_engine::config::{ContainerId, ProcessConfig};
use orch_engine::engine::{EngineError, ExecOptions, ExecSession};

use crate::needs_root;
use crate::support::{Host, PATIENCE, eventually, start_time};
use orch_engine::chain;

fn options(args: &[&str]) -> ExecOptions {
    let args = args.iter().map(|&word| word.to_owned()).collect();
    ExecOptions { process: ProcessConfig { args, ..ProcessConfig::default() }, ..ExecOptions::default() }
}

fn exec(host: &Host, id: &ContainerId, options: &ExecOptions) -> ExecSession {
    host.engine().exec(id, options).unwrap_or_else(|e| panic!("the command does not start: {}", chain(&e)))
}

fn read(stream: Option<std::os::fd::OwnedFd>) -> String {
    let mut text = String::new();
    // A terminal's end is an error (EIO).
    let _ = File::from(stream.unwrap()).read_to_string(&mut text);
    text
}

#[test]
fn a_command_runs_inside_and_its_streams_and_code_come_out() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/sleep", "1000"]);
    config.process.env = vec!["COLOUR=blue".to_owned()];
    let id = host.start(config);
    let mut asked = options(&["/bin/sh", "-c", "cat; echo $COLOUR $MORE; echo err >&2; exit 9"]);
    asked.process.stdin_open = true;
    asked.process.env = vec!["MORE=red".to_owned()];
    let mut session = exec(&host, &id, &asked);
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"from outside\n").unwrap();
    drop(stdin);
    assert_eq!(read(session.stdout.take()), "from outside\nblue red\n");
    assert_eq!(read(session.stderr.take()), "err\n");
    assert_eq!(session.wait(Some(PATIENCE)), Some(9));

    let mut session = exec(&host, &id, &options(&["/bin/ps", "-o", "pid,args"]));
    let shown = read(session.stdout.take());
    assert!(shown.contains("1 /bin/sleep 1000"), "{shown}");
    let groups = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let session = exec(&host, &id, &options(&["/bin/sleep", "1000"]));
    assert_eq!(groups(session.pid), groups(host.state(&id).pid));
    session.signal(libc::SIGTERM, false).unwrap();
    assert_eq!(session.wait(Some(PATIENCE)), Some(143));
}

#[test]
fn a_command_that_cannot_run_says_so_with_dockers_codes() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sleep", "1000"]);
    for (args, code) in [(["nosuch"], 127), (["/etc/passwd"], 126)] {
        let error = host.engine().exec(&id, &options(&args)).unwrap_err();
        assert!(matches!(error, EngineError::NotStarted { code: its, .. } if its == code), "{}", chain(&error));
    }
    host.engine().pause(&id).unwrap();
    assert!(matches!(host.engine().exec(&id, &options(&["/bin/true"])), Err(EngineError::Phase { .. })));
    host.engine().unpause(&id).unwrap();
    host.engine().stop(&id, None, Some(0)).unwrap();
    assert!(matches!(host.engine().exec(&id, &options(&["/bin/true"])), Err(EngineError::Phase { .. })));
}

#[test]
fn a_terminal_has_a_size_that_can_change() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sleep", "1000"]);
    let script = "tty; stty size; trap 'stty size; exit 4' WINCH; echo ready; while :; do usleep 10000; done";
    let mut asked = options(&["/bin/sh", "-c", script]);
    asked.process.tty = true;
    asked.size = Some((33, 111));
    let session = exec(&host, &id, &asked);
    let mut terminal = File::from(session.terminal.as_ref().unwrap().try_clone().unwrap());
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.ends_with("ready\r\n") {
        assert_eq!(terminal.read(&mut byte).unwrap(), 1);
        seen.push(char::from(byte[0]));
    }
    assert!(seen.starts_with("/dev/pts/"), "{seen:?}");
    assert!(seen.contains("33 111\r\n"), "{seen:?}");
    session.resize(20, 60).unwrap();
    let mut rest = String::new();
    let _ = terminal.read_to_string(&mut rest);
    assert_eq!(rest, "20 60\r\n");
    assert_eq!(session.wait(Some(PATIENCE)), Some(4));
}

#[test]
fn a_probe_that_hangs_is_killed_with_its_children() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sleep", "1000"]);
    let mut session = exec(&host, &id, &options(&["/bin/sh", "-c", "setsid sleep 900 & sleep 901 & echo up; wait"]));
    let mut up = [0; 3];
    File::from(session.stdout.take().unwrap()).read_exact(&mut up).unwrap();
    eventually("its children run", || host.engine().top(&id).unwrap().len() == 4);
    assert_eq!(session.wait(Some(Duration::from_millis(1))), None);
    session.kill_on_drop = true;
    drop(session);
    eventually("only the first process is left", || host.engine().top(&id).unwrap().len() == 1);
}

#[test]
fn a_detached_command_goes_on_by_itself() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sleep", "1000"]);
    let mut asked = options(&["/bin/sh", "-c", "echo lost; sleep 1000"]);
    asked.detach = true;
    let session = exec(&host, &id, &asked);
    assert!(session.stdout.is_none());
    let pid = session.pid;
    let started = start_time(pid);
    drop(session);
    assert!(started.is_some());
    assert_eq!(start_time(pid), started);
    // It ends with its container.
    host.engine().stop(&id, None, Some(0)).unwrap();
    eventually("it is gone", || start_time(pid) != started);
}
