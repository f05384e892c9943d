//! Asking upstream, with servers that are slow, broken, or lie.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use orch_netd::dns::{NetworkRecords, SandboxDns};

use crate::upstream::{Upstream, negative, positive, reply};
use crate::world::{World, eventually, ip, on_a_host, question, sorted, with_edns};

#[test]
fn a_foreign_name_is_asked_upstream_once_and_then_remembered() {
    on_a_host(|world| {
        let upstream = Upstream::knowing("127.0.0.1", "192.0.2.7", 300);
        let (one, two) = (world.sandbox(&[]), world.sandbox(&[]));
        for _ in 0..5 {
            assert_eq!(one.addresses("www.example.com"), ["192.0.2.7"]);
            let answer = two.ask("wWw.eXample.com", RecordType::A);
            assert_eq!(answer.queries[0].name.to_string(), "wWw.eXample.com.");
            assert_eq!(sorted(&answer), ["192.0.2.7"]);
        }
        assert_eq!(sorted(&one.ask_tcp("www.example.com", RecordType::A)), ["192.0.2.7"]);
        assert_eq!(upstream.seen().len(), 1, "{:?}", upstream.seen());
    });
}

#[test]
fn no_such_name_is_passed_on_and_remembered_shortly() {
    on_a_host(|world| {
        let upstream = Upstream::start("127.0.0.1", |asked, _| vec![negative(asked, 3600)]);
        let sandbox = world.sandbox(&[]);
        for _ in 0..3 {
            let answer = sandbox.ask("nobody.example.com", RecordType::A);
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        }
        assert_eq!(upstream.seen().len(), 1);
    });
}

#[test]
fn what_may_not_be_kept_is_asked_again() {
    on_a_host(|world| {
        let upstream = Upstream::knowing("127.0.0.1", "192.0.2.7", 0);
        let sandbox = world.sandbox(&[]);
        for _ in 0..3 {
            assert_eq!(sandbox.addresses("fresh.example.com"), ["192.0.2.7"]);
        }
        assert_eq!(upstream.seen().len(), 3);
    });
}

#[test]
fn dnssec_answers_are_kept_apart_and_edns_stays_with_those_who_asked_for_it() {
    on_a_host(|world| {
        let upstream = Upstream::knowing("127.0.0.1", "192.0.2.7", 300);
        let sandbox = world.sandbox(&[]);
        let plain = question("signed.example.com", RecordType::A);
        let answer = Message::from_vec(&sandbox.exchange(&plain.to_vec().unwrap())).unwrap();
        assert!(answer.edns.is_none());
        let signed = with_edns(plain, 1232, true).to_vec().unwrap();
        for _ in 0..2 {
            let answer = Message::from_vec(&sandbox.exchange(&signed)).unwrap();
            assert!(answer.edns.unwrap().flags().dnssec_ok);
        }
        assert_eq!(upstream.seen().len(), 2);
    });
}

#[test]
fn many_who_ask_the_same_cause_one_question_and_each_gets_the_answer() {
    on_a_host(|world| {
        let gate = Arc::new(AtomicBool::new(false));
        let held = gate.clone();
        let upstream = Upstream::start("127.0.0.1", move |asked, _| {
            eventually("the gate opens", || held.load(Ordering::Relaxed));
            vec![positive(asked, "192.0.2.9", 0)]
        });
        let sandbox = world.sandbox(&[]);
        let clients: Vec<_> = (0..40).map(|_| sandbox.client()).collect();
        for client in &clients {
            client.send(&question("slow.example.com", RecordType::A).to_vec().unwrap()).unwrap();
        }
        eventually("all wait", || world.dns.stats().forwarded == 40);
        gate.store(true, Ordering::Relaxed);
        for client in &clients {
            let mut answer = [0; 512];
            let length = client.recv(&mut answer).unwrap();
            assert_eq!(sorted(&Message::from_vec(&answer[..length]).unwrap()), ["192.0.2.9"]);
        }
        // One question; a repeated one is possible when the machine is slow, forty are not.
        assert!(upstream.seen().len() < 10, "{}", upstream.seen().len());
    });
}

#[test]
fn when_one_server_fails_or_keeps_silent_another_answers() {
    for first in [Some(ResponseCode::ServFail), Some(ResponseCode::Refused), None] {
        on_a_host(|world| {
            let _bad = Upstream::start("127.0.0.1", move |asked, _| {
                first.map(|code| reply(asked, code).to_vec().unwrap()).into_iter().collect()
            });
            let _good = Upstream::knowing("127.0.0.2", "192.0.2.2", 0);
            world.servers(&["127.0.0.1", "127.0.0.2"]);
            assert_eq!(world.sandbox(&[]).addresses("www.example.com"), ["192.0.2.2"], "{first:?}");
        });
    }
}

#[test]
fn a_server_that_nobody_runs_is_passed_over() {
    on_a_host(|world| {
        let _good = Upstream::knowing("127.0.0.2", "192.0.2.2", 0);
        world.servers(&["127.0.0.1", "127.0.0.2"]);
        assert_eq!(world.sandbox(&[]).addresses("www.example.com"), ["192.0.2.2"]);
    });
}

#[test]
fn a_silent_server_is_asked_last_afterwards() {
    on_a_host(|world| {
        let silent = Upstream::start("127.0.0.1", |_, _| Vec::new());
        let _good = Upstream::knowing("127.0.0.2", "192.0.2.2", 0);
        world.servers(&["127.0.0.1", "127.0.0.2"]);
        let sandbox = world.sandbox(&[]);
        sandbox.addresses("a.example.com");
        let before = silent.seen().len();
        for name in ["b.example.com", "c.example.com", "d.example.com"] {
            sandbox.addresses(name);
        }
        assert!(silent.seen().len() < before + 3, "asked first every time");
    });
}

#[test]
fn without_any_answer_the_client_is_told_so_and_own_names_are_answered_meanwhile() {
    on_a_host(|world| {
        let _slow = Upstream::start("127.0.0.1", |asked, _| {
            thread::sleep(Duration::from_secs(10));
            vec![positive(asked, "192.0.2.1", 60)]
        });
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let client = sandbox.client();
        client.send(&question("www.example.com", RecordType::A).to_vec().unwrap()).unwrap();
        for _ in 0..100 {
            assert_eq!(sandbox.addresses("db"), ["10.89.0.2"]);
        }
        let mut answer = [0; 512];
        let length = client.recv(&mut answer).unwrap();
        let answer = Message::from_vec(&answer[..length]).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(world.dns.stats().failed, 1);
    });
}

#[test]
fn a_refusal_by_all_servers_reaches_the_client_at_once() {
    on_a_host(|world| {
        let upstream =
            Upstream::start("127.0.0.1", |asked, _| vec![reply(asked, ResponseCode::ServFail).to_vec().unwrap()]);
        let answer = world.sandbox(&[]).ask("www.example.com", RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(upstream.seen().len(), 1);
    });
}

/// Sixty long texts when asked over TCP, over UDP the head with TC.
fn long(asked: &Message, tcp: bool) -> Vec<Vec<u8>> {
    let mut message = reply(asked, ResponseCode::NoError);
    if tcp {
        for number in 0..60 {
            let text = TXT::new(vec![format!("{number:03} {}", "x".repeat(96))]);
            message.add_answer(Record::from_rdata(asked.queries[0].name.clone(), 60, RData::TXT(text)));
        }
    } else {
        message.metadata.truncation = true;
    }
    vec![message.to_vec().unwrap()]
}

#[test]
fn a_cut_answer_is_fetched_whole_over_tcp_and_cut_again_only_for_udp_clients() {
    on_a_host(|world| {
        let upstream = Upstream::start("127.0.0.1", long);
        let sandbox = world.sandbox(&[]);
        for _ in 0..2 {
            let cut = sandbox.ask("long.example.com", RecordType::TXT);
            assert!(cut.metadata.truncation && cut.answers.is_empty());
            let whole = sandbox.ask_tcp("long.example.com", RecordType::TXT);
            assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
        }
        let transports: Vec<bool> = upstream.seen().iter().map(|seen| seen.tcp).collect();
        assert_eq!(transports, [false, true]);
    });
}

#[test]
fn a_cut_answer_that_cannot_be_had_whole_is_passed_on_and_not_kept() {
    on_a_host(|world| {
        let upstream = Upstream::start("127.0.0.1", |asked, tcp| if tcp { Vec::new() } else { long(asked, false) });
        let sandbox = world.sandbox(&[]);
        for _ in 0..2 {
            assert!(sandbox.ask("long.example.com", RecordType::TXT).metadata.truncation);
        }
        assert_eq!(upstream.seen().iter().filter(|seen| !seen.tcp).count(), 2);
    });
}

/// What a forger would send before the true answer: wrong id, wrong name, wrong type, no answer at all.
fn forged(asked: &Message) -> Vec<Vec<u8>> {
    let lie = |change: &dyn Fn(&mut Message)| {
        let mut message = Message::from_vec(&positive(asked, "203.0.113.66", 60)).unwrap();
        change(&mut message);
        message.to_vec().unwrap()
    };
    vec![
        lie(&|message| message.metadata.id ^= 0x5555),
        lie(&|message| message.queries[0] = question("other.example.com", RecordType::A).queries[0].clone()),
        lie(&|message| message.queries[0].query_type = RecordType::AAAA),
        lie(&|message| message.queries.clear()),
        lie(&|message| message.metadata.message_type = hickory_proto::op::MessageType::Query),
        b"garbage".to_vec(),
    ]
}

#[test]
fn forged_answers_are_passed_over_and_the_true_one_is_taken() {
    on_a_host(|world| {
        let _upstream = Upstream::start("127.0.0.1", |asked, _| {
            let mut sent = forged(asked);
            sent.push(positive(asked, "192.0.2.1", 60));
            sent
        });
        let sandbox = world.sandbox(&[]);
        for name in ["a.example.com", "b.example.com", "www.example.com"] {
            assert_eq!(sandbox.addresses(name), ["192.0.2.1"]);
        }
    });
}

#[test]
fn a_guessed_id_without_the_letter_case_is_checked_over_tcp() {
    on_a_host(|world| {
        let upstream = Upstream::start("127.0.0.1", |asked, tcp| {
            if tcp {
                return vec![positive(asked, "192.0.2.1", 60)];
            }
            let mut lie = Message::from_vec(&positive(asked, "203.0.113.66", 60)).unwrap();
            let plain = question("abcdefghijklmnopqrstuvwxyz.example.com", RecordType::A).queries[0].clone();
            lie.queries[0] = plain;
            vec![lie.to_vec().unwrap()]
        });
        assert_eq!(world.sandbox(&[]).addresses("abcdefghijklmnopqrstuvwxyz.example.com"), ["192.0.2.1"]);
        assert!(upstream.seen().iter().any(|seen| seen.tcp));
    });
}

#[test]
fn ids_ports_and_letter_case_are_hard_to_guess() {
    on_a_host(|world| {
        let upstream = Upstream::knowing("127.0.0.1", "192.0.2.1", 0);
        let sandbox = world.sandbox(&[]);
        for _ in 0..64 {
            sandbox.addresses("a-rather-long-name.example.com");
        }
        let seen = upstream.seen();
        let distinct = |mut values: Vec<String>| {
            values.sort();
            values.dedup();
            values.len()
        };
        assert!(distinct(seen.iter().map(|s| s.id.to_string()).collect()) > 60);
        assert!(distinct(seen.iter().map(|s| s.name.clone()).collect()) > 60);
        // A socket serves sixteen questions at most.
        assert!(distinct(seen.iter().map(|s| s.port.to_string()).collect()) >= 4);
    });
}

#[test]
fn a_server_from_before_edns_is_asked_without() {
    on_a_host(|world| {
        let _upstream = Upstream::start("127.0.0.1", |asked, _| {
            if asked.edns.is_some() {
                // As such servers do: the header alone.
                let mut bare = reply(asked, ResponseCode::FormErr);
                bare.queries.clear();
                bare.edns = None;
                return vec![bare.to_vec().unwrap()];
            }
            vec![positive(asked, "192.0.2.1", 60)]
        });
        assert_eq!(world.sandbox(&[]).addresses("www.example.com"), ["192.0.2.1"]);
    });
}

#[test]
fn a_sandbox_without_a_way_out_is_never_forwarded_for() {
    on_a_host(|world| {
        let host = Upstream::knowing("127.0.0.1", "192.0.2.1", 60);
        let mut records = NetworkRecords::new("vault_default").unwrap();
        records.set_internal(true);
        records.subnet("10.3.0.0/24".parse().unwrap());
        world.dns.set_network("vault".into(), records);
        let sandbox = world.sandbox(&["vault"]);
        let refused = |name: &str| {
            assert_eq!(sandbox.ask(name, RecordType::A).metadata.response_code, ResponseCode::NXDomain);
        };
        refused("secret.attacker.example");
        // Naming a server of one's own, that the host could reach, opens no way either.
        let dns =
            SandboxDns { networks: vec!["vault".into()], upstreams: vec![ip("127.0.0.1")], ..SandboxDns::default() };
        world.dns.set_sandbox(sandbox.id.clone(), SandboxDns { dial: orch_netd::dns::Dial::Host, ..dns });
        refused("secret.attacker.example");
        assert!(host.seen().is_empty(), "{:?}", host.seen());
        // With a second network that has a way out, forwarding is on again.
        world.shop();
        let dns = SandboxDns { networks: vec!["vault".into(), "shop".into()], ..SandboxDns::default() };
        world.dns.set_sandbox(sandbox.id.clone(), dns);
        assert_eq!(sandbox.addresses("www.example.com"), ["192.0.2.1"]);
    });
}

#[test]
fn a_server_on_the_sandboxs_own_networks_is_asked_from_inside_and_others_from_the_host() {
    on_a_host(|world| {
        let _host = Upstream::knowing("127.0.0.1", "192.0.2.1", 60);
        let _elsewhere = Upstream::knowing("127.0.0.53", "192.0.2.53", 60);
        let (own, plain) = (world.sandbox(&[]), world.sandbox(&[]));
        let _inside = own.run(|| Upstream::knowing("127.0.0.1", "10.9.9.9", 60));
        let with =
            |dns: &[&str]| SandboxDns { upstreams: dns.iter().map(|text| ip(text)).collect(), ..SandboxDns::default() };
        world.dns.set_sandbox(own.id.clone(), with(&["127.0.0.1"]));
        assert_eq!(own.addresses("www.example.com"), ["10.9.9.9"]);
        // What one sandbox's server says is not given to another sandbox.
        assert_eq!(plain.addresses("www.example.com"), ["192.0.2.1"]);
        let dial = orch_netd::dns::Dial::Host;
        world.dns.set_sandbox(own.id.clone(), SandboxDns { dial, ..with(&["127.0.0.53"]) });
        assert_eq!(own.addresses("www.example.com"), ["192.0.2.53"]);
    });
}

#[test]
fn a_change_of_the_hosts_servers_is_followed() {
    on_a_host(|world| {
        let _old = Upstream::knowing("127.0.0.1", "192.0.2.1", 60);
        let _new = Upstream::knowing("127.0.0.2", "192.0.2.2", 60);
        let sandbox = world.sandbox(&[]);
        assert_eq!(sandbox.addresses("www.example.com"), ["192.0.2.1"]);
        world.servers(&["127.0.0.2"]);
        eventually("the new server is asked", || sandbox.addresses("www.example.com") == ["192.0.2.2"]);
    });
}

#[test]
fn a_host_without_servers_gives_servfail() {
    on_a_host(|world| {
        world.servers(&[]);
        let answer = world.sandbox(&[]).ask("www.example.com", RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    });
}

/// Sends many different questions that nobody upstream answers, without waiting.
fn flood(world: &World, client: &std::net::UdpSocket, count: u64) {
    let before = world.dns.stats().queries;
    for number in 0..count {
        let asked = question(&format!("n{number}.example.com"), RecordType::A);
        client.send(&asked.to_vec().unwrap()).unwrap();
        // Not faster than they are taken: what the socket buffer drops would prove nothing.
        eventually("it is taken", || world.dns.stats().queries > before + number);
    }
}

#[test]
fn one_sandbox_cannot_use_up_the_forwarder_for_others() {
    on_a_host(|world| {
        let quiet = Arc::new(AtomicU32::new(0));
        let count = quiet.clone();
        let _upstream = Upstream::start("127.0.0.1", move |asked, _| {
            if asked.queries[0].name.to_string().to_ascii_lowercase().starts_with("polite") {
                return vec![positive(asked, "192.0.2.1", 60)];
            }
            count.fetch_add(1, Ordering::Relaxed);
            Vec::new()
        });
        let (greedy, polite) = (world.sandbox(&[]), world.sandbox(&[]));
        let client = greedy.client();
        flood(world, &client, 300);
        assert!(world.dns.stats().refused > 0, "{:?}", world.dns.stats());
        let mut answer = [0; 512];
        let length = client.recv(&mut answer).unwrap();
        let first = Message::from_vec(&answer[..length]).unwrap();
        assert_eq!(first.metadata.response_code, ResponseCode::Refused);
        assert_eq!(polite.addresses("polite.example.com"), ["192.0.2.1"]);
    });
}

#[test]
fn records_of_unknown_types_pass_through_untouched() {
    on_a_host(|world| {
        let _upstream = Upstream::start("127.0.0.1", |asked, _| {
            let mut message = reply(asked, ResponseCode::NoError);
            let name = asked.queries[0].name.clone();
            message.add_answer(Record::from_rdata(name.clone(), 9, RData::A(A("192.0.2.1".parse().unwrap()))));
            message.add_answer(Record::from_rdata(name.clone(), 9, RData::AAAA(AAAA("2001:db8::1".parse().unwrap()))));
            let data = hickory_proto::rr::rdata::NULL::with(vec![1, 2, 3, 0xc0, 0xff]);
            let data = RData::Unknown { code: RecordType::Unknown(65400), rdata: data };
            message.add_additional(Record::from_rdata(name, 9, data));
            vec![message.to_vec().unwrap()]
        });
        let sandbox = world.sandbox(&[]);
        for _ in 0..2 {
            let answer = sandbox.ask("odd.example.com", RecordType::ANY);
            assert_eq!((answer.answers.len(), answer.additionals.len()), (2, 1));
            assert!(answer.answers.iter().all(|record| record.ttl <= 9));
            let RData::Unknown { rdata, .. } = &answer.additionals[0].data else { panic!("{answer}") };
            assert_eq!(rdata.anything, [1, 2, 3, 0xc0, 0xff]);
        }
    });
}
