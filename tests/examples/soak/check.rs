//! Whether what is said, what runs and what answers are the same: polled until it is, and the first difference that stays is the finding.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use orch_tests::machine::Place;
use orch_tests::{plaintext, traces};
use serde_json::Value;

use crate::fleet::{Fleet, SECRET};

/// How long it may take until everything is as it shall be, though nothing gets better meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

type Found = Result<(), String>;

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// Waits until all looks find nothing, and as long as what they find changes.
pub(crate) fn rests(fleet: &mut Fleet) {
    let (mut last, mut changed) = (String::new(), Instant::now());
    let begun = Instant::now();
    while let Err(found) = looks(fleet) {
        if found != last {
            (last, changed) = (found, Instant::now());
        }
        assert!(changed.elapsed() < PATIENCE && begun.elapsed() < 5 * PATIENCE, "it stays so: {last}\n{}", told(fleet));
        std::thread::sleep(Duration::from_millis(200));
    }
    says_nothing_bad(fleet);
}

/// A command that only reads, with JSON lines as its answer.
fn lines(fleet: &mut Fleet, number: usize, arguments: &[&str]) -> Result<Vec<Value>, String> {
    let output = fleet.orch(number, &[arguments, &["--format", "json"]].concat());
    if output.code == 0 { Ok(output.json_lines()) } else { Err(output.told()) }
}

fn looks(fleet: &mut Fleet) -> Found {
    managers_agree(fleet)?;
    let asked = fleet.managers_but(&[])[0];
    let services = lines(fleet, asked, &["service", "ls"])?;
    as_asked_for(fleet, &services)?;
    let tasks = lines(fleet, asked, &["task", "ls"])?;
    slots_run_once(fleet, asked, &services, &tasks)?;
    addresses_are_given_once(fleet, asked)?;
    let mut names = BTreeMap::new();
    for number in 1..=fleet.count {
        names.extend(runs_what_is_said(fleet, number, &tasks)?);
    }
    for number in 1..=fleet.count {
        answers(fleet, number, &names)?;
    }
    for number in 1..=fleet.count {
        let host = fleet.hosts.host(number);
        let found = plaintext::files(&host.data(), SECRET);
        if !found.is_empty() {
            return Err(format!("host {number}: the secret lies in {found:?}"));
        }
    }
    Ok(())
}

/// Everybody knows the same nodes, all are well, and all managers count.
fn managers_agree(fleet: &mut Fleet) -> Found {
    for number in 1..=fleet.count {
        if !fleet.sure
            && let Ok(nodes) = lines(fleet, number, &["node", "ls"])
        {
            for node in nodes {
                let place = text(&node, "hostname").trim_start_matches("host").parse::<usize>().unwrap_or(1) - 1;
                fleet.managers[place] = node["role"] == "manager";
            }
        }
    }
    let managers = fleet.managers_but(&[]);
    let mut seen = BTreeSet::new();
    for number in managers.iter().copied() {
        let info = fleet.orch(number, &["cluster", "info", "--format", "json"]);
        if info.code != 0 {
            return Err(format!("host {number}: {}", info.told()));
        }
        let info = info.json();
        // The number is odd where one joins; where one goes, the others vote on.
        let (voters, least) =
            (info["voters"].as_array().map_or(0, Vec::len), managers.len() - (managers.len() + 1) % 2);
        if voters < least || voters > managers.len() {
            return Err(format!("host {number}: {} managers and these voters: {}", managers.len(), info["voters"]));
        }
        let nodes = lines(fleet, number, &["node", "ls"])?;
        if nodes.len() != fleet.count {
            return Err(format!("host {number} knows {} nodes: {nodes:?}", nodes.len()));
        }
        for node in &nodes {
            let well = node["state"] == "ready" && node["availability"] == "active";
            if !well || node["underlay"].as_object().is_some_and(|ways| !ways.is_empty()) {
                return Err(format!("host {number} says: {node}"));
            }
        }
        let roles = nodes.iter().map(|node| (text(node, "hostname"), text(node, "role"), node["leader"] == true));
        seen.insert((text(&info, "leader"), info["term"].as_u64(), roles.collect::<Vec<_>>()));
    }
    if seen.len() == 1 { Ok(()) } else { Err(format!("managers differ: {seen:?}")) }
}

/// What is there is what was asked for; where nobody said whether it was done, it is as it is.
fn as_asked_for(fleet: &mut Fleet, services: &[Value]) -> Found {
    for service in services {
        let status = text(service, "update_status");
        if !["", "completed", "rolled-back", "rollback_completed", "paused"].contains(&status.as_str()) {
            return Err(format!("{} is {status:?}", service["id"]));
        }
    }
    let page = services.iter().find(|service| service["id"] == "front_page").and_then(|s| s["desired"].as_u64());
    let back = services.iter().any(|service| service["stack"] == "back");
    if fleet.sure && (page != Some(fleet.replicas) || back != fleet.back) {
        let (replicas, wanted) = (fleet.replicas, fleet.back);
        return Err(format!("asked for {replicas} pages and back: {wanted}; there are {page:?} and {back}"));
    }
    fleet.replicas = page.ok_or("there is no service front_page")?;
    (fleet.back, fleet.sure) = (back, true);
    Ok(())
}

fn slots_run_once(fleet: &mut Fleet, asked: usize, services: &[Value], tasks: &[Value]) -> Found {
    let mut slots: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut places = BTreeSet::new();
    for task in tasks {
        let service = (text(task, "stack"), text(task, "service"));
        if task["state"] != "running" || task["desired"] != "running" {
            let why = fleet.orch(asked, &["task", "why", &text(task, "id")]);
            return Err(format!("{}_{}: {task}\n{}", service.0, service.1, why.told()));
        }
        let global = ["caller", "each"].contains(&service.1.as_str());
        let slot = if global { text(task, "node") } else { task["slot"].to_string() };
        if !places.insert((service.clone(), slot)) {
            return Err(format!("a slot twice: {task}"));
        }
        *slots.entry(service).or_default() += 1;
    }
    let wanted = fleet.wanted();
    if slots != wanted {
        return Err(format!("tasks {slots:?} instead of {wanted:?}"));
    }
    for service in services {
        if service["running"] != service["desired"] {
            return Err(format!("it says of a service: {service}"));
        }
    }
    Ok(())
}

fn addresses_are_given_once(fleet: &mut Fleet, asked: usize) -> Found {
    fleet.addresses.clear();
    for stack in ["front", "back"] {
        if stack == "back" && !fleet.back {
            continue;
        }
        let mut given = BTreeSet::new();
        for task in lines(fleet, asked, &["-p", stack, "ps", "-a"])? {
            if task["health"] != "" && task["health"] != "healthy" {
                return Err(format!("{task}"));
            }
            for (network, address) in task["networks"].as_object().into_iter().flatten() {
                if !given.insert((network.clone(), text(address, "ipv4"))) {
                    return Err(format!("an address twice: {task}"));
                }
                fleet.addresses.insert(text(address, "ipv4"));
            }
        }
    }
    Ok(())
}

/// A word that is a container's id.
fn ids(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64)
}

/// The containers of a host are those that are said to be there, each with a living process, and nothing is left of any other. The names that
/// they give themselves.
fn runs_what_is_said(fleet: &mut Fleet, number: usize, tasks: &[Value]) -> Result<BTreeMap<String, String>, String> {
    let here = format!("host{number}");
    let said: BTreeSet<String> = tasks.iter().filter(|t| t["node"] == *here).map(|t| text(t, "id")).collect();
    let containers = lines(fleet, number, &["container", "ls", "-a", "--no-trunc"])?;
    let runs: BTreeSet<String> = containers.iter().map(|c| text(c, "task")).collect();
    if runs != said || containers.len() != runs.len() {
        return Err(format!("host {number} runs {runs:?}, and is said to run {said:?}"));
    }
    let host = fleet.hosts.host(number);
    let processes = host.processes();
    for container in &containers {
        let pid = container["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        if container["state"] != "running" || pid.and_then(|pid| processes.identity(pid)).is_none() {
            return Err(format!("host {number}: {container}"));
        }
    }
    let known: BTreeSet<String> = containers.iter().map(|c| text(c, "id")).collect();
    let left = |kind: &str, lines: &[String]| {
        let strange = lines.iter().find(|line| ids(line).any(|id| !known.contains(id)));
        strange.map_or(Ok(()), |line| Err(format!("host {number}: {kind} left behind: {line}")))
    };
    left("control group", &traces::groups(host.instance()))?;
    let mounts = std::fs::read_to_string(host.path("/proc/1/mountinfo")).map_err(|e| e.to_string())?;
    // Mounts come into a machine from the host it is on; its own have its folders in them.
    let data = host.data().display().to_string();
    let own = mounts.lines().filter(|line| line.contains(" /run/orch/") || line.contains(&data));
    left("mount", &own.map(str::to_owned).collect::<Vec<_>>())?;
    left("file in /run", &traces::tree(&host.path("/run")))?;
    left("state", &traces::tree(&host.data()).into_iter().filter(|p| !p.contains("images")).collect::<Vec<_>>())?;
    // The host leads to tasks and to whole networks, and to no other address of the containers' networks.
    let led = host.sh(Place::Host, "nft list ruleset; ip neigh show nud permanent");
    let addresses = led.split(|c: char| !c.is_ascii_digit() && c != '.').filter(|word| word.matches('.').count() == 3);
    if let Some(gone) =
        addresses.filter(|a| a.starts_with("10.") && !a.ends_with(".0")).find(|a| !fleet.addresses.contains(*a))
    {
        return Err(format!("host {number} leads to {gone}, which no task has"));
    }
    // What has no name of its container is counted.
    let spaces = |kind: &str| {
        let all = processes.all();
        let of = |pid: &i32| std::fs::read_link(processes.path(*pid).join("ns").join(kind)).ok();
        all.iter().filter_map(of).collect::<BTreeSet<_>>().len()
    };
    let strays = spaces("pid").saturating_sub(containers.len() + 1);
    if strays > 0 {
        return Err(format!("host {number}: {strays} pid namespaces too many"));
    }
    let namespaces = std::fs::read_dir(host.path("/run/orch/netd/netns")).map_or(0, Iterator::count);
    let links = host.sh(Place::Host, "ip -br link");
    let ports =
        links.lines().filter(|line| line.contains("@if") && !line.starts_with("eth0") && !line.starts_with("lan0"));
    let ports = ports.count();
    if namespaces != containers.len() || ports != containers.len() {
        let count = containers.len();
        return Err(format!(
            "host {number}: {count} containers, {namespaces} network namespaces, {ports} links:\n{links}"
        ));
    }
    let name = |c: &Value| (text(c, "id")[..12].to_owned(), format!("{}_{}", text(c, "stack"), text(c, "service")));
    Ok(containers.iter().map(name).collect())
}

/// From a container of this host and from outside through it, names lead to what runs, and to all of it.
fn answers(fleet: &mut Fleet, number: usize, names: &BTreeMap<String, String>) -> Found {
    let of = |service: &str| -> BTreeSet<&str> {
        names.iter().filter(|(_, s)| *s == service).map(|(name, _)| name.as_str()).collect()
    };
    let containers = lines(fleet, number, &["container", "ls"])?;
    let named = |word: &str| containers.iter().find(|c| c["service"] == word).map(|c| text(c, "name"));
    let caller = named("caller").ok_or("no caller")?;
    let script = "for i in $(seq @N); do timeout 3 wget -q -O - http://page/ 2>&1 || echo failed; done";
    let pages = of("front_page");
    let script = script.replace("@N", &(2 * pages.len() + 4).to_string());
    let asked = fleet.orch(number, &["container", "exec", &caller, "sh", "-c", &script]);
    let mut seen = BTreeMap::new();
    for line in asked.lines() {
        let (version, name) = line.split_once(' ').unwrap_or(("", line));
        seen.entry(name.to_owned()).or_insert_with(|| version.to_owned());
    }
    for _ in 0..4 {
        let page = fleet.outside.page(Place::Host, Fleet::address(number), 8080, "/");
        let page = page.map_err(|e| format!("from outside by host {number}: {e}"))?;
        let (version, name) = page.trim().split_once(' ').unwrap_or_default();
        seen.entry(name.to_owned()).or_insert_with(|| version.to_owned());
    }
    if let Some(name) = seen.keys().find(|name| !pages.contains(name.as_str())) {
        return Err(format!(
            "a caller on host {number} was answered {name:?}, which is none of {pages:?}: {}",
            asked.told()
        ));
    }
    if seen.values().collect::<BTreeSet<_>>().len() > 1 {
        return Err(format!("pages of several versions: {seen:?}"));
    }
    if fleet.back {
        let asker = named("each").ok_or("no each")?;
        let script = "nslookup each 127.0.0.11 2>/dev/null | awk '/^Address/ && !/127.0.0.11/ {print $NF}' | sort -u | \
            while read a; do timeout 3 wget -q -O - http://$a/ || echo failed $a; done";
        let asked = fleet.orch(number, &["container", "exec", &asker, "sh", "-c", script]);
        let seen: BTreeSet<&str> = asked.lines().iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
        if seen != of("back_each") {
            return Err(format!(
                "each on host {number} found {seen:?} instead of {:?}: {}",
                of("back_each"),
                asked.told()
            ));
        }
    }
    Ok(())
}

/// No agent has said that something is wrong which nobody did.
fn says_nothing_bad(fleet: &mut Fleet) {
    for number in 1..=fleet.count {
        let log = fleet.hosts.host(number).agent_log();
        let new = log.get(fleet.read[number - 1]..).unwrap_or_default();
        for line in new.lines() {
            if line.contains(" ERROR ") || line.contains("panicked") {
                println!("   SAID by host {number}: {line}");
            } else if let Some((_, warned)) = line.split_once(" WARN ") {
                let words = warned.split(' ').skip(1).take_while(|word| !word.contains('='));
                *fleet.warned.entry(words.collect::<Vec<_>>().join(" ")).or_default() += 1;
            }
        }
        fleet.read[number - 1] = log.len();
    }
}

/// What the agents hold: resident MiB, descriptors, threads, and bytes of log and snapshot.
pub(crate) fn sizes(fleet: &Fleet) -> String {
    let mut told = String::new();
    for number in 1..=fleet.count {
        let host = fleet.hosts.host(number);
        let Some(agent) = host.agent() else { continue };
        let processes = host.processes();
        let rss = processes.status(agent.pid, "VmRSS").unwrap_or_default();
        let rss = rss.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024;
        let descriptors = std::fs::read_dir(processes.path(agent.pid).join("fd")).map_or(0, Iterator::count);
        let threads = processes.status(agent.pid, "Threads").unwrap_or_default();
        let control = host.data().join("control");
        let files = traces::tree(&control).into_iter().filter(|path| !path.ends_with('/'));
        let bytes: u64 = files.filter_map(|path| std::fs::metadata(control.join(path)).ok()).map(|m| m.len()).sum();
        write!(told, "; {number}: {rss} MiB, {descriptors} fds, {threads} threads, {} KiB", bytes / 1024)
            .expect("text can be written");
    }
    told
}

/// Everything that helps to understand what stays wrong.
fn told(fleet: &mut Fleet) -> String {
    let mut told = String::new();
    let asked = fleet.managers_but(&[])[0];
    for words in [&["node", "ls"][..], &["service", "ls"], &["task", "ls"], &["cluster", "info"]] {
        told.push_str(&fleet.orch(asked, words).told());
        told.push('\n');
    }
    for number in 1..=fleet.count {
        let output = fleet.orch(number, &["container", "ls", "-a"]);
        writeln!(told, "host {number}: {}", output.told()).expect("text can be written");
    }
    told
}
