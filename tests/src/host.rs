//! A machine with `orch` on it: what a scenario is told with.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::http;
use crate::image;
use crate::machine::{Machine, Place};
use crate::output::Output;
use crate::process::Identity;
use crate::terminal::Terminal;
use crate::traces::{Traces, tree};
use crate::wait::{PATIENCE, eventually};

/// The run directory on the machine, whose /run is its own.
pub const RUN: &str = "/run/orch";

/// No command of a scenario takes so long: a bound against hanging.
const LONGEST: Duration = Duration::from_secs(60);

/// A machine of its own with `orch` on it. All that runs there ends with it.
#[derive(Debug)]
pub struct Host {
    machine: Machine,
    instance: String,
    temporary: tempfile::TempDir,
    before: Traces,
    program: Mutex<Option<PathBuf>>,
    /// By how many seconds the clock is off that its orch goes by, from the next start of the agent on.
    pub clock_off: AtomicI64,
    /// How long traces may take to vanish after the command that removes them: the kernel takes networks down behind its back.
    pub settles: Duration,
}

impl Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

/// The binary under test.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    let given = std::env::var_os("ORCH").filter(|v| !v.is_empty()).map(PathBuf::from);
    let beside = || {
        // …/debug/deps/scenario-hash: cargo puts binaries of the same build two folders up.
        let test = std::env::current_exe().ok()?;
        let target = test.parent()?.parent()?;
        let release = target.parent()?.join("release/orch");
        [release, target.join("orch")].into_iter().find(|p| p.exists())
    };
    let binary = given
        .or_else(beside)
        .expect("no orch binary: build it by `cargo build --release -p orch`, or name it by $ORCH");
    binary.canonicalize().expect("$ORCH names a file")
}

impl Host {
    /// An empty machine: no agent, no image.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let machine = Machine::new().unwrap_or_else(|e| panic!("no machine for this scenario: {e:#}"));
        // No such name is part of another.
        let instance = format!("t{}n{}z", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary =
            tempfile::Builder::new().prefix("orch-test-").tempdir().expect("a temporary folder can be made");
        for folder in ["work", "data"] {
            std::fs::create_dir(temporary.path().join(folder)).expect("a folder can be made");
        }
        let before =
            Traces::of(&machine, &instance).unwrap_or_else(|e| panic!("the machine cannot be looked at: {e:#}"));
        let settles = Duration::from_secs(5);
        let program = Mutex::default();
        Self { machine, instance, temporary, before, program, clock_off: AtomicI64::new(0), settles }
    }

    /// A machine whose orch has the image `busybox`; the first command starts the agent.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[track_caller]
    pub fn with_busybox() -> Self {
        let host = Self::new();
        host.load("busybox");
        host
    }

    /// Loads an image of the examples.
    #[track_caller]
    pub fn load(&self, name: &str) {
        self.orch(&["image", "load", "-i", &image::archive(name).to_string_lossy()]).ok();
    }

    /// The folder that commands run in; its `stack.yaml` is the stack file.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.temporary.path().join("work")
    }

    /// Where orch keeps its state.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.temporary.path().join("data")
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.temporary.path().join("agent.log")
    }

    /// The name of this orch among others on the kernel.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.program.lock().expect("nobody panics with the path").clone().unwrap_or_else(binary)
    }

    /// Starts agents from this program from now on, or from the binary under test again.
    ///
    /// # Panics
    /// Never: nobody panics with the path.
    pub fn set_program(&self, program: Option<&Path>) {
        *self.program.lock().expect("nobody panics with the path") = program.map(Path::to_path_buf);
    }

    /// Writes a file in the folder.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.folder().join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).expect("a folder can be made");
        }
        std::fs::write(path, text).expect("a file can be written");
    }

    /// Writes the stack file.
    pub fn stack(&self, text: &str) {
        self.write("stack.yaml", text);
    }

    /// Gives a command the environment of this host's orch and nothing else.
    pub fn prepare(&self, command: &mut Command) {
        command.env_clear().current_dir(self.folder());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.folder()).env("LANG", "C.UTF-8");
        command.env("ORCH_DATA_DIR", self.data()).env("ORCH_RUN_DIR", RUN).env("ORCH_INSTANCE", &self.instance);
        match self.clock_off.load(Ordering::Relaxed) {
            0 => {}
            off => drop(command.env("ORCH_CLOCK_OFFSET", off.to_string())),
        }
    }

    /// Does something on the machine. See [`Machine::inside`].
    ///
    /// # Panics
    /// When the machine is gone.
    #[track_caller]
    pub fn inside<T: Send>(&self, place: Place, act: impl FnOnce() -> T + Send) -> T {
        self.machine.inside(place, act).unwrap_or_else(|e| panic!("the machine cannot be entered: {e:#}"))
    }

    /// A program of this host on the machine, and what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn sh(&self, place: Place, script: &str) -> String {
        self.machine.run(place, "/bin/sh", &["-ec", script]).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// `orch arguments…`, to be told more.
    #[must_use]
    pub fn invoke(&self, arguments: &[&str]) -> Invocation<'_> {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Invocation { host: self, arguments, environment: Vec::new(), folder: self.folder(), stdin: Vec::new() }
    }

    /// Runs `orch arguments…` and waits for its end.
    #[track_caller]
    pub fn orch(&self, arguments: &[&str]) -> Output {
        self.invoke(arguments).run()
    }

    /// Starts `orch arguments…`.
    #[track_caller]
    #[must_use]
    pub fn start(&self, arguments: &[&str]) -> Running<'_> {
        self.invoke(arguments).start()
    }

    /// Starts `orch arguments…` at a terminal.
    #[track_caller]
    #[must_use]
    pub fn terminal(&self, arguments: &[&str]) -> Terminal {
        let program = binary();
        Terminal::start(&program.to_string_lossy(), arguments, |command| {
            self.prepare(command);
            command.env("TERM", "xterm");
            self.inside(Place::Host, || command.spawn().expect("setsid can be started"))
        })
    }

    /// `up -d --wait` of the stack file, which must succeed.
    #[track_caller]
    pub fn up(&self) {
        self.orch(&["up", "-d", "--wait", "--wait-timeout", "120"]).ok();
    }

    /// `down` of the stack file, which must succeed.
    #[track_caller]
    pub fn down(&self) {
        self.orch(&["down", "-t", "2"]).ok();
    }

    /// All names of all images.
    #[track_caller]
    #[must_use]
    pub fn images(&self) -> Vec<String> {
        let images = self.orch(&["image", "ls", "--format", "json"]).ok().json_lines();
        let names = images.iter().filter_map(|i| i["references"].as_array()).flatten();
        names.filter_map(|n| n.as_str().map(str::to_owned)).collect()
    }

    /// All containers of the stack, stopped ones and one-offs too, as `ps -a --format json` shows them.
    #[track_caller]
    #[must_use]
    pub fn ps(&self) -> Vec<Value> {
        self.orch(&["ps", "-a", "--format", "json"]).ok().json_lines()
    }

    /// The first replica of a service.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    #[must_use]
    pub fn container(&self, service: &str) -> Value {
        let all = self.ps();
        let found = all.iter().filter(|c| c["service"] == service).min_by_key(|c| c["slot"].as_u64());
        found.cloned().unwrap_or_else(|| panic!("no container of service {service} among {all:?}"))
    }

    /// The process of a container as `ps` shows it.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    #[must_use]
    pub fn process(&self, container: &Value) -> Identity {
        let pid = container["pid"].as_i64().and_then(|p| i32::try_from(p).ok());
        pid.and_then(|p| self.processes().identity(p)).unwrap_or_else(|| panic!("no process: {container}"))
    }

    /// The processes of all containers that run, by name.
    #[track_caller]
    #[must_use]
    pub fn running(&self) -> std::collections::BTreeMap<String, Identity> {
        let name = |c: &Value| c["name"].as_str().unwrap_or_default().to_owned();
        self.ps().iter().filter(|c| c["state"] == "running").map(|c| (name(c), self.process(c))).collect()
    }

    /// Waits until the first replica of a service is as `wanted` says, and returns it.
    #[track_caller]
    pub fn becomes(&self, service: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(PATIENCE, &format!("{service} is {what}"), || {
            let container = self.ps().into_iter().find(|c| c["service"] == service);
            match container {
                Some(container) if wanted(&container) => Ok(container),
                Some(container) => Err(container.to_string()),
                None => Err("it has no container".to_owned()),
            }
        })
    }

    /// `exec -T SERVICE sh -c SCRIPT`, and what it printed.
    #[track_caller]
    pub fn exec(&self, service: &str, script: &str) -> String {
        self.orch(&["exec", "-T", service, "sh", "-c", script]).ok().text().to_owned()
    }

    /// Fetches a page.
    ///
    /// # Errors
    /// When it does not come; says why.
    pub fn page(
        &self,
        from: Place,
        address: impl Into<IpAddr> + Send,
        port: u16,
        path: &str,
    ) -> Result<String, String> {
        let address = SocketAddr::new(address.into(), port);
        self.inside(from, || http::get(address, path))
    }

    /// Compares the machine with what it was before the scenario: first while the agent still runs (nothing of a stack may be left),
    /// then without it (nothing at all). Say `down` first, with `-v` where there are volumes.
    ///
    /// # Panics
    /// With everything that was left behind.
    #[track_caller]
    pub fn leaves_no_trace(self) {
        let agent = self.agent().map(|a| format!("{}: ", a.pid));
        // Hand-made containers share one network and one shim; these may stay as long as the agent, as a switch stays when its last
        // cable is out.
        let shared = agent.is_some() && self.orch(&["network", "ls", "-q"]).stdout.lines().any(|n| n == "bridge");
        self.compare("with the agent running", |kind, thing| match kind {
            "process" => {
                agent.as_ref().is_some_and(|a| thing.starts_with(a.as_str()))
                    || thing.contains("/engine/shim/containers@")
            }
            // The groups above those of hand-made containers stay with their shim.
            "control group" => thing.ends_with("/containers") || thing.ends_with(&self.instance),
            "mount" => thing == format!("{RUN}/netd/netns (tmpfs)"),
            "link" | "route" => shared && (thing.contains("orb-") || thing.contains(" table local ")),
            // The agent keeps its own frame as long as it runs: its group, its table, its socket. Elements are no frame.
            "packet filter" => shared || !thing.contains("elements"),
            _ => true,
        });
        // Before the agent ends: it empties its trash behind the back of whoever has thrown something away.
        self.state_is_empty();
        self.stop_agent();
        // What says how an agent ended, and the empty folders of its run directory.
        let kept = ["", "agent.log", "agent.lock", "engine/", "engine/containers/", "engine/root/", "engine/shim/"];
        self.compare("without an agent", |kind, thing| {
            kind == "file in /run" && thing.strip_prefix("orch/").is_some_and(|rest| kept.contains(&rest))
        });
    }

    /// What a data directory without containers and volumes holds: its own frame, the control log, images.
    #[track_caller]
    fn state_is_empty(&self) {
        const FRAME: &[&str] = &[
            "agent.lock",
            "agent/",
            "agent/local/",
            "agent/tasks/",
            "engine/",
            "engine/containers/",
            "engine/format",
            "engine/images/",
            "engine/images/ingest/",
            "engine/images/refs.json",
            "engine/lock",
            "engine/trash/",
            "engine/volumes/",
            "node-id",
        ];
        let of_images = ["engine/images/blobs/", "engine/images/layers/", "engine/init-layer/", "control/"];
        eventually(self.settles, "the data directory holds nothing of a stack", || {
            let mut left = tree(&self.data());
            left.retain(|path| !FRAME.contains(&path.as_str()) && !of_images.iter().any(|p| path.starts_with(p)));
            left.truncate(20);
            if left.is_empty() { Ok(()) } else { Err(format!("\n  {}", left.join("\n  "))) }
        });
    }

    #[track_caller]
    fn compare(&self, when: &str, allowed: impl Fn(&str, &str) -> bool) {
        eventually(self.settles, &format!("the machine is as before, {when}"), || {
            let now = Traces::of(&self.machine, &self.instance).map_err(|e| format!("{e:#}"))?;
            let differences = [now.beyond(&self.before, &allowed), now.missing(&self.before)].concat();
            if differences.is_empty() { Ok(()) } else { Err(format!("\n  {}", differences.join("\n  "))) }
        });
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    #[expect(clippy::print_stderr, reason = "cargo shows what a failed test has said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.agent_log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("-- the agent said last:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        // Only groups without processes can be removed.
        self.machine.end();
        let mut groups = crate::traces::groups(&self.instance);
        groups.sort_by_key(|g| std::cmp::Reverse(g.len()));
        for group in groups {
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// One run of `orch`, to be told more before it starts.
#[derive(Debug, Clone)]
pub struct Invocation<'a> {
    host: &'a Host,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    folder: PathBuf,
    stdin: Vec<u8>,
}

impl<'a> Invocation<'a> {
    /// With this variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// In this folder.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = folder.to_path_buf();
        self
    }

    /// With this on its standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Runs it and waits for its end.
    #[track_caller]
    pub fn run(self) -> Output {
        self.start().ends(LONGEST)
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Running<'a> {
        let mut child = self.host.inside(Place::Host, || {
            let mut command = Command::new(binary());
            self.host.prepare(&mut command);
            command.args(&self.arguments).current_dir(&self.folder).envs(self.environment.iter().cloned());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("orch can be started")
        });
        let mut stdin = child.stdin.take().expect("it has a pipe");
        let bytes = self.stdin;
        std::thread::spawn(move || stdin.write_all(&bytes));
        let stdout = Collected::from(child.stdout.take());
        let stderr = Collected::from(child.stderr.take());
        Running { command: format!("orch {}", self.arguments.join(" ")), child, stdout, stderr, host: self.host }
    }
}

/// A stream that a thread reads to its end.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Collected {
    fn from(stream: Option<impl std::io::Read + Send + 'static>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut part = vec![0; 1 << 16];
            let Some(mut stream) = stream else { return };
            while let Ok(n) = stream.read(&mut part) {
                if n == 0 {
                    break;
                }
                shared.lock().expect("nobody panics with the bytes").extend_from_slice(&part[..n]);
            }
        });
        Self { bytes, reader }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("nobody panics with the bytes")).into_owned()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An `orch` that runs; it is killed when the test forgets it.
#[derive(Debug)]
pub struct Running<'a> {
    command: String,
    child: Child,
    stdout: Collected,
    stderr: Collected,
    host: &'a Host,
}

impl Running<'_> {
    /// What it has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    /// What it has said so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Waits until it has printed this.
    #[track_caller]
    pub fn prints(&self, text: &str) {
        eventually(PATIENCE, &format!("`{}` prints {text:?}", self.command), || {
            let (out, err) = (self.stdout(), self.stderr());
            if out.contains(text) { Ok(()) } else { Err(format!("stdout: {out}\nstderr: {err}")) }
        });
    }

    /// Waits until it has said this.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually(PATIENCE, &format!("`{}` says {text:?}", self.command), || {
            let (out, err) = (self.stdout(), self.stderr());
            if err.contains(text) { Ok(()) } else { Err(format!("stdout: {out}\nstderr: {err}")) }
        });
    }

    /// Sends it a signal; nothing when it has ended.
    ///
    /// # Panics
    /// Never: a process id is a number.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id fits");
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time: with what it has said until then.
    #[track_caller]
    pub fn ends(mut self, deadline: Duration) -> Output {
        let began = std::time::Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if began.elapsed() < deadline => std::thread::sleep(Duration::from_millis(2)),
                _ => {
                    let _ = self.child.kill();
                    let (out, err) = (self.stdout(), self.stderr());
                    panic!("`{}` does not end within {deadline:?}\n-- stdout:\n{out}\n-- stderr:\n{err}", self.command);
                }
            }
        };
        // An agent that the command has started holds none of its pipes, so both end with it. One that does would be an error.
        eventually(Duration::from_secs(5), &format!("the pipes of `{}` end with it", self.command), || {
            let over = self.stdout.reader.is_finished() && self.stderr.reader.is_finished();
            if over { Ok(()) } else { Err("something it has started holds them") }
        });
        let (stdout, stderr) = (self.stdout.so_far().into_bytes(), self.stderr.so_far().into_bytes());
        Output::new(self.command.clone(), &std::process::Output { status, stdout, stderr })
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        self.host
    }
}
