//! Follows a stack until it is as it shall be: folds the control plane's changes, judges them (purely), and draws them.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use orch_api::control::{NetworkView, ServiceView, StackChange, StackView, TaskView, VolumeView};
use orch_api::service::UpdateView;
use orch_spec::assignment::{DesiredTask, Health, TaskState};

use crate::printer;
use crate::settings::Progress;

/// A stack as the watch stream has told it so far.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Services by name.
    pub services: BTreeMap<String, ServiceView>,
    /// Tasks by id.
    pub tasks: BTreeMap<String, TaskView>,
    /// Networks by name.
    pub networks: BTreeMap<String, NetworkView>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, VolumeView>,
    /// The stack is no more.
    pub gone: bool,
    /// Rolling updates that began with this entry of the log or later are ours: how they end counts. `None` = none is.
    pub since: Option<u64>,
    /// The first message, which is the whole stack, has come.
    known: bool,
}

/// One line of progress: a resource and how it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// `container web-app-1`.
    pub resource: String,
    /// `Started`.
    pub word: String,
    /// Nothing more is to come.
    pub settled: bool,
    /// It went wrong.
    pub failed: bool,
}

impl Board {
    /// A board of nothing yet; see the field of this name.
    pub(crate) fn since(since: Option<u64>) -> Self {
        Self { since, ..Self::default() }
    }

    /// The rolling update of a service that counts here, if there is one.
    pub(crate) fn update(&self, service: &str) -> Option<&UpdateView> {
        let update = self.services.get(service)?.update.as_ref()?;
        self.since.is_some_and(|since| update.begun >= since).then_some(update)
    }

    /// Tasks that have failed while their service was being updated: what failed may be gone when the update is over.
    pub(crate) fn failed_in_update(&self) -> impl Iterator<Item = &TaskView> {
        self.tasks.values().filter(|task| {
            let bad = match task.status.state {
                TaskState::Failed | TaskState::Restarting => true,
                TaskState::Exited => code(task) != 0,
                _ => task.status.health == Health::Unhealthy,
            };
            bad && self.is_updated_to(task)
        })
    }

    /// Whether a task is one of those that an update brings.
    pub(crate) fn is_updated_to(&self, task: &TaskView) -> bool {
        task.up_to_date && self.update(&task.service).is_some()
    }

    /// Whether anything has been told yet.
    pub(crate) fn is_known(&self) -> bool {
        self.known
    }

    /// Takes a change in; returns the steps that it shows.
    pub(crate) fn fold(&mut self, change: StackChange) -> Vec<Step> {
        self.known = true;
        match change {
            StackChange::Stack { stack } => self.whole(*stack),
            StackChange::Task { task, .. } => {
                let step = task_step(&task);
                self.tasks.insert(task.id.clone(), *task);
                vec![step]
            }
            StackChange::TaskRemoved { id, container_name, .. } => {
                self.tasks.remove(&id);
                vec![done(format!("container {container_name}"), "Removed")]
            }
            StackChange::Network { network, .. } => {
                let known = self.networks.get(&network.name).is_some_and(|old| old.removing == network.removing);
                if known {
                    // Its endpoints changed, which is not news of the network.
                    self.networks.insert(network.name.clone(), network);
                    return Vec::new();
                }
                let word = if network.removing { "Removing" } else { "Created" };
                let step = Step { settled: !network.removing, ..done(format!("network {}", network.name), word) };
                self.networks.insert(network.name.clone(), network);
                vec![step]
            }
            StackChange::NetworkRemoved { name, kept, .. } => {
                self.networks.remove(&name);
                if kept { Vec::new() } else { vec![done(format!("network {name}"), "Removed")] }
            }
            StackChange::Volume { volume, .. } => {
                let same = |old: &VolumeView| old.removing == volume.removing && old.error == volume.error;
                if self.volumes.get(&volume.name).is_some_and(same) {
                    // Its users changed, which is not news of the volume.
                    self.volumes.insert(volume.name.clone(), volume);
                    return Vec::new();
                }
                let word = if volume.removing { "Removing" } else { "Created" };
                let failed = !volume.error.is_empty();
                let word = if failed { format!("Error: {}", volume.error) } else { word.to_owned() };
                let resource = format!("volume {}", volume.name);
                let step = Step { resource, word, settled: !volume.removing || failed, failed };
                self.volumes.insert(volume.name.clone(), volume);
                vec![step]
            }
            StackChange::VolumeRemoved { name, kept, .. } => {
                self.volumes.remove(&name);
                if kept { Vec::new() } else { vec![done(format!("volume {name}"), "Removed")] }
            }
            StackChange::Removed { .. } => {
                self.gone = true;
                Vec::new()
            }
        }
    }

    fn whole(&mut self, stack: StackView) -> Vec<Step> {
        self.services = stack.services.into_iter().map(|s| (s.name.clone(), s)).collect();
        // One that goes on already is waited for as well.
        let active =
            self.services.values().filter_map(|s| s.update.as_ref()).filter(|u| is_active(u)).map(|u| u.begun).min();
        self.since = self.since.map(|since| active.map_or(since, |begun| begun.min(since)));
        self.networks = stack.networks.into_iter().map(|n| (n.name.clone(), n)).collect();
        self.volumes = stack.volumes.into_iter().map(|v| (v.name.clone(), v)).collect();
        self.tasks = stack.tasks.into_iter().map(|t| (t.id.clone(), t)).collect();
        self.tasks.values().map(task_step).collect()
    }
}

fn is_active(update: &UpdateView) -> bool {
    matches!(update.state.as_str(), "updating" | "rollback_started")
}

/// What a rolling update means for who waits for it.
fn judge_update(service: &str, update: &UpdateView) -> Judgement {
    let why = if update.message.is_empty() { String::new() } else { format!(": {}", update.message) };
    match update.state.as_str() {
        "paused" => Judgement::Bad(format!("the update of service {service} is paused{why}")),
        "rollback_paused" => Judgement::Bad(format!("going back with service {service} is paused{why}")),
        "rollback_completed" if !update.asked => {
            Judgement::Bad(format!("service {service} is what it was before the update{why}"))
        }
        _ if is_active(update) => Judgement::Waiting,
        _ => Judgement::Good,
    }
}

fn done(resource: String, word: &str) -> Step {
    Step { resource, word: word.to_owned(), settled: true, failed: false }
}

/// How a task stands, in one word or short phrase.
pub(crate) fn task_step(task: &TaskView) -> Step {
    let status = &task.status;
    let going = task.desired == DesiredTask::Removed;
    let (word, settled, failed) = match status.state {
        _ if !task.blocked.is_empty() => (format!("Error: {}", task.blocked), true, true),
        // How well it was matters no more; it may still wait for those that depend on it.
        TaskState::Starting | TaskState::Running | TaskState::Paused | TaskState::Restarting | TaskState::Failed
            if going =>
        {
            ("Removing".to_owned(), false, false)
        }
        _ if !going && is_cut_off(task) => (format!("Waiting for {}", waits(task)), false, false),
        TaskState::Pending => match task.waiting_on.first() {
            Some(wait) => (format!("Waiting for {}", wait.text), false, false),
            None => ("Waiting".to_owned(), false, false),
        },
        TaskState::Preparing if !status.note.is_empty() => (sentence(&status.note), false, false),
        TaskState::Assigned | TaskState::Preparing => ("Creating".to_owned(), false, false),
        TaskState::Created => ("Created".to_owned(), task.desired == DesiredTask::Created, false),
        TaskState::Starting => ("Starting".to_owned(), false, false),
        TaskState::Running | TaskState::Paused if task.again => {
            // It runs on until others of its service are there.
            let held = task.waiting_on.iter().find(|wait| wait.kind == "sibling");
            (held.map_or("Restarting".to_owned(), |wait| format!("Waiting for {}", wait.text)), false, false)
        }
        TaskState::Running => match status.health {
            Health::None => ("Started".to_owned(), true, false),
            Health::Starting => ("Started, not healthy yet".to_owned(), false, false),
            Health::Healthy => ("Healthy".to_owned(), true, false),
            Health::Unhealthy => ("Unhealthy".to_owned(), true, true),
        },
        TaskState::Paused => ("Paused".to_owned(), true, false),
        TaskState::Restarting => (format!("Restarting ({})", code(task)), false, false),
        TaskState::Stopping => (if going { "Removing" } else { "Stopping" }.to_owned(), false, false),
        TaskState::Exited if task.desired == DesiredTask::Stopped => ("Stopped".to_owned(), true, false),
        TaskState::Exited if going => ("Removing".to_owned(), false, false),
        TaskState::Exited => (format!("Exited ({})", code(task)), true, code(task) != 0),
        TaskState::Failed => (format!("Error: {}", status.error), true, true),
        TaskState::Removed => ("Removed".to_owned(), true, false),
    };
    Step { resource: format!("container {}", task.container_name), word, settled, failed }
}

/// With a capital, as the other words have one.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Whether the task's node is lost, so that nobody knows how it is.
fn is_cut_off(task: &TaskView) -> bool {
    !task.node.is_empty() && task.waiting_on.iter().any(|wait| wait.kind == "node")
}

fn waits(task: &TaskView) -> String {
    task.waiting_on.iter().map(|wait| wait.text.as_str()).collect::<Vec<_>>().join(" and ")
}

fn code(task: &TaskView) -> i32 {
    task.status.exit_code.unwrap_or(0)
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Containers exist (`create`).
    Created,
    /// Containers have been started, and gates of dependencies have opened.
    Started,
    /// Containers run and are healthy, or have done their one-shot work with exit code 0 (`--wait`).
    Ready,
    /// Containers do not run.
    Stopped,
    /// Containers do not exist.
    Removed,
    /// The whole stack does not exist.
    Gone,
}

/// One thing that went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Name of the container; empty when it has none.
    pub container: String,
    /// The task.
    pub task: String,
    /// One sentence.
    pub text: String,
    /// Exit code that the failure stands for, when Docker has one (125, 126, 127).
    pub exit_code: Option<i32>,
}

/// How long a container without a health check must have stayed up to count as ready: what ends at once was never ready, and most
/// programs that cannot work notice within this time.
pub(crate) const STEADY_MS: u64 = 300;

/// The judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not yet; what is missing.
    Waiting(Vec<String>),
    /// Reached.
    Reached,
    /// It cannot be reached any more.
    Failed(Vec<Trouble>),
}

/// Judges whether the goal is reached for these services (`None` = all).
///
/// `now` is in milliseconds since the epoch: without a health check, "ready" means to have stayed up for [`STEADY_MS`].
pub(crate) fn verdict(board: &Board, services: Option<&BTreeSet<String>>, goal: Goal, now: u64) -> Verdict {
    if goal == Goal::Gone {
        let stuck: Vec<Trouble> = board
            .volumes
            .values()
            .filter(|v| !v.error.is_empty())
            .map(|v| trouble_of(&format!("volume {}: {}", v.name, v.error)))
            .collect();
        if !board.gone && !stuck.is_empty() && board.tasks.is_empty() {
            return Verdict::Failed(stuck);
        }
        return if board.gone {
            Verdict::Reached
        } else {
            Verdict::Waiting(board.tasks.values().map(waiting).collect())
        };
    }
    let mut missing = Vec::new();
    let mut troubles = Vec::new();
    let up = matches!(goal, Goal::Created | Goal::Started | Goal::Ready);
    let mut rolling = BTreeSet::new();
    for name in board.services.keys().filter(|name| up && services.is_none_or(|s| s.contains(*name))) {
        let Some(update) = board.update(name) else { continue };
        match judge_update(name, update) {
            Judgement::Good => {}
            Judgement::Waiting => {
                rolling.insert(name.as_str());
                missing.push(format!("service {name}: {} of {} updated", update.done.min(update.total), update.total));
            }
            Judgement::Bad(text) => troubles.push(trouble_of(&text)),
        }
    }
    // What fails while it goes on is for the update to judge.
    let counts =
        |t: &&TaskView| services.is_none_or(|s| s.contains(&t.service)) && !rolling.contains(t.service.as_str());
    if !troubles.is_empty() {
        return Verdict::Failed(troubles);
    }
    for task in board.tasks.values().filter(counts) {
        match judge(task, goal, now) {
            Judgement::Good => {}
            Judgement::Waiting => missing.push(waiting(task)),
            Judgement::Bad(text) => troubles.push(Trouble {
                container: task.container_name.clone(),
                task: task.id.clone(),
                text,
                exit_code: task.status.error_code,
            }),
        }
    }
    if !troubles.is_empty() {
        Verdict::Failed(troubles)
    } else if missing.is_empty() {
        Verdict::Reached
    } else {
        Verdict::Waiting(missing)
    }
}

fn trouble_of(text: &str) -> Trouble {
    Trouble { container: String::new(), task: String::new(), text: text.to_owned(), exit_code: None }
}

fn waiting(task: &TaskView) -> String {
    let step = task_step(task);
    format!("{}: {}", task.container_name, step.word)
}

enum Judgement {
    Good,
    Waiting,
    Bad(String),
}

fn judge(task: &TaskView, goal: Goal, now: u64) -> Judgement {
    use Judgement::{Bad, Good, Waiting};
    let name = &task.container_name;
    let state = task.status.state;
    if task.one_off && goal != Goal::Removed {
        return Good;
    }
    let up = matches!(goal, Goal::Created | Goal::Started | Goal::Ready);
    if up && task.desired == DesiredTask::Removed {
        return Waiting;
    }
    if up && !task.blocked.is_empty() {
        return Bad(format!("container {name} cannot start: {}", task.blocked));
    }
    if matches!(goal, Goal::Started | Goal::Ready) && (task.again || is_cut_off(task)) {
        return Waiting;
    }
    if up && state == TaskState::Failed {
        return Bad(format!("container {name}: {}", task.status.error));
    }
    match goal {
        Goal::Created => match state {
            TaskState::Pending | TaskState::Assigned | TaskState::Preparing => Waiting,
            _ => Good,
        },
        Goal::Started => match (task.desired, state) {
            (DesiredTask::Stopped | DesiredTask::Created, _) => Good,
            (_, TaskState::Running | TaskState::Paused | TaskState::Exited | TaskState::Restarting) => Good,
            _ => Waiting,
        },
        Goal::Ready => match (task.desired, state) {
            (DesiredTask::Stopped | DesiredTask::Created, _) => Good,
            (_, TaskState::Running) => match task.status.health {
                Health::None if now.saturating_sub(task.status.started_at.unwrap_or(0)) < STEADY_MS => Waiting,
                Health::None | Health::Healthy => Good,
                Health::Starting => Waiting,
                Health::Unhealthy => Bad(format!("container {name} is unhealthy")),
            },
            (_, TaskState::Paused) => Good,
            (_, TaskState::Exited) if code(task) == 0 => Good,
            (_, TaskState::Exited) => {
                let why = if task.status.oom_killed { ", out of memory" } else { "" };
                Bad(format!("container {name} exited ({}{why})", code(task)))
            }
            _ => Waiting,
        },
        Goal::Stopped => match state {
            TaskState::Exited | TaskState::Created | TaskState::Failed | TaskState::Removed => Good,
            TaskState::Pending | TaskState::Assigned if task.desired == DesiredTask::Stopped => Good,
            _ => Waiting,
        },
        Goal::Removed | Goal::Gone => {
            if task.desired == DesiredTask::Removed {
                Waiting
            } else {
                Good
            }
        }
    }
}

/// Draws steps on stderr.
pub(crate) struct Painter {
    mode: Progress,
    last: BTreeMap<String, String>,
    bars: BTreeMap<String, ProgressBar>,
    screen: MultiProgress,
    color: bool,
}

impl Painter {
    /// A painter of this mode.
    pub(crate) fn new(mode: Progress, color: bool) -> Self {
        Self { mode, last: BTreeMap::new(), bars: BTreeMap::new(), screen: MultiProgress::new(), color }
    }

    /// Shows a step, if it says something new.
    pub(crate) fn show(&mut self, step: &Step) {
        if self.last.get(&step.resource) == Some(&step.word) {
            return;
        }
        self.last.insert(step.resource.clone(), step.word.clone());
        match self.mode {
            Progress::Quiet => {}
            Progress::Plain => printer::say(&format!("{}  {}", step.resource, step.word)),
            Progress::Json => {
                let status = match (step.failed, step.settled) {
                    (true, _) => "Error",
                    (false, true) => "Done",
                    (false, false) => "Working",
                };
                let object = serde_json::json!({"id": step.resource, "status": status, "text": step.word});
                printer::say(&object.to_string());
            }
            Progress::Tty => self.draw(step),
        }
    }

    fn draw(&mut self, step: &Step) {
        let bar = self.bars.entry(step.resource.clone()).or_insert_with(|| {
            let bar = self.screen.add(ProgressBar::new_spinner());
            bar.set_style(style("{spinner} {msg} {elapsed}"));
            bar.enable_steady_tick(std::time::Duration::from_millis(100));
            bar
        });
        let (sign, paint) = if step.failed { ("✘", "31") } else { ("✔", "32") };
        let text = format!("{}  {}", step.resource, step.word);
        if step.settled {
            let sign = if self.color { format!("\x1b[{paint}m{sign}\x1b[0m") } else { sign.to_owned() };
            bar.set_style(style("{msg}"));
            bar.disable_steady_tick();
            bar.set_message(format!("{sign} {text}  {:.1}s", bar.elapsed().as_secs_f64()));
        } else {
            bar.set_message(text);
        }
        bar.tick();
    }

    /// Leaves what is drawn and draws no more over it.
    pub(crate) fn finish(&mut self) {
        for bar in self.bars.values() {
            bar.abandon();
        }
        self.bars.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use orch_spec::assignment::TaskStatus;

    fn task(state: TaskState, health: Health, exit_code: Option<i32>) -> Board {
        let status = TaskStatus { state, health, exit_code, ..TaskStatus::default() };
        let view = TaskView {
            id: "t".into(),
            service: "web".into(),
            container_name: "s-web-1".into(),
            desired: DesiredTask::Running,
            status,
            ..TaskView::default()
        };
        Board { tasks: [("t".to_owned(), view)].into(), ..Board::default() }
    }

    #[test]
    fn one_that_is_to_be_started_again_is_not_up_however_it_is_now() {
        let mut board = task(TaskState::Running, Health::None, None);
        board.tasks.values_mut().for_each(|t| t.again = true);
        for goal in [Goal::Started, Goal::Ready] {
            assert!(matches!(verdict(&board, None, goal, 10_000), Verdict::Waiting(_)));
        }
    }

    #[test]
    fn a_one_shot_that_exited_with_0_is_ready() {
        let board = task(TaskState::Exited, Health::None, Some(0));
        assert_eq!(verdict(&board, None, Goal::Ready, 10_000), Verdict::Reached);
    }

    #[test]
    fn one_that_exited_otherwise_is_not() {
        let board = task(TaskState::Exited, Health::None, Some(3));
        let Verdict::Failed(troubles) = verdict(&board, None, Goal::Ready, 10_000) else { panic!("not failed") };
        assert_eq!(troubles[0].text, "container s-web-1 exited (3)");
    }

    #[test]
    fn started_is_not_ready_until_healthy() {
        let board = task(TaskState::Running, Health::Starting, None);
        assert_eq!(verdict(&board, None, Goal::Started, 10_000), Verdict::Reached);
        assert!(matches!(verdict(&board, None, Goal::Ready, 10_000), Verdict::Waiting(_)));
        let board = task(TaskState::Running, Health::Healthy, None);
        assert_eq!(verdict(&board, None, Goal::Ready, 10_000), Verdict::Reached);
    }

    #[test]
    fn without_a_health_check_ready_means_to_have_stayed_up() {
        let mut board = task(TaskState::Running, Health::None, None);
        board.tasks.values_mut().for_each(|t| t.status.started_at = Some(9_900));
        assert!(matches!(verdict(&board, None, Goal::Ready, 10_000), Verdict::Waiting(_)));
        assert_eq!(verdict(&board, None, Goal::Ready, 10_200), Verdict::Reached);
    }

    #[test]
    fn a_rolling_update_is_judged_by_its_end_and_only_if_it_is_ours() {
        let mut board = task(TaskState::Exited, Health::None, Some(1));
        let update = |state: &str| UpdateView {
            state: state.into(),
            message: "it broke".into(),
            begun: 7,
            ..UpdateView::default()
        };
        let service =
            |state: &str| ServiceView { name: "web".into(), update: Some(update(state)), ..ServiceView::default() };
        board.services.insert("web".into(), service("updating"));
        board.since = Some(7);
        assert!(
            matches!(verdict(&board, None, Goal::Ready, 10_000), Verdict::Waiting(_)),
            "a failure on the way is no end"
        );
        board.services.insert("web".into(), service("rollback_completed"));
        let Verdict::Failed(troubles) = verdict(&board, None, Goal::Ready, 10_000) else { panic!("not failed") };
        assert_eq!(troubles[0].text, "service web is what it was before the update: it broke");
        board.tasks.clear();
        board.since = Some(8);
        assert_eq!(verdict(&board, None, Goal::Ready, 10_000), Verdict::Reached);
    }

    #[test]
    fn a_task_of_another_service_does_not_count() {
        let board = task(TaskState::Pending, Health::None, None);
        let only = BTreeSet::from(["db".to_owned()]);
        assert_eq!(verdict(&board, Some(&only), Goal::Ready, 10_000), Verdict::Reached);
    }
}
