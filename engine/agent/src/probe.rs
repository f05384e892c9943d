//! Runs one health probe to its end, or to the end of its time.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use orch_engine::config::{ContainerId, ProcessConfig};
use orch_engine::engine::{Engine, EngineError, ExecOptions};

use crate::health::OUTPUT;

/// Whether the probe succeeded within its time, and what it said, cut.
///
/// # Errors
/// When it could not be run at all.
pub(crate) fn run(
    engine: &Engine,
    container: &ContainerId,
    process: ProcessConfig,
    timeout: Duration,
) -> Result<(bool, String), EngineError> {
    let mut session = engine.exec(container, &ExecOptions { process, privileged: false, detach: false, size: None })?;
    session.kill_on_drop = true;
    let readers: Vec<_> = [session.stdout.take(), session.stderr.take()].into_iter().flatten().map(collect).collect();
    let code = session.wait(Some(timeout));
    if code.is_none() {
        // With its children: a shell that waits for `sleep` is not the one that hangs.
        let _ = session.signal(Signal::SIGKILL as i32, true);
        let _ = session.wait(Some(Duration::from_secs(1)));
    }
    drop(session);
    let mut output = String::new();
    for reader in readers {
        output.push_str(&reader.join().unwrap_or_default());
    }
    if code.is_none() {
        output.push_str(&format!("the probe took longer than {timeout:?}"));
    }
    Ok((code == Some(0), output))
}

/// Reads a stream to its end on a thread and keeps the first bytes.
fn collect(from: OwnedFd) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut file = std::fs::File::from(from);
        let (mut kept, mut buffer) = (Vec::new(), [0u8; 4096]);
        while let Ok(count) = file.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let room = OUTPUT.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..count.min(room)]);
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}
