//! The image store: blobs by digest, layers unpacked once, names.
//!
//! ```text
//! <root>/refs.json                   what images there are, and their names: the only root of everything else
//! <root>/blobs/sha256/<hex>[.zst]    configurations, manifests, layers as they came
//! <root>/layers/<id>/fs              an unpacked layer: a lower directory for overlayfs
//! <root>/layers/<id>/layer.json      its chain, its diff id, its size
//! <root>/ingest/<n>                  blobs being written
//! ```
//!
//! **Power loss.** Blobs are written in `ingest`, layers unpacked in `layers/tmp-<n>`; one syncfs makes all of an import or load
//! durable; then they are renamed into place, both directories are synced, and `refs.json` is replaced. Until that last step
//! nothing is visible, after it nothing can be missing. Opening the store removes what `refs.json` does not lead to.
//!
//! **Healing.** An unpacked layer can always be made again from its blob; [`ImageStore::resolve`] does so when one is missing.
//!
//! **Choice: what is kept of a layer.** `save` and healing need the exact tar, whose digest cannot be had from the unpacked files.
//! A layer that came compressed is kept as it came. One that came as a plain tar is kept under the digest of the plain tar but
//! compressed at rest with zstd level 1, on a thread of its own while the tar is unpacked: of a minimal Debian (124 MB of tar)
//! 48 MB are kept, and an import still takes about as long as the disk needs for both. The alternative, keeping only headers and reading contents back from the unpacked layer (Docker's
//! tar-split), would save those but make the unpacked files the only copy: a flipped bit there could not be healed.
//!
//! **Concurrency.** All methods take `&self`. Imports run side by side; phases that rely on layers already there (unpacking a
//! loaded archive, healing, removing) take turns. A second process must be kept away by the caller's lock on the data directory.

#![forbid(unsafe_code)]

mod archive;
mod blobs;
mod change;
mod digest;
mod disk;
mod import;
mod layers;
mod load;
#[cfg(test)]
mod power_loss;
mod reference;
mod refs;
mod removal;
mod save;
mod spec;
mod stream;
mod transfer;
mod unpack;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

pub use archive::ArchiveError;
pub use change::{Change, ChangeError};
pub use digest::{Digest, DigestError};
pub use import::ImportOptions;
pub use load::{LoadError, Loaded};
pub use reference::{Reference, ReferenceError};
pub use removal::{DiskUsage, Pruned, Removed};
pub use spec::{Empty, Healthcheck, History, ImageConfig, Platform};
pub use transfer::{Giving, Lack, Naming, Offer, Taking, TransferError};
pub use unpack::{UnpackError, UnpackLimits};

use blobs::{Blobs, FreshBlob};
use disk::Disk;
use layers::{LayerDraft, Layers};
use refs::{Record, Refs};
use spec::{ImageDocument, Manifest};
use stream::{Compression, Counted, Inflate, Meter};

/// Largest manifest, index or configuration: registries have the same limit.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Overlayfs refuses more lower layers than this.
const MAX_LAYERS: usize = 500;

/// Why something about an image failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image has this name or id.
    #[error("no such image: {0}")]
    NotFound(String),
    /// An id's beginning that several images share.
    #[error("{prefix:?} is the beginning of several image ids: {}", candidates.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// The ids.
        candidates: Vec<String>,
    },
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A `--change` that cannot be applied.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Containers use it.
    #[error("image {0} is used by a container: remove the container first, or force")]
    InUse(String),
    /// Removing by id what has several names would take names that were not mentioned.
    #[error("image {id} has several names: {}; remove them one by one, or force", names.join(", "))]
    SeveralNames {
        /// The image.
        id: Digest,
        /// Its names.
        names: Vec<String>,
    },
    /// The store's files could not be read or written.
    #[error("cannot {doing}{}", hint(source))]
    Store {
        /// What was being done, and on what.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A layer could not be unpacked.
    #[error("cannot unpack {layer}{}", source.io().map(hint).unwrap_or_default())]
    Unpack {
        /// Which one.
        layer: String,
        /// Why.
        #[source]
        source: UnpackError,
    },
    /// Bytes do not have the digest they are known by.
    #[error("{what} has the digest {actual}, but {expected} was promised: it is damaged or not what it claims to be")]
    Digest {
        /// Of what.
        what: String,
        /// As the document says.
        expected: Digest,
        /// As computed.
        actual: Digest,
    },
    /// An archive of images could not be understood.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What a user can do about a full disk.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": the disk of the images is full; free some, for example with `orch image prune`"
        }
        _ => "",
    }
}

/// An image as a caller needs it to run a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// `sha256:…` of its configuration.
    pub id: Digest,
    /// `sha256:…` of its manifest.
    pub manifest: Digest,
    /// Its names as the user wrote them, with tag.
    pub references: Vec<String>,
    /// `name@sha256:…` of the manifest.
    pub digests: Vec<String>,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// When it came into this store, RFC 3339.
    pub added: String,
    /// Bytes of the files of all its layers.
    pub size: u64,
    /// Execution defaults.
    pub config: ImageConfig,
    /// What it runs on.
    pub platform: Platform,
    /// How it was made, oldest first.
    pub history: Vec<History>,
    /// Digests of its uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// Lower directories for overlayfs, lowest first.
    pub layers: Vec<PathBuf>,
}

/// See the module.
pub struct ImageStore {
    root: PathBuf,
    disk: Disk,
    blobs: Blobs,
    layers: Layers,
    limits: UnpackLimits,
    state: Mutex<State>,
    /// Held while relying on layers that `refs.json` may not lead to yet, and while removing layers. Taken before `state`.
    turn: Mutex<()>,
    /// Blobs on their way here.
    transit: Mutex<transfer::Transit>,
}

struct State {
    refs: Refs,
    /// Parsed documents of the images in `refs`.
    documents: BTreeMap<Digest, Arc<Documents>>,
}

/// The parsed documents of one image.
struct Documents {
    manifest: Manifest,
    config: ImageDocument,
    chains: Vec<Digest>,
    /// Bytes of all layers, once all are unpacked.
    size: OnceLock<u64>,
}

/// What an import or a load wants to make visible, all at once.
#[derive(Default)]
struct Draft {
    blobs: Vec<FreshBlob>,
    layers: Vec<(Digest, LayerDraft)>,
    images: Vec<NewImage>,
}

struct NewImage {
    id: Digest,
    manifest: Digest,
    names: Vec<Reference>,
}

impl ImageStore {
    /// Opens the store in a directory of its own, creating it when missing, and removes what a crash left half-made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, ImageError> {
        Self::open_with(root, UnpackLimits::default())
    }

    /// As [`ImageStore::open`] with other bounds.
    pub fn open_with(root: impl Into<PathBuf>, limits: UnpackLimits) -> Result<Self, ImageError> {
        Self::open_on(root.into(), limits, Disk::default())
    }

    fn open_on(root: PathBuf, limits: UnpackLimits, disk: Disk) -> Result<Self, ImageError> {
        let failed = |source| store(format!("open the image store {}", root.display()), source);
        std::fs::create_dir_all(&root).map_err(failed)?;
        let mut fresh = false;
        for name in ["blobs", "blobs/sha256", "layers", "ingest"] {
            if !root.join(name).exists() {
                disk.make_dir(&root.join(name)).map_err(failed)?;
                fresh = true;
            }
        }
        if fresh {
            disk.sync_dir(&root.join("blobs")).map_err(failed)?;
            disk.sync_dir(&root).map_err(failed)?;
        }
        let refs =
            Refs::load(&root).map_err(|source| store(format!("read {}", root.join("refs.json").display()), source))?;
        let image_store = Self {
            blobs: Blobs::new(&root, disk.clone()),
            layers: Layers::new(&root, disk.clone()),
            state: Mutex::new(State { refs, documents: BTreeMap::new() }),
            turn: Mutex::new(()),
            transit: Mutex::default(),
            root,
            disk,
            limits,
        };
        image_store.clean().map_err(|source| store("remove what an interrupted import left", source))?;
        Ok(image_store)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is replaced as a whole after the disk agreed, so a panic elsewhere cannot have left it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All images, those that came last first.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let mut state = self.state();
        let ids: Vec<Digest> = state.refs.images.keys().copied().collect();
        let mut images = Vec::new();
        for id in ids {
            match self.image(&mut state, id) {
                Ok(image) => images.push(image),
                // One damaged image must not hide the others.
                Err(error) => {
                    tracing::warn!(image = %id, error = &error as &dyn std::error::Error, "an image is damaged")
                }
            }
        }
        images.sort_by(|a, b| b.added.cmp(&a.added).then(a.id.cmp(&b.id)));
        Ok(images)
    }

    /// Finds an image by name (`name[:tag][@digest]`), by id, or by the beginning of an id, and makes sure that its layers are
    /// unpacked.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let image = {
            let mut state = self.state();
            let id = find(&state.refs, reference)?;
            self.image(&mut state, id)?
        };
        if image.layers.iter().all(|layer| layer.is_dir()) {
            return Ok(image);
        }
        self.heal(image.id)?;
        let mut state = self.state();
        self.image(&mut state, image.id)
    }

    /// Finds an image without touching its layers.
    pub fn find(&self, reference: &str) -> Result<Image, ImageError> {
        let mut state = self.state();
        let id = find(&state.refs, reference)?;
        self.image(&mut state, id)
    }

    /// How an image was made, oldest step first.
    pub fn history(&self, reference: &str) -> Result<Vec<History>, ImageError> {
        Ok(self.find(reference)?.history)
    }

    /// Gives an image another name, which another image may lose by it.
    pub fn tag(&self, source: &str, target: &str) -> Result<(), ImageError> {
        let target = name_of(target)?;
        let mut state = self.state();
        let id = find(&state.refs, source)?;
        let mut refs = state.refs.clone();
        refs.name(id, &target.canonical(), &target.display());
        self.write_refs(&mut state, refs)
    }

    /// Everything about an image as JSON, with Docker's field names.
    pub fn inspect(&self, reference: &str) -> Result<serde_json::Value, ImageError> {
        let (image, documents) = {
            let mut state = self.state();
            let id = find(&state.refs, reference)?;
            (self.image(&mut state, id)?, self.documents(&mut state, id)?)
        };
        let lower: Vec<String> = image.layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        Ok(serde_json::json!({
            "Id": image.id,
            "RepoTags": image.references,
            "RepoDigests": image.digests,
            "Comment": image.history.last().and_then(|step| step.comment.clone()).unwrap_or_default(),
            "Created": image.created,
            "Author": documents.config.author.clone().unwrap_or_default(),
            "Config": image.config,
            "Architecture": image.platform.architecture,
            "Variant": image.platform.variant,
            "Os": image.platform.os,
            "Size": image.size,
            "RootFS": { "Type": "layers", "Layers": image.diff_ids },
            "Metadata": { "LastTagTime": image.added },
            "Descriptor": {
                "mediaType": documents.manifest.media_type,
                "digest": image.manifest,
            },
            "GraphDriver": { "Name": "overlay", "Data": { "LowerDirs": lower } },
        }))
    }

    fn write_refs(&self, state: &mut State, refs: Refs) -> Result<(), ImageError> {
        refs.save(&self.root, &self.disk).map_err(|source| store("write the list of images", source))?;
        state.documents.retain(|id, _| refs.images.contains_key(id));
        state.refs = refs;
        Ok(())
    }

    fn documents(&self, state: &mut State, id: Digest) -> Result<Arc<Documents>, ImageError> {
        if let Some(documents) = state.documents.get(&id) {
            return Ok(Arc::clone(documents));
        }
        let record = state.refs.images.get(&id).ok_or_else(|| ImageError::NotFound(id.to_string()))?;
        let documents = self.read_documents(id, record)?;
        state.documents.insert(id, Arc::clone(&documents));
        Ok(documents)
    }

    fn read_documents(&self, id: Digest, record: &Record) -> Result<Arc<Documents>, ImageError> {
        let damaged = |source| store(format!("read image {id}; load it again"), source);
        let manifest: Manifest = self
            .blobs
            .read(record.manifest, MAX_DOCUMENT)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .map_err(damaged)?;
        let config: ImageDocument =
            self.blobs.read(id, MAX_DOCUMENT).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)).map_err(damaged)?;
        let chains = chains(&config.rootfs.diff_ids);
        Ok(Arc::new(Documents { manifest, config, chains, size: OnceLock::new() }))
    }

    fn image(&self, state: &mut State, id: Digest) -> Result<Image, ImageError> {
        let documents = self.documents(state, id)?;
        let record = state.refs.images.get(&id).ok_or_else(|| ImageError::NotFound(id.to_string()))?;
        let references: Vec<String> = record.names.values().cloned().collect();
        let mut digests: Vec<String> = record
            .names
            .values()
            .filter_map(|name| Reference::parse(name).ok())
            .map(|name| format!("{}@{}", name.name(), record.manifest))
            .collect();
        digests.sort();
        digests.dedup();
        let size = match documents.size.get() {
            Some(size) => *size,
            None => {
                let records: Vec<_> = documents.chains.iter().filter_map(|chain| self.layers.record(*chain)).collect();
                let size = records.iter().map(|record| record.bytes).sum();
                if records.len() == documents.chains.len() {
                    documents.size.set(size).ok();
                }
                size
            }
        };
        Ok(Image {
            id,
            manifest: record.manifest,
            references,
            digests,
            created: documents.config.created.clone(),
            added: record.added.clone(),
            size,
            config: documents.config.config.clone(),
            platform: documents.config.platform.clone(),
            history: documents.config.history.clone(),
            diff_ids: documents.config.rootfs.diff_ids.clone(),
            layers: documents.chains.iter().map(|chain| self.layers.path(*chain)).collect(),
        })
    }

    /// Makes a draft durable, then visible. Nothing of it is seen when this fails.
    fn commit(&self, draft: Draft) -> Result<(), ImageError> {
        let failed = |source| store(format!("write to the image store {}", self.root.display()), source);
        self.disk.sync_all(&self.root).map_err(failed)?;
        let mut state = self.state();
        let publish = || -> io::Result<()> {
            draft.blobs.iter().try_for_each(|blob| self.blobs.publish(blob))?;
            draft.layers.iter().try_for_each(|(chain, layer)| self.layers.publish(layer, *chain))?;
            self.disk.sync_dir(self.blobs.directory())?;
            self.disk.sync_dir(self.layers.directory())
        };
        let mut refs = state.refs.clone();
        let added = jiff::Timestamp::now().to_string();
        for image in &draft.images {
            let record = || Record {
                manifest: image.manifest,
                added: added.clone(),
                names: BTreeMap::new(),
                since: BTreeMap::new(),
            };
            refs.images.entry(image.id).or_insert_with(record);
            image.names.iter().for_each(|name| refs.name(image.id, &name.canonical(), &name.display()));
        }
        // An image that was here already keeps its manifest, and layers as that one names them.
        let another_form = draft.images.iter().any(|image| refs.images[&image.id].manifest != image.manifest);
        let result = publish().map_err(failed).and_then(|()| self.write_refs(&mut state, refs));
        if result.is_err() || another_form {
            // What was renamed into place and is not needed would lie there until the store is opened again.
            self.sweep(&mut state).ok();
        }
        result
    }

    /// Unpacks what is missing of an image's layers from its blobs.
    fn heal(&self, id: Digest) -> Result<(), ImageError> {
        let _turn = self.turn();
        let documents = self.documents(&mut self.state(), id)?;
        let mut lowers: Vec<PathBuf> = Vec::new();
        let mut draft = Draft::default();
        let layers = documents.manifest.layers.iter().zip(&documents.config.rootfs.diff_ids).zip(&documents.chains);
        for ((descriptor, diff_id), chain) in layers {
            if self.layers.record(*chain).is_none() {
                let blob = self
                    .blobs
                    .open(descriptor.digest)
                    .map_err(|source| store(format!("read layer {}", descriptor.digest), source))?;
                let layer = self.unpack(blob, *chain, *diff_id, &lowers)?;
                lowers.insert(0, layer.root());
                draft.layers.push((*chain, layer));
            } else {
                lowers.insert(0, self.layers.path(*chain));
            }
        }
        self.commit(draft)
    }

    /// Unpacks a layer blob and checks its diff id. `lowers`: nearest first.
    fn unpack(
        &self,
        blob: impl io::BufRead,
        chain: Digest,
        diff_id: Digest,
        lowers: &[PathBuf],
    ) -> Result<LayerDraft, ImageError> {
        let layer = || format!("layer {diff_id}");
        let draft = self.layers.begin().map_err(|source| store(format!("begin {}", layer()), source))?;
        let (mut meter, _) =
            inflate(blob, true, &self.limits).map_err(|source| store(format!("read {}", layer()), source))?;
        let unpacked = unpack::unpack(&mut meter, &draft.root(), lowers, &self.limits, &self.disk)
            .map_err(|source| ImageError::Unpack { layer: layer(), source })?;
        let actual = meter.finish().unwrap_or(diff_id);
        if actual != diff_id {
            return Err(ImageError::Digest { what: "a layer".into(), expected: diff_id, actual });
        }
        draft.describe(chain, diff_id, unpacked).map_err(|source| store(format!("describe {}", layer()), source))?;
        Ok(draft)
    }
}

/// A bounded stream of what a possibly compressed source holds, and how it was compressed.
fn inflate<'a>(
    source: impl io::BufRead + 'a,
    hash: bool,
    limits: &UnpackLimits,
) -> io::Result<(Meter<Box<dyn io::Read + 'a>>, Compression)> {
    let (head, source) = stream::peek(source, 6)?;
    let compression = Compression::of(&head)?;
    let (source, consumed) = Counted::new(source);
    let inflated: Box<dyn io::Read + 'a> = Box::new(Inflate::new(source, compression)?);
    Ok((Meter::new(inflated, consumed, hash, limits), compression))
}

/// The chain of each layer, lowest first.
fn chains(diff_ids: &[Digest]) -> Vec<Digest> {
    diff_ids
        .iter()
        .scan(None, |parent, diff_id| {
            *parent = Some(Digest::chain(*parent, *diff_id));
            *parent
        })
        .collect()
}

/// A reference that can be given to an image: without digest.
fn name_of(text: &str) -> Result<Reference, ReferenceError> {
    let reference = Reference::parse(text)?;
    if reference.digest().is_some() {
        let reason = "a name for an image has no digest: that comes from its content".to_owned();
        return Err(ReferenceError { reference: text.to_owned(), reason });
    }
    Ok(reference)
}

/// Names win over ids, as with Docker: an image may be called `cafe`.
fn find(refs: &Refs, wanted: &str) -> Result<Digest, ImageError> {
    if let Ok(reference) = Reference::parse(wanted) {
        let by_name = |canonical: &str| refs.images.iter().find(|(_, record)| record.names.contains_key(canonical));
        match reference.digest() {
            None => {
                if let Some((id, _)) = by_name(&reference.canonical()) {
                    return Ok(*id);
                }
            }
            // The digest decides; the name must be one of the image's repositories.
            Some(digest) => {
                let prefix = format!("{}:", reference.repository());
                let found = refs.images.iter().find(|(id, record)| {
                    (record.manifest == digest || **id == digest)
                        && record.names.keys().any(|name| name.starts_with(&prefix))
                });
                return found.map(|(id, _)| *id).ok_or_else(|| ImageError::NotFound(wanted.to_owned()));
            }
        }
    }
    let prefix = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        // A hostile reference may be megabytes long.
        return Err(ImageError::NotFound(wanted.chars().take(300).collect()));
    }
    let candidates: Vec<Digest> = refs.images.keys().filter(|id| id.hex().starts_with(prefix)).copied().collect();
    match candidates[..] {
        [] => Err(ImageError::NotFound(wanted.to_owned())),
        [id] => Ok(id),
        _ => Err(ImageError::Ambiguous {
            prefix: wanted.to_owned(),
            candidates: candidates.iter().map(Digest::to_string).collect(),
        }),
    }
}

fn store(doing: impl Into<String>, source: io::Error) -> ImageError {
    ImageError::Store { doing: doing.into(), source }
}

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore").field("root", &self.root).finish_non_exhaustive()
    }
}

impl ImageStore {
    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }
}
