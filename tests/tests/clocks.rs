//! Hosts whose clocks are wrong: an hour does no harm, and more is said so.

use std::sync::atomic::Ordering;
use std::time::Instant;

use orch_tests::cluster::Hosts;
use orch_tests::wait::{PATIENCE, eventually, took};

/// Seconds.
const HOUR: i64 = 3600;

/// Hosts that are alone, with clocks that are off by so many seconds.
fn hosts(clocks: &[i64]) -> Hosts {
    let hosts = Hosts::new(u8::try_from(clocks.len()).expect("a few hosts"));
    for (host, off) in hosts.hosts.iter().zip(clocks).filter(|(_, off)| **off != 0) {
        host.stop_agent();
        host.clock_off.store(*off, Ordering::Relaxed);
        host.start_agent();
    }
    hosts
}

/// Four tasks that are replaced one after the other, each of which is watched for a second.
fn rolling(version: u32) -> String {
    format!(
        "
name: roll
services:
  idle:
    image: busybox
    init: true
    command: [sleep, infinity]
    environment: {{VERSION: '{version}'}}
    deploy: {{replicas: 4, update_config: {{parallelism: 1, delay: 500ms, monitor: 1s, order: start-first}}}}
"
    )
}

#[test]
fn an_update_takes_its_time_under_leaders_whose_clocks_are_an_hour_apart() {
    let hosts = hosts(&[0, HOUR, -HOUR]);
    hosts.init();
    let token = hosts.token(&["manager"]);
    hosts.join(2, &token).ok().says(&["this host's clock is 60 min ahead of the cluster's"]);
    hosts.join(3, &token).ok().says(&["this host's clock is 60 min behind the cluster's"]);
    hosts.all_vote();
    hosts.all_ready(1);
    hosts.hosts.iter().for_each(|host| host.load("busybox"));
    hosts.host(1).stack(&rolling(0));
    hosts.host(1).up();
    for version in 1..=2 {
        let leader = hosts.leader(1);
        let other = leader % 3 + 1;
        hosts.host(other).stack(&rolling(version));
        let update = hosts.host(other).start(&["up", "-d", "--wait"]);
        let is_new = |task: &serde_json::Value| task["up_to_date"] == true;
        eventually(PATIENCE, "the update is under way", || {
            let services = hosts.host(other).orch(&["service", "ls", "--format", "json"]).ok();
            if services.stdout.contains("updating") { Ok(()) } else { Err(services.told()) }
        });
        hosts.host(leader).kill_agent();
        let begun = Instant::now();
        update.ends(2 * PATIENCE).ok();
        took("leader killed in an update → the update has come to its end", begun);
        let services = hosts.host(other).orch(&["service", "ls", "--format", "json"]).ok();
        assert!(services.stdout.contains("completed"), "{}", services.told());
        let tasks = hosts.host(other).ps();
        assert!(tasks.len() == 4 && tasks.iter().all(|task| is_new(task) || task["up_to_date"].is_null()), "{tasks:?}");
        hosts.host(leader).start_agent();
        hosts.all_vote();
        hosts.all_ready(other);
    }
}

#[test]
fn a_clock_that_is_off_by_more_than_certificates_allow_is_named() {
    let hosts = hosts(&[0, -4 * HOUR, 4 * HOUR]);
    hosts.init();
    let token = hosts.token(&["worker", "--once"]);
    hosts.join(2, &token).fails().says(&["the node's clock is 240 min behind the cluster's", "set the clock"]);
    hosts.join(3, &token).fails().says(&["the node's clock is 240 min ahead of the cluster's"]);
    assert_eq!(hosts.nodes(1).len(), 1);
    // The token was not used up by that.
    let set = |number: usize, off: i64| {
        let host = hosts.host(number);
        host.stop_agent();
        host.clock_off.store(off, Ordering::Relaxed);
        host.start_agent();
    };
    set(2, 0);
    hosts.join(2, &token).ok();
    let connected = |wanted: bool| {
        eventually(PATIENCE, "the worker is connected or not", || {
            let info = hosts.info(2);
            if info["connected"] == wanted { Ok(()) } else { Err(info.to_string()) }
        });
    };
    connected(true);
    // A clock that goes wrong later.
    set(2, -4 * HOUR);
    connected(false);
    eventually(PATIENCE, "its log names the clock", || {
        let log = hosts.host(2).agent_log();
        let named = "min by this host's clock; are the clocks of both hosts right?";
        if log.contains("its certificate begins in 1") && log.contains(named) { Ok(()) } else { Err(log) }
    });
    set(2, 0);
    connected(true);
}
