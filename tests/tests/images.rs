//! Images on several hosts: what one has, all can run.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use orch_tests::cluster::Hosts;
use orch_tests::host::Host;
use orch_tests::image;
use orch_tests::machine::Place;
use orch_tests::wait::{PATIENCE, eventually};
use serde_json::Value;

/// Tasks that only wait.
fn idle(image: &str, replicas: u32) -> String {
    format!(
        "
services:
  idle:
    image: {image}
    command: [sleep, infinity]
    init: true
    deploy:
      replicas: {replicas}
      placement:
        max_replicas_per_node: {}
",
        replicas.div_ceil(3)
    )
}

/// Imports an image of busybox with some megabytes that do not compress.
fn import(host: &Host, name: &str, megabytes: usize) {
    let mut noise = String::new();
    let mut state = 1u64;
    while noise.len() < megabytes << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        write!(noise, "{state:016x}").expect("a text can be written to");
    }
    let path = host.folder().join(format!("{name}.tar"));
    image::root_archive(&path, &[("noise", &noise)]);
    host.orch(&["image", "import", &path.to_string_lossy(), name]).ok();
}

/// Makes what a host sends slow: four megabits a second.
fn slow(host: &Host) {
    let rule = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "4mbit", "burst", "32kb", "latency", "200ms"];
    host.run(Place::Host, "tc", &rule).expect("the link can be slowed down");
}

fn fast(host: &Host) {
    host.run(Place::Host, "tc", &["qdisc", "del", "dev", "eth0", "root"]).expect("it was slowed down");
}

fn running(host: &Host) -> (usize, Vec<Value>) {
    let tasks = host.ps();
    (tasks.iter().filter(|task| task["state"] == "running").count(), tasks)
}

fn why(host: &Host, task: &str) -> String {
    host.orch(&["task", "why", task]).told()
}

/// The files of an image's layers on a host.
fn blobs(host: &Host) -> Vec<PathBuf> {
    let folder = host.data().join("engine/images/blobs/sha256");
    let files = std::fs::read_dir(folder).expect("the host has images").map(|file| file.expect("a file").path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "zst")).collect()
}

#[test]
fn an_image_that_one_host_has_runs_on_all_and_each_fetches_it_once() {
    let hosts = Hosts::cluster(&["worker", "manager"]);
    // Neither the leader nor whoever is asked has it.
    hosts.host(2).load("busybox");
    let host = hosts.host(3);
    host.stack(&idle("busybox", 6));
    host.up();
    let (count, tasks) = running(host);
    assert_eq!(count, 6, "{tasks:?}");
    for number in [1, 3] {
        let log = hosts.host(number).agent_log();
        let fetches = log.lines().filter(|line| line.contains("fetching an image")).count();
        assert_eq!(fetches, 1, "two tasks, one fetch: {log}");
        let names = hosts.host(number).orch(&["image", "ls", "--format", "json"]).ok().json_lines();
        assert!(names.iter().any(|image| image.to_string().contains("busybox")), "{names:?}");
    }
    // A worker gets it from a worker by way of a manager, and the host that had it first may be gone.
    hosts.host(2).orch(&["cluster", "leave"]).ok();
    eventually(PATIENCE, "its tasks are elsewhere", || {
        let (count, tasks) = running(host);
        // Two a host: the rest waits.
        if count == 4 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    host.orch(&["plan"]).code(0);
    let refused = host.orch(&["service", "update", "--image", "nobody-has-this", "work_idle"]);
    assert!(refused.code != 0 && refused.stderr.contains("image not found: nobody-has-this"), "{}", refused.stderr);
}

#[test]
fn a_worker_gets_an_image_that_only_another_worker_has() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    import(hosts.host(2), "app", 1);
    let host = hosts.host(1);
    host.stack(
        "
services:
  a:
    image: app
    command: [sleep, infinity]
    init: true
    deploy:
      placement:
        constraints: [node.hostname == host3]
",
    );
    host.up();
    let (count, tasks) = running(host);
    assert_eq!(count, 1, "{tasks:?}");
    assert!(hosts.host(3).agent_log().contains("fetching an image"));
    let names = host.orch(&["image", "ls", "-q"]).ok();
    assert_eq!(names.text(), "", "the manager has only passed it on");
}

#[test]
fn a_fetch_goes_on_elsewhere_when_its_giver_dies_and_an_update_waits_for_it() {
    let hosts = Hosts::cluster(&["manager", "manager"]);
    hosts.load("busybox");
    let host = hosts.host(1);
    let stack = |image: &str| {
        format!(
            "
services:
  a:
    image: {image}
    command: [sleep, infinity]
    init: true
    deploy:
      placement:
        constraints: [node.hostname == host1]
"
        )
    };
    host.stack(&stack("busybox"));
    host.up();
    let before = host.container("a")["pid"].clone();
    import(hosts.host(2), "app", 6);
    let archive = hosts.host(2).folder().join("saved.tar").to_string_lossy().into_owned();
    hosts.host(2).orch(&["image", "save", "-o", &archive, "app"]).ok();
    hosts.host(3).orch(&["image", "load", "-i", &archive]).ok();
    for number in [2, 3] {
        slow(hosts.host(number));
    }
    host.stack(&stack("app"));
    let mut up = host.start(&["up", "-d"]);
    let giver = eventually(PATIENCE, "a host gives the image", || {
        let tasks = host.ps();
        let new = tasks.iter().find(|task| task["image"] == "app").and_then(|task| task["task"].as_str());
        let why = new.map(|task| why(host, task)).unwrap_or_default();
        let from = |number: &usize| why.contains(&format!("fetching app from host{number} (1 layer, "));
        [2, 3].into_iter().find(from).ok_or(why)
    });
    let tasks = host.ps();
    let former = tasks.iter().find(|task| task["pid"] == before && task["state"] == "running");
    assert!(former.is_some(), "the former one runs meanwhile: {tasks:?}");
    assert!(!up.ended(), "up waits");
    hosts.host(giver).kill_agent();
    let other = 5 - giver;
    fast(hosts.host(other));
    eventually(PATIENCE, "the new one runs", || {
        let tasks = host.ps();
        let new = tasks.iter().find(|task| task["image"] == "app" && task["state"] == "running");
        if new.is_some() { Ok(()) } else { Err(format!("{tasks:?}\n{}", host.agent_log())) }
    });
    up.ends(PATIENCE).ok();
    let log = host.agent_log();
    assert!(log.contains("a node did not give an image"), "{log}");
}

#[test]
fn bytes_that_are_damaged_are_refused_and_their_giver_is_named() {
    let hosts = Hosts::cluster(&["worker"]);
    import(hosts.host(2), "app", 2);
    for path in blobs(hosts.host(2)) {
        let mut bytes = std::fs::read(&path).expect("it can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        std::fs::write(&path, bytes).expect("it can be written");
    }
    let host = hosts.host(1);
    host.stack(
        "
services:
  a:
    image: app
    command: [sleep, infinity]
    deploy:
      placement:
        constraints: [node.hostname == host1]
",
    );
    let refused = host.orch(&["up", "-d"]);
    assert_ne!(refused.code, 0, "{}", refused.stderr);
    let says = &refused.stderr;
    assert!(says.contains("image app could not be fetched: host2: "), "{says}");
    assert!(says.contains("came with the digest") || says.contains("broke off"), "{says}");
    assert_eq!(host.orch(&["image", "ls", "-q"]).ok().text(), "");
    let left = std::fs::read_dir(host.data().join("engine/images/ingest")).expect("the store is there").count();
    assert_eq!(left, 0, "nothing of it stays");
    // Another host has it whole: the same command succeeds.
    hosts.host(2).orch(&["image", "rm", "-f", "app"]).ok();
    import(hosts.host(2), "app", 2);
    host.up();
    assert_eq!(running(host).0, 1);
}

#[test]
fn a_name_means_the_image_that_got_it_last_wherever_that_was() {
    let hosts = Hosts::cluster(&["manager"]);
    // Who is not is not asked.
    hosts.all_ready(1);
    import(hosts.host(1), "app", 1);
    import(hosts.host(2), "app", 2);
    let id = |number: usize| {
        let images = hosts.host(number).orch(&["image", "ls", "--no-trunc", "--format", "json"]).ok().json_lines();
        images[0]["id"].as_str().expect("an id").to_owned()
    };
    let (old, new) = (id(1), id(2));
    assert_ne!(old, new);
    let host = hosts.host(1);
    host.stack(&idle("app", 2));
    host.up();
    for number in [1, 2] {
        let containers = hosts.host(number).orch(&["container", "ls", "--format", "json"]).ok().json_lines();
        assert_eq!(containers[0]["image_id"], *new, "{containers:?}");
    }
}

#[test]
fn what_only_the_client_has_is_sent_and_nothing_twice() {
    let hosts = Hosts::new(3);
    hosts.init();
    let token = hosts.token(&["worker"]);
    hosts.join(2, &token).ok();
    // The third is somebody's laptop, no part of the cluster.
    let laptop = hosts.host(3);
    let folder = laptop.folder().join("certificate").to_string_lossy().into_owned();
    hosts.host(1).orch(&["cluster", "client", "create", "alice", "--role", "deploy", "-o", &folder]).ok();
    let server = format!("tcp://{}", orch_tests::segment::address(1));
    let call = |arguments: &[&str]| {
        let all = [&["--host", server.as_str()], arguments].concat();
        laptop.invoke(&all).env("ORCH_CERT_PATH", &folder).run()
    };
    laptop.stack(&idle("app", 2));
    let refused = call(&["up", "-d"]);
    assert!(refused.code != 0 && refused.stderr.contains("image not found: app"), "{}", refused.told());
    assert!(refused.stderr.contains("neither the cluster nor this machine has it"), "{}", refused.told());
    import(laptop, "app", 1);
    let planned = call(&["plan"]);
    assert!(
        planned.code == 1 && planned.stderr.contains("image not found: app"),
        "a plan sends nothing: {}",
        planned.told()
    );
    let pushed = call(&["up", "-d", "--wait"]).ok();
    for line in ["pushing image app: 1 layer, ", "pushed layer 1 of 1, sha256:", "pushed image app"] {
        assert!(pushed.stderr.contains(line), "{}", pushed.told());
    }
    let tasks = call(&["ps", "--format", "json"]).ok().json_lines();
    let on: BTreeSet<&str> = tasks.iter().filter_map(|task| task["node"].as_str()).collect();
    let run = tasks.iter().filter(|task| task["state"] == "running").count();
    assert_eq!((run, on.len()), (2, 2), "{tasks:?}");
    let again = call(&["up", "-d", "--wait"]).ok();
    assert!(!again.stderr.contains("push"), "{}", again.told());
    // The same layer under another name: only the documents travel.
    laptop.orch(&["image", "tag", "app", "other"]).ok();
    let run = call(&["container", "run", "--rm", "--network", "none", "other", "echo", "it", "runs"]).ok();
    assert!(run.stderr.contains("pushing image other: 0 layers, 0B"), "{}", run.told());
    assert_eq!(run.text().trim(), "it runs");
}
