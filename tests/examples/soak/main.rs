//! A cluster of real hosts under random operations and faults, looked at closely after each round: see `tests/bench/soak`.
//!
//! A round begins up to two faults, asks for up to two changes meanwhile, lifts the faults, waits until the cluster is at rest, and then
//! compares what the control plane says with what really runs, answers and lies on each host. Ends with 1 at the first difference that stays.
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod act;
mod check;
mod fault;
mod fleet;
mod stream;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use orch_tests::fault::Chance;

use crate::fault::Fault;
use crate::fleet::Fleet;
use crate::stream::Excuse;

fn main() -> ExitCode {
    let number = |place: usize, usual: u64| std::env::args().nth(place).and_then(|w| w.parse().ok()).unwrap_or(usual);
    let (seed, minutes, hosts) = (number(1, 1), number(2, 10), number(3, 3));
    let mut chance = Chance::from(2 * seed);
    println!("soak: seed {seed}, {minutes} minutes, {hosts} hosts");
    let mut fleet = Fleet::new(usize::try_from(hosts).expect("a few hosts"));
    let begun = Instant::now();
    let stream = stream::Stream::start(&fleet);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut round = 0;
        while begun.elapsed() < Duration::from_secs(60 * minutes) {
            round += 1;
            println!("== round {round}, {:.0} s", begun.elapsed().as_secs_f64());
            stream.mark();
            let excuses = self::round(&mut fleet, &mut chance);
            let lifted = Instant::now();
            check::rests(&mut fleet);
            println!("   at rest after {:.1} s{}", lifted.elapsed().as_secs_f64(), check::sizes(&fleet));
            stream.tell(&excuses);
        }
        round
    }));
    stream.end();
    println!("the longest command took {:.1} s; warnings:", fleet.slowest.as_secs_f64());
    fleet.warned.iter().for_each(|(warning, count)| println!("   {count} {warning}"));
    println!("what the agents said: {}", fleet.keep(seed).display());
    match outcome {
        Ok(rounds) => {
            println!("{rounds} rounds in {:.0} s: nothing wrong", begun.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(_) => {
            println!("failed with seed {seed}");
            ExitCode::FAILURE
        }
    }
}

/// Faults begin, changes are asked for, faults are lifted. When requests may have failed for it.
fn round(fleet: &mut Fleet, chance: &mut Chance) -> Vec<Excuse> {
    let mut faults: Vec<(Fault, Instant)> = Vec::new();
    for _ in 0..chance.below(3) {
        let fault = Fault::draw(fleet, chance);
        if faults.iter().all(|(other, _)| other.host() != fault.host()) {
            println!("   {fault}");
            let begun = Instant::now();
            fault.begin(fleet);
            faults.push((fault, begun));
        }
    }
    let begun = Instant::now();
    let most = [1_000, 6_000, 20_000][usize::try_from(chance.below(3)).expect("it is small")];
    let lasts = Duration::from_millis(chance.below(most));
    let busy: Vec<usize> = faults.iter().map(|(fault, _)| fault).filter(|f| f.silences()).map(Fault::host).collect();
    let mut excuses = Vec::new();
    for _ in 0..1 + chance.below(2) {
        chance.delay(Duration::from_millis(2_000));
        let act = act::Act::draw(fleet, chance, &busy);
        let from = Instant::now();
        act.carry_out(fleet, chance, &busy);
        excuses.extend(act.excuse(from));
    }
    if !faults.is_empty() {
        std::thread::sleep(lasts.saturating_sub(begun.elapsed()));
    }
    // Where most managers are missing nobody leads requests elsewhere.
    let helpless = fleet.managers_but(&busy).len() * 2 <= fleet.managers_but(&[]).len();
    for (fault, from) in &faults {
        println!("   lifted after {:.1} s: {fault}", from.elapsed().as_secs_f64());
        fault.lift(fleet);
        excuses.extend(fault.excuses(*from, Instant::now()));
    }
    if helpless {
        excuses.push(Excuse { host: 0, from: begun, until: Instant::now() + Duration::from_secs(4) });
    }
    excuses
}
