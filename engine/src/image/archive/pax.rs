//! PAX extended headers: `length key=value\n` records. A malformed record ends the archive: skipping it would make this reader
//! and another one see different trees.

use super::sparse::{self, Extent};

/// Attributes of one entry. The kernel's list of names (64 KiB) holds a few thousand at most; ext4 far fewer.
const MAX_XATTRS: usize = 1000;

/// The records that mean something here. `None` = not given.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
    any: bool,
}

/// GNU sparse records.
#[derive(Debug, Clone, Default)]
pub(super) struct Sparse {
    pub(super) version: (u64, u64),
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) extents: Vec<Extent>,
    /// Version 0.0 gives offset and length in records of their own.
    offset: Option<u64>,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Later records win over these.
    pub(super) fn merge(&mut self, later: Records) {
        let Records { path, link, size, uid, gid, mtime, xattrs, sparse, any } = later;
        self.path = path.or(self.path.take());
        self.link = link.or(self.link.take());
        self.size = size.or(self.size);
        self.uid = uid.or(self.uid);
        self.gid = gid.or(self.gid);
        self.mtime = mtime.or(self.mtime);
        for (name, value) in xattrs {
            self.set_xattr(name, value);
        }
        if sparse.size.is_some() {
            self.sparse = sparse;
        }
        self.any |= any;
    }

    /// What a global header may say of every entry that follows: owner and time. A name, size or map for all entries has no
    /// sane use, and large attributes would be copied for each of millions of entries; Go's archive/tar applies none at all.
    pub(super) fn for_all_entries(self) -> Self {
        Self { uid: self.uid, gid: self.gid, mtime: self.mtime, ..Self::default() }
    }

    pub(super) fn parse(mut data: &[u8]) -> Result<Self, String> {
        let mut records = Self { any: true, ..Self::default() };
        while !data.is_empty() {
            let (record, rest) = split_record(data).ok_or("is followed by a malformed PAX record")?;
            data = rest;
            let equals =
                record.iter().position(|byte| *byte == b'=').ok_or("is followed by a PAX record without '='")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() {
                return Err("is followed by a PAX record without a key".to_owned());
            }
            records.take(key, value)?;
        }
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // An empty value takes an earlier record back; within one header there is nothing to take back but itself.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| name(value)).transpose()?,
            b"linkpath" => self.link = given.then(|| name(value)).transpose()?,
            b"size" => self.size = given.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = given.then(|| decimal(value)).transpose()?,
            b"gid" => self.gid = given.then(|| decimal(value)).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            b"GNU.sparse.major" => self.sparse.version.0 = decimal(value)?,
            b"GNU.sparse.minor" => self.sparse.version.1 = decimal(value)?,
            b"GNU.sparse.name" => self.sparse.name = Some(name(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or("is followed by a sparse length without an offset")?;
                sparse::push(&mut self.sparse.extents, Extent { offset, length: decimal(value)? })?;
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(decimal).collect::<Result<Vec<_>, _>>()?;
                for pair in numbers.chunks(2) {
                    let [offset, length] = *pair else { return Err("is followed by an odd sparse map".to_owned()) };
                    sparse::push(&mut self.sparse.extents, Extent { offset, length })?;
                }
            }
            _ => {
                if let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") {
                    if self.xattrs.len() == MAX_XATTRS {
                        return Err(format!("is followed by more than {MAX_XATTRS} extended attributes"));
                    }
                    self.set_xattr(xattr.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        self.xattrs.retain(|(other, _)| *other != name);
        self.xattrs.push((name, value));
    }
}

/// Splits `length key=value\n…` into the part between the blank and the newline, and what follows.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&data[..blank]).ok()?).ok()?;
    if length > data.len() || length < blank + 2 || data[length - 1] != b'\n' {
        return None;
    }
    Some((&data[blank + 1..length - 1], &data[length..]))
}

fn name(value: &[u8]) -> Result<Vec<u8>, String> {
    // A NUL would end the name for the kernel but not for whoever compares it.
    if value.contains(&0) { Err("is followed by a name with a NUL in it".to_owned()) } else { Ok(value.to_vec()) }
}

pub(super) fn decimal(digits: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().ok_or_else(|| {
        format!("is followed by a number that is none: {:?}", String::from_utf8_lossy(&digits[..digits.len().min(40)]))
    })
}

/// `[-]seconds[.fraction]`, digits beyond nanoseconds dropped.
fn time(value: &[u8]) -> Result<(i64, u32), String> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next().unwrap_or_default())?).map_err(|_| "has a time out of range")?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next().filter(|fraction| !fraction.is_empty()) {
        decimal(&fraction[..fraction.len().min(18)])?;
        nanoseconds = fraction
            .iter()
            .chain(std::iter::repeat(&b'0'))
            .take(9)
            .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_nanoseconds_and_a_sign() {
        assert_eq!(time(b"12"), Ok((12, 0)));
        assert_eq!(time(b"12.5"), Ok((12, 500_000_000)));
        assert_eq!(time(b"12.1234567899"), Ok((12, 123_456_789)));
        assert_eq!(time(b"-1.25"), Ok((-2, 750_000_000)));
        assert!(time(b"1.x").is_err());
        assert!(time(b"").is_err());
    }

    #[test]
    fn a_malformed_record_is_an_error_and_not_skipped() {
        assert_eq!(Records::parse(b"8 uid=7\n").unwrap().uid, Some(7));
        for bad in [
            &b"9 uid=7\n"[..],
            b"uid=7\n",
            b"8 uid=7x",
            b"99999999999999999999 uid=7\n",
            b"5 =x\n\n",
            b"6 abc\n",
            b"3 \n",
        ] {
            assert!(Records::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
