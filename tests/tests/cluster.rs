//! Several hosts as one: real processes on machines of their own, joined by one switch.

use std::time::Duration;

use orch_tests::host::Host;
use orch_tests::segment::{Segment, address};
use orch_tests::wait::{PATIENCE, eventually};
use serde_json::Value;

/// Hosts on one switch; the first has the number 1.
struct Hosts {
    segment: Segment,
    hosts: Vec<Host>,
}

impl Hosts {
    /// Hosts that are alone.
    fn new(count: u8) -> Self {
        let segment = Segment::new().expect("a switch can be made");
        let hosts = (1..=count).map(|port| {
            let host = Host::new();
            segment.plug(&host, port).expect("a host can be plugged in");
            host.start_agent();
            host
        });
        let hosts = hosts.collect();
        Self { segment, hosts }
    }

    /// The first opened to the others, which have joined it with tokens of these roles.
    fn cluster(roles: &[&str]) -> Self {
        let count = u8::try_from(roles.len()).expect("a few hosts") + 1;
        let hosts = Self::new(count);
        hosts.init();
        for (place, role) in roles.iter().enumerate() {
            let token = hosts.token(&[role]);
            hosts.join(place + 2, &token).ok();
        }
        hosts
    }

    fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    fn init(&self) {
        self.host(1).orch(&["cluster", "init", "--advertise-addr", &address(1).to_string()]).ok();
    }

    fn token(&self, arguments: &[&str]) -> String {
        let output = self.host(1).orch(&[&["-q", "cluster", "token"], arguments].concat()).ok();
        output.text().trim().to_owned()
    }

    fn join(&self, number: usize, token: &str) -> orch_tests::output::Output {
        self.host(number).orch(&["cluster", "join", "--token", token, &address(1).to_string()])
    }

    fn info(&self, number: usize) -> Value {
        self.host(number).orch(&["cluster", "info", "--format", "json"]).ok().json()
    }

    fn nodes(&self, number: usize) -> Vec<Value> {
        self.host(number).orch(&["cluster", "ls", "--format", "json"]).ok().json_lines()
    }
}

#[test]
fn two_hosts_join_a_third_and_are_known_by_all_managers() {
    let hosts = Hosts::cluster(&["worker", "manager"]);
    let nodes = hosts.nodes(1);
    let roles: Vec<&str> = nodes.iter().filter_map(|node| node["role"].as_str()).collect();
    assert_eq!(roles.iter().filter(|role| **role == "manager").count(), 2, "{nodes:?}");
    assert_eq!(roles.iter().filter(|role| **role == "worker").count(), 1, "{nodes:?}");
    eventually(PATIENCE, "the second manager knows all nodes", || {
        let known = hosts.nodes(3);
        if known == nodes { Ok(()) } else { Err(format!("{known:?}")) }
    });
    let worker = hosts.info(2);
    assert_eq!(worker["role"], "worker", "{worker}");
    assert_eq!(worker["connected"], true, "{worker}");
    let _ = Duration::ZERO;
    let _ = &hosts.segment;
}
