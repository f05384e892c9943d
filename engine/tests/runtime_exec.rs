//! Processes added to running containers.

#[path = "runtime/support.rs"]
#[macro_use]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by test programs that use a part each")]
mod support;

use std::fs::{self, File};
use std::io::Read as _;

use orch_engine::chain;
use orch_engine::config::ProcessConfig;
use orch_engine::runtime::{ExecConfig, Stdio, prepare_exec};
use support::{Fixture, Running, strings};

fn sleeper() -> Fixture {
    Fixture::new(&["sh", "-c", "echo ready; exec sleep 1000"])
}

#[test]
fn a_second_process_shares_everything_with_the_first() {
    needs_root!();
    let mut fixture = sleeper();
    fixture.config.process.env = strings(&["A=1"]);
    let mut running = fixture.start();
    running.read_until("ready");
    let script = "cd /proc/self/ns; for n in cgroup ipc mnt net pid time uts; do [ $(readlink $n) = $(readlink /proc/1/ns/$n) ] || echo $n; done; \
        [ \"$(cat /proc/self/cgroup)\" = \"$(cat /proc/1/cgroup)\" ] || echo cgroup; hostname; echo $A; \
        for f in CapEff CapBnd CapInh CapAmb Seccomp NoNewPrivs SigIgn; do \
        [ \"$(grep $f: /proc/self/status)\" = \"$(grep $f: /proc/1/status)\" ] || grep $f: /proc/self/status; done";
    let outcome = fixture.exec(&running, &["sh", "-c", script]).unwrap();
    assert_eq!(outcome.success(), "box\n1");
    assert!(running.launched().cgroup.procs().unwrap().contains(&running.launched().pid));
}

#[test]
fn it_gets_its_own_user_directory_and_exit_code() {
    needs_root!();
    let mut fixture = sleeper();
    let mut running = fixture.start();
    running.read_until("ready");
    let process = ProcessConfig {
        args: strings(&["sh", "-c", "id -u; pwd; echo $B; ls /proc/self/fd; exit 5"]),
        user: "web".to_owned(),
        cwd: "/tmp".to_owned(),
        env: strings(&["B=2"]),
        ..ProcessConfig::default()
    };
    let outcome = fixture.exec_process(&running, ExecConfig { process, privileged: false }).unwrap();
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (5, "1000\n/tmp\n2\n0\n1\n2\n3\n"), "{outcome:?}");
    let refusal = fixture.exec(&running, &["no-such-command"]).unwrap_err();
    assert_eq!(refusal.exit_code, 127, "{refusal}");
    // A slip of the keyboard is an error, and makes no folder.
    let process = ProcessConfig { args: strings(&["true"]), cwd: "/typo".to_owned(), ..ProcessConfig::default() };
    let refusal = fixture.exec_process(&running, ExecConfig { process, privileged: false }).unwrap_err();
    assert!(refusal.exit_code == 126 && refusal.to_string().contains("/typo"), "{refusal}");
    assert_eq!(fixture.exec(&running, &["ls", "-d", "/typo"]).unwrap().code(), 1);
    // The container goes on.
    assert_eq!(fixture.exec(&running, &["true"]).unwrap().code(), 0);
}

#[test]
fn its_terminal_is_of_the_containers_devpts() {
    needs_root!();
    let mut fixture = sleeper();
    let mut running = fixture.start();
    running.read_until("ready");
    let process =
        ProcessConfig { args: strings(&["sh", "-c", "tty; stty size"]), tty: true, ..ProcessConfig::default() };
    let plan = prepare_exec(&ExecConfig { process, privileged: false }, &fixture.running(&running)).unwrap();
    let mut launched = fixture
        .launcher
        .launch_exec(&plan, Stdio::terminal(10, 20))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut terminal = File::from(launched.terminal.take().unwrap());
    let (mut output, mut bytes) = (String::new(), [0; 256]);
    while let Ok(count @ 1..) = terminal.read(&mut bytes) {
        output.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert_eq!(output, "/dev/pts/0\r\n10 20\r\n");
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(launched.pid), None).unwrap();
}

#[test]
fn a_container_that_is_gone_or_replaced_is_not_entered() {
    needs_root!();
    let mut fixture = sleeper();
    let mut running = fixture.start();
    running.read_until("ready");
    let exec = ExecConfig {
        process: ProcessConfig { args: strings(&["true"]), ..ProcessConfig::default() },
        privileged: false,
    };
    // The same number, another start: what a reused number looks like.
    let mut other = fixture.running(&running);
    other.init.start_time += 1;
    assert!(prepare_exec(&exec, &other).is_err());
    let mut plan = prepare_exec(&exec, &fixture.running(&running)).unwrap();
    plan.container.start_time += 1;
    let error = fixture.launcher.launch_exec(&plan, Stdio::null()).unwrap_err();
    assert!(error.to_string().contains("is not running any more"), "{error}");
}

/// ADV-22, CVE-2016-9962: a process that joins can be watched from inside before it has dropped what it holds.
#[test]
fn a_joining_process_cannot_be_looked_into() {
    needs_root!();
    // A first process that for as long as it lives tries to list the descriptors and read the memory of every other.
    let script = "echo ready; while :; do for p in /proc/[0-9]*; do case $p in /proc/1) ;; *) \
        for f in $p/fd/*; do l=$(readlink $f) && case $l in /dev/null|pipe:*|/proc/*/fd|'') ;; *) echo $l >> /leaked ;; esac; done ;; esac; done; done 2>/dev/null";
    let mut fixture = Fixture::new(&["sh", "-c", script]);
    let mut running = fixture.start();
    running.read_until("ready");
    for _ in 0..100 {
        fixture.exec(&running, &["true"]).unwrap();
    }
    drop::<Running>(running);
    let leaked = fs::read_to_string(fixture.path("upper/leaked")).unwrap_or_default();
    // What remains are descriptors of processes of the container itself: its pipes and its own files.
    let host: Vec<_> = leaked
        .lines()
        .filter(|line| line.contains("orch") || line.contains("cgroup") || line.contains("ns/"))
        .collect();
    assert!(host.is_empty(), "{host:?}");
}
