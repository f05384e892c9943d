//! Builds tar archives byte by byte, also those that no tar program would write.

#![allow(dead_code, reason = "each test crate that includes this uses a part of it")]

/// An archive being built.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

/// One member: a ustar header, its extension headers, its data.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) link: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) device: (u32, u32),
    pax: Vec<u8>,
    /// Size field, when it is to lie.
    size: Option<u64>,
    /// Raw bytes put over the header before its checksum is computed.
    patches: Vec<(usize, Vec<u8>)>,
}

pub(crate) fn member(kind: u8, name: impl AsRef<[u8]>) -> Member {
    Member {
        name: name.as_ref().to_vec(),
        kind,
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: 1_600_000_000,
        link: Vec::new(),
        data: Vec::new(),
        device: (0, 0),
        pax: Vec::new(),
        size: None,
        patches: Vec::new(),
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Member {
    Member { data: data.as_ref().to_vec(), ..member(b'0', name) }
}

pub(crate) fn dir(name: impl AsRef<[u8]>) -> Member {
    member(b'5', name)
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member { link: target.as_ref().to_vec(), mode: 0o777, ..member(b'2', name) }
}

pub(crate) fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member { link: target.as_ref().to_vec(), ..member(b'1', name) }
}

pub(crate) fn device(kind: u8, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Member {
    Member { device: (major, minor), ..member(kind, name) }
}

impl Member {
    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    pub(crate) fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    pub(crate) fn size(self, size: u64) -> Self {
        Self { size: Some(size), ..self }
    }

    pub(crate) fn patch(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        self.patches.push((at, bytes.as_ref().to_vec()));
        self
    }

    /// Adds a PAX record.
    pub(crate) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.extend(record(key, value.as_ref()));
        self
    }

    pub(crate) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Puts raw bytes into the PAX header.
    pub(crate) fn raw_pax(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.pax.extend(bytes.as_ref());
        self
    }

    fn header(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let name = &self.name[..self.name.len().min(100)];
        block[..name.len()].copy_from_slice(name);
        let link = &self.link[..self.link.len().min(100)];
        block[157..157 + link.len()].copy_from_slice(link);
        let mut octal = |at: usize, digits: usize, value: u64| {
            block[at..at + digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
        };
        octal(100, 7, self.mode.into());
        octal(108, 7, u64::from(self.uid) & 0o7_777_777);
        octal(116, 7, u64::from(self.gid) & 0o7_777_777);
        octal(124, 11, self.size.unwrap_or(self.data.len() as u64) & ((1 << 33) - 1));
        octal(136, 11, self.mtime);
        octal(329, 7, self.device.0.into());
        octal(337, 7, self.device.1.into());
        block[156] = self.kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        for (at, bytes) in &self.patches {
            block[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}

/// `length key=value\n`.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a member; names and links beyond 100 bytes get a PAX header.
    pub(crate) fn add(mut self, member: Member) -> Self {
        let mut pax = member.pax.clone();
        if member.name.len() > 100 {
            pax.extend(record("path", &member.name));
        }
        if member.link.len() > 100 {
            pax.extend(record("linkpath", &member.link));
        }
        if !pax.is_empty() {
            self = self.raw(b'x', "pax", &pax);
        }
        self.bytes.extend(member.header());
        self.padded(&member.data)
    }

    /// Adds a member that is an extension: GNU `L`, `K`, PAX `x`, `g`.
    pub(crate) fn raw(self, kind: u8, name: &str, data: &[u8]) -> Self {
        self.add(Member { data: data.to_vec(), ..member(kind, name) })
    }

    /// Adds bytes as they are.
    pub(crate) fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.bytes.extend(bytes.as_ref());
        self
    }

    fn padded(mut self, data: &[u8]) -> Self {
        self.bytes.extend(data);
        let end = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(end, 0);
        self
    }

    /// The archive with its end marks.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.extend([0; 1024]);
        bytes
    }

    /// Without end marks.
    pub(crate) fn unfinished(&self) -> Vec<u8> {
        self.bytes.clone()
    }
}
