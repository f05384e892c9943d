//! Secrets and configs that people make: what uses them gets them, changes with them, and nobody else sees them.

use orch_tests::cluster::Hosts;
use orch_tests::host::{Host, RUN};
use orch_tests::plaintext;

const FIRST: &str = "first-plaintext-0815";
const SECOND: &str = "second-plaintext-0816";

const STACK: &str = "
services:
  a:
    image: busybox
    command: [sleep, infinity]
    init: true
    stop_grace_period: 1s
    secrets: [password]
    configs:
      - source: settings
        target: /etc/settings
    deploy:
      mode: global
  b:
    image: busybox
    command: [sleep, infinity]
    init: true
secrets:
  password:
    external: true
    name: app-password
configs:
  settings:
    external: true
";

fn make(host: &Host, verb: [&str; 2], name: &str, content: &str) -> orch_tests::output::Output {
    host.invoke(&[verb[0], verb[1], name, "-"]).stdin(content).run()
}

/// In no file of a host's state, and in no process's words or environment.
fn is_nowhere(host: &Host, plaintext: &str) {
    let found = [plaintext::files(&host.data(), plaintext), plaintext::processes(host, plaintext)].concat();
    assert!(found.is_empty(), "the secret lies in {found:?}");
}

/// Nor in memory that nobody needs any more: everything that the run directory has.
fn is_forgotten(host: &Host, plaintext: &str) {
    is_nowhere(host, plaintext);
    let found = plaintext::files(&host.path(RUN), plaintext);
    assert!(found.is_empty(), "the secret still lies in {found:?}");
    assert!(!host.agent_log().contains(plaintext));
}

#[test]
fn what_uses_a_secret_or_config_changes_with_it_and_keeps_it_from_being_removed() {
    let host = Host::with_busybox();
    host.stack(STACK);
    let refused = host.orch(&["up", "-d"]);
    assert!(refused.code != 0 && refused.stderr.contains("external secret app-password"), "{}", refused.told());
    assert!(refused.stderr.contains("orch secret create app-password FILE"), "{}", refused.told());
    make(&host, ["secret", "create"], "app-password", FIRST).ok();
    make(&host, ["config", "create"], "settings", "color = blue").ok();
    let twice = make(&host, ["secret", "create"], "app-password", SECOND);
    assert!(twice.code != 0 && twice.stderr.contains("exists already"), "{}", twice.told());
    host.up();
    assert_eq!(host.exec("a", "cat /run/secrets/password"), FIRST);
    assert_eq!(host.exec("a", "cat /etc/settings"), "color = blue");
    host.orch(&["plan"]).code(0);

    let listed = host.orch(&["secret", "ls", "--format", "json"]).ok();
    let row = &listed.json_lines()[0];
    assert_eq!((&row["name"], &row["version"]), (&"app-password".into(), &1.into()), "{row}");
    assert_eq!(row["used_by"], serde_json::json!(["work_a"]), "{row}");
    let inspected = host.orch(&["secret", "inspect", "app-password"]).ok();
    for shown in [&listed, &inspected] {
        assert!(!shown.stdout.contains(FIRST) && !shown.stdout.contains("content"), "{}", shown.told());
    }
    let config = host.orch(&["config", "inspect", "settings"]).ok();
    assert!(config.stdout.contains("Y29sb3IgPSBibHVl"), "a config is shown, as base64: {}", config.told());
    host.orch(&["config", "--services"]).ok().prints(&["a", "b"]);

    let used = host.orch(&["secret", "rm", "app-password"]);
    assert!(used.code != 0 && used.stderr.contains("in use by service work_a"), "{}", used.told());

    let (changes, stays) = (host.container("a")["id"].clone(), host.container("b")["id"].clone());
    let same = make(&host, ["secret", "update"], "app-password", FIRST).ok();
    assert!(same.stderr.contains("is version 1 now"), "{}", same.told());
    let updated = make(&host, ["secret", "update"], "app-password", SECOND).ok();
    assert!(updated.stderr.contains("is version 2 now") && updated.stderr.contains("work_a"), "{}", updated.told());
    host.becomes("a", "another container", |container| container["id"] != changes && container["state"] == "running");
    assert_eq!(host.exec("a", "cat /run/secrets/password"), SECOND);
    assert_eq!(host.container("b")["id"], stays, "what does not use it stays");
    host.orch(&["plan"]).code(0);
    for plaintext in [FIRST, SECOND] {
        is_nowhere(&host, plaintext);
    }

    let large = make(&host, ["secret", "create"], "large", &"x".repeat(500 * 1024 + 1));
    assert!(large.code != 0 && large.stderr.contains("at most 512000 are possible"), "{}", large.told());
    make(&host, ["config", "create"], "large", &"x".repeat(1000 * 1024)).ok();
    let empty = make(&host, ["secret", "create"], "empty", "");
    assert!(empty.code != 0 && empty.stderr.contains("would be empty"), "{}", empty.told());
    host.down();
    host.orch(&["secret", "rm", "app-password"]).ok();
    host.orch(&["config", "rm", "settings", "large"]).ok();
    assert_eq!(host.orch(&["secret", "ls", "-q"]).ok().text(), "");
    let gone = host.orch(&["secret", "rm", "app-password"]);
    assert!(gone.code != 0 && gone.stderr.contains("no such secret: app-password"), "{}", gone.told());
}

#[test]
fn on_a_cluster_a_changed_secret_reaches_every_host_and_lies_in_no_file() {
    let hosts = Hosts::cluster(&["worker", "manager"]);
    hosts.host(1).load("busybox");
    // Whichever manager is asked.
    let host = hosts.host(3);
    make(host, ["secret", "create"], "app-password", FIRST).ok();
    make(hosts.host(1), ["config", "create"], "settings", "color = blue").ok();
    host.stack(STACK);
    host.up();
    let seen = || -> Vec<String> {
        let read = |host: &Host| {
            let containers = host.orch(&["container", "ls", "--format", "json"]).ok().json_lines();
            let of_a = containers.iter().find(|container| container["service"] == "a");
            let id = of_a.and_then(|container| container["id"].as_str()).unwrap_or_default().to_owned();
            host.orch(&["container", "exec", &id, "cat", "/run/secrets/password"]).stdout
        };
        hosts.hosts.iter().map(read).collect()
    };
    assert_eq!(seen(), [FIRST; 3]);
    make(host, ["secret", "update"], "app-password", SECOND).ok();
    assert_eq!(seen(), [SECOND; 3], "the command waits until every host has the new one");
    for host in &hosts.hosts {
        is_nowhere(host, FIRST);
        is_nowhere(host, SECOND);
    } // Not after it has gone either, from the cluster or with a node.
    host.down();
    host.orch(&["secret", "rm", "app-password"]).ok();
    hosts.host(2).orch(&["cluster", "leave"]).ok();
    for host in &hosts.hosts {
        is_forgotten(host, FIRST);
        is_forgotten(host, SECOND);
        host.stop_agent();
        is_forgotten(host, FIRST);
        host.start_agent();
        is_forgotten(host, SECOND);
    }
}

#[test]
fn a_secret_of_the_environment_is_known_to_its_containers_alone_though_an_agent_says_all_it_does() {
    // The first command starts the agent, from an environment that has the secret.
    let host = Host::new();
    let archive = orch_tests::image::archive("busybox");
    let run = |arguments: &[&str]| host.invoke(arguments).env("TOP_SECRET", FIRST).env("ORCH_LOG", "trace").run().ok();
    run(&["image", "load", "-i", &archive.to_string_lossy()]);
    host.stack(
        "
services:
  a: {image: busybox, command: [sleep, infinity], init: true, secrets: [s]}
  b: {image: busybox, command: [sleep, infinity], init: true}
secrets:
  s: {environment: TOP_SECRET}
",
    );
    run(&["up", "-d", "--wait"]);
    assert_eq!(host.exec("a", "cat /run/secrets/s"), FIRST);
    assert!(host.agent_log().contains("DEBUG"), "the agent says all that it does");
    is_nowhere(&host, FIRST);
    assert!(!host.agent_log().contains(FIRST));
    // Inside, too, it is a file and nothing else.
    assert_eq!(host.exec("a", "tr '\\0' '\\n' </proc/1/environ | grep -c plaintext || true"), "0");
    assert_eq!(host.exec("b", "ls /run/secrets 2>/dev/null | wc -l"), "0");
    host.down();
    is_forgotten(&host, FIRST);
    host.leaves_no_trace();
}
