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
