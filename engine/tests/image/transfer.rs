//! Images from one store to another: what is missing and nothing else, and nothing that is not what it should be.

use std::io::Read;

use orch_engine::image::{Digest, ImageStore, Lack, Naming, Offer, TransferError};

use crate::archives::docker_archive;
use crate::tar::{Tar, file};

struct Store {
    store: ImageStore,
    _home: tempfile::TempDir,
}

impl std::ops::Deref for Store {
    type Target = ImageStore;

    fn deref(&self) -> &ImageStore {
        &self.store
    }
}

fn empty() -> Store {
    let home = tempfile::tempdir().unwrap();
    Store { store: ImageStore::open(home.path()).unwrap(), _home: home }
}

/// A layer whose bytes do not compress away.
fn layer(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let content: Vec<u8> = noise.take(600_000).collect();
    Tar::new().add(file(format!("f{seed}"), &content)).build()
}

fn holding(name: &str, layers: &[u32]) -> Store {
    let store = empty();
    let tars: Vec<Vec<u8>> = layers.iter().map(|seed| layer(*seed)).collect();
    store.load(&docker_archive(name, &tars)[..]).unwrap();
    store
}

fn carry(from: &ImageStore, to: &ImageStore, offer: &Offer, lack: &Lack) -> Result<(), TransferError> {
    let giving = from.give(&offer.id.to_string(), lack.digest, 0).unwrap();
    let mut taking = to.take(lack.digest, giving.compressed)?;
    taking.read(giving.reader, giving.compressed).unwrap();
    to.taken(taking)
}

fn files(store: &ImageStore, name: &str) -> Vec<String> {
    let layers = store.resolve(name).unwrap().layers;
    let mut names: Vec<String> = layers
        .iter()
        .flat_map(|layer| std::fs::read_dir(layer).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn only_the_layers_that_are_missing_come_over() {
    let (from, to) = (holding("app", &[1, 2, 3]), holding("base", &[1, 2]));
    let offer = from.offer("app").unwrap();
    let lacks = to.lacks(&offer).unwrap();
    assert_eq!(lacks.len(), 1, "{lacks:?}");
    assert!(matches!(to.adopt(&offer), Err(TransferError::Incomplete { missing: 1, .. })));
    carry(&from, &to, &offer, &lacks[0]).unwrap();
    assert_eq!(to.lacks(&offer).unwrap(), [], "what has come waits for its image");
    assert!(to.find("app").is_err(), "nothing is visible before all is there");
    let image = to.adopt(&offer).unwrap();
    assert_eq!(image.id, offer.id);
    assert_eq!(files(&to, "app"), ["f1", "f2", "f3"]);
    assert_eq!(to.lacks(&offer).unwrap(), [], "nor is anything missing afterwards");
    // And it can be given on, the same in every byte.
    assert_eq!(to.offer("app").unwrap().manifest, offer.manifest);
}

#[test]
fn a_blob_goes_on_with_another_giver_where_the_first_broke_off() {
    let (first, second, to) = (holding("app", &[7]), holding("app", &[7]), empty());
    let offer = first.offer("app").unwrap();
    let lack = to.lacks(&offer).unwrap()[0];
    let giving = first.give("app", lack.digest, 0).unwrap();
    assert!(giving.compressed, "a plain tar is kept and sent compressed");
    let mut taking = to.take(lack.digest, true).unwrap();
    // The connection breaks in the middle of a compressed frame.
    assert!(taking.read(giving.reader.take(300_000), true).is_err());
    let came = taking.came();
    assert!(came > 0 && came < lack.size, "{came}");
    let giving = second.give("app", lack.digest, came).unwrap();
    taking.read(giving.reader, giving.compressed).unwrap();
    to.taken(taking).unwrap();
    to.adopt(&offer).unwrap();
    assert_eq!(files(&to, "app"), ["f7"]);
}

#[test]
fn bytes_that_are_not_what_was_promised_are_refused_and_leave_nothing() {
    let (from, to) = (holding("app", &[5]), empty());
    let offer = from.offer("app").unwrap();
    let lack = to.lacks(&offer).unwrap()[0];
    let mut bytes = Vec::new();
    let giving = from.give("app", lack.digest, 0).unwrap();
    zstd::stream::read::Decoder::new(giving.reader).unwrap().read_to_end(&mut bytes).unwrap();
    bytes[5000] ^= 1;
    let mut taking = to.take(lack.digest, false).unwrap();
    taking.read(&bytes[..], false).unwrap();
    let refused = to.taken(taking);
    assert!(matches!(refused, Err(TransferError::Digest { .. })), "{refused:?}");
    let mut taking = to.take(lack.digest, false).unwrap();
    bytes.push(0);
    assert!(taking.read(&bytes[..], false).is_err(), "more than was promised");
    drop(taking);
    let mut taking = to.take(lack.digest, false).unwrap();
    taking.read(&bytes[..5000], false).unwrap();
    assert!(matches!(to.taken(taking), Err(TransferError::Size { .. })));
    assert_eq!(std::fs::read_dir(to.root().join("ingest")).unwrap().count(), 0);
    assert!(to.adopt(&offer).is_err());
}

#[test]
fn an_offer_that_lies_is_found_out_before_a_blob_is_taken() {
    let (from, to) = (holding("app", &[5]), empty());
    let offer = from.offer("app").unwrap();
    let other = holding("other", &[6]).offer("other").unwrap();
    let refused = |offer: Offer, why: &str| {
        let error = to.lacks(&offer).unwrap_err().to_string();
        assert!(error.contains(why), "expected `{why}`: {error}");
    };
    refused(Offer { config: other.config.clone(), ..offer.clone() }, "came with the digest");
    refused(Offer { manifest: other.manifest.clone(), ..offer.clone() }, "manifest of another image");
    refused(Offer { manifest: "{".to_owned(), ..offer.clone() }, "not what it should be");
    let config = offer.config.replace("\"amd64\"", "\"riscv64\"");
    assert_ne!(config, offer.config, "{config}");
    let id = Digest::of(config.as_bytes());
    let manifest = offer.manifest.replace(&offer.id.to_string(), &id.to_string());
    refused(Offer { id, manifest, config, names: Vec::new() }, "is for linux/riscv64, but this machine is linux/amd64");
    // What nobody has offered is not taken, and nobody is given blobs of images other than the one named.
    let foreign = Digest::of(b"foreign");
    assert!(matches!(to.take(foreign, false), Err(TransferError::Unexpected(_))));
    assert!(from.give("app", foreign, 0).is_err());
}

#[test]
fn a_layer_that_unpacks_to_something_else_is_refused() {
    let (from, to) = (holding("app", &[5]), empty());
    let other = holding("other", &[6]);
    let (offer, foreign) = (from.offer("app").unwrap(), other.offer("other").unwrap());
    // A manifest that names layers of another image: its configuration cannot be changed, that is the id.
    let layers = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["layers"].clone();
    let mut manifest: serde_json::Value = serde_json::from_str(&offer.manifest).unwrap();
    manifest["layers"] = layers(&foreign.manifest);
    let lie = Offer { manifest: manifest.to_string(), ..offer };
    for lack in to.lacks(&lie).unwrap() {
        carry(&other, &to, &foreign, &lack).unwrap();
    }
    let error = to.adopt(&lie).unwrap_err().to_string();
    assert!(error.contains("was promised"), "{error}");
    assert!(to.list().unwrap().is_empty());
}

#[test]
fn of_two_images_with_one_name_the_later_one_has_it() {
    let (old, new, to) = (holding("app", &[1]), holding("app", &[2]), empty());
    let (mut old, mut new) = (old.offer("app").unwrap(), new.offer("app").unwrap());
    (old.names[0].since, new.names[0].since) = (1000, 2000);
    for (from, offer) in [(holding("app", &[2]), &new), (holding("app", &[1]), &old)] {
        for lack in to.lacks(offer).unwrap() {
            carry(&from, &to, offer, &lack).unwrap();
        }
        to.adopt(offer).unwrap();
    }
    assert_eq!(to.named("app"), Some((new.id, 2000)), "the older one came later, and is no answer");
    let again = Offer { names: vec![Naming { name: "app".to_owned(), since: 0 }], ..old.clone() };
    to.adopt(&again).unwrap();
    assert_eq!(to.named("app").map(|(id, _)| id), Some(old.id), "now is later than anything");
}
