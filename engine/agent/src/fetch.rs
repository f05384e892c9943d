//! Gets an image that a task of this node needs from another node: what it consists of, then the layers that are missing here, blob by
//! blob, each from whoever has it and answers. A blob goes on where it was when its giver goes away. All tasks that need an image wait
//! for one fetch of it, and their statuses say how that stands.
//!
//! What is checked, and when, is the image store's ([`orch_engine::image::Offer`]); who is asked is the control plane's business, which
//! knows the nodes: on a worker everything comes by way of a manager, since nobody else knows what a worker may have.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use orch_api::image::{BlobStream, Holder, ImageName, ImageOffer, MissingBlob, NamedImage};
use orch_engine::image::{Digest, Lack, Naming, Offer, Taking, TransferError};
use tokio::sync::{Semaphore, mpsc};

use crate::{Shared, chain, now_ms};

/// Images that are fetched at once: one line is soon full, and each takes a thread that writes.
const FETCHES_AT_ONCE: usize = 3;
/// Blobs that are given to others at once.
pub(crate) const GIFTS_AT_ONCE: usize = 16;
/// A giver that sends nothing for so long is given up: longer than a disk under load needs for the next piece.
const SILENCE: Duration = Duration::from_secs(10);
/// First pause before the next try, doubled each time, milliseconds.
const FIRST_PAUSE: u64 = 500;
/// Longest such pause, milliseconds: a node that comes back is soon asked.
const LONGEST_PAUSE: u64 = 10_000;
/// Pieces of a blob between the connection and the thread that writes it.
const PIECES: usize = 16;

/// Images on their way.
#[derive(Debug)]
pub(crate) struct Traffic {
    fetches: Semaphore,
    /// Held while a blob is given.
    pub(crate) gifts: Arc<Semaphore>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { fetches: Semaphore::new(FETCHES_AT_ONCE), gifts: Arc::new(Semaphore::new(GIFTS_AT_ONCE)) }
    }
}

/// Why an image did not come.
#[derive(Debug)]
struct Trouble {
    text: String,
    /// Trying again could help.
    passes: bool,
}

impl Trouble {
    fn passes(text: impl Into<String>) -> Self {
        Self { text: text.into(), passes: true }
    }

    fn stays(text: impl Into<String>) -> Self {
        Self { text: text.into(), passes: false }
    }
}

impl From<TransferError> for Trouble {
    fn from(error: TransferError) -> Self {
        Self::stays(chain(&error))
    }
}

/// What references name here, and since when.
pub(crate) fn named(shared: &Shared, references: &[String]) -> BTreeMap<String, Option<NamedImage>> {
    let name = |reference: &String| {
        let found = shared.engine.images().named(reference);
        let platform = |id| shared.engine.images().platform(id).unwrap_or_default();
        let named = found.map(|(id, since)| NamedImage { id: id.to_string(), since, platform: platform(id) });
        (reference.clone(), named)
    };
    references.iter().map(name).collect()
}

/// An offer of the image store as the API says it.
pub(crate) fn spoken(offer: Offer) -> ImageOffer {
    let names = offer.names.into_iter().map(|naming| ImageName { name: naming.name, since: naming.since });
    ImageOffer { id: offer.id.to_string(), manifest: offer.manifest, config: offer.config, names: names.collect() }
}

/// The reverse of [`spoken`].
///
/// # Errors
/// When the id is no digest.
pub(crate) fn understood(offer: ImageOffer) -> Result<Offer, String> {
    let id = Digest::parse(&offer.id).map_err(|error| format!("{}: {error}", offer.id))?;
    let names = offer.names.into_iter().map(|name| Naming { name: name.name, since: name.since });
    Ok(Offer { id, manifest: offer.manifest, config: offer.config, names: names.collect() })
}

/// What is missing, as the API says it.
pub(crate) fn listed(lacks: &[Lack]) -> Vec<MissingBlob> {
    lacks.iter().map(|lack| MissingBlob { digest: lack.digest.to_string(), size: lack.size }).collect()
}

/// Fetches an image and takes the outcome into the memory; the loop plans again.
pub(crate) async fn fetch(shared: Arc<Shared>, image: String) {
    let outcome = match shared.traffic.fetches.acquire().await {
        Ok(_turn) => attempt(&shared, &image).await,
        Err(_) => return,
    };
    let mut state = shared.lock();
    match outcome {
        Ok(()) => drop(state.observed.images.remove(&image)),
        Err(Trouble { text, passes: false }) => {
            tracing::warn!(image, error = text, "an image cannot be had");
            state.observed.images.remove(&image);
            state.observed.failures.insert(image, text);
        }
        Err(Trouble { text, passes: true }) => {
            let missing = state.observed.images.entry(image.clone()).or_default();
            let pause = FIRST_PAUSE.saturating_mul(1 << missing.tries.min(16)).min(LONGEST_PAUSE);
            if missing.note != text {
                tracing::info!(image, error = text, "an image cannot be had yet");
            }
            (missing.busy, missing.tries) = (false, missing.tries.saturating_add(1));
            (missing.again_at, missing.note) = (now_ms().saturating_add(pause), text);
        }
    }
    drop(state);
    shared.touch();
}

/// Fetches the image that another node has by this name, for a container that is run by hand. Whether there is one.
///
/// # Errors
/// Why it did not come.
pub(crate) async fn fetch_named(shared: &Arc<Shared>, name: &str) -> Result<bool, String> {
    let Some(image) = shared.control.image_named(name.to_owned()).await else { return Ok(false) };
    let Ok(_turn) = shared.traffic.fetches.acquire().await else { return Ok(false) };
    attempt(shared, &image).await.map(|()| true).map_err(|trouble| trouble.text)
}

/// Says to all tasks that wait for it how the fetch stands.
fn note(shared: &Shared, image: &str, text: String) {
    if let Some(missing) = shared.lock().observed.images.get_mut(image) {
        missing.note = text;
    }
    shared.touch();
}

/// What people call the image: as the first task that needs it says.
fn called(shared: &Shared, image: &str) -> String {
    let state = shared.lock();
    let name = state.desired().into_iter().find(|task| task.image_id == image).map(|task| task.spec.image.clone());
    name.unwrap_or_else(|| image.to_owned())
}

async fn attempt(shared: &Arc<Shared>, image: &str) -> Result<(), Trouble> {
    // Somebody may have loaded it meanwhile.
    if shared.engine.images().find(image).is_ok() {
        return Ok(());
    }
    let name = called(shared, image);
    let holders = shared.control.image_holders(image.to_owned()).await;
    let holders = holders.map_err(|error| Trouble::passes(format!("who has image {name} is not known: {error}")))?;
    if holders.alone {
        return Err(Trouble::stays(format!("no such image: {name} ({image})")));
    }
    if holders.have.is_empty() && holders.silent.is_empty() {
        return Err(Trouble::stays(format!("no node has image {name} ({image}) any more: load it again")));
    }
    if holders.have.is_empty() {
        let silent = holders.silent.join(", ");
        return Err(Trouble::passes(format!(
            "no node that answers has image {name}; {silent} may have it and does not answer"
        )));
    }
    let mut fetch = Fetch { shared, image, name, partial: None };
    let (mut passes, mut reasons) = (false, Vec::new());
    for holder in &holders.have {
        match fetch.from(holder).await {
            Ok(()) => return Ok(()),
            Err(trouble) => {
                tracing::warn!(image, node = %holder.node, error = trouble.text, "a node did not give an image");
                passes |= trouble.passes;
                reasons.push(format!("{}: {}", holder.hostname, trouble.text));
            }
        }
    }
    let text = format!("image {} could not be fetched: {}", fetch.name, reasons.join("; "));
    // What may have it and does not answer now may give it whole.
    Err(Trouble { text, passes: passes || !holders.silent.is_empty() })
}

/// One attempt, over several givers.
struct Fetch<'s> {
    shared: &'s Arc<Shared>,
    image: &'s str,
    name: String,
    /// A blob that has come in part, and how many have given of it.
    partial: Option<(Digest, Taking, u32)>,
}

impl Fetch<'_> {
    async fn from(&mut self, holder: &Holder) -> Result<(), Trouble> {
        let asked = self.shared.control.image_offer(self.image.to_owned(), holder.clone());
        let offer = match tokio::time::timeout(SILENCE, asked).await {
            Ok(Ok(offer)) => offer,
            Ok(Err(error)) => return Err(Trouble::passes(error.to_string())),
            Err(_) => return Err(Trouble::passes("it does not answer")),
        };
        if offer.id != self.image {
            return Err(Trouble::stays(format!("it has answered with image {}", offer.id)));
        }
        let offer = understood(offer).map_err(Trouble::stays)?;
        let mut told = false;
        loop {
            let store = self.shared.engine.images();
            let lacks = store.lacks(&offer)?;
            if !std::mem::replace(&mut told, true) {
                let bytes = lacks.iter().map(|lack| lack.size).sum();
                let layers = if lacks.len() == 1 { "1 layer".to_owned() } else { format!("{} layers", lacks.len()) };
                let text = format!("fetching {} from {} ({layers}, {})", self.name, holder.hostname, human(bytes));
                tracing::info!(image = self.image, node = %holder.node, layers = lacks.len(), bytes, "fetching an image");
                note(self.shared, self.image, text);
            }
            // One that is partly here first.
            let partly = |lack: &&Lack| self.partial.as_ref().is_some_and(|(digest, ..)| *digest == lack.digest);
            let Some(lack) = lacks.iter().find(partly).or(lacks.first()).copied() else { break };
            self.blob(&lack, holder).await?;
        }
        let inner = self.shared.clone();
        let adopted = tokio::task::spawn_blocking(move || inner.engine.images().adopt(&offer).map(drop)).await;
        adopted.map_err(|error| Trouble::passes(error.to_string()))?.map_err(|error| match error {
            // Another one's removal came in between.
            TransferError::Incomplete { .. } => Trouble::passes(chain(&error)),
            error => Trouble::from(error),
        })
    }

    /// Takes a blob, or the rest of it.
    async fn blob(&mut self, lack: &Lack, holder: &Holder) -> Result<(), Trouble> {
        let partial = self.partial.take().filter(|(digest, ..)| *digest == lack.digest);
        let offset = partial.as_ref().map_or(0, |(_, taking, _)| taking.came());
        let asked =
            self.shared.control.image_blob(self.image.to_owned(), lack.digest.to_string(), offset, holder.clone());
        let stream = match tokio::time::timeout(SILENCE, asked).await {
            Ok(Ok(stream)) => stream,
            failed => {
                self.partial = partial;
                let text = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "it does not answer".to_owned(),
                };
                return Err(Trouble::passes(text));
            }
        };
        let (taking, givers) = match partial {
            Some((_, taking, givers)) => (taking, givers + 1),
            None => (self.shared.engine.images().take(lack.digest, stream.compressed)?, 1),
        };
        let (taking, read) = receive(taking, stream).await?;
        if let Err(error) = read {
            let text = format!("layer {} broke off after {}: {error}", lack.digest, human(taking.came()));
            return Err(match error.kind() {
                ErrorKind::ConnectionAborted | ErrorKind::TimedOut => {
                    self.partial = Some((lack.digest, taking, givers));
                    Trouble::passes(text)
                }
                // There may be room later; what came of it takes none meanwhile.
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Trouble::passes(text),
                // What came makes no sense, and will not the next time.
                _ => Trouble::stays(text),
            });
        }
        let whole = taking.came() >= lack.size;
        if !whole {
            let text = format!("layer {} ended after {} of {}", lack.digest, human(taking.came()), human(lack.size));
            self.partial = Some((lack.digest, taking, givers));
            return Err(Trouble::passes(text));
        }
        let inner = self.shared.clone();
        let kept = tokio::task::spawn_blocking(move || inner.engine.images().taken(taking)).await;
        // Of one that several have given nobody knows who was wrong: it is fetched again, whole.
        kept.map_err(|error| Trouble::passes(error.to_string()))?
            .map_err(|error| Trouble { text: chain(&error), passes: givers > 1 })
    }
}

/// Writes what comes on a thread, while this task looks that something comes.
async fn receive(mut taking: Taking, stream: BlobStream) -> Result<(Taking, std::io::Result<()>), Trouble> {
    let (sender, receiver) = mpsc::channel(PIECES);
    let BlobStream { compressed, mut bytes } = stream;
    let writing = tokio::task::spawn_blocking(move || {
        let read = taking.read(crate::routes::reader(receiver), compressed);
        (taking, read)
    });
    loop {
        let piece = match tokio::time::timeout(SILENCE, bytes.next()).await {
            Ok(Ok(Some(piece))) => Ok(piece),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => {
                tracing::debug!(error = chain(&error), "a connection broke while a layer came");
                Err(std::io::Error::new(ErrorKind::ConnectionAborted, "the connection broke"))
            }
            Err(_) => Err(std::io::Error::new(ErrorKind::TimedOut, "nothing came any more")),
        };
        let last = piece.is_err();
        if sender.send(piece).await.is_err() || last {
            break;
        }
    }
    drop(sender);
    writing.await.map_err(|error| Trouble::passes(format!("a layer was not written: {error}")))
}

/// Bytes for people.
fn human(bytes: u64) -> String {
    let units = [(30, "GB"), (20, "MB"), (10, "KB")];
    let unit = units.iter().find(|(shift, _)| bytes >> shift > 0);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(shift, unit)| {
            let tenths = (bytes >> (shift - 10)) * 10 / 1024;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        },
    )
}
