//! Images on their way from one store to another, blob by blob.
//!
//! Whoever gives says by an [`Offer`] what an image consists of. Whoever takes asks [`ImageStore::lacks`] what is missing of that, takes
//! each such blob by a [`Taking`], and makes the image visible by [`ImageStore::adopt`] once nothing is missing. Between these steps
//! nothing has to be remembered by the caller: blobs that came whole wait here for the rest of their image.
//!
//! **Trust.** The id is what was asked for; it is the digest of the configuration, which names the digests of the unpacked layers. So a
//! giver that lies about anything is found out: about documents before a blob is taken, about a blob at its end, about what a blob unpacks
//! to in `adopt`. Nothing is visible before all of that was checked.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::blobs::{AT_REST_LEVEL, BlobWriter, FreshBlob};
use super::digest::Digest;
use super::load::{check_diff_id, check_layers};
use super::spec::{ImageDocument, Manifest, Platform};
use super::{Draft, Image, ImageError, ImageStore, MAX_DOCUMENT, NewImage, Reference, chains, find, store};

/// How long a blob waits for the rest of its image: longer than the largest layer takes on a slow line after a broken connection.
const WAITING_TIME: Duration = Duration::from_secs(30 * 60);

/// Blobs that may be expected or waiting at once: eight images of the most layers that there can be.
const MOST: usize = 4096;

/// A name of an image and since when it has it, milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Naming {
    /// As the user wrote it, with tag.
    pub name: String,
    /// Of two images that claim one name, the later one has it. 0 = now.
    pub since: u64,
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The digest of its configuration.
    pub id: Digest,
    /// Its manifest, byte by byte.
    pub manifest: String,
    /// Its configuration, byte by byte.
    pub config: String,
    /// Names it shall have.
    pub names: Vec<Naming>,
}

/// A blob that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Why an image does not come over.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The offer contradicts itself.
    #[error("the description of image {id} {reason}")]
    Offer {
        /// The image.
        id: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// It does not run here.
    #[error("image {id} is for {found}, but this machine is {wanted}")]
    Platform {
        /// The image.
        id: Digest,
        /// What it is for.
        found: String,
        /// What this machine is.
        wanted: String,
    },
    /// Bytes are not what they were said to be.
    #[error("blob {expected} came with the digest {actual}: it is damaged or not what it claims to be")]
    Digest {
        /// As asked for.
        expected: Digest,
        /// As computed.
        actual: Digest,
    },
    /// More or fewer bytes than were promised.
    #[error("blob {digest} came with {came} bytes, but {promised} were promised")]
    Size {
        /// Which one.
        digest: Digest,
        /// As said in the manifest.
        promised: u64,
        /// As counted; of a blob that is too long, up to where it was given up.
        came: u64,
    },
    /// Nobody has said that it will come.
    #[error("blob {0} is not expected: offer its image first")]
    Unexpected(Digest),
    /// Blobs are missing.
    #[error("image {id} is not complete: {missing} blobs are missing")]
    Incomplete {
        /// The image.
        id: Digest,
        /// How many.
        missing: usize,
    },
    /// More is on its way than is allowed.
    #[error("more than {MOST} blobs are on their way: try again when some have come")]
    TooMuch,
    /// The store.
    #[error(transparent)]
    Store(#[from] ImageError),
}

/// What is on its way.
#[derive(Default)]
pub(super) struct Transit {
    /// Blobs that were offered: how large, and until when they count.
    expected: BTreeMap<Digest, (u64, Instant)>,
    /// Blobs that have come and wait for their image.
    arrived: BTreeMap<Digest, (FreshBlob, Instant)>,
}

impl Transit {
    fn forget_old(&mut self) {
        let now = Instant::now();
        self.expected.retain(|_, (_, until)| *until > now);
        self.arrived.retain(|_, (_, until)| *until > now);
    }
}

/// The bytes of a blob for somebody else.
pub struct Giving {
    /// From where it was asked for to its end.
    pub reader: Box<dyn Read + Send>,
    /// They are compressed with zstd for the way, beside what the blob itself is.
    pub compressed: bool,
}

/// A blob that is being taken, from one giver or several one after the other.
pub struct Taking {
    writer: BlobWriter,
    lack: Lack,
    came: u64,
}

/// An offer that was looked through.
struct Checked {
    manifest: Manifest,
    config: ImageDocument,
}

impl ImageStore {
    /// What an image consists of, for another store.
    pub fn offer(&self, reference: &str) -> Result<Offer, ImageError> {
        let mut state = self.state();
        let id = find(&state.refs, reference)?;
        self.documents(&mut state, id)?;
        let Some(record) = state.refs.images.get(&id) else { return Err(ImageError::NotFound(reference.to_owned())) };
        let text = |digest: Digest| {
            let bytes = self.blobs.read(digest, MAX_DOCUMENT)?;
            String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        };
        let read = |digest| text(digest).map_err(|source| store(format!("read image {id}"), source));
        let naming =
            |(canonical, name): (&String, &String)| Naming { name: name.clone(), since: record.since(canonical) };
        Ok(Offer {
            id,
            manifest: read(record.manifest)?,
            config: read(id)?,
            names: record.names.iter().map(naming).collect(),
        })
    }

    /// Bytes of one of an image's layers from this offset on. A blob of another image is not given: who may have one image may not look
    /// into all.
    pub fn give(&self, image: &str, digest: Digest, offset: u64) -> Result<Giving, ImageError> {
        let mut state = self.state();
        let id = find(&state.refs, image)?;
        let documents = self.documents(&mut state, id)?;
        if !documents.manifest.layers.iter().any(|layer| layer.digest == digest) {
            return Err(ImageError::NotFound(format!("blob {digest} of image {id}")));
        }
        let failed = |source| store(format!("read layer {digest}"), source);
        // Opened while the state is held, so that removing the image meanwhile cannot take it away.
        let (mut file, compressed) = self.blobs.open_at_rest(digest).map_err(failed)?;
        let reader: Box<dyn Read + Send> = match (compressed, offset) {
            (_, 0) => Box::new(file),
            (false, offset) => {
                file.seek(SeekFrom::Start(offset)).map_err(failed)?;
                Box::new(file)
            }
            (true, offset) => {
                let mut plain = zstd::stream::read::Decoder::new(file).map_err(failed)?;
                drop(state);
                io::copy(&mut plain.by_ref().take(offset), &mut io::sink()).map_err(failed)?;
                Box::new(zstd::stream::read::Encoder::new(plain, AT_REST_LEVEL).map_err(failed)?)
            }
        };
        Ok(Giving { reader, compressed })
    }

    /// Looks an offer through and says which of its blobs are neither here nor waiting. From now on they are expected.
    pub fn lacks(&self, offer: &Offer) -> Result<Vec<Lack>, TransferError> {
        let checked = check(offer)?;
        let lacks = self.missing(offer, &checked);
        let mut transit = self.transit();
        transit.forget_old();
        if transit.expected.len() + transit.arrived.len() + lacks.len() > MOST {
            return Err(TransferError::TooMuch);
        }
        let until = Instant::now() + WAITING_TIME;
        transit.expected.extend(lacks.iter().map(|lack| (lack.digest, (lack.size, until))));
        Ok(lacks)
    }

    fn missing(&self, offer: &Offer, checked: &Checked) -> Vec<Lack> {
        if self.state().refs.images.contains_key(&offer.id) {
            return Vec::new();
        }
        let transit = self.transit();
        let mut seen = BTreeSet::new();
        let layers = checked.manifest.layers.iter().filter(|layer| seen.insert(layer.digest));
        let absent = layers
            .filter(|layer| !transit.arrived.contains_key(&layer.digest) && !self.blobs.has(layer.digest))
            .map(|layer| Lack { digest: layer.digest, size: layer.size });
        absent.collect()
    }

    fn transit(&self) -> std::sync::MutexGuard<'_, Transit> {
        // Plain maps: a panic elsewhere cannot have left them half-changed.
        self.transit.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Begins to take a blob that is expected. `compressed`: it is kept compressed at rest, as its giver keeps it.
    pub fn take(&self, digest: Digest, compressed: bool) -> Result<Taking, TransferError> {
        let size = self.transit().expected.get(&digest).map(|(size, _)| *size);
        let size = size.ok_or(TransferError::Unexpected(digest))?;
        let writer = self.blobs.writer(compressed).map_err(|source| store(format!("begin blob {digest}"), source))?;
        Ok(Taking { writer, lack: Lack { digest, size }, came: 0 })
    }

    /// The blob has come whole: checks it, and lets it wait for the rest of its image.
    pub fn taken(&self, taking: Taking) -> Result<(), TransferError> {
        let Taking { writer, lack, came } = taking;
        if came != lack.size {
            return Err(TransferError::Size { digest: lack.digest, promised: lack.size, came });
        }
        let blob = writer.finish().map_err(|source| store(format!("keep blob {}", lack.digest), source))?;
        if blob.digest != lack.digest {
            return Err(TransferError::Digest { expected: lack.digest, actual: blob.digest });
        }
        let mut transit = self.transit();
        transit.expected.remove(&lack.digest);
        transit.arrived.insert(lack.digest, (blob, Instant::now() + WAITING_TIME));
        Ok(())
    }

    /// Makes an image visible whose blobs are all here. One that is here already only gets the names.
    pub fn adopt(&self, offer: &Offer) -> Result<Image, TransferError> {
        let checked = check(offer)?;
        {
            let _turn = self.turn();
            let missing = self.missing(offer, &checked).len();
            if missing > 0 {
                return Err(TransferError::Incomplete { id: offer.id, missing });
            }
            if !self.state().refs.images.contains_key(&offer.id) {
                let draft = self.assemble(offer, &checked)?;
                self.commit(draft)?;
            }
        }
        self.take_names(offer)?;
        Ok(self.resolve(&offer.id.to_string())?)
    }

    /// Unpacks what is not unpacked yet, and gathers everything of the image.
    fn assemble(&self, offer: &Offer, checked: &Checked) -> Result<Draft, ImageError> {
        let mut fresh: BTreeMap<Digest, FreshBlob> = BTreeMap::new();
        {
            let mut transit = self.transit();
            for layer in &checked.manifest.layers {
                fresh.extend(transit.arrived.remove(&layer.digest).map(|(blob, _)| (layer.digest, blob)));
            }
        }
        let mut draft = Draft::default();
        let mut lowers: Vec<PathBuf> = Vec::new();
        let diff_ids = &checked.config.rootfs.diff_ids;
        for ((chain, diff_id), layer) in chains(diff_ids).into_iter().zip(diff_ids).zip(&checked.manifest.layers) {
            if self.layers.record(chain).is_some() {
                // Unpacked already, of another image: what heals it must be of the same content.
                if let Some(blob) = fresh.get(&layer.digest).filter(|blob| blob.digest != *diff_id) {
                    check_diff_id(self, blob, *diff_id)?;
                }
                lowers.insert(0, self.layers.path(chain));
                continue;
            }
            let opened = match fresh.get(&layer.digest) {
                Some(blob) => blob.open(),
                None => self.blobs.open(layer.digest),
            };
            let blob = opened.map_err(|source| store(format!("read layer {}", layer.digest), source))?;
            let unpacked = self.unpack(blob, chain, *diff_id, &lowers)?;
            lowers.insert(0, unpacked.root());
            draft.layers.push((chain, unpacked));
        }
        let write = |text: &str| {
            self.blobs.write(text.as_bytes()).map_err(|source| store("write an image's documents", source))
        };
        let (config, manifest) = (write(&offer.config)?, write(&offer.manifest)?);
        draft.images.push(NewImage { id: offer.id, manifest: manifest.digest, names: Vec::new() });
        draft.blobs.extend([config, manifest]);
        draft.blobs.extend(fresh.into_values());
        Ok(draft)
    }

    /// Gives the image those of its names that no other image has got later.
    fn take_names(&self, offer: &Offer) -> Result<(), ImageError> {
        let mut state = self.state();
        let mut refs = state.refs.clone();
        for naming in &offer.names {
            let Ok(reference) = super::name_of(&naming.name) else { continue };
            refs.name_since(offer.id, &reference.canonical(), &reference.display(), naming.since);
        }
        if refs == state.refs { Ok(()) } else { self.write_refs(&mut state, refs) }
    }

    /// Which image a reference names here, and since when; a reference by id or digest names it since ever.
    pub fn named(&self, reference: &str) -> Option<(Digest, u64)> {
        let state = self.state();
        let id = find(&state.refs, reference).ok()?;
        let record = state.refs.images.get(&id)?;
        let canonical = Reference::parse(reference).ok().map(|reference| reference.canonical());
        let canonical = canonical.filter(|canonical| record.names.contains_key(canonical));
        Some((id, canonical.map_or(0, |canonical| record.since(&canonical))))
    }

    /// What an image that is here was made for, as `os/architecture`; `None` when it does not say.
    pub fn platform(&self, id: Digest) -> Option<String> {
        let documents = self.documents(&mut self.state(), id).ok()?;
        let platform = &documents.config.platform;
        (!platform.architecture.is_empty()).then(|| platform.to_string())
    }
}

impl Taking {
    /// How many bytes of the blob have come: where the next giver goes on.
    pub fn came(&self) -> u64 {
        self.came
    }

    /// Takes bytes until the source ends or breaks; what came before it broke counts.
    ///
    /// # Errors
    /// The source's, the disk's, and [`io::ErrorKind::InvalidData`] for more bytes than were promised.
    pub fn read(&mut self, source: impl Read, compressed: bool) -> io::Result<()> {
        let mut source: Box<dyn Read + '_> = if compressed {
            Box::new(zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(128 << 10, source))?)
        } else {
            Box::new(source)
        };
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.came + count as u64 > self.lack.size {
                let text = format!("more than the promised {} bytes came", self.lack.size);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            self.writer.write_all(&buffer[..count])?;
            self.came += count as u64;
        }
    }
}

/// Looks through what can be checked of an offer before any blob has come.
fn check(offer: &Offer) -> Result<Checked, TransferError> {
    let wrong = |reason: String| TransferError::Offer { id: offer.id, reason };
    if offer.manifest.len() as u64 > MAX_DOCUMENT || offer.config.len() as u64 > MAX_DOCUMENT {
        return Err(wrong(format!("is larger than the limit of {MAX_DOCUMENT} bytes")));
    }
    let actual = Digest::of(offer.config.as_bytes());
    if actual != offer.id {
        return Err(TransferError::Digest { expected: offer.id, actual });
    }
    let parse = |error: serde_json::Error| wrong(format!("is not what it should be: {error}"));
    let manifest: Manifest = serde_json::from_str(&offer.manifest).map_err(parse)?;
    let config: ImageDocument = serde_json::from_str(&offer.config).map_err(parse)?;
    if manifest.config.digest != offer.id {
        return Err(wrong(format!("has the manifest of another image, {}", manifest.config.digest)));
    }
    check_layers(&config, manifest.layers.len()).map_err(|error| wrong(error.to_string()))?;
    let wanted = Platform::host();
    // An image that does not say what it is for was made by something simple, here.
    if !config.platform.architecture.is_empty() && !config.platform.satisfies(&wanted) {
        let (found, wanted) = (config.platform.to_string(), wanted.to_string());
        return Err(TransferError::Platform { id: offer.id, found, wanted });
    }
    Ok(Checked { manifest, config })
}
