//! The power goes at every single operation on the disk: what was acknowledged is there afterwards, and it opens.

use orch_core::{Command, NewNetwork};
use orch_scheduler::Control;
use orch_scheduler::log::{Kind, Log};
use orch_spec::assignment::{NetworkName, NodeFacts, NodeId, NodeReport};

use crate::simulated_disk::{Loss, Random, SimulatedDisk};

/// Losses that are tried at every operation.
fn losses() -> impl Iterator<Item = Loss> {
    [Loss::Everything].into_iter().chain((1..6).map(Loss::Sectors))
}

/// What a run was told before the power went.
#[derive(Debug, Default)]
struct Told {
    /// Payloads in the order in which they were given to the log.
    given: Vec<String>,
    /// How many of them were said to be durable.
    durable: usize,
}

/// Appends of many sizes, some durable and some not, and two compactions. Ends with the power.
fn write_log(disk: &SimulatedDisk) -> Told {
    let mut told = Told::default();
    let Ok((mut log, _)) = Log::open(Box::new(disk.clone())) else { return told };
    let mut random = Random(7);
    for step in 0..40 {
        let count = 1 + random.below(3);
        let mut batch = Vec::new();
        for _ in 0..count {
            let payload = format!("{}:{}", told.given.len(), "x".repeat(random.below(900)));
            told.given.push(payload.clone());
            batch.push(payload);
        }
        let sync = random.below(3) == 0;
        if log.append(batch.iter().map(|payload| (Kind::Entry, payload.as_bytes())), sync).is_err() {
            return told;
        }
        if sync {
            told.durable = told.given.len();
        }
        if step == 15 || step == 30 {
            let all = serde_json::to_vec(&told.given).expect("texts");
            if log.compact(&all, []).is_err() {
                return told;
            }
            told.durable = told.given.len();
        }
    }
    told
}

/// Everything that the log has: what the snapshot stands for, and the entries that it does not.
fn read_log(disk: &SimulatedDisk) -> Vec<String> {
    let (_, recovered) = Log::open(Box::new(disk.clone())).expect("a log opens after every loss of power");
    let mut found: Vec<String> = recovered
        .snapshot
        .map_or_else(Vec::new, |snapshot| serde_json::from_slice(&snapshot).expect("the snapshot is whole"));
    for record in recovered.records {
        let payload = String::from_utf8(record.payload).expect("a record is whole");
        let number: usize =
            payload.split(':').next().and_then(|number| number.parse().ok()).expect("a record has its number");
        // Those before the snapshot are passed over, as the driver does it.
        if number >= found.len() {
            assert_eq!(number, found.len(), "a record is missing before {number}");
            found.push(payload);
        }
    }
    found
}

#[test]
fn the_log_keeps_what_was_durable_whenever_the_power_goes() {
    let whole = SimulatedDisk::default();
    write_log(&whole);
    let operations = whole.operations();
    assert!(operations > 60, "the run is long enough to mean something: {operations}");
    for stop in 0..=operations {
        for loss in losses() {
            let disk = SimulatedDisk::default();
            disk.stop_after(stop);
            let told = write_log(&disk);
            let after = disk.after_power_loss(loss);
            let found = read_log(&after);
            let place = format!("power gone at operation {stop}, {loss:?}");
            assert!(found.len() >= told.durable, "{place}: {} of {} durable ones are there", found.len(), told.durable);
            assert_eq!(found, told.given[..found.len()], "{place}");
            // It goes on from there, and what comes then is kept as well.
            let (mut log, _) = Log::open(Box::new(after.clone())).expect("it opens again");
            let next = format!("{}:next", found.len());
            log.append([(Kind::Entry, next.as_bytes())], true).expect("it can be written again");
            let again = read_log(&after.after_power_loss(Loss::Everything));
            assert_eq!(again.last(), Some(&next), "{place}");
        }
    }
}

fn network(number: usize) -> Command {
    Command::CreateNetwork(NewNetwork { name: NetworkName(format!("net-{number}")), ..NewNetwork::default() })
}

/// Proposes networks, with reports between them; those that were acknowledged.
async fn propose_all(disk: &SimulatedDisk) -> Vec<usize> {
    let Ok(control) = Control::start_on(Box::new(disk.clone())).await else { return Vec::new() };
    let node = NodeId::from("node");
    let mut acknowledged = Vec::new();
    for number in 0..12 {
        let facts = NodeFacts { id: node.clone(), hostname: format!("host-{number}"), ..NodeFacts::default() };
        let report =
            Command::Report { node: node.clone(), turn: orch_core::Turn::default(), report: NodeReport::Facts(facts) };
        let _ = control.propose(report).await;
        if control.propose(network(number)).await.is_ok() {
            acknowledged.push(number);
        }
    }
    control.shutdown().await;
    acknowledged
}

#[test]
fn the_control_plane_keeps_what_it_acknowledged_whenever_the_power_goes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let whole = SimulatedDisk::default();
        assert_eq!(propose_all(&whole).await.len(), 12);
        let operations = whole.operations();
        for stop in 0..=operations {
            let disk = SimulatedDisk::default();
            disk.stop_after(stop);
            let acknowledged = propose_all(&disk).await;
            for loss in losses().take(3) {
                let control = Control::start_on(Box::new(disk.after_power_loss(loss))).await;
                let control = control.unwrap_or_else(|e| panic!("power gone at operation {stop}, {loss:?}: {e}"));
                let there = control.read(|state| state.networks.keys().cloned().collect::<Vec<_>>());
                for number in &acknowledged {
                    let name = NetworkName(format!("net-{number}"));
                    assert!(there.contains(&name), "power gone at operation {stop}, {loss:?}: {name} is lost");
                }
                control.propose(network(99)).await.expect("it takes changes again");
                control.shutdown().await;
            }
        }
    });
}

#[test]
fn a_log_keeps_its_cluster_and_a_lost_one_comes_back_as_another() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let disk = SimulatedDisk::default();
        let mut clusters = Vec::new();
        for disk in [&disk, &disk.clone(), &SimulatedDisk::default()] {
            let control = Control::start_on(Box::new(disk.clone())).await.expect("it starts");
            clusters.push(control.read(|state| state.cluster.clone()));
            control.shutdown().await;
        }
        assert_eq!(clusters[0], clusters[1]);
        assert_ne!(clusters[0], clusters[2]);
    });
}
