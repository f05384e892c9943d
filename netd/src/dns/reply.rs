//! An upstream server's answer, kept as the bytes that came.
//!
//! Answers pass through without being taken apart: record types that we do not know stay intact. Only what must be known is
//! read: that it answers our question, how long it holds, and where its TTLs and its OPT record are.

use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

use super::query::{ClientQuery, EDNS_SIZE, HEADER, wire_name};
use super::random::unpredictable;

/// Longest time an answer is kept: upstream data that changed is wrong here for a minute at most.
const LONGEST_POSITIVE: u32 = 60;
/// Longest time "does not exist" is kept: what was just created must be found soon.
const LONGEST_NEGATIVE: u32 = 5;

const OPT: u16 = 41;
const SOA: u16 = 6;
/// `QR` in the third byte of a header, `TC`, `RD`; in the fourth `RA`, `AD`, `CD`.
const QR: u8 = 0x80;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const AD: u8 = 0x20;
const CD: u8 = 0x10;

/// A question as one server is asked it, with an id and letter case that nobody else knows.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamQuery {
    /// The message.
    pub(crate) bytes: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
}

impl UpstreamQuery {
    /// Asks `name` (wire form) in random letter case (draft-vixie-dnsext-dns0x20): a forger must guess that too.
    pub(crate) fn new(name: &[u8], kind: u16, dnssec: bool, checking_disabled: bool, edns: bool) -> UpstreamQuery {
        let mut bytes = Vec::with_capacity(HEADER + name.len() + 4 + 11);
        bytes.extend_from_slice(&(unpredictable() as u16).to_be_bytes());
        bytes.extend_from_slice(&[RD, if checking_disabled { CD } else { 0 }, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        let mut coins = 0;
        for (index, &byte) in name.iter().enumerate() {
            if index % 64 == 0 {
                coins = unpredictable();
            }
            // A length byte is at most 63 and so never a letter.
            let flip = byte.is_ascii_alphabetic() && coins >> (index % 64) & 1 == 1;
            bytes.push(if flip { byte ^ 0x20 } else { byte });
        }
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        let question_end = bytes.len();
        if edns {
            write_opt(&mut bytes, dnssec, 0);
        }
        UpstreamQuery { bytes, question_end }
    }
}

fn write_opt(bytes: &mut Vec<u8>, dnssec: bool, code_high: u8) {
    bytes.extend_from_slice(&[0]);
    bytes.extend_from_slice(&OPT.to_be_bytes());
    bytes.extend_from_slice(&EDNS_SIZE.to_be_bytes());
    bytes.extend_from_slice(&[code_high, 0, if dnssec { 0x80 } else { 0 }, 0, 0, 0]);
}

/// What is wrong with a datagram from upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoReply {
    /// Another id or question: late, or forged. The right one may still come.
    NotOurs,
    /// Ours but for the letter case: a server that does not keep it, or a forger. To be asked again over TCP.
    OtherCase,
    /// Ours, and broken.
    Malformed,
}

/// An answer, ready to be given to any client that asks the same.
#[derive(Debug, Clone)]
pub(crate) struct UpstreamReply {
    /// The message without OPT record.
    wire: Vec<u8>,
    question_end: usize,
    /// Where each record's TTL is.
    ttls: Vec<u16>,
    received: Instant,
    /// How long it may be kept; zero for what must not be.
    pub(crate) lifetime: Duration,
}

impl UpstreamReply {
    /// Reads what came as an answer to `query`.
    pub(crate) fn read(packet: &[u8], query: &UpstreamQuery) -> Result<UpstreamReply, NoReply> {
        let asked = &query.bytes;
        if packet.len() < HEADER || packet[..2] != asked[..2] || packet[2] & QR == 0 || packet[2] & 0x78 != 0 {
            return Err(NoReply::NotOurs);
        }
        let end = query.question_end;
        let questions = number(packet, 4).unwrap_or(0);
        if questions == 0 && packet[3] & 0xf != 0 && packet.len() == HEADER {
            // A bare error, as from servers that cannot read the question. The id and the socket vouch for it.
            let mut wire = packet.to_vec();
            wire[5] = 1;
            wire.extend_from_slice(&asked[HEADER..end]);
            return Ok(UpstreamReply::bare(wire, end));
        }
        let question = packet.get(HEADER..end).filter(|_| questions == 1).ok_or(NoReply::NotOurs)?;
        if !question.eq_ignore_ascii_case(&asked[HEADER..end]) {
            return Err(NoReply::NotOurs);
        }
        if question != &asked[HEADER..end] {
            return Err(NoReply::OtherCase);
        }
        UpstreamReply::walk(packet, end).ok_or(NoReply::Malformed)
    }

    /// As [`read`](Self::read), for a connection, where a server that does not keep the letter case is believed all the same.
    pub(crate) fn read_any_case(packet: &[u8], query: &UpstreamQuery) -> Result<UpstreamReply, NoReply> {
        let question = packet.get(HEADER..query.question_end).ok_or(NoReply::Malformed)?;
        let mut adapted = query.clone();
        adapted.bytes[HEADER..query.question_end].copy_from_slice(question);
        if !question.eq_ignore_ascii_case(&query.bytes[HEADER..query.question_end]) {
            return Err(NoReply::NotOurs);
        }
        UpstreamReply::read(packet, &adapted)
    }

    fn bare(wire: Vec<u8>, question_end: usize) -> UpstreamReply {
        UpstreamReply { wire, question_end, ttls: Vec::new(), received: Instant::now(), lifetime: Duration::ZERO }
    }

    /// Visits each record. Every step moves forward at least eleven bytes, so the packet's size bounds the work.
    fn walk(packet: &[u8], question_end: usize) -> Option<UpstreamReply> {
        let sections = [number(packet, 6)?, number(packet, 8)?, number(packet, 10)?];
        let mut at = question_end;
        let mut ttls = Vec::new();
        let mut least = u32::MAX;
        let mut denial = None;
        let mut opt = None;
        let mut additional = at;
        for (section, &count) in sections.iter().enumerate() {
            if section == 2 {
                additional = at;
            }
            for index in 0..count {
                let start = at;
                at = skip_name(packet, at)?;
                let kind = number(packet, at)?;
                let ttl = u32::from_be_bytes(packet.get(at + 4..at + 8)?.try_into().ok()?);
                let length = usize::from(number(packet, at + 8)?);
                if kind == OPT && section == 2 {
                    // Only what the high bits of the code make it: a version we did not ask for is a failure.
                    opt = Some((start, index + 1 == count, packet[at + 4]));
                } else {
                    ttls.push(u16::try_from(at + 4).ok()?);
                    // RFC 2181 §8: a TTL with the top bit set is 0.
                    let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
                    if section < 2 {
                        least = least.min(ttl);
                    }
                    if section == 1 && kind == SOA {
                        denial = Some(ttl);
                    }
                }
                at += 10 + length;
                if at > packet.len() {
                    return None;
                }
            }
        }
        let mut wire = packet[..at].to_vec();
        match opt {
            // The last record can be cut off; with others behind it, compressed names may point across it, and what the
            // additional section offers is never needed.
            Some((start, true, _)) => {
                wire.truncate(start);
                wire[10..12].copy_from_slice(&(sections[2] - 1).to_be_bytes());
            }
            Some((_, false, _)) => {
                wire.truncate(additional);
                wire[10..12].fill(0);
            }
            None => {}
        }
        ttls.retain(|&offset| usize::from(offset) + 4 <= wire.len());
        let mut reply = UpstreamReply { ttls, ..UpstreamReply::bare(wire, question_end) };
        if opt.is_some_and(|(_, _, high)| high != 0) {
            reply.wire[3] = reply.wire[3] & 0xf0 | ResponseCode::ServFail.low();
        }
        let seconds = match (reply.code(), sections[0]) {
            (0, 1..) if !reply.truncated() => least.min(LONGEST_POSITIVE),
            (0, 0) | (3, _) if !reply.truncated() => denial.unwrap_or(0).min(LONGEST_NEGATIVE),
            _ => 0,
        };
        reply.lifetime = Duration::from_secs(u64::from(seconds));
        Some(reply)
    }

    /// The response code's low four bits.
    pub(crate) fn code(&self) -> u8 {
        self.wire[3] & 0xf
    }

    /// Whether the server cut it.
    pub(crate) fn truncated(&self) -> bool {
        self.wire[2] & TC != 0
    }

    /// Whether it settles the question: there are such records, or there are none, or no such name.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.code(), 0 | 3)
    }

    /// Whether it can still be given out.
    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.received) < self.lifetime
    }

    /// Bytes held.
    pub(crate) fn size(&self) -> usize {
        self.wire.len() + 2 * self.ttls.len()
    }

    /// The answer for one client: its id, flags and letter case, TTLs that have gone down, EDNS when it speaks it, and cut to
    /// the question when it may not be that long.
    pub(crate) fn render(&self, query: &ClientQuery, now: Instant) -> Vec<u8> {
        let opt = if query.edns { super::query::OPT } else { 0 };
        let whole = self.wire.len() + opt <= query.limit;
        let mut bytes = Vec::with_capacity(self.wire.len() + opt);
        bytes.extend_from_slice(if whole { &self.wire } else { &self.wire[..self.question_end] });
        bytes[..2].copy_from_slice(&query.metadata.id.to_be_bytes());
        let recursion = if query.metadata.recursion_desired { RD } else { 0 };
        let cut = if whole { self.wire[2] & TC } else { TC };
        bytes[2] = QR | cut | recursion;
        let authentic = if query.dnssec || query.metadata.authentic_data { self.wire[3] & AD } else { 0 };
        let checking = if query.metadata.checking_disabled { CD } else { 0 };
        bytes[3] = RA | authentic | checking | self.code();
        let name = wire_name(&query.question.name);
        bytes[HEADER..HEADER + name.len()].copy_from_slice(&name);
        if whole {
            let age = u32::try_from(now.duration_since(self.received).as_secs()).unwrap_or(u32::MAX);
            for &offset in &self.ttls {
                let field = &mut bytes[usize::from(offset)..usize::from(offset) + 4];
                let ttl = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
                field.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
            }
        } else {
            bytes[6..12].fill(0);
        }
        if query.edns {
            write_opt(&mut bytes, query.dnssec, 0);
            let additional = u16::from_be_bytes([bytes[10], bytes[11]]).saturating_add(1);
            bytes[10..12].copy_from_slice(&additional.to_be_bytes());
        }
        bytes
    }
}

fn number(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

/// Where the name at `at` ends. Pointers end a name and are not followed.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return packet.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Edns, Message, MessageType};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    use super::super::query::Transport;
    use super::*;

    fn name() -> Name {
        Name::from_ascii("www.example.com.").unwrap()
    }

    fn asked() -> UpstreamQuery {
        UpstreamQuery::new(&wire_name(&name()), RecordType::A.into(), false, false, true)
    }

    /// What an honest server answers.
    fn answer(query: &UpstreamQuery, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::from_vec(&query.bytes).unwrap();
        message.metadata.message_type = MessageType::Response;
        change(&mut message);
        message.to_vec().unwrap()
    }

    fn address(ttl: u32) -> Record {
        Record::from_rdata(name(), ttl, RData::A(A::new(192, 0, 2, 1)))
    }

    fn client(edns: bool, transport: Transport) -> ClientQuery {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message
            .add_query(hickory_proto::op::Query::query(Name::from_ascii("WWW.example.com.").unwrap(), RecordType::A));
        message.edns = edns.then(Edns::new);
        ClientQuery::read(&message.to_vec().unwrap(), transport).unwrap()
    }

    #[test]
    fn an_upstream_query_is_one_that_others_can_read() {
        let query = asked();
        let message = Message::from_vec(&query.bytes).unwrap();
        assert_eq!(message.queries[0].name, name());
        assert!(message.metadata.recursion_desired);
        assert_eq!(message.edns.unwrap().max_payload(), EDNS_SIZE);
    }

    #[test]
    fn ttls_go_down_with_time_and_lifetimes_are_bounded() {
        let query = asked();
        for (ttl, lifetime) in [(0, 0), (7, 7), (60, 60), (86_400, 60), (u32::MAX, 0)] {
            let reply = UpstreamReply::read(
                &answer(&query, |m| {
                    m.add_answer(address(ttl));
                }),
                &query,
            )
            .unwrap();
            assert_eq!(reply.lifetime, Duration::from_secs(lifetime), "{ttl}");
        }
        let reply = UpstreamReply::read(
            &answer(&query, |m| {
                m.add_answer(address(30));
            }),
            &query,
        )
        .unwrap();
        for (age, left) in [(0, 30), (10, 20), (40, 0)] {
            let bytes = reply.render(&client(true, Transport::Udp), reply.received + Duration::from_secs(age));
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.answers[0].ttl, left);
            assert_eq!(message.queries[0].name.to_string(), "WWW.example.com.");
            assert!(message.edns.is_some());
        }
        assert!(reply.is_fresh(reply.received + Duration::from_secs(29)));
        assert!(!reply.is_fresh(reply.received + Duration::from_secs(30)));
    }

    #[test]
    fn a_denial_is_kept_five_seconds_at_most_and_only_with_a_soa() {
        let query = asked();
        let denial = |ttl: Option<u32>| {
            let bytes = answer(&query, |message| {
                message.metadata.response_code = ResponseCode::NXDomain;
                if let Some(ttl) = ttl {
                    let soa = SOA::new(name(), name(), 1, 1, 1, 1, 1);
                    message.add_authority(Record::from_rdata(name(), ttl, RData::SOA(soa)));
                }
            });
            UpstreamReply::read(&bytes, &query).unwrap().lifetime.as_secs()
        };
        assert_eq!((denial(None), denial(Some(2)), denial(Some(900))), (0, 2, 5));
    }

    #[test]
    fn failures_and_cut_answers_are_never_kept() {
        let query = asked();
        let cut = answer(&query, |message| {
            message.add_answer(address(60));
            message.metadata.truncation = true;
        });
        let failed = answer(&query, |message| message.metadata.response_code = ResponseCode::ServFail);
        for bytes in [cut, failed] {
            assert_eq!(UpstreamReply::read(&bytes, &query).unwrap().lifetime, Duration::ZERO);
        }
    }

    #[test]
    fn an_opt_record_before_others_takes_the_additional_section_with_it() {
        let query = asked();
        let mut bytes = answer(&query, |message| {
            message.add_answer(address(60));
        });
        // The OPT record is last; one more behind it, whose name points to the question.
        bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 1]);
        bytes[11] += 1;
        let reply = UpstreamReply::read(&bytes, &query).unwrap();
        let message = Message::from_vec(&reply.render(&client(false, Transport::Udp), Instant::now())).unwrap();
        assert_eq!((message.answers.len(), message.additionals.len()), (1, 0));
        assert!(message.edns.is_none());
    }

    #[test]
    fn an_answer_too_long_for_the_client_is_cut_to_its_question() {
        let query = asked();
        let bytes = answer(&query, |message| {
            message.add_answers((0..60).map(|_| address(60)));
        });
        let reply = UpstreamReply::read(&bytes, &query).unwrap();
        let cut = Message::from_vec(&reply.render(&client(false, Transport::Udp), Instant::now())).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole = Message::from_vec(&reply.render(&client(false, Transport::Tcp), Instant::now())).unwrap();
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 60));
    }

    proptest! {
        #[test]
        fn no_bytes_from_upstream_cause_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), genuine in any::<bool>()) {
            let query = asked();
            if genuine && bytes.len() >= query.question_end {
                // Let it pass the gate, so that the records are walked.
                bytes[..query.question_end].copy_from_slice(&query.bytes[..query.question_end]);
                bytes[2] |= QR;
                bytes[7] = 2;
            }
            if let Ok(reply) = UpstreamReply::read(&bytes, &query) {
                reply.render(&client(true, Transport::Udp), Instant::now());
            }
            let _ = UpstreamReply::read_any_case(&bytes, &query);
        }

        #[test]
        fn a_damaged_answer_is_refused_or_stays_within_its_bounds(
            damage in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
            cut in 0usize..400,
        ) {
            let query = asked();
            let mut bytes = answer(&query, |message| {
                message.add_answers((0..5).map(address));
                message.add_authority(address(3));
                message.add_additional(address(4));
            });
            for (at, byte) in damage {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(bytes.len().saturating_sub(cut % 40));
            if let Ok(reply) = UpstreamReply::read(&bytes, &query) {
                let client = client(true, Transport::Udp);
                let given = reply.render(&client, Instant::now());
                prop_assert!(given.len() <= client.limit);
                prop_assert_eq!(&given[..2], &client.metadata.id.to_be_bytes());
                prop_assert!(reply.lifetime <= Duration::from_secs(60));
            }
        }

        /// hickory-proto as the judge of our own walk over records.
        #[test]
        fn what_we_pass_on_has_the_records_that_came(answers in 0usize..20, authorities in 0usize..5, additionals in 0usize..5) {
            let query = asked();
            let bytes = answer(&query, |message| {
                message.add_answers((0..answers).map(|_| address(60)));
                message.add_authorities((0..authorities).map(|_| address(60)));
                message.add_additionals((0..additionals).map(|_| address(60)));
            });
            let reply = UpstreamReply::read(&bytes, &query).unwrap();
            let given = Message::from_vec(&reply.render(&client(true, Transport::Tcp), Instant::now())).unwrap();
            prop_assert_eq!((given.answers.len(), given.authorities.len(), given.additionals.len()), (answers, authorities, additionals));
            prop_assert!(given.edns.is_some());
        }
    }
}
