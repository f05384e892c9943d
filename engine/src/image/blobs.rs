//! Content-addressed blobs: `blobs/sha256/<hex>`, or `<hex>.zst` for one that is kept compressed at rest.
//!
//! A blob's digest is always that of its own bytes. An uncompressed layer tar is kept under its digest but compressed with zstd:
//! see the choice in [`super`]. What came compressed is kept as it came, or its digest could not be reproduced.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::digest::{Digest, Hasher};
use super::disk::{Disk, DiskFile};

/// zstd's level 1: a root file system of Debian shrinks to about 40 %, at a speed that the disk hardly outruns.
pub(crate) const AT_REST_LEVEL: i32 = 1;

pub(crate) struct Blobs {
    directory: PathBuf,
    ingest: PathBuf,
    next: AtomicU64,
    disk: Disk,
}

/// A blob being written.
pub(crate) struct BlobWriter {
    output: Output,
    hasher: Hasher,
    path: PathBuf,
    disk: Disk,
}

enum Output {
    AsIs(DiskFile),
    Compressed(Box<zstd::stream::write::Encoder<'static, DiskFile>>),
}

/// A complete blob that the store does not show yet. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct FreshBlob {
    pub(crate) digest: Digest,
    /// Of the blob itself, not of its file.
    pub(crate) size: u64,
    path: PathBuf,
    compressed: bool,
    disk: Discard,
}

/// A disk to remove a file with.
struct Discard(Disk);

impl std::fmt::Debug for Discard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Blobs {
    /// `root` holds `blobs/sha256` and `ingest` already.
    pub(crate) fn new(root: &Path, disk: Disk) -> Self {
        Self { directory: root.join("blobs/sha256"), ingest: root.join("ingest"), next: AtomicU64::new(0), disk }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Begins a blob; `compress` keeps it compressed at rest.
    pub(crate) fn writer(&self, compress: bool) -> io::Result<BlobWriter> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.ingest.join(number.to_string());
        let file = self.disk.create(path.clone())?;
        let output = if compress {
            Output::Compressed(Box::new(zstd::stream::write::Encoder::new(file, AT_REST_LEVEL)?))
        } else {
            Output::AsIs(file)
        };
        Ok(BlobWriter { output, hasher: Hasher::default(), path, disk: self.disk.clone() })
    }

    /// A small blob at once.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<FreshBlob> {
        let mut writer = self.writer(false)?;
        writer.write_all(bytes)?;
        writer.finish()
    }

    /// Makes a durable blob visible. The caller syncs the directory. One that is there already is replaced: the new one was just
    /// verified, the old one may have been damaged since.
    pub(crate) fn publish(&self, blob: &FreshBlob) -> io::Result<()> {
        self.disk.rename(&blob.path, &self.path(blob.digest, blob.compressed))?;
        let other_form = self.path(blob.digest, !blob.compressed);
        if other_form.exists() { self.disk.remove_file(&other_form) } else { Ok(()) }
    }

    fn path(&self, digest: Digest, compressed: bool) -> PathBuf {
        self.directory.join(if compressed { format!("{}.zst", digest.hex()) } else { digest.hex() })
    }

    fn find(&self, digest: Digest) -> Option<(PathBuf, bool)> {
        [true, false].into_iter().map(|zst| (self.path(digest, zst), zst)).find(|(path, _)| path.exists())
    }

    pub(crate) fn has(&self, digest: Digest) -> bool {
        self.find(digest).is_some()
    }

    /// Opens a blob: its own bytes, whatever it is at rest.
    pub(crate) fn open(&self, digest: Digest) -> io::Result<Box<dyn BufRead + Send>> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("blob {digest} is not in the store"));
        let (path, compressed) = self.find(digest).ok_or_else(missing)?;
        reader(&path, compressed)
    }

    /// Opens the file of a blob, and says whether it is compressed at rest.
    pub(crate) fn open_at_rest(&self, digest: Digest) -> io::Result<(File, bool)> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("blob {digest} is not in the store"));
        let (path, compressed) = self.find(digest).ok_or_else(missing)?;
        Ok((File::open(path)?, compressed))
    }

    /// Reads a small blob and checks its digest.
    pub(crate) fn read(&self, digest: Digest, limit: u64) -> io::Result<Vec<u8>> {
        let bytes = read_small(self.open(digest)?, limit)?;
        if Digest::of(&bytes) == digest {
            return Ok(bytes);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("blob {digest} is damaged on disk: its digest is {}", Digest::of(&bytes)),
        ))
    }

    /// Every file, its digest and its size on disk.
    pub(crate) fn list(&self) -> io::Result<Vec<(PathBuf, Option<Digest>, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| Digest::from_hex(name.strip_suffix(".zst").unwrap_or(name)));
            found.push((entry.path(), digest, entry.metadata()?.len()));
        }
        Ok(found)
    }
}

fn reader(path: &Path, compressed: bool) -> io::Result<Box<dyn BufRead + Send>> {
    let file = BufReader::with_capacity(256 << 10, File::open(path)?);
    if compressed {
        let decoder = zstd::stream::read::Decoder::with_buffer(file)?;
        return Ok(Box::new(BufReader::with_capacity(256 << 10, decoder)));
    }
    Ok(Box::new(file))
}

/// Reads all of a small document.
fn read_small(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is larger than the limit of {limit} bytes"),
        ));
    }
    Ok(bytes)
}

impl BlobWriter {
    /// The blob is complete, though neither durable nor visible.
    pub(crate) fn finish(mut self) -> io::Result<FreshBlob> {
        let compressed = match &mut self.output {
            Output::AsIs(_) => false,
            Output::Compressed(encoder) => {
                encoder.do_finish()?;
                true
            }
        };
        let (digest, size) = std::mem::take(&mut self.hasher).finish();
        let path = std::mem::take(&mut self.path);
        Ok(FreshBlob { digest, size, path, compressed, disk: Discard(self.disk.clone()) })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.output {
            Output::AsIs(file) => file.write_all(bytes)?,
            Output::Compressed(encoder) => encoder.write_all(bytes)?,
        }
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // What cannot be removed now is removed when the store is next opened.
            self.disk.remove_file(&self.path).ok();
        }
    }
}

impl FreshBlob {
    pub(crate) fn open(&self) -> io::Result<Box<dyn BufRead + Send>> {
        reader(&self.path, self.compressed)
    }

    /// All bytes of a small document.
    pub(crate) fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        read_small(self.open()?, limit)
    }
}

impl Drop for FreshBlob {
    fn drop(&mut self) {
        // Published, the name is gone already.
        self.disk.0.remove_file(&self.path).ok();
    }
}
