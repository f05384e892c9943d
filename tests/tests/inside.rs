//! Getting into containers: exec, run, attach, cp, top, stats.

use std::time::Duration;

use nix::sys::signal::Signal;
use orch_tests::host::Host;
use orch_tests::image;
use orch_tests::wait::{PATIENCE, eventually};

const ONE: &str = "name: one\nservices: {a: {image: busybox, command: sleep infinity, init: true, environment: {FROM: file}, hostname: inside}}";

#[test]
fn exec_returns_the_commands_code_and_keeps_its_streams_apart() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    let output = host.orch(&["exec", "-T", "a", "sh", "-c", "echo out; echo err >&2; exit 42"]).code(42);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    host.orch(&["exec", "-T", "a", "no-such-command"]).code(127).says(&["no-such-command"]);
    host.orch(&["exec", "-T", "a", "/etc/passwd"]).code(126).says(&["/etc/passwd"]);
    host.orch(&["exec", "-T", "a", "sh", "-c", "kill -9 $$"]).code(137);
    host.orch(&["exec", "-T", "nobody", "true"]).fails().says(&["no such service: nobody"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn exec_takes_standard_input_to_its_end() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let output = host.invoke(&["exec", "-T", "a", "sh", "-c", "wc -c; echo end"]).stdin(bytes.clone()).run().ok();
    assert_eq!(output.text(), "3000000\nend");
    let back = host.invoke(&["exec", "-T", "a", "md5sum"]).stdin(bytes).run().ok();
    assert_eq!(back.text().split(' ').next().map(str::len), Some(32));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn exec_takes_variables_a_user_and_a_folder() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    let output = host
        .orch(&[
            "exec",
            "-T",
            "-e",
            "X=1 2",
            "-u",
            "nobody",
            "-w",
            "/etc",
            "a",
            "sh",
            "-c",
            "echo $FROM $X $(id -u) $PWD",
        ])
        .ok();
    assert_eq!(output.text(), "file 1 2 65534 /etc");
    host.orch(&["exec", "-d", "a", "touch", "/made"]).ok();
    eventually(PATIENCE, "the detached command has run", || {
        let seen = host.orch(&["exec", "-T", "a", "test", "-e", "/made"]);
        if seen.code == 0 { Ok(()) } else { Err(seen.told()) }
    });
    host.down();
    host.leaves_no_trace();
}

#[test]
fn exec_at_a_terminal_has_one_with_the_windows_size() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    let mut terminal = host.terminal(&["exec", "a", "sh"]);
    terminal.types("tty; stty size\r");
    terminal.shows("/dev/pts/", PATIENCE);
    terminal.shows("24 80", PATIENCE);
    terminal.resize(40, 100);
    eventually(PATIENCE, "the new size is known inside", || {
        terminal.types("stty size\r");
        if terminal.screen().contains("40 100") { Ok(()) } else { Err(terminal.screen()) }
    });
    terminal.types("sleep 100\r");
    terminal.shows("sleep 100", PATIENCE);
    terminal.types("\u{3}");
    terminal.types("echo back at the prompt; exit 7\r");
    terminal.ends(PATIENCE).code(7);
    assert_eq!(host.running().len(), 1);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn the_command_of_an_exec_whose_client_dies_ends() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    let exec = host.start(&["exec", "-T", "a", "sh", "-c", "echo on; exec sleep 4321"]);
    exec.prints("on");
    exec.signal(Signal::SIGKILL);
    drop(exec);
    let processes = host.processes();
    eventually(PATIENCE, "its command ends", || {
        let left: Vec<String> =
            processes.all().into_iter().map(|p| processes.command(p)).filter(|c| c == "sleep 4321").collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    host.down();
    host.leaves_no_trace();
}

#[test]
fn run_makes_a_container_beside_the_service_and_rm_takes_it_away() {
    let host = Host::with_busybox();
    host.stack(
        "name: r\nservices:
  app: {image: busybox, command: [echo, its own], ports: ['8080:80'], depends_on: [base], environment: {FROM: file}}
  base: {image: busybox, command: sleep infinity, init: true}",
    );
    let output = host.orch(&["run", "--rm", "-T", "-e", "X=y", "app", "sh", "-c", "echo $FROM $X; exit 5"]).code(5);
    assert_eq!(output.text(), "file y");
    let names = || -> Vec<String> { host.ps().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect() };
    assert_eq!(names(), ["r-base-1"], "its dependency runs on, it itself is gone when the command is over");
    let script = "echo $FROM $X; id -u; kill -0 1 && cat /proc/self/status | grep CapEff";
    host.write("more.env", "X=of the file\nFROM=as well\n");
    let own = [
        "run",
        "--rm",
        "-T",
        "--env-from-file",
        "more.env",
        "-e",
        "X=typed",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "chown",
    ];
    let output = host.orch(&[&own[..], &["app", "sh", "-c", script]].concat()).ok();
    assert_eq!(output.text(), "as well typed\n0\nCapEff:\t0000000000000001");
    host.orch(&["run", "--pull", "always", "app"]).code(1).says(&["no registry client"]);
    let interrupted = host.start(&[
        "run",
        "--rm",
        "-T",
        "app",
        "sh",
        "-c",
        "trap 'exit 3' INT; echo on; while :; do sleep 0.1; done",
    ]);
    interrupted.prints("on");
    interrupted.signal(Signal::SIGINT);
    interrupted.ends(PATIENCE).code(3);
    assert_eq!(names(), ["r-base-1"]);
    host.orch(&["run", "-T", "--name", "once", "app"]).ok().prints(&["its own"]);
    assert!(host.ps().iter().any(|c| c["name"] == "once" && c["state"] == "exited"), "{:?}", host.ps());
    for letters in ["-T", "-iT", "-it"] {
        let input = host.invoke(&["run", "--rm", letters, "app", "cat"]).stdin("typed").run().ok();
        assert_eq!(input.stdout, "typed", "{letters}");
        let input = host.invoke(&["exec", letters, "base", "cat"]).stdin("typed").run().ok();
        assert_eq!(input.stdout, "typed", "{letters}");
    }
    let input = host.invoke(&["run", "--rm", "--interactive=false", "app", "cat"]).stdin("typed").run().ok();
    assert_eq!(input.stdout, "");
    host.orch(&["run", "--rm", "-T", "app", "no-such-command"]).code(127);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn container_run_says_by_its_code_how_it_ended() {
    let host = Host::with_busybox();
    let run = |rest: &[&str]| host.orch(&[&["container", "run", "--rm"], rest].concat());
    run(&["busybox", "true"]).code(0);
    run(&["busybox", "sh", "-c", "exit 9"]).code(9);
    run(&["busybox", "no-such-command"]).code(127).says(&["no-such-command"]);
    run(&["busybox", "/etc/passwd"]).code(126);
    // As process 1 it would not hear its own signal: pid_namespaces(7).
    run(&["--init", "busybox", "sh", "-c", "kill -15 $$; sleep 5"]).code(143);
    run(&["--user", "nobody-knows", "busybox", "true"]).code(125).says(&["nobody-knows"]);
    run(&["no-such-image", "true"]).code(125).says(&["no-such-image"]);
    run(&["--no-such-flag", "busybox"]).code(2);
    assert_eq!(
        run(&["--network", "none", "-w", "/tmp", "-e", "A=b", "busybox", "sh", "-c", "echo $A $PWD"]).ok().text(),
        "b /tmp"
    );
    assert_eq!(host.orch(&["container", "ls", "-a", "-q"]).ok().text(), "");
    host.leaves_no_trace();
}

#[test]
fn exec_makes_no_folder_and_takes_variables_of_files() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true, working_dir: /made/for/it}}");
    host.up();
    assert_eq!(host.exec("a", "pwd"), "/made/for/it");
    let name = host.container("a")["name"].as_str().unwrap().to_owned();
    for exec in [&["exec", "-T", "-w", "/typo", "a"][..], &["container", "exec", "-w", "/typo", &name]] {
        host.orch(&[exec, &["true"]].concat()).code(126).says(&["/typo", "No such file or directory"]);
    }
    host.exec("a", "! test -e /typo");
    host.write("some.env", "A=1\nB=as it $stands\n");
    let options = ["container", "exec", "--env-file", "some.env", "-e", "A=2", "-u", "1:1", "-w", "/tmp", &name];
    let output = host.orch(&[&options[..], &["sh", "-c", "echo $A $B $(id -u) $PWD"]].concat()).ok();
    assert_eq!(output.text(), "2 as it $stands 1 /tmp");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn container_run_takes_mounts_ports_and_names_as_docker_writes_them() {
    let host = Host::with_busybox();
    let run = |rest: &[&str]| host.orch(&[&["container", "run", "--rm"], rest].concat());
    let own =
        ["-h", "inside", "--domainname", "example.org", "--mac-address", "02:00:00:00:00:0a", "busybox", "sh", "-c"];
    let seen =
        run(&[&own[..], &["hostname; cat /proc/sys/kernel/domainname /sys/class/net/eth0/address"]].concat()).ok();
    assert_eq!(seen.lines(), ["inside", "example.org", "02:00:00:00:00:0a"]);

    host.write("shown/file", "of the host\n");
    let bind = format!("type=bind,source={}/shown,target=/a,readonly", host.folder().display());
    let mounts = [
        "--mount",
        &bind,
        "--mount",
        "source=v,target=/b",
        "--mount",
        "type=tmpfs,target=/c,tmpfs-size=1m,tmpfs-mode=0700",
    ];
    let script = "cat /a/file; touch /a/no 2>/dev/null || echo not; echo kept >/b/x; stat -c %a /c; df -k /c | tail -1 | awk '{print $2}'";
    let seen = run(&[&mounts[..], &["busybox", "sh", "-c", script]].concat()).ok();
    assert_eq!(seen.lines(), ["of the host", "not", "700", "1024"]);
    let nowhere = format!("type=bind,source={}/nowhere,target=/a", host.folder().display());
    run(&["--mount", &nowhere, "busybox", "true"]).code(125).says(&["nowhere"]);
    run(&["--mount", "type=bind,source=/x", "busybox", "true"]).code(2).says(&["`target` is missing"]);

    image::root_archive(&host.folder().join("root.tar"), &[]);
    host.orch(&["image", "import", "-c", "EXPOSE 80 9000-9001/udp", "root.tar", "exposing"]).ok();
    let server =
        ["--name", "lends", "--cidfile", "id", "-P", "--expose", "81", "--mount", "source=v,target=/b,volume-nocopy"];
    let id = host
        .orch(&[&["container", "run", "-d", "--init"], &server[..], &["exposing", "sleep", "infinity"]].concat())
        .ok();
    assert_eq!(std::fs::read_to_string(host.folder().join("id")).unwrap(), id.text());
    let shown = host.orch(&["container", "inspect", "lends"]).ok().json();
    let mut ports: Vec<String> = shown[0]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| format!("{}/{}", p["target"], p["protocol"].as_str().unwrap()))
        .collect();
    ports.sort_unstable();
    assert_eq!(ports, ["80/tcp", "81/tcp", "9000/udp", "9001/udp"], "{shown}");
    host.orch(&["container", "run", "--rm", "--cidfile", "id", "busybox", "true"])
        .code(125)
        .says(&["id is there already"]);
    run(&["--cidfile", "other", "--volumes-from", "lends:ro", "busybox", "sh", "-c", "cat /b/x; ! touch /b/y"])
        .ok()
        .prints(&["kept"]);
    assert_eq!(std::fs::read_to_string(host.folder().join("other")).unwrap().len(), 64);
    run(&["--cidfile", "third", "--volumes-from", "nobody", "busybox", "true"]).code(125).says(&["nobody"]);
    assert!(!host.folder().join("third").exists(), "of a container that was not made");

    let limits = [
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "50000",
        "--memory",
        "64m",
        "--memory-reservation",
        "32m",
        "-c",
        "512",
    ];
    let more = ["--blkio-weight", "300", "--cgroupns", "private", "--device-cgroup-rule", "c 1:3 r", "--pull", "never"];
    run(&[
        &limits[..],
        &more[..],
        &["--health-start-interval", "1s", "--log-driver", "none", "--net", "none", "busybox", "true"],
    ]
    .concat())
    .ok();
    run(&["--pull", "always", "busybox", "true"]).code(1).says(&["no registry client"]);
    run(&["--gpus", "all", "busybox"]).code(1).says(&["--device"]);
    run(&["--help"]).ok().prints(&["--cidfile", "--mount"]);
    host.orch(&["container", "rm", "-f", "lends"]).ok();
    host.orch(&["volume", "rm", "v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn container_run_takes_variables_of_files_an_address_and_names() {
    let host = Host::with_busybox();
    let run = |rest: &[&str]| host.orch(&[&["container", "run", "--rm"], rest].concat());
    host.write("some.env", "A=1\nB=as it $stands \"here\"\n# not this\nPASSED\n");
    let script = "echo $A; echo $B; echo $PASSED";
    let output = host
        .invoke(&["container", "run", "--rm", "--env-file", "some.env", "busybox", "sh", "-c", script])
        .env("PASSED", "on")
        .run()
        .ok();
    assert_eq!(output.stdout, "1\nas it $stands \"here\"\non\n");
    run(&["--env-file", "none.env", "busybox", "true"]).code(2).says(&["none.env"]);

    host.write("labels", "kept=as it $stands\n# not this\n  bare\nother=file\n");
    // The last of an option that stands twice counts, as people expect who have the first one in an alias.
    let twice = ["--name", "not", "--name", "named", "-h", "x", "--hostname", "box.example.org"];
    let files = ["--label-file", "labels", "--label", "other=word"];
    host.orch(&[&["container", "run"], &twice[..], &files, &["busybox", "cat", "/etc/hosts"]].concat())
        .ok()
        .prints(&["\tbox.example.org box\n"]);
    let labels = host.orch(&["container", "inspect", "named"]).ok().json()[0]["config"]["labels"].clone();
    for (key, value) in [("kept", "as it $stands"), ("bare", ""), ("other", "word")] {
        assert_eq!(labels[key], value, "{labels}");
    }
    host.orch(&["container", "rm", "named"]).ok();
    run(&["--label-file", "none", "busybox", "true"]).code(1).says(&["none"]);

    host.orch(&["network", "create", "--subnet", "172.30.7.0/24", "seven"]).ok();
    let own = ["--network", "seven", "--ip", "172.30.7.9", "--network-alias", "nine"];
    host.orch(
        &[&["container", "run", "-d", "--name", "a", "--init"], &own[..], &["busybox", "sleep", "infinity"]].concat(),
    )
    .ok();
    assert!(
        run(&["--network", "seven", "busybox", "ping", "-c", "1", "-w", "5", "nine"])
            .ok()
            .stdout
            .contains("172.30.7.9")
    );
    run(&["--ip", "172.30.7.8", "busybox", "true"]).code(2).says(&["--ip"]);
    run(&["--network", "seven", "--network", "bridge", "busybox", "true"]).code(2).says(&["`bridge`"]);
    for (option, value) in [
        ("--pid", "mine"),
        ("--ipc", "mine"),
        ("--dns", "somebody"),
        ("--log-opt", "max-size=big"),
        ("--health-timeout", "3q"),
    ] {
        run(&[option, value, "busybox", "true"]).code(2).says(&[value.rsplit('=').next().unwrap()]);
    }
    run(&["--restart", "always", "busybox", "true"]).code(2).says(&["--restart"]);
    run(&["--restart", "no", "busybox", "true"]).ok();
    run(&["-v", "./v:/v:sometimes", "busybox", "true"]).ok().says(&["warning", "sometimes"]);
    host.orch(&["container", "rm", "-f", "a"]).ok();
    host.orch(&["network", "rm", "seven"]).ok();
    host.leaves_no_trace();
}

#[test]
fn containers_by_hand_live_as_they_are_told() {
    let host = Host::with_busybox();
    let id = host.orch(&["container", "run", "-d", "--name", "hand", "--init", "busybox", "sleep", "infinity"]).ok();
    assert_eq!(id.text().len(), 64, "{}", id.told());
    host.orch(&["container", "ls", "--format", "json"]).ok().prints(&["hand", id.text()]);
    assert_eq!(host.orch(&["container", "exec", "hand", "echo", "hi"]).ok().text(), "hi");
    host.orch(&["container", "pause", "hand"]).ok();
    host.orch(&["container", "unpause", "hand"]).ok();
    host.orch(&["container", "top", "hand"]).ok().prints(&["sleep"]);
    host.orch(&["container", "stats", "--no-stream", "hand"]).ok().prints(&["hand"]);
    host.orch(&["container", "inspect", "hand"]).ok().prints(&[id.text()]);
    host.orch(&["container", "rm", "hand"]).fails().says(&["hand"]);
    host.orch(&["container", "restart", "-t", "5", "hand"]).ok();
    host.orch(&["container", "stop", "-t", "5", "hand"]).ok();
    host.orch(&["container", "wait", "hand"]).ok();
    host.orch(&["container", "start", "hand"]).ok();
    host.orch(&["container", "kill", "hand"]).ok();
    let wait = host.orch(&["container", "wait", "hand"]);
    assert!(wait.stdout.contains("137"), "{}", wait.told());
    host.orch(&["container", "prune", "-f"]).ok();
    assert_eq!(host.orch(&["container", "ls", "-a", "-q"]).ok().text(), "");
    host.leaves_no_trace();
}

#[test]
fn attach_shows_and_types_and_its_keys_let_go() {
    let host = Host::with_busybox();
    host.stack("name: t\nservices: {a: {image: busybox, command: sh, tty: true, stdin_open: true}}");
    host.up();
    let before = host.running();
    let mut terminal = host.terminal(&["attach", "a"]);
    terminal.types("echo $((40+2))\r");
    terminal.shows("42", PATIENCE);
    terminal.types("\u{10}\u{11}");
    let _ = terminal.ends(PATIENCE);
    assert_eq!(host.running(), before, "letting go ended it");
    host.orch(&["logs"]).ok().prints(&["42"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn files_are_copied_both_ways_with_their_modes() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    host.write("folder/deep/file", "content");
    host.write("folder/script", "#!/bin/sh\n");
    let script = host.folder().join("folder/script");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    std::os::unix::fs::symlink("deep/file", host.folder().join("folder/link")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(host.folder().join("folder/deep/socket")).unwrap();
    host.orch(&["cp", "folder", "a:/tmp"]).ok().says(&["folder/deep/socket is left out"]);
    drop(socket);
    host.exec("a", "mkfifo /tmp/folder/pipe");
    assert_eq!(host.exec("a", "cat /tmp/folder/link; stat -c ' %a' /tmp/folder/script"), "content 751");
    host.exec("a", "echo from inside >/tmp/folder/deep/file");
    host.orch(&["cp", "a:/tmp/folder", "back"]).ok().says(&["pipe is left out"]);
    assert!(!host.folder().join("back/pipe").exists());
    assert_eq!(std::fs::read_to_string(host.folder().join("back/deep/file")).unwrap(), "from inside\n");
    assert_eq!(std::fs::read_link(host.folder().join("back/link")).unwrap().to_str(), Some("deep/file"));
    let tar = host.orch(&["cp", "a:/etc/passwd", "-"]).ok();
    assert!(tar.stdout.contains("ustar") && tar.stdout.contains("root:x:0:0"), "{}", tar.told());
    host.orch(&["cp", "a:/nowhere", "x"]).fails().says(&["/nowhere"]);
    host.orch(&["cp", "nowhere", "a:/tmp"]).fails().says(&["nowhere"]);
    // A link inside may not lead the copy to the host's files.
    host.exec("a", "ln -s /etc /trap");
    host.write("passwd", "only inside\n");
    host.orch(&["cp", "passwd", "a:/trap/copied"]).ok();
    assert_eq!(host.exec("a", "cat /etc/copied"), "only inside");
    assert!(!std::path::Path::new("/etc/copied").exists());
    host.down();
    host.leaves_no_trace();
}

#[test]
fn top_and_stats_show_each_container() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    host.orch(&["top"]).ok().prints(&["one-a-1", "sleep infinity"]);
    let stats = host.orch(&["stats", "--no-stream", "--format", "json"]).ok().json_lines();
    assert_eq!(stats.len(), 1);
    assert!(stats[0].to_string().contains("one-a-1"), "{}", stats[0]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn secrets_and_configs_are_files_with_the_owner_and_mode_asked_for() {
    let host = Host::with_busybox();
    host.write("key.txt", "from a file");
    host.stack(
        "services:
  a:
    image: busybox
    init: true
    command: sleep infinity
    secrets: [key, {source: token, target: /run/other/token, uid: '1000', gid: '100', mode: 0440}]
    configs: [{source: text, target: /etc/text.conf, mode: 0604}]
secrets: {key: {file: ./key.txt}, token: {environment: TOKEN}}
configs: {text: {content: \"value is $${PLAIN} and ${FILLED}\\n\"}}",
    );
    host.invoke(&["up", "-d", "--wait"]).env("TOKEN", "very secret").env("FILLED", "full").run().ok();
    assert_eq!(host.exec("a", "cat /run/secrets/key"), "from a file");
    assert_eq!(
        host.exec("a", "cat /run/other/token; stat -c ' %u %g %a' /run/other/token"),
        "very secret 1000 100 440"
    );
    assert_eq!(host.exec("a", "cat /etc/text.conf; stat -c %a /etc/text.conf"), "value is ${PLAIN} and full\n604");
    host.orch(&["exec", "-T", "a", "sh", "-c", "echo x >/run/secrets/key"]).fails();
    let state = host.sh(
        orch_tests::machine::Place::Host,
        &format!("grep -rl 'very secret' {} /run || true", host.data().display()),
    );
    let on_disk: Vec<&str> = state.lines().filter(|l| !l.starts_with("/run/")).collect();
    assert!(
        on_disk.iter().all(|l| !l.contains("containers/")),
        "a secret lies on disk with its container: {on_disk:?}"
    );
    host.down();
    host.leaves_no_trace();
}

#[test]
fn an_init_reaps_what_others_left() {
    let host = Host::with_busybox();
    host.stack(ONE);
    host.up();
    host.exec("a", "for n in 1 2 3 4 5 6 7 8; do (sh -c 'sleep 0.05 &' &); done");
    eventually(Duration::from_secs(10), "no zombie is left", || {
        let list = host.exec("a", "ps -o pid,stat,args");
        if list.lines().any(|l| l.contains(" Z")) { Err(list) } else { Ok(()) }
    });
    host.down();
    host.leaves_no_trace();
}

#[test]
fn what_is_run_with_rm_is_gone_when_its_command_ends() {
    let host = Host::with_busybox();
    for _ in 0..5 {
        let run = ["container", "run", "--rm", "--name", "same", "-p", "8080:80", "-v", "kept:/v", "busybox", "true"];
        host.orch(&run).ok();
        host.orch(&["volume", "rm", "kept"]).ok();
    }
    host.leaves_no_trace();
}
