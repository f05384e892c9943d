//! What is written down is encrypted.

use orch_core::{Command, NewVolume};
use orch_scheduler::disk::Directory;
use orch_scheduler::log::{Kind, Log, LogError};
use orch_scheduler::{Control, disk};

/// Nobody writes this by chance.
const PLAIN: &str = "plaintext-of-a-secret-0815";

fn holds_plaintext(folder: &std::path::Path) -> bool {
    let files = std::fs::read_dir(folder).expect("the folder is there");
    files
        .flatten()
        .any(|file| std::fs::read(file.path()).expect("it is read").windows(PLAIN.len()).any(|w| w == PLAIN.as_bytes()))
}

#[tokio::test]
async fn neither_log_nor_snapshot_holds_what_a_command_said() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let directory = || Box::new(Directory::make(dir.path().to_owned()).expect("it is made")) as Box<dyn disk::Disk>;
    let control = Control::start_on(directory()).await.expect("it starts");
    let volume = NewVolume {
        name: "v".to_owned(),
        labels: [("password".to_owned(), PLAIN.to_owned())].into(),
        ..NewVolume::default()
    };
    control.propose(Command::CreateVolume(volume)).await.expect("it is made");
    control.shutdown().await;
    assert!(!holds_plaintext(dir.path()), "the log is not encrypted");

    let control = Control::start_on(directory()).await.expect("it starts again");
    assert_eq!(control.read(|state| state.volumes["v"].labels["password"].clone()), PLAIN);
    control.shutdown().await;

    let (mut log, recovered) = Log::open(directory()).expect("it opens");
    let entries = recovered.records.iter().filter(|record| record.kind == Kind::RaftEntry).count();
    assert!(entries > 0 && recovered.records.iter().all(|record| record.kind != Kind::Sealed));
    log.compact(PLAIN.as_bytes(), std::iter::empty()).expect("a snapshot is written");
    drop(log);
    assert!(!holds_plaintext(dir.path()), "the snapshot is not encrypted");
    assert_eq!(Log::open(directory()).expect("it opens").1.snapshot.as_deref(), Some(PLAIN.as_bytes()));

    std::fs::write(dir.path().join("key"), [0; 32]).expect("another key");
    assert!(matches!(Log::open(directory()), Err(LogError::Sealed { .. })));
}
