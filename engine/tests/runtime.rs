//! Real containers on the real kernel: what a container gets.

#[path = "runtime/support.rs"]
#[macro_use]
mod support;

use support::Fixture;

#[test]
fn a_container_runs_its_command_and_its_output_arrives() {
    needs_root!();
    let outcome = Fixture::new(&["echo", "hello"]).run();
    assert_eq!(outcome.success(), "hello");
}

#[test]
fn a_reaper_is_process_one_and_hands_on_the_exit_code() {
    needs_root!();
    let mut fixture = Fixture::new(&["sh", "-c", "cat /proc/1/comm; echo $$; exit 7"]);
    fixture.config.init = true;
    let outcome = fixture.run();
    assert_eq!(outcome.code(), 7, "{outcome:?}");
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_ne!(lines[1], "1", "{outcome:?}");
}
