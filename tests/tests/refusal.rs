//! What cannot be done is refused with words that help, and leaves nothing half-made.

use orch_tests::host::{Host, RUN};
use orch_tests::image;
use orch_tests::machine::Place;
use orch_tests::wait::{PATIENCE, eventually};

const SLEEPER: &str = "image: busybox, command: sleep infinity, init: true";

/// Gives the host a data folder of its own size; the guard takes it away before traces are looked for.
fn small_disk(host: &Host, size: &str) {
    host.sh(Place::Host, &format!("mount -t tmpfs -o size={size} tmpfs {}", host.data().display()));
}

fn take_disk_away(host: &Host) {
    host.stop_agent();
    // The shim of what was taken down last ends by itself, a moment later.
    let umount = format!("umount {} 2>&1 || true", host.data().display());
    eventually(PATIENCE, "nothing uses the disk", || match host.sh(Place::Host, &umount) {
        said if said.is_empty() => Ok(()),
        said => Err(said),
    });
}

#[test]
fn a_port_that_is_taken_names_who_has_it() {
    let host = Host::with_busybox();
    host.sh(Place::Host, "busybox nc -l -p 8080 </dev/null >/dev/null 2>&1 & echo $! >holder");
    let holder = host.sh(Place::Host, "cat holder").trim().to_owned();
    let listens = || host.sh(Place::Host, "ss -ltn 2>/dev/null || netstat -ltn");
    eventually(PATIENCE, "nc listens", || if listens().contains(":8080") { Ok(()) } else { Err(listens()) });
    host.stack(&format!("name: p\nservices: {{a: {{{SLEEPER}, ports: ['8080:80']}}}}"));
    host.orch(&["up", "-d", "--wait"]).fails().says(&["8080", "busybox", &holder]);
    assert!(host.running().is_empty());
    host.down();
    host.sh(Place::Host, &format!("kill {holder}; rm holder"));
    host.up();
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_port_of_another_container_names_it() {
    let host = Host::with_busybox();
    host.stack(&format!("name: first\nservices: {{a: {{{SLEEPER}, ports: ['8080:80']}}}}"));
    host.up();
    host.write("second.yaml", &format!("name: second\nservices: {{b: {{{SLEEPER}, ports: ['8080:80']}}}}"));
    host.orch(&["-f", "second.yaml", "up", "-d", "--wait"]).fails().says(&["8080", "first-a-1"]);
    host.orch(&["-f", "second.yaml", "down", "-t", "1"]).ok();
    host.down();
    host.leaves_no_trace();
}

#[test]
fn an_image_that_is_missing_is_named_before_anything_is_made() {
    let host = Host::with_busybox();
    host.stack(&format!("name: m\nservices: {{a: {{{SLEEPER}}}, b: {{image: 'nowhere/such:7'}}}}"));
    host.orch(&["up", "-d", "--wait"]).fails().says(&["nowhere/such:7"]);
    assert!(host.running().is_empty(), "a half of the stack was started");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_command_that_the_image_lacks_is_named_with_code_127() {
    let host = Host::with_busybox();
    host.stack("name: c\nservices: {a: {image: busybox, command: [no-such-command]}}");
    host.orch(&["up", "-d", "--wait"]).code(127).says(&["no-such-command", "c-a-1"]);
    host.orch(&["up"]).code(127).says(&["no-such-command"]);
    host.stack("name: c\nservices: {a: {image: busybox, command: [/etc/passwd]}}");
    host.orch(&["up", "-d", "--wait"]).code(126).says(&["/etc/passwd"]);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_wrong_file_shows_all_its_problems_at_once() {
    let host = Host::new();
    host.stack("services:\n  a:\n    imagee: busybox\n    ports: ['99999:80']\n  b:\n    image: busybox\n    depends_on: [c]\n");
    let refused = host.orch(&["up", "-d"]).code(2);
    refused.says(&["stack.yaml:3:5", "imagee", "image", "stack.yaml:4", "99999", "stack.yaml:7", "c"]);
    host.orch(&["config", "-q"]).code(2);
    host.orch(&["-f", "nowhere.yaml", "up"]).code(2).says(&["nowhere.yaml"]);
    host.orch(&["upp"]).code(2).says(&["up"]);
    assert!(host.agent().is_none(), "an agent was started for a file that is wrong");
    host.leaves_no_trace();
}

#[test]
fn an_import_onto_a_full_disk_leaves_nothing_of_itself() {
    let host = Host::new();
    small_disk(&host, "24m");
    host.load("busybox");
    let before =
        host.sh(Place::Host, &format!("cd {} && find . -type f | grep -v control | sort", host.data().display()));
    let tar = host.folder().join("big.tar");
    let noise: String =
        (0..8_000_000u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    image::root_archive(&tar, &[("etc/1", &noise), ("etc/2", &noise), ("etc/3", &noise)]);
    host.orch(&["image", "import", "big.tar", "big"]).fails().says(&["space"]);
    host.orch(&["image", "load", "-i", &image::archive("redis").to_string_lossy()]).fails().says(&["space"]);
    let after =
        host.sh(Place::Host, &format!("cd {} && find . -type f | grep -v control | sort", host.data().display()));
    assert_eq!(after, before, "something half-made is left");
    assert!(!host.orch(&["image", "ls", "--format", "json"]).ok().stdout.contains("big"));
    host.stack(&format!("services: {{a: {{{SLEEPER}}}}}"));
    host.up();
    host.down();
    take_disk_away(&host);
    host.leaves_no_trace();
}

#[test]
fn a_log_that_fills_the_disk_stops_neither_its_writer_nor_others() {
    let host = Host::new();
    small_disk(&host, "32m");
    host.load("busybox");
    host.stack(&format!(
        "name: full\nservices:
  flood: {{image: busybox, init: true, command: 'yes the disk is going to be full', logging: {{options: {{max-size: 1g}}}}}}
  calm: {{{SLEEPER}}}"
    ));
    host.up();
    let before = host.running();
    let free = || host.sh(Place::Host, &format!("df -k {} | tail -1 | awk '{{print $4}}'", host.data().display()));
    eventually(PATIENCE, "the disk is full", || {
        if free().trim().parse::<u64>().is_ok_and(|k| k < 4096) { Ok(()) } else { Err(free()) }
    });
    assert_eq!(host.exec("calm", "echo alive"), "alive");
    assert_eq!(host.running(), before, "a full disk ended a container");
    host.orch(&["down", "-t", "1"]).ok();
    host.stack(&format!("name: full\nservices: {{calm: {{{SLEEPER}}}}}"));
    host.up();
    host.down();
    take_disk_away(&host);
    host.leaves_no_trace();
}

#[test]
fn subnets_that_clash_are_refused_and_the_pool_avoids_what_the_host_uses() {
    let host = Host::with_busybox();
    let with = |name: &str, subnet: &str| {
        format!(
            "name: {name}\nservices: {{a: {{{SLEEPER}}}}}\nnetworks: {{default: {{ipam: {{config: [{{subnet: {subnet}}}]}}}}}}"
        )
    };
    host.stack(&with("one", "10.99.0.0/24"));
    host.up();
    host.write("two.yaml", &with("two", "10.99.0.128/25"));
    host.orch(&["-f", "two.yaml", "up", "-d", "--wait"]).fails().says(&["10.99.0.128/25", "one_default"]);
    host.write("three.yaml", &with("three", "198.51.100.0/24"));
    host.orch(&["-f", "three.yaml", "up", "-d", "--wait"]).fails().says(&["198.51.100.0/24", "lan0"]);
    for file in ["two.yaml", "three.yaml"] {
        host.orch(&["-f", file, "down"]).ok();
    }
    host.down();
    // A route to a VPN that covers what the pool would have given first.
    host.write("free.yaml", &format!("name: free\nservices: {{a: {{{SLEEPER}}}}}"));
    host.orch(&["-f", "free.yaml", "up", "-d", "--wait"]).ok();
    let address = |host: &Host| {
        let all = host.orch(&["-f", "free.yaml", "ps", "--format", "json"]).ok().json_lines();
        all[0]["networks"]["default"]["ipv4"].as_str().unwrap().to_owned()
    };
    let first = address(&host);
    host.orch(&["-f", "free.yaml", "down", "-t", "1"]).ok();
    let parts: Vec<&str> = first.split('.').collect();
    let vpn = format!("{}.{}.0.0/16", parts[0], parts[1]);
    host.sh(Place::Host, &format!("ip route add {vpn} via 198.51.100.2"));
    host.orch(&["-f", "free.yaml", "up", "-d", "--wait"]).ok();
    let second = address(&host);
    assert!(
        !second.starts_with(&format!("{}.{}.", parts[0], parts[1])),
        "{second} is in {vpn}, which the host routes elsewhere"
    );
    host.orch(&["-f", "free.yaml", "down", "-t", "1"]).ok();
    host.sh(Place::Host, &format!("ip route del {vpn}"));
    host.leaves_no_trace();
}

#[test]
fn a_second_agent_on_one_data_folder_is_refused() {
    let host = Host::new();
    host.start_agent();
    let first = host.agent().unwrap();
    host.orch(&["agent"]).fails().says(&["another agent", &host.data().to_string_lossy()]);
    // Another run folder does not help.
    host.orch(&["agent", "--run-dir", "/run/elsewhere"]).fails().says(&["another agent"]);
    assert_eq!(host.agent(), Some(first));
    assert!(!host.path("/run/elsewhere/orch.sock").exists());
    host.sh(Place::Host, "rm -rf /run/elsewhere");
    host.leaves_no_trace();
}

#[test]
fn a_folder_that_is_not_orchs_is_not_taken_as_its_state() {
    let host = Host::new();
    std::fs::write(host.data().join("precious"), "not orch's").unwrap();
    std::fs::create_dir(host.data().join("images")).unwrap();
    std::fs::write(host.data().join("images/holiday.jpg"), "picture").unwrap();
    let before = orch_tests::traces::tree(&host.data());
    host.orch(&["agent"]).fails().says(&[&host.data().to_string_lossy()]);
    assert_eq!(orch_tests::traces::tree(&host.data()), before);
    host.sh(Place::Host, &format!("rm -r {0}/precious {0}/images", host.data().display()));
    host.leaves_no_trace();
}

#[test]
fn a_control_log_that_is_damaged_or_newer_is_refused_and_kept() {
    let host = Host::with_busybox();
    host.stack(&format!("services: {{a: {{{SLEEPER}}}}}"));
    host.up();
    let before = host.running();
    host.stop_agent();
    let path = host.data().join("control/log");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, b"someone else's bytes").unwrap();
    host.orch(&["agent"]).fails().says(&[&path.to_string_lossy()]);
    assert_eq!(std::fs::read(&path).unwrap(), b"someone else's bytes");
    std::fs::write(&path, good).unwrap();
    assert_eq!(host.running(), before, "what runs was touched");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn who_may_not_talk_to_the_agent_is_told_so() {
    let host = Host::new();
    host.start_agent();
    let mode = host.sh(Place::Host, &format!("stat -c %a {RUN}/orch.sock"));
    assert_eq!(mode.trim(), "660");
    host.leaves_no_trace();
}

#[test]
fn what_is_not_there_is_named_with_what_there_is() {
    let host = Host::with_busybox();
    host.stack("name: here\nservices: {a: {image: busybox, command: sleep infinity, init: true}}");
    host.up();
    for (arguments, words) in [
        (&["-p", "none", "logs"][..], &["no such stack: none", "orch ls"][..]),
        (&["-p", "none", "exec", "a", "true"], &["no such stack: none", "orch ls"]),
        (&["logs", "b"], &["no such service: b", "services of stack here: a"]),
        (&["container", "logs", "none"], &["no such container: none", "orch container ls -a"]),
        (&["network", "inspect", "none"], &["no such network: none", "orch network ls"]),
    ] {
        host.orch(arguments).code(1).says(words);
    }
    host.orch(&["ps", "--format", "{{.Nope}}"]).code(2).says(&["Nope", "exit_code"]);
    host.orch(&["ps", "--status", "well"]).code(2).says(&["well", "restarting"]);
    let run = |rest: &[&str]| host.orch(&[&["container", "run", "--rm"], rest, &["busybox", "true"]].concat());
    run(&["--cpuset-cpus", "4000"]).code(125).says(&["no processor 4000", "this host has 0"]);
    run(&["-v", "/etc/passwd:/etc"]).code(125).says(&["cannot mount /etc", "a file and the other a folder"]);
    // An attached `up` says it once, in the same words.
    host.stack("name: here\nservices: {a: {image: busybox, command: [no-such-command]}}");
    let up = host.orch(&["up"]).code(127);
    assert!(up.stderr.contains("error: container here-a-1: cannot execute"), "{}", up.told());
    host.down();
    host.leaves_no_trace();
}
