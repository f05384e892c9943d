//! What hostile images, volumes and configurations must not achieve. Names in brackets are those of the list in the design.

#![allow(clippy::unwrap_used, reason = "tests and their parts")]

#[path = "runtime/support.rs"]
#[macro_use]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by test programs that use a part each")]
mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{RenameFlags, renameat2};
use nix::sys::stat::Mode;
use orch_engine::config::{Mount, MountKind};
use support::{Fixture, Refusal, strings};

fn shell(script: &str) -> Fixture {
    Fixture::new(&["sh", "-c", script])
}

fn refusal(fixture: &mut Fixture) -> Refusal {
    fixture.try_start().err().expect("must not start")
}

/// Replaces a directory of the image.
fn replace(fixture: &Fixture, name: &str, make: impl FnOnce(&std::path::Path)) {
    let path = fixture.image().join(name);
    fs::remove_dir_all(&path).expect("the image has it");
    make(&path);
}

/// ADV-01: CVE-2019-16884, CVE-2019-19921, CVE-2023-27561.
#[test]
fn proc_and_sys_must_be_ordinary_directories() {
    needs_root!();
    for name in ["proc", "sys", "dev"] {
        let mut link = Fixture::new(&["true"]);
        replace(&link, name, |path| symlink("/tmp", path).unwrap());
        let refused = refusal(&mut link);
        assert!(refused.text.contains("must be mounted on an ordinary directory"), "{name}: {refused}");
        let mut file = Fixture::new(&["true"]);
        replace(&file, name, |path| fs::write(path, "x").unwrap());
        refusal(&mut file);
    }
}

/// ADV-01: a link in the image that leads a volume into procfs.
#[test]
fn no_volume_reaches_proc_through_a_link() {
    needs_root!();
    let mut fixture = Fixture::new(&["true"]);
    symlink("/proc", fixture.image().join("shortcut")).unwrap();
    let kind = MountKind::Volume { name: "data".to_owned(), nocopy: true, subpath: String::new() };
    fixture.config.mounts = vec![Mount { target: "/shortcut/sys".to_owned(), kind, read_only: false }];
    let refused = refusal(&mut fixture);
    assert!(refused.text.contains("nothing may be mounted inside /proc"), "{refused}");
}

/// ADV-02, ADV-07: CVE-2021-30465, CVE-2024-45310. A volume shared with an attacker who exchanges a directory for a link to the root
/// all the time, while a container mounts below it.
#[test]
fn exchanging_a_target_for_a_link_never_leads_out() {
    needs_root!();
    support::in_own_mount_namespace(race_a_mount_target);
}

fn race_a_mount_target() {
    let mut fixture = shell("test -e /probe-of-host && echo out; true");
    let volume = fixture.path("volume");
    fs::create_dir(volume.join("mnt")).unwrap();
    symlink("/", volume.join("link")).unwrap();
    let outside = fixture.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, volume.join("escape")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let racer = {
        let (stop, volume) = (Arc::clone(&stop), volume.clone());
        std::thread::spawn(move || {
            let directory = File::open(volume).unwrap();
            let mut turns = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let other = if turns.is_multiple_of(2) { "link" } else { "escape" };
                for _ in 0..2 {
                    renameat2(&directory, "mnt", &directory, other, RenameFlags::RENAME_EXCHANGE).unwrap();
                }
                turns += 1;
            }
            turns
        })
    };
    let volume_mount = |target: &str, name: &str| Mount {
        target: target.to_owned(),
        kind: MountKind::Volume { name: name.to_owned(), nocopy: true, subpath: String::new() },
        read_only: false,
    };
    let tmpfs = Mount {
        target: "/vol/mnt/deep/er".to_owned(),
        kind: MountKind::Tmpfs { options: String::new() },
        read_only: false,
    };
    fixture.config.mounts = vec![volume_mount("/vol", "data"), tmpfs];
    let before = support::mounts();
    let (mut started, mut refused) = (0, 0);
    for _ in 0..300 {
        match fixture.try_start() {
            Ok(running) => {
                assert_eq!(running.wait().stdout, "");
                started += 1;
            }
            Err(_) => refused += 1,
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(racer.join().unwrap() > 0);
    assert!(started > 0 && started + refused == 300);
    assert_eq!(support::mounts_beside(&before), Vec::<String>::new());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "a directory was made on the host");
    assert!(!std::path::Path::new("/deep").exists());
}

/// ADV-03: CVE-2025-31133. Masks do not depend on what the image has at /dev/null.
#[test]
fn a_false_dev_null_masks_nothing_and_opens_nothing() {
    needs_root!();
    let mut fixture =
        shell("cat /proc/kcore /proc/keys /proc/timer_list; echo x > /proc/sys/kernel/core_pattern; echo $?");
    fs::remove_file(fixture.image().join("dev/null")).ok();
    symlink("/proc/sys/kernel/core_pattern", fixture.image().join("dev/null")).unwrap();
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let outcome = fixture.run();
    assert_eq!(outcome.stdout.trim(), "1", "{outcome:?}");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), before);
}

/// ADV-04, ADV-06: a /dev of the container's own making, with links where the console and null belong.
#[test]
fn console_and_null_of_a_volume_are_not_trusted() {
    needs_root!();
    let mut fixture = Fixture::new(&["cat"]);
    let volume = fixture.path("volume");
    fs::write(fixture.path("victim"), "untouched").unwrap();
    symlink("/victim", volume.join("null")).unwrap();
    symlink("/victim", volume.join("console")).unwrap();
    fs::write(fixture.image().join("victim"), "of the image").unwrap();
    let kind = MountKind::Volume { name: "data".to_owned(), nocopy: true, subpath: String::new() };
    fixture.config.mounts = vec![Mount { target: "/dev".to_owned(), kind, read_only: false }];
    // Without a stream: not the link's target but the true device.
    assert_eq!(fixture.run().stdout, "");
    // With a terminal: there is no devpts, so there is none.
    fixture.config.process.tty = true;
    let plan = fixture.plan();
    assert!(fixture.launcher.launch(&plan, orch_engine::runtime::Stdio::terminal(24, 80)).is_err());
    assert_eq!(fs::read_to_string(fixture.path("victim")).unwrap(), "untouched");
}

/// ADV-05: CVE-2025-52881. What the configuration writes to procfs goes to a procfs that nothing can cover.
#[test]
fn kernel_parameters_are_written_to_the_true_proc() {
    needs_root!();
    let mut fixture = Fixture::new(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
    fs::create_dir_all(fixture.image().join("proc/sys/net/ipv4")).unwrap();
    fs::write(fixture.image().join("proc/sys/net/ipv4/ip_forward"), "false").unwrap();
    fixture.config.sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
    assert_eq!(fixture.run().success(), "1");
    assert_eq!(fs::read_to_string(fixture.image().join("proc/sys/net/ipv4/ip_forward")).unwrap(), "false");
}

/// ADV-20: CVE-2024-21626.
#[test]
fn a_working_directory_among_the_launchers_descriptors_is_refused() {
    needs_root!();
    // Open and inheritable, as by a careless caller.
    let host = nix::unistd::dup(File::open("/").unwrap()).unwrap();
    nix::fcntl::fcntl(&host, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    for number in 3..40 {
        let mut fixture = shell("pwd; ls");
        fixture.config.process.cwd = format!("/proc/self/fd/{number}");
        let refused = refusal(&mut fixture);
        assert!(refused.text.contains("working directory"), "{refused}");
    }
    let mut fixture = shell("pwd");
    symlink("/proc/self/fd", fixture.image().join("fds")).unwrap();
    fixture.config.process.cwd = "/fds/7".to_owned();
    refusal(&mut fixture);
}

/// ADV-07: CVE-2026-55686.
#[test]
fn a_working_directory_behind_links_is_made_inside() {
    needs_root!();
    let mut fixture = shell("pwd");
    let outside = fixture.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, fixture.image().join("link")).unwrap();
    symlink("../../../../../../..", fixture.image().join("up")).unwrap();
    fixture.config.process.cwd = "/up/up/made".to_owned();
    assert_eq!(fixture.run().success(), "/made");
    // A dangling link in the way: refused, not followed and not made.
    fixture.config.process.cwd = "/link/made".to_owned();
    refusal(&mut fixture);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/made").exists());
}

/// ADV-30: CVE-2016-3697, CVE-2024-40635.
#[test]
fn numbers_are_never_names_and_never_wrap() {
    needs_root!();
    let passwd = "1000:x:0:0::/root:/bin/sh\n4294967295:x:0:0::/:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\nneg:x:-1:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n";
    let with = |user: &str| {
        let mut fixture = Fixture::new(&["id", "-u"]);
        fs::write(fixture.image().join("etc/passwd"), passwd).unwrap();
        fixture.config.process.user = user.to_owned();
        fixture.try_start().map(|running| running.wait().success().to_owned())
    };
    assert_eq!(with("1000").unwrap(), "1000");
    assert_eq!(with("web").unwrap(), "33");
    for user in [
        "1000abc",
        "-1",
        " 0",
        "2147483648",
        "4294967295",
        "4294967296",
        "0x0",
        "big",
        "neg",
        "web:2147483648",
        "web:none",
    ] {
        let refused = with(user).expect_err(user);
        assert_eq!(refused.exit_code, 125, "{user}: {refused}");
    }
    assert_eq!(with("2147483647").unwrap(), "2147483647");
}

/// ADV-31: CVE-2022-36109.
#[test]
fn the_primary_group_is_among_the_supplementary_ones() {
    needs_root!();
    let mut fixture = Fixture::new(&["grep", "Groups", "/proc/self/status"]);
    fixture.config.process.user = "web".to_owned();
    assert_eq!(fixture.run().success().trim_end(), "Groups:\t1000 2000");
    fixture.config.process.user = "5:6".to_owned();
    assert_eq!(fixture.run().success().trim_end(), "Groups:\t6");
}

/// ADV-32: CVE-2026-47262.
#[test]
fn odd_user_databases_are_refused_at_once() {
    needs_root!();
    type Make = fn(&std::path::Path);
    let odd: [Make; 5] = [
        |path| File::create(path).unwrap().set_len(2 << 30).unwrap(),
        |path| nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o666)).unwrap(),
        |path| symlink("/dev/zero", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| {
            nix::sys::stat::mknod(
                path,
                nix::sys::stat::SFlag::S_IFCHR,
                Mode::from_bits_truncate(0o666),
                nix::sys::stat::makedev(1, 5),
            )
            .unwrap()
        },
    ];
    for (index, make) in odd.into_iter().enumerate() {
        for name in ["passwd", "group"] {
            let mut fixture = Fixture::new(&["true"]);
            let path = fixture.image().join("etc").join(name);
            fs::remove_file(&path).unwrap();
            make(&path);
            // A link to a device that the image does not have is no file at all, which is fine for a numeric user.
            fixture.config.process.user = if name == "passwd" { "web".to_owned() } else { "4711:web".to_owned() };
            let refused = refusal(&mut fixture);
            assert!(refused.text.contains(name), "{index}: {refused}");
        }
    }
}

/// ADV-60, ADV-61, ADV-62 from inside, by a probe: this very test program in the container.
#[test]
fn the_default_filter_answers_as_dockers() {
    needs_root!();
    let mut fixture = Fixture::new(&["/probe", "--exact", "probe_of_the_filter", "--nocapture"]);
    let probe = std::env::current_exe().unwrap();
    if fs::hard_link(&probe, fixture.image().join("probe")).is_err() {
        fs::copy(&probe, fixture.image().join("probe")).unwrap();
    }
    fixture.config.process.env = strings(&["ORCH_PROBE=1"]);
    let outcome = fixture.run();
    let answers: Vec<_> = outcome.success().lines().filter_map(|line| line.strip_prefix("probe ")).collect();
    assert_eq!(
        answers,
        [
            "unshare user: EPERM",
            "unshare mount: EPERM",
            "setns: EPERM",
            "mount: EPERM",
            "socket alg: EPERM",
            "socket inet: fine",
            "chroot: fine",
            "thread: fine",
        ]
    );
}

#[test]
fn probe_of_the_filter() {
    use nix::sched::{CloneFlags, setns, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    if std::env::var_os("ORCH_PROBE").is_none() {
        return;
    }
    let tell = |what: &str, result: nix::Result<()>| {
        println!("probe {what}: {}", result.map_or_else(|errno| format!("{errno:?}"), |()| "fine".to_owned()))
    };
    tell("unshare user", unshare(CloneFlags::CLONE_NEWUSER));
    tell("unshare mount", unshare(CloneFlags::CLONE_NEWNS));
    tell("setns", setns(File::open("/proc/self/ns/net").unwrap(), CloneFlags::CLONE_NEWNET));
    tell("mount", nix::mount::mount(Some("none"), "/tmp", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>));
    tell("socket alg", socket(AddressFamily::Alg, SockType::SeqPacket, SockFlag::empty(), None).map(drop));
    tell("socket inet", socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).map(drop));
    tell("chroot", nix::unistd::chroot("/"));
    // glibc asks for clone3 first and must be told that there is none.
    tell("thread", std::thread::spawn(|| ()).join().map_err(|_| nix::errno::Errno::EPERM));
}

/// ADV-63.
#[test]
fn making_a_device_is_allowed_and_opening_it_is_not() {
    needs_root!();
    let outcome = shell(
        "mknod /disk b 8 0 && echo made; cat /disk; mknod /mem c 1 1; cat /mem; mknod /n c 1 3 && echo x > /n && echo null; \
         ls /dev/kmsg /dev/mem /dev/sda /dev/vda /dev/fuse",
    )
    .run();
    assert_eq!(outcome.stdout, "made\nnull\n", "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{outcome:?}");
    assert_eq!(outcome.stderr.matches("No such file").count(), 5, "{outcome:?}");
}

/// ADV-67.
#[test]
fn the_kernel_cannot_be_changed_through_proc_and_sys() {
    needs_root!();
    let paths = "/proc/sys/kernel/core_pattern /proc/sys/vm/swappiness /proc/irq/default_smp_affinity /sys/kernel/mm/transparent_hugepage/enabled /sys/new";
    let outcome = shell(&format!("for f in {paths}; do echo x > $f && echo $f; done; for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do cat $f; done; ls /sys/firmware; true")).run();
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    let existing =
        paths.split(' ').filter(|path| std::path::Path::new(path).exists() || path.ends_with("/new")).count();
    assert!(outcome.stderr.matches("Read-only file system").count() >= existing - 1, "{outcome:?}");
}

/// ADV-11 in part: release_agent and every other control file is out of reach.
#[test]
fn control_groups_are_shown_read_only() {
    needs_root!();
    let script = "find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs | grep -q . && echo shown; \
        for f in $(find /sys/fs/cgroup -maxdepth 2 -type f -name 'cgroup.procs'); do echo 0 > $f && echo written; done; \
        mkdir /sys/fs/cgroup/new && echo made; true";
    let mut fixture = shell(script);
    symlink("busybox", fixture.image().join("bin/find")).unwrap();
    assert_eq!(fixture.run().stdout, "shown\n");
}

/// ADV-21, CVE-2019-5736: this program, started from a sealed descriptor, launches a container that executes and opens its launcher's
/// executable.
#[test]
fn a_container_cannot_write_to_its_launchers_executable() {
    needs_root!();
    use std::os::fd::AsRawFd as _;
    let error = orch_engine::runtime::Launcher::new().expect_err("this process is not sealed");
    assert!(error.to_string().contains("sealed"), "{error}");
    let sealed = orch_engine::runtime::sealed_executable().unwrap();
    let outcome = std::process::Command::new(format!("/proc/self/fd/{}", sealed.as_raw_fd()))
        .args(["--exact", "sealed_launcher", "--nocapture"])
        .env("ORCH_SEALED", "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&outcome.stdout);
    assert!(
        outcome.status.success() && output.contains("sealed: refused"),
        "{output}\n{}",
        String::from_utf8_lossy(&outcome.stderr)
    );
}

#[test]
fn sealed_launcher() {
    if std::env::var_os("ORCH_SEALED").is_none() {
        return;
    }
    // As PID 1 the reaper shows the launcher's executable for the whole life of the container.
    let mut fixture = shell("ls -l /proc/1/exe; echo x > /proc/1/exe; echo $?; cat /proc/1/exe | wc -c");
    fixture.launcher = orch_engine::runtime::Launcher::new().unwrap();
    fixture.config.init = true;
    fixture.config.process.cap_add = strings(&["SYS_PTRACE", "DAC_OVERRIDE"]);
    let outcome = fixture.run();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[1], "1", "{outcome:?}");
    assert!(
        outcome.stderr.contains("Read-only file system") || outcome.stderr.contains("Operation not permitted"),
        "{outcome:?}"
    );
    assert!(lines[2].parse::<u64>().unwrap() > 0, "the true executable was opened: {outcome:?}");
    // `#!/proc/self/exe`: the launcher executes itself inside, and still cannot be written to.
    let mut script = Fixture::new(&["/self", "--list"]);
    fs::write(script.image().join("self"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(script.image().join("self"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    script.launcher = orch_engine::runtime::Launcher::new().unwrap();
    script.run();
    println!("sealed: refused");
}
