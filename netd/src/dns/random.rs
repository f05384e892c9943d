//! Randomness for the DNS: unpredictable numbers for query ids and letter case, and cheap ones for shuffling answers.

use std::cell::RefCell;
use std::fs::File;
use std::io::Read;

/// Bytes fetched from the kernel at once: one read serves some fifty upstream queries.
const POOL: usize = 512;

thread_local! {
    static SOURCE: RefCell<Source> = const { RefCell::new(Source { bytes: [0; POOL], left: 0 }) };
}

struct Source {
    bytes: [u8; POOL],
    left: usize,
}

/// Eight unpredictable bytes.
///
/// # Panics
/// When `/dev/urandom` cannot be read: going on with guessable ids would let anyone forge answers.
pub(crate) fn unpredictable() -> u64 {
    SOURCE.with_borrow_mut(|source| {
        if source.left < 8 {
            File::open("/dev/urandom")
                .and_then(|mut urandom| urandom.read_exact(&mut source.bytes))
                .expect("/dev/urandom exists on every Linux and never fails to give bytes");
            source.left = POOL;
        }
        source.left -= 8;
        let taken = &mut source.bytes[source.left..source.left + 8];
        let number = u64::from_ne_bytes(taken.try_into().expect("the slice has eight bytes"));
        // A number that was handed out must not be found in memory again.
        taken.fill(0);
        number
    })
}

/// A generator for the order of answers (xorshift64*): a few cycles a number, predictable, and that is no matter here.
#[derive(Debug, Clone)]
pub(crate) struct Shuffle(u64);

impl Shuffle {
    pub(crate) fn new() -> Shuffle {
        Shuffle(unpredictable() | 1)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        // Multiply and shift instead of a remainder: `high` is below 2^32, so the result is below `bound`.
        ((high * bound as u64) >> 32) as usize
    }

    /// Moves a random choice of `count` items, in random order, to the front.
    pub(crate) fn pick<T>(&mut self, items: &mut [T], count: usize) {
        for front in 0..count.min(items.len()) {
            let other = front + self.below(items.len() - front);
            items.swap(front, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_comes_first_about_equally_often() {
        let mut shuffle = Shuffle(0x9E37_79B9_7F4A_7C15);
        let mut first = [0u32; 4];
        for _ in 0..4000 {
            let mut items = [0usize, 1, 2, 3];
            shuffle.pick(&mut items, 4);
            first[items[0]] += 1;
        }
        assert!(first.iter().all(|&count| (850..1150).contains(&count)), "{first:?}");
    }

    #[test]
    fn picking_loses_no_item() {
        let mut items = [1, 2, 3, 4, 5];
        Shuffle::new().pick(&mut items, 3);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4, 5]);
    }
}
