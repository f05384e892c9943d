//! The terminal of the person: raw mode that is always given back, window size, and the keys that detach.

use std::os::fd::BorrowedFd;

use anyhow::{Result, bail};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Raw mode of standard input, given back when dropped.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes standard input raw; `None` when it is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; then nobody misses its mode.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

/// Rows and columns of the terminal behind this descriptor.
pub(crate) fn size(of: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = rustix_size(of)?;
    (size.0 > 0 && size.1 > 0).then_some(size)
}

fn rustix_size(of: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(of).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Recognises the sequence of keys that detaches, across reads.
#[derive(Debug)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q`; the empty text never detaches.
    ///
    /// # Errors
    /// For a key that does not exist.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let key = match part.strip_prefix("ctrl-") {
                Some(rest) => match rest.as_bytes() {
                    [letter @ b'a'..=b'z'] => letter - b'a' + 1,
                    [b'@'] => 0,
                    [b'['] => 27,
                    [b'\\'] => 28,
                    [b']'] => 29,
                    [b'^'] => 30,
                    [b'_'] => 31,
                    _ => bail!("--detach-keys: `{part}` is no key; write for example ctrl-p,ctrl-q"),
                },
                None => match part.as_bytes() {
                    [key] => *key,
                    _ => bail!("--detach-keys: `{part}` is no key; write for example ctrl-p,ctrl-q"),
                },
            };
            keys.push(key);
        }
        Ok(Self { keys, matched: 0 })
    }

    /// Takes input in: what is to be passed on, and whether to detach. Keys of a sequence that breaks off are passed on late.
    pub(crate) fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(input.len());
        for byte in input {
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (pass, true);
                }
                continue;
            }
            pass.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(self.keys.first() == Some(byte));
            if self.matched == 0 {
                pass.push(*byte);
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_are_seen_across_reads_and_not_passed_on() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"\x11"), (vec![], true));
    }

    #[test]
    fn a_sequence_that_breaks_off_is_passed_on() {
        let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.filter(b"\x10x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
    }

    #[test]
    fn no_keys_never_detach() {
        let mut keys = DetachKeys::parse("").unwrap();
        assert_eq!(keys.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
