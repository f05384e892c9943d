//! A server upstream that does as it is told, and remembers what it was asked.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// A question that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) id: u16,
    pub(crate) port: u16,
    pub(crate) tcp: bool,
}

/// A running server; it ends when dropped.
pub(crate) struct Upstream {
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    /// Listens at `address`, port 53, in the namespace of the calling thread. `answer` gives the datagrams (over TCP: the one
    /// message) to send for a question; none means silence.
    pub(crate) fn start(
        address: &str,
        answer: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Upstream {
        let (seen, stop): (Arc<Mutex<Vec<Seen>>>, Arc<AtomicBool>) = Default::default();
        let answer = Arc::new(answer);
        let udp = UdpSocket::bind((address, 53)).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let tcp = TcpListener::bind((address, 53)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let mut threads = Vec::new();
        {
            let (seen, stop, answer) = (seen.clone(), stop.clone(), answer.clone());
            threads.push(thread::spawn(move || {
                let mut packet = [0; 4096];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = udp.recv_from(&mut packet) else { continue };
                    let message = Message::from_vec(&packet[..length]).unwrap();
                    seen.lock().unwrap().push(remember(&message, from.port(), false));
                    for reply in answer(&message, false) {
                        let _ = udp.send_to(&reply, from);
                    }
                }
            }));
        }
        let (for_tcp, stop_tcp) = (seen.clone(), stop.clone());
        threads.push(thread::spawn(move || {
            while !stop_tcp.load(Ordering::Relaxed) {
                let Ok((mut stream, from)) = tcp.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    continue;
                }
                let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut packet).unwrap();
                let message = Message::from_vec(&packet).unwrap();
                for_tcp.lock().unwrap().push(remember(&message, from.port(), true));
                for reply in answer(&message, true) {
                    let length = u16::try_from(reply.len()).unwrap();
                    let _ = stream.write_all(&[length.to_be_bytes().as_slice(), &reply].concat());
                }
            }
        }));
        Upstream { seen, stop, threads }
    }

    /// One that knows every name: `address`, with this TTL.
    pub(crate) fn knowing(listen: &str, address: &'static str, ttl: u32) -> Upstream {
        Upstream::start(listen, move |message, _| vec![positive(message, address, ttl)])
    }

    /// What it was asked so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A failed thread has printed why; the test sees it by the missing answer.
            let _ = thread.join();
        }
    }
}

fn remember(message: &Message, port: u16, tcp: bool) -> Seen {
    Seen { name: message.queries[0].name.to_string(), id: message.metadata.id, port, tcp }
}

/// The frame of an answer.
pub(crate) fn reply(asked: &Message, code: ResponseCode) -> Message {
    let mut message = asked.clone();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message
}

/// One address, if that is what was asked for.
pub(crate) fn positive(asked: &Message, address: &str, ttl: u32) -> Vec<u8> {
    let mut message = reply(asked, ResponseCode::NoError);
    if asked.queries[0].query_type == RecordType::A {
        let data = RData::A(A(address.parse().unwrap()));
        message.add_answer(Record::from_rdata(asked.queries[0].name.clone(), ttl, data));
    }
    message.to_vec().unwrap()
}

/// "No such name", to be kept for `ttl` seconds.
pub(crate) fn negative(asked: &Message, ttl: u32) -> Vec<u8> {
    let mut message = reply(asked, ResponseCode::NXDomain);
    let root = Name::root();
    let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, ttl);
    message.add_authority(Record::from_rdata(root, ttl, RData::SOA(soa)));
    message.to_vec().unwrap()
}
