//! What people get wrong with several hosts: each time a clear error, or a task that waits and says why, and nothing is lost.

use std::path::PathBuf;

use orch_tests::cluster::Hosts;
use orch_tests::host::Host;
use orch_tests::image;
use orch_tests::machine::Place;
use orch_tests::segment::address;
use orch_tests::wait::{PATIENCE, eventually};

/// A stack of one service that only waits, with more about it.
fn idle(name: &str, more: &str) -> String {
    format!(
        "
name: {name}
services:
  idle:
    image: busybox
    init: true
    command: [sleep, infinity]
    {more}
"
    )
}

/// Brings up a stack that no node takes, and returns what the waiting task and its service say of it.
fn waits(host: &Host, name: &str, file: &str) -> String {
    host.write("waits.yaml", file);
    host.orch(&["-f", "waits.yaml", "up", "-d", "--wait", "--wait-timeout", "2"]).fails();
    let tasks = host.orch(&["-f", "waits.yaml", "ps", "-a", "--format", "json"]).ok().json_lines();
    let id = tasks[0]["task"].as_str().or(tasks[0]["id"].as_str()).unwrap_or_default().to_owned();
    let why = host.orch(&["task", "why", &id]).ok().stdout;
    let explained = host.orch(&["service", "explain", &format!("{name}_idle")]).ok().stdout;
    host.orch(&["-f", "waits.yaml", "down", "-t", "1"]).ok();
    format!("{why}\n{explained}")
}

#[test]
fn what_no_node_can_run_waits_and_says_why_and_a_slip_of_the_keyboard_is_refused() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    let host = hosts.host(1);
    host.load("busybox");
    hosts.all_ready(1);
    host.stack(&idle("kept", "deploy: {replicas: 3}"));
    host.up();
    let before: Vec<_> = (1..=3).map(|number| hosts.running(number)).collect();

    let told = waits(host, "large", &idle("large", "deploy: {resources: {reservations: {memory: 900g}}}"));
    assert!(told.contains("no suitable node: 3 nodes have too little memory left"), "{told}");
    let told = waits(host, "far", &idle("far", "deploy: {placement: {constraints: ['node.labels.zone == far']}}"));
    assert!(told.contains("3 nodes do not meet `node.labels.zone == far`"), "{told}");

    let slip = idle("slip", "deploy: {placement: {constraints: ['node.hostnam == host1']}}");
    host.write("slip.yaml", &slip);
    let refused = host.orch(&["-f", "slip.yaml", "up", "-d"]).fails();
    refused.says(&[
        "service idle is to be placed by `node.hostnam`, which no node can have",
        "did you mean `node.hostname`?",
    ]);

    // An image that was made for other machines.
    let root = host.folder().join("root.tar");
    image::root_archive(&root, &[("some", "thing")]);
    host.orch(&["image", "import", "--platform", "linux/arm64", &root.to_string_lossy(), "foreign"]).ok();
    let told = waits(host, "foreign", &idle("foreign", "").replace("busybox", "foreign"));
    assert!(told.contains("3 nodes do not run linux/arm64, which the image was made for"), "{told}");

    let after: Vec<_> = (1..=3).map(|number| hosts.running(number)).collect();
    assert_eq!(after, before, "what ran runs on");
}

#[test]
fn two_clusters_on_one_link_do_not_disturb_each_other() {
    let hosts = Hosts::new(4);
    for first in [1, 3] {
        let own = address(u8::try_from(first).expect("a few hosts")).to_string();
        hosts.host(first).orch(&["cluster", "init", "--advertise-addr", &own]).ok();
        let token = hosts.host(first).orch(&["-q", "cluster", "token", "worker"]).ok().text().to_owned();
        hosts.host(first + 1).orch(&["cluster", "join", "--token", &token, &own]).ok();
        // Neither the one cluster's node nor its token is anything to the other.
        let other = address(u8::try_from(4 - first).expect("a few hosts")).to_string();
        let joined = hosts.host(first + 1).orch(&["cluster", "join", "--token", &token, &other]);
        joined.fails().says(&["is a worker of cluster"]);
    }
    // The same file, the same names, the same port, and by the same rules the same addresses.
    let file = |says: &str| {
        format!(
            "
name: twin
services:
  web:
    image: busybox
    init: true
    command: [sh, -c, 'mkdir /www; echo {says} >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy: {{mode: global}}
    ports: ['8080:80']
  caller: {{image: busybox, init: true, command: [sleep, infinity]}}
"
        )
    };
    for (first, says) in [(1, "one"), (3, "two")] {
        hosts.host(first).load("busybox");
        hosts.host(first).stack(&file(says));
        hosts.host(first).up();
    }
    let subnet = |number: usize| {
        let links = hosts.host(number).sh(Place::Host, "ip -4 -br address show type bridge");
        links.split_whitespace().nth(2).unwrap_or_default().to_owned()
    };
    assert_eq!(subnet(1), subnet(3), "both chose the same addresses, or this shows nothing");
    for (first, says) in [(1, "one"), (3, "two")] {
        let host = hosts.host(first);
        eventually(PATIENCE, "every answer is of the own cluster", || {
            let script =
                "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://web/ || echo failed; done | sort | uniq -c";
            let seen = host.exec("caller", script);
            if seen.trim() == format!("9 {says}") { Ok(()) } else { Err(seen) }
        });
        for number in [first, first + 1] {
            let at = address(u8::try_from(number).expect("a few hosts"));
            for _ in 0..8 {
                let page = host.page(Place::Host, at, 8080, "/");
                assert_eq!(page.as_deref().map(str::trim), Ok(says), "host {number}");
            }
        }
        assert_eq!(hosts.nodes(first).len(), 2);
    }
    // What becomes of the one is nothing to the other.
    hosts.host(1).down();
    assert_eq!(hosts.host(3).page(Place::Host, address(4), 8080, "/").as_deref().map(str::trim), Ok("two"));
    hosts.host(3).down();
}

/// The binary under test as another version of itself would be, whose number fits in the own one's place, and that number.
fn another_version(host: &Host) -> (PathBuf, String) {
    let mut bytes = std::fs::read(orch_tests::host::binary()).expect("there is a binary");
    let own = env!("CARGO_PKG_VERSION");
    // Nodes need the first two numbers alike: the last digit of the second is another one.
    let (before, patch) = own.rsplit_once('.').expect("a version has three numbers");
    let digit = if before.ends_with('9') { '8' } else { '9' };
    let other = format!("{}{digit}.{patch}", &before[..before.len() - 1]);
    let places: Vec<usize> = memmem(&bytes, own.as_bytes());
    for place in places {
        bytes[place..place + other.len()].copy_from_slice(other.as_bytes());
    }
    let program = host.folder().join("orch");
    std::fs::write(&program, bytes).expect("a file can be written");
    host.sh(Place::Host, &format!("chmod +x {0}; {0} --version", program.display()));
    (program, other)
}

/// Where these bytes are.
fn memmem(bytes: &[u8], wanted: &[u8]) -> Vec<usize> {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == wanted[0]).map(|(place, _)| place);
    starts.filter(|place| bytes[*place..].starts_with(wanted)).collect()
}

#[test]
fn a_node_of_another_version_is_refused_with_both_named_and_its_token_counts_on() {
    let hosts = Hosts::new(2);
    hosts.init();
    let token = hosts.token(&["worker", "--once"]);
    let host = hosts.host(2);
    let (program, other) = another_version(host);
    host.stop_agent();
    host.set_program(Some(&program));
    host.start_agent();
    let refused = hosts.join(2, &token).fails();
    let versions = format!("the node runs orch {other}, the cluster runs {}", env!("CARGO_PKG_VERSION"));
    refused.says(&[&versions, "install the cluster's version on the node"]);
    assert_eq!((&hosts.info(2)["open"], hosts.nodes(1).len()), (&false.into(), 1));
    host.stop_agent();
    host.set_program(None);
    host.start_agent();
    hosts.join(2, &token).ok();
}

#[test]
fn nothing_takes_a_cluster_its_last_manager_and_nobody_joins_twice() {
    let hosts = Hosts::cluster(&["worker"]);
    let host = hosts.host(1);
    host.load("busybox");
    host.stack(&idle("kept", "deploy: {replicas: 2}"));
    host.up();
    hosts.all_ready(1);
    let before = [hosts.running(1), hosts.running(2)];
    host.orch(&["cluster", "leave"]).fails().says(&["this is the last manager"]);
    host.orch(&["node", "demote", "host1"]).fails().says(&["is the last manager"]);
    host.orch(&["node", "rm", "host1"]).fails();
    host.orch(&["node", "rm", "--force", "host1"]).fails().says(&["last manager"]);
    // What a worker asks a manager for is none of its business.
    hosts.host(2).orch(&["node", "rm", "--force", "host1"]).fails().says(&["is a worker"]);
    for number in 1..=2 {
        let token = hosts.token(&["manager"]);
        hosts.join(number, &token).fails().says(&["of cluster", "already"]);
    }
    assert_eq!([hosts.running(1), hosts.running(2)], before, "what ran runs on");
    host.orch(&["volume", "create", "still-taken"]).ok();
    assert_eq!(hosts.nodes(1).len(), 2);
    host.down();
}

#[test]
fn who_would_manage_at_anothers_address_is_refused_and_its_token_counts_on() {
    let hosts = Hosts::new(3);
    hosts.init();
    let token = hosts.token(&["manager"]);
    hosts.join(2, &token).ok();
    hosts.so_many_ready(1, 2);
    let token = hosts.token(&["manager", "--once"]);
    let join = |advertised: &str| {
        let arguments = ["cluster", "join", "--token", &token, "--advertise-addr", advertised, "192.0.2.1"];
        hosts.host(3).orch(&arguments)
    };
    join("192.0.2.2").fails().says(&[
        "manager host2 (",
        "has the address 192.0.2.2:7373 already",
        "orch node rm host2",
    ]);
    let managers = hosts.info(1)["managers"].as_array().map(Vec::len);
    assert_eq!(managers, Some(2), "nothing of it stays");
    join("192.0.2.3").ok();
    hosts.all_vote();
}
