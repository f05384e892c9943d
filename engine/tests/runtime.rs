//! Real containers on the real kernel: what a container gets.

#![allow(clippy::unwrap_used, reason = "tests and their parts")]

#[path = "runtime/support.rs"]
#[macro_use]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by test programs that use a part each")]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use orch_engine::chain;
use orch_engine::config::{ContainerId, Device, InjectedFile, Mount, MountKind, NetworkNs, Resources, Share};
use orch_engine::runtime::{Stdio, prepare};
use support::{Fixture, Running, eventually, strings};

fn shell(script: &str) -> Fixture {
    Fixture::new(&["sh", "-c", script])
}

fn bind(source: std::path::PathBuf, target: &str, read_only: bool) -> Mount {
    let kind = MountKind::Bind { source, create_host_path: false, propagation: String::new(), recursive: true };
    Mount { target: target.to_owned(), kind, read_only }
}

#[test]
fn a_container_runs_its_command_and_its_output_arrives() {
    needs_root!();
    let outcome = Fixture::new(&["echo", "hello"]).run();
    assert_eq!(outcome.success(), "hello");
}

#[test]
fn exit_codes_tell_not_found_from_not_executable() {
    needs_root!();
    assert_eq!(shell("exit 3").run().code(), 3);
    // Under a reaper: the kernel keeps a first process from killing itself.
    let mut suicide = shell("kill -9 $$");
    suicide.config.init = true;
    assert_eq!(suicide.run().code(), 137);
    let refused = |args: &[&str]| Fixture::new(args).try_start().err().expect("must not start");
    let missing = refused(&["no-such-command"]);
    assert_eq!((missing.exit_code, missing.text.contains("not found in PATH")), (127, true), "{missing}");
    assert_eq!(refused(&["/no/such/command"]).exit_code, 127);
    assert_eq!(refused(&["/etc/passwd"]).exit_code, 126);
    assert_eq!(refused(&["/etc"]).exit_code, 126);
    let mut garbage = Fixture::new(&["/garbage"]);
    fs::write(garbage.image().join("garbage"), "\x00\x01garbage").unwrap();
    fs::set_permissions(garbage.image().join("garbage"), fs::Permissions::from_mode(0o755)).unwrap();
    let refusal = garbage.try_start().err().expect("must not start");
    assert_eq!((refusal.exit_code, refusal.text.contains("exec format error")), (126, true), "{refusal}");
}

#[test]
fn every_namespace_is_its_own() {
    needs_root!();
    let outcome = shell("cd /proc/self/ns; for n in cgroup ipc mnt net pid time uts; do readlink $n; done").run();
    for line in outcome.success().lines() {
        let (name, _) = line.split_once(':').unwrap();
        let host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(host.to_str().unwrap(), line);
    }
    assert_eq!(outcome.stdout.lines().count(), 7);
}

#[test]
fn only_the_standard_streams_are_open() {
    needs_root!();
    // A careless caller: two hundred descriptors without close-on-exec.
    let leaked: Vec<_> = (0..200).map(|_| nix::unistd::dup(File::open("/").unwrap()).unwrap()).collect();
    for fd in &leaked {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    }
    let mut fixture = shell("ls /proc/self/fd; exec cat /proc/self/fdinfo/9");
    let listed = fixture.run();
    // `ls` holds 3 itself, for the directory it lists.
    assert_eq!(listed.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    fixture.config.init = true;
    fixture.config.process.args = strings(&["sh", "-c", "ls /proc/1/fd"]);
    assert_eq!(fixture.run().stdout.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
}

#[test]
fn the_mounts_are_dockers() {
    needs_root!();
    let outcome = shell("cat /proc/self/mountinfo").run();
    let mut seen = BTreeMap::new();
    for line in outcome.success().lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let dash = fields.iter().position(|field| *field == "-").unwrap();
        seen.insert(fields[4].to_owned(), (fields[dash + 1].to_owned(), fields[5].to_owned()));
        assert!(fields[6..dash].is_empty(), "shared with the host: {line}");
    }
    for (target, kind, options) in [
        ("/", "overlay", "rw,relatime"),
        ("/proc", "proc", "rw,nosuid,nodev,noexec,relatime"),
        ("/dev", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec,relatime"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec,relatime"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec,relatime"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec,relatime"),
        ("/proc/sys", "proc", "ro,nosuid,nodev,noexec,relatime"),
        ("/proc/sysrq-trigger", "proc", "ro,nosuid,nodev,noexec,relatime"),
    ] {
        if !std::path::Path::new(target).exists() {
            continue;
        }
        assert_eq!(seen.get(target), Some(&(kind.to_owned(), options.to_owned())), "{target}");
    }
    for target in [
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/interrupts",
    ] {
        assert!(seen.contains_key(target) || !std::path::Path::new(target).exists(), "{target}: {seen:?}");
    }
    assert!(seen.keys().any(|target| target.starts_with("/sys/fs/cgroup")), "{seen:?}");
    // Nothing of the host is left below: every mount is one of ours.
    assert!(!seen.contains_key("/work") && !seen.contains_key("/run"), "{seen:?}");
}

#[test]
fn the_process_has_dockers_privileges_and_nothing_inherited() {
    needs_root!();
    let outcome = Fixture::new(&["cat", "/proc/self/status"]).run();
    let status: BTreeMap<_, _> = outcome.success().lines().filter_map(|line| line.split_once(":\t")).collect();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let expected = format!("{:016x}", 0xa804_25fb_u64 & u64::from_str_radix(bounding, 16).unwrap());
    for (key, value) in [
        ("CapEff", expected.as_str()),
        ("CapPrm", &expected),
        ("CapBnd", &expected),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "0"),
        ("Seccomp", "2"),
        ("SigBlk", "0000000000000000"),
        ("SigIgn", "0000000000000000"),
        ("Umask", "0022"),
        ("Uid", "0\t0\t0\t0"),
        ("Gid", "0\t0\t0\t0"),
        ("NSpid", "1"),
        ("NSsid", "1"),
    ] {
        assert_eq!(status.get(key).map(|value| value.trim()), Some(value), "{key}");
    }
}

#[test]
fn dev_has_the_default_devices_and_links() {
    needs_root!();
    let script = "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %F %a %t:%T' $d; done; \
        for l in ptmx fd stdin stdout stderr; do echo $l $(readlink $l); done; stat -c '%n %a' shm pts; echo x > null";
    assert_eq!(
        shell(script).run().success(),
        "null character special file 666 1:3\nzero character special file 666 1:5\nfull character special file 666 1:7\n\
         random character special file 666 1:8\nurandom character special file 666 1:9\ntty character special file 666 5:0\n\
         ptmx pts/ptmx\nfd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\n\
         shm 1777\npts 755"
    );
}

#[test]
fn users_and_groups_are_those_of_the_image() {
    needs_root!();
    let id = |user: &str, add: &[&str]| {
        let mut fixture = shell("id -u; id -g; id -G; echo $HOME");
        fixture.config.process.user = user.to_owned();
        fixture.config.process.group_add = strings(add);
        fixture.run().success().replace('\n', " ")
    };
    assert_eq!(id("", &[]), "0 0 0 /root");
    assert_eq!(id("web", &[]), "1000 1000 1000 2000 /home/web");
    assert_eq!(id("1000", &[]), "1000 1000 1000 2000 /home/web");
    assert_eq!(id("web:logs", &[]), "1000 2000 2000 /home/web");
    assert_eq!(id("4711", &["logs", "77"]), "4711 0 0 77 2000 /");
    assert_eq!(id("4711:4712", &[]), "4711 4712 4712 /");
}

#[test]
fn a_user_without_root_holds_no_capability() {
    needs_root!();
    let mut fixture = Fixture::new(&["grep", "Cap", "/proc/self/status"]);
    fixture.config.process.user = "web".to_owned();
    let outcome = fixture.run();
    for line in outcome.success().lines().filter(|line| !line.starts_with("CapBnd")) {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
}

#[test]
fn the_environment_is_complete_and_the_working_directory_is_made() {
    needs_root!();
    let mut fixture = shell("pwd; stat -c '%u %a' .; env | grep -v -E '^(SHLVL|PWD|OLDPWD)=' | sort");
    fixture.config.process.cwd = "/srv/app/deep".to_owned();
    fixture.config.process.env = strings(&["A=1"]);
    assert_eq!(
        fixture.run().success(),
        "/srv/app/deep\n0 755\nA=1\nHOME=/root\nHOSTNAME=box\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
}

#[test]
fn names_and_generated_files_are_its_own() {
    needs_root!();
    let mut fixture =
        shell("hostname; cat /proc/sys/kernel/domainname /etc/hosts /etc/resolv.conf; ip link show lo | grep -c UP");
    fixture.config.domainname = "example".to_owned();
    assert_eq!(fixture.run().success(), "box\nexample\n127.0.0.1 localhost\nnameserver 127.0.0.11\n1");
}

#[test]
fn a_dangling_link_in_the_image_does_not_keep_the_resolver_out() {
    needs_root!();
    let mut fixture = Fixture::new(&["cat", "/etc/resolv.conf"]);
    symlink("/run/systemd/resolve/stub-resolv.conf", fixture.image().join("etc/resolv.conf")).unwrap();
    assert_eq!(fixture.run().success(), "nameserver 127.0.0.11");
}

#[test]
fn binds_volumes_and_tmpfs_are_mounted_as_asked() {
    needs_root!();
    let mut fixture = shell(
        "cat /in/file; echo new > /in/new; echo x > /locked/x; cat /sub/below; stat -c %a /scratch /fixed /tmp; \
         grep -E ' /(scratch|fixed) ' /proc/self/mountinfo | cut -d' ' -f6,9-; cat /run/secrets/key; echo y > /run/secrets/key; cat /one/file.txt",
    );
    let host = fixture.path("host");
    fs::create_dir_all(fixture.path("volume/part")).unwrap();
    fs::write(fixture.path("volume/part/below"), "below\n").unwrap();
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "content\n").unwrap();
    fs::write(fixture.path("files/0"), "secret\n").unwrap();
    fs::create_dir(fixture.image().join("scratch")).unwrap();
    fs::set_permissions(fixture.image().join("scratch"), fs::Permissions::from_mode(0o710)).unwrap();
    let tmpfs = |target: &str, options: &str| Mount {
        target: target.to_owned(),
        kind: MountKind::Tmpfs { options: options.to_owned() },
        read_only: false,
    };
    let volume = MountKind::Volume { name: "data".to_owned(), nocopy: false, subpath: "part".to_owned() };
    fixture.config.mounts = vec![
        bind(host.clone(), "/in", false),
        bind(host.clone(), "/locked", true),
        bind(host.join("file"), "/one/file.txt", false),
        Mount { target: "/sub".to_owned(), kind: volume, read_only: false },
        tmpfs("/scratch", "size=1m"),
        tmpfs("/fixed", "size=1m,mode=0700,exec"),
        tmpfs("/tmp", ""),
    ];
    fixture.config.files = vec![InjectedFile {
        target: "/run/secrets/key".to_owned(),
        content: Vec::new(),
        digest: String::new(),
        uid: 0,
        gid: 0,
        mode: 0o400,
        secret: true,
    }];
    let outcome = fixture.run();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[..5], ["content", "below", "710", "700", "755"], "{outcome:?}");
    assert!(
        lines[5].starts_with("rw,nosuid,nodev,noexec,relatime tmpfs ") && lines[5].contains("size=1024k"),
        "{outcome:?}"
    );
    assert!(lines[6].starts_with("rw,nosuid,nodev,relatime tmpfs "), "{outcome:?}");
    assert_eq!(lines[7..], ["secret", "content"], "{outcome:?}");
    assert!(host.join("new").exists());
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
}

#[test]
fn a_read_only_bind_is_read_only_all_the_way_down() {
    needs_root!();
    let mut fixture = shell("touch /in/below/x");
    let host = fixture.path("host");
    fs::create_dir_all(host.join("below")).unwrap();
    // A mount below the source, in the namespace of this thread only.
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS | nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        nix::mount::mount(
            Some("tmpfs"),
            &host.join("below"),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        fixture.config.mounts = vec![bind(host.clone(), "/in", true)];
        let outcome = fixture.run();
        // Before the directory is removed, which a mount in this namespace would keep from going.
        nix::mount::umount2(&host.join("below"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        outcome
    });
    let outcome = thread.join().unwrap();
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
}

#[test]
fn a_read_only_root_leaves_dev_shm_and_volumes_writable() {
    needs_root!();
    let mut fixture = shell("touch /x; touch /etc/hosts; touch /dev/shm/x && touch /in/x && echo fine");
    fixture.config.read_only = true;
    let host = fixture.path("host");
    fs::create_dir(&host).unwrap();
    fixture.config.mounts = vec![bind(host, "/in", false)];
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "fine\n", "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{outcome:?}");
}

#[test]
fn a_tmpfs_in_place_of_dev_shm_is_everybodys() {
    needs_root!();
    let mut fixture = shell("stat -c %a /dev/shm; stat -f -c %b /dev/shm");
    let kind = MountKind::Tmpfs { options: "size=1m".to_owned() };
    fixture.config.mounts = vec![Mount { target: "/dev/shm".to_owned(), kind, read_only: false }];
    assert_eq!(fixture.run().success(), "1777\n256");
}

#[test]
fn limits_devices_and_parameters_are_as_configured() {
    needs_root!();
    let mut fixture = shell(
        "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; stat -c '%t:%T' /dev/mine; \
        cat /proc/sys/kernel/msgmax /proc/self/oom_score_adj",
    );
    fixture.config.process.ulimits = BTreeMap::from([("nofile".to_owned(), (100, 200)), ("core".to_owned(), (0, 0))]);
    fixture.config.process.oom_score_adj = 123;
    fixture.config.devices =
        vec![Device { source: "/dev/null".to_owned(), target: "/dev/mine".to_owned(), permissions: "rw".to_owned() }];
    fixture.config.sysctls = BTreeMap::from([("kernel.msgmax".to_owned(), "4096".to_owned())]);
    assert_eq!(fixture.run().success(), "100\n200\n0\n0\n1:3\n4096\n123");
}

#[test]
fn a_parameter_of_the_host_is_refused() {
    needs_root!();
    for (name, value) in [
        ("kernel.core_pattern", "|/x"),
        ("vm.swappiness", "1"),
        ("net.ipv4.ip_forward", "1\n"),
        ("net/../kernel/x", "1"),
    ] {
        let mut fixture = Fixture::new(&["true"]);
        fixture.config.sysctls = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(fixture.try_start().is_err(), "{name}");
    }
}

#[test]
fn a_terminal_is_the_containers_own() {
    needs_root!();
    let mut fixture = shell("tty; stty size; stat -c '%F' /dev/console; echo $TERM; tty < /dev/tty");
    fixture.config.process.tty = true;
    let plan = fixture.plan();
    let launched =
        fixture.launcher.launch(&plan, Stdio::terminal(30, 100)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut running = Running::adopt(launched);
    let mut output = String::new();
    let mut terminal = File::from(running.take_terminal());
    // The kernel answers EIO once the other side is closed.
    let mut bytes = [0; 1024];
    while let Ok(count @ 1..) = terminal.read(&mut bytes) {
        output.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert_eq!(output, "/dev/pts/0\r\n30 100\r\ncharacter special file\r\nxterm\r\n/dev/tty\r\n");
    assert_eq!(running.wait().code(), 0);
}

#[test]
fn a_reaper_is_process_one_and_hands_on_signals_and_exit_codes() {
    needs_root!();
    let mut fixture = shell("cat /proc/1/comm; echo $$; exit 7");
    fixture.config.init = true;
    let outcome = fixture.run();
    assert_eq!(outcome.code(), 7, "{outcome:?}");
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_ne!(lines[1], "1", "{outcome:?}");

    // An orphan that ends becomes nobody's zombie; the signal reaches the program.
    let script = "trap 'echo term; exit 9' TERM; (sh -c 'true & exit 0'); while cat /proc/[0-9]*/stat 2>/dev/null | grep -q ') Z '; do :; done; echo ready; while :; do sleep 0.01; done";
    let mut fixture = shell(script);
    fixture.config.init = true;
    let mut running = fixture.start();
    running.read_until("ready");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.launched().pid), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let outcome = running.wait();
    assert_eq!((outcome.code(), outcome.stdout.trim()), (9, "term"), "{outcome:?}");

    let mut missing = Fixture::new(&["no-such-command"]);
    missing.config.init = true;
    let refusal = missing.try_start().err().expect("must not start");
    assert_eq!(refusal.exit_code, 127, "{refusal}");
}

#[test]
fn containers_share_namespaces_when_asked() {
    needs_root!();
    let mut first = shell("echo shared > /dev/shm/note; echo ready; sleep 1000");
    let mut owner = first.start();
    owner.read_until("ready");
    let mut second = shell(
        "cat /dev/shm/note; hostname; cat /proc/1/cmdline | grep -c sleep; cd /proc/self/ns; for n in ipc net pid uts mnt; do readlink $n; done",
    );
    let id = first.config.id.clone();
    second.context.containers = BTreeMap::from([(id.clone(), owner.identity())]);
    second.config.namespaces.ipc = Share::Container(id.clone());
    second.config.namespaces.uts = Share::Container(id.clone());
    second.config.namespaces.pid = Share::Container(id);
    second.config.namespaces.network = NetworkNs::Path(format!("/proc/{}/ns/net", owner.identity().pid).into());
    let outcome = second.run();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[..3], ["shared", "box", "1"], "{outcome:?}");
    for (line, name) in lines[3..].iter().zip(["ipc", "net", "pid", "uts"]) {
        assert_eq!(
            *line,
            fs::read_link(format!("/proc/{}/ns/{name}", owner.identity().pid)).unwrap().to_str().unwrap()
        );
    }
    assert_ne!(lines[7], fs::read_link(format!("/proc/{}/ns/mnt", owner.identity().pid)).unwrap().to_str().unwrap());
    // Once it is gone, nothing can be shared.
    drop(owner);
    let refusal = second.try_start().err().expect("must not start");
    assert!(refusal.text.contains("does not run"), "{refusal}");
}

#[test]
fn the_hosts_namespaces_can_be_used() {
    needs_root!();
    let mut fixture = shell("cd /proc/self/ns; for n in ipc net pid uts; do readlink $n; done");
    fixture.config.namespaces.network = NetworkNs::Host;
    for share in
        [&mut fixture.config.namespaces.ipc, &mut fixture.config.namespaces.pid, &mut fixture.config.namespaces.uts]
    {
        *share = Share::Host;
    }
    for (line, name) in fixture.run().success().lines().zip(["ipc", "net", "pid", "uts"]) {
        assert_eq!(line, fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_str().unwrap());
    }
}

#[test]
fn privileged_lifts_masks_filter_and_capabilities() {
    needs_root!();
    let mut fixture = shell(
        "grep -E '^(Seccomp|CapEff|CapInh):' /proc/self/status; mount -t tmpfs none /tmp && echo mounted; ls /dev | wc -l; \
        grep -c ' /proc/kcore ' /proc/self/mountinfo; touch /proc/sys/kernel/domainname && echo writable",
    );
    fixture.config.privileged = true;
    let outcome = fixture.run();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(
        lines[..4],
        ["CapInh:\t0000000000000000", &format!("CapEff:\t{bounding}"), "Seccomp:\t0", "mounted"],
        "{outcome:?}"
    );
    assert!(lines[4].parse::<u32>().unwrap() > 15, "{outcome:?}");
    assert_eq!(lines[5..], ["0", "writable"], "{outcome:?}");
}

#[test]
fn old_kernels_are_served_by_the_fallbacks() {
    needs_root!();
    let mut fixture = shell("cat /lower /upper; cat /proc/self/mountinfo | grep ' / / '; readlink /proc/self/ns/time");
    fs::create_dir(fixture.path("second")).unwrap();
    fs::write(fixture.path("second/upper"), "second\n").unwrap();
    fs::write(fixture.image().join("lower"), "first\n").unwrap();
    fs::write(fixture.image().join("upper"), "hidden\n").unwrap();
    fixture.context.lower.push(fixture.path("second"));
    fixture.launcher = orch_engine::runtime::Launcher::unsealed().unwrap().as_on_an_old_kernel();
    let outcome = fixture.run();
    assert!(outcome.stdout.starts_with("first\nsecond\n"), "{outcome:?}");
    assert!(outcome.stdout.contains("lowerdir=second:image"), "{outcome:?}");
}

#[test]
fn a_failed_start_leaves_nothing() {
    needs_root!();
    support::in_own_mount_namespace(fail_to_start);
}

fn fail_to_start() {
    let mut fixture = Fixture::new(&["no-such-command"]);
    let before = support::mounts();
    fixture.try_start().err().expect("must not start");
    assert_eq!(support::mounts_beside(&before), Vec::<String>::new());
    let path = orch_engine::runtime::cgroup_path(&fixture.context.instance, &fixture.config);
    assert!(!orch_engine::cgroup::Cgroup::open(&fixture.context.layout, &path).unwrap().exists());
    assert_eq!(fs::read_dir(fixture.path("mountpoint")).unwrap().count(), 0);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_before_anything_happens() {
    needs_root!();
    let fixture = Fixture::new(&["true"]);
    let refused = |change: &dyn Fn(&mut orch_engine::config::ContainerConfig)| {
        let mut config = fixture.config.clone();
        change(&mut config);
        chain(&prepare(&config, &fixture.context).expect_err("must be refused"))
    };
    assert!(refused(&|config| config.process.args.clear()).contains("nothing to execute"));
    assert!(refused(&|config| config.process.cap_add = strings(&["FLY"])).contains("FLY"));
    assert!(refused(&|config| config.hostname = "x".repeat(65)).contains("64 bytes"));
    assert!(
        refused(&|config| config.process.ulimits = BTreeMap::from([("nofiles".to_owned(), (1, 1))]))
            .contains("no such limit")
    );
    assert!(refused(&|config| config.mounts = vec![bind("/tmp".into(), "/proc/sys", false)]).contains("/proc"));
    assert!(refused(&|config| config.mounts = vec![bind("/tmp".into(), "/x/../../proc", false)]).contains("/proc"));
    assert!(refused(&|config| config.device_cgroup_rules = strings(&["x 1:3 rwm"])).contains("device rule"));
    assert!(
        refused(&|config| config.resources = Resources { memory: Some(1 << 20), ..Resources::default() })
            .contains("6 MiB")
    );
    assert!(
        refused(&|config| config.namespaces.ipc = Share::Container(ContainerId("f".repeat(64))))
            .contains("does not run")
    );
    assert!(refused(&|config| config.process.cwd = "relative".to_owned()).contains("absolute"));
}

#[test]
fn standard_streams_can_be_opened_again_by_another_user() {
    needs_root!();
    let mut fixture = shell("echo again > /dev/stdout; echo error > /dev/stderr; cat < /dev/stdin");
    fixture.config.process.user = "web".to_owned();
    let outcome = fixture.run();
    assert_eq!((outcome.success(), outcome.stderr.as_str()), ("again", "error\n"));
}

#[test]
fn input_reaches_the_process() {
    needs_root!();
    let mut fixture = Fixture::new(&["cat"]);
    let plan = fixture.plan();
    let (stdio, ends) = Stdio::pipes(true).unwrap();
    let launched = fixture.launcher.launch(&plan, stdio).unwrap();
    let mut running = Running::adopt(launched);
    (running.stdout, running.stderr) = (Some(ends.stdout), Some(ends.stderr));
    let mut input = File::from(ends.stdin.unwrap());
    input.write_all(b"typed\n").unwrap();
    drop(input);
    assert_eq!(running.wait().success(), "typed");
}

#[test]
fn the_root_keeps_what_was_written_and_the_image_does_not_change() {
    needs_root!();
    let mut fixture = shell("echo kept > /kept; rm /etc/group; cat /again 2>/dev/null; echo again > /again");
    assert_eq!(fixture.run().success(), "");
    assert_eq!(fs::read_to_string(fixture.path("upper/kept")).unwrap(), "kept\n");
    assert_eq!(fixture.run().success(), "again");
    assert!(fixture.image().join("etc/group").exists());
    assert_eq!(fs::metadata(fixture.image().join("etc")).unwrap().mode() & 0o777, 0o755);
    eventually("the mount is gone", || {
        !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(fixture.root.path().to_str().unwrap())
    });
}

#[test]
fn the_init_layer_puts_right_what_the_image_has_wrong() {
    needs_root!();
    let mut fixture = shell("ls -A /; readlink /etc/mtab; echo x > /dev/null");
    fs::remove_dir(fixture.image().join("dev")).unwrap();
    symlink("etc", fixture.image().join("dev")).unwrap();
    let layer = fixture.path("init");
    orch_engine::runtime::create_init_layer(&layer).unwrap();
    fixture.context.lower.push(layer);
    assert_eq!(fixture.run().success(), ".dockerenv\nbin\ndev\netc\nproc\nroot\nsys\ntmp\n/proc/mounts");
    // Nothing had to be made in the container's own layer.
    assert_eq!(fs::read_dir(fixture.path("upper")).unwrap().count(), 0);
}
