//! The attached `up`: logs of all, one Ctrl-C to stop, two to kill, and codes that mean something.

use std::time::Duration;

use nix::sys::signal::Signal;
use orch_tests::host::Host;
use orch_tests::wait::PATIENCE;

const TALK: &str = "
name: talk
services:
  one: {image: busybox, command: [sh, -c, 'trap \"echo bye; exit 0\" TERM; echo one is here; while :; do sleep 0.1; done']}
  two: {image: busybox, command: [sh, -c, 'trap \"exit 0\" TERM; echo two is here; while :; do sleep 0.1; done']}
";

/// Ignores the polite request, so that only a kill ends it soon.
const DEAF: &str = "
name: deaf
services:
  a: {image: busybox, command: [sh, -c, 'trap \"echo not me\" TERM; echo ready; while :; do sleep 0.1; done'], stop_grace_period: 2m}
";

#[test]
fn logs_of_all_services_are_shown_with_their_names() {
    let host = Host::with_busybox();
    host.stack(TALK);
    let up = host.start(&["up"]);
    up.prints("one is here");
    up.prints("two is here");
    let lines = up.stdout();
    for (name, text) in [("one-1", "one is here"), ("two-1", "two is here")] {
        assert!(lines.lines().any(|l| l.starts_with(name) && l.contains('|') && l.ends_with(text)), "{lines}");
    }
    up.signal(Signal::SIGINT);
    up.ends(PATIENCE).code(130).prints(&["bye"]);
    assert!(host.running().is_empty());
    assert_eq!(host.container("one")["exit_code"], 0);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn ctrl_c_at_a_terminal_stops_and_another_kills() {
    let host = Host::with_busybox();
    host.stack(DEAF);
    let mut terminal = host.terminal(&["up"]);
    terminal.shows("ready", PATIENCE);
    let process = host.process(&host.container("a"));
    terminal.types("\u{3}");
    terminal.shows("not me", PATIENCE);
    assert!(host.processes().alive(process), "one Ctrl-C killed");
    terminal.types("\u{3}");
    terminal.ends(PATIENCE).code(130);
    assert!(host.running().is_empty());
    assert_eq!(host.container("a")["exit_code"], 137);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn one_interrupt_ends_an_up_in_which_somebody_still_waits_for_another() {
    let host = Host::with_busybox();
    host.stack(
        "name: waits
services:
  never: {image: busybox, command: sleep infinity, init: true, healthcheck: {test: ['CMD', 'false'], interval: 200ms, retries: 1000000}}
  waits: {image: busybox, command: echo hi, depends_on: {never: {condition: service_healthy}}}",
    );
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let up = host.start(&["up", "-t", "5"]);
        host.becomes("never", "running", |c| c["state"] == "running");
        up.says("Started, not healthy yet");
        up.signal(signal);
        up.ends(PATIENCE).code(code);
        assert!(host.running().is_empty());
    }
    host.down();
    host.leaves_no_trace();
}

#[test]
fn up_ends_by_itself_when_all_containers_have() {
    let host = Host::with_busybox();
    host.stack(
        "services: {a: {image: busybox, command: [echo, said]}, b: {image: busybox, command: [sh, -c, 'exit 3']}}",
    );
    host.orch(&["up"]).code(0).prints(&["said"]);
    assert_eq!(host.container("b")["exit_code"], 3);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn the_first_container_that_exits_aborts_all_when_asked_to() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: [sh, -c, 'exit 5']}, b: {image: busybox, command: sleep infinity, init: true}}");
    host.orch(&["up", "--abort-on-container-exit"]).code(5);
    assert!(host.running().is_empty());
    host.down();
    host.leaves_no_trace();
}

#[test]
fn only_a_failure_aborts_when_that_is_what_was_asked() {
    let host = Host::with_busybox();
    host.stack(
        "services:
  good: {image: busybox, command: 'true'}
  bad: {image: busybox, command: [sh, -c, 'exit 6'], depends_on: {good: {condition: service_completed_successfully}}}
  long: {image: busybox, command: sleep infinity, init: true}",
    );
    host.orch(&["up", "--abort-on-container-failure"]).code(6);
    assert!(host.running().is_empty());
    host.down();
    host.leaves_no_trace();
}

#[test]
fn the_exit_code_comes_from_the_chosen_service_whoever_ends_first() {
    let host = Host::with_busybox();
    host.stack(
        "services:
  test: {image: busybox, command: [sh, -c, 'exit 9'], depends_on: {prepare: {condition: service_completed_successfully}}}
  prepare: {image: busybox, command: 'true'}
  server: {image: busybox, command: sleep infinity, init: true}",
    );
    host.orch(&["up", "--exit-code-from", "test"]).code(9);
    assert!(host.running().is_empty());
    host.orch(&["up", "--exit-code-from", "nobody"]).fails().says(&["no such service: nobody"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn the_terminal_of_an_attached_up_may_go_away_and_the_stack_stays() {
    let host = Host::with_busybox();
    host.stack(TALK);
    let up = host.start(&["up"]);
    up.prints("one is here");
    up.prints("two is here");
    let before = host.running();
    up.signal(Signal::SIGKILL);
    up.ends(PATIENCE).code(137);
    assert_eq!(host.running(), before);
    host.orch(&["stop", "-t", "5"]).ok();
    host.down();
    host.leaves_no_trace();
}

#[test]
fn progress_is_plain_lines_elsewhere_and_drawn_at_a_terminal() {
    let host = Host::with_busybox();
    host.stack("name: p\nservices: {a: {image: busybox, command: sleep infinity, init: true}}");
    let plain = host.orch(&["up", "-d", "--wait"]).ok().says(&["container p-a-1", "network p_default"]);
    assert!(plain.stdout.is_empty() && !plain.stderr.contains('\u{1b}'), "{}", plain.told());
    host.down();
    let drawn = host.terminal(&["up", "-d", "--wait"]).ends(Duration::from_secs(60)).ok();
    assert!(drawn.stdout.contains('\u{1b}') && drawn.stdout.contains("p-a-1"), "{:?}", drawn.stdout);
    let objects = host.orch(&["--progress", "json", "down", "-t", "2"]).ok();
    assert!(!objects.stderr.is_empty());
    for line in objects.stderr.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok_and(|v| v.is_object()), "{line}");
    }
    host.leaves_no_trace();
}
