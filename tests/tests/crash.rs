//! Crashes of the agent, a shim and the command line, at any moment: what runs goes on, what was begun is finished.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orch_tests::fault::Chance;
use orch_tests::host::Host;
use orch_tests::process::Identity;
use orch_tests::wait::{PATIENCE, eventually};
use serde_json::Value;

/// A bystander that counts: each of its lines must be in its log, whatever happens to the agent.
const COUNTER: &str = "
name: counter
services:
  count: {image: busybox, command: [sh, -c, 'n=0; while :; do echo line $$n; n=$$((n+1)); usleep 20000; done']}
";

/// What is brought up and down while the agent is killed: an order, a health check, a volume, a network of its own.
const CHANGING: &str = "
name: changing
services:
  base:
    image: busybox
    init: true
    command: sleep infinity
    volumes: ['data:/data']
    healthcheck: {test: [CMD, 'true'], interval: 1s, start_period: 10s, start_interval: 50ms}
  middle: {image: busybox, init: true, command: sleep infinity, depends_on: {base: {condition: service_healthy}}}
  top: {image: busybox, init: true, command: sleep infinity, depends_on: [middle], ports: ['8080:80']}
volumes: {data: }
";

fn supervised(stack: &str) -> Host {
    let host = Host::new();
    host.start_agent();
    host.load("busybox");
    host.stack(stack);
    host
}

/// Every line that the counter has written up to the last one is in its log, once and in order.
fn lost_no_line(host: &Host) {
    let logs = host.orch(&["-f", "counter.yaml", "logs", "--no-log-prefix"]).ok();
    let numbers: Vec<u64> = logs.stdout.lines().filter_map(|l| l.strip_prefix("line ")?.parse().ok()).collect();
    assert!(!numbers.is_empty(), "{}", logs.told());
    let expected: Vec<u64> = (0..numbers.len() as u64).collect();
    let first = numbers.iter().zip(&expected).find(|(seen, expected)| seen != expected);
    assert_eq!(first, None, "lines are missing or doubled (seen, expected) of {}", numbers.len());
}

/// Containers of the changing stack, by service.
fn changing(host: &Host) -> BTreeMap<String, Value> {
    host.ps().into_iter().map(|c| (c["service"].as_str().unwrap_or_default().to_owned(), c)).collect()
}

fn all_run(host: &Host) -> Result<(), String> {
    let all = changing(host);
    let well = |service: &str| all.get(service).is_some_and(|c| c["state"] == "running" && c["health"] != "starting");
    if ["base", "middle", "top"].into_iter().all(well) { Ok(()) } else { Err(format!("{all:?}")) }
}

fn all_stopped(host: &Host) -> Result<(), String> {
    let all = changing(host);
    if all.values().all(|c| c["state"] == "exited") { Ok(()) } else { Err(format!("{all:?}")) }
}

fn all_gone(host: &Host) -> Result<(), String> {
    let all = changing(host);
    let networks = host.orch(&["network", "ls", "--format", "json"]).ok().stdout;
    if all.is_empty() && !networks.contains("changing_default") { Ok(()) } else { Err(format!("{all:?} {networks}")) }
}

#[test]
fn a_killed_agent_at_idle_leaves_every_container_as_it_is() {
    let host = supervised(CHANGING);
    host.write("counter.yaml", COUNTER);
    host.orch(&["-f", "counter.yaml", "up", "-d", "--wait"]).ok();
    host.up();
    let (before, shims) = (host.running(), host.shims());
    assert_eq!((before.len(), shims.len()), (3, 2));
    for _ in 0..3 {
        host.kill_agent();
        assert!(before.values().chain(&shims).all(|p| host.processes().alive(*p)));
        host.start_agent();
        assert_eq!(host.running(), before);
    }
    host.orch(&["plan"]).code(0);
    host.exec("top", "wget -q -T 2 -O - http://base/ || true; nslookup base");
    lost_no_line(&host);
    host.orch(&["-f", "counter.yaml", "down", "-t", "1"]).ok();
    host.orch(&["down", "-v", "-t", "1"]).ok();
    host.leaves_no_trace();
}

#[test]
fn exits_while_no_agent_runs_are_recorded_and_answered_by_policy() {
    let host = supervised(
        "services:
  keep: {image: busybox, command: [sh, -c, 'trap \"exit 17\" TERM; while :; do sleep 0.05; done']}
  back: {image: busybox, command: sleep infinity, restart: always}
  same: {image: busybox, command: sleep infinity, init: true}",
    );
    host.up();
    let process = |service: &str| host.process(&host.container(service));
    let (keep, back, same) = (process("keep"), process("back"), process("same"));
    host.kill_agent();
    host.kill(keep, Signal::SIGTERM);
    host.kill(back, Signal::SIGKILL);
    host.start_agent();
    let kept = host.becomes("keep", "exited", |c| c["state"] == "exited");
    assert_eq!(kept["exit_code"], 17);
    let again = host.becomes("back", "running again", |c| c["state"] == "running" && c["pid"] != back.pid);
    assert_eq!(again["restarts"], 1);
    assert_eq!(host.process(&host.container("same")), same);
    host.down();
    host.leaves_no_trace();
}

/// How an operation is begun, how it is known to be complete, and how the machine is made ready for it.
struct Operation {
    name: &'static str,
    arguments: &'static [&'static str],
    complete: fn(&Host) -> Result<(), String>,
    ready: fn(&Host),
}

const OPERATIONS: [Operation; 4] = [
    Operation { name: "up", arguments: &["up", "-d", "--wait"], complete: all_run, ready: |host| host.down() },
    Operation { name: "stop", arguments: &["stop", "-t", "1"], complete: all_stopped, ready: |host| host.up() },
    Operation {
        name: "exec",
        arguments: &["exec", "-T", "top", "sh", "-c", "usleep 50000; exit 3"],
        complete: all_run,
        ready: |host| host.up(),
    },
    Operation { name: "down", arguments: &["down", "-t", "1"], complete: all_gone, ready: |host| host.up() },
];

/// Kills the agent at `points` points of each operation. What was acknowledged finishes by itself once an agent is back; a command
/// whose request was not may be said again.
#[test]
fn an_operation_that_a_crash_of_the_agent_interrupts_finishes_by_itself() {
    const POINTS: u32 = 13;
    let mut chance = Chance::new("points of the agent's crashes");
    let host = supervised(CHANGING);
    host.write("counter.yaml", COUNTER);
    host.orch(&["-f", "counter.yaml", "up", "-d", "--wait"]).ok();
    let count = |host: &Host| -> (Identity, String) {
        let all = host.orch(&["-f", "counter.yaml", "ps", "--format", "json"]).ok().json_lines();
        assert_eq!((all.len(), &all[0]["restarts"]), (1, &0.into()));
        (host.process(&all[0]), all[0]["started_at"].to_string())
    };
    let bystander = count(&host);
    for operation in OPERATIONS {
        (operation.ready)(&host);
        let began = Instant::now();
        let _ = host.orch(operation.arguments);
        let usual = began.elapsed();
        for point in 0..POINTS {
            (operation.ready)(&host);
            let agent = host.agent().expect("an agent runs");
            let mut command = host.start(operation.arguments);
            let delay = chance.delay(usual + usual / 4);
            let told = format!("{} {point}: killed after {delay:?} of {usual:?}", operation.name);
            let over = command.ended();
            host.kill(agent, Signal::SIGKILL);
            host.start_agent();
            let output = command.ends(PATIENCE);
            assert_eq!(count(&host), bystander, "{told}");
            // Without an acknowledgement nothing has to happen, and saying it again must work.
            let acknowledged = over || output.code == 0;
            if !acknowledged && operation.name != "exec" && (operation.complete)(&host).is_err() {
                let settled = eventually_settled(&host, operation.complete);
                if !settled {
                    host.orch(operation.arguments).ok();
                }
            }
            eventually(PATIENCE, &told, || (operation.complete)(&host));
            if operation.name == "down" {
                // One that had just become idle when its agent died leaves by itself.
                eventually(PATIENCE, &format!("{told}: only the bystander's shim is left"), || {
                    let shims = host.shims();
                    if shims.len() == 1 { Ok(()) } else { Err(format!("{shims:?}")) }
                });
            }
        }
    }
    lost_no_line(&host);
    host.orch(&["-f", "counter.yaml", "down", "-t", "1"]).ok();
    host.orch(&["down", "-v", "-t", "1"]).ok();
    host.leaves_no_trace();
}

/// Whether an operation that was perhaps begun comes to its end by itself. Too short a patience would only say it once more.
fn eventually_settled(host: &Host, complete: fn(&Host) -> Result<(), String>) -> bool {
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        if complete(host).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn a_hundred_containers_are_adopted_again() {
    let host = supervised("name: many\nservices: {a: {image: busybox, command: sleep infinity, scale: 100}}");
    host.up();
    let before = host.running();
    assert_eq!(before.len(), 100);
    host.kill_agent();
    let began = Instant::now();
    host.start_agent();
    eventually(PATIENCE, "all are known again", || {
        let running = host.ps().iter().filter(|c| c["state"] == "running").count();
        if running == 100 { Ok(()) } else { Err(running.to_string()) }
    });
    println!(
        "100 containers adopted again within {:?} of the agent's start, two `orch` processes included",
        began.elapsed()
    );
    assert_eq!(host.running(), before);
    host.orch(&["down", "-t", "0"]).ok();
    host.leaves_no_trace();
}

#[test]
fn a_killed_shim_takes_its_containers_along_and_they_are_restarted_once() {
    let host = supervised(
        "name: s\nservices:
  back: {image: busybox, command: sleep 7777, restart: always}
  child: {image: busybox, command: [sh, -c, 'sleep 8888 & sleep 8888; wait'], restart: always}
  never: {image: busybox, command: sleep 9999}",
    );
    host.write("other.yaml", "name: other\nservices: {a: {image: busybox, command: sleep infinity}}");
    host.up();
    host.orch(&["-f", "other.yaml", "up", "-d", "--wait"]).ok();
    let other =
        |host: &Host| host.process(&host.orch(&["-f", "other.yaml", "ps", "--format", "json"]).ok().json_lines()[0]);
    let bystander = other(&host);
    let before = host.running();
    let shim = host.processes().parent(before["s-back-1"].pid).and_then(|p| host.processes().identity(p)).unwrap();
    assert!(host.shims().contains(&shim), "the parent of a container is its stack's shim");
    host.kill(shim, Signal::SIGKILL);
    host.becomes("back", "running again", |c| c["state"] == "running" && c["pid"] != before["s-back-1"].pid);
    host.becomes("child", "running again", |c| c["state"] == "running" && c["pid"] != before["s-child-1"].pid);
    let never = host.becomes("never", "known to be dead", |c| c["state"] != "running");
    assert_eq!(never["restarts"], 0, "{never}");
    let processes = host.processes();
    let commands = |what: &str| processes.all().into_iter().filter(|p| processes.command(*p) == what).count();
    eventually(PATIENCE, "each runs once", || {
        let seen = (commands("sleep 7777"), commands("sleep 8888"), commands("sleep 9999"));
        if seen == (1, 2, 0) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(other(&host), bystander, "a shim's death touched another stack");
    host.orch(&["-f", "other.yaml", "down", "-t", "0"]).ok();
    host.orch(&["down", "-t", "0"]).ok();
    host.leaves_no_trace();
}

#[test]
fn a_shim_that_dies_while_no_agent_runs_is_noticed_later() {
    let host = supervised("name: s\nservices: {back: {image: busybox, command: sleep 6666, restart: always}}");
    host.up();
    let shim = host.shims()[0];
    host.kill_agent();
    host.kill(shim, Signal::SIGKILL);
    host.start_agent();
    let processes = host.processes();
    eventually(PATIENCE, "it runs once", || {
        let all = host.ps();
        let count = processes.all().into_iter().filter(|p| processes.command(*p) == "sleep 6666").count();
        let known = all
            .iter()
            .any(|c| c["state"] == "running" && processes.identity(c["pid"].as_i64().unwrap_or(0) as i32).is_some());
        if known && count == 1 { Ok(()) } else { Err(format!("{count} of them; {all:?}")) }
    });
    host.orch(&["down", "-t", "0"]).ok();
    host.leaves_no_trace();
}

#[test]
fn up_again_after_its_command_line_was_killed_converges() {
    let mut chance = Chance::new("points of the command line's crashes");
    let host = supervised(CHANGING);
    let began = Instant::now();
    host.up();
    let usual = began.elapsed();
    for _ in 0..12 {
        host.down();
        let up = host.start(&["up", "-d", "--wait"]);
        let delay = chance.delay(usual);
        up.signal(Signal::SIGKILL);
        drop(up);
        host.up();
        all_run(&host).unwrap_or_else(|seen| panic!("killed after {delay:?}: {seen}"));
        assert_eq!(host.ps().len(), 3, "killed after {delay:?}");
        host.orch(&["plan"]).code(0);
    }
    host.orch(&["down", "-v", "-t", "1"]).ok();
    host.leaves_no_trace();
}

/// Lines `line 0`, `line 1`, … of what a command has printed, wherever they stand in theirs.
fn numbers(printed: &str) -> Vec<u64> {
    printed.lines().filter_map(|line| line.rsplit_once("line ")?.1.parse().ok()).collect()
}

/// Waits until a command has printed `more` further numbers, and all of them once and in order.
fn counts_on(what: &orch_tests::host::Running<'_>, more: u64) {
    let target = numbers(&what.stdout()).last().copied().unwrap_or(0) + more;
    eventually(PATIENCE, "it counts on", || {
        let last = numbers(&what.stdout()).last().copied().unwrap_or(0);
        if last >= target { Ok(()) } else { Err(format!("{last} of {target}; {}", what.stderr())) }
    });
    let seen = numbers(&what.stdout());
    let wrong = seen.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert_eq!(wrong, None, "a line is missing or doubled: {}", what.stderr());
}

#[test]
fn an_attached_up_and_followed_logs_go_on_across_the_end_of_the_agent() {
    let host = Host::with_busybox();
    host.stack(COUNTER);
    let up = host.start(&["up"]);
    up.prints("line 3");
    let logs = host.start(&["logs", "-f"]);
    logs.prints("line 3");
    let process = host.process(&host.container("count"));
    for polite in [false, true, false] {
        if polite {
            host.stop_agent()
        } else {
            host.kill_agent()
        }
        // The commands start one again by themselves, as they did the first.
        counts_on(&up, 50);
        counts_on(&logs, 50);
    }
    assert_eq!(host.process(&host.container("count")), process, "the container was touched");
    host.orch(&["down", "-t", "0"]).ok();
    up.ends(PATIENCE);
    logs.ends(PATIENCE).code(0);
    host.leaves_no_trace();
}

#[test]
fn an_agent_that_is_stopped_politely_leaves_containers_alone_too() {
    let host = supervised(CHANGING);
    host.up();
    let before = host.running();
    host.stop_agent();
    assert!(before.values().all(|p| host.processes().alive(*p)));
    // The next command starts one by itself.
    assert_eq!(host.running(), before);
    host.orch(&["down", "-v", "-t", "1"]).ok();
    host.leaves_no_trace();
}

#[test]
fn what_is_run_once_is_not_run_again_when_only_its_record_stayed() {
    let host = Host::with_busybox();
    host.start_agent();
    host.write("out/runs", "");
    let (out, records) = (host.folder().join("out"), host.data().join("agent/local"));
    let kept = || -> Vec<PathBuf> { std::fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let is_forgotten = || if kept().is_empty() { Ok(()) } else { Err(format!("{:?}", kept())) };
    let mount = format!("{}:/out", out.display());
    let script = "echo ran >>/out/runs; until [ -e /out/go ]; do sleep 0.05; done";
    host.orch(&["container", "run", "-d", "--rm", "-v", &mount, "busybox", "sh", "-c", script]).ok();
    let record = kept().pop().expect("a container of no stack has a record");
    let text = std::fs::read(&record).unwrap();
    host.write("out/go", "");
    eventually(PATIENCE, "it is forgotten with its end", is_forgotten);
    // As if the agent had died between the removal of the container and that of its record.
    host.kill_agent();
    std::fs::write(&record, text).unwrap();
    host.start_agent();
    eventually(PATIENCE, "what stayed of it is forgotten", is_forgotten);
    assert_eq!(std::fs::read_to_string(out.join("runs")).unwrap(), "ran\n");
    host.leaves_no_trace();
}
