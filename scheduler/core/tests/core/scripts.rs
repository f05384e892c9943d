//! Scripts in `testdata/`: blocks of a command line, input lines, `----`, and the text that must come out, up to a blank line.
//!
//! With `UPDATE_EXPECT=1` the text is written anew, to be read by a person before it is committed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use orch_core::{
    Act, Action, Answer, AttachTask, ChangeObject, Command, DetachTask, Down, NetworkDefinition, NewNetwork, NewObject,
    NewVolume, ObjectKind, ReserveAddress, RunOneOff, Scale, SetTaskDesired, UpOptions,
};
use orch_core::{Hint, Refusal};
use orch_spec::assignment::{DesiredTask, Health, NetworkName, NodeReport, TaskNetwork, TaskState, TaskStatus};
use orch_spec::model::{ContentBytes, StackSpec};

use crate::world::{World, stack, stack_with};

struct Script {
    world: World,
    files: BTreeMap<String, Arc<StackSpec>>,
    environment: BTreeMap<String, String>,
    last: Option<(String, UpOptions)>,
    /// What each task was told and waited for after the last command.
    seen: BTreeMap<String, String>,
}

fn check(path: &Path) {
    let text = std::fs::read_to_string(path).expect("the script is there");
    let world = if text.starts_with("# Without a node") { World::new() } else { World::with_node(&["192.168.1.0/24"]) };
    let mut script =
        Script { world, files: BTreeMap::new(), environment: BTreeMap::new(), last: None, seen: BTreeMap::new() };
    let mut made = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            let _ = writeln!(made, "{line}");
            continue;
        }
        let mut input = Vec::new();
        while let Some(next) = lines.next_if(|next| *next != "----") {
            input.push(next);
        }
        lines.next();
        while lines.next_if(|next| !next.trim().is_empty()).is_some() {}
        let output = script.command(line, &input.join("\n"));
        let _ = writeln!(made, "{line}");
        for line in &input {
            let _ = writeln!(made, "{line}");
        }
        let _ = write!(made, "----\n{output}");
        script.check_cache();
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &made).expect("the script can be written");
    } else {
        let differs = text.lines().zip(made.lines()).position(|(old, new)| old != new);
        assert!(
            text == made,
            "{} differs at line {}; UPDATE_EXPECT=1 writes it anew. It gave:\n{made}",
            path.display(),
            differs.map_or(0, |line| line + 1)
        );
    }
}

impl Script {
    fn command(&mut self, line: &str, input: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (verb, rest) = words.split_first().expect("a command has a verb");
        let mut out = String::new();
        match *verb {
            "file" => {
                let name = rest[0];
                let project = rest.get(1).copied().unwrap_or("web");
                self.files.insert(name.to_owned(), Arc::new(stack_with(project, input, &self.environment)));
            }
            "env" => {
                self.environment.insert(rest[0].to_owned(), rest[1].to_owned());
            }
            "image" => {
                self.world.images.insert(rest[0].to_owned(), rest[1].to_owned());
            }
            "up" => {
                let (file, options) = self.options(rest);
                let spec = Arc::clone(&self.files[&file]);
                let result = self.world.up(&spec, options.clone());
                self.last = Some((file, options));
                self.answer(&mut out, result);
            }
            "plan" => {
                let (file, options) = self.options(rest);
                let result = self.world.plan(&self.files[&file].clone(), options);
                self.answer(&mut out, result);
            }
            "again" => {
                let (file, mut options) = self.last.clone().expect("something was brought up before");
                (options.force_recreate, options.always_recreate_deps) = (false, false);
                let result = self.world.plan(&self.files[&file].clone(), options);
                match result {
                    Ok(answer) if answer.plan.is_empty() => out.push_str("planning again is empty\n"),
                    other => self.answer(&mut out, other),
                }
            }
            "down" => {
                let down = Down {
                    stack: rest[0].to_owned(),
                    volumes: rest.contains(&"--volumes"),
                    remove_orphans: rest.contains(&"--remove-orphans"),
                    services: rest[1..]
                        .iter()
                        .filter(|word| !word.starts_with('-'))
                        .map(|word| (*word).to_owned())
                        .collect(),
                    timeout: None,
                };
                let result = self.world.apply(Command::RemoveStack(down)).result;
                self.answer(&mut out, result);
            }
            "scale" => {
                let services = rest[1..]
                    .iter()
                    .filter_map(|word| word.split_once('='))
                    .map(|(name, count)| (name.to_owned(), count.parse().expect("a number of replicas")));
                let scale =
                    Scale { stack: rest[0].to_owned(), services: services.collect(), no_deps: false, timeout: None };
                let result = self.world.apply(Command::Scale(scale)).result;
                self.answer(&mut out, result);
            }
            "run" => self.run(&mut out, rest),
            "desired" => {
                let task = self.world.task(rest[0]).expect("the task is there").id.clone();
                let desired = desired(rest[1]);
                let command = SetTaskDesired { task, desired, timeout: None, signal: None, remove_volumes: false };
                let result = self.world.apply(Command::SetTaskDesired(command)).result;
                self.answer(&mut out, result);
            }
            "node" => {
                let node = self.world.node.clone();
                let facts =
                    orch_spec::assignment::NodeFacts { id: node, hostname: "host-1".to_owned(), ..Default::default() };
                self.world.report(NodeReport::Facts(facts));
            }
            "status" => self.status(rest),
            "agent" => {
                for word in rest {
                    match word.split_once('=') {
                        Some(("sick", service)) => self.world.sick.push(service.to_owned()),
                        Some((service, code)) => {
                            self.world.ends.insert(service.to_owned(), code.parse().expect("an exit code"));
                        }
                        None => panic!("unknown word {word}"),
                    }
                }
                self.world.agent();
            }
            "step" => {
                self.world.agent_step();
            }
            verb @ ("secret" | "secret-update" | "secret-rm") => {
                let (kind, name) = (ObjectKind::Secret, rest[0].to_owned());
                let content = || Arc::new(ContentBytes(rest[1].as_bytes().to_vec()));
                let command = match verb {
                    "secret" => {
                        let (content, labels) = (content(), Default::default());
                        Command::CreateObject(NewObject { kind, name, content, labels })
                    }
                    "secret-update" => Command::ChangeObject(ChangeObject { kind, name, content: content() }),
                    _ => Command::RemoveObject { kind, name },
                };
                let result = self.world.apply(command).result;
                self.answer(&mut out, result);
            }
            "network" => {
                let definition = NetworkDefinition::default();
                let command = NewNetwork { name: rest[0].into(), definition };
                let result = self.world.apply(Command::CreateNetwork(command)).result;
                self.answer(&mut out, result);
            }
            "network-rm" => {
                let result = self.world.apply(Command::RemoveNetwork { name: rest[0].into() }).result;
                self.answer(&mut out, result);
            }
            "volume" => {
                let result = self
                    .world
                    .apply(Command::CreateVolume(NewVolume { name: rest[0].into(), ..NewVolume::default() }))
                    .result;
                self.answer(&mut out, result);
            }
            "reserve" => {
                let request = ReserveAddress {
                    network: rest[0].into(),
                    holder: rest[1].to_owned(),
                    name: rest[1].to_owned(),
                    ipv4: rest.get(2).map(|address| address.parse().expect("an address")),
                    ..ReserveAddress::default()
                };
                match self.world.apply(Command::ReserveAddress(request)).result {
                    Ok(answer) => drop(writeln!(out, "{:?}", answer.addresses)),
                    Err(refusal) => refused(&mut out, &refusal),
                }
            }
            "connect" | "disconnect" => {
                let task = self.world.task(rest[1]).expect("the task is there").id.clone();
                let network: NetworkName = rest[0].into();
                let command = if *verb == "connect" {
                    let ipv4 = rest.iter().find_map(|word| word.parse().ok());
                    let aliases = rest[2..].iter().filter(|word| word.parse::<std::net::Ipv4Addr>().is_err());
                    let aliases = aliases.map(|alias| (*alias).to_owned()).collect();
                    Command::AttachTask(AttachTask { task, network, aliases, ipv4, ipv6: None })
                } else {
                    Command::DetachTask(DetachTask { task, network })
                };
                let result = self.world.apply(command).result;
                self.answer(&mut out, result);
            }
            "release" => {
                let command = Command::ReleaseAddress { network: rest[0].into(), holder: rest[1].to_owned() };
                let result = self.world.apply(command).result;
                self.answer(&mut out, result);
            }
            "volume-failed" => {
                let failed = (rest[0].to_owned(), Some("it is busy".to_owned()));
                self.world.report(NodeReport::VolumesRemoved(vec![failed]));
            }
            "tasks" => self.tasks(&mut out),
            "objects" => self.objects(&mut out),
            "names" => self.names(&mut out),
            "files" => {
                for task in self.world.assignment().tasks {
                    for file in task.files {
                        let _ = writeln!(
                            out,
                            "{} {} {:o} {}",
                            task.container_name,
                            file.target,
                            file.mode,
                            &file.digest[..12]
                        );
                    }
                }
            }
            "events" => {
                for event in self.world.state.events.since(0) {
                    let _ = writeln!(out, "{} {} {}", event.kind, event.action, event.name);
                }
            }
            action => {
                let act = self.act(action, rest);
                let result = self.world.apply(Command::Act(act)).result;
                self.answer(&mut out, result);
            }
        }
        if !matches!(
            *verb,
            "tasks" | "objects" | "names" | "events" | "plan" | "again" | "file" | "files" | "image" | "env"
        ) {
            self.deltas(&mut out);
        }
        out
    }

    fn options(&self, words: &[&str]) -> (String, UpOptions) {
        let mut options = UpOptions::default();
        for word in &words[1..] {
            match *word {
                "--force-recreate" => options.force_recreate = true,
                "--no-recreate" => options.no_recreate = true,
                "--always-recreate-deps" => options.always_recreate_deps = true,
                "--no-deps" => options.no_deps = true,
                "--no-start" => options.no_start = true,
                "--remove-orphans" => options.remove_orphans = true,
                other => match other.split_once('=') {
                    Some((service, count)) => {
                        options.scale.insert(service.to_owned(), count.parse().expect("a number of replicas"));
                    }
                    None => options.services.push(other.to_owned()),
                },
            }
        }
        (words[0].to_owned(), options)
    }

    fn act(&self, action: &str, words: &[&str]) -> Act {
        let action = match action {
            "start" => Action::Start,
            "stop" => Action::Stop,
            "restart" => Action::Restart,
            "pause" => Action::Pause,
            "unpause" => Action::Unpause,
            "kill" => Action::Kill,
            "rm" => Action::Remove,
            other => panic!("unknown command {other}"),
        };
        Act {
            stack: words[0].to_owned(),
            services: words[1..].iter().filter(|word| !word.starts_with('-')).map(|word| (*word).to_owned()).collect(),
            tasks: Vec::new(),
            action,
            timeout: None,
            signal: None,
            no_deps: words.contains(&"--no-deps"),
            remove_volumes: false,
            stop: words.contains(&"--stop"),
        }
    }

    fn run(&mut self, out: &mut String, words: &[&str]) {
        let spec = Arc::clone(&self.files[words[0]]);
        let mut one_off = spec.services[words[1]].clone();
        one_off.ports.clear();
        let images = self.world.request(&spec, UpOptions::default()).images;
        let command = RunOneOff {
            stack: spec.name.clone(),
            spec: Some(spec),
            files: Vec::new(),
            service: words[1].to_owned(),
            one_off: Arc::new(one_off),
            container_name: Some(words[2].to_owned()),
            start: !words.contains(&"--create"),
            no_deps: words.contains(&"--no-deps"),
            use_aliases: false,
            remove_orphans: false,
            images,
        };
        let result = self.world.apply(Command::RunOneOff(command)).result;
        self.answer(out, result);
    }

    /// `status NAME STATE [exit=N] [health=WORD]`.
    fn status(&mut self, words: &[&str]) {
        let task = self.world.task(words[0]).expect("the task is there");
        let mut status = TaskStatus { task: task.id.clone(), ..task.status.clone() };
        status.state = state(words[1]);
        status.restart_generation = task.told_generation;
        if status.state == TaskState::Running && status.started_at.is_none() {
            status.started_at = Some(1);
        }
        for word in &words[2..] {
            match word.split_once('=') {
                Some(("exit", code)) => status.exit_code = Some(code.parse().expect("an exit code")),
                Some(("health", "healthy")) => status.health = Health::Healthy,
                Some(("health", "unhealthy")) => status.health = Health::Unhealthy,
                Some(("health", "starting")) => status.health = Health::Starting,
                Some(("error", error)) => status.error = error.replace('_', " "),
                _ => panic!("unknown word {word}"),
            }
        }
        self.world.report(NodeReport::Tasks(vec![status]));
    }

    fn answer(&self, out: &mut String, result: Result<Answer, Refusal>) {
        match result {
            Ok(answer) => {
                let _ = write!(out, "{}", answer.plan);
                for warning in answer.warnings {
                    let _ = writeln!(out, "warning: {warning}");
                }
            }
            Err(refusal) => refused(out, &refusal),
        }
    }

    /// What is different for the node and for those who wait, since the last command.
    fn deltas(&mut self, out: &mut String) {
        let mut now = BTreeMap::new();
        let mut tasks: Vec<_> = self.world.state.tasks.values().collect();
        tasks.sort_by_key(|task| task.sequence);
        for task in tasks {
            let told = task.told.map_or("-".to_owned(), |told| format!("{told:?}").to_lowercase());
            let generation =
                if task.told_generation > 0 { format!(" #{}", task.told_generation) } else { String::new() };
            let waits: Vec<&str> = task.waiting.iter().map(|wait| wait.text.as_str()).collect();
            let waits = if waits.is_empty() { String::new() } else { format!(", waits for {}", waits.join(" and ")) };
            let blocked = if task.blocked.is_empty() { String::new() } else { format!(" [{}]", task.blocked) };
            let text = format!("{} -> {told}{generation}{waits}{blocked}", task.container_name);
            let key = format!("{:06}", task.sequence);
            if self.seen.get(&key) != Some(&text) {
                let _ = writeln!(out, "  {text}");
            }
            now.insert(key, text);
        }
        for (key, text) in &self.seen {
            if !now.contains_key(key) {
                let _ = writeln!(out, "  {} is gone", text.split(" -> ").next().unwrap_or_default());
            }
        }
        self.seen = now;
    }

    fn tasks(&self, out: &mut String) {
        let mut tasks: Vec<_> = self.world.state.tasks.values().collect();
        tasks.sort_by(|a, b| (&a.stack, a.order()).cmp(&(&b.stack, b.order())));
        for task in tasks {
            let network = match task.network.as_ref().expect("every task has a network") {
                TaskNetwork::None => "none".to_owned(),
                TaskNetwork::Host => "host".to_owned(),
                TaskNetwork::Task(id) => format!("of {}", self.world.state.tasks[id].container_name),
                TaskNetwork::Endpoints { endpoints, .. } => {
                    let one = |endpoint: &orch_spec::assignment::EndpointAssignment| {
                        let six = endpoint.ipv6.map_or_else(String::new, |six| format!(" {six}"));
                        format!(
                            "{} {}{six}",
                            endpoint.network,
                            endpoint.ipv4.map_or_else(|| "-".to_owned(), |four| four.to_string())
                        )
                    };
                    endpoints.iter().map(one).collect::<Vec<_>>().join(", ")
                }
            };
            let (goal, state) =
                (format!("{:?}", task.goal).to_lowercase(), format!("{:?}", task.status.state).to_lowercase());
            let _ = writeln!(out, "{} {goal} {state} ({network})", task.container_name);
        }
    }

    fn objects(&self, out: &mut String) {
        let assignment = self.world.assignment();
        for network in assignment.networks {
            let subnets = [network.subnet4, network.subnet6].into_iter().flatten().collect::<Vec<_>>().join(" ");
            let _ = writeln!(out, "network {} {subnets}", network.name);
        }
        for name in assignment.removed_networks {
            let _ = writeln!(out, "remove network {name}");
        }
        for volume in assignment.volumes {
            let _ = writeln!(out, "volume {}", volume.name);
        }
        for name in assignment.removed_volumes {
            let _ = writeln!(out, "remove volume {name}");
        }
        let _ = writeln!(out, "stacks: {}", self.world.state.stacks.keys().cloned().collect::<Vec<_>>().join(" "));
    }

    fn names(&self, out: &mut String) {
        for name in self.world.assignment().names {
            let addresses: Vec<String> = name.addresses.iter().map(ToString::to_string).collect();
            let _ = writeln!(out, "{} {} {}", name.network, name.name, addresses.join(" "));
        }
    }

    /// What is kept from step to step must be what would be derived from nothing.
    fn check_cache(&self) {
        let fresh = orch_core::Assignments::new(&self.world.state).of(&self.world.state, &self.world.node);
        assert_eq!(self.world.assignment(), fresh);
    }
}

fn refused(out: &mut String, refusal: &Refusal) {
    let _ = writeln!(out, "refused ({}): {refusal}", refusal.code());
    if let Some(hint) = refusal.hint() {
        let _ = writeln!(out, "hint: {hint}");
    }
}

fn desired(word: &str) -> DesiredTask {
    match word {
        "created" => DesiredTask::Created,
        "running" => DesiredTask::Running,
        "paused" => DesiredTask::Paused,
        "stopped" => DesiredTask::Stopped,
        "removed" => DesiredTask::Removed,
        other => panic!("unknown state {other}"),
    }
}

fn state(word: &str) -> TaskState {
    match word {
        "created" => TaskState::Created,
        "starting" => TaskState::Starting,
        "running" => TaskState::Running,
        "restarting" => TaskState::Restarting,
        "exited" => TaskState::Exited,
        "failed" => TaskState::Failed,
        "removed" => TaskState::Removed,
        other => panic!("unknown state {other}"),
    }
}

macro_rules! scripts {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(concat!(stringify!($name), ".txt")));
        }
    )*};
}

scripts! {
    brings_four_linked_services_up_in_order
    recreates_only_what_has_changed_and_says_why
    scales_up_and_down
    takes_a_stack_down_in_reverse_order
    fails_those_who_wait_for_what_failed
    runs_a_one_shot_once
    restarts_followers_of_what_is_restarted
    stops_and_starts_in_order
    shares_namespaces
    gives_addresses_and_keeps_them
    refuses_what_clashes_before_anything_is_made
    removes_orphans_when_asked
    runs_one_offs
    replaces_a_network_that_has_changed
    mounts_secrets_and_configs
    waits_for_a_node
    stops_through_a_finished_one_shot
    takes_a_task_onto_a_further_network_and_off_it
}

#[test]
fn every_script_is_run() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let count = std::fs::read_dir(dir).expect("the scripts are there").count();
    assert_eq!(count, 18, "a script without a line in scripts! is never run");
}

#[test]
fn removed_networks_are_named_until_they_are_gone() {
    let mut world = World::with_node(&[]);
    let spec = Arc::new(stack("web", "services: {app: {image: app}}"));
    world.up(&spec, UpOptions::default()).expect("it can be brought up");
    world.agent();
    world.apply(Command::RemoveStack(Down { stack: "web".to_owned(), ..Down::default() }));
    // The task goes; the answer about the network is lost.
    world.agent_step();
    assert_eq!(world.assignment().removed_networks, [NetworkName::from("web_default")]);
    world.report(NodeReport::NetworksRemoved(vec!["web_default".into()]));
    assert!(world.state.stacks.is_empty() && world.state.networks.is_empty());
}
