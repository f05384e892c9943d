//! Names and ports: who is found under what, and who reaches whom.

use std::net::{Ipv4Addr, Ipv6Addr};

use orch_tests::host::Host;
use orch_tests::machine::{ADDRESS, Place};
use orch_tests::nameserver::{NameServer, OUTSIDE, OUTSIDE_ADDRESS};
use orch_tests::wait::{PATIENCE, eventually};

const PAIR: &str = "
name: pair
services:
  client: {image: busybox, command: sleep infinity, init: true}
  server:
    image: busybox
    init: true
    container_name: known
    command: [sh, -c, 'mkdir /www; echo page >/www/index.html; exec httpd -f -p 80 -h /www']
    networks: {default: {aliases: [nick]}}
    ports: ['8080:80', '127.0.0.1:8081:80', '9000-9001:80-81', '9053:53/udp']
    healthcheck: {test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1/'], start_period: 20s, start_interval: 100ms}
";

#[test]
fn a_service_is_found_by_name_alias_container_name_and_reverse() {
    let host = Host::with_busybox();
    host.stack(PAIR);
    host.up();
    let address = host.container("server")["networks"]["default"]["ipv4"].as_str().unwrap().to_owned();
    for name in ["server", "nick", "known", "server.pair"] {
        assert_eq!(host.exec("client", &format!("wget -q -O - http://{name}/")), "page", "{name}");
        let answer = host.exec("client", &format!("nslookup -type=a {name}"));
        assert!(answer.contains(&address), "{name} is not {address}: {answer}");
    }
    let reverse = host.exec("client", &format!("nslookup {address}"));
    assert!(reverse.contains("known") || reverse.contains("server"), "{reverse}");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_name_that_is_not_there_and_a_type_that_is_not_there_are_told_apart() {
    let host = Host::with_busybox();
    host.stack(PAIR);
    host.up();
    let outside = NameServer::start(&host);
    let ask = |what: &str| host.orch(&["exec", "-T", "client", "sh", "-c", &format!("nslookup {what} 2>&1")]).stdout;
    let nobody = ask("-type=a nobody.pair");
    assert!(nobody.contains("NXDOMAIN"), "{nobody}");
    let untyped = ask("-type=aaaa server");
    assert!(!untyped.contains("NXDOMAIN") && !untyped.contains("SERVFAIL"), "{untyped}");
    let known = ask(&format!("-type=a {OUTSIDE}"));
    assert!(known.contains(&OUTSIDE_ADDRESS.to_string()), "{known}");
    drop(outside);
    // Without a way out, names inside go on being answered.
    assert!(ask("-type=a server").contains(host.container("server")["networks"]["default"]["ipv4"].as_str().unwrap()));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_published_port_answers_from_everywhere_it_should_and_nowhere_else() {
    let host = Host::with_busybox();
    host.stack(PAIR);
    host.up();
    let page = |from: Place, address: std::net::IpAddr, port: u16| {
        host.page(from, address, port, "/").map(|p| p.trim().to_owned())
    };
    for (from, address, port) in [
        (Place::Host, ADDRESS.into(), 8080),
        (Place::Host, Ipv4Addr::LOCALHOST.into(), 8080),
        (Place::Host, Ipv6Addr::LOCALHOST.into(), 8080),
        (Place::Neighbour, ADDRESS.into(), 8080),
        (Place::Host, Ipv4Addr::LOCALHOST.into(), 8081),
        (Place::Neighbour, ADDRESS.into(), 9000),
    ] {
        assert_eq!(page(from, address, port).as_deref(), Ok("page"), "{from:?} to {address}:{port}");
    }
    assert!(
        page(Place::Neighbour, ADDRESS.into(), 8081).is_err(),
        "published on 127.0.0.1 alone, yet reachable from the LAN"
    );
    let inside: Ipv4Addr = host.container("server")["networks"]["default"]["ipv4"].as_str().unwrap().parse().unwrap();
    assert_eq!(page(Place::Host, inside.into(), 80).as_deref(), Ok("page"));
    assert!(page(Place::Neighbour, inside.into(), 80).is_err(), "the neighbour goes round the published port");
    // Hairpin: the server itself, and its neighbour on the same network, by the host's address.
    for service in ["client", "server"] {
        // Debian's static busybox crashes when its wget is given a port.
        let page = host.exec(service, &format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {ADDRESS} 8080"));
        assert!(page.ends_with("page"), "{service}: {page}");
    }
    assert_eq!(host.orch(&["port", "server", "80"]).ok().lines().len(), 1);
    host.orch(&["port", "server", "82"]).fails();
    host.orch(&["down", "-t", "2"]).ok();
    assert!(page(Place::Host, ADDRESS.into(), 8080).is_err(), "the port outlives its container");
    host.leaves_no_trace();
}

#[test]
fn a_udp_port_is_published() {
    let host = Host::new();
    host.load("web");
    let echo = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 7000))\nwhile True: s.sendto(*s.recvfrom(99))";
    host.write("echo.py", echo);
    host.stack("services: {echo: {image: orch-examples/web, init: true, command: python3 /echo.py, configs: [{source: echo, target: /echo.py}], healthcheck: {disable: true}, ports: ['7007:7000/udp']}}\nconfigs: {echo: {file: echo.py}}");
    host.up();
    let answer = host.inside(Place::Neighbour, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        eventually(PATIENCE, "the datagram comes back", || {
            socket.send_to(b"hello\n", (ADDRESS, 7007)).map_err(|e| e.to_string())?;
            let mut bytes = [0; 16];
            let (n, from) = socket.recv_from(&mut bytes).map_err(|e| e.to_string())?;
            if &bytes[..n] == b"hello\n" { Ok(from) } else { Err(format!("{:?}", &bytes[..n])) }
        })
    });
    assert_eq!(answer, std::net::SocketAddr::from((ADDRESS, 7007)));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn addresses_of_the_file_are_kept_and_networks_without_a_way_out_have_none() {
    let host = Host::with_busybox();
    host.stack(
        "name: n\nservices:
  a: {image: busybox, command: sleep infinity, init: true, networks: {fixed: {ipv4_address: 10.77.0.9}, inner: {}}}
  b: {image: busybox, command: sleep infinity, init: true, networks: [inner], hostname: bee, extra_hosts: ['there:192.0.2.7']}
networks:
  fixed: {ipam: {config: [{subnet: 10.77.0.0/24}]}}
  inner: {internal: true}",
    );
    host.up();
    assert_eq!(host.container("a")["networks"]["fixed"]["ipv4"], "10.77.0.9");
    assert_eq!(
        host.exec("b", "hostname; grep -o '192.0.2.7.*there' /etc/hosts | tr -s '\\t' ' '"),
        "bee\n192.0.2.7 there"
    );
    host.exec("a", "ping -c 1 -W 5 198.51.100.2");
    host.orch(&["exec", "-T", "b", "ping", "-c", "1", "-W", "1", "198.51.100.2"]).fails();
    host.exec("b", "ping -c 1 -W 5 a");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_service_in_anothers_network_shares_its_address_and_ports() {
    let host = Host::with_busybox();
    host.stack(
        "name: shared\nservices:
  main: {image: busybox, init: true, command: sleep infinity, ports: ['8080:80']}
  side: {image: busybox, init: true, command: [sh, -c, 'mkdir /www; echo side >/www/index.html; exec httpd -f -p 80 -h /www'], network_mode: 'service:main'}
  alone: {image: busybox, init: true, command: sleep infinity, network_mode: none}
  open: {image: busybox, init: true, command: sleep infinity, network_mode: host}",
    );
    host.up();
    let served = || host.page(Place::Host, ADDRESS, 8080, "/");
    assert_eq!(eventually(PATIENCE, "side serves", served).trim(), "side");
    let links = "ls /sys/class/net | tr '\\n' ' '";
    assert_eq!(host.exec("main", "ip -o -4 address show eth0"), host.exec("side", "ip -o -4 address show eth0"));
    assert_eq!(host.exec("alone", links), "lo");
    assert!(host.exec("open", links).contains("lan0"));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn ipv6_works_where_a_network_asks_for_it() {
    let host = Host::with_busybox();
    host.stack(
        "name: six\nservices:
  a: {image: busybox, init: true, command: [sh, -c, 'mkdir /www; echo six >/www/index.html; exec httpd -f -p 80 -h /www'], ports: ['8080:80']}
  b: {image: busybox, init: true, command: sleep infinity}
networks: {default: {enable_ipv6: true, ipam: {config: [{subnet: 'fd00:77::/64'}]}}}",
    );
    host.up();
    let address = host.container("a")["networks"]["default"]["ipv6"].as_str().unwrap().to_owned();
    assert!(address.starts_with("fd00:77::"), "{address}");
    // Debian's static busybox crashes when its wget is given an IPv6 address, on any host.
    host.exec("b", &format!("ping -c 1 -W 5 {address}"));
    let inside: Ipv6Addr = address.parse().unwrap();
    assert_eq!(host.page(Place::Host, inside, 80, "/").as_deref().map(str::trim), Ok("six"));
    let outside: Ipv6Addr = "fd00:1ab::1".parse().unwrap();
    assert_eq!(host.page(Place::Neighbour, outside, 8080, "/").as_deref().map(str::trim), Ok("six"));
    host.down();
    host.leaves_no_trace();
}
