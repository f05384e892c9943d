//! Whether a cluster takes hosts for lost, or its leader for gone, that are only slow: see `tests/bench/alarms`.
//!
//! Three hosts, all managers, with tasks, while threads burn every processor twice over. Nothing is cut, stopped or killed, so each node
//! that is called suspect or down, and each new leader, is a false alarm. Ends with 1 when there was any.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orch_tests::cluster::Hosts;
use orch_tests::host::Host;

/// Tasks that only wait, so that there is something to lose.
const TASKS: &str = "
name: calm
services:
  idle: {image: busybox, command: [sleep, infinity], init: true, deploy: {replicas: 12}}
";
/// What an agent says when its leader changes, and why it did.
const CAUSES: [&str; 5] =
    ["has a leader", "does not keep up", "no need to wait for it", "cannot be reached", "can be reached again"];
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let minutes = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(10);
    let hosts = Hosts::managers(3);
    hosts.hosts.iter().for_each(|host| host.load("busybox"));
    let host = hosts.host(1);
    host.stack(TASKS);
    host.up();
    hosts.all_ready(1);
    let (mut since, term) = (alarms(host, 0).1, hosts.info(1)["term"].clone());
    let before: Vec<usize> = hosts.hosts.iter().map(|host| host.agent_log().lines().count()).collect();
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned();
    println!(
        "{} threads burn {processors} processors for {minutes} minutes, term {term}, load {}",
        2 * processors,
        load()
    );
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    std::thread::scope(|scope| {
        for _ in 0..2 * processors {
            scope.spawn(|| {
                let mut number = 1_u64;
                while !over.load(Ordering::Relaxed) {
                    number = std::hint::black_box(number.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(7));
                }
            });
        }
        while begun.elapsed() < Duration::from_secs(60 * minutes) {
            std::thread::sleep(LOOK);
            let (found, index) = alarms(host, since);
            since = index;
            for alarm in found {
                println!("after {:.0} s: {alarm}", begun.elapsed().as_secs_f64());
                *all.entry(alarm).or_default() += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let now = hosts.info(1)["term"].clone();
    for (number, host) in (1..).zip(&hosts.hosts) {
        let log = host.agent_log();
        let new = log.lines().skip(before[number - 1]);
        new.filter(|line| CAUSES.iter().any(|cause| line.contains(cause)))
            .for_each(|line| println!("host {number}: {line}"));
    }
    println!("{minutes} minutes, load at the end {}: false alarms {all:?}; term {term} then, {now} now", load());
    if all.is_empty() && now == term { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Alarms since an index of the log, and the index of the last event.
fn alarms(host: &Host, since: u64) -> (Vec<String>, u64) {
    let from = since.to_string();
    let asked = host.invoke(&["events", "--no-follow", "--format", "json", "--since-index", &from]);
    let events = asked.folder(Path::new("/")).run().ok().json_lines();
    let last = events.iter().filter_map(|event| event["index"].as_u64()).max().unwrap_or(since);
    let new = events.iter().filter(|event| event["index"].as_u64().is_some_and(|index| index > since));
    let alarming =
        new.filter(|event| event["type"] == "node" && (event["action"] == "suspect" || event["action"] == "down"));
    let told = alarming.map(|event| format!("node {} {}", event["id"], event["action"]));
    (told.collect(), last)
}
