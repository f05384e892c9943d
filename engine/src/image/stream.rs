//! Decompression by magic number, bounded: a few kilobytes must not become a full disk or a full memory.

use std::io::{self, BufRead, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use super::digest::{Digest, Hasher};
use super::unpack::UnpackLimits;

/// Largest zstd window, as a power of two: 128 MiB. The format allows 2 GiB, which a decoder must hold in memory.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Output below this is never suspicious, however small the input was.
const RATIO_FLOOR: u64 = 64 << 20;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Why a stream cannot be decompressed; carried inside `io::Error`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0} compression is not supported: recompress with gzip or zstd")]
    Unsupported(&'static str),
    #[error("it decompresses to more than the limit of {0} bytes")]
    TooLarge(u64),
    #[error(
        "it is a decompression bomb: more than {ratio} bytes come out of each byte ({consumed} bytes became over {produced})"
    )]
    Bomb { ratio: u64, consumed: u64, produced: u64 },
}

impl Compression {
    /// By the first bytes.
    pub(crate) fn of(head: &[u8]) -> io::Result<Self> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A zstd frame, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err(io::Error::other(StreamError::Unsupported("bzip2"))),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(io::Error::other(StreamError::Unsupported("xz"))),
            _ => Ok(Self::None),
        }
    }
}

/// A stream whose first bytes were read and put back.
pub(crate) type Peeked<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// Reads the first bytes of a stream and puts them back.
pub(crate) fn peek<R: BufRead>(mut source: R, wanted: usize) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut head = Vec::with_capacity(wanted);
    source.by_ref().take(wanted as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(source)))
}

/// A decompressed stream.
pub(crate) enum Inflate<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

impl<R: BufRead> Inflate<R> {
    pub(crate) fn new(source: R, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(source),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Self::Zstd(decoder)
            }
        })
    }
}

impl<R: BufRead> Read for Inflate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(source) => source.read(buffer),
            Self::Zstd(source) => source.read(buffer),
        }
    }
}

/// Counts what is read of a compressed stream, for the ratio.
pub(crate) struct Counted<R> {
    source: R,
    count: Arc<AtomicU64>,
}

impl<R> Counted<R> {
    pub(crate) fn new(source: R) -> (Self, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        (Self { source, count: Arc::clone(&count) }, count)
    }
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.source.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.source.consume(amount);
        self.count.fetch_add(amount as u64, Ordering::Relaxed);
    }
}

/// Passes a decompressed stream on within its bounds, hashing it when asked.
pub(crate) struct Meter<R> {
    source: R,
    hasher: Option<Hasher>,
    produced: u64,
    consumed: Arc<AtomicU64>,
    bytes: u64,
    ratio: u64,
}

impl<R: Read> Meter<R> {
    /// `consumed` counts the compressed bytes behind `source`.
    pub(crate) fn new(source: R, consumed: Arc<AtomicU64>, hash: bool, limits: &UnpackLimits) -> Self {
        // The archive's own headers and padding come on top of what the files hold.
        let bytes = limits.bytes.saturating_add(limits.bytes / 4).saturating_add(RATIO_FLOOR);
        Self { source, hasher: hash.then(Hasher::default), produced: 0, consumed, bytes, ratio: limits.ratio }
    }

    /// The digest of everything read, when hashing was asked for.
    pub(crate) fn finish(self) -> Option<Digest> {
        self.hasher.map(|hasher| hasher.finish().0)
    }
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        self.produced += count as u64;
        if self.produced > self.bytes {
            return Err(io::Error::other(StreamError::TooLarge(self.bytes)));
        }
        let consumed = self.consumed.load(Ordering::Relaxed);
        if self.produced > RATIO_FLOOR && self.produced / self.ratio > consumed {
            let (ratio, produced) = (self.ratio, self.produced);
            return Err(io::Error::other(StreamError::Bomb { ratio, consumed, produced }));
        }
        Ok(count)
    }
}
