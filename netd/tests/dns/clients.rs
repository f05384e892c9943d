//! Real clients: what is in containers.

use std::path::PathBuf;
use std::process::Command;

use orch_netd::dns::resolv_conf::{ResolvConf, ResolvOverrides, embedded};

use crate::upstream::{Upstream, negative, positive};
use crate::world::{Sandbox, World, on_a_host, succeed};

/// What `ip netns exec` binds over `/etc/resolv.conf`; removed at the end.
struct Etc(PathBuf);

impl Etc {
    fn new(sandbox: &Sandbox, host: &str) -> Etc {
        let directory = PathBuf::from("/etc/netns").join(&sandbox.name);
        std::fs::create_dir_all(&directory).unwrap();
        let text = embedded(&ResolvConf::parse(host), &ResolvOverrides::default());
        std::fs::write(directory.join("resolv.conf"), text).unwrap();
        Etc(directory)
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        // Ours alone if empty.
        let _ = std::fs::remove_dir("/etc/netns");
    }
}

fn there(program: &str) -> bool {
    let there = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !there {
        eprintln!("skipped: needs {program}");
    }
    there
}

fn prepared(world: &World) -> (Upstream, Sandbox, Etc) {
    let upstream = Upstream::start("127.0.0.1", |asked, _| {
        match asked.queries[0].name.to_string().to_ascii_lowercase().as_str() {
            "www.example.com." => vec![positive(asked, "192.0.2.1", 60)],
            _ => vec![negative(asked, 5)],
        }
    });
    world.shop();
    let sandbox = world.sandbox(&["shop"]);
    // glibc asks for no family of which it has only loopback addresses.
    let ip = |arguments: &str| succeed(Command::new("ip").args(["-n", &sandbox.name]).args(arguments.split(' ')));
    ip("link add eth0 type veth peer name eth1");
    ip("addr add 10.89.0.9/24 dev eth0");
    ip("addr add fd00:89::9/64 dev eth0 nodad");
    ip("link set eth0 up");
    ip("link set eth1 up");
    let etc = Etc::new(&sandbox, "nameserver 127.0.0.1\nsearch corp.example\n");
    (upstream, sandbox, etc)
}

#[test]
fn glibc_resolves_services_reverse_names_and_the_world() {
    if !there("getent") {
        return;
    }
    on_a_host(|world| {
        let (upstream, sandbox, _etc) = prepared(world);
        let getent = |database: &str, key: &str| sandbox.command("getent").args([database, key]).output().unwrap();
        let text = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
        assert!(text(getent("ahostsv4", "db")).starts_with("10.89.0.2 "));
        assert!(text(getent("ahostsv4", "DB.shop_default")).starts_with("10.89.0.2 "));
        assert!(text(getent("ahostsv6", "web")).starts_with("fd00:89::3 "));
        assert!(text(getent("hosts", "10.89.0.2")).contains("shop-db-1.shop_default"));
        assert!(text(getent("ahostsv4", "www.example.com")).starts_with("192.0.2.1 "));
        assert!(!getent("ahostsv4", "nobody.example.com").status.success());
        assert!(
            upstream.seen().iter().all(|seen| !seen.name.to_ascii_lowercase().starts_with("db")),
            "{:?}",
            upstream.seen()
        );
    });
}

#[test]
fn busybox_resolves_services() {
    if !there("busybox") {
        return;
    }
    on_a_host(|world| {
        let (_upstream, sandbox, _etc) = prepared(world);
        let text = succeed(sandbox.command("busybox").args(["nslookup", "db", "127.0.0.11"]));
        assert!(text.contains("10.89.0.2"), "{text}");
        let text = succeed(sandbox.command("busybox").args(["nslookup", "10.89.0.2", "127.0.0.11"]));
        assert!(text.contains("shop-db-1.shop_default"), "{text}");
    });
}

#[test]
fn dig_is_content_over_udp_and_tcp() {
    if !there("dig") {
        return;
    }
    on_a_host(|world| {
        let (_upstream, sandbox, _etc) = prepared(world);
        let dig = |arguments: &[&str]| succeed(sandbox.command("dig").args(arguments));
        assert_eq!(dig(&["+short", "db"]).trim(), "10.89.0.2");
        assert_eq!(dig(&["+short", "+tcp", "db.shop"]).trim(), "10.89.0.2");
        assert_eq!(dig(&["+short", "-x", "10.89.0.2"]).trim(), "shop-db-1.shop_default.");
        assert_eq!(dig(&["+short", "www.example.com"]).trim(), "192.0.2.1");
        assert_eq!(dig(&["+short", "+tcp", "www.example.com"]).trim(), "192.0.2.1");
        for name in ["db", "www.example.com"] {
            let whole = dig(&["+dnssec", "+bufsize=4096", name]);
            assert!(whole.contains("status: NOERROR") && whole.contains("udp: 1232"), "{whole}");
            assert!(!whole.contains("WARNING") && !whole.contains("malformed"), "{whole}");
        }
        assert!(dig(&["nobody.example.com"]).contains("status: NXDOMAIN"));
    });
}
