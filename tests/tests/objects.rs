//! Images, volumes, networks, and what is said without an agent.

use std::path::Path;

use orch_tests::host::{Host, RUN};
use orch_tests::machine::Place;
use orch_tests::{http, image};

#[test]
fn a_root_file_system_becomes_an_image_that_runs() {
    let host = Host::new();
    let tar = host.folder().join("root.tar");
    image::root_archive(&tar, &[("etc/motd", "made by hand")]);
    host.orch(&["image", "import", "-c", "CMD [\"cat\", \"/etc/motd\"]", "-c", "ENV A=b", "root.tar", "mine:1"]).ok();
    assert_eq!(host.orch(&["container", "run", "--rm", "mine:1"]).ok().text(), "made by hand");
    assert_eq!(host.orch(&["container", "run", "--rm", "mine:1", "sh", "-c", "echo $A"]).ok().text(), "b");
    let piped = host.invoke(&["image", "import", "-", "piped"]).stdin(std::fs::read(&tar).unwrap()).run().ok();
    assert!(piped.stdout.contains("sha256:"), "{}", piped.told());
    host.leaves_no_trace();
}

#[test]
fn images_are_named_saved_removed_and_loaded_again() {
    let host = Host::with_busybox();
    let list = || host.orch(&["image", "ls", "--format", "json"]).ok().stdout;
    assert!(list().contains("busybox"));
    host.orch(&["image", "tag", "busybox", "other:2"]).ok();
    assert!(list().contains("other:2"));
    host.orch(&["image", "inspect", "other:2"]).ok().prints(&["sha256:"]);
    host.orch(&["image", "history", "busybox"]).ok();
    host.orch(&["image", "save", "-o", "saved.tar", "other:2"]).ok();
    let names = host.images();
    host.orch(&[&["image", "rm"], names.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat()).ok();
    assert_eq!(list(), "");
    host.orch(&["container", "run", "--rm", "other:2", "true"]).code(125).says(&["other:2"]);
    host.orch(&["image", "load", "-i", "saved.tar"]).ok();
    host.orch(&["container", "run", "--rm", "other:2", "true"]).ok();
    host.orch(&["image", "prune", "-a", "-f"]).ok();
    assert_eq!(list(), "");
    let blobs =
        orch_tests::traces::tree(&host.data()).into_iter().filter(|p| p.contains("sha256/") && !p.ends_with('/'));
    assert_eq!(blobs.collect::<Vec<_>>(), Vec::<String>::new(), "blobs of no image are left");
    host.leaves_no_trace();
}

#[test]
fn an_image_in_use_is_not_removed() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    let names = host.images();
    let last = host.orch(&[&["image", "rm"], names.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
    last.fails().says(&["work-a-1"]);
    assert!(!host.images().is_empty(), "an image in use lost its last name");
    host.orch(&["image", "prune", "-a", "-f"]).ok();
    host.orch(&["images"]).ok().prints(&["busybox"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn volumes_are_made_shown_and_removed() {
    let host = Host::with_busybox();
    host.orch(&["volume", "create", "mine"]).ok();
    host.orch(&["volume", "ls", "--format", "json"]).ok().prints(&["mine"]);
    host.orch(&["container", "run", "--rm", "-v", "mine:/m", "busybox", "sh", "-c", "echo kept >/m/f"]).ok();
    assert_eq!(
        host.orch(&["container", "run", "--rm", "-v", "mine:/m:ro", "busybox", "cat", "/m/f"]).ok().text(),
        "kept"
    );
    host.orch(&["volume", "inspect", "mine"]).ok().prints(&["mine"]);
    let id = host.orch(&["container", "run", "-d", "-v", "mine:/m", "--init", "busybox", "sleep", "infinity"]).ok();
    host.orch(&["volume", "rm", "mine"]).fails().says(&["mine"]);
    host.orch(&["container", "rm", "-f", id.text()]).ok();
    host.orch(&["volume", "rm", "mine"]).ok();
    host.orch(&["volume", "inspect", "mine"]).fails();
    host.leaves_no_trace();
}

#[test]
fn networks_are_made_shown_and_removed() {
    let host = Host::with_busybox();
    host.orch(&["network", "create", "--subnet", "10.88.0.0/24", "mine"]).ok();
    host.orch(&["network", "ls", "--format", "json"]).ok().prints(&["mine"]);
    host.orch(&["network", "inspect", "mine"]).ok().prints(&["10.88.0.0/24"]);
    let address = host
        .orch(&["container", "run", "--rm", "--network", "mine", "busybox", "ip", "-4", "address", "show", "eth0"])
        .ok();
    assert!(address.stdout.contains("10.88.0."), "{}", address.told());
    let id = host.orch(&["container", "run", "-d", "--network", "mine", "--init", "busybox", "sleep", "infinity"]).ok();
    host.orch(&["network", "rm", "mine"]).fails().says(&["mine"]);
    host.orch(&["container", "rm", "-f", id.text()]).ok();
    host.orch(&["network", "rm", "mine"]).ok();
    host.leaves_no_trace();
}

#[test]
fn a_verb_of_several_names_does_what_it_can_and_says_what_it_could_not() {
    let host = Host::with_busybox();
    let names = ["none", "one", "neither", "two"];
    let each = |verb: &[&str]| host.orch(&[verb, &names].concat()).code(1).says(&["none", "neither"]);
    for name in ["one", "two"] {
        host.orch(&["container", "run", "-d", "--init", "--name", name, "busybox", "sleep", "infinity"]).ok();
        for kind in ["volume", "network"] {
            host.orch(&[kind, "create", name]).ok();
        }
        for kind in ["secret", "config"] {
            host.invoke(&[kind, "create", name, "-"]).stdin("content").run().ok();
        }
        host.orch(&["image", "tag", "busybox", name]).ok();
        host.orch(&["context", "create", name, "--host", "unix:///x"]).ok();
    }
    for kind in ["container", "volume", "network", "secret", "config", "image"] {
        assert_eq!(each(&[kind, "inspect"]).json().as_array().map(Vec::len), Some(2), "{kind}");
    }
    let verbs: [&[&str]; 7] =
        [&["pause"], &["unpause"], &["restart", "-t", "0"], &["stop", "-t", "0"], &["start"], &["kill"], &["rm"]];
    for verb in verbs {
        assert_eq!(each(&[&["container"], verb].concat()).lines(), ["one", "two"], "{verb:?}");
    }
    for kind in ["volume", "network", "secret", "config", "context"] {
        assert_eq!(each(&[kind, "rm"]).lines(), ["one", "two"], "{kind}");
    }
    each(&["image", "rm"]).prints(&["one", "two"]);
    let node = host.orch(&["node", "ls", "--format", "{{.Hostname}}"]).ok().text().to_owned();
    let inspected = host.orch(&["node", "inspect", "none", &node]).code(1).says(&["none"]).json();
    assert_eq!(inspected[0]["hostname"], *node);
    // What is wrong with the command itself is said once, and has its own code; so has what several have in common.
    assert_eq!(host.orch(&["container", "stop"]).code(2).stdout, "");
    host.orch(&["service", "scale", "none", "neither=1"]).code(2).says(&["SERVICE=N"]);
    host.leaves_no_trace();
}

#[test]
fn two_orchs_of_one_host_choose_other_subnets_and_say_whose_one_is() {
    let host = Host::with_busybox();
    let (instance, data) = (format!("{}b", host.instance()), host.folder().join("other"));
    let other = |arguments: &[&str]| {
        let call = host.invoke(arguments).env("ORCH_INSTANCE", &instance).env("ORCH_RUN_DIR", "/run/other");
        call.env("ORCH_DATA_DIR", &data.to_string_lossy()).run()
    };
    // Its agent begins before there is a network on this host.
    other(&["image", "load", "-i", &image::archive("busybox").to_string_lossy()]).ok();
    let stack = "name: twin\nservices: {a: {image: busybox, init: true, command: sleep infinity}}";
    host.stack(stack);
    host.up();
    let network = || host.orch(&["network", "inspect", "twin_default"]).ok().json();
    let subnet = network()[0]["subnet4"].as_str().unwrap().to_owned();
    // As when both chose it while the other one was down.
    host.write("same.yaml", &format!("{stack}\nnetworks: {{default: {{ipam: {{config: [{{subnet: {subnet}}}]}}}}}}"));
    let clash = format!("its subnet {subnet} overlaps {subnet}, which this host reaches by orb-");
    let up = ["-f", "same.yaml", "up", "-d", "--wait", "--wait-timeout", "20"];
    other(&up).fails().says(&[&clash, "a network of another orch", "`orch down` and `orch up`"]);
    other(&["down"]).ok();
    other(&["up", "-d", "--wait", "--wait-timeout", "20"]).ok();
    assert_ne!(other(&["network", "inspect", "twin_default"]).ok().json()[0]["subnet4"], *subnet);
    assert_eq!((host.running().len(), network()[0]["subnet4"].as_str()), (1, Some(subnet.as_str())));
    other(&["down", "-t", "1"]).ok();
    host.down();
}

#[test]
fn events_tell_a_containers_life_and_can_be_resumed() {
    let host = Host::with_busybox();
    host.stack("name: e\nservices: {a: {image: busybox, command: 'true'}}");
    host.up();
    host.down();
    let events = host.orch(&["events", "--format", "json", "--no-follow", "--since-index", "0"]).ok().json_lines();
    // Where there is no stack file it is all stacks, and no error.
    let all = host.invoke(&["events", "--no-follow"]).folder(std::path::Path::new("/")).run().ok();
    assert_eq!((all.stderr.as_str(), all.stdout.is_empty()), ("", false));
    host.orch(&["-f", "none.yaml", "events", "--no-follow"]).code(2).says(&["none.yaml"]);
    let actions: Vec<String> =
        events.iter().filter(|e| e["type"] == "container").map(|e| e["action"].as_str().unwrap().to_owned()).collect();
    for action in ["create", "start", "die", "destroy"] {
        assert!(actions.iter().any(|a| a == action), "no {action}: {actions:?}");
    }
    let indexes: Vec<u64> = events.iter().map(|e| e["index"].as_u64().unwrap()).collect();
    assert!(indexes.is_sorted(), "{indexes:?}");
    let middle = indexes[indexes.len() / 2].to_string();
    let rest = host.orch(&["events", "--format", "json", "--no-follow", "--since-index", &middle]).ok().json_lines();
    assert_eq!(rest, events.into_iter().filter(|e| e["index"].as_u64() > middle.parse().ok()).collect::<Vec<_>>());
    host.leaves_no_trace();
}

#[test]
fn the_machine_is_described_and_cleared() {
    let host = Host::with_busybox();
    let info = host.orch(&["system", "info", "--format", "json"]).ok().json();
    assert_eq!(info["data_dir"], host.data().to_string_lossy().as_ref());
    host.orch(&["system", "df"]).ok();
    let doctor = host.orch(&["system", "doctor", "--format", "json"]);
    assert!(!doctor.stdout.is_empty(), "{}", doctor.told());
    host.orch(&["system", "prune", "-a", "-f"]).ok();
    assert_eq!(host.orch(&["image", "ls", "-q"]).ok().text(), "");
    host.leaves_no_trace();
}

#[test]
fn what_needs_no_agent_starts_none() {
    let host = Host::new();
    host.stack(
        "name: c\nservices:
  a: {image: busybox, depends_on: [b], environment: {X: '${X:-1}'}}
  b: {image: 'busybox:2', volumes: ['v:/v']}
volumes: {v: }",
    );
    let config = host.orch(&["config", "--format", "json"]).ok().json();
    assert_eq!(config["services"]["a"]["environment"]["X"], "1");
    host.orch(&["config"]).ok().prints(&["name: c", "services:"]);
    assert_eq!(host.orch(&["config", "--services"]).ok().lines().len(), 2);
    assert_eq!(host.orch(&["config", "--volumes"]).ok().text(), "v");
    assert_eq!(host.orch(&["config", "--images"]).ok().lines().len(), 2);
    let hash = |x: &str| host.invoke(&["config", "--hash", "a"]).env("X", x).run().ok().stdout;
    assert_eq!(hash("1"), hash("1"));
    assert_ne!(hash("1"), hash("2"));
    host.orch(&["graph"]).ok().prints(&["digraph", "a", "b"]);
    host.orch(&["graph", "-o", "mermaid"]).ok().prints(&["a", "b"]);
    host.orch(&["graph", "-o", "svg"]).ok().prints(&["<svg", "</svg>"]);
    for shell in ["bash", "zsh", "fish"] {
        host.orch(&["completion", shell]).ok().prints(&["orch"]);
    }
    host.orch(&["man"]).ok().prints(&["orch"]);
    host.orch(&["version"]).ok().prints(&[env!("CARGO_PKG_VERSION")]);
    assert_eq!(host.orch(&["version", "--short"]).ok().text(), env!("CARGO_PKG_VERSION"));
    host.orch(&["ps"]).ok();
    host.orch(&["ls"]).ok();
    host.orch(&["down"]).ok();
    assert!(host.agent().is_none() && host.agent_log().is_empty(), "an agent was started");
    host.leaves_no_trace();
}

#[test]
fn a_listing_is_a_table_json_or_a_template() {
    let host = Host::with_busybox();
    host.stack("name: l\nservices: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    host.orch(&["ps"]).ok().prints(&["NAME", "l-a-1", "running"]);
    assert_eq!(host.orch(&["ps", "--format", "{{.Name}} {{.State}}"]).ok().text(), "l-a-1 running");
    assert_eq!(host.orch(&["ps", "-q"]).ok().text().len(), 64);
    assert_eq!(host.orch(&["ps", "--services"]).ok().text(), "a");
    let row = &host.ps()[0];
    for key in [
        "id",
        "name",
        "stack",
        "service",
        "task",
        "slot",
        "image",
        "node",
        "state",
        "health",
        "exit_code",
        "pid",
        "created_at",
        "started_at",
        "finished_at",
        "ports",
        "networks",
        "restarts",
        "error",
    ] {
        assert!(row.get(key).is_some(), "ps has no {key}: {row}");
    }
    // By the stack's name, from anywhere.
    host.sh(Place::Host, &format!("mv {0}/stack.yaml {0}/elsewhere.yaml", host.folder().display()));
    host.orch(&["-p", "l", "ps", "--format", "json"]).ok().prints(&["l-a-1"]);
    host.orch(&["-p", "l", "logs"]).ok();
    host.orch(&["-p", "l", "down", "-t", "2"]).ok();
    host.leaves_no_trace();
}

#[test]
fn the_api_describes_itself_at_the_socket() {
    let host = Host::with_busybox();
    host.orch(&["volume", "create", "described"]).ok();
    let ask = |path: &'static str| {
        let answer = host.inside(Place::Host, || http::get_at_socket(&Path::new(RUN).join("orch.sock"), path)).unwrap();
        serde_json::from_str::<serde_json::Value>(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"))
    };
    let document = ask("/v1/openapi.json");
    let shape =
        &document["paths"]["/v1/node/volumes"]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
    let reference = shape["items"]["$ref"].as_str().unwrap_or_else(|| panic!("{shape}"));
    let described = &document.pointer(reference.trim_start_matches('#')).unwrap()["properties"];
    let volume = &ask("/v1/node/volumes")[0];
    let fields: Vec<_> = volume.as_object().unwrap().keys().collect();
    assert_eq!(fields, described.as_object().unwrap().keys().collect::<Vec<_>>(), "{volume}");
    host.orch(&["volume", "rm", "described"]).ok();
    host.leaves_no_trace();
}
