//! Containers for the tests: a root file system of busybox in a temporary directory, started by a real launcher, and gone afterwards
//! whatever happened.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use orch_engine::cgroup::{Cgroup, Layout};
use orch_engine::chain;
use orch_engine::config::{ContainerConfig, ContainerId, ProcessConfig};
use orch_engine::runtime::{
    ExecConfig, Identity, LaunchPlan, Launched, Launcher, PrepareContext, RunningContainer, Stdio, cgroup_path,
    prepare, prepare_exec,
};

/// How long anything may take before a test says that it hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

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

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One container's directories and configuration.
pub struct Fixture {
    pub root: tempfile::TempDir,
    pub config: ContainerConfig,
    pub context: PrepareContext,
    pub launcher: Launcher,
}

impl Fixture {
    /// A container that runs `args` in an image of busybox.
    pub fn new(args: &[&str]) -> Self {
        let root = tempfile::Builder::new().prefix("orch-runtime-").tempdir().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("test-runtime-{}-{number}", std::process::id());
        for name in ["image", "upper", "work", "mountpoint", "files", "volume"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        busybox_image(&root.path().join("image"));
        fs::write(root.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(root.path().join("resolv.conf"), "nameserver 127.0.0.11\n").unwrap();
        fs::write(root.path().join("hostname"), "box\n").unwrap();
        let path = |name: &str| root.path().join(name);
        let context = PrepareContext {
            instance,
            lower: vec![path("image")],
            init_layer: None,
            upper: path("upper"),
            work: path("work"),
            mountpoint: path("mountpoint"),
            hosts: Some(path("hosts")),
            resolv_conf: Some(path("resolv.conf")),
            hostname: Some(path("hostname")),
            files: Some(path("files")),
            volumes: BTreeMap::from([("data".to_owned(), path("volume"))]),
            containers: BTreeMap::new(),
            layout: Layout::detect().unwrap(),
        };
        let config = config(&format!("{:08x}{number:056x}", std::process::id()), args);
        Self { root, config, context, launcher: Launcher::unsealed().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn image(&self) -> PathBuf {
        self.path("image")
    }

    pub fn plan(&self) -> LaunchPlan {
        let plan = prepare(&self.config, &self.context).unwrap();
        // As in the engine, where the plan travels to the shim.
        let bytes = postcard::to_stdvec(&plan).unwrap();
        let arrived: LaunchPlan = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(plan, arrived);
        arrived
    }

    /// Starts it with pipes; panics with the whole error when it does not start.
    pub fn start(&mut self) -> Running {
        self.try_start().unwrap_or_else(|error| panic!("the container does not start: {error}"))
    }

    /// Starts it with pipes; the error is the whole chain.
    pub fn try_start(&mut self) -> Result<Running, Refusal> {
        let plan =
            prepare(&self.config, &self.context).map_err(|error| Refusal { text: chain(&error), exit_code: 125 })?;
        let (stdio, ends) = Stdio::pipes(false).unwrap();
        let launched = self
            .launcher
            .launch(&plan, stdio)
            .map_err(|error| Refusal { text: chain(&error), exit_code: error.exit_code() })?;
        Ok(Running { launched: Some(launched), stdout: Some(ends.stdout), stderr: Some(ends.stderr), owner: true })
    }

    /// Starts it and waits for its end.
    pub fn run(&mut self) -> Outcome {
        self.start().wait()
    }

    /// What a container shares with another test's process.
    pub fn running(&self, running: &Running) -> RunningContainer {
        RunningContainer {
            init: running.identity(),
            config: self.config.clone(),
            instance: self.context.instance.clone(),
            layout: self.context.layout.clone(),
        }
    }

    /// Runs a command in a running container.
    pub fn exec(&mut self, running: &Running, args: &[&str]) -> Result<Outcome, Refusal> {
        let process = ProcessConfig { args: strings(args), ..ProcessConfig::default() };
        self.exec_process(running, ExecConfig { process, privileged: false })
    }

    pub fn exec_process(&mut self, running: &Running, exec: ExecConfig) -> Result<Outcome, Refusal> {
        let plan = prepare_exec(&exec, &self.running(running))
            .map_err(|error| Refusal { text: chain(&error), exit_code: 125 })?;
        let (stdio, ends) = Stdio::pipes(false).unwrap();
        let launched = self
            .launcher
            .launch_exec(&plan, stdio)
            .map_err(|error| Refusal { text: chain(&error), exit_code: error.exit_code() })?;
        Ok(Running { launched: Some(launched), stdout: Some(ends.stdout), stderr: Some(ends.stderr), owner: false }
            .wait())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let path = cgroup_path(&self.context.instance, &self.config);
        let group = Cgroup::open(&self.context.layout, &path).unwrap();
        if group.exists() {
            let _ = group.kill();
            let _ = group.remove();
        }
    }
}

/// Why a container did not start.
#[derive(Debug)]
pub struct Refusal {
    pub text: String,
    pub exit_code: i32,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A process that was started; killed with its group when dropped.
pub struct Running {
    launched: Option<Launched>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// Whether it is the container's first process.
    owner: bool,
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: WaitStatus,
    pub stdout: String,
    pub stderr: String,
    pub oom_kills: u64,
}

impl Outcome {
    /// The exit code as a shell shows it.
    pub fn code(&self) -> i32 {
        match self.status {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            other => panic!("not an end: {other:?}"),
        }
    }

    /// Its output, given that it succeeded.
    pub fn success(&self) -> &str {
        assert_eq!(self.code(), 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout.trim_end()
    }
}

impl Running {
    pub fn adopt(launched: Launched) -> Self {
        Self { launched: Some(launched), stdout: None, stderr: None, owner: true }
    }

    pub fn launched(&self) -> &Launched {
        self.launched.as_ref().unwrap()
    }

    pub fn identity(&self) -> Identity {
        self.launched().identity()
    }

    /// The terminal's master.
    pub fn take_terminal(&mut self) -> OwnedFd {
        self.launched.as_mut().unwrap().terminal.take().unwrap()
    }

    /// Reads its output until a line is there.
    pub fn read_until(&mut self, line: &str) -> String {
        let mut output = fs::File::from(self.stdout.take().unwrap());
        let mut text = String::new();
        let mut byte = [0];
        while !text.lines().any(|seen| seen == line) || !text.ends_with('\n') {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "the output ended before {line:?}: {text}");
            text.push(char::from(byte[0]));
        }
        self.stdout = Some(output.into());
        text
    }

    /// Reads until its output ends and it is gone; the group is removed.
    pub fn wait(mut self) -> Outcome {
        let stderr = self.stderr.take().map(|fd| std::thread::spawn(move || drain(fd)));
        let stdout = self.stdout.take().map(drain).unwrap_or_default();
        let stderr = stderr.map(|thread| thread.join().unwrap()).unwrap_or_default();
        let launched = self.launched.take().unwrap();
        let status = waitpid(Pid::from_raw(launched.pid), None).unwrap();
        let oom_kills = launched.cgroup.oom_kills();
        if self.owner {
            launched.cgroup.kill().unwrap();
            launched.cgroup.remove().unwrap();
            assert!(!launched.cgroup.exists());
        }
        Outcome { status, stdout, stderr, oom_kills }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(launched) = self.launched.take() {
            if self.owner {
                let _ = launched.cgroup.kill();
            } else {
                let _ = nix::sys::signal::kill(Pid::from_raw(launched.pid), nix::sys::signal::Signal::SIGKILL);
            }
            let _ = waitpid(Pid::from_raw(launched.pid), None);
            if self.owner {
                let _ = launched.cgroup.remove();
            }
        }
    }
}

fn drain(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    fs::File::from(fd).read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Waits for a condition, failing loudly when it never comes.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a test in a mount namespace of its own, in which mounts propagate as on a host: what escapes from a container shows in
/// [`mounts`], and what others do on the host does not.
pub fn in_own_mount_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS | nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        for propagation in [nix::mount::MsFlags::MS_PRIVATE, nix::mount::MsFlags::MS_SHARED] {
            let flags = propagation | nix::mount::MsFlags::MS_REC;
            nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        }
        test();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The calling thread's mounts.
pub fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// What the calling thread has mounted beside what it had. Less is no matter: when the host removes a mount point, the mounts on it go in
/// every namespace.
pub fn mounts_beside(before: &str) -> Vec<String> {
    mounts().lines().filter(|line| !before.lines().any(|known| known == *line)).map(str::to_owned).collect()
}

/// A root file system with busybox and nothing else but users.
pub fn busybox_image(directory: &Path) {
    for name in ["bin", "etc", "tmp", "root", "proc", "dev", "sys"] {
        fs::create_dir_all(directory.join(name)).unwrap();
    }
    // A link where possible: the image is only read.
    if fs::hard_link("/bin/busybox", directory.join("bin/busybox")).is_err() {
        fs::copy("/bin/busybox", directory.join("bin/busybox")).unwrap();
    }
    for applet in [
        "sh", "true", "false", "cat", "ls", "id", "env", "sleep", "mount", "echo", "stat", "readlink", "mknod",
        "hostname", "kill", "test", "head", "dd", "pwd", "touch", "mkdir", "ps", "tty", "stty", "grep", "wc", "chmod",
        "ln", "rm", "ip", "unshare", "seq", "yes", "sort", "cut", "sync",
    ] {
        symlink("busybox", directory.join("bin").join(applet)).unwrap();
    }
    fs::write(directory.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n")
        .unwrap();
    fs::write(directory.join("etc/group"), "root:x:0:\nweb:x:1000:\nlogs:x:2000:web,other\n").unwrap();
}

/// A configuration with nothing but a command.
pub fn config(id: &str, args: &[&str]) -> ContainerConfig {
    ContainerConfig {
        group: "group".to_owned(),
        image: "busybox".to_owned(),
        hostname: "box".to_owned(),
        ..ContainerConfig::new(ContainerId(id.to_owned()), "test", args)
    }
}
