//! The name server that a machine's resolv.conf names: on its neighbour, with one name outside.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::host::Host;
use crate::machine::{NEIGHBOUR, Place};

/// The one name that it knows; every other name does not exist.
pub const OUTSIDE: &str = "outside.example";
/// Its address (RFC 5737).
pub const OUTSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

/// A running name server; it ends with this value.
#[derive(Debug)]
pub struct NameServer {
    over: Arc<AtomicBool>,
}

impl NameServer {
    /// Starts it on the host's neighbour.
    ///
    /// # Panics
    /// When its port is taken.
    #[must_use]
    pub fn start(host: &Host) -> Self {
        let socket = host
            .inside(Place::Neighbour, || UdpSocket::bind((NEIGHBOUR, 53)).expect("port 53 of the neighbour is free"));
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket has a timeout");
        let over = Arc::new(AtomicBool::new(false));
        let shared = over.clone();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while !shared.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut query) else { continue };
                if let Some(answer) = answer(&query[..n]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { over }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// RFC 1035, 4.1: a header of twelve bytes, then the question; further sections of the query (EDNS) are left out of the answer.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let known = labels.join(".") == OUTSIDE;
    let answers = u16::from(known && kind == 1);
    let mut bytes = query.get(..2)?.to_vec();
    // A response, recursion desired and available; code 3 is NXDOMAIN.
    bytes.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1]);
    bytes.extend(answers.to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(question);
    if answers == 1 {
        // The name of the question, A, IN, 60 s, four bytes.
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        bytes.extend(OUTSIDE_ADDRESS.octets());
    }
    Some(bytes)
}
