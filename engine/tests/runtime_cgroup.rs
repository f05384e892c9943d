//! Limits, counting, freezing and killing by control groups.

#[path = "runtime/support.rs"]
#[macro_use]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "shared by test programs that use a part each")]
mod support;

use orch_engine::cgroup::{Cgroup, CgroupPlan, Layout, settings};
use orch_engine::config::Resources;
use support::{Fixture, eventually};

fn shell(script: &str) -> Fixture {
    Fixture::new(&["sh", "-c", script])
}

/// ADV-64.
#[test]
fn a_fork_bomb_stays_below_its_limit() {
    needs_root!();
    let mut fixture = shell("echo ready; for i in $(seq 100); do sleep 1000 & done; echo done; wait");
    fixture.config.resources = Resources { pids: Some(20), ..Resources::default() };
    let mut running = fixture.start();
    running.read_until("ready");
    let group = running.launched().cgroup.clone();
    eventually("the limit is reached", || group.stats().pids >= 20 || group.procs().unwrap().len() <= 1);
    assert!(group.procs().unwrap().len() <= 20);
    assert_eq!(group.stats().pids_limit, Some(20));
}

/// ADV-65.
#[test]
fn too_much_memory_ends_the_container_and_is_counted_as_such() {
    needs_root!();
    let mut fixture = shell("echo ready; x=a; while :; do x=$x$x; done");
    fixture.config.init = true;
    fixture.config.resources =
        Resources { memory: Some(16 << 20), memory_swap: Some(16 << 20), ..Resources::default() };
    let running = fixture.start();
    assert_eq!(running.launched().cgroup.stats().memory_limit, Some(16 << 20));
    let outcome = running.wait();
    assert_eq!(outcome.code(), 137, "{outcome:?}");
    assert_eq!(outcome.oom_kills, 1);
}

#[test]
fn a_frozen_container_stands_still_and_dies_frozen() {
    needs_root!();
    let mut fixture = shell("while :; do echo x >> /count; done");
    let running = fixture.start();
    let count = fixture.path("upper/count");
    eventually("it runs", || count.metadata().is_ok_and(|metadata| metadata.len() > 100));
    let group = running.launched().cgroup.clone();
    group.freeze().unwrap();
    assert!(group.is_frozen());
    let length = count.metadata().unwrap().len();
    for _ in 0..1000 {
        assert_eq!(count.metadata().unwrap().len(), length);
    }
    group.thaw().unwrap();
    assert!(!group.is_frozen());
    eventually("it runs again", || count.metadata().unwrap().len() > length);
    group.freeze().unwrap();
    group.kill().unwrap();
    assert_eq!(running.wait().code(), 137);
}

#[test]
fn killing_reaches_every_descendant() {
    needs_root!();
    let mut fixture = shell("for i in 1 2 3 4 5; do (sleep 1000 & sleep 1000) & done; echo ready; wait");
    let mut running = fixture.start();
    running.read_until("ready");
    let group = running.launched().cgroup.clone();
    eventually("all are there", || group.procs().unwrap().len() >= 11);
    let stats = group.stats();
    assert!(stats.memory > 0 && stats.cpu_ns > 0, "{stats:?}");
    group.kill().unwrap();
    assert_eq!(running.wait().code(), 137);
}

#[test]
fn limits_are_changed_while_it_runs() {
    needs_root!();
    let mut fixture = shell("echo ready; sleep 1000");
    fixture.config.resources = Resources { memory: Some(32 << 20), ..Resources::default() };
    let mut running = fixture.start();
    running.read_until("ready");
    let group = running.launched().cgroup.clone();
    for bytes in [128 << 20, 16 << 20] {
        let resources =
            Resources { memory: Some(bytes), pids: Some(9), nano_cpus: Some(500_000_000), ..Resources::default() };
        group.apply(&orch_engine::cgroup::settings(&resources, &fixture.context.layout).unwrap()).unwrap();
        let stats = group.stats();
        assert_eq!((stats.memory_limit, stats.pids_limit), (Some(bytes), Some(9)));
    }
}

/// ADV-36.
#[test]
fn a_parent_group_never_leads_out_of_our_tree() {
    needs_root!();
    let mut fixture = shell("true");
    fixture.config.resources.cgroup_parent = Some("/../../a.slice/..".to_owned());
    let path = orch_engine::runtime::cgroup_path(&fixture.context.instance, &fixture.config);
    assert!(path.starts_with(&format!("orch-{}/__/__/a_slice/__/group/", fixture.context.instance)), "{path}");
    assert_eq!(fixture.run().code(), 0);
    for path in ["", "/x", "a/../b", "a//b", "."] {
        assert!(orch_engine::cgroup::Cgroup::open(&fixture.context.layout, path).is_err(), "{path:?}");
    }
}

/// What a host with cgroup v2 alone does, as far as this kernel shows it: placing, the device program, freezing, killing.
#[test]
fn the_unified_hierarchy_alone_filters_freezes_and_kills() {
    needs_root!();
    let script = "cat /proc/self/cgroup | grep ^0; mknod /disk b 8 0; cat /disk; mknod /mem c 1 1; cat /mem; mknod /n c 1 3 && echo x > /n && echo null; \
        cat /sys/fs/cgroup/cgroup.procs | head -1; echo ready; while :; do :; done";
    let mut fixture = shell(script);
    fixture.context.layout.v1.clear();
    if fixture.context.layout.v2.is_none() {
        println!("skipped: needs a cgroup2 mount");
        return;
    }
    let mut running = fixture.start();
    assert_eq!(running.read_until("ready"), "0::/\nnull\n1\nready\n");
    let group = running.launched().cgroup.clone();
    group.freeze().unwrap();
    assert!(group.is_frozen());
    group.kill().unwrap();
    let outcome = running.wait();
    assert_eq!(outcome.code(), 137);
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{outcome:?}");
}

#[test]
fn stacks_that_come_and_go_do_not_take_away_the_group_above_both() {
    const ROUNDS: usize = 400;
    needs_root!();
    let layout = Layout::detect().unwrap();
    let settings = settings(&Resources { pids: Some(20), ..Resources::default() }, &layout).unwrap();
    let come_and_go = &|stack: usize| {
        let path = format!("orch-test-above-{}/{stack}/container", std::process::id());
        let plan = CgroupPlan { layout: layout.clone(), path, settings: settings.clone(), devices: None };
        for _ in 0..ROUNDS {
            let group = Cgroup::create(&plan).map_err(|e| orch_engine::chain(&e)).unwrap();
            group.remove().unwrap();
        }
    };
    std::thread::scope(|scope| (0..3).for_each(|stack| drop(scope.spawn(move || come_and_go(stack)))));
}
