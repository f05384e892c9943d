//! A host of its own for each test: a network namespace in which the DNS runs, sandboxes as named namespaces, and clients
//! inside them. Everything goes when the test ends, also when it fails.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::sched::{CloneFlags, unshare};
use orch_netd::config::SandboxId;
use orch_netd::dns::{Dns, DnsConfig, NetworkRecords, RecordKind, SandboxDns};
use orch_netd::namespace::Namespace;

/// Longest wait for anything. A bound against hanging, never what a test measures.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// Where a client inside a sandbox asks.
pub(crate) const SERVER: &str = "127.0.0.11:53";

/// Runs a test on a thread in a new network namespace, which stands for the host.
pub(crate) fn on_a_host(test: impl FnOnce(&World) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own");
                succeed(Command::new("ip").args(["link", "set", "lo", "up"]));
                test(&World::new());
            })
            .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The host.
pub(crate) struct World {
    pub(crate) dns: Dns,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        let dns = World::agent_in(&directory);
        World { dns, directory }
    }

    fn agent_in(directory: &tempfile::TempDir) -> Dns {
        Dns::start(DnsConfig { resolv_conf: directory.path().join("resolv.conf"), threads: 2 }).unwrap()
    }

    /// Another agent on this host.
    pub(crate) fn agent(&self) -> Dns {
        World::agent_in(&self.directory)
    }

    /// Writes the host's `resolv.conf`.
    pub(crate) fn servers(&self, servers: &[&str]) {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let path = self.directory.path().join("resolv.conf");
        // As tools do it: a new file takes the old one's place.
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    /// A sandbox on the given networks, attached.
    pub(crate) fn sandbox(&self, networks: &[&str]) -> Sandbox {
        let sandbox = Sandbox::new();
        let networks = networks.iter().map(|&network| network.into()).collect();
        self.dns.set_sandbox(sandbox.id.clone(), SandboxDns { networks, ..SandboxDns::default() });
        self.dns.attach(sandbox.id.clone(), &sandbox.path).unwrap();
        sandbox
    }

    /// The network `shop_default` with a database, a web service of two, and a stopped cache.
    pub(crate) fn shop(&self) {
        self.dns.set_network("shop".into(), shop());
    }
}

/// See [`World::shop`].
pub(crate) fn shop() -> NetworkRecords {
    let mut records = NetworkRecords::new("shop_default").unwrap();
    records.subnet("10.89.0.0/24".parse().unwrap());
    records.subnet("fd00:89::/64".parse().unwrap());
    for (name, kind, address) in [
        ("db", RecordKind::Service, "10.89.0.2"),
        ("database", RecordKind::Alias, "10.89.0.2"),
        ("db.shop", RecordKind::Qualified, "10.89.0.2"),
        ("shop-db-1", RecordKind::Container, "10.89.0.2"),
        ("0123456789ab", RecordKind::ShortId, "10.89.0.2"),
        ("1.db", RecordKind::Replica, "10.89.0.2"),
        ("tasks.db", RecordKind::Tasks, "10.89.0.2"),
        ("web", RecordKind::Service, "10.89.0.3"),
        ("web", RecordKind::Service, "10.89.0.4"),
        ("web", RecordKind::Service, "fd00:89::3"),
    ] {
        records.add(name, kind, ip(address)).unwrap();
    }
    records.declare("cache", RecordKind::Service).unwrap();
    records.set_reverse(ip("10.89.0.2"), "shop-db-1").unwrap();
    records.set_reverse(ip("fd00:89::3"), "shop-web-1").unwrap();
    records
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A network namespace with a name, so that `ip netns exec` finds it.
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Sandbox {
    pub(crate) fn new() -> Sandbox {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("orch-dns-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let path = PathBuf::from("/run/netns").join(&name);
        let sandbox = Sandbox { id: name.as_str().into(), name, path };
        succeed(Command::new("ip").args(["-n", &sandbox.name, "link", "set", "lo", "up"]));
        sandbox
    }

    /// Runs code inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Namespace::open(&self.path).unwrap().run(work).unwrap()
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// A client's UDP socket.
    pub(crate) fn client(&self) -> UdpSocket {
        self.run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(SERVER).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    /// A client's connection.
    pub(crate) fn connection(&self) -> TcpStream {
        self.run(|| {
            let address: SocketAddr = SERVER.parse().unwrap();
            let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        })
    }

    /// Sends bytes over UDP and waits for an answer to them.
    pub(crate) fn exchange(&self, packet: &[u8]) -> Vec<u8> {
        let socket = self.client();
        socket.send(packet).unwrap();
        let mut answer = vec![0; 65536];
        let length = socket.recv(&mut answer).expect("an answer");
        answer.truncate(length);
        answer
    }

    /// Asks over UDP.
    pub(crate) fn ask(&self, name: &str, kind: RecordType) -> Message {
        let asked = question(name, kind);
        let answer = Message::from_vec(&self.exchange(&asked.to_vec().unwrap())).unwrap();
        assert_eq!(answer.metadata.id, asked.metadata.id);
        assert_eq!(answer.queries, asked.queries);
        answer
    }

    /// Asks over TCP.
    pub(crate) fn ask_tcp(&self, name: &str, kind: RecordType) -> Message {
        let mut connection = self.connection();
        write_message(&mut connection, &question(name, kind).to_vec().unwrap());
        Message::from_vec(&read_message(&mut connection)).unwrap()
    }

    /// The addresses that a name has, in order.
    pub(crate) fn addresses(&self, name: &str) -> Vec<String> {
        let answer = self.ask(name, RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
        sorted(&answer)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Addresses in an answer, sorted.
pub(crate) fn sorted(answer: &Message) -> Vec<String> {
    let mut found: Vec<String> = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(a.0.to_string()),
            RData::AAAA(aaaa) => Some(aaaa.0.to_string()),
            _ => None,
        })
        .collect();
    found.sort();
    found
}

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

/// Adds an OPT record.
pub(crate) fn with_edns(mut message: Message, size: u16, dnssec: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_version(0).set_dnssec_ok(dnssec);
    message.edns = Some(edns);
    message
}

pub(crate) fn write_message(stream: &mut TcpStream, message: &[u8]) {
    let length = u16::try_from(message.len()).unwrap();
    stream.write_all(&[length.to_be_bytes().as_slice(), message].concat()).unwrap();
}

pub(crate) fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    message
}
