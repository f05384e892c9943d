//! Several hosts as one: real processes on machines of their own, joined by one switch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use orch_tests::cluster::Hosts;
use orch_tests::machine::Place;
use orch_tests::segment::address;
use orch_tests::wait::{PATIENCE, eventually, saw, until};
use serde_json::Value;

/// Six tasks that only wait.
const SPREAD: &str = "
services:
  idle:
    image: busybox
    command: [sleep, infinity]
    init: true
    deploy:
      replicas: 6
";

#[test]
fn two_hosts_join_a_third_and_are_known_by_all_managers() {
    let hosts = Hosts::cluster(&["worker", "manager"]);
    let nodes = hosts.nodes(1);
    let roles: Vec<&str> = nodes.iter().filter_map(|node| node["role"].as_str()).collect();
    assert_eq!(roles.iter().filter(|role| **role == "manager").count(), 2, "{nodes:?}");
    assert_eq!(roles.iter().filter(|role| **role == "worker").count(), 1, "{nodes:?}");
    eventually(PATIENCE, "the second manager knows all nodes", || {
        let known = hosts.nodes(3);
        if known == nodes { Ok(()) } else { Err(format!("{known:?}")) }
    });
    let worker = hosts.info(2);
    assert_eq!(worker["role"], "worker", "{worker}");
    assert_eq!(worker["connected"], true, "{worker}");
    eventually(PATIENCE, "all three are ready, by their host names", || {
        let nodes = hosts.host(3).orch(&["node", "ls", "--format", "json"]).ok().json_lines();
        let ready = nodes.iter().filter(|node| node["state"] == "ready").filter_map(|node| node["hostname"].as_str());
        let ready: BTreeSet<&str> = ready.collect();
        if ready == BTreeSet::from(["host1", "host2", "host3"]) { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
}

#[test]
fn a_stack_is_spread_over_all_hosts_whichever_manager_is_asked() {
    let hosts = Hosts::cluster(&["worker", "manager"]);
    hosts.load("busybox");
    // The second manager does not lead: it passes on.
    let asked = hosts.host(3);
    asked.stack(SPREAD);
    asked.up();
    let tasks = asked.ps();
    let on: BTreeSet<&str> = tasks.iter().filter_map(|task| task["node"].as_str()).collect();
    assert_eq!((tasks.len(), on.len()), (6, 3), "{tasks:?}");
    for host in &hosts.hosts {
        let running = host.orch(&["container", "ls", "--format", "json"]).ok().json_lines();
        assert_eq!(running.len(), 2, "{running:?}");
    }
    let refused = hosts.host(2).orch(&["ls"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("is a worker") && refused.stderr.contains("192.0.2.1"), "{}", refused.stderr);
    asked.down();
    for host in &hosts.hosts {
        eventually(PATIENCE, "nothing of it runs", || {
            let left = host.orch(&["container", "ls", "-a", "--format", "json"]).ok().json_lines();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
    }
}

#[test]
fn the_leader_may_die_and_changes_are_taken_again() {
    let hosts = Hosts::cluster(&["manager", "manager"]);
    // Both of the others must be voters: the number of voters is odd by rule, one until both have caught up.
    eventually(PATIENCE, "all three know who leads and that three vote", || {
        let infos: Vec<Value> = (1..=3).map(|number| hosts.info(number)).collect();
        let agree = infos.iter().all(|info| {
            info["leader"] == infos[0]["node"] && info["voters"].as_array().is_some_and(|voters| voters.len() == 3)
        });
        if agree { Ok(()) } else { Err(format!("{infos:?}")) }
    });
    hosts.host(2).orch(&["volume", "create", "before"]).ok();
    hosts.host(1).kill_agent();
    hosts.host(2).orch(&["volume", "create", "after"]).ok();
    let volumes = hosts.host(3).orch(&["volume", "ls", "-q"]).ok();
    assert!(volumes.text().contains("before") && volumes.text().contains("after"), "{}", volumes.text());
    assert_ne!(hosts.info(2)["leader"], hosts.info(1)["node"]);
    hosts.host(1).start_agent();
    eventually(PATIENCE, "the former leader follows", || {
        let (own, other) = (hosts.info(1), hosts.info(2));
        if own["leader"] == other["leader"] && own["leader"] != own["node"] { Ok(()) } else { Err(own.to_string()) }
    });
}

#[test]
fn a_host_that_cannot_join_is_told_why_and_stays_as_it_was() {
    let hosts = Hosts::new(3);
    hosts.init();
    let token = hosts.token(&["worker"]);
    let refused = |number: usize, token: &str, manager: &str, why: &str| {
        let output = hosts.host(number).orch(&["cluster", "join", "--token", token, manager]);
        assert_ne!(output.code, 0, "{}", output.stderr);
        assert!(output.stderr.contains(why), "expected `{why}`, was told: {}", output.stderr);
    };
    let (first, second) = (address(1).to_string(), address(2).to_string());
    refused(2, "nonsense", &first, "not a join token");
    refused(2, &token, "203.0.113.7:x", "not an IP address");
    refused(3, &token, &second, "cannot connect to 192.0.2.2:7373");
    hosts.host(1).orch(&["cluster", "token", "worker", "--revoke"]).ok();
    refused(2, &token, &first, "does not count");
    hosts.host(2).load("busybox");
    hosts.host(2).stack(SPREAD);
    hosts.host(2).up();
    let token = hosts.token(&["worker"]);
    refused(2, &token, &first, "runs the stacks work");
    hosts.host(2).down();
    hosts.join(2, &token).ok();
    refused(2, &token, &first, "is a worker of cluster");
    refused(3, &token, &second, "is a node of the cluster, but not a manager");
    let again = hosts.host(1).orch(&["cluster", "init"]);
    assert!(again.code != 0 && again.stderr.contains("is a manager of cluster"), "{}", again.stderr);
    assert_eq!(hosts.info(3)["open"], false);
}

#[test]
fn a_worker_that_leaves_is_forgotten_and_alone_again() {
    let hosts = Hosts::cluster(&["worker"]);
    hosts.load("busybox");
    hosts.host(1).stack(SPREAD);
    hosts.host(1).up();
    let before = hosts.info(2);
    hosts.host(2).orch(&["cluster", "leave"]).ok();
    let after = hosts.info(2);
    assert_eq!(after["open"], false);
    assert!(after["id"] != before["id"] && after["node"] != before["node"], "{after}");
    assert_eq!(hosts.nodes(1).len(), 1);
    let left = hosts.host(2).orch(&["container", "ls", "-a", "--format", "json"]).ok().json_lines();
    assert!(left.is_empty(), "{left:?}");
    eventually(PATIENCE, "its tasks run on the other host", || {
        let tasks = hosts.host(1).ps();
        let runs = tasks.iter().filter(|task| task["state"] == "running").count();
        if runs == 6 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
}

#[test]
fn a_secret_is_in_no_file_of_any_host() {
    const SECRET: &str = "plaintext-of-a-secret-4711";
    let hosts = Hosts::cluster(&["worker", "manager"]);
    hosts.load("busybox");
    let host = hosts.host(1);
    host.stack(
        "
services:
  a:
    image: busybox
    command: [sleep, infinity]
    init: true
    secrets: [s]
    deploy:
      mode: global
secrets:
  s:
    environment: TOP_SECRET
",
    );
    host.invoke(&["up", "-d", "--wait"]).env("TOP_SECRET", SECRET).run().ok();
    assert_eq!(host.exec("a", "cat /run/secrets/s"), SECRET);
    for host in &hosts.hosts {
        let found = files_with(&host.data(), SECRET.as_bytes());
        assert!(found.is_empty(), "the secret lies in {found:?}");
    }
}

/// Files below a folder that hold these bytes.
fn files_with(root: &Path, bytes: &[u8]) -> Vec<String> {
    let holds = |path: &String| {
        std::fs::read(root.join(path)).is_ok_and(|content| content.windows(bytes.len()).any(|part| part == bytes))
    };
    let files = orch_tests::traces::tree(root).into_iter().filter(|path| !path.ends_with('/'));
    // Images are the same with and without a secret, and large.
    files.filter(|path| !path.starts_with("engine/images/")).filter(holds).collect()
}

#[test]
fn a_client_certificate_does_from_another_host_what_its_role_allows() {
    let hosts = Hosts::new(2);
    hosts.init();
    let folder = hosts.host(2).folder();
    let make = |role: &str| {
        let out = folder.join(role).to_string_lossy().into_owned();
        let name = hosts.host(1).orch(&["cluster", "client", "create", "alice", "--role", role, "-o", &out]).ok();
        name.text().trim().to_owned()
    };
    let (reader, _deployer) = (make("read"), make("deploy"));
    let call = |role: &str, arguments: &[&str]| {
        let server = format!("tcp://{}", address(1));
        let all = [&["--host", server.as_str()], arguments].concat();
        let path = folder.join(role).to_string_lossy().into_owned();
        hosts.host(2).invoke(&all).env("ORCH_CERT_PATH", &path).run()
    };
    call("read", &["volume", "ls"]).ok();
    let refused = call("read", &["volume", "create", "v"]);
    assert!(
        refused.code != 0 && refused.stderr.contains("it needs a client certificate with the role deploy"),
        "{}",
        refused.stderr
    );
    call("deploy", &["volume", "create", "v"]).ok();
    let refused = call("deploy", &["cluster", "token"]);
    assert!(refused.code != 0 && refused.stderr.contains("role admin"), "{}", refused.stderr);
    hosts.host(1).orch(&["cluster", "client", "rm", &reader]).ok();
    let refused = call("read", &["volume", "ls"]);
    assert!(refused.code != 0 && refused.stderr.contains("not known here, or was shut out"), "{}", refused.stderr);
    // All that somebody has, by the name that they were asked for with.
    hosts.host(1).orch(&["cluster", "client", "rm", "alice"]).ok();
    let refused = call("deploy", &["volume", "ls"]);
    assert!(refused.code != 0 && refused.stderr.contains("not known here, or was shut out"), "{}", refused.stderr);
    let missing = call("nowhere", &["volume", "ls"]);
    assert!(missing.code == 2 && missing.stderr.contains("needs a client certificate"), "{}", missing.stderr);
}

#[test]
fn a_host_that_is_cut_off_is_replaced_and_welcome_again() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    hosts.load("busybox");
    let host = hosts.host(1);
    host.stack(SPREAD);
    host.up();
    let lost = hosts.info(3)["node"].clone();
    hosts.segment.cut(3).expect("there is a cable");
    eventually(PATIENCE, "six tasks run on the other hosts", || {
        let tasks = host.ps();
        let well = tasks.iter().filter(|task| task["state"] == "running" && task["node"] != lost).count();
        if well == 6 { Ok(()) } else { Err(format!("{well} of {tasks:?}")) }
    });
    hosts.segment.mend(3).expect("there is a cable");
    eventually(PATIENCE, "it is connected again", || {
        let info = hosts.info(3);
        if info["connected"] == true { Ok(()) } else { Err(info.to_string()) }
    });
    eventually(PATIENCE, "no slot runs twice", || {
        let count = |number: usize| {
            let running = hosts.host(number).orch(&["container", "ls", "--format", "json"]).ok().json_lines();
            running.len()
        };
        let all: usize = (1..=3).map(count).sum();
        if all == 6 { Ok(()) } else { Err(format!("{all} containers run")) }
    });
}

#[test]
fn a_stack_that_was_taken_down_and_up_again_while_its_host_was_away_runs_there_when_it_is_back() {
    const PINNED: &str = r#"
name: pinned
services:
  idle:
    image: busybox
    # It takes its time to go.
    command: [sh, -c, "trap '' TERM; while :; do sleep 1; done"]
    restart: always
    stop_grace_period: 3s
    deploy: {placement: {constraints: [node.hostname == host2]}}
"#;
    let hosts = Hosts::cluster(&["worker"]);
    hosts.hosts.iter().for_each(|host| host.load("busybox"));
    let host = hosts.host(1);
    host.stack(PINNED);
    host.up();
    let containers = || -> Vec<Value> {
        let there = hosts.host(2).orch(&["container", "ls", "-a", "--format", "json"]).ok().json_lines();
        there.into_iter().map(|container| container["id"].clone()).collect()
    };
    let before = containers();
    hosts.segment.cut(2).expect("there is a cable");
    host.orch(&["down"]).ok();
    let up = host.start(&["up", "-d"]);
    up.says("a node to run on");
    assert_eq!(containers(), before, "nobody could tell it");
    hosts.segment.mend(2).expect("there is a cable");
    eventually(PATIENCE, "the new one runs, and nothing else", || {
        let (there, tasks) = (containers(), host.ps());
        let runs = tasks.len() == 1 && tasks[0]["state"] == "running";
        if runs && there.len() == 1 && there != before { Ok(()) } else { Err(format!("{there:?} {tasks:?}")) }
    });
    up.ends(PATIENCE).ok();
}

#[test]
fn certificates_renew_themselves_while_everything_goes_on() {
    let hosts = Hosts::new(2);
    // The shortest life in which a loaded machine still renews in time; expired ones count for another 90 minutes anyway.
    let arguments = ["cluster", "init", "--advertise-addr", "192.0.2.1", "--cert-expiry", "10s"];
    hosts.host(1).orch(&arguments).ok();
    let token = hosts.token(&["worker"]);
    hosts.join(2, &token).ok();
    let until = |number: usize| hosts.info(number)["certificate_until"].as_u64().expect("it has a certificate");
    for number in [1, 2] {
        let first = until(number);
        let renewed = |times: u64| {
            eventually(PATIENCE, &format!("host {number} has a newer certificate"), || {
                let now = until(number);
                if now > first + times * 4000 { Ok(()) } else { Err(format!("{now} after {first}")) }
            });
        };
        renewed(1);
        renewed(2);
    }
    assert_eq!(hosts.info(2)["connected"], true);
    hosts.host(1).orch(&["volume", "create", "v"]).ok();
}

#[test]
fn a_host_is_reached_by_whatever_ssh_reaches() {
    let hosts = Hosts::new(1);
    let host = hosts.host(1);
    // Stands in for ssh: what comes after the target is the command to run there.
    let ssh = host.folder().join("ssh");
    let program = orch_tests::host::binary();
    let script = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\necho \"$2\" >>{0}.log\nshift 3\nexec {1} \"$@\"\n",
        ssh.display(),
        program.display()
    );
    host.write("ssh", &script);
    host.sh(orch_tests::machine::Place::Host, &format!("chmod +x {}", ssh.display()));
    let call = |arguments: &[&str]| {
        let all = [&["--host", "ssh://root@elsewhere:2222"], arguments].concat();
        host.invoke(&all).env("ORCH_SSH", &ssh.to_string_lossy()).run()
    };
    call(&["volume", "create", "v"]).ok();
    assert_eq!(call(&["volume", "ls", "-q"]).ok().text().trim(), "v");
    let log = std::fs::read_to_string(ssh.with_extension("log")).expect("it was used");
    assert!(log.lines().all(|target| target == "root@elsewhere") && log.lines().count() >= 2, "{log}");
    let refused = host.orch(&["--host", "ssh://-oProxyCommand=x", "ls"]);
    assert!(refused.code == 2 && refused.stderr.contains("not understood"), "{}", refused.stderr);
}

#[test]
fn a_worker_is_promoted_and_a_manager_demoted_and_one_leaves() {
    let hosts = Hosts::cluster(&["worker", "manager"]);
    let becomes = |number: usize, role: &str| {
        eventually(PATIENCE, &format!("host {number} is a {role}"), || {
            let output = hosts.host(number).orch(&["cluster", "info", "--format", "json"]);
            // Its agent starts again meanwhile.
            let info = if output.code == 0 { output.json() } else { Value::Null };
            let settled = info["role"] == role && info["connected"] == true && info["leader"] != "";
            if settled { Ok(()) } else { Err(format!("{info} {}", output.stderr)) }
        });
    };
    hosts.host(1).orch(&["node", "promote", "host2"]).ok();
    becomes(2, "manager");
    // The leader may be another one by now, which takes a moment.
    eventually(PATIENCE, "the new manager takes changes", || {
        let output = hosts.host(2).orch(&["volume", "create", "by-the-new-one"]);
        if output.code == 0 { Ok(()) } else { Err(output.stderr) }
    });
    hosts.host(1).orch(&["node", "demote", "host3"]).ok();
    becomes(3, "worker");
    for asked in [&["ls"][..], &["secret", "ls"], &["config", "inspect", "one"]] {
        let refused = hosts.host(3).orch(asked);
        assert!(refused.code != 0 && refused.stderr.contains("is a worker"), "{}", refused.stderr);
    }
    let before = hosts.info(2);
    hosts.host(2).orch(&["cluster", "leave"]).ok();
    assert_ne!(hosts.info(2)["id"], before["id"]);
    eventually(PATIENCE, "the others know", || {
        let nodes = hosts.nodes(1);
        if nodes.len() == 2 { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
    let last = hosts.host(1).orch(&["cluster", "leave"]);
    assert!(last.code != 0 && last.stderr.contains("last manager"), "{}", last.stderr);
    hosts.host(1).orch(&["volume", "create", "still-taken"]).ok();
}

#[test]
fn commands_reach_into_containers_on_other_hosts() {
    let hosts = Hosts::cluster(&["worker"]);
    hosts.load("busybox");
    let host = hosts.host(1);
    host.stack(
        "
services:
  talk:
    image: busybox
    command: [sh, -c, 'echo here is $$(hostname); exec sleep infinity']
    init: true
    deploy:
      mode: global
",
    );
    host.up();
    let tasks = host.ps();
    let worker = hosts.info(2)["node"].clone();
    let far = tasks.iter().find(|task| task["node"] == worker).expect("one is on the other host");
    let slot = far["slot"].to_string();
    let said = host.orch(&["exec", "-T", "--index", &slot, "talk", "sh", "-c", "echo on $(hostname); exit 7"]);
    assert!(said.code == 7 && said.text().starts_with("on "), "{} {}", said.text(), said.stderr);
    let logs = host.orch(&["logs", "talk"]).ok();
    assert_eq!(logs.text().matches("here is").count(), 2, "{}", logs.text());
    let copied = host.folder().join("hosts").to_string_lossy().into_owned();
    host.orch(&["cp", "--index", &slot, "talk:/etc/hosts", &copied]).ok();
    assert!(std::fs::read_to_string(&copied).expect("it was copied").contains("localhost"));
}

/// A page on each of three hosts that says its container's name, published on every host; and a caller.
const PAGES: &str = "
name: spread
services:
  web:
    image: busybox
    init: true
    command: [sh, -c, 'mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy: {mode: global}
    ports: ['8080:80']
  caller:
    image: busybox
    init: true
    command: sleep infinity
    deploy: {placement: {constraints: ['node.role == manager']}}
";

#[test]
fn a_page_is_served_through_any_host_and_by_name_from_containers_on_all() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    hosts.load("busybox");
    hosts.host(1).stack(PAGES);
    hosts.host(1).up();
    let page = |number: u8| hosts.host(1).page(Place::Host, address(number), 8080, "/");
    for number in 1..=3 {
        eventually(PATIENCE, "each host leads to the containers on all three", || {
            let mut seen = BTreeSet::new();
            for _ in 0..30 {
                seen.insert(page(number)?);
            }
            if seen.len() == 3 { Ok(()) } else { Err(format!("through host {number}: {seen:?}")) }
        });
    }
    // Whoever asks is told so, as on one host.
    assert_eq!(hosts.host(1).orch(&["port", "web", "80"]).ok().text().trim(), "0.0.0.0:8080");
    let web = hosts.host(1).container("web");
    assert_eq!(web["ports"][0]["published"], 8080, "{web}");
    let script = "for i in $(seq 30); do wget -q -O - http://web/ || echo failed; done | sort -u";
    let seen = hosts.host(1).exec("caller", script);
    assert_eq!(seen.lines().count(), 3, "by name: {seen}");
    hosts.host(1).down();
}

/// Six pages on three hosts, published on each, that say `version`.
fn rolling(version: &str) -> String {
    format!(
        "
name: roll
services:
  web:
    image: busybox
    init: true
    environment: {{VERSION: '{version}'}}
    command: [sh, -c, 'mkdir /www; echo $$VERSION >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy: {{replicas: 6, update_config: {{parallelism: 2, order: start-first}}}}
    healthcheck:
      {{test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1/'], start_period: 20s, start_interval: 100ms, interval: 1s}}
    ports: ['8080:80']
"
    )
}

/// Does something while pages are asked for through every host without a pause. None may fail.
fn while_everybody_asks(hosts: &Hosts, act: impl FnOnce()) {
    let ((), answers) = hosts.while_asking(1, act);
    for (answers, number) in answers.iter().zip(1..) {
        let failed: Vec<_> = answers.iter().filter(|(answer, _)| answer.is_err()).collect();
        assert!(failed.is_empty() && !answers.is_empty(), "through host {number}: {answers:?}");
        saw(&format!("through host {number}: {} pages, none failed", answers.values().sum::<usize>()));
    }
}

#[test]
fn no_request_fails_while_a_service_or_a_task_of_it_is_restarted() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    hosts.load("busybox");
    let host = hosts.host(1);
    host.stack(&rolling("one"));
    host.up();
    let started = || -> BTreeMap<String, String> {
        let task = |task: Value| (task["name"].to_string(), task["started_at"].to_string());
        host.ps().into_iter().map(task).collect()
    };
    let before = started();
    while_everybody_asks(&hosts, || drop(host.orch(&["restart", "web"]).ok()));
    let after = started();
    assert!(before.len() == 6 && before.iter().all(|(task, at)| after.get(task).is_some_and(|later| later != at)));
    while_everybody_asks(&hosts, || {
        host.orch(&["container", "restart", "roll-web-3"]).ok();
        eventually(PATIENCE, "this task alone has been started again", || {
            let now = started();
            let others: Vec<_> = now.iter().filter(|(task, at)| after.get(*task) != Some(*at)).collect();
            if others.len() == 1 && others[0].0.contains("roll-web-3") { Ok(()) } else { Err(format!("{others:?}")) }
        });
    });
    host.down();
}

#[test]
fn no_request_fails_while_a_service_is_updated_and_a_host_that_was_cut_off_is_served_again() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    hosts.load("busybox");
    hosts.host(1).stack(&rolling("one"));
    hosts.host(1).up();
    let page =
        |number: u8| hosts.host(1).page(Place::Host, address(number), 8080, "/").map(|page| page.trim().to_owned());
    while_everybody_asks(&hosts, || {
        hosts.host(1).stack(&rolling("two"));
        hosts.host(1).up();
    });
    assert_eq!(page(1), Ok("two".to_owned()), "the update came to its end");
    hosts.segment.cut(2).expect("a cable can be cut");
    eventually(PATIENCE, "nobody is led to the host that is cut off", || (0..12).try_for_each(|_| page(1).map(drop)));
    hosts.segment.mend(2).expect("a cable can be mended");
    eventually(PATIENCE, "the host that is back leads again", || page(2).map(drop));
    hosts.host(1).down();
}

#[test]
fn a_worker_goes_to_another_manager_when_its_own_has_lost_the_others() {
    let hosts = Hosts::cluster(&["manager", "manager", "worker"]);
    let voting = |number: usize| hosts.info(number)["voters"].as_array().map_or(0, Vec::len);
    until(PATIENCE, "all managers vote", || (1..=3).all(|number| voting(number) == 3));
    hosts.host(4).load("busybox");
    let manager = || {
        let log = hosts.host(4).agent_log();
        let last = log.lines().rfind(|line| line.contains("connected to a manager")).map(str::to_owned);
        let number = |number: &u8| last.as_ref().is_some_and(|line| line.contains(&format!("={}:", address(*number))));
        usize::from((1..=3).find(number).expect("it is connected to one of them"))
    };
    let former = manager();
    let others: Vec<usize> = (1..=3).filter(|number| *number != former).collect();
    // It still reaches all of them; its manager reaches no other.
    hosts.part(&[former], &others);
    until(PATIENCE, "it has gone to another", || manager() != former);
    let asked = hosts.host(others[0]);
    asked.stack(&format!("{SPREAD}      placement:\n        constraints: [node.hostname == host4]\n"));
    asked.up();
    assert_eq!(hosts.running(4).len(), 6, "what it was told by the other, and has said there, is whole");
    hosts.heal();
    hosts.all_ready(others[0]);
}

#[test]
fn a_worker_that_was_removed_says_so_once_asks_rarely_and_runs_on_until_it_leaves() {
    const SAID: &str = "this node was removed from its cluster";
    let hosts = Hosts::cluster(&["worker"]);
    hosts.load("busybox");
    hosts.host(1).stack(SPREAD);
    hosts.host(1).up();
    let before = hosts.running(2);
    assert_eq!(before.len(), 3, "{before:?}");
    hosts.host(1).orch(&["node", "rm", "--force", "host2"]).ok();
    eventually(PATIENCE, "it has been told", || {
        let info = hosts.info(2);
        if info["removed"] == true && info["connected"] == false { Ok(()) } else { Err(info.to_string()) }
    });
    // Connections that it has begun since it is up.
    let begun = || {
        let counters = hosts.host(2).sh(Place::Host, "grep Tcp: /proc/net/snmp");
        let column = |line: &str, place: usize| line.split_whitespace().nth(place).map(str::to_owned);
        let (names, values) = counters.trim().split_once('\n').expect("names and values");
        let place = names.split_whitespace().position(|name| name == "ActiveOpens").expect("the kernel counts them");
        column(values, place).and_then(|count| count.parse::<u64>().ok()).expect("a number")
    };
    let (since, from) = (Instant::now(), begun());
    until(PATIENCE, "four seconds are over", || since.elapsed() > Duration::from_secs(4));
    let more = begun() - from;
    assert!(more <= 2, "it has begun {more} connections in four seconds");
    assert_eq!(hosts.host(2).agent_log().matches(SAID).count(), 1, "{}", hosts.host(2).agent_log());
    let text = hosts.host(2).orch(&["cluster", "status"]).ok().told();
    assert!(text.contains("which was removed from the cluster") && text.contains("orch cluster leave"), "{text}");
    let text = hosts.host(2).orch(&["system", "info"]).ok().told();
    assert!(text.contains("removed from cluster "), "{text}");
    assert_eq!(hosts.running(2), before, "what it ran goes on");
    // Also over a start of its agent, which hears of it anew.
    hosts.host(2).stop_agent();
    hosts.host(2).start_agent();
    eventually(PATIENCE, "it has been told again", || {
        let info = hosts.info(2);
        if info["removed"] == true { Ok(()) } else { Err(info.to_string()) }
    });
    assert_eq!(hosts.running(2), before, "what it ran goes on");
    hosts.host(2).orch(&["cluster", "leave"]).ok();
    assert_eq!((hosts.running(2).len(), &hosts.info(2)["open"]), (0, &Value::Bool(false)));
    let token = hosts.token(&["worker"]);
    hosts.join(2, &token).ok();
    assert_eq!(hosts.nodes(1).len(), 2);
}

#[test]
fn who_waits_for_a_lost_host_with_its_data_says_so_and_nobody_gives_the_data_up_by_the_way() {
    const DATA: &str = "
name: kept
services:
  db: {image: busybox, command: [sleep, infinity], init: true, volumes: ['data:/data'], deploy: {placement: {constraints: ['node.hostname == host2']}}}
  all: {image: busybox, command: [sleep, infinity], init: true, deploy: {mode: global}}
volumes: {data: {}}
";
    let hosts = Hosts::cluster(&["worker"]);
    hosts.load("busybox");
    let host = hosts.host(1);
    host.stack(DATA);
    host.up();
    let refused = hosts.host(2).orch(&["cluster", "leave"]);
    refused.fails().says(&["node host2 has what is nowhere else: volume kept_data", "--force"]);
    hosts.segment.cut(2).expect("there is a cable");
    eventually(PATIENCE, "it is known to be lost", || {
        let said = host.orch(&["service", "explain", "db"]).ok().text().to_owned();
        let wanted = "kept-db-1 was running on host2, which is down; volume kept_data is nowhere else";
        if said.contains(wanted) { Ok(()) } else { Err(said) }
    });
    let services = host.orch(&["service", "ls", "--format", "json"]).ok().json_lines();
    let running: Vec<_> = services.iter().map(|service| (&service["name"], &service["running"])).collect();
    assert_eq!(running, [(&Value::from("all"), &Value::from(1)), (&Value::from("db"), &Value::from(0))]);
    let up = host.orch(&["up", "-d", "--wait-timeout", "1"]);
    assert_eq!(up.code, 124, "{}", up.stderr);
    assert!(up.stderr.contains("kept-db-1: Waiting for its node host2, which is down"), "{}", up.stderr);
    // A service on every node waits for none that is lost.
    host.orch(&["up", "-d", "all"]).ok();
    let refused = host.orch(&["node", "rm", "host2"]);
    refused.fails().says(&["node host2 has what is nowhere else: volume kept_data", "--force"]);
    hosts.segment.mend(2).expect("there is a cable");
    host.up();
    hosts.host(2).orch(&["cluster", "leave", "--force"]).ok();
}

#[test]
fn a_command_for_a_container_on_a_host_that_does_not_answer_ends_and_says_so() {
    const THERE: &str = "
name: there
services:
  idle: {image: busybox, command: [sleep, infinity], init: true, deploy: {placement: {constraints: ['node.hostname == host2']}}}
";
    let hosts = Hosts::cluster(&["worker"]);
    hosts.load("busybox");
    let host = hosts.host(1);
    host.stack(THERE);
    host.up();
    // Nothing refuses: what is sent there is lost, and the kernel tries again for two minutes.
    hosts.part(&[1], &[2]);
    host.orch(&["exec", "idle", "true"]).fails().says(&["host2", "cannot be reached", "it does not answer"]);
    host.orch(&["logs"]).says(&["the log of idle-1 cannot be read on", "it does not answer"]);
    hosts.heal();
}
