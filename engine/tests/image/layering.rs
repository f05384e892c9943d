//! What several layers mean together: the tree seen through overlayfs must be what extracting them one over the other gives.

use std::fs;
use std::path::{Path, PathBuf};

use orch_engine::image::ImageStore;

use crate::archives::docker_archive;
use crate::tar::{Tar, dir, file, hardlink, symlink};
use crate::tree::{Overlay, listing};

/// Loads an image of these layers and gives its merged tree to the check.
fn merged(layers: &[Tar], check: impl Fn(&Path, &[PathBuf])) {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let tars: Vec<Vec<u8>> = layers.iter().map(Tar::build).collect();
    store.load(&docker_archive("layers", &tars)[..]).unwrap();
    let image = store.resolve("layers").unwrap();
    let overlay = Overlay::mount(&image.layers);
    check(&overlay.path(), &image.layers);
}

fn names(at: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(at: PathBuf) -> String {
    fs::read_to_string(&at).unwrap_or_else(|error| format!("{}: {error}", at.display()))
}

#[test]
fn whiteouts_hide_what_is_below_and_only_that() {
    let base = Tar::new()
        .add(file("gone", b""))
        .add(file("kept", b"old"))
        .add(dir("d"))
        .add(file("d/a", b""))
        .add(file("d/b", b""))
        .add(dir("opaque"))
        .add(file("opaque/old", b""))
        .add(dir("remade").mode(0o700))
        .add(file("remade/old", b""))
        .add(dir("remade2"))
        .add(file("remade2/old", b""))
        .add(dir("implied"))
        .add(file("implied/old", b""))
        .add(file("again", b"1"));
    let top = Tar::new()
        .add(file(".wh.gone", b""))
        .add(file("d/.wh.a", b""))
        // The order of a mark and its siblings does not matter.
        .add(file("opaque/new", b""))
        .add(file("opaque/.wh..wh..opq", b""))
        .add(file(".wh.remade", b""))
        .add(dir("remade"))
        .add(file("remade/new", b""))
        .add(dir("remade2"))
        .add(file("remade2/new", b""))
        .add(file(".wh.remade2", b""))
        .add(file(".wh.implied", b""))
        .add(file("implied/new", b""))
        .add(file("again", b"2"))
        .add(file(".wh.again", b""))
        .add(file(".wh.never-existed", b""));
    merged(&[base, top], |root, _| {
        assert_eq!(names(root), ["again", "d", "implied", "kept", "opaque", "remade", "remade2"]);
        assert_eq!(names(&root.join("d")), ["b"]);
        for name in ["opaque", "remade", "remade2", "implied"] {
            assert_eq!(names(&root.join(name)), ["new"], "{name}");
        }
        assert_eq!((read(root.join("again")), read(root.join("kept"))), ("2".into(), "old".into()));
        let lines = listing(root);
        assert!(lines.iter().any(|line| line.starts_with("remade 40755")), "{lines:#?}");
    });
}

#[test]
fn a_deleted_name_can_come_back_in_a_third_layer() {
    let layers = [
        Tar::new().add(dir("d")).add(file("d/old", b"")).add(file("f", b"1")),
        Tar::new().add(file(".wh.d", b"")).add(file(".wh.f", b"")),
        Tar::new().add(file("d/new", b"")).add(file("f", b"3")),
    ];
    merged(&layers, |root, _| {
        assert_eq!(names(&root.join("d")), ["new"]);
        assert_eq!(read(root.join("f")), "3");
    });
}

#[test]
fn an_implied_parent_looks_like_the_directory_below() {
    let base = Tar::new()
        .add(dir("./").mode(0o751).owner(1, 2).mtime(1_400_000_000))
        .add(dir("tmp").mode(0o1777).owner(10, 20).mtime(1_500_000_000).xattr("user.k", b"v"))
        .add(dir("tmp/deep").mode(0o700).owner(30, 40).mtime(1_500_000_001));
    let top = Tar::new().add(file("tmp/deep/file", b"x"));
    merged(&[base, top], |root, layers| {
        let lines = listing(root).join("\n");
        for line in [
            " 40751 1:2 1400000000.0",
            "tmp 41777 10:20 1500000000.0",
            "tmp/deep 40700 30:40 1500000001.0",
            "user.k=0x76",
        ] {
            assert!(lines.contains(line), "{line:?} is not in\n{lines}");
        }
        assert!(layers[1].join("tmp/deep/file").exists());
    });
}

#[test]
fn a_parent_that_is_a_link_below_is_followed_and_stays_a_link() {
    let base = Tar::new()
        .add(dir("run").mode(0o711))
        .add(dir("var"))
        .add(symlink("var/run", "/run"))
        .add(symlink("lib", "usr/lib"))
        .add(dir("usr/lib").mode(0o711))
        .add(file("usr/lib/old", b"1"));
    let top = Tar::new()
        .add(file("var/run/nginx.pid", b"1"))
        .add(file("lib/new", b"2"))
        .add(file("lib/.wh.old", b""))
        .add(hardlink("lib/new2", "lib/new"));
    merged(&[base, top], |root, layers| {
        assert_eq!(fs::read_link(root.join("var/run")).unwrap(), Path::new("/run"));
        assert_eq!(fs::read_link(root.join("lib")).unwrap(), Path::new("usr/lib"));
        assert_eq!(read(root.join("run/nginx.pid")), "1");
        assert_eq!(names(&root.join("usr/lib")), ["new", "new2"]);
        assert!(!layers[1].join("lib").exists() && !layers[1].join("var").exists());
        assert!(listing(root).iter().any(|line| line.starts_with("usr/lib 40711")));
    });
}

#[test]
fn an_explicit_directory_replaces_a_link_below() {
    let base = Tar::new().add(symlink("x", "/elsewhere")).add(dir("elsewhere")).add(file("f", b""));
    let top = Tar::new()
        .add(dir("x").mode(0o750))
        .add(file("x/y", b"1"))
        .add(dir("f"))
        .add(file("f/z", b"2"))
        .add(file("elsewhere", b"now a file"));
    merged(&[base, top], |root, _| {
        assert!(root.join("x").symlink_metadata().unwrap().is_dir());
        assert_eq!((read(root.join("x/y")), read(root.join("f/z"))), ("1".into(), "2".into()));
        assert_eq!(read(root.join("elsewhere")), "now a file");
    });
}

#[test]
fn a_hard_link_to_a_lower_layer_shares_one_file() {
    let base = Tar::new()
        .add(dir("bin").mode(0o711).mtime(1_500_000_000))
        .add(
            file("bin/tool", b"tool")
                .mode(0o4750)
                .owner(5, 6)
                .mtime(1_450_000_000)
                .xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        )
        .add(symlink("bin/link", "tool"));
    let middle = Tar::new().add(file("unrelated", b""));
    let top = Tar::new().add(hardlink("usr/tool", "bin/tool")).add(hardlink("usr/link", "bin/link"));
    merged(&[base.clone(), middle, top], |root, _| {
        let lines = listing(root);
        let of = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        assert_eq!(of("bin/tool "), of("usr/tool "));
        assert!(
            of("bin/tool ").starts_with("104750 5:6 1450000000.000000000 4 ") && of("bin/tool ").contains("links=2"),
            "{}",
            of("bin/tool ")
        );
        assert!(lines.iter().any(|line| line.starts_with("usr/tool xattr security.capability")));
        assert_eq!(fs::read_link(root.join("usr/link")).unwrap(), Path::new("tool"));
        assert!(of("bin ").starts_with("40711 0:0 1500000000.0"), "{}", of("bin "));
    });
    // What a layer between has deleted is not there to be linked.
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let tars = [base, Tar::new().add(file("bin/.wh.tool", b"")), Tar::new().add(hardlink("x", "bin/tool"))]
        .map(|tar| tar.build());
    let error = store.load(&docker_archive("bad", &tars)[..]).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("does not exist"), "{error}");
}

#[test]
fn default_acls_do_not_leak_into_files_of_the_archive() {
    let acl: &[u8] = &[
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 100, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 7,
        0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255,
    ];
    let base = Tar::new().add(dir("d").xattr("system.posix_acl_default", acl)).add(file("d/f", b"")).add(dir("d/sub"));
    let top = Tar::new().add(file("d/g", b""));
    merged(&[base, top], |_, layers| {
        let lines: Vec<String> = layers.iter().flat_map(|layer| listing(layer)).collect();
        let with: Vec<&str> = lines
            .iter()
            .filter(|line| line.contains("posix_acl"))
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        assert_eq!(with, ["d", "d"], "{lines:#?}");
    });
}

#[test]
fn images_share_the_layers_of_a_common_base() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let base = Tar::new().add(file("base", b"")).build();
    for name in ["one", "two"] {
        store.load(&docker_archive(name, &[base.clone(), Tar::new().add(file(name, b"")).build()])[..]).unwrap();
    }
    let (one, two) = (store.resolve("one").unwrap(), store.resolve("two").unwrap());
    assert_eq!(one.layers[0], two.layers[0]);
    assert_ne!(one.layers[1], two.layers[1]);
    assert_eq!(fs::read_dir(home.path().join("layers")).unwrap().count(), 3);
    store.remove("one", &Default::default(), false).unwrap();
    assert!(two.layers.iter().all(|layer| layer.is_dir()) && !one.layers[1].exists());
}

#[test]
fn the_same_layer_twice_in_one_image_is_two_lower_directories() {
    let layer = Tar::new().add(file("f", b"")).build();
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    store.load(&docker_archive("twice", &[layer.clone(), layer])[..]).unwrap();
    let image = store.resolve("twice").unwrap();
    assert_ne!(image.layers[0], image.layers[1]);
    // Overlayfs refuses one directory twice.
    Overlay::mount(&image.layers);
}
