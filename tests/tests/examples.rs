//! Every stack file under examples/ does what its head says.

use std::path::PathBuf;
use std::time::Duration;

use orch_tests::host::Host;
use orch_tests::machine::{ADDRESS, NEIGHBOUR, Place};
use orch_tests::tidy::repository;
use orch_tests::wait::{PATIENCE, eventually};
use serde_json::Value;

fn example(name: &str) -> (String, PathBuf) {
    let path = repository().join("examples").join(name);
    (path.join("stack.yaml").to_string_lossy().into_owned(), path)
}

/// When a container started, in nanoseconds since the epoch, as its RFC 3339 text sorts.
fn started(container: &Value) -> String {
    let text = container["started_at"].as_str().unwrap_or_default().to_owned();
    assert!(!text.is_empty(), "never started: {container}");
    text
}

#[test]
fn every_example_has_a_scenario() {
    let folders = std::fs::read_dir(repository().join("examples")).unwrap().flatten();
    let mut names: Vec<String> = folders.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["chain", "ci", "hello", "web"], "write a scenario for the new one and name it here");
}

#[test]
fn the_four_services_come_up_in_order_and_their_page_answers_everywhere() {
    let host = Host::new();
    for image in ["nginx", "redis", "postgres", "web", "busybox"] {
        host.load(image);
    }
    let (file, _) = example("web");
    host.orch(&["-f", &file, "up", "-d", "--wait", "--wait-timeout", "150"]).ok();
    let all = host.orch(&["-f", &file, "ps", "--format", "json"]).ok().json_lines();
    assert_eq!(all.len(), 4, "{all:?}");
    let of = |service: &str| all.iter().find(|c| c["service"] == service).unwrap();
    for service in ["proxy", "web", "redis", "db"] {
        assert_eq!(
            (&of(service)["state"], &of(service)["health"]),
            (&"running".into(), &"healthy".into()),
            "{}",
            of(service)
        );
    }
    for (earlier, later) in [("redis", "web"), ("db", "web"), ("web", "proxy")] {
        assert!(started(of(earlier)) < started(of(later)), "{later} started before {earlier}");
    }

    let mut visits = 0;
    let mut counts = |page: String, from: &str| {
        assert!(page.contains("Hello from a row in PostgreSQL"), "{from}: {page}");
        let count = page.split("id=\"visits\">").nth(1).and_then(|p| p.split('<').next()?.parse::<u32>().ok());
        assert!(count.is_some_and(|c| c > visits), "{from}: redis does not count: {page}");
        visits = count.unwrap_or_default();
    };
    let localhost6 = std::net::Ipv6Addr::LOCALHOST;
    counts(host.page(Place::Host, std::net::Ipv4Addr::LOCALHOST, 8080, "/").unwrap(), "localhost");
    counts(host.page(Place::Host, ADDRESS, 8080, "/").unwrap(), "the host's address");
    counts(host.page(Place::Host, localhost6, 8080, "/").unwrap(), "[::1]");
    counts(host.page(Place::Neighbour, ADDRESS, 8080, "/").unwrap(), "a LAN neighbour");
    let inside =
        |url: &str| host.orch(&["-f", &file, "exec", "-T", "web", "busybox", "wget", "-q", "-O", "-", url]).ok().stdout;
    counts(inside("http://proxy/"), "another container, by name");
    counts(inside(&format!("http://{ADDRESS}:8080/")), "another container, by the host's address");
    counts(
        host.orch(&[
            "container",
            "run",
            "--rm",
            "busybox",
            "wget",
            "-q",
            "-O",
            "-",
            &format!("http://{ADDRESS}:8080/"),
        ])
        .ok()
        .stdout,
        "a container on another network",
    );

    let web = of("web")["networks"]["front"]["ipv4"].as_str().unwrap().to_owned();
    assert!(
        host.page(Place::Neighbour, web.parse::<std::net::Ipv4Addr>().unwrap(), 8000, "/").is_err(),
        "unpublished, yet reachable from the LAN"
    );
    let out = host.orch(&[
        "-f",
        &file,
        "exec",
        "-T",
        "redis",
        "busybox",
        "ping",
        "-c",
        "1",
        "-W",
        "1",
        &NEIGHBOUR.to_string(),
    ]);
    assert_ne!(out.code, 0, "an internal network has a way out: {}", out.told());

    host.orch(&["-f", &file, "plan"]).ok().prints(&["nothing to do"]);
    host.orch(&["-f", &file, "up", "-d", "--wait"]).ok();
    let again = host.orch(&["-f", &file, "ps", "--format", "json"]).ok().json_lines();
    let pids = |all: &[Value]| all.iter().map(|c| c["pid"].clone()).collect::<Vec<_>>();
    assert_eq!(pids(&all), pids(&again), "a second `up` started something anew");

    host.orch(&["-f", &file, "down"]).ok();
    let volumes = host.orch(&["volume", "ls", "--format", "json"]).ok().stdout;
    assert!(volumes.contains("web_db-data") && volumes.contains("web_redis-data"), "`down` took volumes: {volumes}");
    host.orch(&["-f", &file, "up", "-d", "--wait", "--wait-timeout", "150"]).ok();
    counts(host.page(Place::Host, ADDRESS, 8080, "/").unwrap(), "after `down` and `up` with the same volumes");
    host.orch(&["-f", &file, "down", "-v"]).ok();
    assert_eq!(host.orch(&["volume", "ls", "-q"]).ok().text(), "");
    host.leaves_no_trace();
}

#[test]
fn hello_answers_with_the_page_of_its_config() {
    let host = Host::with_busybox();
    let (file, _) = example("hello");
    host.invoke(&["-f", &file, "up", "-d", "--wait"]).env("HELLO_FROM", "a scenario").run().ok();
    assert_eq!(host.page(Place::Neighbour, ADDRESS, 8081, "/").unwrap().trim(), "Hello from a scenario!");
    host.orch(&["-f", &file, "port", "hello", "80"]).ok().prints(&[":8081"]);
    host.orch(&["-f", &file, "down"]).ok();
    host.leaves_no_trace();
}

#[test]
fn the_chain_starts_link_by_link() {
    let host = Host::with_busybox();
    let (file, _) = example("chain");
    host.orch(&["-f", &file, "up", "-d", "--wait", "--wait-timeout", "60"]).ok();
    let all = host.orch(&["-f", &file, "ps", "-a", "--format", "json"]).ok().json_lines();
    let of = |service: &str| all.iter().find(|c| c["service"] == service).unwrap();
    for (earlier, later) in [("a", "migration"), ("migration", "b"), ("b", "c")] {
        assert!(started(of(earlier)) < started(of(later)), "{later} started before {earlier}");
    }
    assert_eq!((&of("migration")["state"], &of("migration")["exit_code"]), (&"exited".into(), &0.into()));
    assert!(
        of("migration")["finished_at"].as_str() <= of("b")["started_at"].as_str(),
        "b did not wait for the migration"
    );
    host.orch(&["-f", &file, "logs"]).ok().prints(&["migrated to version 1", "c is ready"]);
    host.orch(&["-f", &file, "down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn the_tests_of_the_ci_example_decide_the_exit_code() {
    let host = Host::new();
    host.load("postgres");
    let (file, _) = example("ci");
    let up = ["-f", &file, "up", "--exit-code-from", "tests"];
    host.orch(&up).code(0).prints(&["tests-1", "ok: sums are exact", "all passed"]);
    host.orch(&["-f", &file, "down", "-v"]).ok();
    host.invoke(&up).env("CI_BREAK", "1").run().code(3).prints(&["FAILED: a test fails when CI_BREAK is set"]);
    let stopped = || host.orch(&["-f", &file, "ps", "--format", "json"]).ok().text().to_owned();
    eventually(PATIENCE, "the database is stopped with its tests", || {
        if stopped().is_empty() { Ok(()) } else { Err(stopped()) }
    });
    host.orch(&["-f", &file, "down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn an_agent_that_a_command_started_leaves_when_nothing_runs() {
    let host = Host::with_busybox();
    let agent = host.agent().expect("the load has started one");
    let command = host.processes().command(agent.pid);
    assert!(command.contains("--idle-exit"), "{command}");
    let name = host.sh(Place::Host, &format!("cat /proc/{}/comm", agent.pid));
    assert_eq!(name.trim(), "orch", "what `ps` and `ss` call it");
    // Its minute of patience would be a test's minute of waiting: the same agent with less of it.
    host.stop_agent();
    host.start_agent_with(&["--idle-exit", "1"]);
    let agent = host.agent().expect("it answers");
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    // That something does not happen can only be seen by giving it the time to: more than twice what it takes when nothing runs.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(host.processes().alive(agent), "it left while a container ran");
    host.down();
    eventually(PATIENCE, "the agent leaves by itself", || {
        if host.processes().alive(agent) { Err("it is there") } else { Ok(()) }
    });
    host.leaves_no_trace();
}
