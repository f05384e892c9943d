//! A host of one test: its own data and run directory, its own instance, and nothing left of it afterwards.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use orch_engine::chain;
use orch_engine::config::{ContainerConfig, ContainerId, Mount, MountKind};
use orch_engine::container::{ContainerState, Phase};
use orch_engine::engine::{DataDirError, Engine, EngineConfig, EngineError};
use orch_engine::image::ImportOptions;
use orch_engine::logs::Stream;
use orch_engine::logs::reader::LogQuery;

/// How long anything may take before a test says that it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Ends a test early, saying why, where it cannot run.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/bin/busybox").exists() {
            println!("skipped: needs root and /bin/busybox (busybox-static)");
            return;
        }
    };
}

/// The program with the `shim` command: built with the tests, beside them.
pub(crate) fn enginectl() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join("examples/enginectl");
    assert!(
        path.exists(),
        "{} is missing: run cargo build -p orch-engine --example enginectl (cargo test -p orch-engine does)",
        path.display()
    );
    path
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct Host {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) config: EngineConfig,
    engine: Option<Engine>,
    pub(crate) image_id: String,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::in_directory(tempfile::Builder::new().prefix("orch-engine-").tempdir().unwrap())
    }

    pub(crate) fn in_directory(directory: tempfile::TempDir) -> Self {
        let name = directory.path().file_name().unwrap().to_str().unwrap().to_owned();
        let config = EngineConfig {
            data_dir: directory.path().join("data"),
            run_dir: directory.path().join("run"),
            instance: format!("test-{}", name.replace('.', "")),
            shim_command: vec![enginectl().into(), "shim".into()],
            resident_groups: Vec::new(),
        };
        let engine = Engine::open(config.clone()).unwrap();
        let options = ImportOptions { reference: Some("busybox".to_owned()), ..ImportOptions::default() };
        let image = engine.images().import(image(&[]).as_slice(), &options).unwrap();
        let image_id = image.id.to_string();
        Self { directory, config, engine: Some(engine), image_id }
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// The agent is gone; what it started goes on.
    pub(crate) fn close(&mut self) {
        self.engine = None;
    }

    pub(crate) fn open(&mut self) -> &Engine {
        // A thread of the closed one may still be telling an end.
        eventually("the engine opens", || match Engine::open(self.config.clone()) {
            Ok(engine) => {
                self.engine = Some(engine);
                true
            }
            Err(EngineError::DataDir(DataDirError::InUse { .. })) => false,
            Err(e) => panic!("the engine does not open: {}", chain(&e)),
        });
        self.engine()
    }

    /// The configuration of a container that runs `args`.
    pub(crate) fn container(&self, args: &[&str]) -> ContainerConfig {
        let id = ContainerId(random_hex());
        ContainerConfig {
            group: "stack".to_owned(),
            image: "busybox".to_owned(),
            image_id: self.image_id.clone(),
            ..ContainerConfig::new(id.clone(), format!("c-{}", id.short()), args)
        }
    }

    /// A container that runs a script with a directory of the host at /host: the directory is how a test tells it something.
    pub(crate) fn told(&self, script: &str) -> (ContainerConfig, PathBuf) {
        let mut config = self.container(&["/bin/sh", "-c", script]);
        let directory = self.directory.path().join(format!("told-{}", config.id.short()));
        fs::create_dir(&directory).unwrap();
        let kind = MountKind::Bind {
            source: directory.clone(),
            create_host_path: false,
            propagation: String::new(),
            recursive: true,
        };
        config.mounts.push(Mount { target: "/host".to_owned(), kind, read_only: false });
        (config, directory)
    }

    /// Makes and starts a container.
    pub(crate) fn start(&self, config: ContainerConfig) -> ContainerId {
        let id = config.id.clone();
        self.engine().create(config).unwrap();
        self.engine().start(&id, None).unwrap_or_else(|e| panic!("the container does not start: {}", chain(&e)));
        id
    }

    /// Makes and starts a container of these arguments.
    pub(crate) fn start_args(&self, args: &[&str]) -> ContainerId {
        self.start(self.container(args))
    }

    /// Runs a container to its end: its state and its output, both streams.
    pub(crate) fn run(&self, config: ContainerConfig) -> (ContainerState, String) {
        let id = self.start(config);
        let state = self.wait(&id);
        (state, self.output(&id))
    }

    pub(crate) fn wait(&self, id: &ContainerId) -> ContainerState {
        let state = self.engine().wait(id, Some(PATIENCE)).unwrap();
        assert_eq!(state.phase, Phase::Exited, "the container does not end");
        state
    }

    pub(crate) fn state(&self, id: &ContainerId) -> ContainerState {
        self.engine().inspect(id).unwrap().state
    }

    /// Everything in the log, pieces put together.
    pub(crate) fn output(&self, id: &ContainerId) -> String {
        self.engine().logs(id, LogQuery::default()).unwrap().map(|line| line.unwrap().text).collect()
    }

    pub(crate) fn stream(&self, id: &ContainerId, stream: Stream) -> String {
        let query = LogQuery { stream: Some(stream), ..LogQuery::default() };
        self.engine().logs(id, query).unwrap().map(|line| line.unwrap().text).collect()
    }

    /// Pids of this host's shims.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let mark = self.directory.path().join("run/shim").to_str().unwrap().to_owned();
        processes().into_iter().filter(|(_, command)| command.contains(&mark)).map(|(pid, _)| pid).collect()
    }

    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self.shims().iter().map(|pid| format!("shim {pid}")).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mark = self.directory.path().to_str().unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(mark)).map(|line| format!("mount {line}")));
        let group = format!("orch-{}", self.config.instance);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for path in [hierarchy.path().join(&group), PathBuf::from("/sys/fs/cgroup").join(&group)] {
                if path.exists() {
                    left.push(format!("cgroup {}", path.display()));
                }
            }
        }
        for kind in ["run/shim", "run/containers", "data/containers", "run/files"] {
            let entries = fs::read_dir(self.directory.path().join(kind)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        left
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.engine.is_none() {
            self.engine = Engine::open(self.config.clone()).ok();
        }
        let Some(engine) = &self.engine else { return };
        for info in engine.list() {
            if let Err(e) = engine.remove(&info.config.id, true, true) {
                println!("removing {}: {}", info.config.name, chain(&e));
            }
        }
        engine.retire();
        // A shim that has been told to go is gone a moment later.
        let deadline = Instant::now() + PATIENCE;
        let mut left = self.leftovers();
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            left = self.leftovers();
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

pub(crate) fn random_hex() -> String {
    let mut bytes = [0_u8; 32];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// (pid, command line) of every process that is not a zombie.
pub(crate) fn processes() -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (!line.is_empty()).then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}

/// When a process was started, in clock ticks; `None` when it is gone.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A tar of a root file system with busybox and `more`: (path, content) of files, content of links after `->`.
pub(crate) fn image(more: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(1);
        header
    };
    for (name, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("tmp/", 0o1777),
        ("root/", 0o700),
        ("proc/", 0o755),
        ("dev/", 0o755),
        ("sys/", 0o755),
    ] {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), name, std::io::empty()).unwrap();
    }
    let busybox = fs::read("/bin/busybox").unwrap();
    let mut program = header(tar::EntryType::Regular, 0o755, busybox.len() as u64);
    tar.append_data(&mut program, "bin/busybox", busybox.as_slice()).unwrap();
    for applet in [
        "sh", "true", "false", "cat", "ls", "id", "env", "sleep", "echo", "stat", "readlink", "mknod", "hostname",
        "kill", "test", "head", "tail", "dd", "pwd", "touch", "mkdir", "ps", "tty", "stty", "grep", "wc", "chmod",
        "ln", "rm", "mv", "seq", "yes", "sort", "cut", "sync", "printf", "usleep", "awk", "df", "mkfifo", "od",
        "setsid",
    ] {
        let mut link = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut link, format!("bin/{applet}"), "busybox").unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n";
    for (path, content) in [("etc/passwd", passwd), ("etc/group", "root:x:0:\nweb:x:1000:\n")].iter().chain(more) {
        if let Some(target) = content.strip_prefix("->") {
            tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target).unwrap();
        } else {
            let mut file = header(tar::EntryType::Regular, 0o644, content.len() as u64);
            tar.append_data(&mut file, path, content.as_bytes()).unwrap();
        }
    }
    tar.into_inner().unwrap()
}
