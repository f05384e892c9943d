//! What replicas say to each other, as bytes.
//!
//! Every message begins with a version, the cluster, and the numbers of sender and receiver, so that what was meant for a former life of a
//! replica does not reach its next. The codec is our own and flat: the library's protobuf code never sees bytes of the network
//! (RUSTSEC-2024-0437 is about those). Reading allocates no more than was received, whatever the bytes say.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

/// The version of this format.
const VERSION: u8 = 1;
/// Members that a message may name, at most.
const MEMBERS: u64 = 256;
/// The longest address, bytes: a host name has at most 253.
const ADDRESS: usize = 300;

/// Who says it, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The cluster, by the checksum of its id.
    pub cluster: u32,
    /// The sender's number.
    pub from: u64,
    /// The receiver's number.
    pub to: u64,
}

/// What is said.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Raft's own, in order.
    Messages(Vec<Message>),
    /// A piece of an encoded frame that was too large.
    Part {
        /// Which frame.
        id: u64,
        /// Which piece, from 0.
        number: u32,
        /// How many there are.
        count: u32,
        /// The piece.
        bytes: Bytes,
    },
    /// Asks for pieces of a snapshot.
    Ask {
        /// The snapshot, by its index.
        index: u64,
        /// And by the checksum of the whole.
        check: u32,
        /// The first piece.
        first: u32,
        /// How many.
        count: u32,
    },
    /// A piece of a snapshot.
    Chunk {
        /// The snapshot, by its index.
        index: u64,
        /// And by the checksum of the whole.
        check: u32,
        /// Which piece.
        number: u32,
        /// The checksum of the piece.
        sum: u32,
        /// The piece.
        bytes: Bytes,
    },
    /// A snapshot was taken, or could not be.
    Received {
        /// The snapshot, by its index.
        index: u64,
        /// Whether it was good.
        good: bool,
    },
    /// The receiver is no member any more.
    Removed,
    /// Where the sender can be reached from now on.
    Address(String),
    /// What the sender's state sums up to.
    Sum(Sum),
    /// What the state sums up to by the word of most who vote, to one who has said another sum.
    Differs(Sum),
}

/// A sum of the state; see [`orch_core::State::sum`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// The version of orch that has summed: another may keep more or less in its state.
    pub version: u32,
    /// At which index.
    pub index: u64,
    /// It.
    pub sum: u32,
}

/// Bytes that are no message of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this version of orch")]
pub struct Malformed;

/// Makes the bytes of a frame.
pub fn encode(envelope: Envelope, frame: &Frame) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.push(VERSION);
    out.extend_from_slice(&envelope.cluster.to_le_bytes());
    number(envelope.from, &mut out);
    number(envelope.to, &mut out);
    match frame {
        Frame::Messages(messages) => {
            out.push(1);
            number(messages.len() as u64, &mut out);
            messages.iter().for_each(|message| put_message(message, &mut out));
        }
        Frame::Part { id, number: piece, count, bytes } => {
            out.push(2);
            number(*id, &mut out);
            number(u64::from(*piece), &mut out);
            number(u64::from(*count), &mut out);
            put_bytes(bytes, &mut out);
        }
        Frame::Ask { index, check, first, count } => {
            out.push(3);
            number(*index, &mut out);
            number(u64::from(*check), &mut out);
            number(u64::from(*first), &mut out);
            number(u64::from(*count), &mut out);
        }
        Frame::Chunk { index, check, number: piece, sum, bytes } => {
            out.push(4);
            number(*index, &mut out);
            number(u64::from(*check), &mut out);
            number(u64::from(*piece), &mut out);
            number(u64::from(*sum), &mut out);
            put_bytes(bytes, &mut out);
        }
        Frame::Received { index, good } => {
            out.push(5);
            number(*index, &mut out);
            out.push(u8::from(*good));
        }
        Frame::Removed => out.push(6),
        Frame::Address(address) => {
            out.push(7);
            put_bytes(address.as_bytes(), &mut out);
        }
        Frame::Sum(sum) => put_sum(8, *sum, &mut out),
        Frame::Differs(sum) => put_sum(9, *sum, &mut out),
    }
    out
}

/// Reads the bytes of a frame.
///
/// # Errors
/// [`Malformed`].
pub fn decode(bytes: Bytes) -> Result<(Envelope, Frame), Malformed> {
    let mut input = Reader(bytes);
    if input.byte()? != VERSION {
        return Err(Malformed);
    }
    let cluster = input.take(4)?;
    let cluster = u32::from_le_bytes(cluster.as_ref().try_into().map_err(|_| Malformed)?);
    let envelope = Envelope { cluster, from: input.number()?, to: input.number()? };
    let frame = match input.byte()? {
        1 => {
            // No message takes less than its type and nine numbers.
            let count = input.count(10)?;
            Frame::Messages((0..count).map(|_| take_message(&mut input)).collect::<Result<_, _>>()?)
        }
        2 => Frame::Part { id: input.number()?, number: input.small()?, count: input.small()?, bytes: input.bytes()? },
        3 => Frame::Ask { index: input.number()?, check: input.small()?, first: input.small()?, count: input.small()? },
        4 => Frame::Chunk {
            index: input.number()?,
            check: input.small()?,
            number: input.small()?,
            sum: input.small()?,
            bytes: input.bytes()?,
        },
        5 => Frame::Received { index: input.number()?, good: input.flag()? },
        6 => Frame::Removed,
        7 => {
            let bytes = input.bytes()?;
            let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= ADDRESS);
            Frame::Address(text.ok_or(Malformed)?.to_owned())
        }
        8 => Frame::Sum(input.sum()?),
        9 => Frame::Differs(input.sum()?),
        _ => return Err(Malformed),
    };
    if input.0.is_empty() { Ok((envelope, frame)) } else { Err(Malformed) }
}

fn put_sum(kind: u8, Sum { version, index, sum }: Sum, out: &mut Vec<u8>) {
    out.push(kind);
    [u64::from(version), index, u64::from(sum)].into_iter().for_each(|value| number(value, out));
}

/// A number in as few bytes as it needs: seven bits each, the lowest first.
pub(crate) fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Bytes with their length before them.
pub(crate) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Reads what [`number`] and [`put_bytes`] wrote. Bytes are not copied.
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    pub(crate) fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.0.len() {
            return Err(Malformed);
        }
        Ok(self.0.split_to(length))
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit only.
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn small(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.number()?).map_err(|_| Malformed)
    }

    fn sum(&mut self) -> Result<Sum, Malformed> {
        Ok(Sum { version: self.small()?, index: self.number()?, sum: self.small()? })
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        self.take(length)
    }

    /// How many follow; each takes at least so many bytes, so that no more are believed than can be there.
    fn count(&mut self, each: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        if count > self.0.len() / each { Err(Malformed) } else { Ok(count) }
    }
}

fn put_message(message: &Message, out: &mut Vec<u8>) {
    out.push(kind_number(message.get_msg_type()));
    for value in [
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.request_snapshot,
        message.reject_hint,
    ] {
        number(value, out);
    }
    let snapshot = message.has_snapshot();
    out.push(u8::from(message.reject) | u8::from(snapshot) << 1);
    put_bytes(&message.context, out);
    number(message.priority.cast_unsigned(), out);
    number(message.entries.len() as u64, out);
    message.entries.iter().for_each(|entry| put_entry(entry, out));
    if snapshot {
        let snapshot = message.get_snapshot();
        let meta = snapshot.get_metadata();
        number(meta.index, out);
        number(meta.term, out);
        for members in [&meta.get_conf_state().voters, &meta.get_conf_state().learners] {
            number(members.len() as u64, out);
            members.iter().for_each(|member| number(*member, out));
        }
        put_bytes(&snapshot.data, out);
    }
}

fn take_message(input: &mut Reader) -> Result<Message, Malformed> {
    let mut message = Message::default();
    message.set_msg_type(kind_of(input.byte()?)?);
    message.to = input.number()?;
    message.from = input.number()?;
    message.term = input.number()?;
    message.log_term = input.number()?;
    message.index = input.number()?;
    message.commit = input.number()?;
    message.commit_term = input.number()?;
    message.request_snapshot = input.number()?;
    message.reject_hint = input.number()?;
    let flags = input.byte()?;
    if flags > 3 {
        return Err(Malformed);
    }
    message.reject = flags & 1 == 1;
    message.context = input.bytes()?;
    message.priority = input.number()?.cast_signed();
    // An entry takes its type, two numbers and two lengths at least.
    let count = input.count(5)?;
    let entries: Vec<Entry> = (0..count).map(|_| take_entry(input)).collect::<Result<_, _>>()?;
    message.set_entries(entries.into());
    if flags & 2 == 2 {
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = input.number()?;
        meta.term = input.number()?;
        let mut conf = ConfState { voters: take_members(input)?, ..ConfState::default() };
        conf.learners = take_members(input)?;
        meta.set_conf_state(conf);
        snapshot.data = input.bytes()?;
        message.set_snapshot(snapshot);
    }
    Ok(message)
}

fn take_members(input: &mut Reader) -> Result<Vec<u64>, Malformed> {
    let count = input.count(1)?;
    if count as u64 > MEMBERS {
        return Err(Malformed);
    }
    (0..count).map(|_| input.number()).collect()
}

/// An entry, without its index and term when those are known; the log on disk uses the same form.
pub(crate) fn put_entry(entry: &Entry, out: &mut Vec<u8>) {
    out.push(match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    });
    number(entry.term, out);
    number(entry.index, out);
    put_bytes(&entry.context, out);
    put_bytes(&entry.data, out);
}

pub(crate) fn take_entry(input: &mut Reader) -> Result<Entry, Malformed> {
    let mut entry = Entry::default();
    entry.set_entry_type(match input.byte()? {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return Err(Malformed),
    });
    entry.term = input.number()?;
    entry.index = input.number()?;
    entry.context = input.bytes()?;
    entry.data = input.bytes()?;
    Ok(entry)
}

/// Those that a replica sends another. The others are local, or ask for what only the leader itself may begin: a forwarded proposal could
/// be carried out twice when its proposer tries again.
const KINDS: [MessageType; 12] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn kind_number(kind: MessageType) -> u8 {
    let place = KINDS.iter().position(|known| *known == kind);
    place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
}

fn kind_of(number: u8) -> Result<MessageType, Malformed> {
    KINDS.get(usize::from(number)).copied().ok_or(Malformed)
}

/// Whether a message is one that replicas send each other.
pub(crate) fn is_sendable(kind: MessageType) -> bool {
    KINDS.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let mut message =
            Message { to: 2, from: 1, term: 7, index: 300, log_term: 6, commit: 299, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppend);
        message.reject = true;
        message.reject_hint = u64::MAX;
        message.priority = -3;
        message.context = Bytes::from_static(b"ctx");
        let mut entry = Entry { term: 7, index: 301, data: Bytes::from_static(b"{}"), ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        message.set_entries(vec![entry, Entry::default()].into());
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = 12;
        snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 900];
        snapshot.mut_metadata().mut_conf_state().learners = vec![4];
        snapshot.data = Bytes::from_static(b"state");
        message.set_snapshot(snapshot);
        message
    }

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Messages(vec![message(), Message::default()].into_iter().map(sendable).collect()),
            Frame::Part { id: 3, number: 1, count: 2, bytes: Bytes::from_static(b"piece") },
            Frame::Ask { index: 9, check: u32::MAX, first: 0, count: 8 },
            Frame::Chunk { index: 9, check: 1, number: 4, sum: 5, bytes: Bytes::from_static(b"chunk") },
            Frame::Received { index: 9, good: true },
            Frame::Removed,
            Frame::Address("host:7000".to_owned()),
            Frame::Sum(Sum { version: 7, index: u64::MAX, sum: u32::MAX }),
            Frame::Differs(Sum { version: u32::MAX, index: 128, sum: 0 }),
        ]
    }

    fn sendable(mut message: Message) -> Message {
        if !is_sendable(message.get_msg_type()) {
            message.set_msg_type(MessageType::MsgHeartbeat);
        }
        message
    }

    const ENVELOPE: Envelope = Envelope { cluster: 0xdead_beef, from: 1, to: 1 << 40 };

    #[test]
    fn what_is_read_is_what_was_written() {
        for frame in frames() {
            let bytes = encode(ENVELOPE, &frame);
            assert_eq!(decode(bytes.into()), Ok((ENVELOPE, frame)));
        }
    }

    #[test]
    fn every_cut_message_is_refused() {
        for frame in frames() {
            let bytes = Bytes::from(encode(ENVELOPE, &frame));
            for end in 0..bytes.len() {
                assert_eq!(decode(bytes.slice(..end)), Err(Malformed), "{frame:?} cut at {end}");
            }
        }
    }

    #[test]
    fn a_forwarded_proposal_cannot_be_said() {
        for kind in [MessageType::MsgPropose, MessageType::MsgHup, MessageType::MsgTransferLeader] {
            let mut message = Message::default();
            message.set_msg_type(kind);
            let bytes = encode(ENVELOPE, &Frame::Messages(vec![message]));
            assert_eq!(decode(bytes.into()), Err(Malformed), "{kind:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_neither_panic_nor_are_believed_twice(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }

        #[test]
        fn a_message_with_changed_bytes_does_not_panic(
            which in 0..7_usize,
            changes in proptest::collection::vec((0..200_usize, proptest::prelude::any::<u8>()), 1..8),
        ) {
            let mut bytes = encode(ENVELOPE, &frames()[which]);
            for (at, value) in changes {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            if let Ok((envelope, frame)) = decode(bytes.into()) {
                // Whatever is believed can be said again.
                let again = decode(encode(envelope, &frame).into());
                proptest::prop_assert_eq!(again, Ok((envelope, frame)));
            }
        }
    }
}
