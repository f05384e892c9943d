//! Logs: complete, in order, cut as asked, across restarts and rotation.

use orch_tests::host::Host;
use orch_tests::wait::{PATIENCE, eventually};

fn count(host: &Host, arguments: &[&str]) -> usize {
    host.orch(&[&["logs", "--no-log-prefix"], arguments].concat()).ok().lines().len()
}

#[test]
fn every_line_is_there_in_order_and_the_tail_is_its_end() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: [sh, -c, 'seq 1 5000; echo oops >&2']}}");
    host.up();
    host.becomes("a", "over", |c| c["state"] == "exited");
    let logs = host.orch(&["logs", "--no-log-prefix", "a"]).ok();
    let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    assert_eq!(logs.stdout.replace("oops\n", ""), expected);
    assert_eq!((logs.stdout.clone() + &logs.stderr).matches("oops").count(), 1);
    let tail = host.orch(&["logs", "-n", "3", "a"]).ok();
    assert_eq!((tail.stdout.clone() + &tail.stderr).lines().count(), 3, "{}", tail.told());
    assert!(tail.stdout.contains("a-1"), "{}", tail.told());
    host.down();
    host.leaves_no_trace();
}

#[test]
fn following_goes_on_across_a_restart() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, init: true, command: [sh, -c, 'n=$$(cat /n || echo 0); echo $$((n+1)) >/n; echo life $$n; exec sleep infinity']}}");
    host.up();
    let follow = host.start(&["logs", "-f", "a"]);
    follow.prints("life 0");
    host.orch(&["restart", "-t", "5"]).ok();
    follow.prints("life 1");
    host.orch(&["stop", "-t", "5"]).ok();
    host.orch(&["start"]).ok();
    follow.prints("life 2");
    let lines: Vec<String> = follow.stdout().lines().filter(|l| l.contains("life")).map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    drop(follow);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn following_loses_no_line_over_rotation_and_the_disk_use_is_bounded() {
    let host = Host::with_busybox();
    host.stack(
        "services:
  a:
    image: busybox
    init: true
    command: [sh, -c, 'n=0; while test $$n -lt 4000; do while ! test -e /go-$$n; do sleep 0.01; done; end=$$((n+400)); while test $$n -lt $$end; do echo line $$n of a log that is rotated again and again; n=$$((n+1)); done; done; echo the end; exec sleep infinity']
    logging: {driver: json-file, options: {max-size: 64k, max-file: '3'}}",
    );
    host.up();
    let follow = host.start(&["logs", "-f", "--no-log-prefix", "a"]);
    // Less than a file at a time: who follows more slowly than the files are rotated away is told that lines are missing.
    for begin in (0..4000).step_by(400) {
        host.exec("a", &format!("touch /go-{begin}"));
        follow.prints(&format!("line {} of", begin + 399));
    }
    follow.prints("the end");
    let shown = follow.stdout();
    let missing: Vec<u32> = (0..4000).filter(|n| !shown.contains(&format!("line {n} of"))).collect();
    assert!(missing.is_empty(), "{} lines are missing, from {:?}", missing.len(), missing.first());
    drop(follow);
    let files =
        orch_tests::traces::tree(&host.data()).into_iter().filter(|p| p.contains("log") && p.contains("container"));
    let sizes: Vec<(String, u64)> = files
        .filter_map(|p| std::fs::metadata(host.data().join(&p)).ok().filter(|m| m.is_file()).map(|m| (p, m.len())))
        .collect();
    let total: u64 = sizes.iter().map(|(_, size)| size).sum();
    assert!(total > 0 && total <= 4 * 64 * 1024, "{sizes:?}");
    assert!(host.orch(&["logs", "--no-log-prefix", "-n", "1", "a"]).ok().stdout.contains("the end"));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn since_and_until_cut_at_a_time() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, init: true, command: [sh, -c, 'echo early; while ! test -e /go; do sleep 0.05; done; echo late; exec sleep infinity']}}");
    host.up();
    let early = eventually(PATIENCE, "the first line is there", || {
        let logs = host.orch(&["logs", "-t", "--no-log-prefix"]).ok();
        let time = logs
            .stdout
            .lines()
            .find_map(|l| l.split_once(' ').filter(|(_, rest)| rest.contains("early")).map(|(t, _)| t.to_owned()));
        time.ok_or(logs.stdout)
    });
    host.exec("a", "sleep 0.2; touch /go");
    eventually(PATIENCE, "the second line is there", || if count(&host, &[]) == 2 { Ok(()) } else { Err("not yet") });
    assert_eq!(count(&host, &["--until", &early]), 1);
    assert_eq!(count(&host, &["--since", &early]), 2);
    assert_eq!(count(&host, &["--since", "10m"]), 2);
    assert_eq!(count(&host, &["--since", "2100-01-01T00:00:00Z"]), 0);
    host.orch(&["logs", "--since", "yesterday-ish"]).code(2).says(&["yesterday-ish"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_very_long_line_and_bytes_that_are_no_text_come_back_whole() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: [sh, -c, \"head -c 300000 /dev/zero | tr '\\\\0' x; echo; printf 'no newline'\"]}}");
    host.up();
    host.becomes("a", "over", |c| c["state"] == "exited");
    let logs = host.orch(&["logs", "--no-log-prefix"]).ok();
    assert_eq!(logs.stdout.matches('x').count(), 300_000);
    assert_eq!(logs.stdout.lines().next().map(str::len), Some(300_000), "a long line was broken");
    assert!(logs.stdout.trim_end().ends_with("no newline"));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_flood_is_bounded_and_its_neighbour_is_heard() {
    let host = Host::with_busybox();
    host.stack(
        "services:
  flood: {image: busybox, init: true, command: 'yes a flood of words that nobody reads', logging: {options: {max-size: 256k, max-file: '2'}}}
  calm: {image: busybox, init: true, command: [sh, -c, 'echo calm; exec sleep infinity']}",
    );
    host.up();
    host.orch(&["logs", "calm"]).ok().prints(&["calm"]);
    let shim = host.shims();
    assert_eq!(shim.len(), 1, "one shim a stack");
    let memory = host.processes().status(shim[0].pid, "VmRSS").unwrap_or_default();
    let kilobytes: u64 = memory.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX);
    assert!(kilobytes <= 8 * 1024, "the shim holds {memory}");
    host.orch(&["stop", "-t", "2"]).ok();
    let size: u64 = orch_tests::traces::tree(&host.data())
        .iter()
        .filter(|p| p.contains("container") && p.contains("log"))
        .filter_map(|p| std::fs::metadata(host.data().join(p)).ok().filter(|m| m.is_file()).map(|m| m.len()))
        .sum();
    assert!(size <= 3 * 256 * 1024, "{size} bytes of logs");
    host.down();
    host.leaves_no_trace();
}

/// Three services that speak in turn, whatever their names and logs are.
const TURNS: &str = "
name: turns
x-speaker: &speaker
  image: busybox
  volumes: ['turn:/turn']
  command:
    - sh
    - -c
    - |
      [ $$FIRST != 0 ] || echo 0 >/turn/next
      i=$$FIRST
      while [ $$i -lt 45 ]; do
        until [ \"$$(cat /turn/next 2>/dev/null)\" = $$i ]; do usleep 2000; done
        echo turn $$i; usleep 10000; echo $$((i + 1)) >/turn/next
        i=$$((i + 3))
      done
services:
  c: {<<: *speaker, environment: {FIRST: 0}}
  a: {<<: *speaker, environment: {FIRST: 1}}
  b: {<<: *speaker, environment: {FIRST: 2}}
volumes: {turn: }
";

#[test]
fn lines_of_several_containers_come_in_the_order_of_their_times() {
    let host = Host::with_busybox();
    host.stack(TURNS);
    host.orch(&["up", "-d"]).ok();
    let followed = host.start(&["logs", "-f", "--no-log-prefix"]);
    followed.prints("turn 44");
    let spoken: Vec<String> = (0..45).map(|n| format!("turn {n}")).collect();
    assert_eq!(host.orch(&["logs", "--no-log-prefix"]).ok().lines(), spoken);
    assert_eq!(followed.stdout().lines().collect::<Vec<_>>(), spoken);
    host.orch(&["down", "-v"]).ok();
    followed.ends(PATIENCE).code(0);
    host.leaves_no_trace();
}
