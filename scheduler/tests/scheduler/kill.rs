//! A real process with a control plane, killed at random moments.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};

use orch_core::{Command, NewNetwork};
use orch_scheduler::{Control, ControlConfig};

use crate::simulated_disk::Random;

/// Tells the child where to write; without it, it is no child.
const DATA_DIR: &str = "ORCH_TEST_CONTROL_DIR";

fn config(dir: &Path) -> ControlConfig {
    ControlConfig::alone(dir.join("control"), "node".into())
}

/// The child: makes networks one after the other and says which are acknowledged, until it is killed.
#[test]
fn child_of_the_kill_test() {
    let Some(dir) = std::env::var_os(DATA_DIR) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let control = Control::start(config(Path::new(&dir))).await.expect("it starts after every kill");
        let first = control.read(|state| state.networks.len());
        for number in first..100_000 {
            let name = format!("net-{number:06}").as_str().into();
            // A fixed subnet each: what counts is the log, not the pool.
            let pool = orch_spec::model::IpamPool {
                subnet: Some(format!("10.{}.{}.0/24", number / 250, number % 250)),
                ..orch_spec::model::IpamPool::default()
            };
            let definition =
                orch_core::NetworkDefinition { pools: vec![pool], ..orch_core::NetworkDefinition::default() };
            control.propose(Command::CreateNetwork(NewNetwork { name, definition })).await.expect("it is taken");
            println!("acknowledged {number}");
        }
    });
}

/// Ends the child on every way out of the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut random = Random(std::process::id().into());
    let mut last = None;
    for round in 0..12 {
        let child = Process::new(std::env::current_exe().expect("this test has a file"))
            .args(["--exact", "kill::child_of_the_kill_test", "--nocapture"])
            .env(DATA_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn();
        let mut child = Killed(child.expect("the child starts"));
        let output = BufReader::new(child.0.stdout.take().expect("its output is a pipe"));
        let until = 1 + random.below(25);
        let mut seen = 0;
        for line in output.lines().map_while(Result::ok) {
            // The first line of the test runner may share its line with the first of ours.
            let Some((_, number)) = line.rsplit_once("acknowledged ") else { continue };
            last = number.trim().parse::<usize>().ok().or(last);
            seen += 1;
            if seen >= until {
                break;
            }
        }
        assert!(seen >= until, "the child of round {round} ended by itself");
        drop(child);
    }
    let last = last.expect("something was acknowledged");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let control = Control::start(config(dir.path())).await.expect("it starts");
        let missing: Vec<usize> = control.read(|state| {
            (0..=last)
                .filter(|number| !state.networks.contains_key(&format!("net-{number:06}").as_str().into()))
                .collect()
        });
        assert!(missing.is_empty(), "lost: {missing:?}");
        control.shutdown().await;
    });
}
