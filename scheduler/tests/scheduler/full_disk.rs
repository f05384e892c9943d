//! A full disk: refused by name, nothing acknowledged lost, taken again when there is space.

use orch_core::{Command, NewVolume};
use orch_scheduler::{Control, ControlConfig, ProposeError};

use crate::simulated_disk::{Loss, SimulatedDisk};

/// A change of about 40 KiB.
fn volume(number: usize) -> Command {
    let labels = [("filler".to_owned(), "z".repeat(40_000))].into();
    Command::CreateVolume(NewVolume { name: format!("volume-{number}"), labels, ..NewVolume::default() })
}

async fn fill(control: &Control) -> (usize, ProposeError) {
    for number in 0..1000 {
        if let Err(error) = control.propose(volume(number)).await {
            return (number, error);
        }
    }
    panic!("the disk never got full");
}

#[test]
fn changes_are_refused_while_the_disk_is_full_and_taken_again_afterwards() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let disk = SimulatedDisk::default();
        let control = Control::start_on(Box::new(disk.clone())).await.expect("it starts");
        disk.set_room(Some(disk.used() + (2 << 20)));
        let (count, error) = fill(&control).await;
        assert!(count > 10, "{count}");
        assert!(matches!(error, ProposeError::Unavailable(_)) && error.to_string().contains("full"), "{error}");
        control.propose(volume(5000)).await.expect_err("it is full still");
        // Looking goes on.
        assert_eq!(control.read(|state| state.volumes.len()), count);
        disk.set_room(None);
        control.propose(volume(5001)).await.expect("there is space again, and nobody had to start anything");
        control.shutdown().await;
        let control =
            Control::start_on(Box::new(disk.after_power_loss(Loss::Everything))).await.expect("it starts again");
        assert_eq!(control.read(|state| state.volumes.len()), count + 1);
        assert!(!control.read(|state| state.volumes.contains_key("volume-5000")));
    });
}

#[test]
fn the_log_shrinks_to_a_snapshot_and_gives_the_same_state() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let disk = SimulatedDisk::default();
        let control = Control::start_on(Box::new(disk.clone())).await.expect("it starts");
        // Made and removed again and again: the log grows, the state does not.
        for round in 0..300 {
            control.propose(volume(round)).await.expect("it can be made");
            control
                .propose(Command::RemoveVolume { name: format!("volume-{round}") })
                .await
                .expect("it can be removed");
        }
        control.propose(volume(1)).await.expect("it can be made");
        let before = control.read(Clone::clone);
        assert!(disk.used() < 10 << 20, "the log has grown to {} bytes", disk.used());
        control.shutdown().await;
        let control =
            Control::start_on(Box::new(disk.after_power_loss(Loss::Everything))).await.expect("it starts again");
        let mut after = control.read(Clone::clone);
        // An election adds an entry without a command.
        after.index = before.index;
        assert_eq!(after, before);
    });
}

/// A file system of a few megabytes, gone with its owner.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` without the privilege to mount.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), dir.path(), Some("tmpfs"), flags, Some("size=3m")).ok()?;
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Detached, so that a test that failed with the log open leaves nothing either.
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_real_file_system_that_is_full_is_told_by_name() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: needs the privilege to mount");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = ControlConfig::alone(disk.0.path().join("control"), "node".into());
        let control = Control::start(config.clone()).await.expect("it starts");
        let filler = disk.0.path().join("filler");
        std::fs::write(&filler, vec![1_u8; 1 << 20]).expect("there is space for it");
        let (count, error) = fill(&control).await;
        assert!(error.to_string().contains("full"), "{error}");
        std::fs::remove_file(&filler).expect("it can be removed");
        control.propose(volume(5001)).await.expect("there is space again");
        control.shutdown().await;
        let control = Control::start(config).await.expect("it starts again");
        assert_eq!(control.read(|state| state.volumes.len()), count + 1);
        control.shutdown().await;
    });
}
