//! Start, stop, kill, exit codes, pause, memory, removal.

use std::time::Duration;

use orch_engine::config::{InjectedFile, Resources};
use orch_engine::container::Phase;
use orch_engine::engine::{EngineError, EventKind};
use orch_engine::logs::Stream;

use crate::needs_root;
use crate::support::{Host, eventually};
use orch_engine::chain;

#[test]
fn a_container_runs_and_its_output_and_exit_code_are_kept() {
    needs_root!();
    let host = Host::new();
    let events = host.engine().events();
    let config = host.container(&["/bin/sh", "-c", "echo out; echo err >&2; exit 7"]);
    let id = host.start(config);
    let state = host.wait(&id);
    assert_eq!((state.phase, state.exit_code, state.oom_killed, state.pid), (Phase::Exited, Some(7), false, 0));
    assert!(state.started_at.unwrap() <= state.finished_at.unwrap());
    assert_eq!(host.stream(&id, Stream::Stdout), "out\n");
    assert_eq!(host.stream(&id, Stream::Stderr), "err\n");
    host.engine().remove(&id, false, true).unwrap();
    let kinds: Vec<EventKind> =
        std::iter::from_fn(|| events.receive_within(Duration::from_millis(1)).ok()).map(|event| event.kind).collect();
    assert!(
        matches!(
            &kinds[..],
            [EventKind::Created, EventKind::Started { .. }, EventKind::Exited { code: 7, .. }, EventKind::Removed]
        ),
        "{kinds:?}"
    );
    assert!(matches!(host.engine().inspect(&id), Err(EngineError::NotFound { .. })));
}

#[test]
fn exit_codes_say_what_happened() {
    needs_root!();
    let host = Host::new();
    for (args, code) in [
        (&["/bin/true"][..], 0),
        (&["/bin/sh", "-c", "exit 255"], 255),
        (&["/bin/sh", "-c", "kill -TERM $$"], 0),
        (&["/bin/sh", "-c", "sh -c 'kill -9 $$; :'; exit $?"], 137),
    ] {
        // As PID 1 it has no handler for SIGTERM, so the kernel drops it: the shell goes on to its end.
        let (state, _) = host.run(host.container(args));
        assert_eq!(state.exit_code, Some(code), "{args:?}");
    }
    for (args, code) in [(&["/no/such"][..], 127), (&["nosuch"], 127), (&["/etc/passwd"], 126)] {
        let config = host.container(args);
        let id = config.id.clone();
        host.engine().create(config).unwrap();
        let error = host.engine().start(&id, None).unwrap_err();
        assert!(
            matches!(error, EngineError::NotStarted { code: its, .. } if its == code),
            "{args:?}: {}",
            chain(&error)
        );
        let state = host.state(&id);
        assert_eq!((state.phase, state.exit_code), (Phase::Created, Some(code)));
        assert!(!state.error.is_empty());
    }
    let mut config = host.container(&["/bin/true"]);
    config.process.user = "nobody-here".to_owned();
    let id = config.id.clone();
    host.engine().create(config).unwrap();
    host.engine().start(&id, None).unwrap_err();
    assert_eq!(host.state(&id).exit_code, Some(125));
}

#[test]
fn a_container_that_ends_at_once_can_be_started_again_and_again() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/echo", "again"]);
    for _ in 0..20 {
        host.wait(&id);
        host.engine().start(&id, None).unwrap();
    }
    host.wait(&id);
    assert_eq!(host.output(&id), "again\n".repeat(21));
}

#[test]
fn stop_sends_its_signal_waits_and_kills() {
    needs_root!();
    let host = Host::new();
    let mut polite =
        host.container(&["/bin/sh", "-c", "trap 'echo bye; exit 3' USR1; echo up; while :; do sleep 0.05; done"]);
    polite.stop_signal = 10;
    let id = host.start(polite);
    eventually("it is up", || host.output(&id) == "up\n");
    let state = host.engine().stop(&id, None, None).unwrap();
    assert_eq!(state.exit_code, Some(3));
    assert_eq!(host.output(&id), "up\nbye\n");
    // Stopped already: the same answer.
    assert_eq!(host.engine().stop(&id, None, None).unwrap(), state);

    let deaf = host.start_args(&["/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"]);
    eventually("it is up", || host.output(&deaf) == "up\n");
    let state = host.engine().stop(&deaf, None, Some(0)).unwrap();
    assert_eq!(state.exit_code, Some(137));
}

#[test]
fn a_signal_reaches_the_first_process_only() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sh", "-c", "trap 'echo got' HUP; echo up; while :; do sleep 0.05; done"]);
    eventually("it is up", || host.output(&id) == "up\n");
    host.engine().kill(&id, libc::SIGHUP).unwrap();
    eventually("it got the signal", || host.output(&id) == "up\ngot\n");
    assert_eq!(host.state(&id).phase, Phase::Running);
    host.engine().kill(&id, libc::SIGKILL).unwrap();
    assert_eq!(host.wait(&id).exit_code, Some(137));
    assert!(matches!(host.engine().kill(&id, 9), Err(EngineError::Phase { .. })));
}

#[test]
fn a_paused_container_stands_still_and_can_be_stopped() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sh", "-c", "while :; do echo tick; usleep 2000; done"]);
    eventually("it ticks", || host.output(&id).len() > 20);
    host.engine().pause(&id).unwrap();
    assert_eq!(host.state(&id).phase, Phase::Paused);
    assert!(matches!(host.engine().pause(&id), Err(EngineError::Phase { .. })));
    let mut before = String::new();
    // What was in the pipe comes out still.
    eventually("its output stands still", || {
        let now = host.output(&id);
        std::mem::replace(&mut before, now.clone()) == now
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(host.output(&id), before);
    host.engine().unpause(&id).unwrap();
    eventually("it ticks again", || host.output(&id).len() > before.len());
    host.engine().pause(&id).unwrap();
    host.engine().stop(&id, None, Some(0)).unwrap();
    assert_eq!(host.state(&id).exit_code, Some(137));
}

#[test]
fn a_container_killed_for_memory_says_so() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/sh", "-c", "exec tail /dev/zero"]);
    config.resources = Resources { memory: Some(24 << 20), memory_swap: Some(24 << 20), ..Resources::default() };
    let (state, _) = host.run(config);
    assert_eq!((state.exit_code, state.oom_killed), (Some(137), true));
    // The engine and the others live on.
    let (state, _) = host.run(host.container(&["/bin/true"]));
    assert_eq!((state.exit_code, state.oom_killed), (Some(0), false));
}

#[test]
fn many_ends_at_once_are_all_recorded() {
    needs_root!();
    const CONTAINERS: usize = 60;
    let host = Host::new();
    let ids: Vec<_> = (0..CONTAINERS).map(|_| host.start_args(&["/bin/sleep", "1000"])).collect();
    let begun = std::time::Instant::now();
    for id in &ids {
        host.engine().kill(id, libc::SIGKILL).unwrap();
    }
    for id in &ids {
        assert_eq!(host.wait(id).exit_code, Some(137));
    }
    println!("{CONTAINERS} containers killed and recorded in {:?}", begun.elapsed());
}

#[test]
fn names_are_unique_and_checked() {
    needs_root!();
    let host = Host::new();
    let mut first = host.container(&["/bin/true"]);
    first.name = "web".to_owned();
    let first_id = first.id.clone();
    host.engine().create(first).unwrap();
    let mut second = host.container(&["/bin/true"]);
    second.name = "web".to_owned();
    assert!(matches!(host.engine().create(second.clone()), Err(EngineError::Conflict(_))));
    for bad in ["", "../x", ".hidden", "a/b", "a b", "-x"] {
        second.name = bad.to_owned();
        assert!(matches!(host.engine().create(second.clone()), Err(EngineError::Invalid(_))), "{bad:?}");
    }
    second.name = "api".to_owned();
    host.engine().create(second.clone()).unwrap();
    assert!(matches!(host.engine().rename(&second.id, "web"), Err(EngineError::Conflict(_))));
    host.engine().rename(&first_id, "front").unwrap();
    host.engine().rename(&second.id, "web").unwrap();
    assert_eq!(host.engine().find("web").unwrap(), second.id);
    assert_eq!(host.engine().find("front").unwrap(), first_id);
    assert_eq!(host.engine().find(first_id.short()).unwrap(), first_id);
}

#[test]
fn a_running_container_is_removed_only_by_force() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sleep", "1000"]);
    assert!(matches!(host.engine().remove(&id, false, false), Err(EngineError::Phase { .. })));
    host.engine().remove(&id, true, false).unwrap();
    assert!(host.engine().list().is_empty());
    assert_eq!(host.shims(), Vec::<i32>::new(), "the group's shim has left with its last container");
}

#[test]
fn an_auto_removed_container_is_gone_after_its_end() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/true"]);
    config.auto_remove = true;
    host.start(config);
    eventually("it is gone", || host.engine().list().is_empty());
}

#[test]
fn only_what_need_not_survive_a_power_cut_is_written_without_syncs() {
    needs_root!();
    let host = Host::new();
    for is_ephemeral in [true, false] {
        let mut config = host.container(&[
            "/bin/sh",
            "-c",
            "grep -c ' / .*[,=]volatile' /proc/self/mountinfo; echo kept >>/note; cat /note",
        ]);
        config.ephemeral = is_ephemeral;
        let id = host.start(config);
        host.wait(&id);
        host.engine().start(&id, None).unwrap();
        host.wait(&id);
        let volatile = u8::from(is_ephemeral);
        assert_eq!(
            host.output(&id),
            format!("{volatile}\nkept\n{volatile}\nkept\nkept\n"),
            "its own layer is there the next time"
        );
    }
}

/// The end of an overlay waits until the host's whole file system is written: no end of a container may wait for that.
#[test]
fn what_a_container_has_mounted_outlives_its_processes_in_the_hands_of_its_shim_alone() {
    needs_root!();
    let host = Host::new();
    let staying = host.start_args(&["/bin/sleep", "1000"]);
    let (config, tell) = host.told("echo ready; until [ -e /host/end ]; do sleep 0.01; done");
    let id = host.start(config);
    eventually("it runs", || host.output(&id) == "ready\n");
    let name = |pid: i32, which: &str| std::fs::read_link(format!("/proc/{pid}/{which}")).unwrap_or_default();
    let mounts = name(host.state(&id).pid, "ns/mnt");
    let [shim] = host.shims()[..] else { panic!("one shim") };
    let holds = || {
        let descriptors = std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap();
        descriptors.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == mounts))
    };
    assert!(holds());
    std::fs::write(tell.join("end"), "").unwrap();
    host.wait(&id);
    eventually("it is let go of", || !holds());
    assert_eq!(host.shims(), [shim], "for what runs on");
    host.engine().remove(&staying, true, false).unwrap();
}

#[test]
fn secrets_are_in_memory_only_and_shown_inside() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&[
        "/bin/sh",
        "-c",
        "cat /run/secrets/key; stat -c '%u %g %a' /run/secrets/key; cat /etc/hosts; hostname",
    ]);
    config.hostname = "box".to_owned();
    config.files = vec![InjectedFile {
        target: "/run/secrets/key".to_owned(),
        content: b"s3cr3t-of-this-test\n".to_vec(),
        digest: "d".to_owned(),
        uid: 1000,
        gid: 1000,
        mode: 0o440,
        secret: true,
    }];
    let id = host.start(config);
    host.wait(&id);
    let output = host.output(&id);
    assert!(output.starts_with("s3cr3t-of-this-test\n1000 1000 440\n127.0.0.1\tlocalhost\n"), "{output}");
    assert!(output.ends_with("\nbox\n"), "{output}");
    // The log is the container's own doing; nothing else on disk has it.
    let config = std::fs::read_to_string(host.engine().log_directory(&id).unwrap().join("config.json")).unwrap();
    assert!(!config.contains("s3cr3t"));
    let files = host.config.run_dir.join("files");
    let kind = nix::sys::statfs::statfs(&files).unwrap().filesystem_type();
    assert_eq!(kind, nix::sys::statfs::TMPFS_MAGIC);
}

#[test]
fn secrets_of_containers_that_come_and_go_at_the_same_time_do_not_take_each_other_away() {
    const AT_ONCE: usize = 8;
    const ROUNDS: usize = 40;
    needs_root!();
    let host = Host::new();
    let come_and_go = || {
        let mut config = host.container(&["/bin/true"]);
        config.files = vec![InjectedFile {
            target: "/run/secrets/key".to_owned(),
            content: b"s3cr3t".to_vec(),
            digest: "d".to_owned(),
            uid: 0,
            gid: 0,
            mode: 0o400,
            secret: true,
        }];
        let id = config.id.clone();
        host.engine().create(config).unwrap();
        let file = host.config.run_dir.join("files").join(&id.0).join("0");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "s3cr3t");
        assert_eq!(nix::sys::statfs::statfs(&file).unwrap().filesystem_type(), nix::sys::statfs::TMPFS_MAGIC);
        host.engine().remove(&id, false, false).unwrap();
    };
    for _ in 0..ROUNDS {
        std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(come_and_go))));
    }
    let path = host.config.run_dir.join("files");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!path.exists() && !mounts.contains(path.to_str().unwrap()), "{mounts}");
}

#[test]
fn an_unprivileged_container_can_write_to_its_own_streams() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/sh", "-c", "echo one > /dev/stdout; echo two > /proc/self/fd/2; id -u"]);
    config.process.user = "web".to_owned();
    let (state, output) = host.run(config);
    assert_eq!(
        (state.exit_code, output.contains("one\n"), output.contains("two\n"), output.contains("1000\n")),
        (Some(0), true, true, true),
        "{output}"
    );
}

#[test]
fn top_and_stats_show_what_runs() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sh", "-c", "sleep 1000 & echo up; wait"]);
    eventually("it is up", || host.output(&id) == "up\n");
    eventually("both processes are listed", || {
        let processes = host.engine().top(&id).unwrap();
        assert_eq!(processes[0].pid, host.state(&id).pid);
        processes.iter().any(|process| process.command == "sleep 1000" && process.parent == processes[0].pid)
    });
    let stats = host.engine().stats(&id).unwrap();
    assert_eq!(stats.pids, 2);
    assert!(stats.memory > 0);
}

#[test]
fn a_second_engine_on_the_same_directory_is_refused_with_the_holders_pid() {
    needs_root!();
    let host = Host::new();
    let error = orch_engine::engine::Engine::open(host.config.clone()).unwrap_err();
    assert!(chain(&error).contains(&format!("pid {}", std::process::id())), "{}", chain(&error));
    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("something"), "").unwrap();
    let mut config = host.config.clone();
    config.data_dir = foreign.path().to_owned();
    let error = orch_engine::engine::Engine::open(config.clone()).unwrap_err();
    assert!(chain(&error).contains("not a data directory"), "{}", chain(&error));
    std::fs::remove_file(foreign.path().join("something")).unwrap();
    std::fs::write(foreign.path().join("format"), "orch 99\n").unwrap();
    let error = orch_engine::engine::Engine::open(config).unwrap_err();
    assert!(chain(&error).contains("its format is 99"), "{}", chain(&error));
}

#[test]
fn a_half_made_container_is_not_seen_and_goes_away() {
    needs_root!();
    let mut host = Host::new();
    host.close();
    let half = host.config.data_dir.join("containers/.new-abc");
    std::fs::create_dir_all(half.join("upper/etc")).unwrap();
    let trash = host.config.data_dir.join("trash/old.0");
    std::fs::create_dir_all(trash.join("upper")).unwrap();
    assert!(host.open().list().is_empty());
    assert!(!half.exists());
    eventually("the trash is empty", || !trash.exists());
}
