//! How the protocol is kept, with clients that do not.

use std::io::{Read, Write};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

use crate::world::{Sandbox, on_a_host, question, read_message, sorted, with_edns, write_message};

fn code(sandbox: &Sandbox, packet: &[u8]) -> ResponseCode {
    let answer = Message::from_vec(&sandbox.exchange(packet)).unwrap();
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!(answer.metadata.id.to_be_bytes(), packet[..2]);
    answer.metadata.response_code
}

#[test]
fn what_is_wrong_with_a_query_is_said() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let good = question("db", RecordType::A);
        let bytes = good.to_vec().unwrap();
        assert_eq!(code(&sandbox, &bytes), ResponseCode::NoError);

        let mut update = good.clone();
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&sandbox, &update.to_vec().unwrap()), ResponseCode::NotImp);

        let mut two = good.clone();
        two.add_query(good.queries[0].clone());
        assert_eq!(code(&sandbox, &two.to_vec().unwrap()), ResponseCode::FormErr);
        assert_eq!(code(&sandbox, &bytes[..12]), ResponseCode::FormErr);
        assert_eq!(code(&sandbox, &bytes[..bytes.len() - 1]), ResponseCode::FormErr);
        // A name that points at itself.
        let mut looping = bytes[..12].to_vec();
        looping.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&sandbox, &looping), ResponseCode::FormErr);

        let mut chaos = good.clone();
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&sandbox, &chaos.to_vec().unwrap()), ResponseCode::Refused);
        assert_eq!(code(&sandbox, &question("db", RecordType::AXFR).to_vec().unwrap()), ResponseCode::Refused);

        let mut future = with_edns(good, 1232, false);
        future.edns.as_mut().unwrap().set_version(1);
        // BADVERS shares its number with BADSIG.
        assert_eq!(u16::from(code(&sandbox, &future.to_vec().unwrap())), u16::from(ResponseCode::BADVERS));
    });
}

#[test]
fn edns_is_spoken_with_those_who_speak_it() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        assert!(sandbox.ask("db", RecordType::A).edns.is_none());
        let asked = with_edns(question("db", RecordType::A), 4096, true).to_vec().unwrap();
        let answer = Message::from_vec(&sandbox.exchange(&asked)).unwrap();
        let edns = answer.edns.expect("an OPT record");
        assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
        assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
    });
}

#[test]
fn answers_and_scraps_are_met_with_silence() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let client = sandbox.client();
        let mut reply = question("db", RecordType::A).to_vec().unwrap();
        reply[2] |= 0x80;
        client.send(&reply).unwrap();
        client.send(&[]).unwrap();
        client.send(&reply[..11]).unwrap();
        // Datagrams of one socket stay in order: were any of those answered, its answer would come first.
        let asked = question("web", RecordType::AAAA);
        client.send(&asked.to_vec().unwrap()).unwrap();
        let mut answer = [0; 512];
        let length = client.recv(&mut answer).unwrap();
        assert_eq!(Message::from_vec(&answer[..length]).unwrap().metadata.id, asked.metadata.id);
    });
}

#[test]
fn a_connection_carries_many_questions_also_in_pieces() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let mut connection = sandbox.connection();
        for _ in 0..50 {
            write_message(&mut connection, &question("db", RecordType::A).to_vec().unwrap());
        }
        for _ in 0..50 {
            assert_eq!(sorted(&Message::from_vec(&read_message(&mut connection)).unwrap()), ["10.89.0.2"]);
        }
        let asked = question("web", RecordType::A).to_vec().unwrap();
        let framed = [u16::try_from(asked.len()).unwrap().to_be_bytes().as_slice(), &asked].concat();
        connection.set_nodelay(true).unwrap();
        for byte in framed {
            connection.write_all(&[byte]).unwrap();
        }
        assert_eq!(Message::from_vec(&read_message(&mut connection)).unwrap().answers.len(), 2);
    });
}

#[test]
fn connections_are_bounded_and_the_next_one_works_when_others_close() {
    on_a_host(|world| {
        world.shop();
        let sandbox = world.sandbox(&["shop"]);
        let asked = question("db", RecordType::A).to_vec().unwrap();
        let mut open: Vec<_> = (0..32).map(|_| sandbox.connection()).collect();
        for connection in &mut open {
            write_message(connection, &asked);
            read_message(connection);
        }
        let mut one_more = sandbox.connection();
        let _ = one_more.write_all(&[0, 0]);
        // Closed by the server: end of stream or reset.
        assert!(matches!(one_more.read(&mut [0; 1]), Ok(0) | Err(_)));
        drop(open);
        crate::world::eventually("a place is free again", || {
            let mut connection = sandbox.connection();
            connection.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let framed = [u16::try_from(asked.len()).unwrap().to_be_bytes().as_slice(), &asked].concat();
            connection.write_all(&framed).is_ok() && matches!(connection.read(&mut [0; 1]), Ok(1))
        });
    });
}

#[test]
fn a_connection_that_announces_too_much_is_closed() {
    on_a_host(|world| {
        let sandbox = world.sandbox(&[]);
        let mut connection = sandbox.connection();
        connection.write_all(&[0xff, 0xff, 1, 2, 3]).unwrap();
        assert!(matches!(connection.read(&mut [0; 1]), Ok(0) | Err(_)));
    });
}
