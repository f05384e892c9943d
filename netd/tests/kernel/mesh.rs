//! Ports that every host publishes, for containers on any of them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use orch_netd::{DesiredCluster, Mesh, MeshBackend, MeshPort, Namespace, Protocol, UnderlayVerdict};

use crate::cluster::*;
use crate::world::*;

const SILENCE: Duration = Duration::from_millis(300);
/// The LAN's own address, outside of all hosts.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);

fn nth(n: usize) -> Ipv4Addr {
    inside(1, u8::try_from(n).unwrap() + 2)
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Port 8080 for port 80 and port 8081 for port 81, TCP and UDP, of the containers of these hosts with these weights.
fn ports(cluster: &Cluster, n: usize, backends: &[(usize, u16)]) -> Vec<MeshPort> {
    let backend = |target: u16| {
        let of = move |(host, weight): &(usize, u16)| MeshBackend {
            address: nth(*host),
            target,
            weight: *weight,
            node: (*host != n).then(|| cluster.hosts[*host].address.into()),
        };
        backends.iter().map(of).collect::<Vec<_>>()
    };
    let kinds = [(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Tcp, 81), (Protocol::Udp, 81)];
    kinds
        .map(|(protocol, target)| MeshPort { protocol, host_ip: None, port: 8000 + target, backends: backend(target) })
        .to_vec()
}

fn desired(cluster: &Cluster, n: usize, version: u64, backends: &[(usize, u16)]) -> DesiredCluster {
    let all: Vec<(Ipv4Addr, usize)> = (0..cluster.hosts.len()).map(|n| (nth(n), n)).chain([(nth(9), 0)]).collect();
    let mesh = Some(Mesh { vni: 4096, ports: ports(cluster, n, backends) });
    DesiredCluster { mesh, ..cluster.desired(n, version, &[("a", 7, &all)]) }
}

fn apply(cluster: &Cluster, version: u64, backends: &[(usize, u16)]) {
    for (n, host) in cluster.hosts.iter().enumerate() {
        host.apply(&desired(cluster, n, version, backends));
    }
}

/// Network `a` with a container on each of the hosts in `with`, which says its host's number on port 80 and its caller's
/// address on port 81.
fn stage(cluster: &Cluster, with: &[usize], backends: &[(usize, u16)]) -> Vec<Container> {
    apply(cluster, 1, backends);
    let make = |n: &usize| {
        let host = &cluster.hosts[*n];
        host.netd().ensure_network(&network("a", 1)).unwrap();
        let container = host.container(&sandbox(&format!("c{n}"), &[("a", nth(*n))], &[]));
        let name = n.to_string();
        serve_saying(&container.namespace, 80, move |_| name.clone());
        container.serve(81);
        container
    };
    with.iter().map(make).collect()
}

/// Who answers on port 8080 of an address, out of `count` connections.
fn answers(from: &Namespace, address: impl Into<IpAddr> + Copy, count: usize) -> Vec<String> {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..count {
        let who = line(&mut connect(from, at(address, 8080), PATIENCE).unwrap()).unwrap();
        *answers.entry(who).or_default() += 1;
    }
    answers.into_keys().collect()
}

#[test]
fn every_host_leads_its_port_to_containers_on_all_and_they_see_the_client() {
    in_cluster(|cluster| {
        let _containers = stage(cluster, &[0, 1, 2], &[(0, 1), (1, 1), (2, 1)]);
        for host in &cluster.hosts {
            assert_eq!(answers(&cluster.wire, host.address, 60), ["0", "1", "2"], "through {}", host.address);
            for _ in 0..9 {
                assert_seen(&cluster.wire, at(host.address, 8081), CLIENT);
                assert_eq!(seen_by_udp(&cluster.wire, at(host.address, 8081), PATIENCE).unwrap(), CLIENT);
            }
        }
    });
}

#[test]
fn a_host_without_any_container_or_network_leads_as_well() {
    in_cluster(|cluster| {
        let _containers = stage(cluster, &[1], &[(1, 1)]);
        for host in &cluster.hosts {
            assert_seen(&cluster.wire, at(host.address, 8081), CLIENT);
        }
        // Only what is published, and not the container itself.
        cluster.wire.run(|| ip(&format!("route add 10.1.0.0/24 via {}", cluster.hosts[1].address))).unwrap();
        assert_unreachable(&cluster.wire, at(nth(1), 81));
    });
}

#[test]
fn hosts_and_containers_reach_the_port_too_by_any_address_and_whoever_answers() {
    in_cluster(|cluster| {
        let containers = stage(cluster, &[0, 1, 2], &[(0, 1), (1, 1), (2, 1)]);
        let caller = cluster.hosts[0].container(&sandbox("caller", &[("a", nth(9))], &[]));
        cluster.hosts[0].netd().ensure_network(&network("b", 2)).unwrap();
        let stranger = cluster.hosts[0].container(&sandbox("stranger", &[("b", inside(2, 2))], &[]));
        let own: IpAddr = cluster.hosts[0].address.into();
        let other: IpAddr = cluster.hosts[1].address.into();
        let from = [&cluster.hosts[0].namespace, &caller.namespace, &stranger.namespace, &containers[0].namespace];
        for from in from {
            assert_eq!(answers(from, own, 40), ["0", "1", "2"]);
            assert_eq!(answers(from, other, 40), ["0", "1", "2"]);
        }
        for address in ["127.0.0.1", "::1"] {
            assert_eq!(answers(&cluster.hosts[0].namespace, address.parse::<IpAddr>().unwrap(), 40), ["0", "1", "2"]);
            for _ in 0..6 {
                seen_by_udp(&cluster.hosts[0].namespace, at(address.parse::<IpAddr>().unwrap(), 8081), PATIENCE)
                    .unwrap();
            }
        }
        // Another network's container keeps its address wherever it is led.
        for _ in 0..9 {
            assert_seen(&stranger.namespace, at(own, 8081), inside(2, 2));
        }
    });
}

#[test]
fn big_packets_pass_in_both_directions() {
    in_cluster(|cluster| {
        let _containers = stage(cluster, &[1], &[(1, 1)]);
        let mut stream = connect(&cluster.wire, at(cluster.hosts[0].address, 8080), PATIENCE).unwrap();
        line(&mut stream).unwrap();
        let bytes = vec![b'x'; 1 << 20];
        let mut reader = stream.try_clone().unwrap();
        let back = std::thread::spawn(move || {
            let mut back = vec![0; 1 << 20];
            reader.set_read_timeout(Some(PATIENCE)).unwrap();
            std::io::Read::read_exact(&mut reader, &mut back).map(|()| back)
        });
        stream.write_all(&bytes).unwrap();
        assert!(back.join().unwrap().unwrap() == bytes);
    });
}

#[test]
fn a_port_with_nobody_behind_it_refuses_at_once() {
    in_cluster(|cluster| {
        let _containers = stage(cluster, &[1], &[]);
        let refused = |why: std::io::Error| assert_eq!(why.kind(), ErrorKind::ConnectionRefused, "{why}");
        for from in [&cluster.wire, &cluster.hosts[0].namespace] {
            refused(connect(from, at(cluster.hosts[0].address, 8080), PATIENCE).unwrap_err());
            let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
            socket.connect(at(cluster.hosts[0].address, 8080)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.send(b"anybody there").unwrap();
            refused(socket.recv(&mut [0; 8]).unwrap_err());
        }
        apply(cluster, 2, &[(1, 1)]);
        assert_eq!(answers(&cluster.wire, cluster.hosts[0].address, 3), ["1"]);
        // No more published at all: as if it had never been.
        for n in 0..3 {
            cluster.hosts[n].apply(&DesiredCluster { mesh: None, ..desired(cluster, n, 3, &[]) });
        }
        refused(connect(&cluster.wire, at(cluster.hosts[0].address, 8080), PATIENCE).unwrap_err());
        cluster.hosts[0].namespace.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
    });
}

#[test]
fn a_container_that_leaves_keeps_its_clients_until_it_is_gone() {
    in_cluster(|cluster| {
        let _containers = stage(cluster, &[0, 1, 2], &[(1, 1)]);
        let door = cluster.hosts[0].address;
        let mut stream = connect(&cluster.wire, at(door, 8080), PATIENCE).unwrap();
        assert_eq!(line(&mut stream).unwrap(), "1");
        let datagrams = cluster.wire.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        let ask = || {
            datagrams.set_read_timeout(Some(SILENCE)).unwrap();
            datagrams.send_to(b"who", at(door, 8080)).unwrap();
            let mut bytes = [0; 8];
            datagrams.recv(&mut bytes).map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned())
        };
        assert_eq!(ask().unwrap(), "1");
        apply(cluster, 2, &[(1, 0), (2, 1)]);
        assert_eq!(answers(&cluster.wire, door, 5), ["2"]);
        writeln!(stream, "still there").unwrap();
        assert_eq!(line(&mut stream).unwrap(), "still there");
        assert_eq!(ask().unwrap(), "1");
        apply(cluster, 3, &[(2, 1)]);
        eventually("a client that never pauses is led to another", || ask().is_ok_and(|who| who == "2"));
        // What the client says next reaches somebody who does not know it.
        let broken = || writeln!(&stream, "anybody").is_err();
        eventually("the connection is broken", broken);
    });
}

#[test]
fn traffic_does_not_notice_that_agents_end_and_others_take_over() {
    in_cluster(|cluster| {
        let _containers = stage(cluster, &[1, 2], &[(1, 1), (2, 1)]);
        let door = cluster.hosts[0].address;
        let mut stream = connect(&cluster.wire, at(door, 8080), PATIENCE).unwrap();
        line(&mut stream).unwrap();
        for host in &mut cluster.hosts {
            host.kill_agent();
        }
        assert_eq!(answers(&cluster.wire, door, 30), ["1", "2"], "without agents");
        for host in &mut cluster.hosts {
            host.start_agent();
        }
        assert_eq!(answers(&cluster.wire, door, 30), ["1", "2"], "with new ones");
        writeln!(stream, "still there").unwrap();
        assert_eq!(line(&mut stream).unwrap(), "still there");
        let again = desired(cluster, 0, 1, &[(1, 1), (2, 1)]);
        assert_eq!(cluster.hosts[0].apply(&again), Vec::<String>::new(), "nothing is left to do");
        // What somebody takes away is put back.
        cluster.hosts[0].ip("rule del pref 18096");
        cluster.hosts[1].ip("route flush table 1869742081");
        for n in [0, 1] {
            let netd = cluster.hosts[n].netd();
            let sandboxes = netd.sandboxes().into_iter().map(|sandbox| sandbox.config).collect();
            let report = netd.sync(&orch_netd::DesiredNetworking { networks: netd.networks(), sandboxes }).unwrap();
            assert_eq!(report.wires.done.len(), 1, "{report:?}");
        }
        assert_eq!(answers(&cluster.wire, door, 30), ["1", "2"]);
    });
}

#[test]
fn a_port_that_somebody_has_is_named_and_the_others_are_led() {
    in_cluster(|cluster| {
        let squatter = cluster.hosts[0].namespace.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
        let wanted = desired(cluster, 0, 1, &[(0, 1)]);
        let report = cluster.hosts[0].netd().apply_cluster(&wanted).unwrap();
        // What nobody is led to is no reason to say that the version is not in effect.
        assert!(report.is_applied(), "{:?}", report.failed);
        let text: Vec<String> = report.refused.iter().map(ToString::to_string).collect();
        assert!(text.len() == 1 && text[0].starts_with("port 8080/tcp is taken by"), "{text:?}");
        // Its connections are its own.
        connect(&cluster.wire, at(cluster.hosts[0].address, 8080), PATIENCE).unwrap();
        squatter.accept().unwrap();
        drop(squatter);
        let _containers = stage(cluster, &[0], &[(0, 1)]);
        assert_eq!(answers(&cluster.wire, cluster.hosts[0].address, 3), ["0"]);
    });
}

#[test]
fn a_forward_chain_that_drops_by_default_lets_the_mesh_pass() {
    in_cluster(|cluster| {
        for host in &cluster.hosts {
            host.run("nft", "add table ip filter");
            host.run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
        }
        let _containers = stage(cluster, &[1], &[(1, 1)]);
        for host in &cluster.hosts {
            assert_seen(&cluster.wire, at(host.address, 8081), CLIENT);
        }
        for (n, host) in cluster.hosts.iter().enumerate() {
            host.apply(&DesiredCluster { mesh: None, ..desired(cluster, n, 2, &[]) });
            let shown = host.run("nft", "list chain ip filter FORWARD");
            assert!(!shown.contains("orx-"), "no port, no rule: {shown}");
        }
    });
}

#[test]
fn the_mesh_works_with_br_netfilter_on() {
    in_cluster(|cluster| {
        for host in &cluster.hosts {
            let set = || std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1");
            if host.namespace.run(set).unwrap().is_err() {
                eprintln!("this kernel has no br_netfilter: not tested");
                return;
            }
        }
        let containers = stage(cluster, &[0, 1, 2], &[(0, 1), (1, 1), (2, 1)]);
        assert_eq!(answers(&cluster.wire, cluster.hosts[0].address, 40), ["0", "1", "2"]);
        assert_eq!(answers(&containers[0].namespace, cluster.hosts[0].address, 40), ["0", "1", "2"]);
        assert_eq!(answers(&containers[0].namespace, cluster.hosts[1].address, 40), ["0", "1", "2"]);
        for _ in 0..9 {
            assert_seen(&cluster.wire, at(cluster.hosts[0].address, 8081), CLIENT);
        }
    });
}

#[test]
fn a_port_on_one_address_is_published_by_the_host_that_has_it() {
    in_cluster(|cluster| {
        let _containers = stage(cluster, &[1], &[(1, 1)]);
        cluster.hosts[0].ip("addr add 198.51.100.77/24 dev up0");
        let only = |cluster: &Cluster, n: usize, version: u64, backends: &[(usize, u16)]| {
            let mut desired = desired(cluster, n, version, backends);
            for port in desired.mesh.iter_mut().flat_map(|mesh| &mut mesh.ports) {
                port.host_ip = Some(address("198.51.100.77"));
            }
            desired
        };
        for (n, host) in cluster.hosts.iter().enumerate() {
            host.apply(&only(cluster, n, 2, &[(1, 1)]));
        }
        assert_seen(&cluster.wire, at(address("198.51.100.77"), 8081), CLIENT);
        for host in &cluster.hosts {
            assert_unreachable(&cluster.wire, at(host.address, 8081));
        }
        cluster.hosts[0].apply(&only(cluster, 0, 3, &[]));
        let why = connect(&cluster.wire, at(address("198.51.100.77"), 8080), PATIENCE).unwrap_err();
        assert_eq!(why.kind(), ErrorKind::ConnectionRefused, "{why}");
    });
}

#[test]
fn a_probe_says_whether_tunnels_get_through_and_why_not() {
    in_cluster_of(2, 1500, |cluster| {
        apply(cluster, 1, &[]);
        let verdict = || cluster.hosts[0].netd().probe_underlay(cluster.hosts[1].address.into()).unwrap();
        assert_eq!(verdict(), UnderlayVerdict::Carries { mtu: 1450 });
        // A port of the switch that carries less than its cards say.
        cluster.wire.run(|| ip("link set port2 mtu 1400")).unwrap();
        let small = verdict();
        assert_eq!(small, UnderlayVerdict::TooSmall { mtu: 1450, fits: 1350, overhead: 50 });
        assert!(small.to_string().contains("only 1400 of the 1500 bytes"), "{small}");
        cluster.wire.run(|| ip("link set port2 mtu 1500")).unwrap();
        let other = &cluster.hosts[1];
        other.run("nft", "add table inet fw");
        other.run("nft", "add chain inet fw input { type filter hook input priority 0 ; }");
        other.run("nft", &format!("add rule inet fw input udp dport {TUNNEL_PORT} drop"));
        assert_eq!(verdict(), UnderlayVerdict::Filtered { port: TUNNEL_PORT });
        // A card that spoils checksums: what has one made by it is dropped.
        other.run("nft", "flush chain inet fw input");
        other.run("nft", "add rule inet fw input iifname \"orx-*\" meta l4proto { tcp, udp } drop");
        assert_eq!(verdict(), UnderlayVerdict::Checksums);
        other.run("nft", "delete table inet fw");
        assert!(verdict().is_good());
        cluster.wire.run(|| ip("link set port2 down")).unwrap();
        assert_eq!(verdict(), UnderlayVerdict::Unreachable);
        cluster.hosts[0].netd().probe_underlay(address("192.0.2.9")).unwrap_err();
    });
}

#[test]
fn a_card_that_spoils_checksums_is_spared_them_in_every_tunnel() {
    in_cluster_of(2, 1500, |cluster| {
        apply(cluster, 1, &[]);
        let host = &cluster.hosts[0];
        let computed_by_card = || {
            let links = host.run("ip", "-br link show type vxlan");
            let names = links.lines().filter_map(|line| line.split_whitespace().next());
            let features = names.map(|name| host.run("ethtool", &format!("-k {name}")));
            let computed = features.map(|all| all.contains("tx-checksum-ip-generic: on"));
            computed.collect::<Vec<_>>()
        };
        assert_eq!(computed_by_card(), [true]);
        let mut wanted = desired(cluster, 0, 2, &[]);
        wanted.underlay.iter_mut().for_each(|underlay| underlay.own_checksums = true);
        host.apply(&wanted);
        assert_eq!(computed_by_card(), [false]);
        host.apply(&desired(cluster, 0, 3, &[]));
        assert_eq!(computed_by_card(), [true]);
    });
}
