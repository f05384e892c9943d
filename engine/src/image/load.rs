//! `image load`: images from an archive, docker-archive (`manifest.json`) or OCI layout (`index.json`), in any order of members.
//!
//! Members are spooled into the store's ingest area while they stream in, hashed on the way; a plain layer tar is spooled
//! compressed, ready to become the blob. Names of members are keys of a map and never paths: whatever an archive calls its
//! members, nothing is read or written outside the store (ADV-51).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use super::archive::{Archive, ArchiveError, Entry, Kind};
use super::blobs::FreshBlob;
use super::digest::Digest;
use super::import::{config_descriptor, layer_descriptor, manifest_of};
use super::spec::{ArchivedImage, Descriptor, ImageDocument, Index, Manifest, Platform, media};
use super::stream::{Compression, peek};
use super::{Draft, ImageError, ImageStore, MAX_DOCUMENT, MAX_LAYERS, NewImage, Reference, chains, inflate, store};

/// Members of an archive. Docker writes a handful for each layer, of which there are at most 500 an image.
const MAX_MEMBERS: usize = 20_000;

/// Names that images of an archive may be given: `RepoTags` of one archive, all images together.
const MAX_NAMES: usize = 10_000;

/// Links between members followed from one name. Docker before 25 links a repeated layer to its first copy: one link.
const MAX_LINKS: usize = 8;

/// An index may hold an index (buildx writes that); no tool nests deeper.
const MAX_INDEX_DEPTH: usize = 2;

/// Why an archive of images cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The archive itself is unreadable.
    #[error("cannot read the archive of images")]
    Archive(#[source] ArchiveError),
    /// It holds no images.
    #[error(
        "the archive holds neither manifest.json nor index.json: it is no archive of images (a root file system is imported with `orch image import`)"
    )]
    NotImages,
    /// A document in it is malformed or contradicts itself.
    #[error("{document} of the archive {reason}")]
    Document {
        /// Which one.
        document: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A document names a member that is not there.
    #[error("{document} of the archive names {member:?}, which is not in it")]
    Missing {
        /// Which document.
        document: String,
        /// What it names.
        member: String,
    },
    /// No image for this machine.
    #[error("the archive has no image for {wanted}; it has {}", found.join(", "))]
    Platform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        found: Vec<String>,
    },
    /// More members than orch accepts.
    #[error("the archive has more than {0} members")]
    TooManyMembers(usize),
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// Names that it got, as in the archive.
    pub references: Vec<String>,
}

/// The members of an archive.
#[derive(Default)]
struct Members {
    files: BTreeMap<Vec<u8>, usize>,
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    blobs: Vec<FreshBlob>,
    by_digest: BTreeMap<Digest, usize>,
}

/// An image described by the archive: its documents checked against each other, its layers found among the members.
struct Described {
    id: Digest,
    /// `None`: none in the archive, one must be written.
    manifest: Option<Digest>,
    config: ImageDocument,
    /// Indices into the members' blobs, lowest layer first.
    layers: Vec<usize>,
    names: Vec<Reference>,
}

impl ImageStore {
    /// Loads all images of an archive for this machine, plain or compressed, read once from beginning to end. All become visible
    /// together or none does.
    pub fn load(&self, source: impl Read) -> Result<Vec<Loaded>, ImageError> {
        let mut members = self.spool(source)?;
        let images = describe(&members)?;
        let _turn = self.turn();
        let mut draft = Draft::default();
        let mut loaded = Vec::new();
        let mut keep = BTreeSet::new();
        for image in images {
            self.unpack_layers(&members, &image, &mut draft)?;
            let manifest = match image.manifest {
                Some(manifest) => manifest,
                None => self.write_manifest(&members, &image, &mut draft)?,
            };
            keep.extend(image.layers.iter().map(|layer| members.blobs[*layer].digest).chain([image.id, manifest]));
            loaded.push(Loaded { id: image.id, references: image.names.iter().map(Reference::display).collect() });
            draft.images.push(NewImage { id: image.id, manifest, names: image.names });
        }
        // What no image needs (`repositories`, `VERSION`, the archive's own index) is dropped here, and with it its file.
        draft.blobs.extend(members.blobs.drain(..).filter(|blob| keep.contains(&blob.digest)));
        self.commit(draft)?;
        Ok(loaded)
    }

    fn spool(&self, source: impl Read) -> Result<Members, ImageError> {
        let reading = |source| store("read the archive of images", source);
        let (source, _) = inflate(BufReader::with_capacity(256 << 10, source), false, &self.limits).map_err(reading)?;
        let mut archive = Archive::new(BufReader::with_capacity(256 << 10, source));
        let mut members = Members::default();
        while let Some(entry) = archive.next().map_err(LoadError::Archive)? {
            let name = normal(&entry.path);
            if members.files.len() + members.links.len() >= MAX_MEMBERS {
                return Err(LoadError::TooManyMembers(MAX_MEMBERS).into());
            }
            // As in any tar, a later member of the same name replaces the earlier.
            members.files.remove(&name);
            members.links.remove(&name);
            match entry.kind {
                Kind::File => {
                    let blob = self.spool_member(&mut archive, &entry)?;
                    members.by_digest.insert(blob.digest, members.blobs.len());
                    members.files.insert(name, members.blobs.len());
                    members.blobs.push(blob);
                }
                Kind::Symlink => drop(members.links.insert(name.clone(), beside(&name, &entry.link))),
                Kind::HardLink => drop(members.links.insert(name, normal(&entry.link))),
                // Directories say nothing; a device or FIFO has no business here and is not made.
                _ => {}
            }
        }
        archive.drain().map_err(LoadError::Archive)?;
        Ok(members)
    }

    fn spool_member(&self, archive: &mut Archive<impl Read>, entry: &Entry) -> Result<FreshBlob, ImageError> {
        let member = || String::from_utf8_lossy(&entry.path).chars().take(200).collect::<String>();
        let failed = |source| store(format!("keep {:?} of the archive", member()), source);
        if entry.sparse.is_some() {
            return Err(LoadError::Document { document: member(), reason: "is a sparse file".into() }.into());
        }
        if entry.size > self.limits.bytes {
            let reason = format!("is larger than the limit of {} bytes", self.limits.bytes);
            return Err(LoadError::Document { document: member(), reason }.into());
        }
        let mut buffer = vec![0; 256 << 10];
        let mut filled = 0;
        // Enough of the beginning to see what it is: a tar has its magic at byte 257.
        while filled < 512 {
            match archive.read_data(&mut buffer[filled..]).map_err(LoadError::Archive)? {
                0 => break,
                count => filled += count,
            }
        }
        let is_tar = buffer[..filled].get(257..262) == Some(b"ustar");
        let mut writer = self.blobs.writer(is_tar).map_err(failed)?;
        while filled > 0 {
            writer.write_all(&buffer[..filled]).map_err(failed)?;
            filled = archive.read_data(&mut buffer).map_err(LoadError::Archive)?;
        }
        writer.finish().map_err(failed)
    }

    /// Unpacks what is missing of an image's layers into the draft and checks every diff id.
    fn unpack_layers(&self, members: &Members, image: &Described, draft: &mut Draft) -> Result<(), ImageError> {
        let diff_ids = &image.config.rootfs.diff_ids;
        let mut lowers: Vec<PathBuf> = Vec::new();
        for ((chain, diff_id), layer) in chains(diff_ids).into_iter().zip(diff_ids).zip(&image.layers) {
            let blob = &members.blobs[*layer];
            let reading = |source| store(format!("read layer {diff_id} of the archive"), source);
            let drafted = draft.layers.iter().find(|(drafted, _)| *drafted == chain).map(|(_, layer)| layer.root());
            let present = drafted.or_else(|| self.layers.record(chain).map(|_| self.layers.path(chain)));
            match present {
                // The layer is there, but this blob may be another compression of it: it will be what heals the layer.
                Some(path) => {
                    if blob.digest != *diff_id && !self.blobs.has(blob.digest) {
                        check_diff_id(self, blob, *diff_id)?;
                    }
                    lowers.insert(0, path);
                }
                None => {
                    let layer = self.unpack(blob.open().map_err(reading)?, chain, *diff_id, &lowers)?;
                    lowers.insert(0, layer.root());
                    draft.layers.push((chain, layer));
                }
            }
        }
        Ok(())
    }

    fn write_manifest(&self, members: &Members, image: &Described, draft: &mut Draft) -> Result<Digest, ImageError> {
        let failed = |source| store("write an image's manifest", source);
        let mut layers = Vec::new();
        for layer in &image.layers {
            let blob = &members.blobs[*layer];
            let (head, _) = blob.open().and_then(|blob| peek(blob, 6)).map_err(failed)?;
            layers.push(layer_descriptor(blob, Compression::of(&head).map_err(failed)?));
        }
        let config = config_descriptor(&members.blobs[members.by_digest[&image.id]]);
        let bytes = serde_json::to_vec(&manifest_of(config, layers)).map_err(|error| failed(error.into()))?;
        let blob = self.blobs.write(&bytes).map_err(failed)?;
        let digest = blob.digest;
        draft.blobs.push(blob);
        Ok(digest)
    }
}

pub(super) fn check_diff_id(store_of: &ImageStore, blob: &FreshBlob, diff_id: Digest) -> Result<(), ImageError> {
    let reading = |source| store(format!("read layer {diff_id} of the archive"), source);
    let (mut meter, _) = blob.open().and_then(|blob| inflate(blob, true, &store_of.limits)).map_err(reading)?;
    io::copy(&mut meter, &mut io::sink()).map_err(reading)?;
    match meter.finish() {
        Some(actual) if actual != diff_id => {
            Err(ImageError::Digest { what: "a layer of the archive".into(), expected: diff_id, actual })
        }
        _ => Ok(()),
    }
}

impl Members {
    /// The member of a name, links followed.
    fn get(&self, name: &[u8]) -> Option<&FreshBlob> {
        self.index_of(name).map(|index| &self.blobs[index])
    }

    fn index_of(&self, name: &[u8]) -> Option<usize> {
        let mut name = normal(name);
        for _ in 0..MAX_LINKS {
            if let Some(index) = self.files.get(&name) {
                return Some(*index);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    fn by_digest(&self, digest: Digest) -> Option<&FreshBlob> {
        self.by_digest.get(&digest).map(|index| &self.blobs[*index])
    }

    fn needed(&self, digest: Digest, document: &str) -> Result<&FreshBlob, LoadError> {
        self.by_digest(digest)
            .ok_or_else(|| LoadError::Missing { document: document.into(), member: digest.to_string() })
    }
}

/// A member's name without `./`, doubled slashes and a leading slash. `..` stays: it is a name that no document will find.
fn normal(name: &[u8]) -> Vec<u8> {
    name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect::<Vec<_>>().join(&b'/')
}

/// The member that a symbolic link at `name` leads to.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').collect();
    parts.pop();
    if target.starts_with(b"/") {
        parts.clear();
    }
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn document<T: serde::de::DeserializeOwned>(blob: &FreshBlob, name: &str) -> Result<(T, Vec<u8>), LoadError> {
    let bad = |reason: String| LoadError::Document { document: name.into(), reason };
    let bytes = blob.read(MAX_DOCUMENT).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let value = serde_json::from_slice(&bytes).map_err(|error| bad(format!("is not what it should be: {error}")))?;
    Ok((value, bytes))
}

/// Finds the images of an archive. `manifest.json` wins for names and order; the OCI manifest, when there is one for the same
/// configuration and layers, is kept, so that its digest survives.
fn describe(members: &Members) -> Result<Vec<Described>, LoadError> {
    let indexed = match members.get(b"index.json") {
        Some(blob) => oci_images(members, &document::<Index>(blob, "index.json")?.0)?,
        None => Vec::new(),
    };
    let Some(blob) = members.get(b"manifest.json") else {
        if members.get(b"index.json").is_none() {
            return Err(LoadError::NotImages);
        }
        return for_this_machine(indexed);
    };
    let archived: Vec<ArchivedImage> = document(blob, "manifest.json")?.0;
    let mut images = Vec::new();
    for image in archived {
        let mut described = docker_image(members, &image)?;
        let layers =
            |image: &Described| image.layers.iter().map(|layer| members.blobs[*layer].digest).collect::<Vec<_>>();
        let same = indexed.iter().find(|other| other.id == described.id && layers(other) == layers(&described));
        described.manifest = same.and_then(|other| other.manifest);
        images.push(described);
    }
    if images.iter().map(|image| image.names.len()).sum::<usize>() > MAX_NAMES {
        let reason = format!("has more than {MAX_NAMES} names");
        return Err(LoadError::Document { document: "manifest.json".into(), reason });
    }
    Ok(images)
}

fn docker_image(members: &Members, image: &ArchivedImage) -> Result<Described, LoadError> {
    let missing = |member: &str| LoadError::Missing {
        document: "manifest.json".into(),
        member: member.chars().take(200).collect(),
    };
    let blob = members.get(image.config.as_bytes()).ok_or_else(|| missing(&image.config))?;
    // The name of the configuration is its digest, in both layouts; where it is not, something was exchanged.
    let stem = image.config.rsplit('/').next().unwrap_or_default();
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    if Digest::from_hex(stem).is_some_and(|named| named != blob.digest) {
        let reason = format!("names a configuration by the digest {stem}, but its digest is {}", blob.digest);
        return Err(LoadError::Document { document: "manifest.json".into(), reason });
    }
    let config = configuration(blob)?;
    let layers = image
        .layers
        .iter()
        .map(|layer| members.index_of(layer.as_bytes()).ok_or_else(|| missing(layer)))
        .collect::<Result<Vec<_>, _>>()?;
    check_layers(&config, layers.len())?;
    let bad_name = |error| LoadError::Document { document: "manifest.json".into(), reason: format!("has an {error}") };
    let names =
        image.repo_tags.iter().map(|name| Reference::parse(name).map_err(bad_name)).collect::<Result<_, _>>()?;
    Ok(Described { id: blob.digest, manifest: None, config, layers, names })
}

fn configuration(blob: &FreshBlob) -> Result<ImageDocument, LoadError> {
    let (config, _): (ImageDocument, _) = document(blob, "an image configuration")?;
    Ok(config)
}

pub(super) fn check_layers(config: &ImageDocument, layers: usize) -> Result<(), LoadError> {
    let bad = |reason| Err(LoadError::Document { document: "an image configuration".into(), reason });
    if config.rootfs.diff_ids.len() != layers {
        return bad(format!("has {} diff ids for {layers} layers", config.rootfs.diff_ids.len()));
    }
    match layers {
        0 => bad("has no layers: there is nothing to run".into()),
        1..=MAX_LAYERS => Ok(()),
        _ => bad(format!("has {layers} layers; overlayfs can stack {MAX_LAYERS}")),
    }
}

/// The images of an OCI layout, those of other machines included.
fn oci_images(members: &Members, index: &Index) -> Result<Vec<Described>, LoadError> {
    let mut images: Vec<Described> = Vec::new();
    let mut ahead: Vec<(Descriptor, usize)> = index.manifests.iter().cloned().map(|found| (found, 1)).collect();
    ahead.reverse();
    while let Some((descriptor, depth)) = ahead.pop() {
        if images.len() > MAX_MEMBERS || ahead.len() > MAX_MEMBERS {
            return Err(LoadError::TooManyMembers(MAX_MEMBERS));
        }
        // Attestations of buildx are no images.
        let annotated = |key| descriptor.annotations.get(key);
        if annotated("vnd.docker.reference.type").is_some() {
            continue;
        }
        // An index may name images of other machines whose blobs are not in the archive (skopeo, buildx --load).
        let Some(blob) = members.by_digest(descriptor.digest) else {
            if descriptor.platform.as_ref().is_some_and(|platform| !platform.satisfies(&Platform::host())) {
                continue;
            }
            return Err(LoadError::Missing { document: "index.json".into(), member: descriptor.digest.to_string() });
        };
        check_size(&descriptor, blob)?;
        let (value, bytes): (serde_json::Value, _) = document(blob, "a manifest")?;
        let bad = |reason: String| LoadError::Document { document: format!("manifest {}", descriptor.digest), reason };
        let parse_error = |error: serde_json::Error| bad(format!("is not what it should be: {error}"));
        let is_index = value.get("manifests").is_some();
        // CVE-2021-41190: one document that is an image to one reader and an index to another.
        if is_index && (value.get("layers").is_some() || value.get("config").is_some()) {
            return Err(bad("is an image and an index at once".into()));
        }
        let claimed = if value["mediaType"].is_string() { value["mediaType"].as_str() } else { None };
        let agrees = |media: &str| match media {
            media::INDEX | media::DOCKER_LIST => is_index,
            media::MANIFEST | media::DOCKER_MANIFEST => !is_index,
            _ => false,
        };
        if !claimed
            .into_iter()
            .chain([descriptor.media_type.as_str()].into_iter().filter(|media| !media.is_empty()))
            .all(agrees)
        {
            return Err(bad("is not of the media type that it is said to be of".into()));
        }
        if is_index {
            if depth > MAX_INDEX_DEPTH {
                return Err(bad(format!("is an index nested deeper than {MAX_INDEX_DEPTH}")));
            }
            let inner: Index = serde_json::from_slice(&bytes).map_err(parse_error)?;
            // The name stands at the outer entry and is meant for the image that will be chosen.
            for mut found in inner.manifests.into_iter().rev() {
                for (key, value) in &descriptor.annotations {
                    found.annotations.entry(key.clone()).or_insert_with(|| value.clone());
                }
                ahead.push((found, depth + 1));
            }
            continue;
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(parse_error)?;
        if let Some(image) = oci_image(members, &descriptor, &manifest, &mut images)? {
            images.push(image);
        }
    }
    Ok(images)
}

/// One manifest; `None` when the image is known already and only got another name, or is for another machine and incomplete.
fn oci_image(
    members: &Members,
    descriptor: &Descriptor,
    manifest: &Manifest,
    known: &mut [Described],
) -> Result<Option<Described>, LoadError> {
    let document = format!("manifest {}", descriptor.digest);
    // Docker calls an image by this name; the plain annotation is a whole name with skopeo and only the tag with Docker.
    let full = descriptor.annotations.get("io.containerd.image.name");
    let short =
        descriptor.annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
    let names: Vec<Reference> = full.or(short).and_then(|name| Reference::parse(name).ok()).into_iter().collect();
    if let Some(image) = known.iter_mut().find(|image| image.manifest == Some(descriptor.digest)) {
        image.names.extend(names);
        return Ok(None);
    }
    let config_blob = members.needed(manifest.config.digest, &document)?;
    check_size(&manifest.config, config_blob)?;
    if matches!(manifest.config.media_type.as_str(), "application/vnd.oci.empty.v1+json") {
        let reason = "is an artifact, not an image that can run".into();
        return Err(LoadError::Document { document, reason });
    }
    let config = configuration(config_blob)?;
    check_layers(&config, manifest.layers.len())?;
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        match members.by_digest.get(&layer.digest) {
            Some(index) => {
                check_size(layer, &members.blobs[*index])?;
                layers.push(*index);
            }
            None if !config.platform.satisfies(&Platform::host()) => return Ok(None),
            None => return Err(LoadError::Missing { document, member: layer.digest.to_string() }),
        }
    }
    Ok(Some(Described { id: manifest.config.digest, manifest: Some(descriptor.digest), config, layers, names }))
}

fn check_size(descriptor: &Descriptor, blob: &FreshBlob) -> Result<(), LoadError> {
    if descriptor.size == blob.size {
        return Ok(());
    }
    let reason = format!("has {} bytes, but {} were promised", blob.size, descriptor.size);
    Err(LoadError::Document { document: format!("blob {}", descriptor.digest), reason })
}

/// Of an OCI layout with images of several machines, those of this one. A layout with a single image is taken as it is: whoever
/// saved it chose it.
fn for_this_machine(images: Vec<Described>) -> Result<Vec<Described>, LoadError> {
    if images.len() == 1 {
        return Ok(images);
    }
    let host = Platform::host();
    let found: Vec<String> = images.iter().map(|image| image.config.platform.to_string()).collect();
    let chosen: Vec<Described> = images.into_iter().filter(|image| image.config.platform.satisfies(&host)).collect();
    if chosen.is_empty() { Err(LoadError::Platform { wanted: host, found }) } else { Ok(chosen) }
}
