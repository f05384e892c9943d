//! Addresses that balance over containers of several hosts.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use orch_netd::{Backend, DesiredCluster, Namespace, Service};

use crate::cluster::*;
use crate::world::*;

/// The service's address: in the network's subnet, and nobody's.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 200);

fn nth(n: usize) -> Ipv4Addr {
    inside(1, u8::try_from(n).unwrap() + 2)
}

fn vip(port: u16) -> SocketAddr {
    SocketAddr::new(VIP.into(), port)
}

/// A service on network `a` with these weights for the containers of hosts 0, 1 and so on.
fn service(weights: &[u16]) -> Service {
    let backend = |(n, weight): (usize, &u16)| Backend { address: nth(n).into(), weight: *weight };
    Service { vip: VIP.into(), networks: vec!["a".into()], backends: weights.iter().enumerate().map(backend).collect() }
}

fn desired(cluster: &Cluster, n: usize, version: u64, services: Vec<Service>) -> DesiredCluster {
    let all: Vec<(Ipv4Addr, usize)> = (0..cluster.hosts.len()).map(|n| (nth(n), n)).chain([(nth(9), 0)]).collect();
    DesiredCluster { services, ..cluster.desired(n, version, &[("a", 7, &all)]) }
}

fn apply(cluster: &Cluster, version: u64, services: &[Service]) {
    for (n, host) in cluster.hosts.iter().enumerate() {
        host.apply(&desired(cluster, n, version, services.to_vec()));
    }
}

/// Network `a` with a container on each host, which says its host's number on port 80 and its caller's address on port 81;
/// and beside the first one a caller.
fn stage(cluster: &Cluster, services: &[Service]) -> (Vec<Container>, Container) {
    apply(cluster, 1, services);
    let make = |(n, host): (usize, &Host)| {
        host.netd().ensure_network(&network("a", 1)).unwrap();
        let container = host.container(&sandbox(&format!("c{n}"), &[("a", nth(n))], &[]));
        serve_saying(&container.namespace, 80, move |_| n.to_string());
        container.serve(81);
        container
    };
    let containers = cluster.hosts.iter().enumerate().map(make).collect();
    (containers, cluster.hosts[0].container(&sandbox("caller", &[("a", nth(9))], &[])))
}

/// Who answers, and how often, out of `count` connections.
fn answers(from: &Namespace, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let who = line(&mut connect(from, vip(80), PATIENCE).unwrap()).unwrap();
        *answers.entry(who).or_default() += 1;
    }
    answers
}

fn who(answers: &BTreeMap<String, usize>) -> Vec<&str> {
    answers.keys().map(String::as_str).collect()
}

#[test]
fn a_service_is_balanced_over_its_containers_on_all_hosts_and_they_see_the_caller() {
    in_cluster(|cluster| {
        let (containers, caller) = stage(cluster, &[service(&[1, 1, 1])]);
        let answered = answers(&caller.namespace, 120);
        assert_eq!(who(&answered), ["0", "1", "2"], "{answered:?}");
        // Of 120 each has 40 to expect; fewer than 15 is less likely than one in a million.
        assert!(answered.values().all(|count| *count > 15), "{answered:?}");
        for _ in 0..12 {
            assert_seen(&caller.namespace, vip(81), nth(9));
            assert_eq!(seen_by_udp(&caller.namespace, vip(81), PATIENCE).unwrap(), nth(9));
        }
        // A container that is one of them may get itself.
        let answered = answers(&containers[1].namespace, 60);
        assert_eq!(who(&answered), ["0", "1", "2"], "{answered:?}");
        caller.namespace.run(|| run("ping", &format!("-c 1 -W 2 {VIP}"))).unwrap();
    });
}

#[test]
fn weights_are_shares() {
    in_cluster(|cluster| {
        let (_containers, caller) = stage(cluster, &[service(&[1, 9, 0])]);
        let answered = answers(&caller.namespace, 200);
        assert_eq!(who(&answered), ["0", "1"], "{answered:?}");
        // 20 to expect; more than 50 or none at all is less likely than one in a hundred million.
        assert!((1..50).contains(&answered["0"]), "{answered:?}");
    });
}

#[test]
fn a_service_without_containers_refuses_at_once_and_an_unknown_one_is_nobody() {
    in_cluster(|cluster| {
        let (_containers, caller) = stage(cluster, &[service(&[])]);
        let refused = |why: std::io::Error| assert_eq!(why.kind(), ErrorKind::ConnectionRefused, "{why}");
        refused(connect(&caller.namespace, vip(80), PATIENCE).unwrap_err());
        let socket = caller.namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect(vip(80)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // To the sender of a datagram the kernel says at once that it did not go; who waits for an answer hears why.
        assert_eq!(socket.send(b"anybody there").unwrap_err().kind(), ErrorKind::PermissionDenied);
        refused(socket.recv(&mut [0; 8]).unwrap_err());
        // All are leaving: as if there were none.
        apply(cluster, 2, &[service(&[0, 0, 0])]);
        refused(connect(&caller.namespace, vip(80), PATIENCE).unwrap_err());
        apply(cluster, 3, &[service(&[0, 0, 1])]);
        assert_eq!(who(&answers(&caller.namespace, 5)), ["2"]);
        apply(cluster, 4, &[]);
        let error = connect(&caller.namespace, vip(80), Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "no such address any more: {error}");
    });
}

/// An open connection and who is at its other end.
fn open(from: &Namespace) -> (TcpStream, String) {
    let mut stream = connect(from, vip(80), PATIENCE).unwrap();
    let who = line(&mut stream).unwrap();
    (stream, who)
}

#[test]
fn who_is_leaving_keeps_connections_and_gets_no_new_ones_and_who_is_gone_loses_them_at_once() {
    in_cluster(|cluster| {
        let (_containers, caller) = stage(cluster, &[service(&[1, 1, 1])]);
        let mut connections: Vec<_> = (0..24).map(|_| open(&caller.namespace)).collect();
        let left = |connections: &[(TcpStream, String)]| connections.iter().filter(|(_, who)| who == "1").count();
        assert!(left(&connections) > 0 && left(&connections) < 24);
        apply(cluster, 2, &[service(&[1, 0, 1])]);
        let answered = answers(&caller.namespace, 40);
        assert_eq!(who(&answered), ["0", "2"], "{answered:?}");
        for (stream, who) in &mut connections {
            writeln!(stream, "still there").unwrap();
            assert_eq!(line(stream).unwrap(), "still there", "with {who}");
        }
        let mut without = service(&[1, 0, 1]);
        without.backends.remove(1);
        apply(cluster, 3, &[without]);
        for (stream, who) in &mut connections {
            stream.set_read_timeout(Some(if who == "1" { PATIENCE } else { Duration::from_millis(1) })).unwrap();
            let error = stream.read(&mut [0]).unwrap_err();
            let expected = if who == "1" { ErrorKind::ConnectionAborted } else { ErrorKind::WouldBlock };
            assert_eq!(error.kind(), expected, "with {who}: {error}");
        }
    });
}

#[test]
fn a_udp_client_that_never_pauses_follows_its_service() {
    in_cluster(|cluster| {
        let (_containers, caller) = stage(cluster, &[service(&[0, 1, 0])]);
        let socket = caller.namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        let ask = || {
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.send_to(b"who", vip(80)).unwrap();
            let mut bytes = [0; 8];
            socket.recv(&mut bytes).map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned())
        };
        assert_eq!(ask().unwrap(), "1");
        let mut only = service(&[0, 0, 1]);
        only.backends.drain(..2);
        apply(cluster, 2, &[only]);
        eventually("the other one answers", || ask().is_ok_and(|who| who == "2"));
    });
}

#[test]
fn services_are_known_to_the_sandboxes_of_their_networks_alone_and_follow_them() {
    in_cluster(|cluster| {
        let (_containers, caller) = stage(cluster, &[service(&[1, 1, 1])]);
        let host = &cluster.hosts[0];
        host.netd().ensure_network(&network("b", 2)).unwrap();
        let other = host.container(&sandbox("other", &[("b", inside(2, 2))], &[]));
        let reaches = |who: &Container| connect(&who.namespace, vip(80), Duration::from_millis(300)).is_ok();
        assert!(!reaches(&other));
        host.netd().connect(&other.id(), &orch_netd::EndpointConfig::new("a", nth(10))).unwrap();
        // What comes back finds it only where the wires know the address.
        let remote = |n: usize| {
            let mut desired = desired(cluster, n, 2, vec![service(&[1, 1, 1])]);
            desired.overlays[0].remote.push(orch_netd::RemoteEndpoint::new(nth(10), host.address.into()));
            desired
        };
        for n in 1..3 {
            cluster.hosts[n].apply(&remote(n));
        }
        // Its way out is through network b, and still it is seen with its address on network a.
        for _ in 0..6 {
            assert_seen(&other.namespace, vip(81), nth(10));
        }
        host.netd().disconnect(&other.id(), &"a".into()).unwrap();
        assert!(!reaches(&other));
        assert!(reaches(&caller));
    });
}

#[test]
fn a_new_agent_goes_on_with_the_services_and_with_a_change_that_the_old_one_did_not_finish() {
    in_cluster(|cluster| {
        let (_containers, caller) = stage(cluster, &[service(&[1, 0, 0])]);
        let mut connection = open(&caller.namespace).0;
        cluster.hosts[0].kill_agent();
        assert_eq!(who(&answers(&caller.namespace, 3)), ["0"], "without an agent");
        // The old one was killed after it had noted what was wanted and before it did anything.
        let next = desired(cluster, 0, 2, vec![service(&[0, 1, 0])]);
        std::fs::write(cluster.hosts[0].run_dir.join("cluster.json"), record(&next)).unwrap();
        cluster.hosts[0].start_agent();
        assert_eq!(who(&answers(&caller.namespace, 3)), ["1"]);
        writeln!(connection, "still there").unwrap();
        assert_eq!(line(&mut connection).unwrap(), "still there");
        assert_eq!(cluster.hosts[0].apply(&next), Vec::<String>::new(), "nothing is left to do");
        // A sandbox that comes before anybody has spoken to the new agent.
        let late = cluster.hosts[0].container(&sandbox("late", &[("a", nth(11))], &[]));
        let reached = connect(&late.namespace, vip(80), Duration::from_millis(300));
        assert!(reached.is_err_and(|error| error.kind() == ErrorKind::TimedOut), "host 1 does not know it yet");
        let table = late.namespace.run(|| nft("list table inet orch-services")).unwrap();
        assert!(table.contains("10.1.0.200"), "{table}");
    });
}

/// As the agent keeps it.
fn record(desired: &DesiredCluster) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({ "desired": desired, "numbers": {} })).unwrap()
}

#[test]
fn services_and_wires_have_ipv6_too() {
    in_cluster_of(2, 1500, |cluster| {
        let six = |n: usize| format!("fd00:1::{:x}", n + 2).parse::<std::net::Ipv6Addr>().unwrap();
        let vip: std::net::IpAddr = address("fd00:1::c8");
        let mut services = vec![Service { vip, networks: vec!["a".into()], backends: Vec::new() }];
        let wanted = |n: usize, version: u64, services: &[Service]| {
            let mut desired = desired(cluster, n, version, services.to_vec());
            for remote in &mut desired.overlays[0].remote {
                let last = remote.ipv4.unwrap().octets()[3];
                remote.ipv6 = Some(six(usize::from(last) - 2));
            }
            desired
        };
        let containers: Vec<Container> = (0..2)
            .map(|n| {
                let host = &cluster.hosts[n];
                host.apply(&wanted(n, 1, &services));
                host.netd().ensure_network(&dual_network("a", 1)).unwrap();
                let mut config = sandbox(&format!("c{n}"), &[("a", nth(n))], &[]);
                config.endpoints[0].ipv6 = Some(six(n));
                let container = host.container(&config);
                container.serve(81);
                container
            })
            .collect();
        let caller = &containers[0].namespace;
        assert_seen(caller, SocketAddr::new(six(1).into(), 81), six(0));
        let there = SocketAddr::new(vip, 81);
        assert_eq!(connect(caller, there, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        services[0].backends.push(Backend { address: six(1).into(), weight: 1 });
        (0..2).for_each(|n| drop(cluster.hosts[n].apply(&wanted(n, 2, &services))));
        assert_seen(caller, there, six(0));
        let mut stream = connect(caller, there, PATIENCE).unwrap();
        line(&mut stream).unwrap();
        services[0].backends.clear();
        (0..2).for_each(|n| drop(cluster.hosts[n].apply(&wanted(n, 3, &services))));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    });
}
