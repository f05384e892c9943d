//! A container's life: health, restarts, pausing, stopping, limits.

use std::time::Duration;

use orch_tests::host::Host;
use orch_tests::machine::Place;
use orch_tests::wait::{PATIENCE, eventually};

#[test]
fn health_follows_the_probe() {
    let host = Host::with_busybox();
    host.stack(
        "services:
  a:
    image: busybox
    init: true
    command: sleep infinity
    healthcheck: {test: [CMD-SHELL, 'test -e /ok || { echo no such luck; exit 1; }'], interval: 200ms, retries: 2, start_period: 60s, start_interval: 100ms}",
    );
    host.orch(&["up", "-d"]).ok();
    host.becomes("a", "starting", |c| c["health"] == "starting" && c["state"] == "running");
    host.exec("a", "touch /ok");
    let before = host.becomes("a", "healthy", |c| c["health"] == "healthy");
    host.exec("a", "rm /ok");
    let after = host.becomes("a", "unhealthy", |c| c["health"] == "unhealthy");
    assert_eq!(before["pid"], after["pid"], "being unhealthy is no reason to restart it");
    host.exec("a", "touch /ok");
    host.becomes("a", "healthy again", |c| c["health"] == "healthy");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn up_with_wait_fails_when_a_service_becomes_unhealthy_and_shows_its_probe() {
    let host = Host::with_busybox();
    host.stack(
        "name: ill\nservices:
  a: {image: busybox, init: true, command: sleep infinity, healthcheck: {test: [CMD-SHELL, 'echo feverish; exit 1'], interval: 100ms, retries: 2}}
  b: {image: busybox, init: true, command: sleep infinity, depends_on: {a: {condition: service_healthy}}}",
    );
    host.orch(&["up", "-d", "--wait"]).fails().says(&["ill-a-1", "unhealthy", "feverish"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_deadline_that_passes_has_a_code_of_its_own() {
    let host = Host::with_busybox();
    host.stack(
        "services: {a: {image: busybox, init: true, command: sleep infinity, healthcheck: {test: [CMD, 'false'], interval: 100ms, start_period: 5m}}}",
    );
    host.orch(&["up", "-d", "--wait", "--wait-timeout", "1"]).code(124).says(&["a"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn restart_policies_are_kept() {
    let host = Host::with_busybox();
    host.stack(
        "services:
  never: {image: busybox, command: [sh, -c, 'exit 1']}
  twice: {image: busybox, command: [sh, -c, 'echo try; exit 1'], restart: 'on-failure:2'}
  fine: {image: busybox, command: 'true', restart: on-failure}
  always: {image: busybox, command: [sh, -c, 'echo again; exit 0'], restart: always}",
    );
    host.orch(&["up", "-d"]).ok();
    host.becomes("always", "restarted twice", |c| c["restarts"].as_u64() >= Some(2));
    let twice = host.becomes("twice", "given up", |c| c["state"] == "exited" && c["restarts"] == 2);
    assert_eq!(twice["exit_code"], 1);
    assert_eq!(host.orch(&["logs", "--no-log-prefix", "twice"]).ok().stdout, "try\ntry\ntry\n");
    for (service, code) in [("never", 1), ("fine", 0)] {
        let container = host.becomes(service, "exited", |c| c["state"] == "exited");
        assert_eq!((&container["exit_code"], &container["restarts"]), (&code.into(), &0.into()), "{service}");
    }
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_container_that_a_user_stopped_is_not_restarted() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true, restart: always}}");
    host.up();
    host.orch(&["stop", "-t", "5"]).ok();
    let stopped = host.container("a");
    assert_eq!(stopped["state"], "exited", "{stopped}");
    host.stop_agent();
    host.start_agent();
    assert_eq!(host.container("a")["state"], "exited", "an agent's start restarted it");
    host.orch(&["start"]).ok();
    host.becomes("a", "running", |c| c["state"] == "running");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn stop_is_polite_first_and_firm_after_the_grace() {
    let host = Host::with_busybox();
    host.stack(
        "services:
  polite: {image: busybox, command: [sh, -c, 'trap \"echo bye; exit 3\" TERM; echo up; while :; do sleep 0.1; done']}
  deaf: {image: busybox, command: [sh, -c, 'trap \"\" TERM; echo up; while :; do sleep 0.1; done'], stop_grace_period: 300ms}
  special: {image: busybox, stop_signal: SIGUSR1, command: [sh, -c, 'trap \"exit 4\" USR1; echo up; while :; do sleep 0.1; done']}",
    );
    host.up();
    let said = || host.orch(&["logs", "--no-log-prefix"]).ok().stdout;
    eventually(PATIENCE, "all have set their traps", || {
        if said().matches("up\n").count() == 3 { Ok(()) } else { Err(said()) }
    });
    host.orch(&["stop"]).ok();
    let code = |service: &str| host.container(service)["exit_code"].as_i64();
    assert_eq!((code("polite"), code("deaf"), code("special")), (Some(3), Some(137), Some(4)));
    host.orch(&["logs", "polite"]).ok().prints(&["bye"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn stop_goes_against_the_order_of_dependencies() {
    let host = Host::with_busybox();
    let service = "image: busybox, init: true, command: sleep infinity";
    host.stack(&format!(
        "services:\n  a: {{{service}}}\n  b: {{{service}, depends_on: [a]}}\n  c: {{{service}, depends_on: [b]}}"
    ));
    host.up();
    host.orch(&["stop", "-t", "5"]).ok();
    // Without the letter, which comes after digits: a fraction is as long as it must be.
    let ended =
        |service: &str| host.container(service)["finished_at"].as_str().unwrap().trim_end_matches('Z').to_owned();
    assert!(ended("c") <= ended("b") && ended("b") <= ended("a"), "{} {} {}", ended("c"), ended("b"), ended("a"));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_paused_container_stands_still_until_it_is_thawed() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: [sh, -c, 'while :; do date +%s%N >/now; sleep 0.02; done'], init: true}}");
    host.up();
    let pid = host.process(&host.container("a")).pid;
    let now = host.path(format!("/proc/{pid}/root/now"));
    eventually(PATIENCE, "it writes", || std::fs::read_to_string(&now));
    host.orch(&["pause"]).ok();
    assert_eq!(host.container("a")["state"], "paused");
    let before = std::fs::read_to_string(&now).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(std::fs::read_to_string(&now).unwrap(), before, "it goes on while it is paused");
    host.orch(&["unpause"]).ok();
    eventually(PATIENCE, "it goes on", || {
        let text = std::fs::read_to_string(&now).unwrap_or_default();
        if text != before && !text.is_empty() { Ok(()) } else { Err(text) }
    });
    assert_eq!(host.container("a")["state"], "running");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_paused_container_can_be_taken_down() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    host.orch(&["pause"]).ok();
    host.down();
    host.leaves_no_trace();
}

#[test]
fn kill_sends_the_signal_that_is_asked_for() {
    let host = Host::with_busybox();
    host.stack(
        "services: {a: {image: busybox, command: [sh, -c, 'trap \"echo hup\" HUP; echo up; while :; do sleep 0.1; done'], restart: always}}",
    );
    host.up();
    let logs = |text: &str| {
        let said = || host.orch(&["logs"]).ok().stdout;
        eventually(PATIENCE, text, || if said().contains(text) { Ok(()) } else { Err(said()) });
    };
    logs("up");
    host.orch(&["kill", "-s", "HUP"]).ok();
    logs("hup");
    host.orch(&["kill"]).ok();
    let killed = host.becomes("a", "exited", |c| c["state"] == "exited");
    assert_eq!(killed["exit_code"], 137);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn restart_makes_a_new_process_in_the_same_container() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    host.exec("a", "touch /mark");
    let before = host.container("a");
    // It returns when that is done, not while the old process still runs.
    host.orch(&["restart", "-t", "5"]).ok();
    let after = host.container("a");
    assert_eq!(after["state"], "running");
    assert_eq!(before["id"], after["id"]);
    assert_ne!(before["pid"], after["pid"]);
    host.exec("a", "test -e /mark");
    host.orch(&["container", "restart", "-t", "5", "work-a-1"]).ok();
    let again = host.container("a");
    assert_eq!((&again["id"], &again["state"]), (&before["id"], &"running".into()));
    assert_ne!(again["pid"], after["pid"]);
    // One that is frozen, too.
    for restart in [&["restart", "-t", "0"][..], &["container", "restart", "-t", "0", "work-a-1"]] {
        host.orch(&["pause"]).ok();
        let before = host.container("a");
        host.orch(restart).ok();
        let after = host.container("a");
        assert_eq!((&before["state"], &after["state"]), (&"paused".into(), &"running".into()));
        assert_ne!(before["pid"], after["pid"]);
    }
    host.down();
    host.leaves_no_trace();
}

#[test]
fn another_agent_goes_on_with_what_was_known_of_healths() {
    let host = Host::with_busybox();
    // Asked again only after an hour: whatever is known then was known before.
    let probe =
        |test: &str| format!("{{test: {test}, interval: 1h, start_period: 1h, start_interval: 100ms, retries: 1}}");
    host.stack(&format!(
        "services:
  well: {{image: busybox, init: true, command: sleep infinity, healthcheck: {}}}
  ill: {{image: busybox, init: true, command: [sh, -c, 'sleep 1; touch /ill; sleep infinity'], healthcheck: {{test: '! test -e /ill', interval: 200ms, retries: 1}}}}",
        probe("[CMD, 'true']")
    ));
    host.start_agent();
    host.orch(&["up", "-d"]).ok();
    let health = |word: &'static str| move |c: &serde_json::Value| c["health"] == word;
    host.becomes("well", "healthy", health("healthy"));
    host.becomes("ill", "unhealthy", health("unhealthy"));
    let since = host.orch(&["events", "--no-follow", "--since-index", "0", "--format", "json"]).ok().json_lines();
    let since = since.last().expect("something has happened")["index"].to_string();
    host.kill_agent();
    host.start_agent();
    assert_eq!(host.container("well")["health"], "healthy");
    assert_eq!(host.container("ill")["health"], "unhealthy");
    host.orch(&["up", "-d", "--wait", "--wait-timeout", "20", "well"]).ok();
    let events = host.orch(&["events", "--no-follow", "--since-index", &since, "--format", "json"]).ok().json_lines();
    let changed: Vec<_> = events.iter().filter(|event| event["action"] == "health_status").collect();
    assert!(changed.is_empty(), "nobody heard of a change: {changed:?}");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn what_has_done_its_work_does_it_once_more_for_who_asks_by_name() {
    let host = Host::with_busybox();
    host.stack("services: {job: {image: busybox, command: [sh, -c, 'echo x >>/count'], volumes: ['./:/out']}}");
    host.orch(&["up", "-d", "--wait"]).ok();
    let ended = |c: &serde_json::Value| c["state"] == "exited";
    let mut before = host.becomes("job", "ended", ended)["started_at"].clone();
    for start in [&["start", "job"][..], &["container", "start", "work-job-1"]] {
        host.orch(start).ok();
        let after = host.becomes("job", "ended again", |c| ended(c) && c["started_at"] != before);
        before = after["started_at"].clone();
    }
    // Nobody named it.
    host.orch(&["start"]).ok();
    assert_eq!(host.container("job")["started_at"], before);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_container_that_uses_too_much_memory_is_shown_as_such() {
    let host = Host::with_busybox();
    host.stack(
        "services: {a: {image: busybox, command: [sh, -c, 'dd if=/dev/zero of=/dev/null bs=128M count=1'], mem_limit: 24m, memswap_limit: 24m}}",
    );
    host.orch(&["up", "-d"]).ok();
    let ended = host.becomes("a", "ended", |c| c["state"] == "exited");
    let shown = host.orch(&["container", "inspect", ended["id"].as_str().unwrap()]).ok().json();
    let text = shown.to_string();
    assert!(text.contains("\"oom_killed\":true") || text.contains("\"OOMKilled\":true"), "{text}");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn wait_prints_the_code_and_ends_with_it() {
    let host = Host::with_busybox();
    host.stack("name: w\nservices: {a: {image: busybox, command: [sh, -c, 'sleep 0.5; exit 6']}}");
    host.orch(&["up", "-d"]).ok();
    host.orch(&["wait", "a"]).code(6).prints(&["6"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn created_containers_wait_for_start() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.orch(&["create"]).ok();
    assert_eq!(host.container("a")["state"], "created");
    host.orch(&["start", "--wait"]).ok();
    assert_eq!(host.container("a")["state"], "running");
    host.orch(&["rm", "-f"]).ok();
    assert_eq!(host.running().len(), 1, "rm took a container that runs");
    host.orch(&["rm", "-f", "-s"]).ok();
    assert!(host.ps().is_empty());
    host.down();
    host.leaves_no_trace();
}

#[test]
fn no_link_stays_of_a_container_whose_namespace_somebody_holds() {
    let host = Host::with_busybox();
    host.start_agent();
    host.stack("services: {web: {image: busybox, init: true, command: sleep infinity}}");
    host.up();
    let holder = host.sh(
        Place::Host,
        "nsenter --net=/run/orch/netd/netns/$(ls /run/orch/netd/netns) sleep 1000 >/dev/null 2>&1 </dev/null & echo $!",
    );
    host.down();
    eventually(PATIENCE, "its link has gone", || {
        let links = host.sh(Place::Host, "ip -o link");
        if links.contains("orv-") { Err(links) } else { Ok(()) }
    });
    host.sh(Place::Host, &format!("kill {holder}"));
    host.leaves_no_trace();
}
