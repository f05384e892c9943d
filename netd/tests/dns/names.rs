//! Which names a sandbox sees.

use std::collections::BTreeSet;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use orch_netd::dns::{NetworkRecords, RecordKind, SandboxDns};

use crate::upstream::Upstream;
use crate::world::{ip, on_a_host, sorted};

#[test]
fn every_kind_of_name_leads_to_the_container() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let names = ["db", "database", "db.shop", "shop-db-1", "0123456789ab", "1.db", "tasks.db"];
        for name in names.into_iter().chain(["db.shop_default", "shop-db-1.shop_default", "DB", "Db.Shop_Default"]) {
            assert_eq!(sandbox.addresses(name), ["10.89.0.2"], "{name}");
            assert_eq!(sorted(&sandbox.ask_tcp(name, RecordType::A)), ["10.89.0.2"], "{name} over TCP");
        }
    });
}

#[test]
fn the_question_comes_back_in_the_letter_case_it_was_asked_in() {
    on_a_host(|world| {
        world.shop();
        let answer = world.sandbox(&["shop"]).ask("dB.sHoP", RecordType::A);
        assert_eq!(answer.queries[0].name.to_string(), "dB.sHoP.");
        assert_eq!(answer.answers[0].name.to_string(), "dB.sHoP.");
    });
}

#[test]
fn a_service_gives_all_its_addresses_in_changing_order_for_a_short_time() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        assert_eq!(sandbox.addresses("web"), ["10.89.0.3", "10.89.0.4"]);
        assert_eq!(sorted(&sandbox.ask("web", RecordType::AAAA)), ["fd00:89::3"]);
        let mut first = BTreeSet::new();
        // Sixty-four times the same of two in a fair shuffle: once in 2^63 runs.
        for _ in 0..64 {
            let answer = sandbox.ask("web", RecordType::A);
            assert!(answer.answers.iter().all(|record| record.ttl <= 5));
            first.insert(answer.answers[0].data.to_string());
        }
        assert_eq!(first.len(), 2);
    });
}

#[test]
fn a_known_name_without_such_records_is_never_asked_upstream() {
    on_a_host(|world| {
        let upstream = Upstream::knowing("127.0.0.1", "192.0.2.1", 60);
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        for (name, kind) in [
            ("db", RecordType::AAAA),
            ("db", RecordType::MX),
            ("db.shop_default", RecordType::TXT),
            ("db", RecordType::HTTPS),
            ("db", RecordType::SOA),
            ("db", RecordType::Unknown(4711)),
            ("cache", RecordType::A),
            ("cache", RecordType::AAAA),
            ("cache.shop_default", RecordType::A),
            ("shop_default", RecordType::A),
        ] {
            let answer = sandbox.ask(name, kind);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name} {kind}");
            assert!(answer.answers.is_empty(), "{name} {kind}");
        }
        for name in ["gone.shop_default", "a.b.shop_default"] {
            assert_eq!(sandbox.ask(name, RecordType::A).metadata.response_code, ResponseCode::NXDomain, "{name}");
        }
        assert_eq!(sandbox.addresses("localhost"), ["127.0.0.1"]);
        assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    });
}

#[test]
fn a_network_named_like_a_public_domain_does_not_hide_it() {
    on_a_host(|world| {
        let _upstream = Upstream::knowing("127.0.0.1", "192.0.2.1", 60);
        let mut records = NetworkRecords::new("dev").unwrap();
        records.add("api", RecordKind::Service, ip("10.0.0.9")).unwrap();
        world.dns.set_network("dev".into(), records);
        let sandbox = world.sandbox(&["dev"]);
        assert_eq!(sandbox.addresses("api.dev"), ["10.0.0.9"]);
        assert_eq!(sandbox.addresses("go.dev"), ["192.0.2.1"]);
    });
}

#[test]
fn our_subnets_are_reversed_here_and_others_upstream() {
    on_a_host(|world| {
        let upstream = Upstream::knowing("127.0.0.1", "192.0.2.1", 60);
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let stranger = world.sandbox(&[]);
        let v6 = "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.8.0.0.0.0.d.f.ip6.arpa";
        for (name, target) in [("2.0.89.10.in-addr.arpa", "shop-db-1.shop_default."), (v6, "shop-web-1.shop_default.")]
        {
            let answer = sandbox.ask(name, RecordType::PTR);
            assert!(matches!(&answer.answers[0].data, RData::PTR(ptr) if ptr.0.to_string() == target), "{answer}");
        }
        // A free address, and one whose network the asker is not on.
        let free = sandbox.ask("77.0.89.10.in-addr.arpa", RecordType::PTR);
        assert_eq!(free.metadata.response_code, ResponseCode::NXDomain);
        let hidden = stranger.ask("2.0.89.10.in-addr.arpa", RecordType::PTR);
        assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain);
        assert!(sandbox.ask("2.0.89.10.in-addr.arpa", RecordType::A).answers.is_empty());
        assert!(upstream.seen().is_empty());
        sandbox.ask("1.2.0.192.in-addr.arpa", RecordType::PTR);
        assert_eq!(upstream.seen().len(), 1);
    });
}

#[test]
fn each_sandbox_sees_its_own_networks_even_with_the_same_addresses() {
    on_a_host(|world| {
        for (network, address) in [("red", "10.1.0.2"), ("blue", "10.1.0.3")] {
            let mut records = NetworkRecords::new(&format!("{network}_default")).unwrap();
            records.subnet("10.1.0.0/24".parse().unwrap());
            records.add("db", RecordKind::Service, ip(address)).unwrap();
            world.dns.set_network(network.into(), records);
        }
        assert_eq!(world.sandbox(&["red"]).addresses("db"), ["10.1.0.2"]);
        assert_eq!(world.sandbox(&["blue"]).addresses("db"), ["10.1.0.3"]);
        let both = world.sandbox(&["blue", "red"]);
        assert_eq!(both.addresses("db"), ["10.1.0.3"]);
        assert_eq!(both.addresses("db.red_default"), ["10.1.0.2"]);
    });
}

#[test]
fn a_link_is_a_name_for_one_sandbox_alone() {
    on_a_host(|world| {
        let _upstream = Upstream::start("127.0.0.1", |asked, _| vec![crate::upstream::negative(asked, 5)]);
        world.shop();
        let (linked, other) = (world.sandbox(&["shop"]), world.sandbox(&["shop"]));
        let links = [("Postgres".to_owned(), "DB".to_owned())].into();
        let dns = SandboxDns { networks: vec!["shop".into()], links, ..SandboxDns::default() };
        world.dns.set_sandbox(linked.id.clone(), dns);
        assert_eq!(linked.addresses("postgres"), ["10.89.0.2"]);
        assert_eq!(linked.addresses("postgres.shop_default"), ["10.89.0.2"]);
        assert_eq!(other.ask("postgres", RecordType::A).metadata.response_code, ResponseCode::NXDomain);
    });
}

#[test]
fn a_change_is_seen_by_the_next_query() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        for last in 10..60 {
            let address = ip(&format!("10.89.0.{last}"));
            world.dns.update(|table| {
                let changed = table.edit_network(&"shop".into(), |records| {
                    records.remove("db");
                    records.add("db", RecordKind::Service, address).unwrap();
                });
                assert!(changed);
            });
            assert_eq!(sandbox.addresses("db"), [address.to_string()]);
        }
        world.dns.update(|table| {
            table.edit_network(&"shop".into(), |records| records.remove_address(ip("10.89.0.59")));
        });
        assert!(sandbox.ask("db", RecordType::A).answers.is_empty());
    });
}

#[test]
fn of_a_large_service_udp_gives_some_and_tcp_all_and_tasks_are_never_cut_silently() {
    on_a_host(|world| {
        let mut records = NetworkRecords::new("big_default").unwrap();
        for last in 1..=200 {
            records.add("big", RecordKind::Service, ip(&format!("10.2.0.{last}"))).unwrap();
            records.add("tasks.big", RecordKind::Tasks, ip(&format!("10.2.0.{last}"))).unwrap();
        }
        world.dns.set_network("big".into(), records);
        let sandbox = world.sandbox(&["big"]);
        let some = sandbox.ask("big", RecordType::A);
        assert_eq!((some.answers.len(), some.metadata.truncation), (16, false));
        assert_eq!(sandbox.ask_tcp("big", RecordType::A).answers.len(), 200);
        let tasks = sandbox.ask("tasks.big", RecordType::A);
        assert!(tasks.metadata.truncation);
        assert_eq!(sandbox.ask_tcp("tasks.big", RecordType::A).answers.len(), 200);
        let seen: BTreeSet<String> = (0..64).flat_map(|_| sorted(&sandbox.ask("big", RecordType::A))).collect();
        assert!(seen.len() > 100, "{} of 200 in 64 answers of 16", seen.len());
    });
}

#[test]
fn a_sandbox_that_is_not_in_the_table_gets_servfail() {
    on_a_host(|world| {
        let upstream = Upstream::knowing("127.0.0.1", "192.0.2.1", 60);
        let sandbox = world.sandbox(&[]);
        world.dns.remove_sandbox(&sandbox.id);
        assert_eq!(sandbox.ask("example.com", RecordType::A).metadata.response_code, ResponseCode::ServFail);
        assert!(upstream.seen().is_empty());
    });
}
