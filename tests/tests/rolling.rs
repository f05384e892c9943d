//! Twenty replicas that change under constant requests, from a host outside by the published port and from a container by the service's
//! address: no request fails, whatever is changed and whether the change is good.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use orch_tests::cluster::{Answers, Hosts};
use orch_tests::output::Output;
use orch_tests::wait::{PATIENCE, eventually, saw, took, until};

/// The host that is no node and asks the three that are.
const OUTSIDE: usize = 4;
const REPLICAS: usize = 20;

/// Three nodes and a host beside them.
fn hosts() -> Hosts {
    let hosts = Hosts::new(4);
    hosts.init();
    let token = hosts.token(&["worker"]);
    (2..=3).for_each(|number| drop(hosts.join(number, &token).ok()));
    hosts.host(1).load("busybox");
    hosts.so_many_ready(1, 3);
    hosts
}

/// Twenty pages that say `version`, and a caller.
fn pages(version: &str, begin: &str) -> String {
    format!(
        "
name: roll
services:
  web:
    image: busybox
    init: true
    environment: {{VERSION: '{version}'}}
    command: [sh, -c, '{begin} mkdir /www; echo $$VERSION >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy:
      replicas: {REPLICAS}
      update_config: {{parallelism: 4, order: start-first, failure_action: rollback, monitor: 500ms}}
      restart_policy: {{condition: none}}
    healthcheck:
      {{test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1/'], start_period: 30s, start_interval: 200ms, interval: 5s}}
    ports: ['8080:80']
  caller:
    image: busybox
    init: true
    command: [sleep, infinity]
    deploy: {{placement: {{constraints: [node.hostname == host1]}}}}
"
    )
}

/// Does something while everybody asks, and returns what it returned. Every one of these versions must have answered, and nothing else.
fn under_requests<T>(hosts: &Hosts, versions: &[&str], act: impl FnOnce() -> T) -> T {
    let expected: BTreeSet<&str> = versions.iter().copied().collect();
    let by_name = "while [ ! -e /stop ]; do wget -q -O - http://web/ 2>&1 || echo failed; touch /asked; done | sort | uniq -c; rm /stop /asked";
    let caller = hosts.host(1).start(&["container", "exec", "roll-caller-1", "sh", "-c", by_name]);
    until(PATIENCE, "the caller has begun", || {
        hosts.host(1).orch(&["container", "exec", "roll-caller-1", "test", "-e", "/asked"]).code == 0
    });
    let (acted, by_port) = hosts.while_asking(OUTSIDE, act);
    hosts.host(1).orch(&["container", "exec", "roll-caller-1", "touch", "/stop"]).ok();
    let by_name = caller.ends(PATIENCE).ok();
    let counted = by_name.text().lines().filter_map(|line| line.trim().split_once(' '));
    let counted: Answers =
        counted.map(|(count, answer)| (Ok(answer.to_owned()), count.parse().unwrap_or_default())).collect();
    let by_port =
        by_port.into_iter().zip(1..).map(|(answers, number)| (format!("by the port of host {number}"), answers));
    for (how, answers) in by_port.chain([("by name".to_owned(), counted)]) {
        saw(&format!("{how}: {answers:?}"));
        let version = |answer: &Result<String, String>| answer.as_ref().ok().map(|page| page.trim().to_owned());
        let others: Vec<_> =
            answers.keys().filter(|answer| version(answer).is_none_or(|v| !expected.contains(v.as_str()))).collect();
        assert!(others.is_empty(), "{how}: {answers:?}");
        let answered: BTreeSet<String> = answers.keys().filter_map(version).collect();
        assert!(expected.iter().all(|version| answered.contains(*version)), "asked all the while, {how}: {answers:?}");
    }
    acted
}

fn up(hosts: &Hosts, file: &str) -> Output {
    hosts.host(1).stack(file);
    let begun = Instant::now();
    let output = hosts.host(1).start(&["up", "-d", "--wait", "--wait-timeout", "120"]).ends(4 * PATIENCE);
    took("up of twenty replicas", begun);
    output
}

/// Where the replicas run.
fn places(hosts: &Hosts) -> BTreeMap<String, usize> {
    let tasks = hosts.host(1).ps();
    let running = tasks.iter().filter(|task| task["service"] == "web" && task["state"] == "running");
    running.fold(BTreeMap::new(), |mut places, task| {
        *places.entry(task["node"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        places
    })
}

#[test]
fn twenty_replicas_are_updated_and_a_bad_update_goes_back_and_no_request_fails() {
    let hosts = hosts();
    up(&hosts, &pages("one", "")).ok();
    under_requests(&hosts, &["one", "two"], || up(&hosts, &pages("two", "")).ok());
    assert_eq!(places(&hosts).values().sum::<usize>(), REPLICAS);

    let bad = pages("three", "echo it cannot find its table; exit 3;");
    let refused = under_requests(&hosts, &["two"], || up(&hosts, &bad).fails());
    saw(&format!("{:?}", refused.stderr));
    refused.says(&["web", "exited (3)", "it cannot find its table"]);
    // The last of the new ones may still be on its way out.
    eventually(PATIENCE, "twenty run as before", || {
        let places = places(&hosts);
        if places.values().sum::<usize>() == REPLICAS { Ok(()) } else { Err(format!("{places:?}")) }
    });
    under_requests(&hosts, &["two"], || hosts.host(1).orch(&["service", "ls"]).ok());
    hosts.host(1).down();
}

#[test]
fn a_node_with_twenty_tasks_is_drained_and_no_request_fails() {
    let hosts = hosts();
    let set = |host: &str, availability: &str| {
        hosts.host(1).orch(&["node", "update", "--availability", availability, host]).ok();
    };
    // All of them on the second.
    set("host3", "pause");
    let on_the_second = pages("one", "").replacen(
        "      replicas:",
        "      placement: {constraints: [node.role == worker]}\n      replicas:",
        1,
    );
    up(&hosts, &on_the_second).ok();
    let second = hosts.id(2);
    assert_eq!(places(&hosts), BTreeMap::from([(second.clone(), REPLICAS)]));
    set("host3", "active");
    under_requests(&hosts, &["one"], || {
        let begun = Instant::now();
        hosts.host(1).start(&["node", "drain", "host2"]).ends(4 * PATIENCE).ok();
        took("drain of twenty tasks", begun);
    });
    assert_eq!(places(&hosts), BTreeMap::from([(hosts.id(3), REPLICAS)]));
    assert!(hosts.running(2).is_empty(), "nothing runs on the host that was drained");
    hosts.host(1).down();
}
