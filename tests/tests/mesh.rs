//! Ports that every host publishes, as clients see them who use several hosts at once: whoever balances over all of them does.

use std::net::SocketAddr;

use orch_tests::cluster::Hosts;
use orch_tests::host::Host;
use orch_tests::http;
use orch_tests::machine::Place;
use orch_tests::segment::address;

const PAGE: &str = "
name: page
services:
  web:
    image: busybox
    init: true
    command: [sh, -c, 'mkdir /www; echo here >/www/index.html; exec httpd -f -p 80 -h /www']
    deploy: {placement: {constraints: ['node.id == NODE']}}
    ports: ['8080:80']
";

#[test]
fn one_client_port_may_be_used_towards_several_hosts_at_the_same_time() {
    let hosts = Hosts::cluster(&["worker", "worker"]);
    hosts.load("busybox");
    hosts.host(1).stack(&PAGE.replace("NODE", &hosts.id(1)));
    hosts.host(1).up();
    // One that stands outside, as whoever balances over all hosts does. Its address is kept all the way to the container, where nothing else
    // tells its connections through several hosts apart.
    let client = Host::new();
    hosts.segment.plug(&client, 4).expect("it can be plugged in");
    let way = |host: u8| SocketAddr::new(address(host).into(), 8080);
    let pages = client.inside(Place::Host, || {
        let mut held: Vec<_> = (1..=3).map(|host| (way(host), http::connect_from(40_000, way(host)))).collect();
        let asked = held.iter_mut().rev().map(|(way, stream)| {
            let stream = stream.as_mut().map_err(|error| error.clone())?;
            http::ask(stream, &way.to_string(), "/")
        });
        asked.collect::<Vec<_>>()
    });
    assert_eq!(pages, vec![Ok("here\n".to_owned()); 3]);
    // And what was closed a moment ago is in nobody's way.
    for host in [1, 2, 3, 3, 2, 1] {
        let again = || http::ask(&mut http::connect_from(40_001, way(host))?, &way(host).to_string(), "/");
        assert_eq!(client.inside(Place::Host, again).as_deref(), Ok("here\n"), "through host {host}");
    }
    hosts.host(1).down();
}
