//! Power cuts at every operation of the store.
//!
//! A [`Watch`] keeps what a power cut would leave: of a file the bytes at its last fsync, of a directory the names at its last
//! fsync, of everything below at a syncfs. A scenario runs again and again, stopped before its first, second, … operation; each
//! time three disks are rebuilt and the store is opened on them. On each, what was acknowledged must be there, whole, and
//! nothing half-made may be seen or take space.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::disk::{Act, Disk, Watch};
use super::{Digest, ImageError, ImageStore, ImportOptions, UnpackLimits};

#[path = "../../tests/image/tar.rs"]
mod tar;

use tar::{Tar, dir, file};

/// A file or directory, whatever it is called: inode numbers are used again, so with the time it was made.
type Identity = (u64, Option<SystemTime>);

#[derive(Default)]
struct Durable {
    operations: usize,
    cut: bool,
    files: HashMap<Identity, Vec<u8>>,
    directories: HashMap<Identity, BTreeMap<OsString, (Identity, bool)>>,
}

struct Recorder {
    stop_before: usize,
    durable: Mutex<Durable>,
}

fn identity(path: &Path) -> (Identity, bool) {
    let meta = fs::symlink_metadata(path).unwrap();
    ((meta.ino(), meta.created().ok()), meta.is_dir())
}

impl Durable {
    fn keep_names(&mut self, path: &Path) {
        let names = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), identity(&entry.path())));
        self.directories.insert(identity(path).0, names.collect());
    }

    fn keep_all(&mut self, path: &Path) {
        let (key, is_dir) = identity(path);
        if !is_dir {
            self.files.insert(key, fs::read(path).unwrap());
            return;
        }
        self.keep_names(path);
        for entry in fs::read_dir(path).unwrap() {
            self.keep_all(&entry.unwrap().path());
        }
    }

    /// The disk with only what was made durable; what has a durable name but no durable content is empty.
    fn rebuild(&self, key: Identity, at: &Path) {
        fs::create_dir(at).unwrap();
        for (name, (key, is_dir)) in self.directories.get(&key).into_iter().flatten() {
            if *is_dir {
                self.rebuild(*key, &at.join(name));
            } else {
                fs::write(at.join(name), self.files.get(key).map_or(&[][..], Vec::as_slice)).unwrap();
            }
        }
    }

    /// The disk with all names as they were, but only durable contents: file systems may write the names first.
    fn rebuild_names(&self, from: &Path, at: &Path) {
        fs::create_dir(at).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let (key, is_dir) = identity(&path);
            let target = at.join(path.file_name().unwrap());
            if is_dir {
                self.rebuild_names(&path, &target);
            } else {
                fs::write(target, self.files.get(&key).map_or(&[][..], Vec::as_slice)).unwrap();
            }
        }
    }
}

impl Watch for Recorder {
    fn before(&self, _: Act<'_>) -> io::Result<()> {
        let mut durable = self.durable.lock().unwrap();
        durable.operations += 1;
        durable.cut |= durable.operations == self.stop_before;
        if durable.cut { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }

    fn after(&self, act: Act<'_>) {
        let mut durable = self.durable.lock().unwrap();
        match act {
            // After the cut, what another thread had under way does not become durable.
            _ if durable.cut => {}
            Act::SyncFile(path) => drop(durable.files.insert(identity(path).0, fs::read(path).unwrap())),
            Act::SyncDir(path) => durable.keep_names(path),
            Act::SyncAll(path) => durable.keep_all(path),
            Act::Create(_) | Act::Write(_) | Act::Rename(..) | Act::MakeDir(_) | Act::Remove(_) | Act::Unpack(_) => {}
        }
    }
}

/// Names and what they lead to.
type Names = BTreeMap<String, Digest>;

fn names(store: &ImageStore) -> Names {
    let images = store.list().unwrap();
    images.iter().flat_map(|image| image.references.iter().map(|name| (name.clone(), image.id))).collect()
}

fn options(name: &str) -> ImportOptions {
    ImportOptions {
        reference: Some(name.into()),
        created: Some("2024-01-01T00:00:00Z".into()),
        ..ImportOptions::default()
    }
}

fn layer(content: &str) -> Tar {
    Tar::new().add(dir("etc")).add(file("etc/content", content)).add(file("etc/more", vec![b'm'; 3000]))
}

fn archive() -> Vec<u8> {
    let layers = [layer("below").build(), Tar::new().add(file("etc/above", b"above")).build()];
    let diff_ids = layers.each_ref().map(|layer| Digest::of(layer));
    let config =
        serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
            .to_string();
    let manifest =
        serde_json::json!([{"Config": "c.json", "RepoTags": ["loaded:1"], "Layers": ["0.tar", "1.tar"]}]).to_string();
    let tar = Tar::new().add(file("0.tar", &layers[0])).add(file("1.tar", &layers[1]));
    tar.add(file("c.json", config)).add(file("manifest.json", manifest)).build()
}

/// Runs the scenario until it ends or the power is cut; the names after each acknowledged step.
fn scenario(root: &Path, disk: Disk) -> Vec<Names> {
    let nobody = BTreeSet::new();
    let mut acknowledged = vec![Names::new()];
    let Ok(store) = ImageStore::open_on(root.to_owned(), UnpackLimits::default(), disk) else { return acknowledged };
    type Step<'a> = Box<dyn Fn() -> Result<(), ImageError> + 'a>;
    let steps: [Step<'_>; 7] = [
        Box::new(|| store.import(&layer("one").build()[..], &options("first")).map(drop)),
        Box::new(|| store.load(&archive()[..]).map(drop)),
        Box::new(|| store.tag("first", "second:x")),
        // The name moves; the old image keeps its other name.
        Box::new(|| store.import(&layer("two").build()[..], &options("first")).map(drop)),
        Box::new(|| store.remove("second:x", &nobody, false).map(drop)),
        Box::new(|| store.import(&layer("below").build()[..], &options("shares-a-layer")).map(drop)),
        Box::new(|| store.remove("loaded:1", &nobody, false).map(drop)),
    ];
    for step in &steps {
        if step().is_err() {
            break;
        }
        acknowledged.push(names(&store));
    }
    acknowledged
}

fn count(at: PathBuf) -> usize {
    fs::read_dir(at).unwrap().count()
}

/// Opens what a power cut left and checks it against what was acknowledged.
fn check(root: &Path, acknowledged: &Names, next: Option<&Names>, what: &str) {
    let store = ImageStore::open(root).unwrap_or_else(|error| panic!("{what}: does not open: {error}"));
    let found = names(&store);
    assert!(
        found == *acknowledged || Some(&found) == next,
        "{what}: {found:?} is neither {acknowledged:?} nor {next:?}"
    );
    let mut layers = BTreeSet::new();
    let mut blobs = BTreeSet::new();
    for (name, id) in &found {
        let image = store.resolve(name).unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
        let content = |path: &str| image.layers.iter().rev().find_map(|layer| fs::read(layer.join(path)).ok());
        let expected = match name.as_str() {
            "loaded:1" | "shares-a-layer:latest" => vec!["below"],
            _ => vec!["one", "two"],
        };
        let text = String::from_utf8(content("etc/content").unwrap_or_default()).unwrap();
        assert!(expected.contains(&text.as_str()), "{what}: {name} holds {text:?}");
        assert_eq!(content("etc/more"), Some(vec![b'm'; 3000]), "{what}: {name}");
        // Saving reads every blob in full.
        let mut saved = Vec::new();
        store.save(&[name], &mut saved).unwrap_or_else(|error| panic!("{what}: saving {name}: {error}"));
        layers.extend(image.layers.clone());
        blobs.extend(image.diff_ids.iter().copied().chain([*id, image.manifest]));
    }
    assert_eq!(count(root.join("ingest")), 0, "{what}");
    assert_eq!(count(root.join("layers")), layers.len(), "{what}: a layer that nothing leads to");
    assert_eq!(count(root.join("blobs/sha256")), blobs.len(), "{what}: a blob that nothing leads to");
    store.import(&layer("one").build()[..], &options("after")).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_half_made_is_seen_after_a_power_cut_at_any_operation() {
    // In memory: what matters is what the recorder counts as durable, and a real disk would make each run wait for its own.
    let work = tempfile::tempdir_in("/dev/shm").unwrap();
    let whole = scenario(&work.path().join("whole"), Disk::default());
    assert_eq!(whole.len(), 8, "the scenario does not pass without a power cut");
    let mut cuts = 0;
    for stop_before in 1.. {
        let root = work.path().join("store");
        fs::create_dir(&root).unwrap();
        let recorder = Arc::new(Recorder { stop_before, durable: Mutex::default() });
        recorder.durable.lock().unwrap().keep_all(&root);
        let acknowledged = scenario(&root, Disk::watched(recorder.clone()));
        let durable = recorder.durable.lock().unwrap();
        let step = acknowledged.len() - 1;
        for (what, rebuild) in [("only what was synced", 0), ("all names, synced contents", 1), ("everything", 2)] {
            let copy = work.path().join("copy");
            match rebuild {
                0 => durable.rebuild(identity(&root).0, &copy),
                1 => durable.rebuild_names(&root, &copy),
                _ => fs::rename(&root, &copy).unwrap(),
            }
            check(
                &copy,
                &whole[step],
                whole.get(step + 1),
                &format!("cut before operation {stop_before}, in step {step}, {what}"),
            );
            fs::remove_dir_all(&copy).unwrap();
        }
        if !durable.cut {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 100, "only {cuts} operations were seen: the store writes past its own hand on the disk");
}
