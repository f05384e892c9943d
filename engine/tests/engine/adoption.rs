//! The agent goes, and comes again; a shim is killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orch_engine::config::ProcessConfig;
use orch_engine::container::Phase;
use orch_engine::engine::{EventKind, ExecOptions};

use crate::needs_root;
use crate::support::{Host, PATIENCE, enginectl, eventually, start_time};

/// A process that holds the engine, killed like an agent can be.
struct Agent(Child);

impl Agent {
    /// Starts all containers and holds them.
    fn new(host: &Host) -> Self {
        let mut agent = Self::begin(host);
        let mut line = String::new();
        BufReader::new(agent.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        agent
    }

    /// Begins to start all containers.
    fn begin(host: &Host) -> Self {
        let child = Command::new(enginectl())
            .arg("hold")
            .args([&host.config.data_dir, &host.config.run_dir])
            .arg(&host.config.instance)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_killed_agent_costs_no_container_and_no_line() {
    needs_root!();
    let mut host = Host::new();
    let config = host.container(&[
        "/bin/sh",
        "-c",
        "i=0; while test $i -lt 3000; do i=$((i+1)); echo $i; usleep 100; done; exec sleep 1000",
    ]);
    let counter = config.id.clone();
    host.engine().create(config).unwrap();
    let (config, told) = host.told("while ! test -e /host/go; do usleep 1000; done; exit 42");
    let ending = config.id.clone();
    host.engine().create(config).unwrap();
    let record = host.engine().log_directory(&ending).unwrap().join("exit.json");
    host.close();
    let agent = Agent::new(&host);
    agent.kill();
    // Nobody watches: one ends now, the other goes on writing.
    std::fs::write(told.join("go"), "").unwrap();
    eventually("the end is recorded", || record.exists());

    host.open();
    // The record is there before it is on the disk, and only then anybody is told.
    eventually("the end is told", || {
        let state = host.state(&ending);
        (state.phase, state.exit_code) == (Phase::Exited, Some(42))
    });
    let state = host.state(&counter);
    assert_eq!(state.phase, Phase::Running);
    assert_eq!(start_time(state.pid), Some(state.start_time));
    let before = (state.pid, state.start_time);
    for _ in 0..3 {
        host.close();
        host.open();
        let state = host.state(&counter);
        assert_eq!((state.phase, state.pid, state.start_time), (Phase::Running, before.0, before.1));
    }
    eventually("it has counted", || host.output(&counter).lines().count() == 3000);
    let found: Vec<u64> = host.output(&counter).lines().map(|line| line.parse().unwrap()).collect();
    assert!(found.into_iter().eq(1..=3000));
    host.engine().stop(&counter, None, Some(0)).unwrap();
    assert_eq!(host.wait(&counter).exit_code, Some(137));
}

#[test]
fn a_hundred_containers_are_taken_over() {
    needs_root!();
    const CONTAINERS: usize = 100;
    let mut host = Host::new();
    let begun = Instant::now();
    for number in 0..CONTAINERS {
        let mut config = host.container(&["/bin/sleep", "1000"]);
        config.group = format!("stack{}", number % 4);
        host.start(config);
    }
    println!("{CONTAINERS} containers started in {:?}", begun.elapsed());
    let before: Vec<_> = host.engine().list().into_iter().map(|info| (info.config.id.clone(), info.state)).collect();
    assert_eq!(host.shims().len(), 4);
    host.close();
    let begun = Instant::now();
    host.open();
    println!("{CONTAINERS} containers taken over in {:?}", begun.elapsed());
    let after: Vec<_> = host.engine().list().into_iter().map(|info| (info.config.id.clone(), info.state)).collect();
    assert!(after.iter().all(|(_, state)| state.phase == Phase::Running));
    assert_eq!(before, after);
    let begun = Instant::now();
    for (id, _) in &after {
        host.engine().remove(id, true, true).unwrap();
    }
    println!("{CONTAINERS} containers removed by force in {:?}", begun.elapsed());
}

#[test]
fn a_shim_of_an_older_version_is_watched_and_new_processes_start_beside_it() {
    needs_root!();
    let mut host = Host::new();
    let old = host.start_args(&["/bin/sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done"]);
    eventually("it is up", || host.output(&old) == "up\n");
    host.close();
    let sockets = host.config.run_dir.join("shim");
    let socket = std::fs::read_dir(&sockets).unwrap().next().unwrap().unwrap().path();
    // As if the plans' types had changed since.
    std::fs::rename(&socket, sockets.join("stack@1-00000000.sock")).unwrap();
    host.open();
    assert_eq!(host.state(&old).phase, Phase::Running);
    let process =
        ProcessConfig { args: vec!["/bin/sh".into(), "-c".into(), "exit 11".into()], ..ProcessConfig::default() };
    let session = host.engine().exec(&old, &ExecOptions { process, ..ExecOptions::default() }).unwrap();
    assert_eq!(session.wait(Some(PATIENCE)), Some(11));
    let new = host.start_args(&["/bin/sleep", "1000"]);
    assert_eq!(host.shims().len(), 2);
    assert_eq!(host.engine().stop(&old, None, None).unwrap().exit_code, Some(6));
    host.engine().remove(&old, false, true).unwrap();
    host.engine().remove(&new, true, true).unwrap();
    eventually("both are gone", || host.shims().is_empty());
    // The old one tidies up the name it was given.
    let _ = std::fs::remove_file(sockets.join("stack@1-00000000.sock"));
}

#[test]
fn a_paused_container_is_still_paused_for_the_next_agent() {
    needs_root!();
    let mut host = Host::new();
    let id = host.start_args(&["/bin/sleep", "1000"]);
    host.engine().pause(&id).unwrap();
    host.close();
    host.open();
    assert_eq!(host.state(&id).phase, Phase::Paused);
    host.engine().unpause(&id).unwrap();
}

#[test]
fn a_killed_shim_ends_its_containers_once_and_is_told() {
    needs_root!();
    let host = Host::new();
    let ids: Vec<_> =
        (0..5).map(|_| host.start_args(&["/bin/sh", "-c", "trap '' TERM HUP; sleep 1000 & sleep 1000"])).collect();
    let mut other = host.container(&["/bin/sleep", "1000"]);
    other.group = "other".to_owned();
    let other = host.start(other);
    let pids: Vec<i32> = ids.iter().map(|id| host.state(id).pid).collect();
    let events = host.engine().events();
    let link = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("/stack@");
    let shim = host.shims().into_iter().find(link).unwrap();
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    for id in &ids {
        let state = host.wait(id);
        assert_eq!(state.exit_code, Some(137));
        assert!(state.error.contains("shim"), "{}", state.error);
    }
    for pid in pids {
        eventually("its process is gone", || {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        });
    }
    let mut exits = 0;
    while let Ok(event) = events.receive_within(std::time::Duration::from_millis(50)) {
        exits += usize::from(matches!(event.kind, EventKind::Exited { .. }));
    }
    assert_eq!(exits, ids.len(), "each end is told once");
    assert_eq!(host.state(&other).phase, Phase::Running);
    // The group lives again.
    host.engine().start(&ids[0], None).unwrap();
    assert_eq!(host.state(&ids[0]).phase, Phase::Running);
}

#[test]
fn a_shim_killed_while_no_agent_runs_is_found_out() {
    needs_root!();
    let mut host = Host::new();
    let id = host.start_args(&["/bin/sleep", "1000"]);
    let pid = host.state(&id).pid;
    host.close();
    let shim = host.shims()[0];
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    eventually("the shim is gone", || host.shims().is_empty());
    host.open();
    let state = host.state(&id);
    assert_eq!((state.phase, state.exit_code), (Phase::Exited, Some(137)));
    assert!(state.error.contains("shim"));
    assert!(std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z ")));
}

#[test]
fn an_agent_killed_at_any_moment_leaves_nothing_half_done() {
    needs_root!();
    const CONTAINERS: usize = 12;
    let mut host = Host::new();
    // From before its first start to after its last, whatever the machine's speed: the moment is a number of started containers.
    for moment in 0..=CONTAINERS {
        for _ in 0..CONTAINERS {
            let config =
                host.container(&["/bin/sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"]);
            host.engine().create(config).unwrap();
        }
        let ids: Vec<_> = host.engine().list().into_iter().map(|info| info.config.id.clone()).collect();
        let containers = host.config.data_dir.join("containers");
        let started = || ids.iter().filter(|id| containers.join(&id.0).join("run.json").exists()).count();
        host.close();
        eventually("the lock is free", || {
            std::fs::File::open(host.config.data_dir.join("lock"))
                .is_ok_and(|file| nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok())
        });
        let agent = Agent::begin(&host);
        eventually("it has come so far", || started() >= moment);
        agent.kill();
        host.open();
        for id in &ids {
            let state = host.state(id);
            match state.phase {
                Phase::Running => assert_eq!(start_time(state.pid), Some(state.start_time)),
                // Once more, by hand: nothing is in its way.
                phase => {
                    assert_eq!(phase, Phase::Created, "{}", state.error);
                    host.engine().start(id, None).unwrap();
                }
            }
        }
        for id in &ids {
            eventually("it runs", || host.output(id) == "up\n");
            let processes = host.engine().top(id).unwrap();
            let is_first = |parent: i32| processes.iter().all(|other| other.pid != parent);
            assert_eq!(processes.iter().filter(|process| is_first(process.parent)).count(), 1, "{processes:?}");
            host.engine().remove(id, true, true).unwrap();
        }
    }
}

#[test]
fn a_shim_asked_to_go_ends_its_containers_in_order() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done"]);
    eventually("it is up", || host.output(&id) == "up\n");
    kill(Pid::from_raw(host.shims()[0]), Signal::SIGHUP).unwrap();
    kill(Pid::from_raw(host.shims()[0]), Signal::SIGTERM).unwrap();
    let state = host.wait(&id);
    assert_eq!((state.exit_code, state.error.as_str()), (Some(5), ""));
    assert_eq!(host.output(&id), "up\nbye\n");
    eventually("the shim is gone", || host.shims().is_empty());
    host.engine().start(&id, None).unwrap();
}

#[test]
fn a_record_of_another_boot_is_not_taken_for_a_running_process() {
    needs_root!();
    let mut host = Host::new();
    let id = host.start_args(&["/bin/true"]);
    host.wait(&id);
    let directory = host.engine().log_directory(&id).unwrap();
    host.close();
    // This test's own process, as if the number had been a container's before the host was restarted.
    let own = std::process::id();
    let start = start_time(i32::try_from(own).unwrap()).unwrap();
    let record = format!(r#"{{"pid":{own},"start_time":{start},"boot_id":"another","started_at":1}}"#);
    std::fs::write(directory.join("run.json"), record).unwrap();
    std::fs::remove_file(directory.join("exit.json")).unwrap();
    host.open();
    let state = host.state(&id);
    assert_eq!(state.phase, Phase::Exited);
    assert!(state.error.contains("restarted"), "{}", state.error);
}

#[test]
fn a_shim_with_fifty_containers_is_small() {
    needs_root!();
    const CONTAINERS: usize = 50;
    let host = Host::new();
    for _ in 0..CONTAINERS {
        host.start_args(&["/bin/sleep", "1000"]);
    }
    let shim = host.shims()[0];
    let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
    for name in ["Rss", "Pss", "Pss_Anon", "Private_Dirty"] {
        let line = rollup.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        println!("shim with {CONTAINERS} containers: {}", line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
    }
    // Only CAP_SYS_RESOURCE (bit 24) may make a process safer than its parent.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    if u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 24 != 0 {
        assert_eq!(std::fs::read_to_string(format!("/proc/{shim}/oom_score_adj")).unwrap().trim(), "-1000");
    }
    assert_eq!(std::fs::read_dir(format!("/proc/{shim}/task")).unwrap().count(), 1, "one thread");
}
