//! Bits that turn over: found, or without effect; never believed.

use orch_core::{Command, NewNetwork};
use orch_scheduler::log::{Kind, Log, LogError};
use orch_scheduler::{Bootstrap, Control, StartError};

use crate::simulated_disk::{Loss, SimulatedDisk};

fn written() -> (SimulatedDisk, Vec<String>) {
    let disk = SimulatedDisk::default();
    let (mut log, _) = Log::open(Box::new(disk.clone())).expect("a fresh log opens");
    let payloads: Vec<String> = (0..20).map(|number| format!("{number}:{}", "y".repeat(number * 17))).collect();
    for payload in &payloads {
        log.append([(Kind::Entry, payload.as_bytes())], true).expect("it can be written");
    }
    (disk, payloads)
}

/// Turns every byte of the log from a place on over, one at a time: it is noticed, or everything is there.
fn require_notice(disk: &SimulatedDisk, from: usize, payloads: &[String]) {
    let length = disk.content("log").iter().rposition(|byte| *byte != 0).expect("it is not empty") + 1;
    let mut without_effect = 0;
    for byte in from.min(length - 500)..length {
        let bit = u8::try_from(byte % 8).expect("below 8");
        let damaged = disk.copy();
        damaged.flip("log", byte, bit);
        match Log::open(Box::new(damaged)) {
            Err(LogError::Damaged { .. } | LogError::Foreign { .. }) => {}
            Err(other) => panic!("byte {byte}: {other}"),
            Ok((_, recovered)) => {
                // Only the mark that follows the last record can be damaged without a trace: nothing is lost with it.
                let found: Vec<Vec<u8>> = recovered.records.into_iter().map(|record| record.payload).collect();
                let expected: Vec<Vec<u8>> = payloads.iter().map(|payload| payload.clone().into_bytes()).collect();
                assert_eq!(found, expected, "byte {byte} turned over and nobody saw it");
                without_effect += 1;
            }
        }
    }
    assert!(without_effect <= 17, "{without_effect} bytes can be damaged unseen; the last mark has 17");
}

#[test]
fn every_turned_bit_of_what_was_durable_is_found() {
    let (disk, payloads) = written();
    require_notice(&disk, 0, &payloads);
}

#[test]
fn every_turned_bit_is_found_when_the_power_took_the_last_mark_and_the_log_was_opened_since() {
    let (disk, payloads) = written();
    let disk = disk.after_power_loss(Loss::Everything);
    let before = disk.content("log");
    drop(Log::open(Box::new(disk.clone())).expect("it opens"));
    assert_ne!(disk.content("log"), before, "the mark was there already, and this shows nothing");
    require_notice(&disk, usize::MAX, &payloads);
}

#[test]
fn every_turned_bit_of_what_a_compaction_kept_is_found() {
    let (disk, payloads) = written();
    let (mut log, _) = Log::open(Box::new(disk.clone())).expect("it opens");
    let kept = &payloads[15..];
    log.compact(b"{}", kept.iter().map(|payload| (Kind::Entry, payload.as_bytes()))).expect("it can be compacted");
    require_notice(&disk, usize::MAX, kept);
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let (disk, payloads) = written();
    let (mut log, _) = Log::open(Box::new(disk.clone())).expect("it opens");
    log.compact(&serde_json::to_vec(&payloads).expect("texts"), []).expect("it can be compacted");
    for byte in (0..disk.content("snapshot").len()).step_by(7) {
        let damaged = disk.copy();
        damaged.flip("snapshot", byte, 3);
        assert!(Log::open(Box::new(damaged)).is_err(), "byte {byte} turned over and nobody saw it");
    }
}

#[test]
fn foreign_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    std::fs::write(&path, "minutes of the meeting").expect("a file");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let config = orch_scheduler::ControlConfig::alone(dir.path().to_owned(), "node".into());
    let Err(error) = runtime.block_on(Control::start(config)) else { panic!("it took a foreign file for its log") };
    assert!(matches!(error, StartError::Log(LogError::Foreign { .. })), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("it is there still"), "minutes of the meeting");
}

#[test]
fn the_first_manager_of_a_cluster_does_not_found_another_when_its_log_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let alone = || orch_scheduler::ControlConfig::alone(dir.path().to_owned(), "node".into());
    let control = runtime.block_on(Control::start(alone())).expect("it starts");
    let cluster = control.read(|state| state.cluster.clone());
    runtime.block_on(control.shutdown());
    let again = || orch_scheduler::ControlConfig { bootstrap: Bootstrap::Never(cluster.clone()), ..alone() };
    runtime.block_on(runtime.block_on(Control::start(again())).expect("its log is there").shutdown());
    std::fs::remove_file(dir.path().join("log")).expect("it is there");
    let Err(error) = runtime.block_on(Control::start(again())) else { panic!("it began anew") };
    assert!(error.is_loss(), "{error}");
}

#[test]
fn a_disk_that_fails_to_sync_ends_the_control_plane_with_its_reason() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let disk = SimulatedDisk::default();
        let control = Control::start_on(Box::new(disk.clone())).await.expect("it starts");
        let network = |name: &str| Command::CreateNetwork(NewNetwork { name: name.into(), ..NewNetwork::default() });
        control.propose(network("kept")).await.expect("a healthy disk");
        disk.set_fails_to_sync(true);
        let refused = control.propose(network("lost")).await.expect_err("it was acknowledged without being durable");
        assert!(refused.to_string().contains("the disk does not answer"), "{refused}");
        // The disk works again, but what it has is not known: nothing is taken on trust.
        disk.set_fails_to_sync(false);
        control.propose(network("later")).await.expect_err("it went on after a failed sync");
        let control = Control::start_on(Box::new(disk)).await.expect("it starts again");
        assert!(control.read(|state| state.networks.contains_key(&"kept".into())));
    });
}
