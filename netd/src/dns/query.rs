//! A client's query: read with bounds, and the frame of every answer to it.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// What we accept over UDP, and promise to accept: fits every path without fragments (DNS flag day 2020).
pub(crate) const EDNS_SIZE: u16 = 1232;
/// Largest UDP answer to a client that does not speak EDNS (RFC 1035 §4.2.1).
const PLAIN_SIZE: u16 = 512;
/// Bytes of a header.
pub(crate) const HEADER: usize = 12;
/// Bytes of an OPT record without options.
pub(crate) const OPT: usize = 11;

/// How the query came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A query that is well formed and asks one thing.
#[derive(Debug, Clone)]
pub(crate) struct ClientQuery {
    pub(crate) metadata: Metadata,
    pub(crate) question: Query,
    /// Whether the client speaks EDNS.
    pub(crate) edns: bool,
    /// Whether it wants DNSSEC records.
    pub(crate) dnssec: bool,
    /// Bytes that the answer may have.
    pub(crate) limit: usize,
}

/// Why there is nothing to look up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    /// Not a query at all, or nobody to answer: silence.
    Drop,
    /// This answer.
    Answer(Vec<u8>),
}

impl ClientQuery {
    /// Reads a message.
    pub(crate) fn read(packet: &[u8], transport: Transport) -> Result<ClientQuery, Reject> {
        // An answer that is answered can bounce between two servers for ever.
        if packet.len() < HEADER || packet[2] & 0x80 != 0 {
            return Err(Reject::Drop);
        }
        let operation = OpCode::from_u8(packet[2] >> 3 & 0xf);
        if operation != OpCode::Query {
            return Err(Reject::Answer(bare(packet, ResponseCode::NotImp)));
        }
        let count = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        // One question, nothing in answer and authority; the additional section has OPT and perhaps a signature. More than
        // that nobody sends, and reading it would cost work that the sender chooses.
        if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2 {
            return Err(Reject::Answer(bare(packet, ResponseCode::FormErr)));
        }
        let Ok(message) = Message::from_vec(packet) else {
            return Err(Reject::Answer(bare(packet, ResponseCode::FormErr)));
        };
        let Message { metadata, mut queries, edns, .. } = message;
        let Some(question) = queries.pop() else { return Err(Reject::Answer(bare(packet, ResponseCode::FormErr))) };
        let announced = edns.as_ref().map_or(PLAIN_SIZE, |edns| edns.max_payload().clamp(PLAIN_SIZE, EDNS_SIZE));
        let limit = match transport {
            Transport::Udp => usize::from(announced),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let dnssec = edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let version = edns.as_ref().map_or(0, Edns::version);
        let query = ClientQuery { metadata, question, edns: edns.is_some(), dnssec, limit };
        if version != 0 {
            return Err(Reject::Answer(query.failure(ResponseCode::BADVERS)));
        }
        // Transfers have no meaning here, and no class but the internet's has names (RFC 8482 speaks of ANY, the type).
        let transfer = matches!(query.question.query_type, RecordType::AXFR | RecordType::IXFR);
        if query.question.query_class != DNSClass::IN || transfer {
            return Err(Reject::Answer(query.failure(ResponseCode::Refused)));
        }
        Ok(query)
    }

    /// The beginning of an answer: header and question as asked, in the client's own letter case.
    pub(crate) fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.checking_disabled = self.metadata.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.queries.push(self.question.clone());
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_SIZE).set_version(0).set_dnssec_ok(self.dnssec);
            message.edns = Some(edns);
        }
        message
    }

    /// An answer that says only this.
    pub(crate) fn failure(&self, code: ResponseCode) -> Vec<u8> {
        encode(&self.response(code))
    }

    /// Bytes of the question on the wire.
    pub(crate) fn question_size(&self) -> usize {
        // A length byte for each label and one for the root, then type and class.
        wire_name(&self.question.name).len() + 4
    }
}

/// A name as its labels lie on the wire, uncompressed, in its own letter case.
pub(crate) fn wire_name(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 1);
    for label in name.iter() {
        // Labels of a decoded name have at most 63 bytes.
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label);
    }
    bytes.push(0);
    bytes
}

/// A name as the table knows it: lower case, no final dot. `None` when it has bytes that no name of ours has.
pub(crate) fn table_name(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label {
            if !byte.is_ascii_graphic() || byte == b'.' {
                return None;
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    Some(text)
}

/// The bytes of a message. What we build ourselves can always be encoded; if a library bug said otherwise, an empty
/// datagram, which every client ignores, beats a crash.
pub(crate) fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::from(PLAIN_SIZE));
    let mut encoder = BinEncoder::new(&mut bytes);
    if message.emit(&mut encoder).is_err() {
        bytes.clear();
    }
    bytes
}

/// A header with nothing behind it, for a message whose question cannot be read.
fn bare(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut metadata = Metadata::new(
        u16::from_be_bytes([packet[0], packet[1]]),
        MessageType::Response,
        OpCode::from_u8(packet[2] >> 3 & 0xf),
    );
    metadata.recursion_desired = packet[2] & 1 != 0;
    metadata.recursion_available = true;
    metadata.response_code = code;
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata = metadata;
    encode(&message)
}
