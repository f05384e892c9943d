//! Containers with a user namespace of their own, on the real kernel.

#![allow(clippy::unwrap_used, reason = "tests and their parts")]

#[path = "runtime/support.rs"]
#[macro_use]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by test programs that use a part each")]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use orch_engine::chain;
use orch_engine::config::{Device, IdRange, InjectedFile, Mount, MountKind, ProcessConfig, Share, UserNamespace};
use orch_engine::runtime::{ExecConfig, MountSource, Stdio, prepare};
use support::{Fixture, Running, strings};

/// Ids that the engine would not allot here.
const IDS: IdRange = IdRange { first: 0x6f00_0000 };
const OTHERS: IdRange = IdRange { first: 0x6f01_0000 };

fn with_ids(ids: IdRange, script: &str) -> Fixture {
    let mut fixture = Fixture::new(&["sh", "-c", script]);
    // What the engine has made for it belongs to it.
    for name in ["hosts", "hostname", "resolv.conf"] {
        chown(fixture.path(name), Some(ids.first), Some(ids.first)).unwrap();
    }
    fixture.config.user_namespace = UserNamespace::Own(ids);
    fixture
}

fn own_ids(script: &str) -> Fixture {
    with_ids(IDS, script)
}

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    let source = source.to_owned();
    let kind = MountKind::Bind { source, create_host_path: false, propagation: String::new(), recursive: true };
    Mount { target: target.to_owned(), kind, read_only }
}

fn volume(target: &str) -> Mount {
    let kind = MountKind::Volume { name: "data".to_owned(), nocopy: true, subpath: String::new() };
    Mount { target: target.to_owned(), kind, read_only: false }
}

/// The owner of a file of the host.
fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

/// Lines of a process's status as the host sees it.
fn status(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().filter_map(|line| line.split_once(":\t")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn up(fixture: &mut Fixture) -> Running {
    let mut running = fixture.start();
    running.read_until("up");
    running
}

#[test]
fn root_inside_is_an_unprivileged_id_of_the_host() {
    needs_root!();
    let mut fixture = own_ids("echo up; exec sleep 60");
    fixture.config.process.user = "0".to_owned();
    let running = up(&mut fixture);
    let seen = status(running.launched().pid);
    let root = IDS.first.to_string();
    assert_eq!(seen["Uid"], [root.as_str(); 4].join("\t"));
    assert_eq!(seen["Gid"], [root.as_str(); 4].join("\t"));
    assert_eq!(seen["Groups"].trim(), root);
    assert_eq!(seen["Seccomp"], "2");
    // Capabilities over its own namespace only, and the default ones of these.
    assert_eq!(seen["CapBnd"], "00000000a80425fb");
    assert_eq!(seen["CapEff"], "00000000a80425fb");
    assert_eq!((seen["CapInh"].as_str(), seen["CapAmb"].as_str()), ("0000000000000000", "0000000000000000"));
    let map = fs::read_to_string(format!("/proc/{}/uid_map", running.launched().pid)).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", root.as_str(), "65536"]);
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    assert_ne!(fs::read_link(format!("/proc/{}/ns/user", running.launched().pid)).unwrap(), own);
}

#[test]
fn without_one_the_namespace_is_the_hosts() {
    needs_root!();
    let mut fixture = Fixture::new(&["readlink", "/proc/self/ns/user"]);
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    assert_eq!(fixture.run().success(), own.to_str().unwrap());
}

#[test]
fn layers_are_shared_unchanged_and_its_own_has_the_ids_inside() {
    needs_root!();
    let script = "id -u; stat -c %u:%g /bin/busybox /etc/passwd /home/web/kept; touch /made; mkdir /dir; ln -s a /link; \
        echo more >> /home/web/kept; rm /etc/group; stat -c %u:%g /made /dir /link /home/web/kept; \
        chmod 700 /home/web; cat /home/web/kept";
    let mut fixture = own_ids(script);
    fs::create_dir_all(fixture.image().join("home/web")).unwrap();
    fs::write(fixture.image().join("home/web/kept"), "text\n").unwrap();
    chown(fixture.image().join("home/web/kept"), Some(1000), Some(1000)).unwrap();
    let outcome = fixture.run();
    assert_eq!(outcome.stderr, "");
    let expected = "0\n0:0\n0:0\n1000:1000\n0:0\n0:0\n0:0\n1000:1000\ntext\nmore";
    assert_eq!(outcome.success(), expected);
    let upper = fixture.path("upper");
    assert_eq!(owner(&upper.join("made")), (0, 0));
    assert_eq!(owner(&upper.join("home/web/kept")), (1000, 1000));
    assert_eq!(fs::symlink_metadata(upper.join("etc/group")).unwrap().rdev(), 0);
    assert_eq!(fs::read_to_string(fixture.image().join("home/web/kept")).unwrap(), "text\n");
    assert!(fixture.image().join("etc/group").exists());
    // The same layers again with other ids, and with none.
    for again in [UserNamespace::Own(OTHERS), UserNamespace::Host] {
        for name in ["hosts", "hostname", "resolv.conf"] {
            chown(fixture.path(name), Some(0), Some(0)).unwrap();
        }
        fixture.config.user_namespace = again;
        fixture.config.process.args = strings(&["stat", "-c", "%u:%g", "/made", "/home/web/kept", "/bin/busybox"]);
        assert_eq!(fixture.run().success(), "0:0\n1000:1000\n0:0", "{again:?}");
    }
}

#[test]
fn the_usual_mounts_and_devices_work_and_belong_to_root_inside() {
    needs_root!();
    let script = "set -e; stat -c %u:%g /dev /dev/null /dev/shm /dev/mqueue /etc/hosts /proc/1 /proc/self/fd /tmp; \
        echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; \
        echo a > /dev/shm/a; touch /dev/mqueue/a; echo '10.0.0.1 more' >> /etc/hosts; grep -c more /etc/hosts; \
        hostname; cat /proc/1/comm; ls /sys/class >&2";
    let outcome = own_ids(script).run();
    let owners = "0:0\n".repeat(8);
    assert_eq!(outcome.success(), format!("{owners}4\n4\n1\nbox\nsh"));
    assert!(outcome.stderr.contains("net"), "{}", outcome.stderr);
}

#[test]
fn a_tmpfs_belongs_to_whom_its_options_name() {
    needs_root!();
    let tmpfs = |target: &str, options: &str| Mount {
        target: target.to_owned(),
        kind: MountKind::Tmpfs { options: options.to_owned() },
        read_only: false,
    };
    let mut fixture = own_ids("stat -c %u:%g:%a /a /b; touch /a/x /b/x && stat -c %u /b/x");
    fixture.config.mounts = vec![tmpfs("/a", "size=1m"), tmpfs("/b", "uid=1000,gid=2000,mode=700")];
    assert_eq!(fixture.run().success(), "0:0:1777\n1000:2000:700\n0");
    fixture.config.mounts = vec![tmpfs("/a", "uid=65536")];
    let refusal = fixture.try_start().err().unwrap();
    assert!(refusal.text.contains("a tmpfs's uid is 65536, which is not among the 65536 ids"), "{refusal}");
}

#[test]
fn any_user_of_the_image_can_be_had_and_setuid_programs_work() {
    needs_root!();
    let script = "id; touch /tmp/mine; stat -c %u:%g /tmp/mine; echo again > /dev/stdout; \
        /suid/busybox su root -c 'id -u; touch /root/proof'";
    let mut fixture = own_ids(script);
    let image = fixture.image();
    fs::create_dir(image.join("suid")).unwrap();
    // A copy, since the image's may be the host's own file.
    fs::copy("/bin/busybox", image.join("suid/busybox")).unwrap();
    fs::set_permissions(image.join("suid/busybox"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(image.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let passwd = "root::0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n";
    fs::write(image.join("etc/passwd"), passwd).unwrap();
    fixture.config.process.user = "web".to_owned();
    let outcome = fixture.run();
    let lines: Vec<_> = outcome.success().lines().collect();
    assert_eq!(lines[0], "uid=1000(web) gid=1000(web) groups=1000(web),2000(logs)");
    assert_eq!(lines[1], "1000:1000");
    assert_eq!(lines[2..], ["again", "0"]);
    assert_eq!(owner(&fixture.path("upper/root/proof")).0, 0);
    fixture.config.process.user = "65536".to_owned();
    let refusal = chain(&prepare(&fixture.config, &fixture.context).unwrap_err());
    assert!(refusal.contains("65536 is not among the 65536 ids"), "{refusal}");
}

#[test]
fn a_volume_holds_ids_that_any_container_reads() {
    needs_root!();
    let mut writer = own_ids("echo of root > /data/a; chmod 600 /data/a; touch /data/b; mkdir /data/c; echo done");
    writer.config.mounts = vec![volume("/data")];
    assert_eq!(writer.run().success(), "done");
    writer.config.process.user = "1000".to_owned();
    fs::set_permissions(writer.path("volume"), fs::Permissions::from_mode(0o777)).unwrap();
    writer.config.process.args = strings(&["sh", "-c", "echo of web > /data/w; chmod 600 /data/w"]);
    writer.run().success();
    let data = writer.path("volume");
    assert_eq!([owner(&data.join("a")), owner(&data.join("w"))], [(0, 0), (1000, 1000)]);
    // Of other ids, and of none.
    let ids = [UserNamespace::Own(OTHERS), UserNamespace::Host];
    for namespace in ids {
        let mut reader = with_ids(OTHERS, "cat /data/a /data/w; stat -c %u:%g /data/a /data/w; echo of web > /data/w");
        reader.config.user_namespace = namespace;
        reader.context.volumes.insert("data".to_owned(), data.clone());
        reader.config.mounts = vec![volume("/data")];
        assert_eq!(reader.run().success(), "of root\nof web\n0:0\n1000:1000", "{namespace:?}");
    }
}

#[test]
fn what_is_not_mapped_cannot_be_written_or_read_past_its_bits() {
    needs_root!();
    let mut fixture = own_ids(
        "stat -c %u /given /given/secret; cat /given/open; cat /given/secret; echo x > /given/open; touch /given/new; \
         chmod 777 /given/secret; chown 0 /given/secret; rm /given/open; echo end",
    );
    let given = fixture.path("given");
    fs::create_dir(&given).unwrap();
    fs::write(given.join("open"), "open\n").unwrap();
    fs::write(given.join("secret"), "secret\n").unwrap();
    fs::set_permissions(given.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fixture.config.mounts = vec![bind(&given, "/given", false)];
    let mut plan = prepare(&fixture.config, &fixture.context).unwrap();
    for mount in plan.mounts.iter_mut().filter(|mount| mount.target == "/given") {
        if let MountSource::Bind { mapped, .. } = &mut mount.source {
            *mapped = false;
        }
    }
    let (stdio, ends) = Stdio::pipes(false).unwrap();
    let launched = fixture.launcher.launch(&plan, stdio).unwrap();
    let mut running = Running::adopt(launched);
    (running.stdout, running.stderr) = (Some(ends.stdout), Some(ends.stderr));
    let outcome = running.wait();
    assert_eq!(outcome.success(), "65534\n65534\nopen\nend");
    assert_eq!(outcome.stderr.lines().count(), 6, "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(given.join("open")).unwrap(), "open\n");
    assert_eq!(fs::metadata(given.join("secret")).unwrap().mode() & 0o777, 0o600);
    assert!(!given.join("new").exists());
}

#[test]
fn a_bind_mount_is_mapped_and_ids_beyond_are_nobodys() {
    needs_root!();
    let mut fixture = own_ids("cd /given; stat -c %u a b; echo more >> a; touch new; cat b; echo x >> b; echo end");
    let given = fixture.path("given");
    fs::create_dir(&given).unwrap();
    for (name, uid) in [("a", 0), ("b", 70_000)] {
        fs::write(given.join(name), "text\n").unwrap();
        fs::set_permissions(given.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        chown(given.join(name), Some(uid), Some(uid)).unwrap();
    }
    fixture.config.mounts = vec![bind(&given, "/given", false)];
    let outcome = fixture.run();
    assert_eq!(outcome.success(), "0\n65534\nend");
    assert_eq!(outcome.stderr.lines().count(), 2, "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(given.join("a")).unwrap(), "text\nmore\n");
    assert_eq!(owner(&given.join("new")), (0, 0));
}

#[test]
fn what_maps_no_owners_is_read_as_it_is_or_refused() {
    needs_root!();
    let mut fixture = own_ids("cat /kernel/ostype; stat -c %u /kernel; echo x > /kernel/hostname");
    fixture.config.mounts = vec![bind(Path::new("/proc/sys/kernel"), "/kernel", true)];
    let outcome = fixture.run();
    assert_eq!((outcome.stdout.as_str(), outcome.code()), ("Linux\n65534\n", 1));
    fixture.config.mounts = vec![bind(Path::new("/proc/sys/kernel"), "/kernel", false)];
    let refusal = fixture.try_start().err().unwrap();
    assert!(refusal.text.contains("cannot map the owners of /proc/sys/kernel"), "{refusal}");
}

#[test]
fn root_inside_has_no_power_over_what_is_the_hosts() {
    needs_root!();
    // All capabilities, no filter: what is refused is refused by the kernel's namespaces.
    let script = "mount -t tmpfs none /tmp; mount -o remount,rw /sys; hostname other; \
        mknod /node b 7 0; ip link set lo down; echo 0 > /proc/sys/kernel/printk; echo 1 > /proc/sysrq-trigger; \
        echo -1000 > /proc/self/oom_score_adj; kill -0 1 && echo own; dd if=/own-disk of=/dev/null count=1; \
        unshare -m mount -o remount,rw /sys; echo end";
    let mut fixture = own_ids(script);
    fixture.config.process.cap_add = vec!["ALL".to_owned()];
    fixture.config.process.seccomp = orch_engine::config::Seccomp::Unconfined;
    fixture.config.systempaths_unconfined = true;
    // Whoever brings a device in the image's layers gets nothing by it either: the device rules are the same.
    mknod(&fixture.image().join("own-disk"), SFlag::S_IFBLK, Mode::from_bits_truncate(0o666), makedev(7, 0)).unwrap();
    let outcome = fixture.run();
    assert_eq!(outcome.success(), "own\nend");
    assert_eq!(outcome.stderr.lines().count(), 10, "{}", outcome.stderr);
}

#[test]
fn other_processes_are_out_of_reach() {
    needs_root!();
    // A process of the host, and one of another container, seen through the host's procfs.
    let mut other = with_ids(OTHERS, "echo up; exec sleep 60");
    let other_running = up(&mut other);
    let script = format!(
        "for p in {} {}; do cat /host/$p/environ; ls /host/$p/fd; ls /host/$p/root; done; echo end",
        std::process::id(),
        other_running.launched().pid
    );
    let mut fixture = own_ids(&script);
    fixture.config.process.cap_add = vec!["ALL".to_owned()];
    fixture.config.mounts = vec![bind(Path::new("/proc"), "/host", true)];
    let outcome = fixture.run();
    assert_eq!(outcome.success(), "end");
    assert!(outcome.stderr.lines().count() >= 6, "{}", outcome.stderr);
}

#[test]
fn exec_joins_the_namespace_with_every_privilege_of_the_container_and_no_more() {
    needs_root!();
    let mut fixture = own_ids("echo up; exec sleep 60");
    let running = up(&mut fixture);
    let seen = fixture
        .exec(&running, &["sh", "-c", "id -u; readlink /proc/self/ns/user; touch /made; cat /proc/1/environ | wc -c"])
        .unwrap();
    let theirs = fs::read_link(format!("/proc/{}/ns/user", running.launched().pid)).unwrap();
    let lines: Vec<_> = seen.success().lines().collect();
    assert_eq!(lines[..2], ["0", theirs.to_str().unwrap()]);
    assert_ne!(lines[2], "0");
    assert_eq!(owner(&fixture.path("upper/made")), (0, 0));
    let status = fixture.exec(&running, &["cat", "/proc/self/status"]).unwrap();
    for line in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2"] {
        assert!(status.success().contains(line), "{}", status.stdout);
    }
    // As a user, in a directory of root's.
    let process = ProcessConfig {
        args: strings(&["sh", "-c", "id -u; stat -c %u ."]),
        user: "web".to_owned(),
        cwd: "/tmp".to_owned(),
        ..ProcessConfig::default()
    };
    let outcome = fixture.exec_process(&running, ExecConfig { process, privileged: false }).unwrap();
    assert_eq!(outcome.success(), "1000\n0");
    // Privileged within its own namespace only.
    let process =
        ProcessConfig { args: strings(&["mount", "-t", "tmpfs", "none", "/tmp"]), ..ProcessConfig::default() };
    let outcome = fixture.exec_process(&running, ExecConfig { process, privileged: true }).unwrap();
    assert_ne!(outcome.code(), 0);
}

#[test]
fn a_terminal_and_a_reaper_work() {
    needs_root!();
    let mut fixture = own_ids(
        "tty; stat -c %u:%g /dev/console $(tty); stat -c %u /dev/pts; echo x > /dev/tty; test $$ -ne 1; echo $?",
    );
    fixture.config.init = true;
    fixture.config.process.user = "web".to_owned();
    let plan = fixture.plan();
    let launched = fixture.launcher.launch(&plan, Stdio::terminal(24, 80)).unwrap();
    let mut running = Running::adopt(launched);
    let mut terminal = File::from(running.take_terminal());
    let mut text = String::new();
    let mut byte = [0];
    // At its end a terminal gives an error.
    while terminal.read(&mut byte).is_ok_and(|count| count == 1) {
        text.push(char::from(byte[0]));
    }
    assert_eq!(running.wait().code(), 0);
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines, ["/dev/pts/0", "1000:5", "1000:5", "0", "x", "0"]);
}

#[test]
fn files_made_for_it_devices_and_limits_are_right() {
    needs_root!();
    let mut fixture = own_ids(
        "stat -c %u:%g:%a /run/secret; cat /run/secret; stat -c %u:%g /dev/given; echo x > /dev/given; ulimit -n -H; cat /proc/self/oom_score_adj; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
    );
    let path = fixture.path("files").join("0");
    fs::write(&path, "secret\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    chown(&path, Some(IDS.first + 1000), Some(IDS.first + 1000)).unwrap();
    fixture.config.files = vec![InjectedFile {
        target: "/run/secret".to_owned(),
        content: Vec::new(),
        digest: String::new(),
        uid: 1000,
        gid: 1000,
        mode: 0o400,
        secret: true,
    }];
    let (source, target) = ("/dev/null".to_owned(), "/dev/given".to_owned());
    fixture.config.devices = vec![Device { source, target, permissions: "rw".to_owned() }];
    fixture.config.process.ulimits = BTreeMap::from([("nofile".to_owned(), (100, 200))]);
    fixture.config.process.oom_score_adj = 300;
    fixture.config.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    assert_eq!(fixture.run().success(), "1000:1000:400\nsecret\n0:0\n200\n300\n0");
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    needs_root!();
    let fixture = own_ids("true");
    let refused = |change: &dyn Fn(&mut orch_engine::config::ContainerConfig)| {
        let mut config = fixture.config.clone();
        change(&mut config);
        chain(&prepare(&config, &fixture.context).unwrap_err())
    };
    assert!(refused(&|config| config.privileged = true).contains("`auto` does not go together with `privileged`"));
    assert!(refused(&|config| config.namespaces.pid = Share::Host).contains("processes that are shared (`pid`)"));
    assert!(refused(&|config| config.namespaces.ipc = Share::Host).contains("memory that is shared (`ipc`)"));
    assert!(refused(&|config| config.user_namespace = UserNamespace::Auto).contains("no ids have been allotted"));
}

#[test]
fn nothing_is_mounted_on_the_host_meanwhile() {
    needs_root!();
    support::in_own_mount_namespace(|| {
        let before = support::mounts();
        let mut fixture = own_ids("echo up; cat /proc/self/mountinfo");
        fixture.config.read_only = true;
        fixture.config.mounts = vec![volume("/data")];
        let outcome = fixture.run();
        let inside: Vec<_> = outcome.success().lines().filter_map(|line| line.split(' ').nth(4)).collect();
        // The table that layers hang in is gone.
        assert!(!inside.iter().any(|target| target.contains("upper") || target.contains("own")), "{inside:?}");
        assert_eq!(inside.iter().filter(|target| **target == "/data").count(), 1);
        assert_eq!(support::mounts_beside(&before), [""; 0]);
    });
}
