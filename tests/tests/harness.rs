//! The harness itself: a machine is one of its own, and what is left on it is found.

use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use orch_tests::host::{Host, RUN};
use orch_tests::machine::{ADDRESS, Machine, NEIGHBOUR, Place};
use orch_tests::wait::{PATIENCE, eventually};

#[test]
fn a_machine_has_a_network_a_neighbour_and_processes_of_its_own() {
    let machine = Machine::new().unwrap();
    let links = machine.run(Place::Host, "ip", &["-brief", "link"]).unwrap();
    let names: Vec<&str> = links.lines().filter_map(|l| l.split(['@', ' ']).next()).collect();
    assert_eq!(names, ["lo", "lan0"]);
    assert_eq!(std::fs::read_dir(machine.path("/sys/class/net")).unwrap().count(), 2, "sysfs shows another network");
    for (from, to) in [(Place::Host, NEIGHBOUR), (Place::Neighbour, ADDRESS)] {
        machine.run(from, "ping", &["-c", "1", "-W", "5", &to.to_string()]).unwrap();
    }
    let pids = machine.processes().all();
    assert!(pids.contains(&1) && pids.len() < 6, "{pids:?}");
    assert_eq!(
        machine.run(Place::Host, "cat", &["/proc/self/mountinfo"]).unwrap().matches(" - cgroup").count(),
        cgroup_mounts()
    );
}

fn cgroup_mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").expect("procfs is there").matches(" - cgroup").count()
}

#[test]
fn a_process_is_known_by_both_its_numbers_and_ends_with_the_machine() {
    let mut machine = Machine::new().unwrap();
    let mut child =
        machine.inside(Place::Host, || std::process::Command::new("sleep").arg("infinity").spawn().unwrap()).unwrap();
    let processes = machine.processes();
    // One is the neighbour's, from before.
    let inner = eventually(PATIENCE, "both can be seen", || {
        let sleeping: Vec<i32> =
            processes.all().into_iter().filter(|p| processes.command(*p) == "sleep infinity").collect();
        sleeping.get(1).copied().ok_or(format!("{sleeping:?}"))
    });
    assert_eq!(machine.outer(inner), Some(i32::try_from(child.id()).unwrap()));
    let ended = std::thread::spawn(move || child.wait().unwrap());
    machine.end();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.join().unwrap()), Some(9));
}

#[test]
fn every_kind_of_trace_is_found() {
    let traces = [
        ("process left behind", "sleep infinity >/dev/null 2>&1 &"),
        ("mount left behind", "mount -t tmpfs tmpfs /mnt"),
        ("link left behind: orb-x", "ip link add orb-x type bridge"),
        ("route left behind", "ip route add 203.0.113.0/24 via 198.51.100.2"),
        ("packet filter left behind: table inet orch-x", "nft add table inet orch-x"),
        ("file in /run left behind: orch/netd/", "mkdir -p /run/orch/netd"),
        ("engine/containers/half-made", "mkdir -p ../data/engine/containers/half-made"),
        ("route taken away: default", "ip route del default"),
    ];
    for (told, script) in traces {
        let mut host = Host::new();
        host.settles = Duration::ZERO;
        host.sh(Place::Host, &format!("cd {}; {script}", host.folder().display()));
        let panic = catch_unwind(AssertUnwindSafe(|| host.leaves_no_trace())).expect_err(script);
        let message = panic.downcast_ref::<String>().unwrap();
        let told_once = told.starts_with("engine/");
        assert_eq!(
            usize::from(told_once) + message.matches("left behind").count() + message.matches("taken away").count(),
            1,
            "{message}"
        );
        assert!(message.contains(told), "`{script}` was not told as {told:?}: {message}");
    }
}

#[test]
fn a_control_group_left_behind_is_found_and_then_removed() {
    let mut host = Host::new();
    host.settles = Duration::ZERO;
    let group = std::path::PathBuf::from(format!("/sys/fs/cgroup/unified/{}", host.instance()));
    std::fs::create_dir(&group).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| host.leaves_no_trace())).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("control group left behind"));
    assert!(!group.exists());
}

#[test]
fn a_machine_without_traces_passes() {
    let host = Host::new();
    assert_eq!(
        host.page(Place::Host, Ipv4Addr::LOCALHOST, 80, "/").unwrap_err().split(':').next(),
        Some("connect to 127.0.0.1")
    );
    assert!(!host.path(RUN).exists());
    host.leaves_no_trace();
}
