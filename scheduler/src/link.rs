//! One node's reports on their way into the log.

use std::collections::BTreeMap;
use std::time::Duration;

use orch_api::error::chain;
use orch_core::{Command, Turn};
use orch_spec::assignment::{NodeId, NodeReport, TaskId, TaskStatus};
use tokio::sync::mpsc;

use crate::control::{Control, ProposeError};

/// Reports that wait. An agent that is faster than the log waits in turn.
const QUEUE: usize = 256;
/// How long to wait before a report that could not be stored is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Starts the task that takes the node's reports; it ends with their sender. One proposal is under way at a time, and what comes
/// meanwhile is put together: that makes a burst of statuses a few entries, without any timer.
pub(crate) fn spawn(control: Control, node: NodeId) -> mpsc::Sender<NodeReport> {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut waiting = Vec::new();
        while receiver.recv_many(&mut waiting, QUEUE).await > 0 {
            for report in merge(std::mem::take(&mut waiting)) {
                if !deliver(&control, &node, report).await {
                    return;
                }
            }
        }
    });
    sender
}

/// Proposes until it is done; says whether the control plane is still there.
async fn deliver(control: &Control, node: &NodeId, report: NodeReport) -> bool {
    loop {
        let command = Command::Report { node: node.clone(), turn: Turn::default(), report: report.clone() };
        match control.propose(command).await {
            Ok(_) => return true,
            // A report can be repeated, whether it was taken or not.
            Err(error) if error.is_transient() || matches!(error, ProposeError::Unknown) => {
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => {
                tracing::warn!(%node, error = chain(&error), "reports of this node are not taken any more");
                return false;
            }
        }
    }
}

/// Neighbouring lists of statuses become one, with the last status of each task.
pub(crate) fn merge(reports: Vec<NodeReport>) -> Vec<NodeReport> {
    let mut merged: Vec<NodeReport> = Vec::new();
    for report in reports {
        match (merged.last_mut(), report) {
            (Some(NodeReport::Tasks(known)), NodeReport::Tasks(more)) => {
                let mut places: BTreeMap<TaskId, usize> =
                    known.iter().enumerate().map(|(place, status)| (status.task.clone(), place)).collect();
                for status in more {
                    match places.get(&status.task) {
                        // The end of one start and the begin of the next are two things: only a step on the same way is left out.
                        Some(place) if is_step(&known[*place], &status) => known[*place] = status,
                        _ => {
                            places.insert(status.task.clone(), known.len());
                            known.push(status);
                        }
                    }
                }
            }
            (_, report) => merged.push(report),
        }
    }
    merged
}

fn is_step(old: &TaskStatus, new: &TaskStatus) -> bool {
    old.started_at == new.started_at && old.finished_at == new.finished_at && old.health == new.health
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_spec::assignment::TaskState;

    fn status(task: &str, state: TaskState, started_at: Option<u64>) -> TaskStatus {
        TaskStatus { task: task.into(), state, started_at, ..TaskStatus::default() }
    }

    #[test]
    fn keeps_only_the_last_step_of_each_task_between_two_other_reports() {
        let reports = vec![
            NodeReport::Tasks(vec![status("a", TaskState::Preparing, None)]),
            NodeReport::Tasks(vec![status("a", TaskState::Created, None), status("b", TaskState::Preparing, None)]),
            NodeReport::NetworksRemoved(Vec::new()),
            NodeReport::Tasks(vec![status("a", TaskState::Starting, None)]),
        ];
        let merged = merge(reports);
        assert_eq!(merged.len(), 3);
        let NodeReport::Tasks(first) = &merged[0] else { panic!("statuses come first") };
        assert_eq!(first.len(), 2);
        assert_eq!(first[0].state, TaskState::Created);
    }

    #[test]
    fn keeps_every_start_and_every_end() {
        let reports = vec![
            NodeReport::Tasks(vec![status("a", TaskState::Running, Some(1))]),
            NodeReport::Tasks(vec![status("a", TaskState::Running, Some(2))]),
        ];
        let NodeReport::Tasks(all) = &merge(reports)[0] else { panic!("statuses come first") };
        assert_eq!(all.len(), 2);
    }
}
