//! What several clients see while managers die, stand still and are cut off: every call is recorded, and one order must explain them all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orch_tests::cluster::Hosts;
use orch_tests::fault::Chance;
use orch_tests::history::{Act, Call, Held, Order, linearize};
use orch_tests::host::{Host, RUN};
use orch_tests::http::{Answer, call_at_socket, lines_at_socket};
use orch_tests::machine::Place;
use orch_tests::segment::address;
use orch_tests::wait::{PATIENCE, eventually, saw, took, until};
use serde_json::Value;

/// Registers: configs, each with a version.
const KEYS: [&str; 4] = ["r0", "r1", "r2", "r3"];
/// What each holds at first: base64, as all values here.
const FIRST: &str = "AAAAAAAA";
/// How long a client waits for one answer: a manager that stands still never gives any.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a client asks one manager after the other for the same change: below the minute for which a request is remembered.
const ASKING: Duration = Duration::from_secs(25);
/// How much of a history lies between two faults.
const STRETCH: usize = 60;

fn call(host: &Host, route: [&str; 2], header: &[String], body: &str) -> Result<Answer, String> {
    call_at_socket(&host.path(format!("{RUN}/orch.sock")), route, header, body, ANSWER)
}

/// What an answer says that the register holds.
fn held(answer: &Answer) -> Held {
    let view: Value = serde_json::from_str(&answer.body).expect("a view of a config");
    let text = view["content"].as_str().expect("a config is shown");
    (view["version"].as_u64().expect("a version"), text.to_owned())
}

/// All that clients have asked for and been answered.
struct Record<'a> {
    hosts: &'a Hosts,
    since: Instant,
    calls: Mutex<Vec<Call>>,
    /// What managers have shown that said themselves that it may be old.
    stale: Mutex<Vec<(String, Held)>>,
    done: AtomicBool,
}

impl<'a> Record<'a> {
    fn new(hosts: &'a Hosts) -> Self {
        for key in KEYS {
            let body = format!(r#"{{"name":"{key}","content":"{FIRST}"}}"#);
            let made = call(hosts.host(1), ["POST", "/v1/configs"], &[], &body).expect("an answer");
            assert_eq!(made.status, 200, "{}", made.body);
        }
        let (calls, stale) = (Mutex::default(), Mutex::default());
        Self { hosts, since: Instant::now(), calls, stale, done: AtomicBool::new(false) }
    }

    fn add(&self, key: &str, act: Act, begun: Duration, ended: Option<Duration>, by: &str) {
        let call = Call { key: key.to_owned(), act, begun, ended, by: by.to_owned() };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    /// Calls that were answered.
    fn answered(&self) -> usize {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| call.ended.is_some()).count()
    }

    fn read(&self, who: &str, number: usize, key: &str) {
        let begun = self.since.elapsed();
        // Without an answer it says nothing.
        let Ok(answer) = call(self.hosts.host(number), ["GET", &format!("/v1/configs/{key}")], &[], "") else { return };
        let ended = self.since.elapsed();
        if answer.status == 200 && answer.head.contains("orch-stale-index:") {
            self.stale.lock().unwrap_or_else(PoisonError::into_inner).push((key.to_owned(), held(&answer)));
        } else if answer.status == 200 {
            self.add(key, Act::Read(held(&answer)), begun, Some(ended), &format!("{who} at host {number}"));
        }
    }

    /// One change, asked for by one name until there is an answer, of one manager after the other.
    fn write(&self, who: &str, mut number: usize, key: &str, value: &str) {
        let begun = self.since.elapsed();
        let (path, body) = (format!("/v1/configs/{key}"), format!(r#"{{"content":"{value}"}}"#));
        let name = [format!("orch-request: {value}")];
        let by = format!("{who} at host {number}");
        while self.since.elapsed() < begun + ASKING {
            match call(self.hosts.host(number), ["POST", &path], &name, &body) {
                Ok(answer) if answer.status == 200 => {
                    let ended = self.since.elapsed();
                    self.add(key, Act::Write(value.to_owned()), begun, Some(ended), &by);
                    // What it shows beside is a look at the register in the same time.
                    self.add(key, Act::Read(held(&answer)), begun, Some(ended), &by);
                    return;
                }
                Ok(answer) => assert_eq!(answer.status, 503, "a change is taken, or nobody leads: {}", answer.body),
                Err(_) => {}
            }
            number = number % self.hosts.hosts.len() + 1;
        }
        self.add(key, Act::Write(value.to_owned()), begun, None, &by);
    }

    /// Writes and reads at managers drawn by chance until the end.
    fn client(&self, who: char) {
        let mut chance = Chance::new(&format!("client {who}"));
        let mut below = |end: usize| usize::try_from(chance.below(end as u64)).expect("a small number");
        for turn in 0.. {
            if self.done.load(Ordering::Relaxed) {
                return;
            }
            let (number, key) = (1 + below(self.hosts.hosts.len()), KEYS[below(KEYS.len())]);
            match below(3) {
                0 => self.write(&who.to_string(), number, key, &format!("{who}{turn:07}")),
                _ => self.read(&who.to_string(), number, key),
            }
        }
    }

    /// Lets clients go on until so many more calls were answered.
    fn goes_on(&self) {
        let before = self.answered();
        until(PATIENCE, "clients get answers", || self.answered() >= before + STRETCH);
    }
}

/// What is made last of all, so that whoever follows knows the end.
const END: &str = "the-end";

/// Follows what happens at one manager until the end is told, and goes on where it was when the stream breaks.
fn follow(record: &Record<'_>, number: usize) -> Vec<Value> {
    let socket = record.hosts.host(number).path(format!("{RUN}/orch.sock"));
    let mut seen: Vec<Value> = Vec::new();
    let index = |event: &Value| event["index"].as_u64().expect("every event has an index");
    let mut over = None;
    while over.is_none_or(|over: Instant| over.elapsed() < PATIENCE) {
        if over.is_none() && record.done.load(Ordering::Relaxed) {
            over = Some(Instant::now());
        }
        // Events of one entry come together, but a stream may break between them: those of the last one are asked for again.
        let last = seen.last().map_or(0, |event| index(event) - 1);
        let known = seen.iter().rev().take_while(|event| index(event) > last).count();
        let path = format!("/v1/events?follow=true&since_index={last}");
        let Ok(lines) = lines_at_socket(&socket, &path, Duration::from_millis(500)) else { continue };
        for line in lines.skip(known) {
            let event: Value = serde_json::from_str(&line).expect("an event");
            if event["name"] == END {
                return seen;
            }
            seen.push(event);
        }
    }
    seen
}

/// Clients write and read, and followers follow, while `faults` happen; then every manager is asked for every register.
fn recorded<'a>(hosts: &'a Hosts, faults: impl FnOnce(&Record<'a>)) -> (Record<'a>, Vec<Vec<Value>>) {
    let record = Record::new(hosts);
    let events = std::thread::scope(|scope| {
        let record = &record;
        let clients: Vec<_> = ('a'..='e').map(|who| scope.spawn(move || record.client(who))).collect();
        let followers: Vec<_> =
            (1..=hosts.hosts.len()).map(|number| scope.spawn(move || follow(record, number))).collect();
        // A fault that goes wrong must not leave the clients at it for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            record.goes_on();
            faults(record);
            record.goes_on();
        }));
        record.done.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        clients.into_iter().for_each(|client| client.join().expect("a client ends"));
        hosts.all_vote();
        for number in 1..=hosts.hosts.len() {
            KEYS.iter().for_each(|key| record.read("the end", number, key));
        }
        let body = format!(r#"{{"name":"{END}","content":"{FIRST}"}}"#);
        let end = call(hosts.host(1), ["POST", "/v1/configs"], &[], &body).expect("an answer");
        assert_eq!(end.status, 200, "{}", end.body);
        followers.into_iter().map(|follower| follower.join().expect("a follower ends")).collect()
    });
    (record, events)
}

/// One order explains all answers; what was labelled as old is what was once.
fn explained(record: &Record<'_>) -> BTreeMap<String, Order> {
    let calls = record.calls.lock().unwrap_or_else(PoisonError::into_inner);
    let orders = linearize(&calls, &(1, FIRST.to_owned())).unwrap_or_else(|found| panic!("no order explains {found}"));
    let stale = record.stale.lock().unwrap_or_else(PoisonError::into_inner);
    for (key, (version, value)) in &*stale {
        assert_eq!(orders[key].get(version), Some(value), "{key} was never version {version}, old or not");
    }
    let open = calls.iter().filter(|call| call.ended.is_none()).count();
    saw(&format!("{} calls, {open} without an answer, {} labelled as stale", calls.len(), stale.len()));
    orders
}

/// Every manager has told the same in the same order, with every version of every register once.
fn told(events: &[Vec<Value>], orders: &BTreeMap<String, Order>) {
    for (place, own) in events.iter().enumerate() {
        let number = place + 1;
        let indices: Vec<u64> = own.iter().filter_map(|event| event["index"].as_u64()).collect();
        assert!(indices.is_sorted(), "host {number} told in another order than things happened in");
        for (key, order) in orders {
            let of_key = own.iter().filter(|event| event["type"] == "config" && event["name"] == **key);
            let version = |event: &Value| event["attributes"]["version"].as_str().and_then(|text| text.parse().ok());
            let told: Vec<u64> = of_key.filter_map(version).collect();
            let written: Vec<u64> = order.keys().copied().filter(|version| *version > 1).collect();
            assert_eq!(told, written, "versions of {key} as host {number} told them, and as they were written");
        }
        assert_eq!(own, &events[0], "hosts {number} and 1 told the same");
    }
}

#[test]
fn one_order_explains_what_all_clients_saw_while_leaders_died_and_stood_still_and_were_cut_off() {
    let hosts = Hosts::managers(3);
    let (record, events) = recorded(&hosts, |record| {
        let leader = hosts.leader(1);
        hosts.host(leader).kill_agent();
        let begun = Instant::now();
        record.goes_on();
        took("leader killed → clients have had their next answers", begun);
        hosts.host(leader).start_agent();
        hosts.all_vote();

        let leader = hosts.leader(1);
        let agent = hosts.host(leader).agent().expect("the leader runs");
        hosts.host(leader).signal(agent, Signal::SIGSTOP);
        let other = leader % 3 + 1;
        eventually(PATIENCE, "another one leads", || {
            if hosts.leader(other) == leader { Err("it does still") } else { Ok(()) }
        });
        record.goes_on();
        hosts.host(leader).signal(agent, Signal::SIGCONT);
        record.goes_on();
        hosts.all_vote();

        let leader = hosts.leader(1);
        hosts.part(&[leader], &[leader % 3 + 1, (leader + 1) % 3 + 1]);
        record.goes_on();
        hosts.heal();
    });
    let orders = explained(&record);
    told(&events, &orders);
}

/// A stack of a burst: a page that says its stack's name at a port that the cluster chooses, and somebody beside it.
fn burst(name: &str) -> String {
    format!(
        "
name: {name}
services:
  web:
    image: busybox
    init: true
    command: [sh, -c, 'mkdir /www; echo {name} >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy: {{replicas: 2}}
    ports: ['80']
  idle: {{image: busybox, init: true, command: [sleep, infinity]}}
"
    )
}

/// All tasks, as the state has them.
fn tasks(hosts: &Hosts) -> Vec<Value> {
    let answer = call(hosts.host(1), ["GET", "/v1/tasks"], &[], "").expect("an answer");
    serde_json::from_str(&answer.body).expect("tasks")
}

/// All services, as the state has them.
fn services(hosts: &Hosts) -> Vec<Value> {
    let answer = call(hosts.host(1), ["GET", "/v1/services"], &[], "").expect("an answer");
    serde_json::from_str(&answer.body).expect("services")
}

/// Puts something where nothing may have been before.
fn once<T: Ord + std::fmt::Debug>(given: &mut BTreeMap<T, String>, thing: T, to: &str) {
    let shown = format!("{thing:?}");
    if let Some(other) = given.insert(thing, to.to_owned()) {
        assert_eq!(other, to, "{shown} was given twice");
    }
}

/// The VXLANs of a host's kernel with their networks, by the address that the state gave to the network's bridge.
fn tunnels(host: &Host, gateways: &BTreeMap<String, String>) -> Vec<(u64, String)> {
    // A network that no task uses there any more may be on its way out.
    eventually(PATIENCE, "every bridge with a tunnel has its network's address", || {
        let links: Value = serde_json::from_str(&host.sh(Place::Host, "ip -d -j address show")).expect("links");
        let links = links.as_array().expect("links");
        let is_tunnel = |link: &&Value| link["linkinfo"]["info_kind"] == "vxlan" && link["master"].is_string();
        let of = |tunnel: &Value| {
            let bridge = links.iter().find(|link| link["ifname"] == tunnel["master"]).ok_or("its bridge is gone")?;
            let addresses = bridge["addr_info"].as_array().into_iter().flatten();
            let network = addresses.filter_map(|address| gateways.get(address["local"].as_str()?)).next();
            let vni = tunnel["linkinfo"]["info_data"]["id"].as_u64().expect("a number");
            Ok((vni, network.ok_or_else(|| bridge.to_string())?.clone()))
        };
        links.iter().filter(is_tunnel).map(of).collect::<Result<_, String>>()
    })
}

/// Every address, port and VXLAN is one network's, service's or container's: by the state, and by what the kernels of all hosts have.
fn nothing_is_given_twice(hosts: &Hosts) {
    let (mut addresses, mut ports, mut gateways) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let tasks = tasks(hosts);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for task in &tasks {
        for endpoint in task["networks"].as_object().into_iter().flatten().map(|(_, endpoint)| endpoint) {
            once(&mut addresses, (text(&endpoint["network"]), text(&endpoint["ipv4"])), &text(&task["container_name"]));
        }
    }
    for service in services(hosts) {
        let id = text(&service["id"]);
        for port in service["ports"].as_array().into_iter().flatten() {
            once(&mut ports, port["host_ports"][0].as_u64().expect("a number"), &id);
        }
        let detail = call(hosts.host(1), ["GET", &format!("/v1/services/{id}")], &[], "").expect("an answer");
        let detail: Value = serde_json::from_str(&detail.body).expect("a service");
        for (network, vips) in detail["vips"].as_object().into_iter().flatten() {
            for vip in vips.as_array().into_iter().flatten() {
                once(&mut addresses, (network.clone(), text(vip)), &format!("service {id}"));
            }
        }
    }
    let networks = call(hosts.host(1), ["GET", "/v1/networks"], &[], "").expect("an answer");
    let networks: Vec<Value> = serde_json::from_str(&networks.body).expect("networks");
    for network in &networks {
        once(&mut gateways, text(&network["gateway4"]), &text(&network["name"]));
    }
    let (mut vnis, mut vni_of) = (BTreeMap::new(), BTreeMap::new());
    for (place, host) in hosts.hosts.iter().enumerate() {
        for (vni, network) in tunnels(host, &gateways) {
            once(&mut vnis, vni, &network);
            once(&mut vni_of, network, &vni.to_string());
        }
        let running = host.orch(&["container", "ls", "--format", "json"]).ok().json_lines();
        // One shell for all, which says of each: name, network, and the lines of its addresses.
        let look = |container: &Value| {
            let (name, pid) = (text(&container["name"]), &container["pid"]);
            let say = format!("echo {name} {}_default $(", text(&container["stack"]));
            format!("{say}nsenter --net=/proc/{pid}/ns/net ip -4 -br address show eth0)\n")
        };
        let found = host.sh(Place::Host, &running.iter().map(look).collect::<String>());
        assert_eq!(found.lines().count(), running.len(), "{found}");
        for line in found.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            // NAME NETWORK eth0@if7 UP 10.210.0.2/24
            let [name, network, _, _, address] = words[..] else { panic!("one address on host {}: {line}", place + 1) };
            let address = address.split('/').next().unwrap_or_default();
            let given = addresses.get(&(network.to_owned(), address.to_owned()));
            assert_eq!(given.map(String::as_str), Some(name), "its address is the one it was given: {line}");
        }
    }
    saw(&format!("{} addresses, {} ports, {} VXLANs", addresses.len(), ports.len(), vnis.len()));
    assert!(addresses.len() > tasks.len() && !ports.is_empty() && !vnis.is_empty(), "{addresses:?} {ports:?} {vnis:?}");
}

#[test]
fn nothing_is_given_twice_and_no_slot_runs_twice_though_the_leader_dies_in_a_burst_of_ups() {
    let hosts = Hosts::managers(3);
    hosts.hosts.iter().for_each(|host| host.load("busybox"));
    let leader = hosts.leader(1);
    let (second, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let names: Vec<String> = (0..10).map(|number| format!("s{number}")).collect();
    let up = |number: usize, name: &str| {
        let file = format!("{name}.yaml");
        hosts.host(number).write(&file, &burst(name));
        hosts.host(number).start(&["-f", &file, "up", "-d"])
    };
    // Whichever manager is asked: the one that dies, too.
    let asked: Vec<usize> = [second, third, leader].into_iter().cycle().take(names.len()).collect();
    let running: Vec<_> = asked.iter().zip(&names).map(|(number, name)| up(*number, name)).collect();
    eventually(PATIENCE, "some of the stacks are there", || {
        let there = hosts.host(second).orch(&["ls", "-q"]);
        if there.lines().len() >= 2 { Ok(()) } else { Err(there.told()) }
    });
    hosts.host(leader).kill_agent();
    let begun = Instant::now();
    hosts.host(leader).start_agent();
    took("leader killed → its agent answers again", begun);
    for ((command, number), name) in running.into_iter().zip(&asked).zip(&names) {
        let output = command.ends(2 * PATIENCE);
        // Whoever asked the one that died may have had no answer; the same again changes nothing that was done.
        assert!(output.code == 0 || *number == leader, "{}", output.told());
        up(second, name).ends(2 * PATIENCE).ok();
    }
    took("leader killed → every up has ended", begun);
    eventually(2 * PATIENCE, "all run", || {
        let tasks = tasks(&hosts);
        let well = tasks.iter().filter(|task| task["status"]["state"] == "running").count();
        if well == 3 * names.len() && tasks.len() == well { Ok(()) } else { Err(format!("{well} of {tasks:?}")) }
    });
    took("leader killed → all thirty tasks run", begun);
    nothing_is_given_twice(&hosts);
    took("leader killed → everything was looked at", begun);
    let mut slots: Vec<String> = Vec::new();
    for host in &hosts.hosts {
        let containers = host.orch(&["container", "ls", "--format", "json"]).ok().json_lines();
        slots.extend(containers.iter().map(|container| container["name"].as_str().unwrap_or_default().to_owned()));
    }
    let different: BTreeSet<&String> = slots.iter().collect();
    assert_eq!((slots.len(), different.len()), (30, 30), "each slot runs once: {slots:?}");
    // The port of each leads to its own page, through every host.
    for service in services(&hosts).iter().filter(|service| service["name"] == "web") {
        let port = service["ports"][0]["host_ports"][0].as_u64().and_then(|port| u16::try_from(port).ok());
        let name = service["stack"].as_str().unwrap_or_default();
        for number in 1..=3 {
            let page = hosts.host(1).page(Place::Host, address(number), port.expect("it is published"), "/");
            assert_eq!(page.as_deref().map(str::trim), Ok(name), "port {port:?} of host {number}");
        }
    }
}
