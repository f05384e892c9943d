//! Snapshots on their way between replicas: asked for and sent in checked pieces.
//!
//! Raft's own message says only which snapshot it is. The receiver fetches the pieces, a few at a time, checks each and the whole, has the
//! state decoded, and only then lets raft see the message: what cannot be read is never installed.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::Message;

use crate::replica::entries::Offer;
use crate::replica::wire::Frame;

/// A piece of a snapshot, bytes.
pub const PIECE: usize = 256 << 10;
/// Pieces under way at a time: two megabytes, less than what a connection may hold.
const WINDOW: u32 = 8;
/// Asked again when nothing came for so many ticks.
const AGAIN: u64 = 6;
/// Given up when nothing came for so many ticks.
const HOPELESS: u64 = 100;
/// A larger snapshot is not believed, bytes.
const LARGEST: u64 = 4 << 30;

/// The piece of an offer that was asked for.
pub(crate) fn piece(offer: &Offer, number: u32) -> Option<Frame> {
    let from = (number as usize).checked_mul(PIECE).filter(|from| *from < offer.bytes.len())?;
    let bytes = offer.bytes.slice(from..(from + PIECE).min(offer.bytes.len()));
    Some(Frame::Chunk { index: offer.index, check: offer.check, number, sum: crc32c::crc32c(&bytes), bytes })
}

/// A snapshot that is being fetched.
#[derive(Debug)]
pub(crate) struct Download {
    /// The message that announced it: raft gets it when everything is there.
    pub(crate) message: Message,
    pub(crate) index: u64,
    pub(crate) check: u32,
    length: u64,
    pieces: BTreeMap<u32, Bytes>,
    /// The first piece that was never asked for.
    asked: u32,
    last_progress: u64,
    last_asked: u64,
}

/// What becomes of a piece.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More is needed; perhaps something must be asked for.
    Going(Option<Frame>),
    /// Everything is there and whole.
    Whole(Bytes),
    /// Everything is there and it is not what was announced.
    Broken,
}

impl Download {
    /// `None` for an announcement that cannot be true.
    pub(crate) fn begin(message: Message, tick: u64) -> Option<Self> {
        let snapshot = message.get_snapshot();
        let (length, check) = snapshot.data.split_first_chunk::<8>()?;
        let (length, check) = (u64::from_le_bytes(*length), u32::from_le_bytes(check.try_into().ok()?));
        if length == 0 || length > LARGEST {
            return None;
        }
        let index = snapshot.get_metadata().index;
        let pieces = BTreeMap::new();
        Some(Self { message, index, check, length, pieces, asked: 0, last_progress: tick, last_asked: tick })
    }

    /// Whether a later announcement is of the same.
    pub(crate) fn is_same(&self, message: &Message) -> bool {
        let (ours, theirs) = (self.message.get_snapshot(), message.get_snapshot());
        message.from == self.message.from
            && ours.data == theirs.data
            && ours.get_metadata().index == theirs.get_metadata().index
    }

    fn count(&self) -> u32 {
        u32::try_from(self.length.div_ceil(PIECE as u64)).unwrap_or(u32::MAX)
    }

    /// The next pieces to ask for.
    pub(crate) fn ask(&mut self, tick: u64) -> Option<Frame> {
        self.last_asked = tick;
        let first = (0..self.count()).find(|number| !self.pieces.contains_key(number))?;
        let count = WINDOW.min(self.count() - first);
        self.asked = first + count;
        Some(Frame::Ask { index: self.index, check: self.check, first, count })
    }

    pub(crate) fn take(&mut self, number: u32, sum: u32, bytes: Bytes, tick: u64) -> Progress {
        let expected = (self.length - (u64::from(number) * PIECE as u64).min(self.length)).min(PIECE as u64);
        // A piece that was damaged on its way is as good as lost: it is asked for again.
        if number >= self.count() || bytes.len() as u64 != expected || crc32c::crc32c(&bytes) != sum {
            return Progress::Going(None);
        }
        // Each is copied out of the message that it came in: a slice would keep the whole message alive.
        self.pieces.entry(number).or_insert_with(|| Bytes::copy_from_slice(&bytes));
        self.last_progress = tick;
        if self.pieces.len() < self.count() as usize {
            let window_is_done = (0..self.asked).all(|number| self.pieces.contains_key(&number));
            return Progress::Going(window_is_done.then(|| self.ask(tick)).flatten());
        }
        let mut whole = Vec::with_capacity(usize::try_from(self.length).unwrap_or_default());
        std::mem::take(&mut self.pieces).into_values().for_each(|piece| whole.extend_from_slice(&piece));
        if crc32c::crc32c(&whole) == self.check { Progress::Whole(whole.into()) } else { Progress::Broken }
    }

    /// What to ask for again; an error when it is hopeless.
    pub(crate) fn tick(&mut self, tick: u64) -> Result<Option<Frame>, ()> {
        if self.last_progress + HOPELESS <= tick {
            return Err(());
        }
        let late = self.last_progress.max(self.last_asked) + AGAIN <= tick;
        Ok(late.then(|| self.ask(tick)).flatten())
    }
}

/// Pieces of a frame that was too large for one message. One frame of each sender at a time: a new one replaces it.
#[derive(Debug)]
pub(crate) struct Assembly {
    id: u64,
    parts: BTreeMap<u32, Bytes>,
    bytes: usize,
}

impl Assembly {
    /// A larger frame is not put together, bytes: commands are bounded by the API at 8 MiB, JSON may double that.
    const LARGEST: usize = 64 << 20;
    /// More parts than a frame can have.
    const MOST: u32 = 64;

    /// Takes a part; gives the frame when it is whole.
    pub(crate) fn take(place: &mut Option<Self>, id: u64, number: u32, count: u32, bytes: Bytes) -> Option<Bytes> {
        if number >= count || count > Self::MOST {
            return None;
        }
        if place.as_ref().is_none_or(|assembly| assembly.id != id) {
            *place = Some(Self { id, parts: BTreeMap::new(), bytes: 0 });
        }
        let assembly = place.as_mut()?;
        assembly.bytes += bytes.len();
        if assembly.bytes > Self::LARGEST {
            *place = None;
            return None;
        }
        assembly.parts.insert(number, bytes);
        if assembly.parts.len() < count as usize {
            return None;
        }
        let assembly = place.take()?;
        let mut whole = Vec::with_capacity(assembly.bytes);
        assembly.parts.values().for_each(|part| whole.extend_from_slice(part));
        Some(whole.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::ConfState;

    fn offer(length: usize) -> Offer {
        let bytes: Bytes = (0..length).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect::<Vec<_>>().into();
        let check = crc32c::crc32c(&bytes);
        Offer { index: 7, term: 2, conf: ConfState::default(), bytes, check }
    }

    fn announce(offer: &Offer) -> Message {
        let mut message = Message::default();
        let mut data = (offer.bytes.len() as u64).to_le_bytes().to_vec();
        data.extend_from_slice(&offer.check.to_le_bytes());
        message.mut_snapshot().data = data.into();
        message.mut_snapshot().mut_metadata().index = offer.index;
        message
    }

    fn take(download: &mut Download, offer: &Offer, number: u32) -> Progress {
        let Some(Frame::Chunk { sum, bytes, .. }) = piece(offer, number) else { panic!("piece {number} is there") };
        download.take(number, sum, bytes, 0)
    }

    #[test]
    fn a_snapshot_arrives_whole_in_any_order_and_with_doubles() {
        let offer = offer(PIECE * 3 + 5);
        let mut download = Download::begin(announce(&offer), 0).expect("a fair announcement");
        for number in [3, 1, 1, 2] {
            assert!(matches!(take(&mut download, &offer, number), Progress::Going(_)));
        }
        let Progress::Whole(bytes) = take(&mut download, &offer, 0) else { panic!("all are there") };
        assert_eq!(bytes, offer.bytes);
        assert!(piece(&offer, 4).is_none());
    }

    #[test]
    fn a_damaged_piece_is_asked_for_again() {
        let offer = offer(PIECE * 2);
        let mut download = Download::begin(announce(&offer), 0).expect("a fair announcement");
        let Some(Frame::Chunk { sum, bytes, .. }) = piece(&offer, 0) else { panic!("it is there") };
        let mut damaged = bytes.to_vec();
        damaged[17] ^= 4;
        assert!(matches!(download.take(0, sum, damaged.into(), 0), Progress::Going(None)));
        assert!(matches!(take(&mut download, &offer, 1), Progress::Going(_)));
        let Ok(Some(Frame::Ask { first: 0, .. })) = download.tick(AGAIN) else { panic!("it is not asked for") };
        assert!(download.tick(HOPELESS).is_err());
    }

    #[test]
    fn a_snapshot_that_is_not_what_was_announced_is_not_believed() {
        let offer = offer(PIECE * 2);
        let other = Offer { check: offer.check ^ 1, ..offer.clone() };
        let mut download = Download::begin(announce(&other), 0).expect("a fair announcement");
        take(&mut download, &offer, 0);
        assert!(matches!(take(&mut download, &offer, 1), Progress::Broken));
        let mut lie = announce(&offer);
        lie.mut_snapshot().data = vec![0xff; 12].into();
        assert!(Download::begin(lie, 0).is_none(), "nobody has so large a snapshot");
    }

    #[test]
    fn parts_of_two_frames_do_not_mix() {
        let mut place = None;
        assert_eq!(Assembly::take(&mut place, 1, 0, 2, Bytes::from_static(b"a")), None);
        assert_eq!(Assembly::take(&mut place, 2, 1, 2, Bytes::from_static(b"d")), None);
        assert_eq!(Assembly::take(&mut place, 2, 0, 2, Bytes::from_static(b"c")), Some(Bytes::from_static(b"cd")));
    }
}
