//! Who is let in, seen from outside: every route of the table against every kind of certificate, and every kind of token.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use orch_tests::caller::{Answer, Call, Request, Rule, rules};
use orch_tests::cluster::Hosts;
use orch_tests::segment::address;
use orch_tests::wait::{PATIENCE, eventually, saw};
use serde_json::Value;

/// Seconds.
const HOUR: i64 = 3600;
/// Where the manager and the worker are that are called, and where the callers are.
const MANAGER: usize = 1;
const WORKER: usize = 2;
const REMOVED: usize = 3;
const STRANGER: usize = 4;

/// Keeps a node's certificate and key, whatever becomes of it.
fn keep_identity(hosts: &Hosts, number: usize, name: &str) -> PathBuf {
    let (from, to) = (hosts.host(number).data().join("identity"), hosts.host(STRANGER).folder().join(name));
    std::fs::create_dir(&to).expect("a folder can be made");
    for file in ["ca.pem", "cert.pem", "key.pem"] {
        std::fs::copy(from.join(file), to.join(file)).expect("a node of a cluster has it");
    }
    to
}

/// Makes a client's certificate, and says what the cluster calls it.
fn client(hosts: &Hosts, name: &str, role: &str, ttl: &str) -> (PathBuf, String) {
    let folder = hosts.host(STRANGER).folder().join(name);
    let out = folder.to_string_lossy().into_owned();
    let made = ["cluster", "client", "create", name, "--role", role, "--ttl", ttl, "-o", &out];
    let named = hosts.host(MANAGER).orch(&made).ok().text().to_owned();
    (folder, named)
}

fn set_clocks(hosts: &Hosts, numbers: &[usize], off: i64) {
    for number in numbers {
        let host = hosts.host(*number);
        host.stop_agent();
        host.clock_off.store(off, Ordering::Relaxed);
        host.start_agent();
    }
}

/// The status, the code and the beginning of the text; status 0 = no answer, and what curl says of it.
type Refusal = (u16, &'static str, String);
/// What a caller may expect of a route: `None` = it is let in, and the handler's answer is its own affair.
type Expected = Option<Refusal>;

/// Somebody with something to show.
struct Caller {
    who: &'static str,
    own: Option<PathBuf>,
    /// What a manager and what a worker says to it.
    manager: Box<dyn Fn(&Rule) -> Expected>,
    worker: Box<dyn Fn(&Rule) -> Expected>,
}

/// What a route needs, in the words of the refusal.
fn needs(rule: &Rule) -> &'static str {
    match rule.access.as_str() {
        "Socket" => "the unix socket of that host",
        "Everybody" => "nothing",
        "Renewal" | "Node" => "a node's certificate",
        "Manager" => "a manager's certificate",
        "Read" => "a client certificate (read, deploy or admin)",
        "Deploy" => "a client certificate with the role deploy or admin",
        "Admin" => "a client certificate with the role admin",
        other => panic!("who is {other}? Say it here, too"),
    }
}

fn forbidden(text: &str) -> Expected {
    Some((403, "forbidden", text.to_owned()))
}

fn unauthenticated(text: &str) -> Expected {
    Some((401, "unauthenticated", text.to_owned()))
}

/// A caller whose certificate counts: a manager lets it do what is allowed to it, a worker nothing.
fn known(who: &'static str, own: PathBuf, role: &'static str, name: &str, may: &'static [&'static str]) -> Caller {
    let name = name.to_owned();
    let manager = move |rule: &Rule| {
        let text = format!("{role} {name} may not do this; it needs {}", needs(rule));
        if may.contains(&rule.access.as_str()) { None } else { forbidden(&text) }
    };
    let worker = |_: &Rule| forbidden("this node is a worker: it serves managers only");
    Caller { who, own: Some(own), manager: Box::new(manager), worker: Box::new(worker) }
}

/// A caller who is told the same whatever it asks for.
fn refused(who: &'static str, own: PathBuf, manager: Expected, worker: Expected) -> Caller {
    let (manager, worker) = (move |_: &Rule| manager.clone(), move |_: &Rule| worker.clone());
    Caller { who, own: Some(own), manager: Box::new(manager), worker: Box::new(worker) }
}

/// Asks for all that this caller is to be refused, and says what was answered otherwise than expected.
fn differences(caller: &Caller, call: &Call, expected: &dyn Fn(&Rule) -> Expected) -> Vec<String> {
    let to_be_refused: Vec<(Rule, Refusal)> =
        rules().into_iter().filter_map(|rule| expected(&rule).map(|refusal| (rule, refusal))).collect();
    let request = |rule: &Rule| {
        let path = rule.path.replace("{name}", "x").replace("{id}", "x").replace("{digest}", "x");
        Request { method: rule.method.clone(), path, body: "null".to_owned() }
    };
    let requests: Vec<Request> = to_be_refused.iter().map(|(rule, _)| request(rule)).collect();
    let answers = call.ask(&requests);
    saw(&format!("{}: {} routes refused by {}", caller.who, answers.len(), call.to));
    let differs = |((asked, (_, refusal)), answer): ((&Request, &(Rule, Refusal)), &Answer)| {
        let (code, kind, text) = refusal;
        let said = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
        let message = said["error"]["message"].as_str().unwrap_or_default();
        let matches = if *code == 0 {
            answer.code == 0 && answer.error.contains(text.as_str())
        } else {
            answer.code == *code
                && said["error"]["code"] == *kind
                && message.starts_with(&format!("{} {}: {text}", asked.method, asked.path))
        };
        let who = caller.who;
        (!matches).then(|| format!("{who}: {} {}: {answer:?} instead of {refusal:?}", asked.method, asked.path))
    };
    requests.iter().zip(&to_be_refused).zip(&answers).filter_map(differs).collect()
}

#[test]
fn every_route_of_the_table_refuses_who_may_not_call_it_and_says_why() {
    let hosts = Hosts::new(4);
    // What is made while the clocks are four hours behind has long expired when they are right.
    set_clocks(&hosts, &[MANAGER, WORKER, REMOVED], -4 * HOUR);
    let opened = ["cluster", "init", "--advertise-addr", "192.0.2.1", "--cert-expiry", "1h"];
    hosts.host(MANAGER).orch(&opened).ok();
    let token = hosts.token(&["worker"]);
    hosts.join(WORKER, &token).ok();
    hosts.join(REMOVED, &token).ok();
    let expired_node = keep_identity(&hosts, WORKER, "expired-node");
    let (expired_client, late) = client(&hosts, "late", "admin", "1h");
    set_clocks(&hosts, &[MANAGER, WORKER, REMOVED], 0);
    eventually(PATIENCE, "all have new certificates", || {
        let connected: Vec<bool> = (1..=3).map(|number| hosts.info(number)["connected"] == true).collect();
        let certificate = |number: usize| std::fs::read(hosts.host(number).data().join("identity/cert.pem")).ok();
        let renewed = certificate(WORKER) != std::fs::read(expired_node.join("cert.pem")).ok();
        if renewed && connected[1..] == [true; 2] { Ok(()) } else { Err(format!("{connected:?} {renewed}")) }
    });

    let (worker, worker_id) = (keep_identity(&hosts, WORKER, "worker"), hosts.id(WORKER));
    let (removed, removed_id) = (keep_identity(&hosts, REMOVED, "removed"), hosts.id(REMOVED));
    hosts.host(MANAGER).orch(&["node", "rm", "--force", "host3"]).ok();
    let (reader, reader_name) = client(&hosts, "reader", "read", "1h");
    let (deployer, deployer_name) = client(&hosts, "deployer", "deploy", "1h");
    let (revoked, revoked_name) = client(&hosts, "revoked", "admin", "1h");
    hosts.host(MANAGER).orch(&["cluster", "client", "rm", &revoked_name]).ok();
    hosts.host(STRANGER).orch(&["cluster", "init", "--advertise-addr", "192.0.2.4"]).ok();
    let foreign = keep_identity(&hosts, STRANGER, "foreign-manager");

    let unknown = |kind: &str, name: &str| forbidden(&format!("{kind} {name} is not known here, or was shut out"));
    let gone = |name: &str| Some((403, "removed", format!("worker {name} was removed from this cluster")));
    let serves_managers = || forbidden("this node is a worker: it serves managers only");
    let alert = || Some((0, "", "alert".to_owned()));
    let expired = |name: &str| unauthenticated(&format!("the certificate of {name} expired 3 h ago"));
    let nobody = |rule: &Rule| {
        if rule.access == "Everybody" { None } else { unauthenticated(&format!("this needs {}", needs(rule))) }
    };
    let late_node = expired(&worker_id);
    let may_renew = late_node.clone();
    let (no_node, late_client) = (unknown("admin", &late), expired(&late));
    let late_there = late_client.clone();
    let callers = [
        Caller {
            who: "nobody",
            own: None,
            manager: Box::new(nobody),
            // It lets nobody in, and says nothing of what a manager would ask for.
            worker: Box::new(|_| unauthenticated("this needs ")),
        },
        refused("another authority's manager", foreign, alert(), alert()),
        known("a worker", worker, "worker", &worker_id, &["Everybody", "Renewal", "Node"]),
        known("a reader", reader, "read", &reader_name, &["Everybody", "Read"]),
        known("a deployer", deployer, "deploy", &deployer_name, &["Everybody", "Read", "Deploy"]),
        Caller {
            who: "a node with an expired certificate",
            own: Some(expired_node),
            manager: Box::new(move |rule| if rule.access == "Renewal" { None } else { may_renew.clone() }),
            worker: Box::new(move |_| late_node.clone()),
        },
        Caller {
            who: "an admin with an expired certificate",
            own: Some(expired_client),
            // The call for the next certificate is the one that forgives the time, but not who is no node.
            manager: Box::new(move |rule| if rule.access == "Renewal" { no_node.clone() } else { late_client.clone() }),
            worker: Box::new(move |_| late_there.clone()),
        },
        refused("a revoked admin", revoked, unknown("admin", &revoked_name), serves_managers()),
        refused("a removed worker", removed, gone(&removed_id), serves_managers()),
    ];
    let authority = hosts.host(MANAGER).data().join("identity/ca.pem");
    let worker_name = format!("{worker_id}.node.orch.internal");
    let mut found = Vec::new();
    for caller in &callers {
        let at = |to: usize, name| Call {
            from: hosts.host(STRANGER),
            to: address(u8::try_from(to).expect("a few hosts")),
            name,
            authority: &authority,
            own: caller.own.as_deref(),
        };
        found.extend(differences(caller, &at(MANAGER, "manager.orch.internal"), &caller.manager));
        found.extend(differences(caller, &at(WORKER, &worker_name), &caller.worker));
    }
    assert!(found.is_empty(), "{} answers are not as expected:\n{}", found.len(), found.join("\n"));
    reads(&hosts, &authority);
    // None of all that has done anything.
    assert_eq!(hosts.nodes(MANAGER).len(), 2);
    assert_eq!(hosts.info(WORKER)["connected"], true);
}

/// Who may read does: a guard that refuses everything would look well otherwise.
fn reads(hosts: &Hosts, authority: &Path) {
    let own = hosts.host(STRANGER).folder().join("reader");
    let to = address(1);
    let call = Call { from: hosts.host(STRANGER), to, name: "manager.orch.internal", authority, own: Some(&own) };
    let read = |path: &str| Request { method: "GET".to_owned(), path: path.to_owned(), body: String::new() };
    let paths = rules().into_iter().filter(|rule| rule.method == "GET" && rule.access == "Read").map(|rule| rule.path);
    let paths: Vec<String> = paths.filter(|path| !path.contains('{') && path != "/v1/events").collect();
    let requests: Vec<Request> = paths.iter().map(|path| read(path)).collect();
    for (request, answer) in requests.iter().zip(call.ask(&requests)) {
        assert!(![0, 401, 403].contains(&answer.code), "{}: {answer:?}", request.path);
    }
    saw(&format!("a reader: {} routes let it in", requests.len()));
}

#[test]
fn a_token_that_does_not_count_lets_nobody_in_and_says_why() {
    let hosts = Hosts::new(4);
    hosts.init();
    let refused = |token: &str, why: &str| {
        hosts.join(3, token).fails().says(&[why]);
        let info = hosts.info(3);
        assert_eq!((&info["open"], &info["role"]), (&false.into(), &"manager".into()), "it is alone as before: {info}");
    };
    refused("SWMTKN-1-x", "does not begin with ORCH-");
    hosts.host(4).orch(&["cluster", "init", "--advertise-addr", "192.0.2.4"]).ok();
    let foreign = hosts.host(4).orch(&["-q", "cluster", "token", "worker"]).ok().text().to_owned();
    refused(&foreign, "does not belong to the cluster that this token is for");
    let good = hosts.token(&["worker"]);
    let last = good.chars().last().expect("it has digits");
    let wrong = format!("{}{}", &good[..good.len() - 1], if last == '0' { '1' } else { '0' });
    refused(&wrong, "does not count");

    // Whoever writes another role into it becomes what it was made for.
    let once = hosts.token(&["worker", "--once"]);
    hosts.join(2, &once.replacen("-w-", "-m-", 1)).ok();
    assert_eq!(hosts.info(2)["role"], "worker");
    refused(&once, "has been used up");

    let rotated = hosts.token(&["worker", "--rotate"]);
    refused(&good, "was rotated");
    let short = hosts.token(&["worker", "--ttl", "30m"]);
    set_clocks(&hosts, &[MANAGER], HOUR);
    // Also when it says that it counts for longer.
    refused(&short, "it has expired");
    let end = short.split('-').nth(3).expect("its fourth word is its end");
    let later = u64::from_str_radix(end, 16).expect("it is a number") + 7200;
    refused(&short.replacen(end, &format!("{later:x}"), 1), "it has expired");

    // A clock that is an hour off does no harm, to either side.
    let joined = hosts.join(3, &rotated).ok();
    joined.says(&["this host's clock is 60 min behind the cluster's"]);
    hosts.host(MANAGER).orch(&["cluster", "token", "worker", "--revoke"]).ok();
    hosts.host(3).orch(&["cluster", "leave"]).ok();
    refused(&rotated, "does not count");
    assert_eq!(hosts.nodes(MANAGER).len(), 2);
}
