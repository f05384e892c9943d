//! Volumes: filled from the image once, kept, shared, removed.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use orch_engine::config::{ContainerConfig, Mount, MountKind};
use orch_engine::engine::EngineError;
use orch_engine::image::ImportOptions;

use crate::needs_root;
use crate::support::{Host, image, random_hex};
use orch_engine::chain;

fn volume(name: &str, target: &str) -> Mount {
    let kind = MountKind::Volume { name: name.to_owned(), nocopy: false, subpath: String::new() };
    Mount { target: target.to_owned(), kind, read_only: false }
}

fn import(host: &Host, more: &[(&str, &str)]) -> String {
    let options = ImportOptions { reference: Some(format!("i{}", &random_hex()[..8])), ..ImportOptions::default() };
    host.engine().images().import(image(more).as_slice(), &options).unwrap().id.to_string()
}

fn with_volume(host: &Host, image_id: &str, name: &str, target: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        image_id: image_id.to_owned(),
        mounts: vec![volume(name, target)],
        ..host.container(&["/bin/sh", "-c", script])
    }
}

#[test]
fn an_empty_volume_gets_what_the_image_has_and_keeps_what_is_written() {
    needs_root!();
    let host = Host::new();
    let image_id =
        import(&host, &[("var/lib/db/one", "1\n"), ("var/lib/db/sub/two", "2\n"), ("var/lib/db/link", "->sub/two")]);
    let script =
        "chown 1000:1000 /var/lib/db 2>/dev/null; cat /var/lib/db/one /var/lib/db/link; echo new > /var/lib/db/one";
    let (_, output) = host.run(with_volume(&host, &image_id, "db", "/var/lib/db", script));
    assert_eq!(output, "1\n2\n");
    // Not empty any more: nothing is copied over what was written.
    let (_, output) =
        host.run(with_volume(&host, &image_id, "db", "/var/lib/db", "cat /var/lib/db/one; rm -r /var/lib/db/sub"));
    assert_eq!(output, "new\n");
    let data = host.engine().volumes().inspect("db").unwrap().data;
    assert!(data.join("link").symlink_metadata().unwrap().is_symlink());
    assert!(!data.join("sub").exists());
    // Without copying.
    let mut config = with_volume(&host, &image_id, "raw", "/var/lib/db", "ls /var/lib/db");
    config.mounts[0].kind = MountKind::Volume { name: "raw".to_owned(), nocopy: true, subpath: String::new() };
    assert_eq!(host.run(config).1, "");
    for name in ["db", "raw"] {
        assert!(
            matches!(host.engine().remove_volume(name), Err(EngineError::Conflict(_))),
            "a container still mounts it"
        );
    }
    for info in host.engine().list() {
        host.engine().remove(&info.config.id, true, true).unwrap();
    }
    // Named volumes stay until they are removed by name.
    assert_eq!(host.engine().volumes().list().unwrap().len(), 2);
    host.engine().remove_volume("db").unwrap();
    assert!(matches!(host.engine().remove_volume("db"), Err(EngineError::NotFound { .. })));
}

#[test]
fn owners_modes_and_links_are_copied() {
    needs_root!();
    let host = Host::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, mode, content: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        match link {
            Some(link) => tar.append_link(&mut header, name, link).unwrap(),
            None => tar.append_data(&mut header, name, content).unwrap(),
        }
    };
    add(tar::EntryType::Directory, "data/", 0o2750, b"", None);
    add(tar::EntryType::Regular, "data/secret", 0o640, b"hidden", None);
    add(tar::EntryType::Link, "data/again", 0o640, b"", Some("data/secret"));
    add(tar::EntryType::Fifo, "data/pipe", 0o622, b"", None);
    let options = ImportOptions::default();
    let layer = tar.into_inner().unwrap();
    let image_id = host.engine().images().import(layer.as_slice(), &options).unwrap().id.to_string();
    let config = with_volume(&host, &image_id, "v", "/data", "true");
    let id = config.id.clone();
    host.engine().create(config).unwrap();
    // There is no shell in this image: the volume is filled, then the start fails.
    assert!(matches!(host.engine().start(&id, None), Err(EngineError::NotStarted { code: 127, .. })));
    let data = host.engine().volumes().inspect("v").unwrap().data;
    let meta = |name: &str| data.join(name).symlink_metadata().unwrap();
    let top = data.metadata().unwrap();
    assert_eq!((top.uid(), top.gid(), top.permissions().mode() & 0o7777), (1000, 1001, 0o2750));
    let secret = meta("secret");
    assert_eq!(
        (secret.uid(), secret.gid(), secret.permissions().mode() & 0o7777, secret.mtime()),
        (1000, 1001, 0o640, 1_000_000_000)
    );
    assert_eq!(meta("again").ino(), secret.ino());
    assert_eq!(meta("pipe").mode() & 0o170_777, 0o010_622);
}

#[test]
fn an_image_cannot_have_the_hosts_files_copied_into_a_volume() {
    needs_root!();
    let host = Host::new();
    // /srv leads out of the image, by a long way up and absolutely; inside it means the image's own /etc.
    for (link, target) in [("->../../../../../../etc", "/srv"), ("->/etc", "/srv"), ("->/", "/srv/etc")] {
        let image_id = import(&host, &[("srv", link), ("etc/marker", "of the image\n")]);
        let name = format!("v{}", &random_hex()[..8]);
        let config = with_volume(&host, &image_id, &name, target, "true");
        let id = config.id.clone();
        host.engine().create(config).unwrap();
        // Whether the mount itself is refused or not: what counts is what was copied.
        let _ = host.engine().start(&id, None);
        let data = host.engine().volumes().inspect(&name).unwrap().data;
        assert!(!data.join("shadow").exists(), "{link}");
        assert_eq!(std::fs::read_to_string(data.join("marker")).unwrap(), "of the image\n", "{link}");
        assert_eq!(std::fs::read_to_string(data.join("group")).unwrap().lines().count(), 2, "{link}");
    }
}

#[test]
fn a_volume_over_a_file_is_refused() {
    needs_root!();
    let host = Host::new();
    let image_id = import(&host, &[("srv/file", "x")]);
    let config = with_volume(&host, &image_id, "v", "/srv/file", "true");
    let id = config.id.clone();
    host.engine().create(config).unwrap();
    let error = host.engine().start(&id, None).unwrap_err();
    assert!(chain(&error).contains("over the existing file"), "{}", chain(&error));
}

#[test]
fn anonymous_volumes_go_with_their_container() {
    needs_root!();
    let host = Host::new();
    for (with_volumes, left) in [(true, 0), (false, 1)] {
        let name = random_hex();
        let id = host.start(with_volume(&host, &host.image_id, &name, "/data", "echo x > /data/x"));
        host.wait(&id);
        host.engine().remove(&id, false, with_volumes).unwrap();
        assert_eq!(host.engine().volumes().list().unwrap().len(), left);
    }
    host.engine().volumes().create("kept", [("owner".to_owned(), "me".to_owned())].into()).unwrap();
    let pruned = host.engine().prune_volumes(false).unwrap();
    assert_eq!((pruned.volumes.len(), pruned.bytes > 0), (1, true));
    let left = host.engine().volumes().list().unwrap();
    assert_eq!((left.len(), left[0].name.as_str(), left[0].labels["owner"].as_str()), (1, "kept", "me"));
    assert_eq!(host.engine().prune_volumes(true).unwrap().volumes, ["kept"]);
}

#[test]
fn a_volumes_name_cannot_leave_its_directory() {
    needs_root!();
    let host = Host::new();
    for bad in ["..", "../x", "a/b", "", ".x"] {
        assert!(host.engine().volumes().create(bad, Default::default()).is_err(), "{bad:?}");
        let config = with_volume(&host, &host.image_id, bad, "/data", "true");
        assert!(host.engine().create(config).is_err(), "{bad:?}");
    }
}
