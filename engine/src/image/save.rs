//! `image save`: an archive that is both an OCI layout and what `docker load` reads, as Docker 25 and later write it.
//!
//! The small documents come first, so that a reader can begin before the layers have arrived. Blobs are written as they are known
//! by their digests: loading the archive anywhere gives the same image ids and the same manifest digests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use super::digest::Digest;
use super::spec::{ArchivedImage, Descriptor, Index, media};
use super::{ImageError, ImageStore, MAX_DOCUMENT, Reference, find, store};

const BLOCK: u64 = 512;

impl ImageStore {
    /// Writes images and the names they were asked for by; an image given by id is saved without a name.
    pub fn save(&self, references: &[&str], target: impl Write) -> Result<(), ImageError> {
        let mut archived: Vec<(Digest, ArchivedImage)> = Vec::new();
        let mut index = Index { schema_version: 2, media_type: media::INDEX.into(), manifests: Vec::new() };
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        let mut state = self.state();
        for reference in references {
            let id = find(&state.refs, reference)?;
            let documents = self.documents(&mut state, id)?;
            let Some(record) = state.refs.images.get(&id) else { continue };
            let manifest = self
                .blobs
                .read(record.manifest, MAX_DOCUMENT)
                .map_err(|source| store(format!("read image {id}"), source))?;
            let name = Reference::parse(reference).ok().filter(|name| record.names.contains_key(&name.canonical()));
            index.manifests.push(descriptor(
                record.manifest,
                manifest.len() as u64,
                name.as_ref(),
                &documents.config.platform,
            ));
            blobs.insert(record.manifest, manifest.len() as u64);
            let parts = std::iter::once(&documents.manifest.config).chain(&documents.manifest.layers);
            blobs.extend(parts.map(|part| (part.digest, part.size)));
            let display = name.map(|name| name.display());
            match archived.iter_mut().find(|(other, _)| *other == id) {
                Some((_, image)) => image.repo_tags.extend(display),
                None => {
                    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
                    let image = ArchivedImage {
                        config: path(&id),
                        repo_tags: display.into_iter().collect(),
                        layers: documents.manifest.layers.iter().map(|layer| path(&layer.digest)).collect(),
                    };
                    archived.push((id, image));
                }
            }
        }
        // The blobs are opened while the state is held, so that removing an image meanwhile cannot take them away.
        let mut open = Vec::new();
        for (digest, size) in blobs {
            let blob = self.blobs.open(digest).map_err(|source| store(format!("read blob {digest}"), source))?;
            open.push((digest, size, blob));
        }
        drop(state);
        let images: Vec<ArchivedImage> = archived.into_iter().map(|(_, image)| image).collect();
        write_archive(target, &index, &images, open).map_err(|source| store("write the archive", source))
    }
}

fn write_archive(
    target: impl Write,
    index: &Index,
    images: &[ArchivedImage],
    blobs: Vec<(Digest, u64, Box<dyn io::BufRead + Send>)>,
) -> io::Result<()> {
    let mut tar = TarWriter { target };
    tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", &unique(index)?)?;
    tar.file("manifest.json", &serde_json::to_vec(images)?)?;
    tar.header("blobs/", b'5', 0o755, 0)?;
    tar.header("blobs/sha256/", b'5', 0o755, 0)?;
    for (digest, size, mut blob) in blobs {
        tar.stream(&format!("blobs/sha256/{}", digest.hex()), size, &mut blob)?;
    }
    tar.finish()
}

/// The index, each entry once even when an image was asked for twice by the same name.
fn unique(index: &Index) -> io::Result<Vec<u8>> {
    let mut seen = BTreeSet::new();
    let mut index = index.clone();
    let key = |found: &Descriptor| (found.digest, found.annotations.get("io.containerd.image.name").cloned());
    index.manifests.retain(|found| seen.insert(key(found)));
    Ok(serde_json::to_vec(&index)?)
}

fn descriptor(digest: Digest, size: u64, name: Option<&Reference>, platform: &super::Platform) -> Descriptor {
    let mut annotations = BTreeMap::new();
    if let Some(name) = name {
        annotations.insert("io.containerd.image.name".to_owned(), name.canonical());
        annotations.insert("org.opencontainers.image.ref.name".to_owned(), name.tag().unwrap_or("latest").to_owned());
    }
    Descriptor { media_type: media::MANIFEST.into(), digest, size, platform: Some(platform.clone()), annotations }
}

/// Writes the few kinds of tar members that an archive of images has. All times are 0: the same images give the same bytes.
struct TarWriter<W> {
    target: W,
}

impl<W: Write> TarWriter<W> {
    fn header(&mut self, name: &str, kind: u8, mode: u32, size: u64) -> io::Result<()> {
        let mut block = [0; BLOCK as usize];
        block[..name.len()].copy_from_slice(name.as_bytes());
        octal(&mut block[100..108], u64::from(mode));
        octal(&mut block[108..116], 0);
        octal(&mut block[116..124], 0);
        if size < 1 << 33 {
            octal(&mut block[124..136], size);
        } else {
            // Eleven octal digits end at 8 GiB; beyond, GNU's binary form, which every reader of today knows.
            block[124] = 0x80;
            block[128..136].copy_from_slice(&size.to_be_bytes());
        }
        octal(&mut block[136..148], 0);
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut block[148..155], sum);
        self.target.write_all(&block)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.stream(name, bytes.len() as u64, &mut &*bytes)
    }

    fn stream(&mut self, name: &str, size: u64, source: &mut dyn Read) -> io::Result<()> {
        self.header(name, b'0', 0o644, size)?;
        let mut buffer = vec![0; 256 << 10];
        let mut left = size;
        while left > 0 {
            let wanted = left.min(buffer.len() as u64) as usize;
            match source.read(&mut buffer[..wanted])? {
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!("{name} is {left} bytes shorter than known"),
                    ));
                }
                count => {
                    self.target.write_all(&buffer[..count])?;
                    left -= count as u64;
                }
            }
        }
        let padding = size.next_multiple_of(BLOCK) - size;
        self.target.write_all(&[0; BLOCK as usize][..padding as usize])
    }

    fn finish(mut self) -> io::Result<()> {
        self.target.write_all(&[0; 2 * BLOCK as usize])?;
        self.target.flush()
    }
}

/// Octal digits and a NUL.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
    field[digits] = 0;
}
