//! Archives made to do harm. Whatever happens inside the layer, a tree outside must stay as it is, byte by byte and bit by bit.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as make_link};
use std::path::{Path, PathBuf};
use std::process::Command;

use orch_engine::chain;
use orch_engine::image::{ImageStore, ImportOptions};

use crate::tar::{Member, Tar, device, dir, file, hardlink, member, symlink};
use crate::tree::listing;

/// A tree that must not change.
struct Canary {
    home: tempfile::TempDir,
    before: Vec<String>,
}

impl Canary {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("canary");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("secret"), "the host's own").unwrap();
        fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(root.join("private")).unwrap();
        fs::set_permissions(root.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(root.join("private/key"), "key").unwrap();
        make_link("secret", root.join("link")).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o751)).unwrap();
        let before = listing(home.path());
        Self { home, before }
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("canary")
    }

    fn check(&self, what: &str) {
        assert_eq!(listing(self.home.path()), self.before, "{what} reached the host");
    }
}

enum Expect {
    /// Refused with these words somewhere in the chain of errors, and nothing left.
    Refused(&'static str),
    /// Unpacked, every file inside the layer.
    Harmless,
}

fn import(store: &ImageStore, source: impl Read) -> Result<PathBuf, String> {
    match store.import(source, &ImportOptions::default()) {
        Ok(image) => Ok(image.layers[0].clone()),
        Err(error) => Err(chain(&error)),
    }
}

/// Number in base-256, as in a 12-byte field.
fn binary(value: i128) -> [u8; 12] {
    let mut field = [0; 12];
    field.copy_from_slice(&value.to_be_bytes()[4..]);
    if value >= 0 {
        field[0] |= 0x80;
    }
    field
}

fn cases(canary: &Path) -> Vec<(&'static str, Vec<u8>, Expect)> {
    use Expect::{Harmless, Refused};
    let outside = canary.to_str().unwrap();
    let up = "../".repeat(20) + outside.trim_start_matches('/');
    let t = Tar::new;
    let xattr = |name: &str| file("x", b"x").xattr(name, b"y");
    let raw = |kind: u8, name: &str, data: &[u8], next: Member| t().raw(kind, name, data).add(next).build();
    let mut cases = vec![
        // Names that leave the root.
        ("dot-dot", t().add(file("../escaped", b"x")).build(), Refused("'..'")),
        ("dot-dot to the canary", t().add(file(format!("{up}/secret"), b"x")).build(), Refused("'..'")),
        ("dot-dot inside", t().add(dir("a")).add(file("a/../../b", b"x")).build(), Refused("'..'")),
        ("dot-dot at the end", t().add(dir("a")).add(dir("a/..").mode(0o777)).build(), Refused("'..'")),
        ("dot-dot in a GNU long name", raw(b'L', "././@LongLink", b"../../x\0", file("y", b"")), Refused("'..'")),
        ("dot-dot in a PAX path", t().add(file("y", b"").pax("path", "../x")).build(), Refused("'..'")),
        (
            "dot-dot in a sparse name",
            t().add(
                file("y", b"").pax("GNU.sparse.size", "0").pax("GNU.sparse.map", "0,0").pax("GNU.sparse.name", "../x"),
            )
            .build(),
            Refused("'..'"),
        ),
        ("absolute file", t().add(file(format!("{outside}/secret"), b"x")).build(), Harmless),
        ("absolute directory with a mode", t().add(dir(outside).mode(0o777)).build(), Harmless),
        ("many slashes", t().add(file(format!("///.///{outside}//secret"), b"x")).build(), Harmless),
        // Through symbolic links.
        ("file through a link", t().add(symlink("d", outside)).add(file("d/secret", b"x")).build(), Harmless),
        ("file through a relative link", t().add(symlink("d", &up)).add(file("d/secret", b"x")).build(), Harmless),
        (
            "file through two links",
            t().add(symlink("a", "b")).add(symlink("b", outside)).add(file("a/secret", b"x")).build(),
            Harmless,
        ),
        (
            "directory through a link",
            t().add(symlink("d", outside)).add(dir("d/private").mode(0o777)).build(),
            Harmless,
        ),
        (
            "directory over a link",
            t().add(symlink("d", format!("{outside}/private"))).add(dir("d").mode(0o777)).build(),
            Harmless,
        ),
        (
            "directory over a link, slash",
            t().add(symlink("d", outside)).add(dir("d/").mode(0o777).owner(5, 5)).build(),
            Harmless,
        ),
        (
            "file over a link",
            t().add(symlink("f", format!("{outside}/secret"))).add(file("f", b"x").mode(0o777)).build(),
            Harmless,
        ),
        (
            "fifo over a link",
            t().add(symlink("f", format!("{outside}/secret"))).add(member(b'6', "f").mode(0o777)).build(),
            Harmless,
        ),
        (
            "device over a link",
            t().add(symlink("f", format!("{outside}/secret"))).add(device(b'3', "f", 1, 3).mode(0o777)).build(),
            Harmless,
        ),
        (
            "directory becomes a link under way",
            t().add(dir("a")).add(file("a/1", b"")).add(symlink("a", outside)).add(file("a/secret", b"x")).build(),
            Harmless,
        ),
        (
            "nested directory becomes a link",
            t().add(dir("a/b/c"))
                .add(file("a/b/c/1", b""))
                .add(symlink("a/b", outside))
                .add(file("a/b/secret", b"x"))
                .build(),
            Harmless,
        ),
        ("the root as a link", t().add(symlink(".", outside)).add(file("secret", b"x")).build(), Refused("root")),
        (
            "the root as a link, slash",
            t().add(symlink("/", outside)).add(file("secret", b"x")).build(),
            Refused("root"),
        ),
        ("the root as a file", t().add(file("./", b"x").patch(156, b"2")).build(), Refused("root")),
        (
            "a loop of links",
            t().add(symlink("a", "b")).add(symlink("b", "a")).add(file("a/x", b"")).build(),
            Refused("Too many"),
        ),
        ("a link to itself", t().add(symlink("a", "a")).add(file("a/x", b"")).build(), Refused("Too many")),
        (
            "a link to /proc/self/root",
            t().add(symlink("p", "/proc/self/root")).add(file(format!("p{outside}/secret"), b"x")).build(),
            Harmless,
        ),
        (
            "/dev, /proc and /etc/resolv.conf as links",
            t().add(symlink("dev", outside))
                .add(symlink("proc", outside))
                .add(symlink("etc/resolv.conf", format!("{outside}/secret")))
                .build(),
            Harmless,
        ),
        ("an empty link", t().add(symlink("a", "")).build(), Refused("link to nothing")),
        ("a whiteout through a link", t().add(symlink("d", outside)).add(file("d/.wh.secret", b"")).build(), Harmless),
        (
            "an opaque mark through a link",
            t().add(symlink("d", outside)).add(file("d/.wh..wh..opq", b"")).build(),
            Harmless,
        ),
        // Hard links.
        ("hard link outside", t().add(hardlink("h", format!("{up}/secret"))).build(), Refused("'..'")),
        ("absolute hard link", t().add(hardlink("h", format!("{outside}/secret"))).build(), Refused("does not exist")),
        (
            "hard link through a link",
            t().add(symlink("d", outside)).add(hardlink("h", "d/secret")).build(),
            Refused("does not exist"),
        ),
        (
            "hard link to a link, then written",
            t().add(symlink("l", format!("{outside}/secret")))
                .add(hardlink("h", "l"))
                .add(file("h", b"x").mode(0o777))
                .build(),
            Harmless,
        ),
        ("hard link to /proc/self/exe", t().add(hardlink("h", "/proc/self/exe")).build(), Refused("does not exist")),
        ("hard link to a directory", t().add(dir("d")).add(hardlink("h", "d")).build(), Refused("directory")),
        ("hard link to itself", t().add(file("h", b"")).add(hardlink("h", "./h")).build(), Refused("itself")),
        ("hard link to the root", t().add(hardlink("h", "/")).build(), Refused("root")),
        // Whiteouts and overlay's own marks.
        ("whiteout of nothing", t().add(file(".wh.", b"")).build(), Refused("deletes no name")),
        ("whiteout of dot", t().add(file("a/.wh..", b"")).build(), Refused("deletes no name")),
        ("whiteout of dot-dot", t().add(file("a/.wh...", b"")).build(), Refused("deletes no name")),
        ("a directory that looks like a whiteout of dot-dot", t().add(file(".wh.../x", b"")).build(), Harmless),
        ("AUFS bookkeeping", t().add(file(".wh..wh.foo", b"")).add(dir(".wh..wh.plnk")).build(), Harmless),
        ("raw whiteout device", t().add(device(b'3', "w", 0, 0)).build(), Refused("0:0")),
        ("trusted overlay attribute", t().add(xattr("trusted.overlay.redirect")).build(), Harmless),
        ("user overlay attribute", t().add(xattr("user.overlay.metacopy")).build(), Harmless),
        ("SELinux label", t().add(xattr("security.selinux")).build(), Harmless),
        // Numbers and names.
        ("negative size", t().add(file("x", b"").patch(124, binary(-1))).build(), Refused("negative")),
        (
            "huge size",
            t().add(file("x", b"").patch(124, binary(i128::from(i64::MAX)))).build(),
            Refused("impossible size"),
        ),
        (
            "8 EiB PAX size",
            t().add(file("x", b"").pax("size", "9223372036854775807")).build(),
            Refused("impossible size"),
        ),
        ("100 GiB size", t().add(file("x", b"").patch(124, binary(100 << 30))).build(), Refused("size of all files")),
        ("negative time", t().add(file("x", b"").patch(136, binary(-5_000_000_000))).build(), Harmless),
        ("time of 8 EiB seconds", t().add(file("x", b"").pax("mtime", "9223372036854775807.9")).build(), Harmless),
        ("user id of 2^32", t().add(file("x", b"").pax("uid", "4294967296")).build(), Refused("owner")),
        ("user id of -1", t().add(file("x", b"").pax("uid", "4294967295")).build(), Refused("owner")),
        (
            "device number beyond Linux",
            t().add(device(b'3', "x", 0, 0).patch(329, b"7777777\0")).build(),
            Refused("device number"),
        ),
        ("NUL in a PAX path", t().add(file("y", b"").pax("path", b"a\0b")).build(), Refused("NUL")),
        ("name of 300 bytes", t().add(file("n".repeat(300), b"")).build(), Refused("File name too long")),
        ("path of 5000 bytes", t().add(file("n/".repeat(2500), b"")).build(), Refused("length of a path")),
        ("deep path", t().add(file("n/".repeat(300) + "f", b"")).build(), Refused("depth of directories")),
        ("depth through links", deep_through_links(), Refused("depth of directories")),
        ("link of 5000 bytes", t().add(symlink("l", "n".repeat(5000))).build(), Refused("length of a path")),
        ("non-UTF-8", t().add(file(b"\xff\xfe/\x80", b"")).build(), Harmless),
        ("case collision", t().add(file("A", b"1")).add(file("a", b"2")).build(), Harmless),
        ("file as parent", t().add(file("f", b"")).add(file("f/x", b"")).build(), Refused("Not a directory")),
        (
            "duplicates of all kinds",
            t().add(file("x", b"1"))
                .add(dir("x"))
                .add(file("x/y", b""))
                .add(symlink("x", "y"))
                .add(member(b'6', "x"))
                .add(file("x", b"2"))
                .build(),
            Harmless,
        ),
        // Extension headers.
        ("malformed PAX length", t().add(file("x", b"").raw_pax("99 path=a\n")).build(), Refused("malformed")),
        ("PAX record without newline", t().add(file("x", b"").raw_pax("8 path=ab")).build(), Refused("malformed")),
        ("PAX without equals", t().add(file("x", b"").raw_pax("6 abc\n")).build(), Refused("without '='")),
        ("PAX header of 1 GiB", t().add(member(b'x', "pax").size(1 << 30)).build(), Refused("larger than the limit")),
        ("GNU long name of 1 GiB", t().add(member(b'L', "x").size(1 << 30)).build(), Refused("larger than the limit")),
        (
            "thousands of attributes",
            t().add((0..2000).fold(file("x", b""), |m, n| m.xattr(&format!("user.{n}"), b""))).build(),
            Refused("more than 1000"),
        ),
        (
            "an attribute of 100 KB",
            t().add(file("x", b"").xattr("user.big", vec![b'x'; 100_000])).build(),
            Refused("extended attribute"),
        ),
        (
            "endless extension headers",
            (0..100).fold(t(), |t, _| t.raw(b'L', "x", b"name\0")).add(file("x", b"")).build(),
            Refused("64 extension"),
        ),
        ("extension without an entry", t().raw(b'L', "x", b"name\0").build(), Refused("missing after")),
        (
            "PAX size that hides a member",
            t().add(file("a", vec![b'A'; 1024]).size(0).pax("size", "1024")).add(file("b", b"")).build(),
            Harmless,
        ),
        (
            "global PAX header with a path",
            raw(b'g', "g", &crate::tar::record("path", b"../evil"), file("x", b"")),
            Harmless,
        ),
        ("unknown type", t().add(member(b'Z', "x")).build(), Refused("unknown type")),
        (
            "wrong checksum",
            {
                let mut bytes = t().add(file("x", b"")).build();
                bytes[0] = b'y';
                bytes
            },
            Refused("checksum"),
        ),
        // Sparse maps.
        (
            "sparse of 8 EiB",
            t().add(file("s", b"").pax("GNU.sparse.size", "9223372036854775807").pax("GNU.sparse.map", "")).build(),
            Refused("number that is none"),
        ),
        (
            "sparse hole of 1 EiB",
            t().add(file("s", b"").pax("GNU.sparse.size", "1152921504606846976").pax("GNU.sparse.numblocks", "0"))
                .build(),
            Refused("size of all files"),
        ),
        (
            "overlapping sparse map",
            t().add(file("s", vec![1; 20]).pax("GNU.sparse.size", "100").pax("GNU.sparse.map", "0,10,5,10")).build(),
            Refused("overlap"),
        ),
        (
            "sparse map beyond the end",
            t().add(file("s", vec![1; 20]).pax("GNU.sparse.size", "10").pax("GNU.sparse.map", "0,20")).build(),
            Refused("outside"),
        ),
        (
            "sparse map with an overflow",
            t().add(
                file("s", vec![1; 20]).pax("GNU.sparse.size", "100").pax("GNU.sparse.map", "18446744073709551615,20"),
            )
            .build(),
            Refused("outside"),
        ),
        (
            "sparse map of another length",
            t().add(file("s", vec![1; 20]).pax("GNU.sparse.size", "100").pax("GNU.sparse.map", "0,10")).build(),
            Refused("stored"),
        ),
        (
            "sparse 1.0 map that does not end",
            t().add(
                file("s", vec![b'1'; 512])
                    .pax("GNU.sparse.major", "1")
                    .pax("GNU.sparse.minor", "0")
                    .pax("GNU.sparse.realsize", "10"),
            )
            .build(),
            Refused("map"),
        ),
        // Ends.
        (
            "a member after the end",
            {
                let mut bytes = t().add(file("a", b"")).build();
                bytes.extend(t().add(file("../evil", b"")).build());
                bytes
            },
            Harmless,
        ),
        (
            "garbage after the end",
            {
                let mut bytes = t().add(file("a", b"")).build();
                bytes.extend([0xa5; 3000]);
                bytes
            },
            Harmless,
        ),
        ("no end", t().add(file("a", b"")).unfinished(), Harmless),
        ("empty", Vec::new(), Harmless),
        ("set-user-id", t().add(file("su", b"x").mode(0o6755)).build(), Harmless),
    ];
    let window_2gib = [b"\x28\xb5\x2f\xfd\x00\xa8".as_slice(), &[0x01, 0, 0]].concat();
    cases.push(("zstd window of 2 GiB", window_2gib, Refused("too much memory")));
    cases
}

/// Each link adds 100 directories; following three of them goes deeper than any path in the archive says.
fn deep_through_links() -> Vec<u8> {
    let deep = "n/".repeat(100);
    Tar::new()
        .add(symlink("a", &deep))
        .add(symlink(format!("{deep}b"), &deep))
        .add(symlink(format!("{deep}{deep}c"), &deep))
        .add(file("a/b/c/x", b""))
        .build()
}

#[test]
fn no_archive_reaches_what_is_outside_its_layer() {
    let canary = Canary::new();
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let cases = cases(&canary.path());
    assert!(cases.len() >= 60);
    for (what, tar, expect) in cases {
        let result = import(&store, &tar[..]);
        canary.check(what);
        match (expect, result) {
            (Expect::Refused(words), Err(error)) => {
                assert!(error.contains(words), "{what}: refused, but not for {words:?}: {error}");
                assert_eq!(fs::read_dir(home.path().join("ingest")).unwrap().count(), 0, "{what} left a blob");
            }
            (Expect::Refused(_), Ok(layer)) => panic!("{what} was accepted:\n{}", listing(&layer).join("\n")),
            (Expect::Harmless, Err(error)) => panic!("{what} was refused: {error}"),
            (Expect::Harmless, Ok(layer)) => {
                let text = listing(&layer).join("\n");
                for mark in ["overlay", "selinux", "evil"] {
                    assert!(!text.contains(mark), "{what}:\n{text}");
                }
            }
        }
        store.prune(&Default::default(), true).unwrap();
        assert_eq!(fs::read_dir(home.path().join("layers")).unwrap().count(), 0, "{what} left a layer");
    }
}

#[test]
fn links_are_followed_inside_the_image_only() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let tar = Tar::new()
        .add(symlink("a/up", "../../../../over"))
        .add(file("a/up/x", b"1"))
        .add(symlink("abs", "/target/dir"))
        .add(file("abs/y", b"2"))
        .add(dir("was/dir"))
        .add(file("was/dir/gone", b""))
        .add(symlink("was/dir", "/now"))
        .add(file("was/dir/z", b"3"))
        .add(file("p", b"").size(0).pax("size", "0"))
        .build();
    let layer = import(&store, &tar[..]).unwrap();
    for (path, content) in [("over/x", "1"), ("target/dir/y", "2"), ("now/z", "3")] {
        assert_eq!(fs::read_to_string(layer.join(path)).unwrap(), content);
    }
    assert_eq!(fs::read_link(layer.join("abs")).unwrap(), Path::new("/target/dir"));
    assert_eq!(fs::read_link(layer.join("was/dir")).unwrap(), Path::new("/now"));
}

#[test]
fn a_pax_size_decides_both_the_data_and_the_next_header() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    // To a reader that believes the ustar size of 0, the data would be members.
    let inner = Tar::new().add(file("smuggled", b"x")).unfinished();
    let tar = Tar::new()
        .add(file("data", &inner).size(0).pax("size", inner.len().to_string()))
        .add(file("after", b"y"))
        .build();
    let layer = import(&store, &tar[..]).unwrap();
    assert_eq!(fs::read(layer.join("data")).unwrap(), inner);
    assert!(layer.join("after").exists() && !layer.join("smuggled").exists());
}

#[test]
fn a_decompression_bomb_ends_with_its_name_long_before_the_disk_is_full() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path()).unwrap();
    let header = Tar::new().add(file("zeros", b"").size(19 << 30).patch(124, binary(19 << 30))).unfinished();
    let tar = || header.as_slice().chain(io::repeat(0).take(19 << 30));
    let bomb = zstd::encode_all(tar().take(150 << 20), 1).unwrap();
    assert!(bomb.len() < 1 << 20);
    let error = import(&store, &bomb[..]).unwrap_err();
    assert!(error.contains("decompression bomb"), "{error}");
    // gzip can hardly exceed the ratio, so there the bound on bytes ends it.
    let limits = orch_engine::image::UnpackLimits { bytes: 32 << 20, ..Default::default() };
    let small = ImageStore::open_with(home.path().join("small"), limits).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::copy(&mut Tar::new().build().as_slice().chain(io::repeat(0).take(120 << 20)), &mut encoder).unwrap();
    let error = import(&small, &encoder.finish().unwrap()[..]).unwrap_err();
    assert!(error.contains("decompresses to more than the limit"), "{error}");
    for name in ["layers", "ingest", "small/layers", "small/ingest"] {
        assert_eq!(fs::read_dir(home.path().join(name)).unwrap().count(), 0);
    }
}

#[test]
fn a_hostile_archive_costs_bounded_memory() {
    // A million empty files with long names, then a huge extension header: in a process of its own, with its memory limited.
    if std::env::var_os("ORCH_TEST_BOUNDED").is_some() {
        let home = tempfile::tempdir().unwrap();
        let limits = orch_engine::image::UnpackLimits { entries: 30_000, ..Default::default() };
        let store = ImageStore::open_with(home.path(), limits).unwrap();
        let block = Tar::new().add(dir("d/".to_owned() + &"n".repeat(200))).unfinished();
        let mut endless = Endless { block, at: 0 };
        assert!(import(&store, &mut endless).unwrap_err().contains("number of entries"));
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        assert!(peak < 64 << 10, "{peak} KiB");
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["hostile::a_hostile_archive_costs_bounded_memory", "--exact", "--test-threads=1"])
        .env("ORCH_TEST_BOUNDED", "1")
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    assert!(String::from_utf8_lossy(&status.stdout).contains("1 passed"));
}

/// The same block for ever.
struct Endless {
    block: Vec<u8>,
    at: usize,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.block.len() - self.at);
        buffer[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at = (self.at + count) % self.block.len();
        Ok(count)
    }
}

#[test]
fn a_local_user_reaches_nothing_in_the_store() {
    let home = tempfile::tempdir().unwrap();
    let store = ImageStore::open(home.path().join("store")).unwrap();
    import(&store, &Tar::new().add(file("su", b"x").mode(0o4755)).build()[..]).unwrap();
    for name in ["blobs", "blobs/sha256", "layers", "ingest"] {
        assert_eq!(fs::metadata(store.root().join(name)).unwrap().mode() & 0o077, 0, "{name}");
    }
    for entry in fs::read_dir(store.root().join("blobs/sha256")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o077, 0);
    }
}
