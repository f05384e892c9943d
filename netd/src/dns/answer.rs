//! From a query and the table to an answer, or to the decision that somebody upstream must be asked. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::query::{ClientQuery, HEADER, OPT, encode, table_name};
use super::random::Shuffle;
use super::table::{DnsTable, Lookup, NameRecord, RecordKind, SandboxDns, Wanted};

/// Addresses of a service in one UDP answer. Clients use the first or try a few; a random choice of sixteen spreads them as
/// well as all of them would, and spares large services the retry over TCP. `tasks.` names are exempt.
const SERVICE_ANSWERS: usize = 16;
/// So many addresses of either family fit the smallest answer under the longest name: 12 + 259 + 11 + 8 * 28 = 506 of 512.
const ALWAYS_FIT: usize = 8;
/// Bytes of an answer record beside its data: pointer to the question's name, type, class, TTL, length.
const RECORD: usize = 12;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Send this.
    Answer(Vec<u8>),
    /// Ask upstream.
    Forward,
}

/// Answers a query of a sandbox.
pub(crate) fn answer(table: &DnsTable, sandbox: &SandboxDns, query: &ClientQuery, shuffle: &mut Shuffle) -> Verdict {
    let Some(name) = table_name(&query.question.name) else { return elsewhere(table, sandbox, query) };
    if let Some(verdict) = reverse(table, sandbox, query, &name) {
        return verdict;
    }
    // RFC 6761 §6.3: nobody but the host itself can know where it is.
    if name == "localhost" || name.ends_with(".localhost") {
        let record =
            NameRecord { kind: RecordKind::Alias, v4: vec![Ipv4Addr::LOCALHOST], v6: vec![Ipv6Addr::LOCALHOST] };
        return Verdict::Answer(addresses(query, &record, shuffle));
    }
    let wanted = match query.question.query_type {
        RecordType::A => Wanted::V4,
        RecordType::AAAA => Wanted::V6,
        _ => Wanted::Any,
    };
    match table.lookup(sandbox, &name, wanted) {
        Lookup::Known(record) => Verdict::Answer(addresses(query, record, shuffle)),
        Lookup::Absent => absent(query),
        Lookup::Unknown if table.is_suffix(sandbox, &name) => Verdict::Answer(own(query, Vec::new())),
        Lookup::Unknown => elsewhere(table, sandbox, query),
    }
}

/// A name that is not ours. A sandbox without a way out gets none through its DNS either (CVE-2024-29018), unless its user
/// names a server on its own networks.
fn elsewhere(table: &DnsTable, sandbox: &SandboxDns, query: &ClientQuery) -> Verdict {
    if table.upstreams(sandbox).is_some_and(|servers| servers.is_empty()) {
        return absent(query);
    }
    Verdict::Forward
}

fn absent(query: &ClientQuery) -> Verdict {
    // The root exists.
    let code = if query.question.name.is_root() { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let mut message = query.response(code);
    message.metadata.authoritative = true;
    Verdict::Answer(encode(&message))
}

/// A reverse name of one of our addresses.
fn reverse(table: &DnsTable, sandbox: &SandboxDns, query: &ClientQuery, name: &str) -> Option<Verdict> {
    let address = reverse_address(name)?;
    let Some(full) = table.reverse(sandbox, address) else {
        return table.is_ours(address).then(|| absent(query));
    };
    let mut answers = Vec::new();
    if matches!(query.question.query_type, RecordType::PTR | RecordType::ANY) {
        // Names in the table are checked on the way in; with the suffix the whole may still be too long to say.
        let Ok(mut target) = Name::from_ascii(&full) else { return Some(absent(query)) };
        target.set_fqdn(true);
        answers.push(Record::from_rdata(query.question.name.clone(), 1, RData::PTR(PTR(target))));
    }
    Some(Verdict::Answer(own(query, answers)))
}

/// The address that a whole reverse name stands for.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0u8; 4];
        let mut labels = digits.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| IpAddr::from(octets));
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for label in digits.split('.') {
        if label.len() != 1 || count == 32 {
            return None;
        }
        bits |= u128::from(u8::from_str_radix(label, 16).ok()?) << (4 * count);
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

/// The addresses of a name, in random order, as many as may be. None of the wanted kind is an answer too.
fn addresses(query: &ClientQuery, record: &NameRecord, shuffle: &mut Shuffle) -> Vec<u8> {
    let any = query.question.query_type == RecordType::ANY;
    let mut data: Vec<RData> = Vec::new();
    if any || query.question.query_type == RecordType::A {
        data.extend(record.v4.iter().map(|&v4| RData::A(A(v4))));
    }
    if any || query.question.query_type == RecordType::AAAA {
        data.extend(record.v6.iter().map(|&v6| RData::AAAA(AAAA(v6))));
    }
    let tcp = query.limit > usize::from(u16::MAX - 1);
    let size = RECORD + if query.question.query_type == RecordType::A { 4 } else { 16 };
    let mut room = query.limit;
    let mut most = data.len();
    if data.len() > ALWAYS_FIT {
        room = (query.limit - HEADER - OPT - query.question_size()) / size;
        if !tcp && most > SERVICE_ANSWERS && record.kind != RecordKind::Tasks {
            most = SERVICE_ANSWERS;
        }
    }
    let truncated = most > room;
    let count = most.min(room);
    shuffle.pick(&mut data, count);
    data.truncate(count);
    let ttl = record.ttl();
    let name = &query.question.name;
    let answers = data.into_iter().map(|data| Record::from_rdata(name.clone(), ttl, data)).collect();
    let mut message = query.response(ResponseCode::NoError);
    message.metadata.authoritative = true;
    message.metadata.truncation = truncated;
    message.answers = answers;
    encode(&message)
}

fn own(query: &ClientQuery, answers: Vec<Record>) -> Vec<u8> {
    let mut message = query.response(ResponseCode::NoError);
    message.metadata.authoritative = true;
    message.answers = answers;
    encode(&message)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, Query};
    use proptest::prelude::*;

    use super::super::query::{Reject, Transport};
    use super::super::table::NetworkRecords;
    use super::*;

    fn table() -> (DnsTable, SandboxDns) {
        let mut records = NetworkRecords::new("shop_default").unwrap();
        for last in 1..=100u8 {
            for name in ["web", "tasks.web"] {
                let kind = if name == "web" { RecordKind::Service } else { RecordKind::Tasks };
                records.add(name, kind, IpAddr::from([10, 0, 0, last])).unwrap();
                let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last));
                records.add(name, kind, IpAddr::V6(v6)).unwrap();
            }
        }
        records.subnet("10.0.0.0/24".parse().unwrap());
        let mut table = DnsTable::default();
        table.set_network("shop".into(), records);
        (table, SandboxDns { networks: vec!["shop".into()], ..SandboxDns::default() })
    }

    fn handle(packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let (table, sandbox) = table();
        match ClientQuery::read(packet, transport) {
            Ok(query) => match answer(&table, &sandbox, &query, &mut Shuffle::new()) {
                Verdict::Answer(bytes) => Some(bytes),
                Verdict::Forward => None,
            },
            Err(Reject::Answer(bytes)) => Some(bytes),
            Err(Reject::Drop) => None,
        }
    }

    fn query(name: &str, kind: RecordType, size: Option<u16>) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.edns = size.map(|size| {
            let mut edns = hickory_proto::op::Edns::new();
            edns.set_max_payload(size);
            edns
        });
        message.to_vec().unwrap()
    }

    #[test]
    fn no_udp_answer_is_longer_than_its_client_can_take() {
        for name in ["web.", "tasks.web.", "tasks.web.shop_default."] {
            for kind in [RecordType::A, RecordType::AAAA, RecordType::ANY] {
                for size in [None, Some(0), Some(512), Some(700), Some(1232), Some(65535)] {
                    let bytes = handle(&query(name, kind, size), Transport::Udp).unwrap();
                    let most = usize::from(size.unwrap_or(512).clamp(512, 1232));
                    assert!(bytes.len() <= most, "{name} {kind} {size:?}: {}", bytes.len());
                    let message = Message::from_vec(&bytes).unwrap();
                    assert_eq!(message.edns.is_some(), size.is_some());
                    assert!(!message.answers.is_empty());
                }
            }
        }
    }

    #[test]
    fn whole_reverse_names_are_addresses_and_parts_are_not() {
        assert_eq!(reverse_address("4.3.2.1.in-addr.arpa"), Some(IpAddr::from([1, 2, 3, 4])));
        for other in
            ["3.2.1.in-addr.arpa", "5.4.3.2.1.in-addr.arpa", "256.3.2.1.in-addr.arpa", "in-addr.arpa", "1.ip6.arpa"]
        {
            assert_eq!(reverse_address(other), None, "{other}");
        }
        let digits = "1.0.0.0.".repeat(8) + "ip6.arpa";
        assert_eq!(reverse_address(&digits).unwrap().to_string(), "1:1:1:1:1:1:1:1");
        assert_eq!(reverse_address(&("é.".repeat(32) + "ip6.arpa")), None);
    }

    proptest! {
        #[test]
        fn no_bytes_from_a_client_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            handle(&bytes, Transport::Udp);
            handle(&bytes, Transport::Tcp);
        }

        #[test]
        fn a_damaged_query_gets_a_readable_answer_or_none(
            damage in prop::collection::vec((0usize..60, any::<u8>()), 0..6),
            cut in 0usize..8,
            kind in any::<u16>(),
        ) {
            let mut bytes = query("tasks.web.shop_default.", RecordType::from(kind), Some(1232));
            for (at, byte) in damage {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(bytes.len() - cut);
            if let Some(given) = handle(&bytes, Transport::Udp) {
                let message = Message::from_vec(&given).unwrap();
                prop_assert_eq!(message.metadata.id.to_be_bytes(), [bytes[0], bytes[1]]);
                prop_assert!(given.len() <= 1232);
            }
        }
    }
}
