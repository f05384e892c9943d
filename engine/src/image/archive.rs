//! Reads tar archives: v7, ustar, star, GNU and PAX, one pass, bounded.
//!
//! A parser of our own, because every header here was written by a stranger: each extension block has a size limit before it is
//! read, a malformed one ends the archive instead of being skipped, and a PAX `size` decides both what is read and where the next
//! header is (CVE-2025-62518 came of taking those two from different places). Nothing here touches the file system.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

use header::{BLOCK, Header};
pub(crate) use sparse::Extent;

/// Largest PAX header, GNU long name or long link: Go's archive/tar has the same bound, and no image has come near it.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The source failed or ended early.
    #[error("cannot read the archive at byte {offset}")]
    Read {
        /// Bytes of the uncompressed archive read so far.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The archive ends inside an entry.
    #[error("the archive is cut short at byte {0}")]
    Truncated(u64),
    /// A block is no tar header.
    #[error("not a tar archive, or a damaged one: the header at byte {offset} {reason}")]
    Header {
        /// Where.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Larger than orch accepts.
    #[error("{what} at byte {offset} is larger than the limit of {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// Where.
        offset: u64,
        /// In bytes or pieces.
        limit: u64,
    },
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, all extensions applied.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As in the archive: may be absolute, hold `..`, be no UTF-8.
    pub(crate) path: Vec<u8>,
    /// Target of a link, as in the archive.
    pub(crate) link: Vec<u8>,
    /// Permission bits with set-id and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// Size of the file; of a sparse one more than the archive holds.
    pub(crate) size: u64,
    /// Major and minor number.
    pub(crate) device: (u64, u64),
    /// Extended attributes in the archive's order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes belong; `None` when the file is stored whole.
    pub(crate) sparse: Option<Vec<Extent>>,
}

/// An archive being read. Between two [`Archive::next`] it reads as the bytes stored of the entry.
pub(crate) struct Archive<R> {
    source: R,
    offset: u64,
    /// Stored bytes of the current entry not read yet, and the padding behind them.
    left: u64,
    padding: u64,
    globals: pax::Records,
    headers: u64,
    ended: bool,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, offset: 0, left: 0, padding: 0, globals: pax::Records::default(), headers: 0, ended: false }
    }

    /// Headers read so far, extension headers counted: what the limit on entries counts.
    pub(crate) fn headers(&self) -> u64 {
        self.headers
    }

    /// The next entry; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut local = pax::Records::default();
        let mut long_name = None;
        let mut long_link = None;
        // Extension headers before one entry: more than a few are a trick to keep the reader busy.
        for _ in 0..64 {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                if local.is_empty() && long_name.is_none() && long_link.is_none() {
                    return Ok(None);
                }
                return Err(self.bad("is missing after an extension header"));
            };
            match header.kind() {
                b'x' | b'X' => local = self.pax("PAX header", &header)?,
                b'g' => {
                    let globals = self.pax("PAX global header", &header)?;
                    self.globals.merge(globals.for_all_entries());
                }
                b'L' => long_name = Some(self.long("GNU long name", &header)?),
                b'K' => long_link = Some(self.long("GNU long link", &header)?),
                // A volume label has neither data nor a place in the tree.
                b'V' => self.begin_data(self.number(header.size())?)?,
                _ => return self.entry(&header, local, long_name, long_link).map(Some),
            }
        }
        Err(self.bad("follows more than 64 extension headers"))
    }

    /// Reads what follows the end of the archive, so that a digest over the source covers all of it.
    pub(crate) fn drain(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.offset += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { offset: self.offset, source }),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        local: pax::Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ArchiveError> {
        let mut records = self.globals.clone();
        records.merge(local);
        let path = records.path.take().or(long_name).unwrap_or_else(|| header.path());
        let link = records.link.take().or(long_link).unwrap_or_else(|| header.link());
        let (kind, has_data) = self.kind(header, &path)?;
        let stored = match (has_data, records.size) {
            (false, _) => 0,
            (true, Some(size)) => size,
            (true, None) => self.number(header.size())?,
        };
        let number = |archive: &Self, pax: Option<u64>, field: Result<u64, String>| match pax {
            Some(value) => Ok(value),
            None => archive.number(field),
        };
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let mut entry = Entry {
            kind,
            path,
            link,
            mode: (self.number(header.mode())? & 0o7777) as u32,
            uid: number(self, records.uid, header.uid())?,
            gid: number(self, records.gid, header.gid())?,
            mtime: match records.mtime {
                Some(mtime) => mtime,
                None => (header.mtime().map_err(|reason| self.bad(reason))?, 0),
            },
            size: if kind == Kind::File { stored } else { 0 },
            device: if is_device { (self.number(header.major())?, self.number(header.minor())?) } else { (0, 0) },
            xattrs: std::mem::take(&mut records.xattrs),
            sparse: None,
        };
        if header.kind() == b'S' {
            let (size, extents) = self.gnu_sparse(header)?;
            self.begin_data(stored)?;
            entry.size = size;
            entry.sparse = Some(extents);
        } else {
            self.begin_data(stored)?;
            if kind == Kind::File {
                self.pax_sparse(&mut entry, &records)?;
            }
        }
        if let Some(extents) = &entry.sparse {
            sparse::check(extents, entry.size, self.left).map_err(|reason| self.bad(reason))?;
        }
        Ok(entry)
    }

    /// The kind, and whether data follows. As in Go's archive/tar, links, devices and directories never have data whatever
    /// their size field says: old writers stored a hard link's file size there.
    fn kind(&self, header: &Header, path: &[u8]) -> Result<(Kind, bool), ArchiveError> {
        Ok(match header.kind() {
            // Before ustar a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' | b'S' if path.ends_with(b"/") => (Kind::Directory, false),
            0 | b'0' | b'7' | b'S' => (Kind::File, true),
            b'1' => (Kind::HardLink, false),
            b'2' => (Kind::Symlink, false),
            b'3' => (Kind::CharDevice, false),
            b'4' => (Kind::BlockDevice, false),
            b'5' => (Kind::Directory, false),
            b'6' => (Kind::Fifo, false),
            // GNU's incremental directory: its data lists the names.
            b'D' => (Kind::Directory, true),
            other => return Err(self.bad(format!("is of the unknown type {:?}", other as char))),
        })
    }

    /// Reads the next header block; `None` at the end: one zero block (as GNU tar), or the end of the source between entries.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.fill(&mut block)? || block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        self.headers += 1;
        Header::check(block).map(Some).map_err(|reason| self.bad(reason))
    }

    fn pax(&mut self, what: &'static str, header: &Header) -> Result<pax::Records, ArchiveError> {
        let data = self.extension(what, header)?;
        pax::Records::parse(&data).map_err(|reason| self.bad(reason))
    }

    fn long(&mut self, what: &'static str, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut data = self.extension(what, header)?;
        if let Some(end) = data.iter().position(|byte| *byte == 0) {
            data.truncate(end);
        }
        Ok(data)
    }

    fn extension(&mut self, what: &'static str, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = self.number(header.size())?;
        if size > MAX_EXTENSION {
            return Err(ArchiveError::TooLarge { what, offset: self.offset, limit: MAX_EXTENSION });
        }
        self.begin_data(size)?;
        let mut data = vec![0; size as usize];
        self.read_stored(&mut data)?;
        Ok(data)
    }

    /// Old GNU sparse: the map begins in the header and goes on in blocks before the data.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(u64, Vec<Extent>), ArchiveError> {
        let mut map = sparse::Map::default();
        let (size, mut more) = map.begin(header).map_err(|reason| self.bad(reason))?;
        while more {
            let mut block = [0; BLOCK];
            if !self.fill(&mut block)? {
                return Err(ArchiveError::Truncated(self.offset));
            }
            more = map.extend(&block).map_err(|reason| self.bad(reason))?;
        }
        Ok((size, map.finish()))
    }

    /// GNU sparse in PAX records, versions 0.0, 0.1 and 1.0.
    fn pax_sparse(&mut self, entry: &mut Entry, records: &pax::Records) -> Result<(), ArchiveError> {
        let Some(size) = records.sparse.size else { return Ok(()) };
        let extents = match records.sparse.version {
            (1, 0) => {
                let mut map = sparse::Text::default();
                loop {
                    let mut block = [0; BLOCK];
                    if self.left < BLOCK as u64 {
                        return Err(self.bad("has a sparse map that does not end"));
                    }
                    self.read_stored(&mut block)?;
                    if let Some(extents) = map.take(&block).map_err(|reason| self.bad(reason))? {
                        break extents;
                    }
                }
            }
            (0, _) => records.sparse.extents.clone(),
            (major, minor) => return Err(self.bad(format!("has a sparse map of the unknown version {major}.{minor}"))),
        };
        if let Some(name) = &records.sparse.name {
            entry.path.clone_from(name);
        }
        entry.size = size;
        entry.sparse = Some(extents);
        Ok(())
    }

    fn begin_data(&mut self, stored: u64) -> Result<(), ArchiveError> {
        // Signed 63 bits are the most a file may have; beyond them the padding below could overflow.
        if stored > i64::MAX as u64 - BLOCK as u64 {
            return Err(self.bad("has an impossible size"));
        }
        self.left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; 16 << 10];
        while self.left + self.padding > 0 {
            let wanted = (self.left + self.padding).min(buffer.len() as u64);
            let in_data = wanted.min(self.left);
            self.fill_or_truncated(&mut buffer[..wanted as usize])?;
            self.left -= in_data;
            self.padding -= wanted - in_data;
        }
        Ok(())
    }

    fn read_stored(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.fill_or_truncated(buffer)?;
        self.left -= buffer.len() as u64;
        Ok(())
    }

    fn fill_or_truncated(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        if self.fill(buffer)? || buffer.is_empty() { Ok(()) } else { Err(ArchiveError::Truncated(self.offset)) }
    }

    /// Fills the buffer; false when the source ended before its first byte.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(ArchiveError::Truncated(self.offset)),
                Ok(count) => {
                    filled += count;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { offset: self.offset, source }),
            }
        }
        Ok(true)
    }

    fn number(&self, field: Result<u64, String>) -> Result<u64, ArchiveError> {
        field.map_err(|reason| self.bad(reason))
    }

    fn bad(&self, reason: impl Into<String>) -> ArchiveError {
        ArchiveError::Header { offset: self.offset.saturating_sub(BLOCK as u64), reason: reason.into() }
    }

    /// Reads stored bytes of the current entry; 0 at their end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let wanted = self.left.min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        loop {
            match self.source.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(ArchiveError::Truncated(self.offset)),
                Ok(count) => {
                    self.left -= count as u64;
                    self.offset += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { offset: self.offset, source }),
            }
        }
    }
}
