//! The 512-byte header block and its number formats.

/// Everything in a tar is a multiple of this.
pub(super) const BLOCK: usize = 512;

/// A header block whose checksum is right.
pub(super) struct Header {
    block: [u8; BLOCK],
    /// POSIX ustar (not GNU's variant): the prefix field is part of the name.
    prefix: usize,
}

impl Header {
    /// Takes a block as a header when its checksum says so: the sum of all bytes, the checksum field read as spaces. Some old
    /// writers summed signed bytes.
    pub(super) fn check(block: [u8; BLOCK]) -> Result<Self, String> {
        let stored = octal(&block[148..156]).map_err(|_| "has no checksum".to_owned())?;
        let bytes = || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte as i8)).sum();
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return Err("has a wrong checksum".to_owned());
        }
        let prefix = match (&block[257..263], &block[508..512]) {
            // star keeps access and change times at the end of the prefix.
            (b"ustar\0", b"tar\0") => 131,
            (b"ustar\0", _) => 155,
            _ => 0,
        };
        Ok(Self { block, prefix })
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = text(&self.block[345..345 + self.prefix]);
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u64, String> {
        // Negative or wide modes exist in the wild; only the low bits mean anything.
        number(&self.block[100..108]).map(|mode| mode as u64).map_err(|reason| format!("has a mode that {reason}"))
    }

    pub(super) fn uid(&self) -> Result<u64, String> {
        unsigned(&self.block[108..116], "user id")
    }

    pub(super) fn gid(&self) -> Result<u64, String> {
        unsigned(&self.block[116..124], "group id")
    }

    pub(super) fn size(&self) -> Result<u64, String> {
        unsigned(&self.block[124..136], "size")
    }

    /// Seconds; GNU stores times before 1970 as negative base-256 numbers.
    pub(super) fn mtime(&self) -> Result<i64, String> {
        number(&self.block[136..148]).map_err(|reason| format!("has a time that {reason}"))
    }

    pub(super) fn major(&self) -> Result<u64, String> {
        unsigned(&self.block[329..337], "device number")
    }

    pub(super) fn minor(&self) -> Result<u64, String> {
        unsigned(&self.block[337..345], "device number")
    }

    /// GNU's sparse fields in the place of the prefix.
    pub(super) fn gnu(&self) -> &[u8; BLOCK] {
        &self.block
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A field that cannot be negative.
pub(super) fn unsigned(field: &[u8], what: &str) -> Result<u64, String> {
    let value = number(field).map_err(|reason| format!("has a {what} that {reason}"))?;
    u64::try_from(value).map_err(|_| format!("has a negative {what}"))
}

/// Octal digits, or a base-256 number (GNU, star) marked by the high bit.
fn number(field: &[u8]) -> Result<i64, String> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field).and_then(|value| i64::try_from(value).map_err(|_| "is out of range".to_owned())),
    }
}

/// Big-endian two's complement below the marker bit.
fn base256(field: &[u8]) -> Result<i64, String> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] | 0x80 } else { field[0] & 0x7f };
    let mut value = i128::from(if negative { -1 } else { 0 });
    for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
        // At most twelve bytes, so 96 bits: no overflow of 128.
        value = value << 8 | i128::from(byte);
    }
    i64::try_from(value).map_err(|_| "is out of range".to_owned())
}

/// Octal with leading blanks and a trailing NUL or blank; all blank is 0, as every reader takes it.
fn octal(field: &[u8]) -> Result<u64, String> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let digits = field.iter().skip_while(|byte| blank(byte)).take_while(|byte| !blank(byte));
    let mut value = 0_u64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return Err("is no octal number".to_owned());
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or_else(|| "is out of range".to_owned())?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Ok(8 << 30));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00]), Ok(-256));
        assert!(number(b"0000648\0").is_err());
        assert!(number(&[0xbf; 12]).is_err());
        assert!(unsigned(&[0xff; 12], "size").unwrap_err().contains("negative"));
    }
}
