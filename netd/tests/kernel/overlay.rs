//! Networks that span hosts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use orch_netd::{DesiredCluster, DesiredNetworking};

use crate::cluster::*;
use crate::world::*;

const SILENCE: Duration = Duration::from_millis(300);

/// One network `a` (VNI 7) with a container on each host, at 10.1.0.(2 + host), which serves on port 80.
fn one_network(cluster: &Cluster) -> Vec<Container> {
    let all: Vec<(Ipv4Addr, usize)> = (0..cluster.hosts.len()).map(|n| (nth(n), n)).collect();
    cluster.apply(1, &[("a", 7, &all)]);
    let make = |(n, host): (usize, &Host)| {
        host.netd().ensure_network(&network("a", 1)).unwrap();
        let container = host.container(&sandbox(&format!("c{n}"), &[("a", nth(n))], &[]));
        container.serve(80);
        container
    };
    cluster.hosts.iter().enumerate().map(make).collect()
}

/// Frames that left a host through its one tunnel.
fn sent(host: &Host) -> u64 {
    let name = tunnel(host);
    let shown = host.ip(&format!("-s link show {name}"));
    let at = shown.find("TX:").unwrap_or_else(|| panic!("no figures: {shown}"));
    shown[at..].lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Name of a host's one tunnel.
fn tunnel(host: &Host) -> String {
    let shown = host.ip("-o link show type vxlan");
    let name = shown.split(": ").nth(1).unwrap_or_else(|| panic!("no tunnel on {}", host.address));
    assert!(name.starts_with("orx-"), "{name}");
    name.to_owned()
}

fn nth(n: usize) -> Ipv4Addr {
    inside(1, u8::try_from(n).unwrap() + 2)
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Sends `size` bytes there and back over TCP.
fn echo(from: &Container, to: SocketAddr, size: usize) {
    let mut stream = connect(&from.namespace, to, PATIENCE).unwrap();
    line(&mut stream).unwrap();
    let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    let mut reader = stream.try_clone().unwrap();
    let echoed = std::thread::spawn(move || {
        let mut back = vec![0; size];
        reader.read_exact(&mut back).map(|()| back)
    });
    stream.write_all(&bytes).unwrap();
    assert!(echoed.join().unwrap().unwrap() == bytes, "{size} bytes come back as they went");
}

#[test]
fn containers_on_three_hosts_reach_each_other_and_no_frame_is_broadcast() {
    in_cluster(|cluster| {
        let containers = one_network(cluster);
        for (n, from) in containers.iter().enumerate() {
            for m in (0..3).filter(|m| *m != n) {
                assert_seen(&from.namespace, at(nth(m), 80), nth(n));
                assert_eq!(seen_by_udp(&from.namespace, at(nth(m), 80), PATIENCE).unwrap(), nth(n));
            }
        }
        let host = &cluster.hosts[0];
        let from = &containers[0].namespace;
        // Nobody has this address: nobody is asked.
        let before = sent(host);
        assert_unreachable(from, at(inside(1, 99), 80));
        assert_eq!(sent(host), before, "frames went out to look for an address that nobody has");
        // Somebody has this one, and still nobody is asked: the one frame that leaves is the packet itself.
        from.run(|| run("ip", "neigh flush all")).unwrap();
        from.run(|| run("ping", &format!("-c 1 -W 2 {}", nth(1)))).unwrap();
        assert_eq!(sent(host), before + 1);
    });
}

#[test]
fn what_fits_the_network_goes_in_one_piece_and_streams_are_not_cut() {
    in_cluster(|cluster| {
        let containers = one_network(cluster);
        let from = &containers[0].namespace;
        let link = from.run(|| ip("link show eth0")).unwrap();
        assert!(link.contains("mtu 1450"), "{link}");
        // As large as the MTU allows: 20 bytes of IP, 8 of ICMP or UDP.
        from.run(|| run("ping", &format!("-c 2 -i 0.01 -W 2 -M do -s {} {}", 1450 - 28, nth(1)))).unwrap();
        let fragments = |n: usize| -> Vec<String> {
            let text =
                cluster.hosts[n].namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
            let text = text.unwrap();
            let names = text.lines().find(|line| line.starts_with("Ip:")).unwrap().split_whitespace();
            let values = text.lines().filter(|line| line.starts_with("Ip:")).nth(1).unwrap().split_whitespace();
            let all = names.zip(values).filter(|(name, _)| name.starts_with("Frag") || name.starts_with("Reasm"));
            all.filter(|(_, value)| *value != "0").map(|(name, value)| format!("{name}={value}")).collect()
        };
        echo(&containers[0], at(nth(1), 80), 4 << 20);
        for n in 0..2 {
            assert_eq!(fragments(n), Vec::<String>::new(), "host {n} cut or joined packets");
        }
    });
}

#[test]
fn the_mtu_follows_from_the_link_under_the_tunnels() {
    in_cluster_of(2, 9000, |cluster| {
        let containers = one_network(cluster);
        let link = containers[0].namespace.run(|| ip("link show eth0")).unwrap();
        assert!(link.contains("mtu 8950"), "{link}");
        containers[0].namespace.run(|| run("ping", &format!("-c 1 -W 2 -M do -s {} {}", 8950 - 28, nth(1)))).unwrap();
        echo(&containers[0], at(nth(1), 80), 1 << 20);
    });
}

/// A VXLAN packet's content: a frame for a container's MAC with a UDP datagram inside.
fn frame(vni: u32, from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &[u8]) -> Vec<u8> {
    let mac = |address: Ipv4Addr| [&[0x02, 0x42][..], &address.octets()].concat();
    let length = |extra: usize| u16::try_from(text.len() + extra).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length(28));
    packet.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&[0x12, 0x34]);
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(&length(8));
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(text);
    let vni = (vni << 8).to_be_bytes();
    [&[8, 0, 0, 0][..], &vni, &mac(to), &mac(from), &[8, 0], &packet].concat()
}

#[test]
fn a_frame_from_whoever_is_no_member_is_dropped_and_so_is_one_from_a_container() {
    in_cluster(|cluster| {
        let containers = one_network(cluster);
        let victim = containers[0].namespace.run(|| UdpSocket::bind("0.0.0.0:9")).unwrap().unwrap();
        let hears = |what: &str, from: &orch_netd::Namespace| {
            let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
            let injected = frame(7, nth(1), nth(0), 9, what.as_bytes());
            socket.send_to(&injected, at(cluster.hosts[0].address, TUNNEL_PORT)).unwrap();
            victim.set_read_timeout(Some(SILENCE)).unwrap();
            let mut bytes = [0; 64];
            victim.recv(&mut bytes).is_ok_and(|length| &bytes[..length] == what.as_bytes())
        };
        assert!(hears("a member", &cluster.hosts[1].namespace), "the frame is well made");
        assert!(!hears("a stranger on the wire", &cluster.wire));
        // Its packets leave with the address of its host, which is a member.
        assert!(!hears("a container of another host", &containers[1].namespace));
        assert!(!hears("a container of this host", &containers[0].namespace));
        assert!(!hears("this host itself", &cluster.hosts[0].namespace));
        // A host that has left is a stranger.
        let mut without = cluster.desired(0, 2, &[("a", 7, &[(nth(0), 0), (nth(2), 2)])]);
        without.peers.retain(|peer| *peer != cluster.hosts[1].address);
        cluster.hosts[0].apply(&without);
        assert!(!hears("a former member", &cluster.hosts[1].namespace));
    });
}

#[test]
fn a_container_that_moves_to_another_host_is_found_there_after_one_update() {
    in_cluster(|cluster| {
        let mut containers = one_network(cluster);
        seen(&containers[0].namespace, at(nth(1), 80)).unwrap();
        let moved = containers.remove(1);
        cluster.hosts[1].netd().remove_sandboxes(&[moved.id()]).unwrap();
        drop(moved);
        let all = [(nth(0), 0), (nth(1), 2), (nth(2), 2)];
        let done = cluster.hosts[0].apply(&cluster.desired(0, 2, &[("a", 7, &all)]));
        assert_eq!(done.len(), 1, "one entry changes: {done:?}");
        for n in [1, 2] {
            cluster.hosts[n].apply(&cluster.desired(n, 2, &[("a", 7, &all)]));
        }
        let back = cluster.hosts[2].container(&sandbox("c1", &[("a", nth(1))], &[]));
        back.serve(80);
        // From afar, from where it was, and from beside it.
        assert_seen(&containers[0].namespace, at(nth(1), 80), nth(0));
        assert_seen(&containers[1].namespace, at(nth(1), 80), nth(2));
        assert_seen(&back.namespace, at(nth(0), 80), nth(1));
    });
}

#[test]
fn a_link_that_was_gone_works_again_by_itself() {
    in_cluster(|cluster| {
        let containers = one_network(cluster);
        let reaches = || connect(&containers[0].namespace, at(nth(1), 80), SILENCE).is_ok();
        assert!(reaches());
        cluster.wire.run(|| ip("link set port2 down")).unwrap();
        assert!(!reaches(), "the cable is out");
        cluster.wire.run(|| ip("link set port2 up")).unwrap();
        eventually("the cable is in again", reaches);
        cluster.hosts[1].ip("link set up0 down");
        assert!(!reaches(), "the card is off");
        cluster.hosts[1].ip("link set up0 up");
        eventually("the card is on again", reaches);
    });
}

#[test]
fn traffic_does_not_notice_that_the_agent_ends_and_another_takes_over() {
    in_cluster(|cluster| {
        let containers = one_network(cluster);
        let mut stream = connect(&containers[0].namespace, at(nth(1), 80), PATIENCE).unwrap();
        line(&mut stream).unwrap();
        let mut goes_on = |what: &str| {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            writeln!(stream, "{what}").unwrap();
            assert_eq!(line(&mut stream).unwrap(), what);
        };
        goes_on("with agents");
        for host in &mut cluster.hosts {
            host.kill_agent();
        }
        goes_on("without");
        for host in &mut cluster.hosts {
            host.start_agent();
        }
        goes_on("with new ones");
        let all = [(nth(0), 0), (nth(1), 1), (nth(2), 2)];
        let again = cluster.desired(0, 1, &[("a", 7, &all)]);
        assert_eq!(cluster.hosts[0].netd().cluster(), again, "the new agent knows what was wanted");
        assert_eq!(cluster.hosts[0].apply(&again), Vec::<String>::new(), "nothing is left to do");
    });
}

#[test]
fn what_somebody_removed_is_mended_by_a_look_and_by_the_next_agent() {
    in_cluster(|cluster| {
        let containers = one_network(cluster);
        let whole = cluster.hosts[0].netd().sync(&desired_of(&cluster.hosts[0])).unwrap();
        assert!(whole.wires.done.is_empty(), "nothing is broken yet: {whole:?}");
        let name = tunnel(&cluster.hosts[0]);
        let bridge = cluster.hosts[0].netd().bridge(&"a".into()).unwrap();
        let mac = "02:42:0a:01:00:03";
        let damages = [
            format!("ip link del {name}"),
            format!("ip link set {name} nomaster"),
            format!("ip link set {name} down"),
            format!("bridge fdb del {mac} dev {name} self"),
            format!("bridge fdb del {mac} dev {name} master"),
            format!("ip neigh del {} dev {bridge}", nth(1)),
            format!("ip link del {bridge}"),
        ];
        for damage in &damages {
            let (program, arguments) = damage.split_once(' ').unwrap();
            for by_next_agent in [false, true] {
                if by_next_agent && damage.ends_with(&bridge) {
                    continue;
                }
                cluster.hosts[0].run(program, arguments);
                containers[0].namespace.run(|| run("ip", "neigh flush all")).unwrap();
                assert!(connect(&containers[0].namespace, at(nth(1), 80), SILENCE).is_err(), "{damage} does no harm");
                if by_next_agent {
                    cluster.hosts[0].kill_agent();
                    cluster.hosts[0].start_agent();
                } else {
                    let report = cluster.hosts[0].netd().sync(&desired_of(&cluster.hosts[0])).unwrap();
                    assert!(report.failed.is_empty() && report.wires.is_applied(), "{damage}: {report:?}");
                }
                assert_seen(&containers[0].namespace, at(nth(1), 80), nth(0));
            }
        }
        let report = cluster.hosts[0].netd().sync(&desired_of(&cluster.hosts[0])).unwrap();
        assert!(report.done.is_empty() && report.wires.done.is_empty(), "a second look mends nothing: {report:?}");
    });
}

/// All that a host has.
fn desired_of(host: &Host) -> DesiredNetworking {
    let sandboxes = host.netd().sandboxes().into_iter().map(|sandbox| sandbox.config).collect();
    DesiredNetworking { networks: host.netd().networks(), sandboxes }
}

#[test]
fn a_network_and_its_tunnel_go_together_and_come_again() {
    in_cluster(|cluster| {
        let containers = one_network(cluster);
        let host = &cluster.hosts[0];
        host.netd().remove_sandboxes(&[containers[0].id()]).unwrap();
        host.netd().remove_networks(&["a".into()]).unwrap();
        assert_eq!(host.ip("-o link show type vxlan"), "", "no network, no tunnel");
        host.netd().ensure_network(&network("a", 1)).unwrap();
        let again = host.container(&sandbox("again", &[("a", nth(0))], &[]));
        assert_seen(&again.namespace, at(nth(1), 80), nth(0));
        // A network that is no overlay any more stays, for this host alone.
        host.apply(&cluster.desired(0, 2, &[]));
        assert_eq!(host.ip("-o link show type vxlan"), "");
        assert!(host.netd().bridge(&"a".into()).is_some());
        host.apply(&DesiredCluster::default());
    });
}
