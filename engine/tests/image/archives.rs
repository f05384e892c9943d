//! Loading and saving archives of images, ours and other tools'.

use std::fs;
use std::path::Path;
use std::process::Command;

use orch_engine::image::{Digest, ImageError, ImageStore, ImportOptions, LoadError};
use serde_json::{Value, json};

use crate::tar::{Tar, dir, file, hardlink, symlink};
use crate::tree::listing;

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    serde_json::to_vec(&json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/x"], "Env": null, "Volumes": null, "Labels": {"a": "b"}, "Unknown": 1},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "test"}],
    }))
    .unwrap()
}

/// What `docker save` before version 25 writes, `manifest.json` last.
pub(crate) fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let mut tar = Tar::new();
    let mut paths = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = format!("layer{number}/layer.tar");
        tar = tar
            .add(dir(format!("layer{number}/")))
            .add(file(format!("layer{number}/VERSION"), b"1.0"))
            .add(file(&path, layer));
        paths.push(path);
    }
    let path = format!("{}.json", Digest::of(&config).hex());
    let manifest = json!([{"Config": path, "RepoTags": [format!("{name}:latest")], "Layers": paths}]);
    tar.add(file(path, config))
        .add(file("repositories", b"{}"))
        .add(file("manifest.json", manifest.to_string()))
        .build()
}

fn blob(bytes: &[u8]) -> crate::tar::Member {
    file(format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes)
}

fn descriptor(media: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": format!("application/vnd.oci.image.{media}"), "digest": Digest::of(bytes), "size": bytes.len()})
}

fn manifest(config: &[u8], layers: &[Vec<u8>], media: &str) -> Vec<u8> {
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(media, layer)).collect();
    serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": layers,
    }))
    .unwrap()
}

fn index(manifests: &[Value]) -> Vec<u8> {
    serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
}

fn layer() -> Vec<u8> {
    Tar::new().add(dir("etc")).add(file("etc/x", b"content")).build()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn load(archive: &[u8]) -> (tempfile::TempDir, ImageStore, Result<Vec<orch_engine::image::Loaded>, ImageError>) {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let result = store.load(archive);
    (home, store, result)
}

#[test]
fn a_docker_archive_is_loaded_with_its_names_and_its_configuration() {
    let layers = [layer(), Tar::new().add(file("top", b"")).build()];
    for archive in [docker_archive("app", &layers), gzip(&docker_archive("app", &layers))] {
        let (_home, store, loaded) = load(&archive);
        let loaded = loaded.unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].references, ["app:latest"]);
        let image = store.resolve("app").unwrap();
        assert_eq!(image.id, Digest::of(&config(&layers)));
        assert_eq!(image.config.cmd, ["/bin/x"]);
        assert_eq!(image.config.labels["a"], "b");
        assert_eq!(image.created.as_deref(), Some("2024-01-02T03:04:05Z"));
        assert_eq!(fs::read_to_string(image.layers[0].join("etc/x")).unwrap(), "content");
        assert!(image.layers[1].join("top").exists());
    }
}

#[test]
fn repeated_layers_that_are_links_are_followed_within_the_archive() {
    let layer = layer();
    let config = config(&[layer.clone(), layer.clone(), layer.clone()]);
    let name = format!("{}.json", Digest::of(&config).hex());
    let manifest = json!([{"Config": name, "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]);
    let archive = Tar::new()
        .add(file("manifest.json", manifest.to_string()))
        .add(file("a/layer.tar", &layer))
        .add(symlink("b/layer.tar", "../a/layer.tar"))
        .add(hardlink("c/layer.tar", "a/layer.tar"))
        .add(file(name, &config))
        .build();
    let (_home, store, loaded) = load(&archive);
    assert_eq!(store.resolve(&loaded.unwrap()[0].id.to_string()).unwrap().layers.len(), 3);
}

#[test]
fn an_oci_layout_is_loaded_with_its_manifest_digest() {
    let plain = layer();
    for (layer, media) in [
        (plain.clone(), "layer.v1.tar"),
        (gzip(&plain), "layer.v1.tar+gzip"),
        (zstd::encode_all(&plain[..], 3).unwrap(), "layer.v1.tar+zstd"),
    ] {
        let config = config(std::slice::from_ref(&plain));
        let manifest = manifest(&config, std::slice::from_ref(&layer), media);
        let mut found = descriptor("manifest.v1+json", &manifest);
        found["annotations"] = json!({"org.opencontainers.image.ref.name": "localhost/app:1"});
        let archive = Tar::new()
            .add(blob(&layer))
            .add(blob(&config))
            .add(blob(&manifest))
            .add(file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#))
            .add(file("index.json", index(&[found])))
            .build();
        let (_home, store, loaded) = load(&archive);
        assert_eq!(loaded.unwrap()[0].references, ["localhost/app:1"]);
        let image = store.resolve("localhost/app:1").unwrap();
        assert_eq!((image.id, image.manifest), (Digest::of(&config), Digest::of(&manifest)));
        assert_eq!(image.digests, [format!("localhost/app@{}", Digest::of(&manifest))]);
    }
}

#[test]
fn of_several_machines_images_this_one_s_is_chosen_and_attestations_are_left_out() {
    let layer = layer();
    let ours = config(std::slice::from_ref(&layer));
    let theirs = String::from_utf8(ours.clone()).unwrap().replace("amd64", "s390x").into_bytes();
    let (ours_manifest, theirs_manifest) = (
        manifest(&ours, std::slice::from_ref(&layer), "layer.v1.tar"),
        manifest(&theirs, std::slice::from_ref(&layer), "layer.v1.tar"),
    );
    let mut attestation = descriptor("manifest.v1+json", b"not in the archive");
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mut absent = descriptor("manifest.v1+json", b"nor this");
    absent["platform"] = json!({"os": "windows", "architecture": "amd64"});
    let inner = index(&[
        absent,
        descriptor("manifest.v1+json", &theirs_manifest),
        descriptor("manifest.v1+json", &ours_manifest),
        attestation,
    ]);
    let mut outer = descriptor("index.v1+json", &inner);
    outer["annotations"] = json!({"io.containerd.image.name": "docker.io/library/multi:1"});
    let archive = [&layer, &ours, &theirs, &ours_manifest, &theirs_manifest, &inner]
        .iter()
        .fold(Tar::new(), |tar, bytes| tar.add(blob(bytes)))
        .add(file("index.json", index(&[outer])))
        .build();
    let (_home, store, loaded) = load(&archive);
    assert_eq!(loaded.unwrap().len(), 1);
    assert_eq!(store.resolve("multi:1").unwrap().id, Digest::of(&ours));
}

#[test]
fn archives_that_contradict_themselves_are_refused_and_leave_nothing() {
    let layer = layer();
    let good = config(std::slice::from_ref(&layer));
    let name = format!("{}.json", Digest::of(&good).hex());
    let docker = |config_name: &str, config: &[u8], layers: Value| {
        let manifest = json!([{"Config": config_name, "RepoTags": ["x:1"], "Layers": layers}]);
        Tar::new()
            .add(file("l.tar", &layer))
            .add(file(config_name, config))
            .add(file("manifest.json", manifest.to_string()))
    };
    let oci = |manifest: &[u8], extra: &[&[u8]]| {
        let found = descriptor("manifest.v1+json", manifest);
        extra
            .iter()
            .fold(Tar::new(), |tar, bytes| tar.add(blob(bytes)))
            .add(blob(manifest))
            .add(file("index.json", index(&[found])))
    };
    let wrong = config(&[b"another layer".to_vec()]);
    let other_digest = format!("{}.json", Digest::of(b"other").hex());
    let manifest_text = String::from_utf8(manifest(&good, std::slice::from_ref(&layer), "layer.v1.tar")).unwrap();
    let both = manifest_text.replacen('{', r#"{"manifests":[],"#, 1).into_bytes();
    let wrong_size = manifest_text.replace(&format!("\"size\":{}", layer.len()), "\"size\":7").into_bytes();
    let bad_digest =
        manifest_text.replace(&Digest::of(&layer).to_string(), "sha256:../../../../etc/shadow").into_bytes();
    let nested: Vec<u8> = (0..4).fold(manifest_text.clone().into_bytes(), |inner, _| inner);
    let deep_json = format!("[{{\"Config\": \"c\", \"Layers\": [], \"x\": {}", "[".repeat(100_000)).into_bytes();
    let escaping = json!([{"Config": "../../etc/shadow", "RepoTags": null, "Layers": []}]).to_string();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no images", Tar::new().add(file("etc/passwd", b"")).build(), "no archive of images"),
        ("empty", Vec::new(), "no archive of images"),
        ("config outside", Tar::new().add(file("manifest.json", escaping)).build(), "not in it"),
        ("layer outside", docker(&name, &good, json!(["../../../etc/shadow"])).build(), "not in it"),
        (
            "layer that links outside",
            docker(&name, &good, json!(["evil.tar"])).add(symlink("evil.tar", "/etc/shadow")).build(),
            "not in it",
        ),
        (
            "layer links in a loop",
            docker(&name, &good, json!(["a"])).add(symlink("a", "b")).add(symlink("b", "a")).build(),
            "not in it",
        ),
        ("config with another digest", docker(&other_digest, &good, json!(["l.tar"])).build(), "its digest is"),
        ("too few layers", docker(&name, &good, json!([])).build(), "diff ids"),
        ("wrong diff id", docker("c.json", &wrong, json!(["l.tar"])).build(), "was promised"),
        ("no layers at all", docker("c.json", &config(&[]), json!([])).build(), "nothing to run"),
        (
            "bad name",
            Tar::new()
                .add(file("l.tar", &layer))
                .add(file(&name, &good))
                .add(file(
                    "manifest.json",
                    json!([{"Config": name, "RepoTags": ["../x"], "Layers": ["l.tar"]}]).to_string(),
                ))
                .build(),
            "invalid image reference",
        ),
        (
            "bad diff id",
            docker(
                "c.json",
                &String::from_utf8(good.clone()).unwrap().replace("sha256:", "sha256:../").into_bytes(),
                json!(["l.tar"]),
            )
            .build(),
            "hex digits",
        ),
        ("image and index at once", oci(&both, &[&layer, &good]).build(), "at once"),
        ("wrong size", oci(&wrong_size, &[&layer, &good]).build(), "promised"),
        ("digest that is a path", oci(&bad_digest, &[&layer, &good]).build(), "hex digits"),
        ("missing layer", oci(&nested, &[&good]).build(), "not in it"),
        ("missing config", oci(&nested, &[&layer]).build(), "not in it"),
        ("deep JSON", Tar::new().add(file("manifest.json", deep_json)).build(), "is not what it should be"),
        (
            "manifest.json of 5 MB",
            Tar::new().add(file("manifest.json", vec![b' '; 5 << 20])).build(),
            "larger than the limit",
        ),
        (
            "index that holds itself",
            {
                let inner = index(&[descriptor("index.v1+json", b"itself")]);
                Tar::new()
                    .add(file("index.json", index(&[descriptor("index.v1+json", &inner)])))
                    .add(blob(&inner))
                    .build()
            },
            "not in it",
        ),
        (
            "index of another media type",
            {
                let inner = index(&[]);
                Tar::new()
                    .add(file("index.json", index(&[descriptor("manifest.v1+json", &inner)])))
                    .add(blob(&inner))
                    .build()
            },
            "media type",
        ),
        ("hostile layer", docker_archive("x", &[Tar::new().add(file("../x", b"")).build()]), "unpack"),
        ("cut short", docker_archive("x", std::slice::from_ref(&layer))[..3000].to_vec(), "cannot read"),
    ];
    for (what, archive, words) in cases {
        let (home, store, loaded) = load(&archive);
        let error = loaded.expect_err(what).to_string();
        assert!(error.contains(words), "{what}: {error}");
        assert!(store.list().unwrap().is_empty());
        for place in ["layers", "blobs/sha256", "ingest"] {
            assert_eq!(fs::read_dir(home.path().join(place)).unwrap().count(), 0, "{what} left something in {place}");
        }
    }
}

#[test]
fn a_layer_that_was_exchanged_for_another_compression_is_checked_even_when_unpacked_already() {
    let plain = layer();
    let (home, store, _) = load(&docker_archive("good", std::slice::from_ref(&plain)));
    let config = config(&[plain]);
    let poisoned = gzip(&Tar::new().add(file("etc/x", b"poison")).build());
    let manifest = manifest(&config, std::slice::from_ref(&poisoned), "layer.v1.tar+gzip");
    let archive = [&poisoned, &config, &manifest]
        .iter()
        .fold(Tar::new(), |tar, bytes| tar.add(blob(bytes)))
        .add(file("index.json", index(&[descriptor("manifest.v1+json", &manifest)])))
        .build();
    assert!(matches!(store.load(&archive[..]), Err(ImageError::Digest { .. })));
    assert_eq!(fs::read_dir(home.path().join("blobs/sha256")).unwrap().count(), 3);
}

#[test]
fn an_image_saved_and_loaded_elsewhere_is_the_same_image() {
    let plain = layer();
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    store.load(&docker_archive("docker", &[plain.clone(), Tar::new().add(file("top", b"")).build()])[..]).unwrap();
    let options = |name: &str| ImportOptions { reference: Some(name.into()), ..ImportOptions::default() };
    store.import(&plain[..], &options("plain:1")).unwrap();
    store.import(&gzip(&plain)[..], &options("localhost:5000/gz:2")).unwrap();
    store.import(&zstd::encode_all(&plain[..], 5).unwrap()[..], &options("zst")).unwrap();
    store.tag("plain:1", "second/name:x").unwrap();
    let names = ["docker", "plain:1", "second/name:x", "localhost:5000/gz:2", "zst"];
    let mut archive = Vec::new();
    store.save(&names, &mut archive).unwrap();
    let (_home, copy, loaded) = load(&archive);
    assert_eq!(loaded.unwrap().len(), 4);
    for name in names {
        let (there, here) = (store.resolve(name).unwrap(), copy.resolve(name).unwrap());
        assert_eq!(
            (there.id, there.manifest, &there.references, &there.config),
            (here.id, here.manifest, &here.references, &here.config)
        );
        let content =
            |layers: &[std::path::PathBuf]| layers.iter().map(|layer| listing(layer).split_off(1)).collect::<Vec<_>>();
        assert_eq!(content(&there.layers), content(&here.layers));
    }
    let mut again = Vec::new();
    copy.save(&names, &mut again).unwrap();
    assert_eq!(Digest::of(&archive), Digest::of(&again), "saving is not reproducible");

    let id = store.resolve("zst").unwrap().id.to_string();
    let mut nameless = Vec::new();
    store.save(&[&id], &mut nameless).unwrap();
    let (_home, copy, loaded) = load(&nameless);
    assert!(loaded.unwrap()[0].references.is_empty());
    assert!(copy.resolve(&id).unwrap().references.is_empty());
    assert!(matches!(store.save(&["absent"], Vec::new()), Err(ImageError::NotFound(_))));
}

/// Runs skopeo; it comes with Debian and shares no code with orch.
fn skopeo(at: &Path, from: &str, to: &str) {
    let output = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--quiet", from, to])
        .current_dir(at)
        .output()
        .expect("skopeo is needed: apt-get install skopeo");
    assert!(output.status.success(), "skopeo copy {from} {to}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn another_tool_reads_what_is_saved_and_what_it_writes_is_loaded() {
    let work = tempfile::tempdir().unwrap();
    let (_home, store, _) = load(&docker_archive("app", &[layer(), Tar::new().add(file("top", b"")).build()]));
    let original = store.resolve("app").unwrap();
    store.save(&["app"], fs::File::create(work.path().join("saved.tar")).unwrap()).unwrap();
    // The saved archive as docker-archive and as OCI layout, from each to each form that skopeo writes.
    fs::create_dir(work.path().join("layout")).unwrap();
    assert!(
        Command::new("tar")
            .args(["-xf", "../saved.tar"])
            .current_dir(work.path().join("layout"))
            .status()
            .unwrap()
            .success()
    );
    for (number, (from, to, reference)) in [
        ("docker-archive:saved.tar", "docker-archive:1.tar:app:latest", "app"),
        ("docker-archive:saved.tar", "oci-archive:2.tar:localhost/app:new", "localhost/app:new"),
        ("oci:layout:latest", "oci-archive:3.tar:localhost/app:new", "localhost/app:new"),
        ("oci:layout:latest", "docker-archive:4.tar:app:latest", "app"),
    ]
    .into_iter()
    .enumerate()
    {
        skopeo(work.path(), from, to);
        let archive = fs::read(work.path().join(format!("{}.tar", number + 1))).unwrap();
        let (_home, copy, loaded) = load(&archive);
        loaded.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        let image = copy.resolve(reference).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        assert_eq!((&image.diff_ids, &image.config), (&original.diff_ids, &original.config), "{from} to {to}");
    }
}

#[test]
fn a_load_error_names_the_machines_that_there_are_images_for() {
    let layer = layer();
    let text = String::from_utf8(config(std::slice::from_ref(&layer))).unwrap();
    let configs = ["s390x", "riscv64"].map(|arch| text.replace("amd64", arch).into_bytes());
    let manifests = configs.clone().map(|config| manifest(&config, std::slice::from_ref(&layer), "layer.v1.tar"));
    let archive = std::iter::once(&layer)
        .chain(&configs)
        .chain(&manifests)
        .fold(Tar::new(), |tar, bytes| tar.add(blob(bytes)))
        .add(file(
            "index.json",
            index(&manifests.iter().map(|manifest| descriptor("manifest.v1+json", manifest)).collect::<Vec<_>>()),
        ))
        .build();
    let (_home, _store, loaded) = load(&archive);
    match loaded {
        Err(ImageError::Load(error @ LoadError::Platform { .. })) => {
            let text = error.to_string();
            assert!(text.contains("linux/s390x") && text.contains("linux/riscv64"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}
