//! A whole cluster in one thread, from one seed: replicas on simulated disks and a simulated network, with everything going wrong that can.
//!
//! The replicas, the log and the state machine are the real ones; only disk, network and clock are simulated. After every event the
//! properties of [`oracle`] must hold. Two modes, as TigerBeetle has them: in *safety* everything fails all the time and nothing may ever be
//! untrue; in *liveness* a majority stays well, all other faults become permanent, and there must be progress.
//!
//! A seed that fails prints a line that runs it again; it is then added to [`REGRESSIONS`].

#![expect(clippy::print_stdout, reason = "what was seen is told")]

#[path = "simulation/agent.rs"]
mod agent;
#[path = "simulation/endpoints.rs"]
mod endpoints;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/node.rs"]
mod node;
#[path = "simulation/oracle.rs"]
mod oracle;
#[allow(dead_code, reason = "shared with the tests of the single replica, which need more of it")]
#[path = "scheduler/simulated_disk.rs"]
mod simulated_disk;
#[path = "simulation/summary.rs"]
mod summary;
/// The same oracle as that of the state machine alone.
#[path = "../core/tests/core/oracle.rs"]
mod tasks;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use summary::Summary;
use world::{Mode, World};

/// Seeds of each mode in every run of the tests.
const SEEDS: u64 = 160;

/// The same, of runs with nodes under the managers: each does ten times as much.
const SEEDS_WITH_NODES: u64 = 40;

/// Seeds that find something: each fails again when the mistake behind it is put back.
const REGRESSIONS: &[(Mode, u64, bool)] = &[
    // Acknowledging entries before they are on disk (R10).
    (Mode::Safety, 1, false),
    // Applying a change of the configuration before it is durable that it is committed (R4, R6).
    (Mode::Safety, 9, false),
    // The library's `batch_append`: entries in a message that they do not follow, acknowledged by a follower that does not have them.
    (Mode::Safety, 14, false),
    // Speaking as a leader in a term that is not on disk, which only a replica can that votes alone (R4).
    (Mode::Safety, 2854, false),
    // A mistake of the oracle: it took the log of a removed manager, in which that one was still alone, for all there is (R6).
    (Mode::Safety, 9, true),
    // Another: it did not see that the last manager was alone, because that one came back with a snapshot of before (R3).
    (Mode::Safety, 1402, false),
    // A mistake of the simulation: of two voters one was about to be removed when the other's disk was damaged (R14).
    (Mode::Safety, 1080, false),
    // Guests of a namespace that waited for ever for a host that had been scaled away (O1), one of them in an update (O4).
    (Mode::Safety, 26, true),
    (Mode::Safety, 100, true),
    (Mode::Liveness, 196, true),
    // Two tasks of one slot that stayed when a service went back while both were to hand over (O3).
    (Mode::Safety, 224, true),
];

fn run(mode: Mode, seed: u64, nodes: bool) -> Summary {
    match catch_unwind(AssertUnwindSafe(|| World::new(mode, seed, nodes).run())) {
        Ok(summary) => summary,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map_or_else(
                || panic.downcast_ref::<&str>().copied().unwrap_or("no reason given").to_owned(),
                Clone::clone,
            );
            let with = if nodes { "+Nodes" } else { "" };
            panic!(
                "seed {seed} in {mode:?} mode: {text}\n\
                 again: ORCH_SIM={mode:?}{with}:{seed} cargo test -p orch-scheduler --test simulation one_seed -- --nocapture"
            )
        }
    }
}

/// Runs seeds on two threads, and sums up what happened in them.
fn sweep(mode: Mode, first: u64, count: u64, nodes: bool) -> Summary {
    let next = std::sync::atomic::AtomicU64::new(first);
    let total = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let summary = run(mode, seed, nodes);
                    *total.lock().expect("no thread panics with it") += summary;
                }
            });
        }
    });
    total.into_inner().expect("all threads are done")
}

/// What a sweep must have seen to mean anything.
fn require_coverage(total: &Summary) {
    println!("{total:?}");
    for (what, count) in [
        ("acknowledged changes", total.acknowledged),
        ("linearizable reads", total.reads),
        ("elections", total.leaders),
        ("losses of power", total.power_losses),
        ("killed processes", total.kills),
        ("lost messages", total.lost_messages),
        ("snapshots installed", total.restored),
        ("snapshots stored", total.stored),
        ("members added", total.added),
        ("members removed", total.removed),
        ("voters made of learners", total.promoted),
        ("sums of states", total.sums),
        ("events told to those who follow", total.followed),
        ("managers followed", total.attached),
        ("snapshots in the midst of what is followed", total.skipped),
    ] {
        assert!(count > 10, "the seeds have seen too few {what} to mean anything: {count}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_done_twice_whatever_fails() {
    let total = sweep(Mode::Safety, 0, SEEDS, false);
    require_coverage(&total);
    assert!(total.damaged > total.damaged_snapshots, "no seed has damaged a log");
    assert!(total.damaged_snapshots > 0, "no seed has damaged a snapshot");
}

#[test]
fn a_healthy_majority_makes_progress_whatever_the_others_do() {
    let total = sweep(Mode::Liveness, 0, SEEDS, false);
    assert_eq!(total.live, SEEDS, "every seed ends with progress");
    println!("{total:?}");
}

#[test]
fn nodes_run_what_is_wanted_whatever_happens_to_them_and_their_managers() {
    let mut total = sweep(Mode::Safety, 0, SEEDS_WITH_NODES, true);
    total += sweep(Mode::Liveness, 0, SEEDS_WITH_NODES, true);
    println!("{total:?}");
    for (what, count) in [
        ("sessions of nodes", total.sessions),
        ("reports", total.reports),
        ("changes that somebody asked for", total.used),
        ("accidents of nodes", total.accidents),
        ("nodes that were given up", total.marked),
        ("clusters that came to rest", total.rested),
        ("nodes that were away for a moment", total.returned),
        ("new leaders of clusters at rest", total.led_on),
    ] {
        assert!(count > 10, "the seeds have seen too few {what} to mean anything: {count}");
    }
}

#[test]
fn a_replica_whose_state_is_not_the_others_is_found_stops_and_comes_back_with_theirs() {
    for leader in [true, false] {
        let runs = (0..12).filter(|seed| World::new(Mode::Safety, *seed, false).twist(leader)).count();
        assert!(runs > 3, "too few of the seeds have three managers: {runs}");
    }
}

#[test]
fn seeds_that_found_something_once_stay_quiet() {
    for (mode, seed, nodes) in REGRESSIONS {
        run(*mode, *seed, *nodes);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for mode in [Mode::Safety, Mode::Liveness] {
        assert_eq!(run(mode, 7, false), run(mode, 7, false), "{mode:?}");
    }
}

/// Runs what `ORCH_SIM=<mode>[+Nodes]:<seed>[+<count>]` says; without it, nothing.
#[test]
fn one_seed() {
    let Ok(wish) = std::env::var("ORCH_SIM") else { return };
    let (mode, seeds) = wish.split_once(':').expect("ORCH_SIM=Safety:17");
    let (mode, nodes) = mode.split_once('+').map_or((mode, false), |(mode, _)| (mode, true));
    let mode = if mode == "Safety" { Mode::Safety } else { Mode::Liveness };
    let (seed, count) = seeds.split_once('+').unwrap_or((seeds, "1"));
    let number = |text: &str| text.parse::<u64>().expect("a number");
    println!("{:?}", sweep(mode, number(seed), number(count), nodes));
}
