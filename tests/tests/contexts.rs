//! Names for hosts.

use orch_tests::host::{Host, RUN};

#[test]
fn a_context_is_a_name_for_a_host_and_the_nearest_word_wins() {
    let host = Host::with_busybox();
    let current = || host.orch(&["context", "show"]).ok().text().to_owned();
    assert_eq!(current(), "default");
    let socket = format!("unix://{RUN}/orch.sock");
    host.orch(&["context", "create", "here", "--host", &socket, "--description", "by its socket"]).ok();
    host.orch(&["context", "create", "nobody", "--host", "unix:///nobody.sock"]).ok();
    host.orch(&["context", "create", "here", "--host", &socket]).fails().says(&["already"]);
    for wrong in
        [&["context", "create", "x"][..], &["context", "create", "x", "--host", "ftp://x"], &["context", "use", "x"]]
    {
        host.orch(wrong).code(2);
    }
    let listed = host.orch(&["context", "ls", "--format", "json"]).ok().json_lines();
    let of = |name: &str| listed.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name}: {listed:?}"));
    assert_eq!((&of("default")["current"], &of("here")["host"]), (&true.into(), &socket.into()));
    assert_eq!(of("here")["description"], "by its socket");

    // An agent that was named is not started where none is.
    host.orch(&["--context", "here", "image", "ls", "-q"]).ok();
    host.orch(&["--context", "nobody", "image", "ls"]).fails().says(&["/nobody.sock"]);
    host.invoke(&["image", "ls"]).env("ORCH_CONTEXT", "nobody").run().fails().says(&["/nobody.sock"]);
    host.orch(&["--context", "nobody", "--host", "unix:///x", "image", "ls"]).code(2).says(&["exclude"]);
    host.orch(&["context", "use", "nobody"]).ok();
    assert_eq!(current(), "nobody");
    host.orch(&["image", "ls"]).fails().says(&["/nobody.sock"]);
    host.invoke(&["image", "ls"]).env("ORCH_HOST", &format!("unix://{RUN}/orch.sock")).run().ok();
    host.orch(&["--context", "default", "image", "ls"]).ok();
    host.orch(&["context", "rm", "nobody"]).fails().says(&["current"]);
    host.orch(&["context", "rm", "-f", "nobody"]).ok();
    assert_eq!(current(), "default");
    host.orch(&["image", "ls"]).ok();
    host.leaves_no_trace();
}
