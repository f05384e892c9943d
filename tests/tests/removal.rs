//! Managers that are no more wanted as such while nobody can tell them: they were cut off, or did not run.

use std::collections::BTreeMap;

use orch_tests::cluster::Hosts;
use orch_tests::host::RUN;
use orch_tests::http::call_at_socket;
use orch_tests::process::Identity;
use orch_tests::wait::{PATIENCE, eventually};
use serde_json::Value;

/// A task on every node, which only waits.
const EVERYWHERE: &str = "
name: everywhere
services:
  idle: {image: busybox, command: [sleep, infinity], init: true, deploy: {mode: global}}
";

fn managers() -> Hosts {
    let hosts = Hosts::managers(3);
    hosts.hosts.iter().for_each(|host| host.load("busybox"));
    hosts.host(1).stack(EVERYWHERE);
    hosts.host(1).up();
    hosts
}

/// Waits until what a host says of itself and its cluster is as `wanted` says. Its agent may start again meanwhile.
#[track_caller]
fn says_of_itself(hosts: &Hosts, number: usize, what: &str, wanted: impl Fn(&Value) -> bool) {
    eventually(PATIENCE, what, || {
        let output = hosts.host(number).orch(&["cluster", "info", "--format", "json"]);
        let info = if output.code == 0 { output.json() } else { Value::Null };
        if wanted(&info) { Ok(()) } else { Err(format!("{info} {}", output.stderr)) }
    });
}

fn own(hosts: &Hosts, number: usize) -> BTreeMap<String, Identity> {
    let running = hosts.running(number);
    assert_eq!(running.len(), 1, "{running:?}");
    running
}

/// Does something while a host is away: without a process, or without a connection.
#[track_caller]
fn leaves_and(hosts: &Hosts, away: usize, stopped: bool, act: impl FnOnce()) {
    let port = u8::try_from(away).expect("a few hosts");
    if stopped {
        hosts.host(away).stop_agent();
        act();
        hosts.host(away).start_agent();
    } else {
        hosts.segment.cut(port).expect("there is a cable");
        act();
        hosts.segment.mend(port).expect("there is a cable");
    }
}

#[test]
fn a_manager_that_is_demoted_while_it_is_away_comes_back_as_a_worker() {
    let hosts = managers();
    let leader = hosts.leader(1);
    let (asked, away) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    for stopped in [false, true] {
        let (before, name) = (own(&hosts, away), format!("host{away}"));
        leaves_and(&hosts, away, stopped, || drop(hosts.host(asked).orch(&["node", "demote", &name]).ok()));
        says_of_itself(&hosts, away, "it is a worker", |info| info["role"] == "worker" && info["connected"] == true);
        assert_eq!(own(&hosts, away), before, "what it runs goes on");
        // It does what it is told: nothing but another look at the cluster's state says so.
        hosts.host(asked).orch(&["-p", "everywhere", "restart", "idle"]).ok();
        assert_ne!(own(&hosts, away), before, "it carries out what the others decide");
        hosts.host(asked).orch(&["node", "promote", &name]).ok();
        says_of_itself(&hosts, away, "it is a manager", |info| info["role"] == "manager" && info["leader"] != "");
        hosts.all_vote();
    }
}

#[test]
fn a_manager_that_is_demoted_and_promoted_while_it_is_away_takes_part_anew() {
    let hosts = managers();
    let leader = hosts.leader(1);
    let (asked, away) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    for stopped in [false, true] {
        let (before, name) = (own(&hosts, away), format!("host{away}"));
        leaves_and(&hosts, away, stopped, || {
            hosts.host(asked).orch(&["node", "demote", &name]).ok();
            hosts.host(asked).orch(&["node", "promote", &name]).ok();
        });
        says_of_itself(&hosts, away, "it is a manager", |info| info["role"] == "manager" && info["leader"] != "");
        hosts.all_vote();
        hosts.host(away).orch(&["node", "update", &name, "--label-add", "by=itself"]).ok();
        assert_eq!(own(&hosts, away), before, "what it runs goes on");
    }
}

#[test]
fn a_manager_that_is_removed_while_it_is_cut_off_says_so_once_runs_on_and_leaves() {
    const SAID: &str = "this node was removed from its cluster";
    let hosts = managers();
    let leader = hosts.leader(1);
    let (stays, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let before = own(&hosts, leader);
    hosts.segment.cut(u8::try_from(leader).expect("a few hosts")).expect("there is a cable");
    let name = format!("host{leader}");
    eventually(PATIENCE, "the others remove the one that led", || {
        let output = hosts.host(stays).orch(&["node", "rm", "--force", &name]);
        if output.code == 0 { Ok(()) } else { Err(output.told()) }
    });
    let term = |number: usize| hosts.info(number)["term"].as_u64();
    let leads = hosts.leader(other);
    let since = term(leads);
    hosts.segment.mend(u8::try_from(leader).expect("a few hosts")).expect("there is a cable");
    says_of_itself(&hosts, leader, "it has been told", |info| info["removed"] == true);
    assert_eq!(own(&hosts, leader), before, "what it ran goes on");
    // Also over a start of its agent.
    hosts.host(leader).stop_agent();
    hosts.host(leader).start_agent();
    says_of_itself(&hosts, leader, "it has been told again", |info| info["removed"] == true);
    assert_eq!(own(&hosts, leader), before, "what it ran goes on");
    let log = hosts.host(leader).agent_log();
    assert_eq!(log.matches(SAID).count(), 2, "once by each of its processes: {log}");
    assert_eq!((hosts.leader(other), term(leads)), (leads, since), "it leaves the others alone");
    let begun = std::time::Instant::now();
    hosts.host(leader).orch(&["cluster", "leave"]).ok();
    orch_tests::wait::took("a manager that was removed leaves", begun);
    assert_eq!((hosts.running(leader).len(), &hosts.info(leader)["open"]), (0, &Value::Bool(false)));
    let token = hosts.host(stays).orch(&["-q", "cluster", "token", "manager"]).ok().text().trim().to_owned();
    let to = orch_tests::segment::address(u8::try_from(stays).expect("a few hosts")).to_string();
    hosts.host(leader).orch(&["cluster", "join", "--token", &token, &to]).ok();
    hosts.all_vote();
}

#[test]
fn nobody_is_demoted_or_removed_while_the_others_could_not_decide_alone() {
    let hosts = Hosts::managers(3);
    // The one that shall go leads and another is missing, then the other way round.
    for leader_goes in [true, false] {
        let leader = hosts.leader(1);
        let (other, stays) = (leader % 3 + 1, (leader + 1) % 3 + 1);
        let (goes, missing) = if leader_goes { (leader, other) } else { (other, leader) };
        let name = format!("host{goes}");
        hosts.segment.cut(u8::try_from(missing).expect("a few hosts")).expect("there is a cable");
        let refused = hosts.host(stays).start(&["node", "demote", &name]).ends(2 * PATIENCE).fails();
        assert!(refused.stderr.contains("too few of the managers that vote are there"), "{}", refused.told());
        // Changes go on being taken.
        hosts.host(goes).orch(&["node", "update", &name, "--label-add", &format!("leads={leader_goes}")]).ok();
        hosts.segment.mend(u8::try_from(missing).expect("a few hosts")).expect("there is a cable");
        hosts.all_vote();
    }
}

#[test]
fn a_manager_that_demotes_itself_is_answered_and_half_a_demotion_is_finished() {
    let hosts = managers();
    let leader = hosts.leader(1);
    // The leader hands over first, so it is the last one of these.
    for number in [leader % 3 + 1, leader] {
        let (before, name) = (own(&hosts, number), format!("host{number}"));
        let other = number % 3 + 1;
        let said = hosts.host(number).orch(&["node", "demote", &name]).ok();
        assert_eq!(said.text().trim(), name);
        says_of_itself(&hosts, number, "it is a worker", |info| info["role"] == "worker" && info["connected"] == true);
        hosts.host(other).orch(&["node", "promote", &name]).ok();
        // Its agent starts again meanwhile.
        says_of_itself(&hosts, number, "it is a manager", |info| info["role"] == "manager" && info["leader"] != "");
        hosts.all_vote();
        assert_eq!(own(&hosts, number), before, "what it runs goes on");
    }
    // Whoever was to be demoted has lost its place in the log, and then the command was interrupted.
    let leader = hosts.leader(1);
    let half = leader % 3 + 1;
    let path = format!("/v1/peer/managers/{}", hosts.id(half));
    let answer = call_at_socket(&hosts.host(leader).path(RUN).join("orch.sock"), ["DELETE", &path], &[], "", PATIENCE);
    assert_eq!(answer.expect("the leader answers").status, 200);
    says_of_itself(&hosts, half, "it is a worker", |info| info["role"] == "worker" && info["connected"] == true);
    hosts.host(leader).orch(&["node", "promote", &format!("host{half}")]).ok();
    says_of_itself(&hosts, half, "it is a manager", |info| info["role"] == "manager" && info["leader"] != "");
    hosts.all_vote();
}
