//! Containers that are taken onto networks, and off them, while they run.

use orch_tests::cluster::Hosts;
use orch_tests::host::Host;
use orch_tests::machine::Place;
use orch_tests::wait::{PATIENCE, eventually};
use serde_json::Value;

const TWO: &str = "
name: two
x-a: &a {image: busybox, command: sleep infinity, init: true, stop_grace_period: 1s}
services:
  left: {<<: *a, networks: [one]}
  right: {<<: *a, networks: {other: {aliases: [beside]}}}
  hosts: {<<: *a, network_mode: host}
networks: {one: {}, other: {ipam: {config: [{subnet: 172.30.8.0/24}]}}}
";

/// The addresses of a network as `network inspect` shows them, by container.
fn members(host: &Host, network: &str) -> Value {
    host.orch(&["network", "inspect", network]).ok().json()[0]["endpoints"].clone()
}

fn resolves(host: &Host, service: &str, name: &str) -> Option<String> {
    let output = host.orch(&["exec", "-T", service, "nslookup", "-type=a", &format!("{name}."), "127.0.0.11"]);
    output
        .stdout
        .lines()
        .rev()
        .find_map(|line| Some(line.strip_prefix("Address:")?.trim().to_owned()))
        .filter(|address| !address.contains(':'))
}

#[test]
fn a_running_container_of_a_stack_is_taken_onto_a_network_and_off_it() {
    let host = Host::with_busybox();
    host.stack(TWO);
    host.up();
    let before = host.running();
    host.orch(&["network", "connect", "--ip", "172.30.8.77", "--alias", "nick", "two_other", "two-left-1"]).ok();
    let everything = |when: &str| {
        assert!(host.exec("left", "ip -4 address show eth1").contains("172.30.8.77/24"), "{when}");
        host.exec("left", "ping -c 1 -w 5 beside");
        for name in ["nick", "two-left-1"] {
            let found = eventually(PATIENCE, &format!("{name} is known, {when}"), || {
                resolves(&host, "right", name).ok_or("it is not")
            });
            assert_eq!(found, "172.30.8.77", "{name}, {when}");
        }
        assert_eq!(members(&host, "two_other")["two-left-1"]["ipv4"], "172.30.8.77", "{when}");
        let shown = host.orch(&["container", "inspect", "two-left-1"]).ok().json();
        assert_eq!(shown[0]["networks"]["two_other"]["ipv4"], "172.30.8.77", "{when}");
    };
    everything("at once");
    assert_eq!(resolves(&host, "right", "left"), None, "the service's name is known at home only");
    assert_eq!(host.running(), before, "nothing was restarted");
    host.orch(&["plan"]).ok();

    host.kill_agent();
    everything("after the agent was killed");
    host.orch(&["restart", "left"]).ok();
    everything("after it was restarted");

    host.orch(&["network", "connect", "two_other", "two-left-1"]).fails().says(&["is on it already"]);
    host.orch(&["network", "connect", "two_other", "two-hosts-1"]).fails().says(&["the host's network"]);
    host.orch(&["network", "connect", "--ip", "10.0.0.1", "two_other", "two-left-1"]).fails();
    host.orch(&["network", "rm", "two_other"]).fails().says(&["two-left-1"]);

    host.orch(&["network", "disconnect", "two_one", "two-left-1"]).ok();
    assert!(!host.exec("left", "ls /sys/class/net").contains("eth0"));
    host.orch(&["network", "disconnect", "two_other", "two-left-1"]).ok();
    assert_eq!(host.exec("left", "ls /sys/class/net"), "lo");
    host.orch(&["network", "disconnect", "two_other", "two-left-1"]).fails().says(&["is not on it"]);
    host.orch(&["network", "disconnect", "-f", "two_other", "two-left-1"]).ok();
    assert_eq!(members(&host, "two_other").as_object().map(|all| all.len()), Some(1));

    // What was changed by hand does not outlive the container.
    host.orch(&["up", "-d", "--wait", "--force-recreate", "left"]).ok();
    host.exec("left", "ip -4 address show eth0 | grep -q inet");
    // A container that does not run is on the network from its next start on.
    host.orch(&["stop", "left"]).ok();
    host.orch(&["network", "connect", "two_other", "two-left-1"]).ok();
    host.orch(&["start", "left"]).ok();
    host.becomes("left", "running", |c| c["state"] == "running");
    host.exec("left", "ping -c 1 -w 5 beside");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_container_of_no_stack_joins_a_stacks_network_and_keeps_it_from_going() {
    let host = Host::with_busybox();
    host.stack(TWO);
    host.up();
    host.orch(&["container", "run", "-d", "--name", "guest", "--init", "busybox", "sleep", "infinity"]).ok();
    host.orch(&["network", "connect", "--alias", "visitor", "two_other", "guest"]).ok();
    host.exec("right", "ping -c 1 -w 5 visitor");
    host.orch(&["container", "exec", "guest", "ping", "-c", "1", "-w", "5", "beside"]).ok();
    host.kill_agent();
    host.orch(&["container", "restart", "-t", "0", "guest"]).ok();
    host.exec("right", "ping -c 1 -w 5 guest");

    host.orch(&["down", "-t", "1"]).ok().says(&["two_other stays", "guest"]);
    host.orch(&["container", "exec", "guest", "ip", "address", "show", "eth1"]).ok();
    host.orch(&["network", "disconnect", "two_other", "guest"]).ok();
    host.orch(&["network", "rm", "two_other"]).ok();
    host.orch(&["container", "rm", "-f", "guest"]).ok();
    assert_eq!(host.sh(Place::Host, "ls /sys/class/net | grep -c orb- || true").trim(), "1", "the default one stays");
    host.leaves_no_trace();
}

#[test]
fn a_container_of_no_stack_talks_with_a_stacks_containers_on_other_hosts() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    hosts.load("busybox");
    let first = hosts.host(1);
    first.stack(
        "
name: far
services:
  page:
    image: busybox
    command: sh -c 'mkdir /page; echo from afar > /page/index.html; exec httpd -f -h /page'
    init: true
    stop_grace_period: 1s
    deploy: {placement: {constraints: [node.role == manager]}}
",
    );
    first.up();
    // Where nothing of the stack runs, with the address of its interface made up by nobody else.
    let third = hosts.host(3);
    let serve = "mkdir /page; echo from a guest > /page/index.html; exec httpd -f -h /page";
    let run = ["container", "run", "-d", "--init", "--name", "guest", "--network", "far_default"];
    let named = ["--network-alias", "visitor", "--mac-address", "02:00:5e:00:53:07", "busybox", "sh", "-c", serve];
    third.orch(&[&run[..], &named[..]].concat()).ok();
    let fetch = |url: &str| format!("timeout 3 wget -q -O - {url}");
    eventually(PATIENCE, "the guest reaches the service by its name", || {
        let answer = third.orch(&["container", "exec", "guest", "sh", "-c", &fetch("http://page/")]);
        if answer.stdout == "from afar\n" { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    for name in ["guest", "visitor"] {
        eventually(PATIENCE, "the service reaches the guest by its names", || {
            let answer = first.orch(&["exec", "-T", "page", "sh", "-c", &fetch(&format!("http://{name}/"))]);
            if answer.stdout == "from a guest\n" { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }
    third.orch(&["container", "rm", "-f", "guest"]).ok();
    first.down();
}
