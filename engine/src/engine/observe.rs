//! Looking at a running container from outside.

use super::{Engine, EngineError};
use crate::cgroup::Stats;
use crate::config::ContainerId;

/// One process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Host pid.
    pub pid: i32,
    /// Host pid of its parent.
    pub parent: i32,
    /// User number on the host.
    pub uid: u32,
    /// `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Processor time in ms.
    pub cpu_ms: u64,
    /// When it was started, in ms after boot.
    pub started_ms: u64,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Its arguments, or its name in brackets when it has none.
    pub command: String,
}

impl Engine {
    /// What a container has used.
    ///
    /// # Errors
    /// `Phase` when it does not run.
    pub fn stats(&self, id: &ContainerId) -> Result<Stats, EngineError> {
        let container = self.inner.container(id)?;
        container.running_link("measure it")?;
        Ok(self.inner.cgroup(&container)?.stats())
    }

    /// The processes of a container, by pid.
    ///
    /// # Errors
    /// `Phase` when it does not run.
    pub fn top(&self, id: &ContainerId) -> Result<Vec<ProcessInfo>, EngineError> {
        let container = self.inner.container(id)?;
        container.running_link("list its processes")?;
        let processes = self.inner.cgroup(&container)?.procs()?;
        // One that has ended meanwhile is not listed.
        Ok(processes.into_iter().filter_map(process_info).collect())
    }
}

fn process_info(pid: i32) -> Option<ProcessInfo> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let (head, fields) = stat.rsplit_once(')')?;
    let name = head.split_once('(').map_or("", |(_, name)| name);
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // Numbered as in proc(5), of which the first two are before the parenthesis.
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // The unit is fixed: USER_HZ is 100 on every architecture that orch runs on.
    let milliseconds = |ticks: u64| ticks * 10;
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().next()?.parse().ok())?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
    Some(ProcessInfo {
        pid,
        parent: i32::try_from(number(4)).unwrap_or(0),
        uid,
        state: fields.first()?.chars().next()?,
        cpu_ms: milliseconds(number(14) + number(15)),
        started_ms: milliseconds(number(22)),
        memory: number(24) * 4096,
        command: if command.is_empty() { format!("[{name}]") } else { command },
    })
}
