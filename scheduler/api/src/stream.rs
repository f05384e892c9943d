//! Framing of an upgraded connection: what `exec`, `attach` and `container run` speak after the HTTP upgrade.
//!
//! A frame is one kind byte, a big-endian `u32` length and the payload. The same shape in both directions; which kinds are legal
//! depends on who sends. A terminal's output comes as [`Kind::Stdout`] only.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Value of the `Upgrade` header.
pub const PROTOCOL: &str = "orch-stream";

/// Largest payload that is accepted: pipes hand over at most 64 KiB at once, and errors are short.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client → node: bytes for standard input.
    Stdin = 0,
    /// Node → client: standard output, or the terminal.
    Stdout = 1,
    /// Node → client: standard error.
    Stderr = 2,
    /// Client → node: end of standard input.
    StdinEof = 3,
    /// Client → node: rows and columns, two big-endian `u16`.
    Resize = 4,
    /// Client → node: a signal number, one big-endian `i32`.
    Signal = 5,
    /// Node → client: it ended; exit code, one big-endian `i32`. The last frame.
    Exit = 6,
    /// Node → client: it could not be run; JSON of an `ErrorDetail`. The last frame.
    Error = 7,
    /// Node → client: a line for people (a slow client lost output, the container was detached).
    Notice = 8,
    /// Node → client: it runs now; JSON `{"id": …}`. Sent once, before any output.
    Started = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [Stdin, Stdout, Stderr, StdinEof, Resize, Signal, Exit, Error, Notice, Started]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// The bytes.
    pub payload: Bytes,
}

impl Frame {
    /// A frame of these bytes.
    pub fn new(kind: Kind, payload: impl Into<Bytes>) -> Self {
        Self { kind, payload: payload.into() }
    }

    /// An exit code.
    pub fn exit(code: i32) -> Self {
        Self::new(Kind::Exit, code.to_be_bytes().to_vec())
    }

    /// A window size.
    pub fn resize(rows: u16, columns: u16) -> Self {
        let [a, b] = rows.to_be_bytes();
        let [c, d] = columns.to_be_bytes();
        Self::new(Kind::Resize, vec![a, b, c, d])
    }

    /// A signal.
    pub fn signal(number: i32) -> Self {
        Self::new(Kind::Signal, number.to_be_bytes().to_vec())
    }

    /// The number that an `Exit` or `Signal` frame carries.
    pub fn number(&self) -> Option<i32> {
        Some(i32::from_be_bytes(self.payload.as_ref().try_into().ok()?))
    }

    /// Rows and columns of a `Resize` frame.
    pub fn size(&self) -> Option<(u16, u16)> {
        match self.payload.as_ref() {
            [a, b, c, d] => Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))),
            _ => None,
        }
    }
}

/// Reads the next frame; `None` at the end of the stream.
///
/// # Errors
/// `InvalidData` for an unknown kind or a payload above [`MAX_PAYLOAD`], else what reading said.
pub async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> std::io::Result<Option<Frame>> {
    let mut head = [0u8; 5];
    match reader.read_exact(&mut head).await {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let invalid = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let kind = Kind::from_byte(head[0]).ok_or_else(|| invalid(format!("unknown frame kind {}", head[0])))?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > MAX_PAYLOAD {
        return Err(invalid(format!("a frame of {length} bytes is larger than {MAX_PAYLOAD}")));
    }
    let mut payload = BytesMut::zeroed(length);
    reader.read_exact(&mut payload).await?;
    Ok(Some(Frame { kind, payload: payload.freeze() }))
}

/// Writes one frame and flushes it.
///
/// # Errors
/// What writing said.
pub async fn write_frame<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> std::io::Result<()> {
    let mut buffer = BytesMut::with_capacity(5 + frame.payload.len());
    let length = u32::try_from(frame.payload.len()).map_err(std::io::Error::other)?;
    buffer.extend_from_slice(&[frame.kind as u8]);
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.extend_from_slice(&frame.payload);
    writer.write_all(&buffer).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frame_that_is_written_is_read_back() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let sent = Frame::resize(24, 80);
        write_frame(&mut a, &sent).await.unwrap();
        drop(a);
        let got = read_frame(&mut b).await.unwrap().unwrap();
        assert_eq!(got, sent);
        assert_eq!(got.size(), Some((24, 80)));
        assert_eq!(read_frame(&mut b).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_oversize_frame_is_refused_before_it_is_read() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&[1, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        assert_eq!(read_frame(&mut b).await.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn an_unknown_kind_is_refused() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_all(&[99, 0, 0, 0, 0]).await.unwrap();
        assert_eq!(read_frame(&mut b).await.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    }
}
