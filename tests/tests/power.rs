//! Hosts that lose their power: what a disk keeps is enough.

use orch_tests::cluster::Hosts;
use orch_tests::host::Host;
use orch_tests::machine::{NEIGHBOUR, Place};
use orch_tests::wait::{PATIENCE, eventually};

const STACK: &str = "
name: shop
services:
  web:
    image: busybox
    init: true
    restart: always
    command: [sh, -c, 'mkdir -p /www; cat /data/page >/www/index.html; exec httpd -f -p 80 -h /www']
    ports: ['8080:80']
    volumes: ['data:/data']
    secrets: [password]
    depends_on: {store: {condition: service_healthy}}
  store:
    image: busybox
    init: true
    restart: unless-stopped
    command: [sh, -c, 'test -s /data/page || echo hello >/data/page; exec sleep infinity']
    volumes: ['data:/data']
    healthcheck: {test: [CMD, test, -s, /data/page], start_period: 30s, start_interval: 200ms, interval: 5s}
  stopped: {image: busybox, init: true, restart: unless-stopped, command: [sleep, infinity]}
  once: {image: busybox, init: true, command: [sleep, infinity]}
  done: {image: busybox, command: ['true'], restart: on-failure}
volumes: {data: {}}
secrets: {password: {external: true}}
";

#[test]
fn what_shall_run_runs_again_after_a_power_cut_with_its_data_addresses_and_ports() {
    let host = Host::with_busybox();
    host.invoke(&["secret", "create", "password", "-"]).stdin("plaintext-of-the-power-cut").run().ok();
    host.stack(STACK);
    host.up();
    host.orch(&["stop", "-t", "1", "stopped"]).ok();
    let by_hand = ["container", "run", "-d", "--name", "kept", "--restart", "always", "busybox", "sleep", "1000"];
    host.orch(&by_hand).ok();
    let address = |service: &str| host.container(service)["networks"]["default"]["ipv4"].clone();
    let before = [address("web"), address("store")];
    for _ in 0..2 {
        host.lose_power();
        host.start_agent();
        let state = |service: &str| host.container(service)["state"].as_str().unwrap_or_default().to_owned();
        eventually(PATIENCE, "what shall run runs", || {
            let states = ["web", "store", "stopped", "once", "done"].map(state);
            if states == ["running", "running", "exited", "exited", "exited"] { Ok(()) } else { Err(states.join(" ")) }
        });
        eventually(PATIENCE, "the page answers", || {
            match host.page(Place::Neighbour, orch_tests::machine::ADDRESS, 8080, "/") {
                Ok(page) if page.trim() == "hello" => Ok(()),
                other => Err(format!("{other:?}, neighbour {NEIGHBOUR}")),
            }
        });
        assert_eq!([address("web"), address("store")], before);
        assert_eq!(host.exec("web", "cat /run/secrets/password"), "plaintext-of-the-power-cut");
        assert!(host.exec("web", "nslookup store 127.0.0.11").contains(before[1].as_str().expect("an address")));
        let kept = host.orch(&["container", "ls", "--format", "json"]).ok().json_lines();
        assert!(kept.iter().any(|container| container["name"] == "kept"), "{kept:?}");
    }
    host.orch(&["container", "rm", "-f", "kept"]).ok();
    host.orch(&["down", "-v", "-t", "1"]).ok();
    host.orch(&["secret", "rm", "password"]).ok();
}

#[test]
fn what_a_host_of_a_cluster_ran_comes_back_with_it_though_its_file_names_no_restart_policy() {
    let hosts = Hosts::cluster(&["manager", "manager"]);
    hosts.load("busybox");
    let first = hosts.host(1);
    first.stack(
        "
name: all
services:
  everywhere: {image: busybox, command: sleep infinity, init: true, stop_grace_period: 1s, deploy: {mode: global}}
",
    );
    first.up();
    let third = hosts.host(3);
    let runs = || third.orch(&["container", "ls", "--format", "json"]).ok().json_lines();
    let before = runs();
    third.lose_power();
    third.start_agent();
    eventually(PATIENCE, "its container runs anew", || {
        let now = runs();
        let anew = now.len() == 1 && now[0]["started_at"] != before[0]["started_at"];
        if anew { Ok(()) } else { Err(format!("{now:?}")) }
    });
    first.down();
}
