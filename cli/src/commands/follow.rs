//! Follows a stack until a goal is reached, and says what went wrong when it cannot be.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use orch_api::client::{Client, Lines};
use orch_api::control::{Reachability, StackChange};
use orch_api::node::LogLine;
use tokio::time::Instant;

use super::escape;
use super::last_lines::{self, LINES, LastLines};
use crate::connect::connect;
use crate::exit::{Exit, Failure};
use crate::printer;
use crate::progress::{Board, Goal, Painter, Step, Trouble, Verdict, verdict};
use crate::settings::Settings;

/// How often to judge though nothing changed.
const LOOK: Duration = Duration::from_millis(100);

/// How long an agent that went away is waited for: one that its supervisor restarts is back within this time.
pub(super) const GONE_FOR: Duration = Duration::from_secs(30);

/// How often to look whether it is back.
pub(super) const LOOK_FOR_AGENT: Duration = Duration::from_millis(50);

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// What to follow.
pub(super) struct Follow<'a> {
    /// The stack.
    pub stack: &'a str,
    /// Only these services; `None` = all.
    pub services: Option<BTreeSet<String>>,
    /// Until when.
    pub goal: Goal,
    /// Give up after so long.
    pub timeout: Option<Duration>,
    /// Show the last lines of the log of what failed.
    pub show_logs: bool,
    /// Rolling updates that began with this entry of the log or later count; `None` = none does.
    pub since: Option<u64>,
    /// Resources that the plan made before there was anybody to watch (`network web_default`): said first.
    pub made: Vec<String>,
}

/// Follows until the goal is reached.
///
/// # Errors
/// A [`Failure`] with everything that went wrong, after it has been said; with [`Exit::Deadline`] when the time is up.
pub(super) async fn follow(client: &Client, settings: &Settings, what: &Follow<'_>) -> Result<Board> {
    let mut painter = Painter::new(settings.progress, settings.color_stderr);
    let deadline = what.timeout.map(|t| Instant::now() + t);
    let mut board = Board::since(what.since);
    let mut last_lines = LastLines::new(client);
    for resource in &what.made {
        painter.show(&Step { resource: resource.clone(), word: "Created".to_owned(), settled: true, failed: false });
    }
    let mut watch = Watch::open(settings, client, what.stack).await?;
    let mut missing = Vec::new();
    loop {
        let change = {
            let mut next = std::pin::pin!(watch.next());
            loop {
                // Time alone can bring the goal: a container without a health check must have stayed up for a moment.
                let look = Instant::now() + LOOK;
                let until = deadline.map_or(look, |d| d.min(look));
                if let Ok(change) = tokio::time::timeout_at(until, &mut next).await {
                    break change?;
                }
                if deadline.is_some_and(|d| d <= Instant::now()) {
                    painter.finish();
                    return Err(too_late(what, missing).into());
                }
                if board.is_known() && verdict(&board, what.services.as_ref(), what.goal, now_ms()) == Verdict::Reached
                {
                    return Ok(reached(client, what, board, painter).await);
                }
            }
        };
        for step in board.fold(change) {
            painter.show(&step);
        }
        if what.show_logs {
            last_lines.look(&board);
        }
        match verdict(&board, what.services.as_ref(), what.goal, now_ms()) {
            Verdict::Waiting(list) => missing = list,
            Verdict::Reached => return Ok(reached(client, what, board, painter).await),
            Verdict::Failed(troubles) => {
                painter.finish();
                last_lines.say();
                return Err(say_troubles(client, &board, troubles, what.show_logs).await.into());
            }
        }
    }
}

/// The goal is reached. What runs can be reached as well when this returns, by its names and ports on every node that answers: who waited for
/// it may call it at once.
async fn reached(client: &Client, what: &Follow<'_>, board: Board, mut painter: Painter) -> Board {
    if matches!(what.goal, Goal::Started | Goal::Ready) {
        let path = format!("/v1/stacks/{}/reachable", escape(what.stack));
        // An agent that goes away now takes nothing of the goal with it.
        let asked = client.get::<Reachability>(&path).await;
        painter.finish();
        for hostname in asked.map(|answer| answer.behind).unwrap_or_default() {
            printer::say(&format!("warning: node {hostname} has not heard yet where callers are to be led"));
        }
    } else {
        painter.finish();
    }
    board
}

/// What changes in a stack, also across a restart of the agent: what that was told to do stands in its log, and it goes on by itself.
pub(super) struct Watch<'a> {
    settings: &'a Settings,
    client: &'a Client,
    path: String,
    changes: Option<Lines<StackChange>>,
    /// When the agent was lost, while it is.
    lost: Option<Instant>,
}

impl<'a> Watch<'a> {
    /// Watches a stack.
    pub(super) async fn open(settings: &'a Settings, client: &'a Client, stack: &str) -> Result<Self> {
        let path = format!("/v1/stacks/{}/watch", escape(stack));
        let changes = Some(client.lines(&path).await?);
        Ok(Self { settings, client, path, changes, lost: None })
    }

    /// The next change; after a restart of the agent first the stack as it is. Loses nothing when dropped half-way.
    ///
    /// # Errors
    /// When no agent comes back within [`GONE_FOR`], or it refuses.
    pub(super) async fn next(&mut self) -> Result<StackChange> {
        loop {
            let lost = match &mut self.changes {
                Some(changes) => match changes.next().await {
                    Ok(Some(change)) => {
                        self.lost = None;
                        return Ok(change);
                    }
                    Ok(None) => None,
                    Err(e) => Some(e),
                },
                None => match self.client.lines(&self.path).await {
                    Ok(changes) => {
                        self.changes = Some(changes);
                        continue;
                    }
                    Err(e) => Some(e),
                },
            };
            self.changes = None;
            let since = *self.lost.get_or_insert_with(Instant::now);
            if let Some(e) = lost
                && (!e.is_lost() || since.elapsed() > GONE_FOR)
            {
                return Err(e.into());
            }
            tokio::time::sleep(LOOK_FOR_AGENT).await;
            // One that a command started has nobody else who starts it again. What speaks against it now may be over soon.
            let _ = connect(self.settings);
        }
    }
}

fn too_late(what: &Follow<'_>, missing: Vec<String>) -> Failure {
    let seconds = what.timeout.map(|t| t.as_secs()).unwrap_or(0);
    Failure::new(Exit::Deadline, format!("stack {} is not as wanted after {seconds} s", what.stack)).details(missing)
}

async fn say_troubles(client: &Client, board: &Board, troubles: Vec<Trouble>, show_logs: bool) -> Failure {
    let exit = troubles.iter().find_map(|t| t.exit_code).map_or(Exit::Failed, Exit::Code);
    for trouble in &troubles {
        let Some(task) = board.tasks.get(&trouble.task) else { continue };
        let probe = task.status.health_output.trim();
        if !probe.is_empty() && trouble.text.contains("unhealthy") {
            printer::say(&format!("--- last health probe of {}", trouble.container));
            printer::say(probe);
        }
        if show_logs && !task.status.container.is_empty() {
            let path = format!("/v1/containers/{}/logs?tail={LINES}", task.status.container);
            let mut lines: Vec<String> = Vec::new();
            if let Ok(mut log) = client.lines::<LogLine>(&path).await {
                while let Ok(Some(line)) = log.next().await {
                    lines.push(line.log);
                }
            }
            last_lines::say(&trouble.container, lines.iter());
        }
    }
    let mut texts = troubles.into_iter().map(|t| t.text);
    let first = texts.next().unwrap_or_default();
    Failure::new(exit, first).details(texts.collect())
}
