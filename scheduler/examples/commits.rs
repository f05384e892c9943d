//! How many changes a second the control plane makes durable, alone and among three, and what a task costs in its log.
//!
//! `cargo run --release -p orch-scheduler --example commits [directory]`: real threads, real files in the directory (default: a temporary
//! one), managers in one process over memory. Beside the figures stands what the disk gives: one writer that syncs after each write.
#![expect(clippy::print_stdout, reason = "figures are told")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use orch_core::{Command, NewVolume};
use orch_scheduler::transport::Transport;
use orch_scheduler::{Bootstrap, Control, ControlConfig};
use orch_spec::assignment::NodeId;

#[derive(Default)]
struct Switch(Mutex<BTreeMap<NodeId, Control>>);

struct Port(NodeId, Weak<Switch>);

impl Transport for Port {
    fn send(&self, to: &NodeId, message: Bytes) {
        let Some(switch) = self.1.upgrade() else { return };
        let receiver = switch.0.lock().unwrap_or_else(PoisonError::into_inner).get(to).cloned();
        if let Some(receiver) = receiver {
            receiver.receive(&self.0, message);
        }
    }
}

async fn start(dir: &Path, switch: &Arc<Switch>, number: usize, bootstrap: Bootstrap) -> Control {
    let node = NodeId(format!("manager-{number}"));
    let config = ControlConfig {
        data_dir: dir.join(&node.0),
        node: node.clone(),
        address: format!("{node}:7000"),
        transport: Arc::new(Port(node.clone(), Arc::downgrade(switch))),
        bootstrap,
    };
    let control = Control::start(config).await.expect("a control plane starts in a fresh directory");
    switch.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, control.clone());
    control
}

/// A change of about 256 bytes.
fn change(client: usize, number: usize) -> Command {
    let labels = [("filler".to_owned(), "x".repeat(160))].into();
    let name = format!("volume-{client}");
    if number.is_multiple_of(2) {
        Command::CreateVolume(NewVolume { name, labels, ..NewVolume::default() })
    } else {
        Command::RemoveVolume { name }
    }
}

async fn load(control: &Control, clients: usize, each: usize) -> Vec<Duration> {
    let mut tasks = Vec::new();
    for client in 0..clients {
        let control = control.clone();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::with_capacity(each);
            for number in 0..each {
                let since = Instant::now();
                // A volume that is on its way out is refused, which takes a log entry like any other change.
                let _ = control.propose(change(client, number)).await;
                times.push(since.elapsed());
            }
            times
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("a client ends"));
    }
    all.sort();
    all
}

fn floor(dir: &Path) -> Duration {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(dir.join("floor")).expect("a file");
    file.write_all_at(&vec![0; 1 << 20], 0).expect("space");
    file.sync_all().expect("a disk that syncs");
    let since = Instant::now();
    let count = 200_u32;
    for number in 0..u64::from(count) {
        file.write_all_at(&[7; 300], number * 300).expect("space");
        file.sync_data().expect("a disk that syncs");
    }
    since.elapsed() / count
}

fn log_bytes(dir: &Path) -> u64 {
    let bytes = std::fs::read(dir.join("manager-0/log")).expect("a log");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let given = std::env::args().nth(1).map(PathBuf::from);
    let base = given.unwrap_or_else(std::env::temp_dir).join(format!("orch-commits-{}", std::process::id()));
    std::fs::create_dir_all(&base).expect("a directory");
    println!("write and sync of 300 bytes, one after the other: {:?} each", floor(&base));
    for voters in [1_usize, 3] {
        let dir = base.join(format!("{voters}"));
        let switch = Arc::new(Switch::default());
        let first = start(&dir, &switch, 0, Bootstrap::Alone).await;
        let mut others = Vec::new();
        for number in 1..voters {
            let node = NodeId(format!("manager-{number}"));
            let invitation = loop {
                match first.add_manager(node.clone(), format!("{node}:7000")).await {
                    Ok(invitation) => break invitation,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            others.push(start(&dir, &switch, number, Bootstrap::Join(invitation)).await);
        }
        first.wait_until(Duration::from_secs(20), |state| state.members.voters().len() == voters).await;
        let _ = load(&first, 16, 20).await;
        for (clients, each) in [(1, 400), (16, 200), (256, 80)] {
            let before = log_bytes(&dir);
            let since = Instant::now();
            let times = load(&first, clients, each).await;
            let took = since.elapsed();
            let count = times.len();
            println!(
                "{voters} voters, {clients} clients: {:.0} changes/s, median {:?}, 99 % {:?}, {} bytes of log each",
                count as f64 / took.as_secs_f64(),
                times[count / 2],
                times[count * 99 / 100],
                log_bytes(&dir).saturating_sub(before) / count as u64,
            );
        }
        for control in others.iter().chain([&first]) {
            control.shutdown().await;
        }
    }
    let _ = std::fs::remove_dir_all(&base);
}
