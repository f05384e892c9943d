//! Ids of their own for containers: allotted, kept, given back.

use std::os::unix::fs::MetadataExt;

use orch_engine::chain;
use orch_engine::config::{ContainerConfig, ContainerId, IdRange, InjectedFile, Mount, MountKind, UserNamespace};
use orch_engine::engine::ExecOptions;

use crate::needs_root;
use crate::support::{Host, PATIENCE, eventually};

fn auto(host: &Host, script: &str) -> ContainerConfig {
    ContainerConfig { user_namespace: UserNamespace::Auto, ..host.container(&["/bin/sh", "-c", script]) }
}

fn shared(target: &str) -> Mount {
    let kind = MountKind::Volume { name: "shared".to_owned(), nocopy: false, subpath: String::new() };
    Mount { target: target.to_owned(), kind, read_only: false }
}

fn ids(host: &Host, id: &ContainerId) -> IdRange {
    host.engine().inspect(id).unwrap().config.user_namespace.ids().expect("ids were allotted")
}

/// What the kernel maps for a container's first process.
fn mapped(host: &Host, id: &ContainerId) -> Vec<u32> {
    let map = std::fs::read_to_string(format!("/proc/{}/uid_map", host.state(id).pid)).unwrap();
    map.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn no_two_containers_have_an_id_in_common_and_ids_outlive_the_agent() {
    needs_root!();
    let mut host = Host::new();
    let first = host.start(auto(&host, "sleep 1000"));
    let second = host.start(auto(&host, "sleep 1000"));
    let (one, two) = (ids(&host, &first), ids(&host, &second));
    assert!(one.first.abs_diff(two.first) >= IdRange::LENGTH, "{one:?} {two:?}");
    assert_eq!(mapped(&host, &first), [0, one.first, IdRange::LENGTH]);
    assert_eq!(mapped(&host, &second), [0, two.first, IdRange::LENGTH]);
    // The agent is another one; a stopped container keeps its ids too.
    host.engine().stop(&first, None, Some(0)).unwrap();
    host.close();
    host.open();
    assert_eq!((ids(&host, &first), ids(&host, &second)), (one, two));
    let third = host.start(auto(&host, "sleep 1000"));
    assert!(![one, two].contains(&ids(&host, &third)));
    host.engine().start(&first, None).unwrap();
    assert_eq!(mapped(&host, &first)[1], one.first);
    // Removed, its ids are free.
    host.engine().remove(&first, true, true).unwrap();
    let fourth = host.start(auto(&host, "sleep 1000"));
    assert_eq!(ids(&host, &fourth), one);
    let taken = ContainerConfig { user_namespace: UserNamespace::Own(two), ..auto(&host, "true") };
    assert!(chain(&host.engine().create(taken).unwrap_err()).contains("are those of container"));
}

#[test]
fn volumes_secrets_and_generated_files_are_those_of_the_ids_inside() {
    needs_root!();
    let host = Host::new();
    let script = "cat /run/key; stat -c %u:%g /run/key /etc/hosts /etc/hostname /data; echo mine > /data/file; chmod 600 /data/file; echo '1.2.3.4 more' >> /etc/hosts";
    let mut writer = auto(&host, script);
    writer.mounts = vec![shared("/data")];
    writer.files = vec![InjectedFile {
        target: "/run/key".to_owned(),
        content: b"secret\n".to_vec(),
        digest: "d".to_owned(),
        uid: 1000,
        gid: 1000,
        mode: 0o400,
        secret: true,
    }];
    let (state, output) = host.run(writer);
    assert_eq!((state.exit_code, output.as_str()), (Some(0), "secret\n1000:1000\n0:0\n0:0\n0:0\n"));
    for namespace in [UserNamespace::Auto, UserNamespace::Host] {
        let mut reader = auto(&host, "cat /data/file; stat -c %u /data/file; touch /data/file");
        reader.user_namespace = namespace;
        reader.mounts = vec![shared("/data")];
        let (state, output) = host.run(reader);
        assert_eq!((state.exit_code, output.as_str()), (Some(0), "mine\n0\n"), "{namespace:?}");
    }
}

#[test]
fn its_own_layer_holds_the_ids_inside_and_it_starts_again() {
    needs_root!();
    let host = Host::new();
    let id = host.start(auto(&host, "echo run >> /root/runs; wc -l < /root/runs; stat -c %u /root/runs"));
    host.wait(&id);
    let written = host.engine().log_directory(&id).unwrap().join("upper/root/runs");
    assert_eq!(written.metadata().unwrap().uid(), 0);
    host.engine().start(&id, None).unwrap();
    host.wait(&id);
    assert_eq!(host.output(&id), "1\n0\n2\n0\n");
}

#[test]
fn a_killed_shim_takes_its_containers_along_and_they_start_again_with_their_ids() {
    needs_root!();
    let host = Host::new();
    let id = host.start(auto(&host, "sleep 1000"));
    let own = ids(&host, &id);
    for shim in host.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    eventually("the container is lost", || !host.state(&id).phase.is_alive());
    host.engine().start(&id, None).unwrap();
    assert_eq!((ids(&host, &id), mapped(&host, &id)[1]), (own, own.first));
}

#[test]
fn commands_inside_have_the_containers_ids() {
    needs_root!();
    let host = Host::new();
    let id = host.start(auto(&host, "sleep 1000"));
    let mut options = ExecOptions::default();
    options.process.args = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    options.process.user = "web".to_owned();
    let session = host.engine().exec(&id, &options).unwrap();
    let owner = std::fs::metadata(format!("/proc/{}", session.pid)).unwrap().uid();
    assert_eq!(owner, ids(&host, &id).first + 1000);
    let shown: Vec<_> = host.engine().top(&id).unwrap().iter().map(|process| process.uid).collect();
    assert!(shown.contains(&owner), "{shown:?}");
    session.signal(libc::SIGTERM, false).unwrap();
    assert_eq!(session.wait(Some(PATIENCE)), Some(143));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    needs_root!();
    let host = Host::new();
    let config = ContainerConfig { privileged: true, ..auto(&host, "true") };
    let id = config.id.clone();
    let refusal = chain(&host.engine().create(config).unwrap_err());
    assert!(refusal.contains("`auto` does not go together with `privileged`"), "{refusal}");
    assert!(host.engine().inspect(&id).is_err());
}
