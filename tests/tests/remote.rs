//! Commands that go to another host: over a real sshd, over TLS with a certificate, and what is only on another node.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orch_tests::cluster::Hosts;
use orch_tests::host::{Host, binary};
use orch_tests::image;
use orch_tests::machine::Place;
use orch_tests::segment::address;
use orch_tests::wait::{PATIENCE, eventually};

/// Where the sshd of these tests listens.
const PORT: u16 = 2222;

/// A stack of a service with a task on two nodes.
const PAIR: &str = "
name: pair
services:
  idle:
    image: app
    command: [sh, -c, 'echo here I am; exec sleep infinity']
    init: true
    deploy: {replicas: 2, placement: {max_replicas_per_node: 1}}
";

/// Imports an image of busybox.
fn import(host: &Host, name: &str) {
    let path = host.folder().join(format!("{name}.tar"));
    image::root_archive(&path, &[("made", name)]);
    host.orch(&["image", "import", &path.to_string_lossy(), name]).ok();
}

/// Starts an sshd on a host, with keys and a configuration of its own. Only `key` in the returned folder is let in, as root.
fn serve_ssh(host: &Host) -> PathBuf {
    let folder = host.folder().join("ssh");
    let program = "/usr/sbin/sshd";
    assert!(Path::new(program).exists(), "this host has no {program} (package openssh-server; see tests/setup)");
    host.write("ssh/bin/empty", "");
    std::os::unix::fs::symlink(binary(), folder.join("bin/orch")).expect("a link can be made");
    for key in ["host_key", "key", "strangers_key"] {
        let path = folder.join(key).to_string_lossy().into_owned();
        host.run(Place::Host, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &path])
            .expect("a key can be made");
    }
    let shown = folder.display();
    // The folders above are everybody's to write, which StrictModes refuses.
    let config = format!(
        "Port {PORT}\nHostKey {shown}/host_key\nAuthorizedKeysFile {shown}/key.pub\nPermitRootLogin prohibit-password\nStrictModes no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\nSetEnv PATH={shown}/bin:/usr/bin:/bin\n"
    );
    host.write("ssh/sshd_config", &config);
    host.sh(Place::Host, "mkdir -p /run/sshd");
    let log = std::fs::File::create(folder.join("log")).expect("a file can be made");
    let mut sshd = host.inside(Place::Host, || {
        let mut sshd = Command::new(program);
        sshd.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
        sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("sshd can be started")
    });
    // It ends with its machine; then this thread takes it in.
    std::thread::spawn(move || sshd.wait());
    eventually(PATIENCE, "sshd listens", || {
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        if log.contains("Server listening") { Ok(()) } else { Err(log) }
    });
    folder
}

/// Writes what a person's `ssh` is called with, and says where it is: that host's key and the person's own are known to it.
fn ssh_of(person: &Host, server: &Path, key: &str) -> String {
    let host_key = std::fs::read_to_string(server.join("host_key.pub")).expect("it has a key");
    person.write("ssh/known_hosts", &format!("[{}]:{PORT} {host_key}", address(1)));
    let own = person.folder().join("ssh");
    std::fs::copy(server.join(key), own.join(key)).expect("the key can be copied");
    let shown = own.display();
    let config = format!(
        "IdentityFile {shown}/{key}\nIdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking yes\n\
         UserKnownHostsFile {shown}/known_hosts\nGlobalKnownHostsFile none\n"
    );
    person.write(&format!("ssh/config_{key}"), &config);
    let program = own.join(format!("with_{key}"));
    person.write(&format!("ssh/with_{key}"), &format!("#!/bin/sh\nexec ssh -F {shown}/config_{key} \"$@\"\n"));
    person.sh(Place::Host, &format!("chmod +x {}; chmod 600 {shown}/{key}", program.display()));
    program.to_string_lossy().into_owned()
}

#[test]
fn a_stack_goes_from_a_laptop_to_a_cluster_over_a_real_sshd() {
    let hosts = Hosts::new(3);
    hosts.init();
    let token = hosts.token(&["worker"]);
    hosts.join(2, &token).ok();
    hosts.so_many_ready(1, 2);
    let server = serve_ssh(hosts.host(1));
    // The third is somebody's laptop, no part of the cluster; it alone has the image.
    let laptop = hosts.host(3);
    import(laptop, "app");
    laptop.stack(PAIR);
    let ssh = ssh_of(laptop, &server, "key");
    let target = format!("ssh://root@{}:{PORT}", address(1));
    laptop.orch(&["context", "create", "far", "--host", &target]).ok();
    let call = |arguments: &[&str]| laptop.invoke(&[&["--context", "far"], arguments].concat()).env("ORCH_SSH", &ssh);
    call(&["up", "-d", "--wait"]).run().ok().says(&["pushing image app", "pushed image app"]);
    let tasks = call(&["ps", "--format", "json"]).run().ok().json_lines();
    let mut nodes: Vec<&str> = tasks.iter().filter_map(|task| task["node"].as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    assert!(tasks.iter().all(|task| task["state"] == "running") && nodes.len() == 2, "{tasks:?}");
    // Standard input, output and the code of a command, on either node.
    for index in ["1", "2"] {
        let exec = ["exec", "-T", "--index", index, "idle", "sh", "-c", "cat; cat /made >&2; exit 7"];
        let output = call(&exec).stdin("typed").run().code(7);
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("typed", "app"));
    }
    let logs = call(&["logs"]).run().ok();
    assert_eq!(logs.stdout.matches("here I am").count(), 2, "{}", logs.told());
    assert_eq!(
        call(&["container", "run", "--rm", "--network", "none", "app", "cat", "/made"]).run().ok().text(),
        "app"
    );
    call(&["down", "-t", "1"]).run().ok();
    assert!(hosts.running(1).is_empty() && hosts.running(2).is_empty());

    // Who is not let in by sshd hears what ssh says.
    let stranger = ssh_of(laptop, &server, "strangers_key");
    let refused = laptop.invoke(&["--context", "far", "ls"]).env("ORCH_SSH", &stranger).run();
    refused.fails().says(&["Permission denied (publickey)"]);
}

#[test]
fn a_plan_is_made_over_tls_for_who_may_only_read() {
    let hosts = Hosts::new(2);
    hosts.init();
    let (server, laptop) = (hosts.host(1), hosts.host(2));
    import(server, "app");
    let call = |role: &str, arguments: &[&str]| {
        let folder = laptop.folder().join(role).to_string_lossy().into_owned();
        if !laptop.folder().join(role).exists() {
            server.orch(&["cluster", "client", "create", "alice", "--role", role, "-o", &folder]).ok();
        }
        let target = format!("tcp://{}", address(1));
        let all = [&["--host", target.as_str()], arguments].concat();
        laptop.invoke(&all).env("ORCH_CERT_PATH", &folder).run()
    };
    let file = |command: &str| {
        laptop.stack(&format!("name: far\nservices: {{a: {{image: app, init: true, command: [sleep, '{command}']}}}}"));
    };
    file("infinity");
    call("read", &["plan"]).code(10).prints(&["create container far-a-1"]);
    call("read", &["up", "-d"]).code(1).says(&["may not do this", "deploy"]);
    assert!(hosts.running(1).is_empty());
    call("deploy", &["up", "-d", "--wait"]).ok();
    let before = hosts.running(1);
    call("read", &["plan"]).code(0);
    file("1000000");
    call("read", &["plan"]).code(10).prints(&["recreate container far-a-1", "command"]);
    assert_eq!(hosts.running(1), before, "a plan changes nothing");
    call("deploy", &["down", "-t", "1"]).ok();
}

#[test]
fn a_container_is_run_of_an_image_that_only_another_node_has() {
    let hosts = Hosts::cluster(&["worker", "manager"]);
    hosts.all_ready(1);
    import(hosts.host(2), "app");
    for number in [1, 3] {
        let host = hosts.host(number);
        assert_eq!(host.orch(&["image", "ls", "-q"]).ok().text(), "");
        // A node that is slow to answer is not waited for.
        eventually(PATIENCE, "it is fetched and runs", || {
            let run = host.orch(&["container", "run", "--rm", "app", "cat", "/made"]);
            if run.code == 0 && run.text() == "app" { Ok(()) } else { Err(run.told()) }
        });
        host.orch(&["image", "inspect", "app"]).ok();
    }
    hosts.host(1).orch(&["container", "run", "--rm", "nobodys", "true"]).code(125).says(&["nobodys"]);
}

#[test]
fn a_container_on_another_node_is_taken_onto_a_network_and_off_it() {
    let hosts = Hosts::cluster(&["worker"]);
    hosts.all_ready(1);
    let host = hosts.host(1);
    host.load("busybox");
    host.orch(&["network", "create", "--driver", "overlay", "further"]).ok();
    host.stack(
        "
name: apart
services:
  here: {image: busybox, init: true, command: sleep infinity, networks: [further], deploy: {placement: {constraints: [node.hostname == host1]}}}
  there: {image: busybox, init: true, command: sleep infinity, deploy: {placement: {constraints: [node.hostname == host2]}}}
networks: {further: {external: true, name: further}}
",
    );
    host.up();
    host.orch(&["network", "connect", "--alias", "guest", "further", "apart-there-1"]).ok();
    eventually(PATIENCE, "the one reaches the other by its further name", || {
        let ping = host.orch(&["exec", "-T", "here", "ping", "-c", "1", "-w", "2", "guest"]);
        if ping.code == 0 { Ok(()) } else { Err(ping.told()) }
    });
    host.orch(&["network", "disconnect", "further", "apart-there-1"]).ok();
    host.exec("here", "! ping -c 1 -w 2 guest");
    // A restart leaves it off.
    host.orch(&["container", "restart", "-t", "0", "apart-there-1"]).ok();
    host.exec("here", "! nslookup guest");
    host.down();
    host.orch(&["network", "rm", "further"]).ok();
}
