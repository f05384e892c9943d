//! Who reaches whom, and who is seen as whom.

use std::net::SocketAddr;

use orch_netd::{NetworkConfig, PortRequest};

use crate::world::*;

fn at(address: &str, port: u16) -> SocketAddr {
    format!("{address}:{port}").parse().unwrap()
}

#[test]
fn the_nineteen_ways_hold_with_br_netfilter_on_and_off() {
    with_and_without_br_netfilter(|world| {
        let netd = world.open();
        for config in [network("a", 1), network("b", 2), NetworkConfig { internal: true, ..network("shut", 3) }] {
            netd.ensure_network(&config).unwrap();
        }
        let loopback = PortRequest::tcp(8081, 80).on(address("127.0.0.1"));
        let web = Container::new(
            &netd,
            &sandbox("web", &[("a", [10, 1, 0, 2].into())], &[PortRequest::tcp(8080, 80), loopback]),
        );
        let friend = Container::new(&netd, &sandbox("friend", &[("a", [10, 1, 0, 3].into())], &[]));
        let other = Container::new(&netd, &sandbox("other", &[("b", [10, 2, 0, 2].into())], &[]));
        let shut =
            Container::new(&netd, &sandbox("shut", &[("shut", [10, 3, 0, 2].into())], &[PortRequest::tcp(8082, 80)]));
        for container in [&web, &friend, &other, &shut] {
            container.serve(80);
            container.serve(81);
        }
        serve(&world.lan, 80);
        serve(&world.host, 9000);
        let host = HOST.to_string();

        // 1. A LAN neighbour reaches a published port and is seen as himself.
        assert_seen(&world.lan, at(&host, 8080), NEIGHBOUR);
        // 2, 3. He reaches no container's own address, be the port published or not.
        assert_unreachable(&world.lan, at("10.1.0.2", 80));
        assert_unreachable(&world.lan, at("10.1.0.2", 81));
        // 4, 5. The host reaches it through loopback and through its own address.
        seen(&world.host, at("127.0.0.1", 8080)).unwrap();
        seen(&world.host, at(&host, 8080)).unwrap();
        // 6, 7. What is published on loopback is the host's alone.
        seen(&world.host, at("127.0.0.1", 8081)).unwrap();
        assert_unreachable(&world.lan, at(&host, 8081));
        world.lan_ip("rule add to 127.0.0.0/8 lookup 7 pref 0");
        world.lan_ip("rule add pref 1 lookup local");
        world.lan_ip("rule del pref 0 lookup local");
        assert_unreachable(&world.lan, at("127.0.0.1", 8081));
        // 8. A container reaches itself through the host's port.
        seen(&web.namespace, at(&host, 8080)).unwrap();
        // 9, 10. Its neighbour on the network does too, by the host's address and by the gateway's.
        seen(&friend.namespace, at(&host, 8080)).unwrap();
        seen(&friend.namespace, at("10.1.0.1", 8080)).unwrap();
        // 11. A container of another network does, and is seen as itself.
        assert_seen(&other.namespace, at(&host, 8080), address("10.2.0.2"));
        // 12. Containers of one network reach each other, and are seen as themselves.
        assert_seen(&friend.namespace, at("10.1.0.2", 80), address("10.1.0.3"));
        assert_eq!(
            seen_by_udp(&friend.namespace, at("10.1.0.2", 80), std::time::Duration::from_secs(5)).unwrap(),
            address("10.1.0.3")
        );
        // 13. Those of different networks do not.
        assert_unreachable(&other.namespace, at("10.1.0.2", 80));
        // 14. What leaves is seen as the host.
        assert_seen(&web.namespace, at(&NEIGHBOUR.to_string(), 80), HOST);
        // 15 to 18. An internal network has no way out, not by the host's ports either, and none in.
        assert_unreachable(&shut.namespace, at(&NEIGHBOUR.to_string(), 80));
        shut.namespace.run(|| ip("route add default via 10.3.0.1")).unwrap();
        assert_unreachable(&shut.namespace, at(&NEIGHBOUR.to_string(), 80));
        assert_unreachable(&shut.namespace, at(&host, 8080));
        assert_unreachable(&shut.namespace, at("10.1.0.2", 80));
        assert_unreachable(&web.namespace, at("10.3.0.2", 80));
        assert_eq!(shut.sandbox.ports, [], "it has no way in");
        // 19. The host reaches an internal container.
        assert_seen(&world.host, at("10.3.0.2", 80), address("10.3.0.1"));

        // Beyond the nineteen: the host's own services at the gateway's address stay reachable, from inside and from itself.
        seen(&web.namespace, at("10.1.0.1", 9000)).unwrap();
        seen(&world.host, at("10.1.0.1", 9000)).unwrap();
    });
}

#[test]
fn containers_of_a_network_without_icc_do_not_reach_each_other_but_their_published_ports() {
    in_world(|world| {
        let netd = world.open();
        netd.ensure_network(&NetworkConfig { icc: false, ..network("a", 1) }).unwrap();
        let web = Container::new(&netd, &sandbox("web", &[("a", [10, 1, 0, 2].into())], &[PortRequest::tcp(8080, 80)]));
        let friend = Container::new(&netd, &sandbox("friend", &[("a", [10, 1, 0, 3].into())], &[]));
        web.serve(80);
        serve(&world.lan, 80);
        std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0").unwrap();
        assert_unreachable(&friend.namespace, at("10.1.0.2", 80));
        // Nor by way of the gateway.
        friend.namespace.run(|| ip("route add 10.1.0.2/32 via 10.1.0.1")).unwrap();
        assert_unreachable(&friend.namespace, at("10.1.0.2", 80));
        seen(&friend.namespace, at(&HOST.to_string(), 8080)).unwrap();
        seen(&web.namespace, at(&HOST.to_string(), 8080)).unwrap();
        assert_seen(&friend.namespace, at(&NEIGHBOUR.to_string(), 80), HOST);
    });
}
