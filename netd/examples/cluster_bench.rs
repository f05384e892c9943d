//! What networks that span hosts, services and ports of every host cost: `cargo run --release -p orch-netd --example cluster_bench`.
//!
//! Two hosts are network namespaces joined by a bridge; a container is a sandbox in which this program's threads serve and
//! call. Everything runs on one machine, which does both hosts' work: compare within one run. Needs root, and leaves nothing.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::Backlog;
use orch_netd::{
    Backend, DesiredCluster, EndpointConfig, Mesh, MeshBackend, MeshPort, Namespace, Netd, NetdConfig, NetworkConfig,
    Overlay, Protocol, RemoteEndpoint, SandboxConfig, Service, Underlay,
};

/// Connections that may wait to be accepted: as many as Linux lets wait (`net.core.somaxconn`), less one.
const QUEUE: i32 = 4095;
/// How long each measurement takes.
const SPAN: Duration = Duration::from_secs(2);

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn new_namespace() -> Namespace {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Namespace::current().unwrap()
    });
    made.join().unwrap()
}

struct Host {
    namespace: Namespace,
    address: Ipv4Addr,
    config: NetdConfig,
    netd: Option<Netd>,
}

impl Host {
    fn new(n: u8) -> Host {
        let namespace = new_namespace();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace);
        ip(&format!("link add port{n} type veth peer name up0"));
        ip(&format!("link set up0 netns /proc/{}/fd/{fd}", std::process::id()));
        ip(&format!("link set port{n} master wire up"));
        let address = Ipv4Addr::new(198, 51, 100, n);
        let run_dir = std::env::temp_dir().join(format!("orch-cluster-bench-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&run_dir).unwrap();
        let set_up = || {
            ip("link set lo up");
            ip("link set up0 up");
            ip(&format!("addr add {address}/24 dev up0"));
        };
        namespace.run(set_up).unwrap();
        let config = NetdConfig { instance: format!("bench{n}"), run_dir };
        let mut host = Host { namespace, address, config, netd: None };
        host.start_agent();
        host
    }

    fn netd(&self) -> &Netd {
        self.netd.as_ref().unwrap()
    }

    fn start_agent(&mut self) {
        let open = || Netd::open(self.config.clone()).unwrap();
        self.netd = Some(self.namespace.run(open).unwrap());
    }

    /// Changes nothing in the kernel but that nobody is there any more.
    fn end_agent(&mut self) {
        self.netd = None;
    }

    fn apply(&self, desired: &DesiredCluster) -> Duration {
        let start = Instant::now();
        let report = self.netd().apply_cluster(desired).unwrap();
        assert!(report.is_applied() && report.refused.is_empty(), "{report:?}");
        start.elapsed()
    }

    fn container(&self, id: &str, address: Ipv4Addr) -> Namespace {
        let config = SandboxConfig {
            id: id.into(),
            endpoints: vec![EndpointConfig::new("a", address)],
            ports: Vec::new(),
            sysctls: Vec::new(),
        };
        Namespace::open(&self.netd().create_sandbox(&config).unwrap().netns).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.netd().teardown();
        let _ = std::fs::remove_dir_all(&self.config.run_dir);
    }
}

/// Takes everything that comes and throws it away.
fn sink(namespace: &Namespace, port: u16) {
    let listener = namespace.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = vec![0; 1 << 18];
                while client.read(&mut bytes).is_ok_and(|length| length > 0) {}
            });
        }
    });
}

/// Accepts and drops, which costs as little as it can: what is measured is the way there.
fn door(namespace: &Namespace, port: u16) {
    let listener = namespace.run(|| TcpListener::bind(("0.0.0.0", port))).unwrap().unwrap();
    // Std's queue of 128 is full whenever this thread waits for a processor, and whoever comes then tries again a second later.
    nix::sys::socket::listen(&listener, Backlog::new(QUEUE).unwrap()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
}

/// Sends as fast as it goes; Gbit/s.
fn stream(from: &Namespace, to: SocketAddr) -> f64 {
    let mut client = from.run(|| TcpStream::connect(to)).unwrap().unwrap();
    let bytes = vec![7; 1 << 18];
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < SPAN {
        client.write_all(&bytes).unwrap();
        sent += bytes.len() as u64;
    }
    sent as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
}

/// Connects and breaks off, from two threads; connections a second, the median, the 99th percentile and the longest in µs.
fn connections(from: &Namespace, to: SocketAddr) -> String {
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut times: Vec<u64> = std::thread::scope(|scope| {
        let call = || {
            let call = || {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let stream = TcpStream::connect(to).unwrap();
                    times.push(start.elapsed().as_micros() as u64);
                    count.fetch_add(1, Ordering::Relaxed);
                    // With a reset no address pair rests for a minute.
                    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
                }
                times
            };
            from.run(call).unwrap()
        };
        let threads = [scope.spawn(call), scope.spawn(call)];
        std::thread::sleep(SPAN);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let rate = count.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let (median, late, longest) = (times[times.len() / 2], times[times.len() * 99 / 100], times[times.len() - 1]);
    format!("{rate:7.0}/s, p50 {median} µs, p99 {late} µs, longest {longest} µs")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn nth(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 2).to_bits() + n)
}

fn vip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 128, 0).to_bits() + n)
}

/// `count` services of which the first leads to the two containers, and the others to nobody real.
fn services(count: u32) -> Vec<Service> {
    let backends = |n: u32| {
        let of = |m: u32| Backend { address: if n == 0 { nth(m) } else { nth(1000 + n) }.into(), weight: 1 };
        vec![of(0), of(1)]
    };
    (0..count).map(|n| Service { vip: vip(n).into(), networks: vec!["a".into()], backends: backends(n) }).collect()
}

fn main() {
    let inside = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("needs root");
        let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        measure();
    });
    inside.join().unwrap();
}

fn measure() {
    ip("link set lo up");
    ip("link add wire type bridge");
    ip("addr add 198.51.100.200/24 dev wire");
    ip("link set wire up");
    let wire = Namespace::current().unwrap();
    let mut hosts = [Host::new(1), Host::new(2)];
    let addresses = [hosts[0].address, hosts[1].address];
    // Container 0 is on host 0, container 1 on host 1, and beside the first one the callers.
    let all = [(nth(0), 0), (nth(1), 1), (nth(2), 0), (nth(3), 0)];
    let desired = |n: usize, version: u64| DesiredCluster {
        version,
        underlay: Some(Underlay { address: addresses[n].into(), port: 14_789, own_checksums: false }),
        peers: vec![addresses[1 - n].into()],
        overlays: vec![Overlay {
            network: "a".into(),
            vni: 7,
            underlay_mtu: 0,
            remote: all
                .iter()
                .filter(|(_, host)| *host != n)
                .map(|(address, host)| RemoteEndpoint::new(*address, addresses[*host].into()))
                .collect(),
        }],
        services: Vec::new(),
        mesh: None,
    };
    let network = NetworkConfig::new("a", "10.1.0.0/16".parse().unwrap(), Ipv4Addr::new(10, 1, 0, 1));
    for (n, host) in hosts.iter().enumerate() {
        host.apply(&desired(n, 1));
        host.netd().ensure_network(&network).unwrap();
    }
    let containers = [hosts[0].container("c0", nth(0)), hosts[1].container("c1", nth(1))];
    let caller = hosts[0].container("caller", nth(2));
    let at = |address: Ipv4Addr, port: u16| SocketAddr::new(IpAddr::V4(address), port);
    for namespace in [&containers[0], &containers[1], &hosts[1].namespace] {
        sink(namespace, 5001);
        door(namespace, 5002);
    }
    // With an argument, only what its text is part of.
    let only = std::env::args().nth(1).unwrap_or_default();
    if "stream".contains(&only) {
        println!("one TCP stream:");
        for _ in 0..3 {
            println!(
                "  bridge of one host {:5.1} Gb/s   overlay {:5.1} Gb/s   host to host without tunnel {:5.1} Gb/s",
                stream(&caller, at(nth(0), 5001)),
                stream(&caller, at(nth(1), 5001)),
                stream(&hosts[0].namespace, at(hosts[1].address, 5001)),
            );
        }
    }
    if "connections".contains(&only) {
        println!("connections from a container:");
        println!("  same host, direct            {}", connections(&caller, at(nth(0), 5002)));
        println!("  other host, direct           {}", connections(&caller, at(nth(1), 5002)));
        // On a machine of its own: that of another host would hear of what is loaded here.
        hosts[1].end_agent();
        for count in [1, 10_000, 1, 10_000] {
            let took = hosts[0].apply(&DesiredCluster { services: services(count), ..desired(0, 2) });
            println!(
                "  address of 1 of {count:>6} services {} (loaded in {took:.0?})",
                connections(&caller, at(vip(0), 5002))
            );
        }
        hosts[1].start_agent();
    }
    if "updates".contains(&only) {
        updates(&hosts[0], &desired(0, 3));
    }
    if "mesh".contains(&only) {
        mesh(&hosts, &wire, &desired);
    }
}

/// How long it takes until the kernel has a change.
fn updates(host: &Host, base: &DesiredCluster) {
    println!("one change, until the kernel has it (median of 50):");
    for (count, sandboxes) in [(1, 3), (1_000, 3), (10_000, 3), (1, 50), (1_000, 50)] {
        let names: Vec<_> = (3..sandboxes).map(|n| orch_netd::SandboxId(format!("s{n}"))).collect();
        for (n, id) in (3..).zip(&names) {
            host.container(&id.0, nth(n));
        }
        let mut desired = DesiredCluster { services: services(count), ..base.clone() };
        host.apply(&desired);
        let mut times = Vec::new();
        for n in 0..50 {
            desired.version += 1;
            desired.services[0].backends[0].weight = n % 2;
            times.push(host.apply(&desired));
        }
        println!("  a backend of 1 of {count:>6} services, {sandboxes:>3} sandboxes: {:?}", median(times));
        host.netd().remove_sandboxes(&names).unwrap();
        host.netd().settle(Duration::from_secs(5)).unwrap();
    }
    for count in [10, 1_000, 10_000] {
        let mut desired = DesiredCluster { services: Vec::new(), ..base.clone() };
        let node = desired.peers[0];
        desired.overlays[0].remote = (1000..1000 + count).map(|n| RemoteEndpoint::new(nth(n), node)).collect();
        let loaded = host.apply(&desired);
        let mut times = Vec::new();
        for n in 0..50 {
            desired.version += 1;
            desired.overlays[0].remote[0] = RemoteEndpoint::new(nth(900 + n % 2), node);
            times.push(host.apply(&desired));
        }
        println!("  a container of {count:>6} on another host: {:?} (loaded in {loaded:.1?})", median(times));
    }
    host.apply(base);
}

/// Ports of every host.
fn mesh(hosts: &[Host; 2], wire: &Namespace, desired: &dyn Fn(usize, u64) -> DesiredCluster) {
    println!("connections from outside to a port of host 0:");
    for (what, target) in [("container on host 0", 0usize), ("container on host 1", 1)] {
        for (n, host) in hosts.iter().enumerate() {
            let node = (target != n).then(|| hosts[target].address.into());
            let port = |port: u16, target_port: u16| {
                let backend = MeshBackend { address: nth(target as u32), target: target_port, weight: 1, node };
                MeshPort { protocol: Protocol::Tcp, host_ip: None, port, backends: vec![backend] }
            };
            let mesh = Some(Mesh { vni: 9, ports: vec![port(8080, 5001), port(8081, 5002)] });
            host.apply(&DesiredCluster { mesh, ..desired(n, 4 + target as u64) });
        }
        let door = |port: u16| SocketAddr::new(hosts[0].address.into(), port);
        println!("  {what}  {}   one stream {:5.1} Gb/s", connections(wire, door(8081)), stream(wire, door(8080)));
    }
}
