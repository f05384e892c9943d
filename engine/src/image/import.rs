//! `image import`: a tar of a root file system becomes an image of one layer.

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::blobs::{BlobWriter, FreshBlob};
use super::change::Change;
use super::digest::Digest;
use super::layers::LayerDraft;
use super::spec::{Descriptor, History, ImageConfig, ImageDocument, Manifest, Platform, RootFs, media};
use super::stream::{Compression, peek};
use super::unpack::unpack;
use super::{Draft, Image, ImageError, ImageStore, NewImage, inflate, name_of, store};

/// One read of the source, and one message to the thread that keeps the blob.
const CHUNK: usize = 256 << 10;

/// Chunks on their way to that thread: 4 MiB, so that a burst of small files and a burst of large ones even out.
const CHUNKS_AHEAD: usize = 16;

/// What an imported image is to be.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Its name; without one it can be found by id only.
    pub reference: Option<String>,
    /// `CMD …`, `ENV …` and so on, as Docker's `--change`.
    pub changes: Vec<String>,
    /// A remark for its history.
    pub message: Option<String>,
    /// What it runs on; by default this machine.
    pub platform: Option<Platform>,
    /// When it was made, RFC 3339; by default now. Given, the same tar always gives the same image id.
    pub created: Option<String>,
}

impl ImageStore {
    /// Imports a tar of a root file system, plain or compressed with gzip or zstd, read once from beginning to end.
    pub fn import(&self, source: impl Read, options: &ImportOptions) -> Result<Image, ImageError> {
        let name = options.reference.as_deref().map(name_of).transpose()?;
        let mut config = ImageConfig::default();
        for change in &options.changes {
            Change::parse(change)?.apply(&mut config);
        }
        let (blob, layer, diff_id, compression) = self.receive(source)?;
        let created = options.created.clone().unwrap_or_else(|| jiff::Timestamp::now().to_string());
        let document = ImageDocument {
            created: Some(created.clone()),
            author: None,
            platform: options.platform.clone().unwrap_or_else(Platform::host),
            config,
            rootfs: RootFs { kind: "layers".into(), diff_ids: vec![diff_id] },
            history: vec![History {
                created: Some(created),
                created_by: Some("orch image import".into()),
                comment: options.message.clone(),
                ..History::default()
            }],
        };
        let mut draft = Draft { layers: vec![(diff_id, layer)], ..Draft::default() };
        let (id, manifest) = self.describe(&mut draft, &document, vec![layer_descriptor(&blob, compression)])?;
        draft.blobs.push(blob);
        draft.images.push(NewImage { id, manifest, names: name.into_iter().collect() });
        self.commit(draft)?;
        self.resolve(&id.to_string())
    }

    /// Writes the configuration and the manifest of a new image as blobs of the draft; their digests.
    fn describe(
        &self,
        draft: &mut Draft,
        document: &ImageDocument,
        layers: Vec<Descriptor>,
    ) -> Result<(Digest, Digest), ImageError> {
        let write =
            |bytes: Vec<u8>| self.blobs.write(&bytes).map_err(|source| store("write an image's documents", source));
        let encode = |error: serde_json::Error| store("encode an image's documents", error.into());
        let config = write(serde_json::to_vec(document).map_err(encode)?)?;
        let manifest = write(serde_json::to_vec(&manifest_of(config_descriptor(&config), layers)).map_err(encode)?)?;
        let digests = (config.digest, manifest.digest);
        draft.blobs.extend([config, manifest]);
        Ok(digests)
    }

    /// Unpacks the source and keeps its bytes as a blob, both at once.
    fn receive(&self, source: impl Read) -> Result<(FreshBlob, LayerDraft, Digest, Compression), ImageError> {
        let layer = self.layers.begin().map_err(|source| store("begin a layer", source))?;
        let reading = |source| store("read the archive to import", source);
        let (head, source) = peek(io::BufReader::with_capacity(CHUNK, source), 6).map_err(reading)?;
        let compression = Compression::of(&head).map_err(reading)?;
        let plain = compression == Compression::None;
        let writer = self.blobs.writer(plain).map_err(|source| store("begin a blob", source))?;
        let (sender, receiver) = sync_channel(CHUNKS_AHEAD);
        let (unpacked, blob) = thread::scope(|scope| {
            let keeper = scope.spawn(|| keep(writer, receiver));
            let tee = Tee { source, sender, chunk: Arc::new(Vec::new()), at: 0 };
            let unpacked = self.receive_layer(tee, &layer, plain);
            // The tee is gone by now, so the thread has seen the end of the stream.
            (unpacked, keeper.join())
        });
        let blob = match blob {
            Ok(blob) => blob.map_err(|source| store("write the layer", source)),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // A full disk stops the blob first and then the tee, with nothing better to say than that the thread is gone.
        let (blob, (diff_id, unpacked)) = match (blob, unpacked) {
            (Err(error), _) | (_, Err(error)) => return Err(error),
            (Ok(blob), Ok(unpacked)) => (blob, unpacked),
        };
        // A plain tar is its own blob: no need to hash it twice.
        let diff_id = diff_id.unwrap_or(blob.digest);
        layer.describe(diff_id, diff_id, unpacked).map_err(|source| store("describe the layer", source))?;
        Ok((blob, layer, diff_id, compression))
    }

    fn receive_layer(
        &self,
        tee: Tee<impl Read>,
        layer: &LayerDraft,
        plain: bool,
    ) -> Result<(Option<Digest>, super::unpack::Unpacked), ImageError> {
        let (mut meter, _) =
            inflate(tee, !plain, &self.limits).map_err(|source| store("read the archive to import", source))?;
        let unpacked = unpack(&mut meter, &layer.root(), &[], &self.limits, &self.disk)
            .map_err(|source| ImageError::Unpack { layer: "the archive to import".into(), source })?;
        Ok((meter.finish(), unpacked))
    }
}

pub(super) fn config_descriptor(config: &FreshBlob) -> Descriptor {
    descriptor(media::CONFIG, config)
}

pub(super) fn layer_descriptor(blob: &FreshBlob, compression: Compression) -> Descriptor {
    let media_type = match compression {
        Compression::None => media::LAYER,
        Compression::Gzip => media::LAYER_GZIP,
        Compression::Zstd => media::LAYER_ZSTD,
    };
    descriptor(media_type, blob)
}

fn descriptor(media_type: &str, blob: &FreshBlob) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: blob.digest,
        size: blob.size,
        platform: None,
        annotations: Default::default(),
    }
}

pub(super) fn manifest_of(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
    Manifest { schema_version: 2, media_type: media::MANIFEST.into(), config, layers }
}

/// The thread that hashes, compresses and writes the blob.
fn keep(mut writer: BlobWriter, chunks: Receiver<Arc<Vec<u8>>>) -> io::Result<FreshBlob> {
    for chunk in chunks {
        writer.write_all(&chunk)?;
    }
    writer.finish()
}

/// Passes a stream on and sends a copy of each chunk, without copying its bytes, to the thread that keeps the blob.
struct Tee<R> {
    source: R,
    sender: SyncSender<Arc<Vec<u8>>>,
    chunk: Arc<Vec<u8>>,
    at: usize,
}

impl<R: Read> BufRead for Tee<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            let mut chunk = Vec::with_capacity(CHUNK);
            self.source.by_ref().take(CHUNK as u64).read_to_end(&mut chunk)?;
            self.chunk = Arc::new(chunk);
            self.at = 0;
            if !self.chunk.is_empty() {
                let gone = |_| io::Error::other("the layer's blob could not be written");
                self.sender.send(Arc::clone(&self.chunk)).map_err(gone)?;
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
