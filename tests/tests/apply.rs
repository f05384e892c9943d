//! `up` makes the host what the file says, and nothing more.

use orch_tests::host::Host;
use orch_tests::machine::{ADDRESS, Place};
use serde_json::{Value, json};

const THREE: &str = "
name: three
services:
  front: {image: busybox, command: sleep infinity, init: true, depends_on: [back], environment: {COLOUR: '${COLOUR:-blue}'}}
  back: {image: busybox, command: sleep infinity, init: true, depends_on: [base], volumes: ['data:/data']}
  base: {image: busybox, command: sleep infinity, init: true}
volumes: {data: }
";

fn operations(plan: &Value) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let operations = plan["operations"].as_array().cloned().unwrap_or_default();
    operations.iter().map(|o| format!("{} {}", text(&o["action"]), text(&o["resource"]))).collect()
}

#[test]
fn a_plan_names_each_act_its_cause_and_what_it_waits_for() {
    let host = Host::with_busybox();
    host.stack(THREE);
    let plan = host.orch(&["plan", "--format", "json"]).code(10).json();
    assert_eq!(plan["changes"], plan["operations"].as_array().unwrap().len());
    let names = operations(&plan);
    for name in ["create network three_default", "create volume three_data", "create container three-front-1"] {
        assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
    }
    let mut seen = Vec::new();
    for operation in plan["operations"].as_array().unwrap() {
        let waits = operation["depends_on"].as_array().unwrap();
        assert!(waits.iter().all(|w| seen.contains(w)), "an operation comes before what it waits for: {plan}");
        seen.push(operation["id"].clone());
    }
    assert_eq!(host.ps(), Vec::<Value>::new(), "a plan changed something");
    host.leaves_no_trace();
}

#[test]
fn a_second_up_plans_and_does_nothing() {
    let host = Host::with_busybox();
    host.stack(THREE);
    host.up();
    let before = host.running();
    assert_eq!(before.len(), 3);
    let plan = host.orch(&["plan", "--format", "json"]).code(0).json();
    assert_eq!((&plan["changes"], plan["operations"].as_array().map(Vec::len)), (&json!(0), Some(0)));
    host.up();
    assert_eq!(host.running(), before);
    host.orch(&["down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn one_changed_variable_makes_one_container_anew_and_the_plan_says_why() {
    let host = Host::with_busybox();
    host.stack(THREE);
    host.up();
    let before = host.running();
    let plan = host.invoke(&["plan"]).env("COLOUR", "red").run().code(10);
    assert_eq!(plan.lines().len(), 1, "{}", plan.told());
    plan.prints(&["recreate container three-front-1", "environment", "COLOUR"]);
    host.invoke(&["up", "-d", "--wait"]).env("COLOUR", "red").run().ok();
    let after = host.running();
    assert_eq!(host.exec("front", "echo $COLOUR"), "red");
    let changed: Vec<&String> =
        before.iter().filter(|(name, id)| after.get(*name) != Some(id)).map(|(name, _)| name).collect();
    assert_eq!(changed, ["three-front-1"]);
    host.orch(&["down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn a_service_scales_from_one_to_five_to_two() {
    let host = Host::with_busybox();
    host.stack("name: s\nservices: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    let first = host.running();
    host.orch(&["up", "-d", "--wait", "--scale", "a=5"]).ok();
    let five = host.running();
    assert_eq!(five.keys().collect::<Vec<_>>(), ["s-a-1", "s-a-2", "s-a-3", "s-a-4", "s-a-5"]);
    assert_eq!(five["s-a-1"], first["s-a-1"], "the first replica was disturbed");
    assert_eq!(
        host.exec("a", "nslookup a 2>/dev/null | grep -c '^Address.*10\\.\\|^Address.*172\\.\\|^Address.*192\\.'"),
        "5"
    );
    host.orch(&["scale", "a=2", "--wait"]).ok();
    let two = host.ps();
    assert_eq!(two.len(), 2, "{two:?}");
    assert_eq!(host.running(), five.into_iter().take(2).collect());
    host.down();
    host.leaves_no_trace();
}

#[test]
fn volumes_stay_until_they_are_asked_to_go() {
    let host = Host::with_busybox();
    host.stack(THREE);
    host.up();
    host.exec("back", "echo kept >/data/file");
    host.down();
    host.up();
    assert_eq!(host.exec("back", "cat /data/file"), "kept");
    host.orch(&["down", "-v"]).ok();
    host.up();
    assert_eq!(host.exec("back", "ls /data"), "");
    host.orch(&["down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn down_says_removed_only_of_what_is_gone() {
    let host = Host::with_busybox();
    host.orch(&["volume", "create", "mine"]).ok();
    host.orch(&["network", "create", "outer"]).ok();
    host.stack(
        "name: w
services: {a: {image: busybox, command: sleep infinity, init: true, volumes: ['mine:/m', 'data:/d'], networks: [default, outer]}}
volumes: {mine: {external: true}, data: {}}
networks: {outer: {external: true}}",
    );
    host.up();
    let gone = |arguments: &[&str]| {
        let told = host.orch(arguments).ok().stderr;
        let gone = told.lines().filter_map(|line| line.strip_suffix("Removed")).map(|line| line.trim().to_owned());
        gone.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(gone(&["down"]), ["container w-a-1", "network w_default"]);
    host.up();
    assert_eq!(gone(&["down", "-v"]), ["container w-a-1", "network w_default", "volume w_data"]);
    host.orch(&["volume", "rm", "mine"]).ok();
    host.orch(&["network", "rm", "outer"]).ok();
    host.leaves_no_trace();
}

#[test]
fn a_network_that_others_are_on_goes_with_the_next_down() {
    let host = Host::with_busybox();
    host.stack("name: n\nservices: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    let foreign = ["container", "run", "-d", "--init", "--name", "foreign", "--network", "n_default"];
    host.orch(&[&foreign[..], &["busybox", "sleep", "infinity"]].concat()).ok();
    let networks = || host.orch(&["network", "ls"]).ok().stdout;
    host.orch(&["down", "-t", "2"]).ok().says(&["n_default stays: it is still in use by foreign"]);
    assert!(networks().contains("n_default"));
    host.orch(&["container", "rm", "-f", "foreign"]).ok();
    host.down();
    assert!(!networks().contains("n_default"));
    host.orch(&["down"]).ok().says(&["nothing to remove"]);
    host.leaves_no_trace();
}

#[test]
fn an_external_volume_outlives_down_with_volumes() {
    let host = Host::with_busybox();
    host.stack("services: {a: {image: busybox, command: sleep infinity, init: true, volumes: ['mine:/m']}}\nvolumes: {mine: {external: true}}");
    host.orch(&["up", "-d"]).fails().says(&["mine"]);
    host.orch(&["volume", "create", "mine"]).ok();
    host.up();
    host.exec("a", "touch /m/x");
    host.orch(&["down", "-v"]).ok();
    assert_eq!(host.orch(&["volume", "ls", "-q"]).ok().text(), "mine");
    host.orch(&["volume", "rm", "mine"]).ok();
    host.leaves_no_trace();
}

#[test]
fn a_service_that_the_file_lost_is_an_orphan_until_it_is_removed() {
    let host = Host::with_busybox();
    host.stack(THREE);
    host.up();
    host.stack("name: three\nservices: {base: {image: busybox, command: sleep infinity, init: true}}");
    host.orch(&["up", "-d", "--wait"]).ok().says(&["orphan"]);
    assert_eq!(host.running().len(), 3);
    host.orch(&["up", "-d", "--wait", "--remove-orphans"]).ok();
    assert_eq!(host.running().into_keys().collect::<Vec<_>>(), ["three-base-1"]);
    host.orch(&["down", "-v"]).ok();
    // The volume's key is in no file any more; its owner removes it by name.
    let left = host.orch(&["volume", "ls", "-q"]).ok();
    if !left.text().is_empty() {
        host.orch(&["volume", "rm", "three_data"]).ok();
    }
    host.leaves_no_trace();
}

#[test]
fn a_service_with_a_profile_runs_only_when_asked_for() {
    let host = Host::with_busybox();
    host.stack(
        "name: p\nservices:
  a: {image: busybox, command: sleep infinity, init: true}
  debug: {image: busybox, command: sleep infinity, init: true, profiles: [debug]}",
    );
    host.up();
    assert_eq!(host.running().into_keys().collect::<Vec<_>>(), ["p-a-1"]);
    host.orch(&["--profile", "debug", "up", "-d", "--wait"]).ok();
    assert_eq!(host.running().len(), 2);
    host.orch(&["--profile", "debug", "down", "-t", "2"]).ok();
    host.leaves_no_trace();
}

#[test]
fn chosen_services_start_with_what_they_depend_on_and_nothing_else() {
    let host = Host::with_busybox();
    host.stack(THREE);
    host.orch(&["up", "-d", "--wait", "back"]).ok();
    assert_eq!(host.running().into_keys().collect::<Vec<_>>(), ["three-back-1", "three-base-1"]);
    host.orch(&["up", "-d", "nothing"]).fails().says(&["no such service: nothing"]);
    host.orch(&["down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn force_recreate_makes_all_anew_and_no_recreate_none() {
    let host = Host::with_busybox();
    host.stack(THREE);
    host.up();
    let first = host.running();
    host.orch(&["up", "-d", "--wait", "--force-recreate", "-t", "2"]).ok();
    let second = host.running();
    assert!(first.iter().all(|(name, id)| second[name] != *id), "{first:?} {second:?}");
    host.invoke(&["up", "-d", "--wait", "--no-recreate"]).env("COLOUR", "red").run().ok();
    assert_eq!(host.running(), second);
    host.orch(&["down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn up_with_wait_counts_a_one_shot_that_ended_well_as_done() {
    let host = Host::with_busybox();
    host.stack(
        "name: o\nservices:
  job: {image: busybox, command: [sh, -c, 'echo done']}
  server: {image: busybox, command: sleep infinity, init: true}",
    );
    host.up();
    assert_eq!(host.container("job")["exit_code"], 0);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn up_with_wait_shows_the_last_lines_of_what_failed() {
    let host = Host::with_busybox();
    host.stack("name: f\nservices: {job: {image: busybox, command: [sh, -c, 'echo the disk is on fire >&2; exit 7']}}");
    host.orch(&["up", "-d", "--wait"]).fails().says(&["f-job-1", "the disk is on fire", "7"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_dependency_that_fails_is_named_and_its_dependent_never_starts() {
    let host = Host::with_busybox();
    host.stack(
        "name: d\nservices:
  migration: {image: busybox, command: [sh, -c, 'exit 4']}
  app:
    image: busybox
    command: sleep infinity
    init: true
    depends_on: {migration: {condition: service_completed_successfully}}",
    );
    host.orch(&["up", "-d", "--wait"]).fails().says(&["migration", "4"]);
    assert_eq!(host.container("app")["started_at"], "");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn what_could_not_be_made_or_started_comes_up_by_itself_when_its_policy_says_so() {
    let host = Host::with_busybox();
    host.orch(&["container", "run", "-d", "--init", "--name", "wanted", "busybox", "sleep", "infinity"]).ok();
    host.stack(
        "name: n\nx-a: &a {image: busybox, command: sleep infinity, init: true, restart: always}\nservices:
  named: {<<: *a, container_name: wanted}
  mounted: {<<: *a, volumes: [{type: bind, source: ./later, target: /x, bind: {create_host_path: false}}]}
  once: {<<: *a, restart: on-failure:1, volumes: [{type: bind, source: ./never, target: /x, bind: {create_host_path: false}}]}
  after: {<<: *a, depends_on: [mounted]}",
    );
    host.orch(&["up", "-d"]).fails();
    host.orch(&["container", "rm", "-f", "wanted"]).ok();
    std::fs::create_dir(host.folder().join("later")).unwrap();
    for service in ["named", "mounted", "after"] {
        host.becomes(service, "running by itself", |seen| seen["state"] == "running");
    }
    host.becomes("once", "given up", |seen| seen["state"] == "failed" && seen["restarts"] == 1);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn what_could_not_be_made_is_made_by_the_next_up_when_nothing_is_in_its_way_any_more() {
    let host = Host::with_busybox();
    host.orch(&["container", "run", "-d", "--init", "--name", "wanted", "busybox", "sleep", "infinity"]).ok();
    host.stack(
        "name: n\nservices:
  db: {image: busybox, command: sleep infinity, init: true, container_name: wanted}
  app: {image: busybox, command: sleep infinity, init: true, depends_on: [db]}",
    );
    for _ in 0..2 {
        host.orch(&["up", "-d", "--wait", "--wait-timeout", "30"]).fails().says(&["\"wanted\" is already in use"]);
    }
    host.orch(&["container", "rm", "-f", "wanted"]).ok();
    host.orch(&["up", "-d", "--wait", "--wait-timeout", "30"]).ok();
    assert_eq!(host.running().len(), 2);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn who_takes_over_mounts_is_made_anew_with_their_owner() {
    let host = Host::with_busybox();
    let stack = |volumes: &str| {
        host.stack(&format!(
            "name: v\nservices:
  owner: {{image: busybox, command: sleep infinity, init: true, volumes: {volumes}}}
  guest: {{image: busybox, command: sleep infinity, init: true, volumes_from: [owner]}}
  other: {{image: busybox, command: sleep infinity, init: true, depends_on: [owner]}}"
        ));
        host.up();
        host.running()
    };
    let first = stack("[/one]");
    host.exec("guest", "touch /one/kept");
    let second = stack("[/one, /two]");
    assert_ne!(first["v-guest-1"], second["v-guest-1"]);
    assert_eq!(first["v-other-1"], second["v-other-1"]);
    host.exec("owner", "touch /two/new");
    host.exec("guest", "ls /one/kept /two/new");
    host.orch(&["down", "-v", "-t", "2"]).ok();
    host.leaves_no_trace();
}

#[test]
fn services_of_one_stack_that_are_up_survive_another_stack_of_the_same_host() {
    let host = Host::with_busybox();
    host.stack("name: one\nservices: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.write(
        "two.yaml",
        "name: two\nservices: {a: {image: busybox, command: [httpd, -f, -p, '80'], init: true, ports: ['8080:80']}}",
    );
    host.up();
    let one = host.running();
    host.orch(&["-f", "two.yaml", "up", "-d", "--wait"]).ok();
    let stacks = host.orch(&["ls", "--format", "json"]).ok().json_lines();
    assert_eq!(stacks.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), ["one", "two"]);
    assert!(host.page(Place::Host, ADDRESS, 8080, "/").unwrap_err().contains("404"));
    // Networks of two stacks do not reach each other.
    let there =
        host.orch(&["-f", "two.yaml", "ps", "--format", "json"]).ok().json_lines()[0]["networks"]["default"]["ipv4"]
            .clone();
    let probe =
        ["exec", "-T", "a", "wget", "-q", "-T", "2", "-O", "-", &format!("http://{}/", there.as_str().unwrap())];
    let answer = host.orch(&probe).fails();
    assert!(!answer.stderr.contains("404"), "one stack reached another: {}", answer.told());
    host.orch(&["-f", "two.yaml", "down", "-t", "2"]).ok();
    assert_eq!(host.running(), one);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_dry_run_changes_nothing() {
    let host = Host::with_busybox();
    host.stack(THREE);
    host.orch(&["--dry-run", "up", "-d"]).ok().prints(&["create container three-base-1"]);
    assert!(host.ps().is_empty());
    host.up();
    let before = host.running();
    for verb in [&["down"][..], &["stop"], &["restart"], &["kill"], &["kill", "-s", "USR1"], &["pause"], &["rm", "-s"]]
    {
        host.orch(&[&["--dry-run"], verb].concat()).ok().says(&["would"]);
    }
    // What cannot be tried says so and does nothing, rather than to do it.
    host.orch(&["volume", "create", "kept"]).ok();
    for verb in [
        &["volume", "rm", "kept"][..],
        &["container", "rm", "-f", "three-base-1"],
        &["scale", "base=3"],
        &["system", "prune", "-f"],
    ] {
        host.orch(&[&["--dry-run"], verb].concat()).code(2).says(&["nothing was done"]);
    }
    host.orch(&["volume", "inspect", "kept"]).ok();
    assert_eq!(host.running(), before);
    host.orch(&["volume", "rm", "kept"]).ok();
    host.orch(&["down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn a_stopped_stack_comes_up_again_with_the_same_containers() {
    let host = Host::with_busybox();
    let service = "image: busybox, init: true, command: sleep infinity";
    let health = "healthcheck: {test: [CMD, 'true'], interval: 1s, start_period: 10s, start_interval: 100ms}";
    host.stack(&format!(
        "services:\n  a: {{{service}, {health}}}\n  b: {{{service}, depends_on: {{a: {{condition: service_healthy}}}}}}\n  c: {{{service}, depends_on: [b]}}"
    ));
    host.up();
    let ids = |host: &Host| host.ps().iter().map(|c| c["id"].clone()).collect::<Vec<_>>();
    let before = ids(&host);
    host.orch(&["stop", "-t", "5"]).ok();
    host.up();
    assert_eq!(ids(&host), before);
    assert_eq!(host.running().len(), 3);
    host.down();
    host.leaves_no_trace();
}
