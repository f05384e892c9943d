//! What fails on several hosts: leaders that die or stand still, links that are cut in one direction or both, hosts that are gone, full disks.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use orch_tests::cluster::Hosts;
use orch_tests::host::Host;
use orch_tests::machine::Place;
use orch_tests::output::Output;
use orch_tests::process::Identity;
use orch_tests::segment::address;
use orch_tests::wait::{PATIENCE, eventually, saw, took, until};
use serde_json::Value;

/// A task on every node, which only waits.
const EVERYWHERE: &str = "
name: everywhere
services:
  idle: {image: busybox, command: [sleep, infinity], init: true, deploy: {mode: global}}
";

fn with_busybox(hosts: Hosts) -> Hosts {
    hosts.hosts.iter().for_each(|host| host.load("busybox"));
    hosts
}

/// A change that every manager takes: a label of the first host's node.
const CHANGE: &[&str] = &["node", "update", "host1", "--label-add"];

fn make(host: &Host, label: &str) {
    host.orch(&[CHANGE, &[&format!("{label}=1")]].concat()).ok();
}

/// What has been made, as one host knows it.
fn made(host: &Host) -> Vec<String> {
    let nodes = host.orch(&["node", "ls", "--format", "json"]).ok().json_lines();
    let first = nodes.iter().find(|node| node["hostname"] == "host1").expect("the first host is known");
    first["labels"].as_object().into_iter().flatten().map(|(label, _)| label.clone()).collect()
}

/// All containers of all hosts, with their processes.
fn all_running(hosts: &Hosts) -> Vec<BTreeMap<String, Identity>> {
    (1..=hosts.hosts.len()).map(|number| hosts.running(number)).collect()
}

/// Waits until so long has passed since `begun`: a fault lasts for a time, whatever else happens.
fn lasts(begun: Instant, time: Duration) {
    until(time + PATIENCE, "the fault has lasted", || begun.elapsed() >= time);
}

#[test]
fn five_hosts_become_five_managers() {
    let alone = Hosts::new(5);
    let begun = Instant::now();
    alone.init();
    let token = alone.token(&["manager"]);
    for number in 2..=5 {
        alone.join(number, &token).ok();
    }
    alone.all_vote();
    took("five managers from five hosts", begun);
    alone.all_ready(5);
    make(alone.host(4), "v");
    assert_eq!(made(alone.host(2)), ["v"]);
}

#[test]
fn a_leader_that_stood_still_decides_nothing_and_nothing_restarts() {
    let hosts = with_busybox(Hosts::managers(3));
    hosts.host(1).stack(EVERYWHERE);
    hosts.host(1).up();
    let before = all_running(&hosts);
    let leader = hosts.leader(1);
    let other = leader % 3 + 1;
    let agent = hosts.host(leader).agent().expect("the leader runs");
    hosts.host(leader).signal(agent, Signal::SIGSTOP);
    let begun = Instant::now();
    // What it is asked for meanwhile it finds in its socket when it goes on, believing that it leads.
    let asked = hosts.host(leader).start(&[CHANGE, &["asked-while-it-stood=1"]].concat());
    make(hosts.host(other), "by-the-next-leader");
    took("leader stopped → change taken", begun);
    let next = hosts.leader(other);
    assert_ne!(next, leader);
    lasts(begun, Duration::from_secs(10));
    let reading = hosts.host(leader).start(&["node", "ls", "--format", "json"]);
    hosts.host(leader).signal(agent, Signal::SIGCONT);
    let seen = reading.ends(PATIENCE).ok();
    assert!(seen.text().contains("by-the-next-leader"), "it answered from what it knew before: {}", seen.text());
    asked.ends(PATIENCE).ok();
    eventually(PATIENCE, "the change went through the leader that there is", || {
        let known = made(hosts.host(next));
        if known == ["asked-while-it-stood", "by-the-next-leader"] { Ok(()) } else { Err(format!("{known:?}")) }
    });
    hosts.all_vote();
    hosts.all_ready(other);
    assert_eq!(all_running(&hosts), before, "containers run on as they were");
}

/// Cuts managers in two, the leader among the few and then among the many.
fn cut_in_two(hosts: &Hosts) {
    let count = hosts.hosts.len();
    for leader_is_cut in [true, false] {
        let leader = hosts.leader(1);
        let others: Vec<usize> = (1..=count).filter(|number| *number != leader).collect();
        let minority = (count - 1) / 2;
        let (few, most) = if leader_is_cut {
            ([&[leader], &others[..minority - 1]].concat(), others[minority - 1..].to_vec())
        } else {
            (others[..minority].to_vec(), [&[leader], &others[minority..]].concat())
        };
        make(hosts.host(most[0]), &format!("before-{leader_is_cut}"));
        hosts.part(&few, &most);
        let begun = Instant::now();
        let (taken, refused) = (format!("taken-{leader_is_cut}"), format!("refused-{leader_is_cut}"));
        for number in &most {
            make(hosts.host(*number), &format!("{taken}-{number}"));
        }
        took(
            &format!("cut (leader among the few: {leader_is_cut}) → majority has taken {} changes", most.len()),
            begun,
        );
        for number in &few {
            let output = hosts.host(*number).orch(&[CHANGE, &[&format!("{refused}=1")]].concat()).fails();
            assert!(output.stderr.contains("leader"), "it says why: {}", output.told());
            // What it knows it still shows.
            assert!(made(hosts.host(*number)).contains(&format!("before-{leader_is_cut}")));
        }
        hosts.heal();
        let healed = Instant::now();
        hosts.all_vote();
        let known = made(hosts.host(most[0]));
        assert!(known.iter().any(|name| name.starts_with(&taken)));
        assert!(!known.contains(&refused), "what was refused is not done: {known:?}");
        for number in 1..=count {
            assert_eq!(made(hosts.host(number)), known, "host {number}");
        }
        took("healed → all agree", healed);
    }
}

#[test]
fn a_minority_takes_nothing_and_a_majority_everything_whoever_led() {
    cut_in_two(&Hosts::managers(5));
}

#[test]
fn one_of_three_takes_nothing_and_the_others_everything_whoever_led() {
    cut_in_two(&Hosts::managers(3));
}

#[test]
fn a_host_that_hears_nobody_neither_leads_nor_unseats_the_leader() {
    let hosts = Hosts::managers(3);
    let leader = hosts.leader(1);
    let (second, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    // It speaks and hears nothing: its heartbeats alone would keep it in office for ever.
    hosts.deafen(leader, &[second, third]);
    let begun = Instant::now();
    make(hosts.host(second), "the-leader-is-deaf");
    took("leader deaf → change taken", begun);
    let next = hosts.leader(second);
    assert_ne!(next, leader);
    hosts.heal();
    hosts.all_vote();
    let leader = hosts.leader(1);
    let follower = leader % 3 + 1;
    let term = |number: usize| hosts.info(number)["term"].as_u64();
    let before = term(leader);
    hosts.deafen(follower, &[leader]);
    let begun = Instant::now();
    lasts(begun, Duration::from_secs(4));
    assert_eq!(
        (hosts.leader(leader), term(leader)),
        (leader, before),
        "one that misses its heartbeats calls no election"
    );
    make(hosts.host(leader), "a-follower-is-deaf");
    hosts.heal();
    hosts.all_vote();
    assert!(made(hosts.host(follower)).contains(&"a-follower-is-deaf".to_owned()));
}

/// A page on every host, and somebody on every host who asks for it by name.
const NAMES: &str = "
name: names
services:
  web:
    image: busybox
    init: true
    command: [sh, -c, 'mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy: {mode: global}
  direct:
    image: busybox
    init: true
    command: [sh, -c, 'mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy: {mode: global, endpoint_mode: dnsrr}
  caller: {image: busybox, init: true, command: [sleep, infinity], deploy: {mode: global}}
";

/// The container on each host that asks for names.
fn callers(hosts: &Hosts) -> Vec<String> {
    let caller = |number: usize| {
        let running = hosts.running(number);
        running.into_keys().find(|name| name.contains("caller")).expect("a caller runs on every host")
    };
    (1..=hosts.hosts.len()).map(caller).collect()
}

/// Whether who asks on a host reaches the containers of all hosts: through the address of the service, and by each of the addresses that the
/// other one's name has.
fn reaches_all(hosts: &Hosts, number: usize, caller: &str) -> Result<(), String> {
    let script = "for i in $(seq 25); do timeout 2 wget -q -O - http://web/ || { echo failed; break; }; done | sort -u; \
        nslookup direct 127.0.0.11 2>/dev/null | awk '/^Address/ && !/127.0.0.11/ {print $NF}' | sort -u | \
        while read a; do timeout 2 wget -q -O - http://$a/ || echo failed; done";
    let asked = hosts.host(number).orch(&["container", "exec", caller, "sh", "-c", script]);
    let names = asked.lines();
    if names.len() == 2 * hosts.hosts.len() && !names.contains(&"failed") {
        Ok(())
    } else {
        Err(format!("host {number}: {}", asked.told()))
    }
}

#[test]
fn every_name_is_right_again_by_itself_when_a_link_is_back() {
    let hosts = with_busybox(Hosts::cluster(&["worker", "worker"]));
    hosts.host(1).stack(NAMES);
    hosts.host(1).up();
    let callers = callers(&hosts);
    let right = |number: usize| reaches_all(&hosts, number, &callers[number - 1]);
    for number in 1..=3 {
        eventually(PATIENCE, "every caller reaches all", || right(number));
    }
    let before = all_running(&hosts);
    hosts.segment.cut(3).expect("there is a cable");
    let begun = Instant::now();
    eventually(PATIENCE, "nobody is sent to the host that is cut off", || {
        let script = "for i in 1 2 3 4 5 6 7 8 9; do timeout 2 wget -q -O - http://web/ || echo failed; done | sort -u";
        let asked = hosts.host(1).orch(&["container", "exec", &callers[0], "sh", "-c", script]);
        if asked.lines().len() == 2 && !asked.text().contains("failed") { Ok(()) } else { Err(asked.told()) }
    });
    took("cut → nobody is sent there", begun);
    lasts(begun, Duration::from_secs(20));
    let since = index(hosts.host(1));
    hosts.segment.mend(3).expect("there is a cable");
    let (mended, day) = (Instant::now(), time_of_day());
    std::thread::scope(|scope| {
        for number in 1..=3 {
            let right = &right;
            scope.spawn(move || {
                let mut looked = Instant::now();
                eventually(PATIENCE, "every caller reaches all again", || {
                    looked = Instant::now();
                    right(number)
                });
                saw(&format!(
                    "mended → host {number} reaches all, by a look begun after {:.2} s",
                    (looked - mended).as_secs_f64()
                ));
            });
        }
    });
    tell_parts(hosts.host(1), since, day);
    assert_eq!(all_running(&hosts), before, "nothing was restarted");
}

#[test]
fn agents_of_all_hosts_are_killed_and_started_and_nothing_restarts() {
    let hosts = with_busybox(Hosts::managers(3));
    hosts.host(1).stack(EVERYWHERE);
    hosts.host(1).up();
    let before = all_running(&hosts);
    make(hosts.host(2), "kept");
    for host in &hosts.hosts {
        host.kill_agent();
    }
    let begun = Instant::now();
    for host in &hosts.hosts {
        host.start_agent();
    }
    make(hosts.host(3), "taken-again");
    took("all agents killed → change taken", begun);
    hosts.all_vote();
    hosts.all_ready(1);
    assert_eq!(made(hosts.host(1)), ["kept", "taken-again"]);
    assert_eq!(all_running(&hosts), before, "containers run on as they were");
}

/// Turns a bit over in the middle of what a file has.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("it is there");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty");
    bytes[end / 2] ^= 16;
    std::fs::write(path, bytes).expect("the disk takes it");
}

#[test]
fn a_manager_whose_control_log_is_damaged_or_gone_takes_part_anew_by_itself() {
    let hosts = with_busybox(Hosts::managers(3));
    hosts.host(1).stack(EVERYWHERE);
    hosts.host(1).up();
    make(hosts.host(2), "before");
    let before = all_running(&hosts);
    // The first manager of all was never invited, the second was.
    for number in [1, 2] {
        let control = hosts.host(number).data().join("control");
        hosts.host(number).stop_agent();
        make(hosts.host(3), &format!("without{number}"));
        if number == 1 {
            damage(&control.join("log"))
        } else {
            std::fs::remove_file(control.join("log")).expect("it is there")
        }
        hosts.host(number).start_agent();
        hosts.all_vote();
        assert!(number == 2 || control.join("log.aside").exists(), "what is left is kept");
        make(hosts.host(number), &format!("with{number}"));
    }
    assert_eq!(made(hosts.host(1)), ["before", "with1", "with2", "without1", "without2"]);
    assert_eq!(all_running(&hosts), before, "containers were touched");
}

#[test]
fn a_host_that_gets_another_address_is_found_again_by_all() {
    let hosts = with_busybox(Hosts::managers(3));
    hosts.host(1).stack(NAMES);
    hosts.host(1).up();
    let before = all_running(&hosts);
    let callers = callers(&hosts);
    let leader = hosts.leader(1);
    // The one that leads first, then one that follows.
    for (turn, moving) in [leader, leader % 3 + 1].into_iter().enumerate() {
        let former = address(u8::try_from(moving).expect("a few hosts"));
        let now = address(u8::try_from(101 + turn).expect("a few hosts"));
        hosts
            .host(moving)
            .sh(Place::Host, &format!("ip address del {former}/24 dev eth0; ip address add {now}/24 dev eth0"));
        let begun = Instant::now();
        for asked in 1..=3 {
            eventually(2 * PATIENCE, "all know where it is", || {
                let output = hosts.host(asked).orch(&["cluster", "info", "--format", "json"]);
                // The agent of the one that moves starts again meanwhile.
                let known = if output.code == 0 { output.json()["managers"].to_string() } else { output.stderr };
                if known.contains(&format!("{now}:")) && !known.contains(&format!("{former}:")) {
                    Ok(())
                } else {
                    Err(known)
                }
            });
        }
        took("another address → all managers know it", begun);
        make(hosts.host(moving), &format!("by-the-moved-{turn}"));
        hosts.all_ready(moving);
        for number in 1..=3 {
            eventually(PATIENCE, "containers reach each other", || reaches_all(&hosts, number, &callers[number - 1]));
        }
        took("another address → containers reach each other on all hosts", begun);
    }
    assert_eq!(all_running(&hosts), before, "nothing was restarted");
}

/// Fifty tasks that only wait.
const FIFTY: &str = "
name: fifty
services:
  idle: {image: busybox, command: [sleep, infinity], init: true, deploy: {replicas: 50}}
";

/// What has happened in the cluster since an index of its log: what, when it did first and last, and how often. Times are those of the day in
/// milliseconds, as events say them.
fn happened(host: &Host, since: u64) -> BTreeMap<String, (u64, u64, usize)> {
    // Away from the stack's file, which would be asked about alone.
    let since = since.to_string();
    let asked = host.invoke(&["events", "--no-follow", "--format", "json", "--since-index", &since]);
    let mut happened = BTreeMap::new();
    for event in asked.folder(Path::new("/")).run().ok().json_lines() {
        let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let time = word("time").split_once('T').map_or(0, |(_, time)| milliseconds(time));
        let part = happened.entry(format!("{} {}", word("type"), word("action"))).or_insert((time, time, 0));
        (part.1, part.2) = (time, part.2 + 1);
    }
    happened
}

/// `12:34:56.7Z`, in milliseconds.
fn milliseconds(time: &str) -> u64 {
    let (whole, fraction) = time.trim_end_matches('Z').split_once('.').unwrap_or((time.trim_end_matches('Z'), ""));
    let parts = whole.split(':').filter_map(|part| part.parse::<u64>().ok());
    let seconds: u64 = parts.zip([3600, 60, 1]).map(|(part, unit)| part * unit).sum();
    seconds * 1000 + format!("{fraction:0<3}").parse::<u64>().unwrap_or(0)
}

/// Says what has happened since an index, after a time of the day.
fn tell_parts(host: &Host, since: u64, begun: u64) {
    let mut parts: Vec<_> = happened(host, since).into_iter().collect();
    parts.sort_by_key(|(_, (first, _, _))| *first);
    for (what, (first, last, count)) in parts {
        saw(&format!("  {what} ({count}): {} to {} ms", first.saturating_sub(begun), last.saturating_sub(begun)));
    }
}

/// The time of the day (UTC), milliseconds.
fn time_of_day() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(now.as_millis() % 86_400_000).expect("a day is not so long")
}

/// How far the cluster's log is.
fn index(host: &Host) -> u64 {
    let asked = host.invoke(&["events", "--no-follow", "--format", "json"]).folder(Path::new("/")).run().ok();
    asked.json_lines().iter().filter_map(|event| event["index"].as_u64()).max().unwrap_or(0)
}

/// Whether all fifty run, and elsewhere than on these nodes.
fn whole_without(host: &Host, gone: &[String]) -> Result<(), String> {
    let tasks = host.ps();
    let is_well = |task: &&Value| task["state"] == "running" && gone.iter().all(|node| task["node"] != **node);
    let well = tasks.iter().filter(is_well).count();
    if well == 50 { Ok(()) } else { Err(format!("{well} of {}", tasks.len())) }
}

fn is_made_whole(hosts: &Hosts, asked: usize, gone: usize) {
    let (host, id) = (hosts.host(asked), hosts.id(gone));
    let (since, begun, day) = (index(host), Instant::now(), time_of_day());
    hosts.segment.cut(u8::try_from(gone).expect("a few hosts")).expect("there is a cable");
    eventually(2 * PATIENCE, "all fifty run on the others", || whole_without(host, std::slice::from_ref(&id)));
    took("host gone → its fifty-task service whole elsewhere", begun);
    tell_parts(host, since, day);
}

#[test]
fn what_a_host_that_is_gone_for_good_had_runs_elsewhere() {
    let hosts = with_busybox(Hosts::cluster(&["worker", "worker"]));
    let host = hosts.host(1);
    host.stack(FIFTY);
    let (since, begun, day) = (index(host), Instant::now(), time_of_day());
    host.up();
    took("fifty tasks up on three hosts", begun);
    tell_parts(host, since, day);
    is_made_whole(&hosts, 1, 3);
    let gone = hosts.id(3);
    host.orch(&["node", "rm", "--force", &gone]).ok();
    eventually(PATIENCE, "nothing of it is left in the records", || {
        let tasks = host.ps();
        if tasks.len() == 50 { Ok(()) } else { Err(format!("{} tasks", tasks.len())) }
    });
}

#[test]
fn what_the_leaders_host_had_runs_elsewhere_when_it_is_gone() {
    let hosts = with_busybox(Hosts::managers(3));
    let leader = hosts.leader(1);
    let other = leader % 3 + 1;
    hosts.host(other).stack(FIFTY);
    hosts.host(other).up();
    is_made_whole(&hosts, other, leader);
}

#[test]
fn five_managers_go_on_without_two_and_with_a_leader_that_is_deaf_and_after_all_were_killed() {
    let hosts = with_busybox(Hosts::managers(5));
    hosts.host(1).stack(EVERYWHERE);
    hosts.host(1).up();
    let before = all_running(&hosts);
    let others = |leader: usize| (1..=5).filter(|number| *number != leader).collect::<Vec<_>>();

    let leader = hosts.leader(1);
    let (gone, asked) = (others(leader)[0], others(leader)[1]);
    let agent = hosts.host(leader).agent().expect("the leader runs");
    hosts.host(gone).kill_agent();
    hosts.host(leader).signal(agent, Signal::SIGSTOP);
    let begun = Instant::now();
    make(hosts.host(asked), "without-two");
    took("five managers, the leader stopped and another killed → change taken", begun);
    assert_ne!(hosts.leader(asked), leader);
    lasts(begun, Duration::from_secs(10));
    hosts.host(leader).signal(agent, Signal::SIGCONT);
    hosts.host(gone).start_agent();
    hosts.all_vote();

    let leader = hosts.leader(1);
    let others = others(leader);
    hosts.deafen(leader, &others);
    let begun = Instant::now();
    make(hosts.host(others[0]), "the-leader-is-deaf");
    took("five managers, the leader deaf → change taken", begun);
    assert_ne!(hosts.leader(others[0]), leader);
    hosts.heal();
    hosts.all_vote();

    hosts.hosts.iter().for_each(|host| host.kill_agent());
    let begun = Instant::now();
    hosts.hosts.iter().for_each(|host| host.start_agent());
    make(hosts.host(5), "all-were-killed");
    took("all five agents killed → change taken", begun);
    hosts.all_vote();
    hosts.all_ready(1);
    for number in 1..=5 {
        assert_eq!(made(hosts.host(number)), ["all-were-killed", "the-leader-is-deaf", "without-two"], "host {number}");
    }
    assert_eq!(all_running(&hosts), before, "containers run on as they were");
}

#[test]
fn three_of_five_hosts_have_everything_while_two_are_gone_and_all_names_are_right_when_these_are_back() {
    let hosts = with_busybox(Hosts::managers(5));
    let leader = hosts.leader(1);
    let gone = [leader, leader % 5 + 1];
    let stays = (leader + 1) % 5 + 1;
    // Two stacks: one of which every host has its part, and one that moves.
    let host = hosts.host(stays);
    hosts.host(gone[1]).stack(NAMES);
    hosts.host(gone[1]).up();
    host.stack(FIFTY);
    host.up();
    let callers = callers(&hosts);
    for number in 1..=5 {
        eventually(PATIENCE, "every caller reaches all", || reaches_all(&hosts, number, &callers[number - 1]));
    }
    let ids = gone.map(|number| hosts.id(number));
    let (since, begun, day) = (index(host), Instant::now(), time_of_day());
    let ports = gone.map(|number| u8::try_from(number).expect("a few hosts"));
    ports.iter().for_each(|port| hosts.segment.cut(*port).expect("there is a cable"));
    eventually(2 * PATIENCE, "all fifty run on the other three", || whole_without(host, &ids));
    took("two of five hosts gone, the leader's among them → fifty tasks whole elsewhere", begun);
    tell_parts(host, since, day);
    lasts(begun, Duration::from_secs(20));
    ports.iter().for_each(|port| hosts.segment.mend(*port).expect("there is a cable"));
    let mended = Instant::now();
    for number in 1..=5 {
        eventually(PATIENCE, "every caller reaches all again", || reaches_all(&hosts, number, &callers[number - 1]));
    }
    took("mended → all five reach all, one looked at after the other", mended);
    hosts.all_vote();
    hosts.all_ready(stays);
    eventually(PATIENCE, "no slot runs twice", || {
        let all: usize = all_running(&hosts).iter().map(BTreeMap::len).sum();
        if all == 50 + 3 * 5 { Ok(()) } else { Err(format!("{all} containers run")) }
    });
    eventually(PATIENCE, "those of every host are the same", || {
        if self::callers(&hosts) == callers { Ok(()) } else { Err("other callers run".to_owned()) }
    });
}

/// Gives a host a disk of its own for its state, as small as it can be, with what it has.
fn with_small_disk(host: &Host) {
    host.stop_agent();
    let data = host.data().display().to_string();
    let script = "cp -a {} /run/kept && mount -t tmpfs -o size=24m tmpfs {} && cp -a /run/kept/. {} && rm -r /run/kept";
    host.sh(Place::Host, &script.replace("{}", &data));
    host.start_agent();
}

/// Writes something large into the log.
fn make_large(host: &Host, name: &str) -> Output {
    host.write("large", &name.repeat(100_000 / name.len()));
    host.orch(&["config", "create", name, "large"])
}

/// The names of what was written so, as one host knows it.
fn made_large(host: &Host) -> Vec<String> {
    let configs = host.orch(&["config", "ls", "--format", "json"]).ok().json_lines();
    configs.iter().map(|config| config["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_manager_whose_disk_was_full_decides_again_when_there_is_space() {
    let hosts = Hosts::managers(3);
    for host in &hosts.hosts {
        with_small_disk(host);
        hosts.all_vote();
    }
    // It leads at first, and follows when its disk is full again.
    let short = hosts.leader(1);
    let (other, third) = (short % 3 + 1, (short + 1) % 3 + 1);
    let mut names = Vec::new();
    for turn in ["one", "two"] {
        let data = hosts.host(short).data().display().to_string();
        let leads = hosts.leader(other) == short;
        hosts.host(short).sh(Place::Host, &format!("cat /dev/zero >{data}/ballast 2>/dev/null || true"));
        let begun = Instant::now();
        for number in 0..16 {
            let name = format!("{turn}-{number}");
            make_large(hosts.host(if number % 2 == 0 { other } else { third }), &name).ok();
            names.push(name);
        }
        took(&format!("a disk is full (the leader's: {leads}) → sixteen changes taken"), begun);
        names.sort();
        assert_eq!(made_large(hosts.host(other)), names);
        assert_ne!(hosts.leader(other), short, "who cannot write does not lead");
        eventually(PATIENCE, "the manager says why", || {
            let log = hosts.host(short).agent_log();
            let said = log.lines().filter(|line| line.contains("waits for space")).count();
            if said > 0 { Ok(()) } else { Err(log) }
        });
        hosts.host(short).sh(Place::Host, &format!("rm {data}/ballast"));
        let freed = Instant::now();
        // It is needed for every decision now.
        hosts.host(third).stop_agent();
        make(hosts.host(short), &format!("by-it-{turn}"));
        took("there is space → a change that needs this manager is taken", freed);
        assert_eq!(made_large(hosts.host(short)), names, "nothing that was acknowledged is lost");
        hosts.host(third).start_agent();
        hosts.all_vote();
    }
}

#[test]
fn five_managers_go_on_while_one_has_a_full_disk_and_another_gets_another_address() {
    let hosts = with_busybox(Hosts::managers(5));
    hosts.host(1).stack(EVERYWHERE);
    hosts.host(1).up();
    let (short, before) = (hosts.leader(1), all_running(&hosts));
    with_small_disk(hosts.host(short));
    hosts.all_vote();
    let leader = hosts.leader(1);
    let others: Vec<usize> = (1..=5).filter(|number| *number != short).collect();
    // The one that moves leads, where the one with the small disk does not.
    let moving = if leader == short { others[0] } else { leader };
    let asked = *others.iter().find(|number| **number != moving).expect("there are four");
    let data = hosts.host(short).data().display().to_string();
    hosts.host(short).sh(Place::Host, &format!("cat /dev/zero >{data}/ballast 2>/dev/null || true"));
    let (former, now) = (address(u8::try_from(moving).expect("a few hosts")), address(101));
    let script = format!("ip address del {former}/24 dev eth0; ip address add {now}/24 dev eth0");
    hosts.host(moving).sh(Place::Host, &script);
    let begun = Instant::now();
    for number in 0..16 {
        make_large(hosts.host(asked), &format!("large-{number}")).ok();
    }
    took("five managers, one short of space, another with another address → sixteen changes taken", begun);
    assert_ne!(hosts.leader(asked), short, "who cannot write does not lead");
    for number in others {
        eventually(2 * PATIENCE, "all that can write know where it is", || {
            let output = hosts.host(number).orch(&["cluster", "info", "--format", "json"]);
            let known = if output.code == 0 { output.json()["managers"].to_string() } else { output.stderr };
            if known.contains(&format!("{now}:")) && !known.contains(&format!("{former}:")) {
                Ok(())
            } else {
                Err(known)
            }
        });
    }
    hosts.host(short).sh(Place::Host, &format!("rm {data}/ballast"));
    hosts.all_vote();
    hosts.all_ready(short);
    make(hosts.host(moving), "by-the-moved");
    for number in 1..=5 {
        assert_eq!(made(hosts.host(number)), ["by-the-moved"], "host {number}");
        assert_eq!(made_large(hosts.host(number)).len(), 16, "nothing that was acknowledged is lost");
    }
    assert_eq!(all_running(&hosts), before, "nothing was restarted");
}
