//! How long until a cluster takes changes again when its leader is killed: see `tests/bench/cluster`.
//!
//! Three hosts, all managers. Round by round the process of the leader is killed with SIGKILL, and from that moment on a label of a
//! node is set through one of the other hosts: the time until that command line has ended well is printed. Nothing is asserted.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orch_tests::cluster::Hosts;
use orch_tests::host::Host;

/// Between two rounds, so that a round does not begin in what the last one left to do.
const REST: Duration = Duration::from_millis(1500);

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|word| word.parse().ok());
    let (rounds, count): (usize, usize) = (arguments.next().unwrap_or(20), arguments.next().unwrap_or(3));
    let begun = Instant::now();
    let hosts = Hosts::managers(count);
    println!("{count} hosts made, joined and voting: {:.1} s", begun.elapsed().as_secs_f64());
    let mut times = Vec::new();
    for round in 0..rounds {
        let leader = hosts.leader(1);
        let other = leader % count + 1;
        let usual = change(hosts.host(other), &format!("usual{round}"));
        let agent = hosts.host(leader).agent().expect("the leader runs");
        std::thread::sleep(REST);
        let killed = Instant::now();
        hosts.host(leader).kill(agent, Signal::SIGKILL);
        change(hosts.host(other), &format!("after{round}"));
        let time = killed.elapsed();
        println!("round {round}: {} ms (without a loss {} ms)", time.as_millis(), usual.as_millis());
        times.push(time);
        hosts.host(leader).start_agent();
        hosts.all_vote();
    }
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).or(times.last()).map_or(0, Duration::as_millis);
    println!(
        "leader killed → change taken, {rounds} rounds, {count} hosts: median {} ms, {}–{} ms",
        at(50),
        at(0),
        at(100)
    );
}

/// Sets a label, as often as it takes, and says how long that took.
fn change(host: &Host, label: &str) -> Duration {
    let begun = Instant::now();
    while host.orch(&["node", "update", "host1", "--label-add", &format!("{label}=1")]).code != 0 {}
    begun.elapsed()
}
