//! The stage for several hosts: a network namespace each, with a netd of its own, and nothing between them but a link to one
//! bridge.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use orch_netd::{
    DesiredCluster, Namespace, Netd, NetdConfig, NetworkId, Overlay, RemoteEndpoint, SandboxConfig, Underlay,
};

use crate::world::*;

/// The UDP port of this stage's tunnels.
pub(crate) const TUNNEL_PORT: u16 = 14_789;

/// A network that spans hosts: its name, its VNI, and all its containers with the place of the host that each is on.
pub(crate) type Spanning<'a> = (&'a str, u32, &'a [(Ipv4Addr, usize)]);

/// Hosts on one wire.
pub(crate) struct Cluster {
    /// Where the wire is: a bridge, and everybody else on the LAN.
    pub(crate) wire: Namespace,
    pub(crate) hosts: Vec<Host>,
}

/// A host. It owns its namespace and knows the others by address alone.
pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) address: Ipv4Addr,
    pub(crate) run_dir: PathBuf,
    netd: Option<Netd>,
    instance: String,
}

impl Host {
    pub(crate) fn netd(&self) -> &Netd {
        self.netd.as_ref().expect("the agent runs")
    }

    /// The agent ends; what it made stays.
    pub(crate) fn kill_agent(&mut self) {
        self.netd = None;
    }

    pub(crate) fn start_agent(&mut self) {
        let config = NetdConfig { instance: self.instance.clone(), run_dir: self.run_dir.clone() };
        self.netd = Some(self.namespace.run(|| Netd::open(config)).unwrap().unwrap());
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.namespace.run(|| ip(arguments)).unwrap()
    }

    pub(crate) fn run(&self, program: &str, arguments: &str) -> String {
        self.namespace.run(|| run(program, arguments)).unwrap()
    }

    /// Applies, and nothing may fail.
    #[track_caller]
    pub(crate) fn apply(&self, desired: &DesiredCluster) -> Vec<String> {
        let report = self.netd().apply_cluster(desired).unwrap();
        assert!(report.is_applied(), "{:?}", report.failed);
        assert_eq!(report.version, desired.version);
        report.done
    }

    /// Makes a container.
    pub(crate) fn container(&self, config: &SandboxConfig) -> Container {
        Container::new(self.netd(), config)
    }

    /// Everything that netd could have left.
    fn leftovers(&self) -> Vec<String> {
        let links = self.ip("-o link show");
        let names =
            links.lines().filter_map(|line| line.split(": ").nth(1)).map(|name| name.split('@').next().unwrap());
        let mut left: Vec<String> = names.filter(|name| !matches!(*name, "lo" | "up0")).map(str::to_owned).collect();
        let tables = self.run("nft", "list tables");
        left.extend(tables.lines().filter(|line| line.contains("orch")).map(str::to_owned));
        let rules = self.ip("rule");
        let kernels = ["0:", "32766:", "32767:"];
        let foreign = rules.lines().filter(|line| !kernels.iter().any(|known| line.starts_with(known)));
        left.extend(foreign.map(str::to_owned));
        let routes = self.ip("route show table all");
        left.extend(routes.lines().filter(|line| line.contains("onlink")).map(str::to_owned));
        left.extend(
            std::fs::read_dir(&self.run_dir).into_iter().flatten().flatten().map(|e| format!("{:?}", e.path())),
        );
        left
    }
}

/// Address of the host with this number, from 1.
pub(crate) fn host_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, u8::try_from(n).unwrap())
}

/// Runs a test on three hosts, and checks that nothing is left on any of them.
pub(crate) fn in_cluster(test: impl FnOnce(&mut Cluster) + Send) {
    in_cluster_of(3, 1500, test);
}

/// Runs a test on `count` hosts whose links take packets of `mtu` bytes.
pub(crate) fn in_cluster_of(count: usize, mtu: u32, test: impl FnOnce(&mut Cluster) + Send) {
    std::thread::scope(|scope| {
        let stage = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            let mut cluster = Cluster::new(count, mtu);
            test(&mut cluster);
            cluster.strike();
        });
        if let Err(panic) = stage.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Cluster {
    fn new(count: usize, mtu: u32) -> Cluster {
        let wire = Namespace::current().unwrap();
        ip("link set lo up");
        ip("link add wire type bridge");
        ip(&format!("addr add {}/24 dev wire", host_address(200)));
        ip("link set wire up");
        let mut cluster = Cluster { wire, hosts: Vec::new() };
        for n in 1..=count {
            cluster.add_host(n, mtu);
        }
        cluster
    }

    fn add_host(&mut self, n: usize, mtu: u32) {
        let namespace = new_namespace();
        let unique = format!("{:?}", std::thread::current().id()).replace(|c: char| !c.is_ascii_digit(), "");
        let instance = format!("test{}-{unique}-{n}", std::process::id());
        let run_dir = memory_dir().join(format!("orch-netd-{instance}"));
        std::fs::create_dir_all(&run_dir).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace);
        ip(&format!("link add port{n} mtu {mtu} type veth peer name up0 mtu {mtu}"));
        ip(&format!("link set up0 netns /proc/{}/fd/{fd}", std::process::id()));
        ip(&format!("link set port{n} master wire up"));
        let address = host_address(n);
        let mut host = Host { namespace, address, run_dir, netd: None, instance };
        for arguments in ["link set lo up", "link set up0 up"] {
            host.ip(arguments);
        }
        host.ip(&format!("addr add {address}/24 dev up0"));
        host.ip(&format!("route add default via {}", host_address(200)));
        host.start_agent();
        self.hosts.push(host);
    }

    /// What host `n` (from 0) shall know of the wires.
    pub(crate) fn desired(&self, n: usize, version: u64, overlays: &[Spanning<'_>]) -> DesiredCluster {
        let others = self.hosts.iter().enumerate().filter(|(m, _)| *m != n);
        let overlay = |(network, vni, containers): &Spanning<'_>| Overlay {
            network: NetworkId((*network).to_owned()),
            vni: *vni,
            underlay_mtu: 0,
            remote: containers
                .iter()
                .filter(|(_, host)| *host != n)
                .map(|(address, host)| RemoteEndpoint::new(*address, self.hosts[*host].address.into()))
                .collect(),
        };
        DesiredCluster {
            version,
            underlay: Some(Underlay { address: self.hosts[n].address.into(), port: TUNNEL_PORT, own_checksums: false }),
            peers: others.map(|(_, host)| IpAddr::from(host.address)).collect(),
            overlays: overlays.iter().map(overlay).collect(),
            ..DesiredCluster::default()
        }
    }

    /// Applies the same to every host, each from its own side.
    pub(crate) fn apply(&self, version: u64, overlays: &[Spanning<'_>]) {
        for (n, host) in self.hosts.iter().enumerate() {
            host.apply(&self.desired(n, version, overlays));
        }
    }

    fn strike(&mut self) {
        for host in &mut self.hosts {
            if host.netd.is_none() {
                host.start_agent();
            }
            host.netd().teardown().unwrap();
            host.kill_agent();
            assert_eq!(host.leftovers(), Vec::<String>::new(), "something is left on {}", host.address);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.netd = None;
        unmount_below(&self.run_dir);
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

/// `10.N.0.H`.
pub(crate) fn inside(n: u8, h: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, n, 0, h)
}
