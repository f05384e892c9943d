//! How many queries a second the embedded DNS answers, and what one costs, with 1 000 names of both families.
//!
//! `dns_bench [SECONDS [RATE]]`, as root. Everything happens in two network namespaces of its own. The cost is the processor time
//! of the serving threads (of the process, for dnsmasq) divided by the answers; the client's own time and what the kernel does
//! on the client's behalf are not in it. dnsmasq, when installed, gets the same names and the same clients in the same run.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::error::Error;
use std::fmt::Write as _;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};
use orch_netd::dns::{Dns, DnsConfig, NetworkRecords, RecordKind, SandboxDns};
use orch_netd::namespace::Namespace;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const NAMES: u16 = 1000;
/// Clients at full load, each with a window of queries on its way.
const CLIENTS: usize = 2;
const WINDOW: usize = 32;
/// Queries that a paced client sends at once.
const BURST: usize = 4;
const DNSMASQ: &str = "127.0.0.12:53";

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let rate: u32 = arguments.next().map_or(Ok(40_000), |text| text.parse())?;
    // The "host" is a namespace of our own as well: nothing of this machine is touched.
    unshare(CloneFlags::CLONE_NEWNET)?;
    run(&["link", "set", "lo", "up"])?;
    let sandbox = Sandbox::new()?;
    let dns = serve(&sandbox)?;
    let bench = Bench { queries: queries()?, length: Duration::from_secs(seconds), rate };

    println!("{:<28} {:>14} {:>12} {:>14} {:>12}", "server", "max answers/s", "CPU us each", "paced /s", "CPU us each");
    let threads = serving_threads()?;
    let ours = move || Ok(threads.iter().map(|thread| busy(thread)).sum());
    bench.report("orch 127.0.0.11:53 (NAT)", &sandbox, "127.0.0.11:53", &ours)?;
    bench.report("orch 127.0.0.11:35353", &sandbox, "127.0.0.11:35353", &ours)?;
    drop(dns);
    match Dnsmasq::start(&sandbox)? {
        Some(dnsmasq) => {
            let tasks = PathBuf::from(format!("/proc/{}", dnsmasq.child.id()));
            bench.report("dnsmasq 127.0.0.12:53", &sandbox, DNSMASQ, &move || Ok(busy(&tasks)))?;
        }
        None => println!("dnsmasq is not installed"),
    }
    Ok(())
}

fn run(arguments: &[&str]) -> Outcome<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if !output.status.success() {
        return Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// A named namespace, removed at the end.
struct Sandbox {
    name: String,
    path: PathBuf,
}

impl Sandbox {
    fn new() -> Outcome<Sandbox> {
        let name = format!("orch-dns-bench-{}", std::process::id());
        run(&["netns", "add", &name])?;
        let sandbox = Sandbox { path: Path::new("/run/netns").join(&name), name };
        run(&["-n", &sandbox.name, "link", "set", "lo", "up"])?;
        Ok(sandbox)
    }

    fn enter(&self) -> Outcome<()> {
        Ok(Namespace::open(&self.path)?.enter()?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = run(&["netns", "del", &self.name]);
    }
}

fn addresses(number: u16) -> (Ipv4Addr, Ipv6Addr) {
    let [high, low] = number.to_be_bytes();
    (Ipv4Addr::new(10, 77, high, low), Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, number))
}

fn serve(sandbox: &Sandbox) -> Outcome<Dns> {
    let dns = Dns::start(DnsConfig::default())?;
    let mut records = NetworkRecords::new("bench_default")?;
    for number in 0..NAMES {
        let (v4, v6) = addresses(number);
        for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
            records.add(&format!("service-{number}"), RecordKind::Service, address)?;
        }
    }
    dns.set_network("bench".into(), records);
    dns.set_sandbox("bench".into(), SandboxDns { networks: vec!["bench".into()], ..SandboxDns::default() });
    let begin = Instant::now();
    dns.attach("bench".into(), &sandbox.path)?;
    println!(
        "attach: {:.0} us (the first one, with the loading of kernel modules)",
        begin.elapsed().as_secs_f64() * 1e6
    );
    let mut times = Vec::new();
    for _ in 0..50 {
        dns.detach(&"bench".into());
        run(&["netns", "exec", &sandbox.name, "nft", "delete", "table", "ip", "orch-dns"])?;
        let begin = Instant::now();
        dns.attach("bench".into(), &sandbox.path)?;
        times.push(begin.elapsed());
    }
    times.sort();
    println!("attach, median of 50: {:.0} us", times[25].as_secs_f64() * 1e6);
    Ok(dns)
}

fn queries() -> Outcome<Vec<Vec<u8>>> {
    let mut queries = Vec::new();
    for number in 0..NAMES {
        for kind in [RecordType::A, RecordType::AAAA] {
            let mut message = Message::query();
            message.metadata.recursion_desired = true;
            message.add_query(Query::query(Name::from_ascii(format!("service-{number}."))?, kind));
            queries.push(message.to_vec()?);
        }
    }
    Ok(queries)
}

/// Our threads that serve UDP, as files under /proc.
fn serving_threads() -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        if std::fs::read_to_string(path.join("comm"))?.starts_with("dns-udp") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Time that a thread has been on a processor, by the scheduler's account.
fn busy(task: &Path) -> Duration {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0))
}

struct Bench {
    queries: Vec<Vec<u8>>,
    length: Duration,
    rate: u32,
}

impl Bench {
    fn report(&self, name: &str, sandbox: &Sandbox, server: &str, cost: &dyn Fn() -> Outcome<Duration>) -> Outcome<()> {
        let server: SocketAddr = server.parse()?;
        let mut cells = Vec::new();
        for rate in [None, Some(self.rate)] {
            let before = cost()?;
            let begin = Instant::now();
            let answers = thread::scope(|scope| {
                let clients: Vec<_> =
                    (0..CLIENTS).map(|_| scope.spawn(move || self.client(sandbox, server, rate))).collect();
                clients.into_iter().map(|client| client.join().map_err(|_| "a client panicked")?).sum::<Outcome<u64>>()
            })?;
            let elapsed = begin.elapsed();
            let spent = cost()?.saturating_sub(before);
            cells.push((answers as f64 / elapsed.as_secs_f64(), spent.as_secs_f64() * 1e6 / answers as f64));
        }
        let [(most, at_most), (paced, at_paced)] = cells[..] else { return Err("two rounds were run".into()) };
        println!("{name:<28} {most:>14.0} {at_most:>12.2} {paced:>14.0} {at_paced:>12.2}");
        Ok(())
    }

    /// Sends and counts answers for the length of the run, as fast as answers come, or at a share of the rate.
    fn client(&self, sandbox: &Sandbox, server: SocketAddr, rate: Option<u32>) -> Outcome<u64> {
        sandbox.enter()?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let size = if rate.is_some() { BURST } else { WINDOW };
        let mut sending = MultiHeaders::<SockaddrIn>::preallocate(size, None);
        let begin = Instant::now();
        let (mut sent, mut answered) = (0u64, 0u64);
        while begin.elapsed() < self.length {
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64(sent as f64 * CLIENTS as f64 / f64::from(rate));
                thread::sleep(due.saturating_sub(begin.elapsed()));
            }
            let batch = self.queries.iter().cycle().skip(sent as usize % self.queries.len()).take(size);
            let slices: Vec<[IoSlice<'_>; 1]> = batch.map(|query| [IoSlice::new(query)]).collect();
            let peers = vec![None; size];
            sendmmsg(socket.as_raw_fd(), &mut sending, &slices, &peers, [], MsgFlags::empty())?;
            sent += size as u64;
            answered += receive(&socket, size)?;
        }
        Ok(answered)
    }
}

/// Takes answers until as many came, or none any more.
fn receive(socket: &UdpSocket, wanted: usize) -> Outcome<u64> {
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(wanted, None);
    let mut buffers = vec![[0u8; 512]; wanted];
    let mut count = 0;
    while count < wanted {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|bytes| [IoSliceMut::new(bytes)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(messages) => count += messages.count(),
            Err(nix::errno::Errno::EAGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count as u64)
}

/// The peer to compare with.
struct Dnsmasq {
    child: Child,
    hosts: PathBuf,
}

impl Dnsmasq {
    fn start(sandbox: &Sandbox) -> Outcome<Option<Dnsmasq>> {
        let hosts = std::env::temp_dir().join(format!("{}.hosts", sandbox.name));
        let mut text = String::new();
        for number in 0..NAMES {
            let (v4, v6) = addresses(number);
            writeln!(text, "{v4} service-{number}\n{v6} service-{number}")?;
        }
        std::fs::write(&hosts, text)?;
        let namespace = Namespace::open(&sandbox.path)?;
        let spawned = namespace.run(|| {
            Command::new("dnsmasq")
                .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"])
                .args(["--listen-address=127.0.0.12", "--bind-interfaces", "--pid-file="])
                .arg(format!("--addn-hosts={}", hosts.display()))
                .spawn()
        })?;
        let Ok(child) = spawned else {
            let _ = std::fs::remove_file(&hosts);
            return Ok(None);
        };
        let dnsmasq = Dnsmasq { child, hosts };
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let answered = namespace.run(|| -> std::io::Result<usize> {
                let socket = UdpSocket::bind("127.0.0.1:0")?;
                socket.set_read_timeout(Some(Duration::from_millis(50)))?;
                socket.connect(DNSMASQ)?;
                socket.send(b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x09service-1\0\0\x01\0\x01")?;
                socket.recv(&mut [0; 512])
            })?;
            if answered.is_ok() {
                return Ok(Some(dnsmasq));
            }
            if Instant::now() > deadline {
                return Err("dnsmasq does not answer".into());
            }
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.hosts);
    }
}
