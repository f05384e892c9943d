//! The stage: a host, its neighbour on the LAN, and the few programs that play on it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use orch_netd::{
    EndpointConfig, Namespace, Netd, NetdConfig, NetworkConfig, PortRequest, Sandbox, SandboxConfig, SandboxId,
};

/// The host's address on the LAN.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The neighbour's.
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The same in IPv6.
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const NEIGHBOUR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// How long to wait for an answer that shall come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for one that shall not: on one machine a packet takes microseconds.
const SILENCE: Duration = Duration::from_millis(300);

pub(crate) struct World {
    pub(crate) host: Namespace,
    pub(crate) lan: Namespace,
    pub(crate) run_dir: PathBuf,
    pub(crate) instance: String,
}

/// Runs a test on a host of its own, twice where br_netfilter can be switched: once off and once on.
pub(crate) fn with_and_without_br_netfilter(test: impl Fn(&World) + Sync) {
    for value in ["0", "1"] {
        in_world(|world| {
            let setting = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
            if !setting.exists() {
                eprintln!("this kernel has no br_netfilter: tested without it only");
                return if value == "0" {
                    test(world)
                };
            }
            for family in ["iptables", "ip6tables"] {
                std::fs::write(setting.with_file_name(format!("bridge-nf-call-{family}")), value).unwrap();
            }
            eprintln!("bridge-nf-call-iptables = {value}");
            test(world);
        });
    }
}

/// Runs a test on a host of its own, and checks that nothing is left of it.
pub(crate) fn in_world(test: impl FnOnce(&World) + Send) {
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            let world = World::new();
            test(&world);
            world.strike();
        });
        if let Err(panic) = stage.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(crate) fn new_namespace() -> Namespace {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Namespace::current().unwrap()
    })
    .join()
    .unwrap()
}

/// A directory in memory, as /run is: a disk would be most of what the figures show.
pub(crate) fn memory_dir() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// Mounts end with the test's mount namespace; files do not.
pub(crate) fn unmount_below(directory: &Path) {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let directory = directory.display().to_string();
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.contains(&directory)) {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

impl World {
    fn new() -> World {
        let host = Namespace::current().unwrap();
        let lan = new_namespace();
        let unique = format!("{:?}", std::thread::current().id()).replace(|c: char| !c.is_ascii_digit(), "");
        let instance = format!("test{}-{unique}", std::process::id());
        let run_dir = memory_dir().join(format!("orch-netd-{instance}"));
        std::fs::create_dir_all(&run_dir).unwrap();
        let world = World { host, lan, run_dir, instance };
        world.host_ip("link set lo up");
        world.lan_ip("link set lo up");
        world.lan_ip("link add lan0 type veth peer name up0");
        // By number the neighbour's end has no name to be moved by: its peer's namespace is a descriptor of this process.
        let fd = std::os::fd::AsRawFd::as_raw_fd(&world.host);
        let path = format!("/proc/{}/fd/{fd}", std::process::id());
        world.lan.run(|| ip(&format!("link set up0 netns {path}"))).unwrap();
        world.host_ip(&format!("addr add {HOST}/24 dev up0"));
        world.host_ip(&format!("addr add {HOST6}/64 dev up0 nodad"));
        world.host_ip("link set up0 up");
        world.lan_ip(&format!("addr add {NEIGHBOUR}/24 dev lan0"));
        world.lan_ip(&format!("addr add {NEIGHBOUR6}/64 dev lan0 nodad"));
        world.lan_ip("link set lan0 up");
        world.host_ip(&format!("route add default via {NEIGHBOUR}"));
        world.host_ip(&format!("-6 route add default via {NEIGHBOUR6}"));
        // The neighbour is nosy: it routes everything through the host.
        world.lan_ip(&format!("route add 10.0.0.0/8 via {HOST}"));
        world.lan_ip(&format!("route add 127.0.0.0/8 via {HOST} table 7"));
        world.lan_ip(&format!("-6 route add fd00::/8 via {HOST6}"));
        world
    }

    pub(crate) fn config(&self) -> NetdConfig {
        NetdConfig { instance: self.instance.clone(), run_dir: self.run_dir.clone() }
    }

    pub(crate) fn open(&self) -> Netd {
        Netd::open(self.config()).unwrap()
    }

    pub(crate) fn table(&self) -> String {
        format!("orch-{}", self.instance)
    }

    pub(crate) fn host_ip(&self, arguments: &str) -> String {
        ip(arguments)
    }

    pub(crate) fn lan_ip(&self, arguments: &str) -> String {
        self.lan.run(|| ip(arguments)).unwrap()
    }

    /// Names of links on the host beyond the stage itself.
    pub(crate) fn links(&self) -> Vec<String> {
        let listed = ip("-o link show");
        let names =
            listed.lines().filter_map(|line| line.split(": ").nth(1)).map(|name| name.split('@').next().unwrap());
        names.filter(|name| !matches!(*name, "lo" | "up0")).map(str::to_owned).collect()
    }

    /// Everything that netd could have left.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = self.links();
        left.extend(nft("list tables").lines().filter(|line| line.contains("orch")).map(str::to_owned));
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let run_dir = self.run_dir.display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&run_dir)).map(str::to_owned));
        left.extend(
            std::fs::read_dir(&self.run_dir).into_iter().flatten().flatten().map(|e| format!("{:?}", e.path())),
        );
        left
    }

    /// Takes everything down and looks that nothing is left.
    fn strike(&self) {
        let netd = self.open();
        netd.teardown().unwrap();
        drop(netd);
        assert_eq!(self.leftovers(), Vec::<String>::new(), "something is left");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        unmount_below(&self.run_dir);
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub(crate) fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

/// `10.N.0.0/24` with its gateway.
pub(crate) fn network(id: &str, n: u8) -> NetworkConfig {
    NetworkConfig::new(id, format!("10.{n}.0.0/24").parse().unwrap(), Ipv4Addr::new(10, n, 0, 1))
}

/// The same with `fd00:N::/64`.
pub(crate) fn dual_network(id: &str, n: u8) -> NetworkConfig {
    NetworkConfig {
        subnet6: Some(format!("fd00:{n}::/64").parse().unwrap()),
        gateway6: Some(format!("fd00:{n}::1").parse().unwrap()),
        ..network(id, n)
    }
}

pub(crate) fn sandbox(id: &str, endpoints: &[(&str, Ipv4Addr)], ports: &[PortRequest]) -> SandboxConfig {
    SandboxConfig {
        id: id.into(),
        endpoints: endpoints.iter().map(|(network, address)| EndpointConfig::new(network, *address)).collect(),
        ports: ports.to_vec(),
        sysctls: Vec::new(),
    }
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A container as far as this crate is concerned.
pub(crate) struct Container {
    pub(crate) sandbox: Sandbox,
    pub(crate) namespace: Namespace,
}

impl Container {
    pub(crate) fn new(netd: &Netd, config: &SandboxConfig) -> Container {
        Container::of(netd.create_sandbox(config).unwrap())
    }

    pub(crate) fn find(netd: &Netd, id: &str) -> Container {
        Container::of(netd.sandbox(&SandboxId(id.into())).unwrap())
    }

    fn of(sandbox: Sandbox) -> Container {
        let namespace = Namespace::open(&sandbox.netns).unwrap();
        Container { sandbox, namespace }
    }

    /// Serves on TCP and UDP port `port` of all its addresses.
    pub(crate) fn serve(&self, port: u16) {
        serve(&self.namespace, port);
    }

    pub(crate) fn id(&self) -> SandboxId {
        self.sandbox.config.id.clone()
    }
}

/// Serves TCP and UDP on a port: whoever comes is told the address that he comes from. Ends with the namespace's last test
/// thread; the threads hold the sockets, not the namespace's file.
pub(crate) fn serve(namespace: &Namespace, port: u16) {
    serve_saying(namespace, port, |client| client.to_string());
}

/// The same, but whoever comes is told what `say` says of his address.
pub(crate) fn serve_saying(namespace: &Namespace, port: u16, say: impl Fn(IpAddr) -> String + Clone + Send + 'static) {
    let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let any4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    // One socket for both families where there is IPv6.
    let (stream, datagram) = namespace
        .run(|| {
            let stream = TcpListener::bind(any).or_else(|_| TcpListener::bind(any4)).unwrap();
            (stream, UdpSocket::bind(any).or_else(|_| UdpSocket::bind(any4)).unwrap())
        })
        .unwrap();
    let greeting = say.clone();
    std::thread::spawn(move || {
        for client in stream.incoming().flatten() {
            let greeting = greeting.clone();
            std::thread::spawn(move || greet(client, greeting));
        }
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((_, from)) = datagram.recv_from(&mut bytes) {
            let _ = datagram.send_to(say(plain(from.ip())).as_bytes(), from);
        }
    });
}

/// Greets the client, then repeats every line.
fn greet(mut client: TcpStream, say: impl Fn(IpAddr) -> String) {
    let Ok(from) = client.peer_addr() else { return };
    let _ = writeln!(client, "{}", say(plain(from.ip())));
    let mut bytes = [0; 64];
    while let Ok(length @ 1..) = client.read(&mut bytes) {
        let _ = client.write_all(&bytes[..length]);
    }
}

/// `::ffff:1.2.3.4` is an IPv4 client of a socket for both.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// A connection from inside a namespace.
pub(crate) fn connect(from: &Namespace, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    from.run(|| TcpStream::connect_timeout(&to, timeout)).unwrap()
}

/// One line.
pub(crate) fn line(stream: &mut TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    Ok(text)
}

/// What a server says it sees of a client in `from`.
pub(crate) fn seen(from: &Namespace, to: SocketAddr) -> io::Result<IpAddr> {
    let text = line(&mut connect(from, to, PATIENCE)?)?;
    text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("answered `{text}`")))
}

/// The same over UDP.
pub(crate) fn seen_by_udp(from: &Namespace, to: SocketAddr, timeout: Duration) -> io::Result<IpAddr> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = from.run(|| UdpSocket::bind(any)).unwrap()?;
    ask_by_udp(&socket, to, timeout)
}

/// Asks over a socket that is there already.
pub(crate) fn ask_by_udp(socket: &UdpSocket, to: SocketAddr, timeout: Duration) -> io::Result<IpAddr> {
    socket.set_read_timeout(Some(timeout))?;
    socket.send_to(b"who am I", to)?;
    let mut bytes = [0; 64];
    let (length, from) = socket.recv_from(&mut bytes)?;
    assert_eq!(from, to, "the answer comes from where the question went");
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("answered `{text}`")))
}

/// Nobody answers: dropped or refused.
#[track_caller]
pub(crate) fn assert_unreachable(from: &Namespace, to: SocketAddr) {
    assert!(connect(from, to, SILENCE).is_err(), "{to} can be reached");
    assert!(seen_by_udp(from, to, SILENCE).is_err(), "{to} can be reached over UDP");
}

/// A server sees the client as `client`.
#[track_caller]
pub(crate) fn assert_seen(from: &Namespace, to: SocketAddr, client: impl Into<IpAddr>) {
    let client = client.into();
    match seen(from, to) {
        Ok(who) => assert_eq!(who, client, "client of {to}"),
        Err(error) => {
            let neighbours = from.run(|| ip("neigh") + &ip("route") + &ip("-6 route")).unwrap();
            panic!("{to}: {error}\nthere:\n{neighbours}\nhere:\n{}{}", ip("neigh"), ip("-o -6 addr"));
        }
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
