//! Copying files into and out of containers.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use orch_engine::config::{ContainerId, UserNamespace};
use orch_engine::copy::CopyIn;

use crate::needs_root;
use crate::support::{Host, eventually};
use orch_engine::chain;

/// (path, content or link target) of everything in a tar.
fn list(mut archive: impl Read) -> Vec<(String, String)> {
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let link = entry.link_name().unwrap().map(|link| format!("->{}", link.display()));
        (path, link.unwrap_or(content))
    });
    entries.collect()
}

fn pack(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        // Written by hand: the library refuses what an attacker would write.
        let mut put = |kind, link: Option<&str>, content: &str| {
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            let field = &mut header.as_old_mut().name;
            field[..path.len()].copy_from_slice(path.as_bytes());
            if let Some(link) = link {
                header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            }
            header.set_cksum();
            tar.append(&header, content.as_bytes()).unwrap();
        };
        match content.strip_prefix("->") {
            Some(link) => put(tar::EntryType::Symlink, Some(link), ""),
            None if path.ends_with('/') => put(tar::EntryType::Directory, None, ""),
            None => put(tar::EntryType::Regular, None, content),
        }
    }
    tar.into_inner().unwrap()
}

fn upper(host: &Host, id: &ContainerId) -> PathBuf {
    host.engine().log_directory(id).unwrap().join("upper")
}

#[test]
fn files_go_in_and_come_out_running_or_not() {
    needs_root!();
    copy_both_ways(UserNamespace::Host);
}

#[test]
fn files_go_in_and_come_out_of_a_container_with_ids_of_its_own() {
    needs_root!();
    copy_both_ways(UserNamespace::Auto);
}

fn copy_both_ways(user_namespace: UserNamespace) {
    let host = Host::new();
    let mut config = host.container(&[
        "/bin/sh",
        "-c",
        "mkdir -p /data/sub; echo one > /data/sub/one; ln -s sub /data/link; echo up; sleep 1000",
    ]);
    config.mounts.push(orch_engine::config::Mount {
        target: "/mem".to_owned(),
        kind: orch_engine::config::MountKind::Tmpfs { options: String::new() },
        read_only: false,
    });
    config.user_namespace = user_namespace;
    let id = host.start(config);
    eventually("it is up", || host.output(&id) == "up\n");
    for running in [true, false] {
        if !running {
            host.engine().stop(&id, None, Some(0)).unwrap();
        }
        let out = host.engine().copy_out(&id, "/data", false).unwrap();
        assert_eq!(out.stat.name, "data");
        let expected = [("data/", ""), ("data/link", "->sub"), ("data/sub/", ""), ("data/sub/one", "one\n")];
        assert_eq!(list(out), expected.map(|(path, content)| (path.to_owned(), content.to_owned())));
        let out = host.engine().copy_out(&id, "/data/link", false).unwrap();
        assert_eq!(out.stat.link.as_deref(), Some(Path::new("sub")));
        assert_eq!(list(out), vec![("link".to_owned(), "->sub".to_owned())]);
        let out = host.engine().copy_out(&id, "/data/link/", true).unwrap();
        assert_eq!(list(out).last().unwrap(), &("link/one".to_owned(), "one\n".to_owned()));

        let name = if running { "running" } else { "stopped" };
        let archive = pack(&[("new/", ""), ("new/file", name), ("new/deep/er/file", "2"), ("new/l", "->/etc/passwd")]);
        host.engine().copy_in(&id, "/root", archive.as_slice(), &CopyIn::default()).unwrap();
        let written = upper(&host, &id).join("root/new/file");
        assert_eq!(std::fs::read_to_string(&written).unwrap(), name);
        let meta = written.metadata().unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777, meta.mtime()), (0, 0o640, 1_000_000_000));
        host.engine()
            .copy_in(&id, "/root", archive.as_slice(), &CopyIn { keep_owner: true, ..CopyIn::default() })
            .unwrap();
        assert_eq!(written.metadata().unwrap().uid(), 1000);
        let out = host.engine().copy_out(&id, "/root/new/file", false).unwrap();
        let mut archive = tar::Archive::new(out);
        let header = archive.entries().unwrap().next().unwrap().unwrap().header().clone();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (1000, 1000));
        // This thread makes files as before.
        let own = host.directory.path().join("own");
        std::fs::write(&own, "").unwrap();
        assert_eq!(own.metadata().unwrap().uid(), 0);
    }
    let error = host.engine().copy_out(&id, "/no/such", false).unwrap_err();
    assert!(chain(&error).contains("/no/such"), "{}", chain(&error));
    assert!(host.engine().copy_in(&id, "/etc/passwd", pack(&[]).as_slice(), &CopyIn::default()).is_err());
    // It starts again after having been mounted for copying.
    host.engine().start(&id, None).unwrap();
}

#[test]
fn the_mounts_of_a_running_container_are_copied_from_and_to() {
    needs_root!();
    let host = Host::new();
    let (config, directory) = host.told("echo up; sleep 1000");
    let id = host.start(config);
    eventually("it is up", || host.output(&id) == "up\n");
    host.engine().copy_in(&id, "/host", pack(&[("file", "through the mount")]).as_slice(), &CopyIn::default()).unwrap();
    assert_eq!(std::fs::read_to_string(directory.join("file")).unwrap(), "through the mount");
    let out = host.engine().copy_out(&id, "/host/file", false).unwrap();
    assert_eq!(list(out), [("file".to_owned(), "through the mount".to_owned())]);
    // The whole root, without what the kernel shows in it.
    let all = list_names(host.engine().copy_out(&id, "/", false).unwrap());
    assert!(
        all.iter().any(|path| path.ends_with("etc/passwd")) && !all.iter().any(|path| path.contains("proc/self")),
        "{} paths",
        all.len()
    );
}

fn list_names(archive: impl Read) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

#[test]
fn nothing_is_read_or_written_outside_of_the_container() {
    needs_root!();
    let host = Host::new();
    let outside = host.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "of the host").unwrap();
    let (config, inside) = host.told("echo up; sleep 1000");
    let id = host.start(config);
    eventually("it is up", || host.output(&id) == "up\n");
    // A link that, on the host, leads to the host's directory.
    symlink(&outside, inside.join("absolute")).unwrap();
    symlink("../outside", inside.join("relative")).unwrap();
    symlink("/proc/1/root", inside.join("magic")).unwrap();
    for path in
        ["/host/absolute/secret", "/host/relative/secret", "/host/magic/etc/passwd", "/../../../../../../etc/shadow"]
    {
        assert!(host.engine().copy_out(&id, path, true).is_err(), "{path}");
    }
    for directory in ["/host/absolute", "/host/relative"] {
        assert!(
            host.engine().copy_in(&id, directory, pack(&[("planted", "x")]).as_slice(), &CopyIn::default()).is_err()
        );
    }
    for archive in [
        pack(&[("../planted", "x")]),
        pack(&[("a/../../planted", "x")]),
        // A link first, then through it.
        pack(&[("way", &format!("->{}", outside.display())), ("way/planted", "x")]),
        pack(&[("secret", "->/etc/passwd"), ("absolute/planted", "x")]),
    ] {
        let _ = host.engine().copy_in(&id, "/host", archive.as_slice(), &CopyIn::default());
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "of the host");
    assert!(!host.directory.path().join("planted").exists());
}

#[test]
fn links_exchanged_during_a_copy_lead_nowhere() {
    needs_root!();
    let host = Host::new();
    let outside = host.directory.path().join("outside");
    std::fs::create_dir_all(outside.join("deep")).unwrap();
    std::fs::write(outside.join("deep/file"), "of the host").unwrap();
    let (config, inside) = host.told("echo up; sleep 1000");
    let id = host.start(config);
    eventually("it is up", || host.output(&id) == "up\n");
    std::fs::create_dir_all(inside.join("way/deep")).unwrap();
    std::fs::write(inside.join("way/deep/file"), "of the container").unwrap();
    symlink(&outside, inside.join("bad")).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let (stop, place) = (Arc::clone(&over), inside.clone());
    let attacker = std::thread::spawn(move || {
        let mut rounds = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            nix::fcntl::renameat2(
                nix::fcntl::AT_FDCWD,
                &place.join("way"),
                nix::fcntl::AT_FDCWD,
                &place.join("bad"),
                nix::fcntl::RenameFlags::RENAME_EXCHANGE,
            )
            .unwrap();
            rounds += 1;
        }
        rounds
    });
    let (mut read, mut wrote) = (0, 0);
    for round in 0..1500 {
        if let Ok(out) = host.engine().copy_out(&id, "/host/way/deep/file", true) {
            let found = list(out);
            assert_eq!(found[0].1, "of the container");
            read += 1;
        }
        let archive = pack(&[("deep/", ""), ("deep/planted", &round.to_string())]);
        wrote += u32::from(host.engine().copy_in(&id, "/host/way", archive.as_slice(), &CopyIn::default()).is_ok());
    }
    over.store(true, Ordering::Relaxed);
    let rounds = attacker.join().unwrap();
    println!("{read} reads and {wrote} writes got through {rounds} exchanges");
    assert!(read > 0 && wrote > 0);
    assert!(!outside.join("deep/planted").exists());
    assert_eq!(std::fs::read_to_string(outside.join("deep/file")).unwrap(), "of the host");
}
