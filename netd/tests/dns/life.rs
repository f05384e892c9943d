//! Sandboxes and agents that come and go.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use orch_netd::dns::{AttachError, Dns, DnsConfig, SandboxDns};

use crate::world::{Sandbox, eventually, on_a_host, question, shop, sorted, succeed};

/// The path of the namespace that [`an_agent_of_its_own`] serves.
const NAMESPACE: &str = "ORCH_DNS_TEST_NAMESPACE";

fn rules(sandbox: &Sandbox) -> String {
    succeed(sandbox.command("nft").args(["list", "ruleset"]))
}

fn serve_shop(dns: &Dns, sandbox: &Sandbox) {
    dns.set_network("shop".into(), shop());
    dns.set_sandbox(sandbox.id.clone(), SandboxDns { networks: vec!["shop".into()], ..SandboxDns::default() });
    dns.attach(sandbox.id.clone(), &sandbox.path).unwrap();
}

#[test]
fn a_container_may_be_a_dns_server_itself() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let (udp, tcp) = sandbox.run(|| {
            (
                UdpSocket::bind("0.0.0.0:53").expect("port 53 is free"),
                TcpListener::bind("0.0.0.0:53").expect("port 53 is free"),
            )
        });
        assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        assert_eq!(sorted(&sandbox.ask_tcp("db", RecordType::A)), ["10.89.0.2"]);
        // Its own server is reached at any other address.
        sandbox.run(|| {
            UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"to the app", "127.0.0.1:53").unwrap();
            let mut packet = [0; 32];
            udp.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
            let (length, _) = udp.recv_from(&mut packet).unwrap();
            assert_eq!(&packet[..length], b"to the app");
            let client = TcpStream::connect("127.0.0.1:53").unwrap();
            assert_eq!(tcp.accept().unwrap().1, client.local_addr().unwrap());
        });
    });
}

#[test]
fn answers_come_from_port_53_also_when_their_flow_was_forgotten() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let listing = rules(&sandbox);
        for rule in [
            "ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:35353",
            "ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:35353",
            "ip saddr 127.0.0.11 udp sport 35353 snat to 127.0.0.11:53",
            "ip saddr 127.0.0.11 tcp sport 35353 snat to 127.0.0.11:53",
        ] {
            assert!(listing.contains(rule), "{rule} is missing:\n{listing}");
        }
        // A flow that conntrack does not know, from our port to a client: as after a flush between question and answer.
        sandbox.run(|| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
            world.dns.detach(&sandbox.id);
            let server = UdpSocket::bind("127.0.0.11:35353").expect("detach frees the port before it returns");
            server.send_to(b"answer", client.local_addr().unwrap()).unwrap();
            let (_, from) = client.recv_from(&mut [0; 32]).unwrap();
            assert_eq!(from.to_string(), "127.0.0.11:53");
        });
    });
}

#[test]
fn attaching_again_keeps_what_is_there_and_mends_what_is_not() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let attach = || world.dns.attach(sandbox.id.clone(), &sandbox.path).unwrap();
        let before = rules(&sandbox);
        attach();
        assert_eq!(rules(&sandbox), before);
        world.dns.detach(&sandbox.id);
        attach();
        assert_eq!(rules(&sandbox), before);
        assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        for damage in [vec!["delete", "table", "ip", "orch-dns"], vec!["flush", "chain", "ip", "orch-dns", "output"]] {
            world.dns.detach(&sandbox.id);
            succeed(sandbox.command("nft").args(damage));
            attach();
            assert_eq!(rules(&sandbox), before);
            assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        }
        assert_eq!(world.dns.serving(), std::slice::from_ref(&sandbox.id));
    });
}

#[test]
fn links_and_dns_may_be_set_up_in_any_order() {
    on_a_host(|world| {
        world.shop();
        let sandbox = Sandbox::new();
        succeed(Command::new("ip").args(["-n", &sandbox.name, "link", "set", "lo", "down"]));
        serve_shop(&world.dns, &sandbox);
        succeed(Command::new("ip").args(["-n", &sandbox.name, "link", "set", "lo", "up"]));
        assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
    });
}

#[test]
fn a_taken_port_is_an_error_that_says_so_and_leaves_nothing_served() {
    on_a_host(|world| {
        let sandbox = Sandbox::new();
        let _taken = sandbox.run(|| UdpSocket::bind("0.0.0.0:35353").unwrap());
        let error = world.dns.attach(sandbox.id.clone(), &sandbox.path).unwrap_err();
        assert!(matches!(&error, AttachError::Listen { protocol: "udp", .. }), "{error:?}");
        assert!(error.to_string().contains("127.0.0.11:35353"), "{error}");
        assert!(world.dns.serving().is_empty());
        let missing = std::path::Path::new("/run/netns/orch-dns-test-none");
        assert!(matches!(world.dns.attach("none".into(), missing), Err(AttachError::Namespace { .. })));
    });
}

#[test]
fn the_port_is_kept_from_outgoing_sockets() {
    on_a_host(|world| {
        let sandbox = Sandbox::new();
        let file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        sandbox.run(|| std::fs::write(file, "8080,9000-9010").unwrap());
        for _ in 0..2 {
            serve_shop(&world.dns, &sandbox);
            world.dns.detach(&sandbox.id);
        }
        assert_eq!(sandbox.run(|| std::fs::read_to_string(file).unwrap()).trim(), "8080,9000-9010,35353");
    });
}

#[test]
fn many_sandboxes_come_and_go_while_others_are_answered() {
    on_a_host(|world| {
        world.shop();
        let steady = world.sandbox(&["shop"]);
        let sandboxes: Vec<Sandbox> = (0..20).map(|_| world.sandbox(&["shop"])).collect();
        for sandbox in &sandboxes {
            assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
            world.dns.detach(&sandbox.id);
            world.dns.remove_sandbox(&sandbox.id);
            assert_eq!(steady.addresses("db"), ["10.89.0.2"]);
        }
        assert_eq!(world.dns.serving(), std::slice::from_ref(&steady.id));
    });
}

/// Not a test by itself: the process that [`a_killed_agent_leaves_its_rules_and_the_next_one_answers`] starts and kills.
#[test]
fn an_agent_of_its_own() {
    let Some(path) = std::env::var_os(NAMESPACE) else { return };
    let dns = Dns::start(DnsConfig::default()).unwrap();
    dns.set_network("shop".into(), shop());
    dns.set_sandbox("box".into(), SandboxDns { networks: vec!["shop".into()], ..SandboxDns::default() });
    dns.attach("box".into(), path.as_ref()).unwrap();
    println!("\nserving");
    loop {
        thread::park_timeout(Duration::from_secs(60));
    }
}

#[test]
fn a_killed_agent_leaves_its_rules_and_the_next_one_answers() {
    on_a_host(|world| {
        let sandbox = Sandbox::new();
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "life::an_agent_of_its_own", "--nocapture"])
            .env(NAMESPACE, &sandbox.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(agent.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap() == "serving"), "the agent never served");
        assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        let before = rules(&sandbox);
        agent.kill().unwrap();
        agent.wait().unwrap();
        assert_eq!(rules(&sandbox), before);
        // Nobody listens: the kernel says so to the client, or nothing comes.
        let client = sandbox.client();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = client.send(&question("db", RecordType::A).to_vec().unwrap());
        assert!(client.recv(&mut [0; 512]).is_err());
        serve_shop(&world.dns, &sandbox);
        assert_eq!(rules(&sandbox), before);
        assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        assert_eq!(sorted(&sandbox.ask_tcp("db", RecordType::A)), ["10.89.0.2"]);
    });
}

#[test]
fn a_stopped_dns_frees_its_ports_for_the_next_one() {
    on_a_host(|world| {
        let sandbox = Sandbox::new();
        for _ in 0..5 {
            let dns = world.agent();
            serve_shop(&dns, &sandbox);
            assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        }
    });
}

#[test]
fn a_namespace_goes_when_its_sandbox_is_detached() {
    on_a_host(|world| {
        world.shop();
        let sandbox = Sandbox::new();
        // A veth end on the host goes when the namespace with the other end does.
        let host_end = format!("dnst{}", std::process::id() % 100_000);
        succeed(Command::new("ip").args([
            "link",
            "add",
            &host_end,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &sandbox.name,
        ]));
        serve_shop(&world.dns, &sandbox);
        assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        world.dns.detach(&sandbox.id);
        drop(sandbox);
        eventually("the namespace is gone", || {
            !Command::new("ip").args(["link", "show", &host_end]).output().unwrap().status.success()
        });
    });
}
