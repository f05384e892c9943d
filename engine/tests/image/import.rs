//! Importing root file systems, and what the store does with images.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use orch_engine::image::{Digest, ImageError, ImageStore, ImportOptions, UnpackLimits};

use crate::tar::{Tar, device, dir, file, hardlink, member, symlink as link};
use crate::tree::{SmallDisk, allocated, listing};

fn named(name: &str) -> ImportOptions {
    ImportOptions {
        reference: Some(name.into()),
        created: Some("2024-01-01T00:00:00Z".into()),
        ..ImportOptions::default()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn run(program: &str, args: &[&str], at: &Path) {
    let status = Command::new(program).args(args).current_dir(at).stderr(Stdio::inherit()).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

#[test]
fn an_imported_root_file_system_is_a_directory_with_everything_the_tar_said() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let sha = "user.note";
    let tar = Tar::new()
        .add(dir("./").mode(0o711).owner(3, 4).mtime(1_500_000_000))
        .add(dir("bin").mode(0o750).mtime(1_500_000_001))
        .add(file("bin/su", b"set-user-id").mode(0o4755).owner(0, 42))
        .add(
            file("bin/ping", b"capable")
                .xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        )
        .add(hardlink("bin/su2", "bin/su"))
        .add(link("sh", "/bin/su").owner(7, 8).mtime(1_500_000_002))
        .add(member(b'6', "pipe").mode(0o640))
        .add(device(b'3', "null", 1, 3).mode(0o666))
        .add(device(b'4', "disk", 8, 300).mode(0o660).owner(0, 6))
        .add(file("tmp/implied", b"").xattr(sha, b"a value"))
        .add(file(b"na\xffme\n", b"not UTF-8"))
        .add(file("old", b"x").mtime(0))
        .build();
    let image = store.import(&tar[..], &named("root")).unwrap();
    let lines = listing(&image.layers[0]).join("\n");
    let expected = [
        r" 40711 3:4 1500000000.000000000",
        r"bin 40750 0:0 1500000001.000000000",
        r"bin/su 104755 0:42 1600000000.000000000 11 ",
        "links=2",
        r"bin/ping 100644 0:0 1600000000.000000000 7 ",
        "security.capability=0x0100000200200000000000000000000000000000",
        r"sh 120777 7:8 1500000002.000000000 -> /bin/su",
        r"pipe 10640 0:0 ",
        r"null 20666 0:0 1600000000.000000000 rdev=103",
        r"disk 60660 0:6 1600000000.000000000 rdev=10082c",
        r"tmp 40755 0:0 ",
        r"user.note=0x612076616c7565",
        r"na\xffme\n 100644 0:0",
        r"old 100644 0:0 0.000000000 1",
    ];
    for line in expected {
        assert!(lines.contains(line), "{line:?} is missing in\n{lines}");
    }
    assert_eq!(
        fs::metadata(home.path().join("layers")).unwrap().mode() & 0o777,
        0o700,
        "setuid programs would be reachable"
    );
}

#[test]
fn the_tree_is_the_same_as_gnu_tar_makes_of_a_real_file_system() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir(&source).unwrap();
    run("cp", &["-a", "/etc", "/usr/share/doc/apt", "/usr/share/zoneinfo", "."], &source);
    // Special cases that such a tree does not have.
    fs::create_dir_all(source.join("special").join("d".repeat(120)).join("e".repeat(120))).unwrap();
    fs::write(source.join("special").join("d".repeat(120)).join("e".repeat(120)).join("long"), "x").unwrap();
    symlink("t".repeat(300), source.join("special/longlink")).unwrap();
    fs::write(source.join("special").join(std::ffi::OsStr::from_bytes(b"\xfe\xff")), "raw").unwrap();
    let sparse = fs::File::create(source.join("special/sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[7; 5000], 5 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (8 << 20) - 3).unwrap();
    fs::File::create(source.join("special/all-hole")).unwrap().set_len(16 << 20).unwrap();
    run("mkfifo", &["special/fifo"], &source);
    run("mknod", &["special/node", "b", "7", "9"], &source);
    run("ln", &["special/sparse", "special/sparse2"], &source);
    run("setfattr", &["-n", "user.k", "-v", "v", "special"], &source);
    run(
        "setfattr",
        &["-n", "security.capability", "-v", "0x0100000200200000000000000000000000000000", "special/sparse"],
        &source,
    );
    run("chown", &["4000000000:4000000001", "special/fifo"], &source);
    run("chmod", &["7755", "special"], &source);
    for format in ["gnu", "posix"] {
        for sparse_version in ["0.0", "0.1", "1.0"] {
            let name = format!("{format}-{sparse_version}");
            let archive = work.path().join(format!("{name}.tar"));
            let create = format!(
                "tar --format={format} --sparse --sparse-version={sparse_version} --xattrs --xattrs-include='*' -cf {} .",
                archive.display()
            );
            run("sh", &["-c", &create], &source);
            let expected = work.path().join(format!("{name}-expected"));
            fs::create_dir(&expected).unwrap();
            let extract =
                format!("tar --xattrs --xattrs-include='*' --same-owner -pxf {} --numeric-owner", archive.display());
            run("sh", &["-c", &extract], &expected);
            let home = tempfile::tempdir().unwrap();
            let store = ImageStore::open(home.path()).unwrap();
            let image = store.import(fs::File::open(&archive).unwrap(), &named("tree")).unwrap();
            let (ours, theirs) = (listing(&image.layers[0]), listing(&expected));
            assert!(ours.len() > 100);
            let differences: Vec<_> = ours.iter().zip(&theirs).filter(|(a, b)| a != b).take(5).collect();
            assert!(
                ours == theirs,
                "{name}: {} and {} entries, first differences {differences:#?}",
                ours.len(),
                theirs.len()
            );
            let holes = image.layers[0].join("special/all-hole");
            assert_eq!(fs::metadata(&holes).unwrap().len(), 16 << 20);
            assert!(
                allocated(&holes) < 1 << 20 && allocated(&image.layers[0].join("special/sparse")) < 1 << 20,
                "holes were filled"
            );
            if format == "gnu" {
                break;
            }
        }
    }
}

#[test]
fn plain_gzip_and_zstd_give_the_same_layer() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let tar = Tar::new().add(dir("etc")).add(file("etc/x", b"1")).build();
    let plain = store.import(&tar[..], &named("plain")).unwrap();
    let two_members = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    let gz = store.import(&two_members[..], &named("gz")).unwrap();
    let zstd = store.import(&zstd::encode_all(&tar[..], 3).unwrap()[..], &named("zstd")).unwrap();
    assert_eq!(plain.diff_ids, [Digest::of(&tar)]);
    assert_eq!((&plain.diff_ids, &plain.layers), (&gz.diff_ids, &gz.layers));
    assert_eq!((&plain.diff_ids, &plain.layers), (&zstd.diff_ids, &zstd.layers));
    assert_eq!(fs::read_dir(home.path().join("layers")).unwrap().count(), 1, "one layer is unpacked once");
}

#[test]
fn what_is_not_a_tar_or_not_complete_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let good = Tar::new().add(file("a", vec![5; 3000])).build();
    let noise: Vec<u8> = (0..4096_u32).map(|n| (n * 7 % 251) as u8).collect();
    let mut flipped = gzip(&good);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    for (what, bytes) in [
        ("noise", noise),
        ("cut in data", good[..1500].to_vec()),
        ("cut in header", good[..300].to_vec()),
        ("gzip cut", gzip(&good)[..60].to_vec()),
        ("gzip damaged", flipped),
        ("bzip2", b"BZh91AY&SY".to_vec()),
        ("xz", b"\xfd7zXZ\0\0".to_vec()),
    ] {
        let error = store.import(&bytes[..], &named("bad")).expect_err(what);
        assert!(!error.to_string().is_empty());
        assert!(store.list().unwrap().is_empty(), "{what}");
        for place in ["layers", "blobs/sha256", "ingest"] {
            assert_eq!(fs::read_dir(home.path().join(place)).unwrap().count(), 0, "{what} left something in {place}");
        }
    }
}

#[test]
fn an_image_is_found_by_name_by_id_and_by_the_beginning_of_its_id() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let tar = Tar::new().add(file("a", b"1")).build();
    let options = ImportOptions {
        changes: vec!["CMD [\"/a\"]".into(), "ENV A=1".into(), "EXPOSE 80".into()],
        message: Some("a remark".into()),
        ..named("app:1")
    };
    let image = store.import(&tar[..], &options).unwrap();
    let hex = image.id.hex();
    for wanted in [
        "app:1",
        "docker.io/library/app:1",
        &hex,
        &format!("sha256:{hex}"),
        &hex[..12],
        &format!("sha256:{}", &hex[..7]),
        &format!("app@{}", image.manifest),
        &format!("app:9@{}", image.manifest),
    ] {
        assert_eq!(store.resolve(wanted).unwrap(), image, "{wanted}");
    }
    for wanted in ["app", "app:2", "other@sha256:00", "sha256:", "", "../../etc", &format!("other@{}", image.manifest)]
    {
        assert!(matches!(store.resolve(wanted), Err(ImageError::NotFound(_))), "{wanted}");
    }
    assert_eq!(image.references, ["app:1"]);
    assert_eq!(image.config.cmd, ["/a"]);
    let inspected = store.inspect("app:1").unwrap();
    assert_eq!(inspected["Id"], image.id.to_string());
    assert_eq!(inspected["RepoTags"], serde_json::json!(["app:1"]));
    assert_eq!(inspected["Config"]["ExposedPorts"], serde_json::json!({"80/tcp": {}}));
    assert_eq!(inspected["RootFS"]["Layers"], serde_json::json!([Digest::of(&tar)]));
    assert_eq!(inspected["Comment"], "a remark");
    assert_eq!(store.history("app:1").unwrap()[0].comment.as_deref(), Some("a remark"));
}

#[test]
fn a_name_moves_and_an_image_goes_with_its_last_name_unless_it_is_used() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let nobody = BTreeSet::new();
    let first = store.import(&Tar::new().add(file("a", b"1")).build()[..], &named("app")).unwrap();
    store.tag("app", "other:x").unwrap();
    let second = store.import(&Tar::new().add(file("a", b"2")).build()[..], &named("app")).unwrap();
    assert_eq!(store.resolve("app").unwrap().id, second.id);
    assert_eq!(store.resolve("other:x").unwrap().references, ["other:x"]);
    store.tag("other:x", "third").unwrap();

    let used = BTreeSet::from([first.id]);
    assert!(matches!(store.remove(&first.id.hex(), &nobody, false), Err(ImageError::SeveralNames { .. })));
    assert_eq!(store.remove("third", &used, false).unwrap().untagged, ["third:latest"]);
    assert!(matches!(store.remove("other:x", &used, false), Err(ImageError::InUse(_))));
    let forced = store.remove("other:x", &used, true).unwrap();
    assert_eq!((forced.untagged.as_slice(), forced.deleted), (&["other:x".to_owned()][..], None));
    assert!(first.layers[0].join("a").exists(), "a running container lost its root");
    assert!(store.prune(&used, false).unwrap().deleted.is_empty());
    let pruned = store.prune(&nobody, false).unwrap();
    assert_eq!(pruned.deleted, [first.id]);
    assert!(pruned.bytes > 0 && !first.layers[0].exists());

    assert!(store.disk_usage(&nobody).unwrap().reclaimable > 0);
    assert_eq!(store.remove("app", &nobody, false).unwrap().deleted, Some(second.id));
    let usage = store.disk_usage(&nobody).unwrap();
    assert_eq!((usage.images, usage.blobs, usage.layers, usage.layer_count), (0, 0, 0, 0));
}

#[test]
fn an_opened_store_has_what_was_there_and_nothing_half_made() {
    let home = tempfile::tempdir().unwrap();
    let image = {
        let store = ImageStore::open(home.path()).unwrap();
        store.import(&Tar::new().add(file("a", b"1")).build()[..], &named("app")).unwrap()
    };
    fs::write(home.path().join("ingest/7"), "half a blob").unwrap();
    fs::create_dir_all(home.path().join("layers/tmp-3/fs/x")).unwrap();
    fs::create_dir_all(home.path().join("layers/00112233445566778899aabbccddeeff/fs")).unwrap();
    fs::write(home.path().join("blobs/sha256").join(Digest::of(b"orphan").hex()), "orphan").unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    assert_eq!(store.resolve("app").unwrap(), image);
    assert_eq!(fs::read_dir(home.path().join("ingest")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(home.path().join("layers")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(home.path().join("blobs/sha256")).unwrap().count(), 3);
}

#[test]
fn a_lost_layer_is_made_again_from_its_blob_and_a_damaged_blob_is_noticed() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let image = store.import(&Tar::new().add(file("a", b"precious")).build()[..], &named("app")).unwrap();
    let before = listing(&image.layers[0]);
    fs::remove_dir_all(image.layers[0].parent().unwrap()).unwrap();
    assert_eq!(store.resolve("app").unwrap(), image);
    let root = |line: &String| line.starts_with(' ');
    let after = listing(&image.layers[0]);
    // The root is not in the archive, so its time is when it was made.
    assert!(before.iter().filter(|line| !root(line)).eq(after.iter().filter(|line| !root(line))));

    fs::remove_dir_all(image.layers[0].parent().unwrap()).unwrap();
    let blob = home.path().join("blobs/sha256").join(format!("{}.zst", image.diff_ids[0].hex()));
    let other = Tar::new().add(file("a", b"poisoned")).build();
    fs::write(&blob, zstd::encode_all(&other[..], 1).unwrap()).unwrap();
    assert!(matches!(store.resolve("app"), Err(ImageError::Digest { .. })));
    assert!(!image.layers[0].exists(), "a layer with the wrong content became visible");

    store.import(&Tar::new().add(file("a", b"precious")).build()[..], &named("app")).unwrap();
    assert_eq!(store.resolve("app").unwrap().id, image.id);
    fs::remove_dir_all(image.layers[0].parent().unwrap()).unwrap();
    store.resolve("app").expect("importing again must replace the damaged blob");
    assert_eq!(fs::read_to_string(image.layers[0].join("a")).unwrap(), "precious");
}

#[test]
fn a_full_disk_is_said_so_and_nothing_half_made_stays() {
    let disk = SmallDisk::new(8 << 20);
    let store = ImageStore::open(disk.path().join("store")).unwrap();
    let kept = store.import(&Tar::new().add(file("a", b"1")).build()[..], &named("kept")).unwrap();
    let free = || nix::sys::statvfs::statvfs(disk.path()).map(|stat| stat.blocks_available()).unwrap();
    let before = free();
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(6_000_000)
    .collect();
    let mut many = Tar::new();
    for number in 0..100 {
        many = many.add(file(format!("dir/{number}"), vec![0; 200_000]));
    }
    for (what, tar) in [("one large file", Tar::new().add(file("big", &noise)).build()), ("many files", many.build())] {
        let error = store.import(&tar[..], &named("big")).unwrap_err();
        assert!(error.to_string().contains("the disk of the images is full"), "{what}: {error}");
        assert_eq!(free(), before, "{what}: space is lost");
        assert_eq!(store.list().unwrap(), std::slice::from_ref(&kept));
    }
    let archive = crate::archives::docker_archive("x", &[Tar::new().add(file("big", &noise)).build()]);
    let error = store.load(&archive[..]).unwrap_err();
    assert!(error.to_string().contains("the disk of the images is full"), "{error}");
    assert_eq!(free(), before);
    store.tag("kept", "still-works").unwrap();
}

#[test]
fn threads_that_import_the_same_and_other_things_do_not_disturb_each_other() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let same =
        (0..300).fold(Tar::new(), |tar, n| tar.add(file(format!("d{}/{n}", n % 7), format!("content {n}")))).build();
    let loaded = crate::archives::docker_archive("loaded", &[same.clone(), Tar::new().add(file("top", b"1")).build()]);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, same, loaded) = (&store, &same, &loaded);
            scope.spawn(move || {
                for round in 0..5 {
                    store.import(&same[..], &named(&format!("same:{thread}"))).unwrap();
                    let own = Tar::new().add(file("own", format!("{thread} {round}"))).build();
                    store.import(&own[..], &named(&format!("own:{thread}"))).unwrap();
                    store.load(&loaded[..]).unwrap();
                    // What lost its name to the next round.
                    store.prune(&BTreeSet::new(), false).unwrap();
                    assert!(store.resolve("loaded").unwrap().layers.iter().all(|layer| layer.is_dir()));
                }
            });
        }
    });
    let images = store.list().unwrap();
    assert_eq!(images.len(), 1 + 4 + 1, "{images:#?}");
    // The layer that all share, the upper one of the loaded image, and one of each thread's own.
    assert_eq!(fs::read_dir(home.path().join("layers")).unwrap().count(), 1 + 1 + 4);
    assert_eq!(fs::read_dir(home.path().join("ingest")).unwrap().count(), 0);
    for image in images {
        for layer in &image.layers {
            assert!(layer.is_dir());
        }
    }
}

#[test]
fn bounds_end_an_import_by_name() {
    let home = tempfile::tempdir().unwrap();
    let limits = UnpackLimits { bytes: 1 << 20, entries: 100, path: 200, depth: 10, ratio: 1000 };
    let store = ImageStore::open_with(home.path(), limits).unwrap();
    let many = (0..101).fold(Tar::new(), |tar, n| tar.add(file(format!("{n}"), b"")));
    let deep = Tar::new().add(file("a/".repeat(10) + "b", b""));
    for (what, tar, words) in [
        (
            "bytes",
            Tar::new().add(file("a", vec![0; 600 << 10])).add(file("b", vec![0; 600 << 10])),
            "the size of all files",
        ),
        ("entries", many, "the number of entries"),
        ("path", Tar::new().add(file("p".repeat(201), b"")), "the length of a path"),
        ("link", Tar::new().add(link("l", "p".repeat(201))), "the length of a path"),
        ("depth", deep.clone(), "10"),
        ("too deep", Tar::new().add(file("a/".repeat(11) + "b", b"")), "the depth of directories"),
    ] {
        let result = store.import(&tar.build()[..], &named("bounded"));
        if what == "depth" {
            result.unwrap();
            continue;
        }
        let error = result.unwrap_err();
        let chain = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(std::error::Error::source(&error).unwrap().to_string().contains(words), "{what}: {chain}");
    }
}

#[test]
fn permissions_survive_a_strict_umask() {
    // The mask belongs to the whole process; no other test here depends on it.
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let image =
        store.import(&Tar::new().add(dir("d").mode(0o1777)).add(file("d/f", b"").mode(0o666)).build()[..], &named("m"));
    nix::sys::stat::umask(old);
    let layer = &image.unwrap().layers[0];
    assert_eq!(fs::metadata(layer.join("d")).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(layer.join("d/f")).unwrap().permissions().mode() & 0o7777, 0o666);
}
