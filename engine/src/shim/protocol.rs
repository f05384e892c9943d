//! What the agent and a shim say to each other. A shim outlives the agent that started it and is met again by a newer one, so a change
//! of these types needs a new [`VERSION`], and an agent that still speaks the old one.
//!
//! The runtime's plans inside are another matter: they are made and read by the same version of the program. [`PLAN_FORMAT`] changes
//! with their types by itself and is part of the socket's name, so that a newer agent goes on watching, stopping and attaching through
//! the old shim, and starts new processes through one of its own.

use serde::{Deserialize, Serialize};

/// Version of these types.
pub const VERSION: u16 = 1;

/// A fingerprint of the types that a plan is made of: of their very source.
pub const PLAN_FORMAT: u32 = {
    let sources: [&[u8]; 5] = [
        include_bytes!("../runtime/plan.rs"),
        include_bytes!("../runtime/ids.rs"),
        include_bytes!("../cgroup.rs"),
        include_bytes!("../cgroup/layout.rs"),
        include_bytes!("../config.rs"),
    ];
    // FNV-1a: any change of a byte gives another number, which is all that is asked of it.
    let mut hash: u32 = 0x811c_9dc5;
    let mut source = 0;
    while source < sources.len() {
        let mut at = 0;
        while at < sources[source].len() {
            hash = (hash ^ sources[source][at] as u32).wrapping_mul(0x0100_0193);
            at += 1;
        }
        source += 1;
    }
    hash
};

/// A message of either side.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// Asked by the agent, answered by a [`Reply`] of the same number.
    Request(u64, Request),
    /// The answer.
    Reply(u64, Reply),
    /// Told by the shim without being asked.
    Notice(Notice),
}

/// What the agent asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Tell me what happens from now on. Answered by [`Reply::Containers`], what runs at this moment.
    Subscribe,
    /// What runs?
    List,
    /// Start a container. Descriptor: its directory.
    Start(Start),
    /// Start a further process in a container.
    Exec(Exec),
    /// Send a signal.
    Signal {
        /// To whom.
        target: Target,
        /// The signal's number.
        signal: i32,
        /// Also to every process it started, as far as they can be found (SIGKILL of an exec whose time is over).
        tree: bool,
    },
    /// From here on this connection carries the container's output (and its input, as [`Request::Input`]).
    Attach {
        /// The container; it need not run yet, output comes from its start on.
        container: String,
        /// May this client write to its stdin?
        stdin: bool,
        /// Hold the container back for a short while rather than dropping this client when it is slow.
        patient: bool,
    },
    /// Bytes for stdin, from an attached client. Not answered.
    Input(#[serde(with = "bytes")] Vec<u8>),
    /// The attached client will write no more. Not answered.
    InputEnd,
    /// Set the size of a container's terminal.
    Resize {
        /// The container.
        container: String,
        /// Lines.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Close a container's stdin.
    CloseStdin {
        /// The container.
        container: String,
    },
    /// Leave if no container runs.
    Leave,
}

/// How to start a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// Its id.
    pub container: String,
    /// The runtime's compiled plan.
    #[serde(with = "bytes")]
    pub plan: Vec<u8>,
    /// Size of its terminal, if it has one.
    pub terminal: Option<(u16, u16)>,
    /// Keep its stdin open.
    pub stdin: bool,
    /// Close stdin when the first client that attached with stdin leaves.
    pub stdin_once: bool,
    /// Its log.
    pub log: LogPlan,
    /// Does its end have to survive a power cut? Not that of a container which is removed then.
    pub durable: bool,
}

/// Where and how a container's log is kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LogPlan {
    /// Keep none.
    pub none: bool,
    /// Bytes of one file; 0 = unbounded.
    pub max_size: u64,
    /// Number of files, at least one.
    pub max_file: u32,
}

/// How to start a further process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    /// In which container: one of this shim, or of another of its group.
    pub container: String,
    /// The agent's number for it, unique on this connection.
    pub exec: u64,
    /// The runtime's compiled plan.
    #[serde(with = "bytes")]
    pub plan: Vec<u8>,
    /// Size of its terminal, if it gets one.
    pub terminal: Option<(u16, u16)>,
    /// Give the agent its stdin.
    pub stdin: bool,
    /// Give the agent no descriptors: its output goes to /dev/null.
    pub detach: bool,
}

/// A process the shim watches.
#[derive(Debug, Serialize, Deserialize)]
pub enum Target {
    /// A container's first process.
    Container(String),
    /// An exec of this connection's agent.
    Exec(u64),
}

/// What the shim answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// What runs.
    Containers(Vec<Running>),
    /// The container runs: its execve has succeeded.
    Started {
        /// Which process it is.
        run: RunRecord,
        /// How long it took.
        times: StartTimes,
    },
    /// The process runs. Descriptors: the terminal's master, or stdout, stderr and (when asked for) stdin; none when detached.
    ExecStarted {
        /// Its pid on the host.
        pid: i32,
    },
    /// It did not start.
    NotStarted {
        /// 125, 126 or 127.
        code: i32,
        /// What, where and why.
        message: String,
    },
    /// The request cannot be fulfilled.
    Refused {
        /// Why.
        message: String,
    },
}

/// What the shim tells by itself.
#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    /// A container has ended; its exit record is on disk.
    Exited {
        /// Which.
        container: String,
        /// How.
        exit: ExitRecord,
    },
    /// An exec has ended.
    ExecExited {
        /// The agent's number for it.
        exec: u64,
        /// Its exit code, 128+N for a signal.
        code: i32,
    },
    /// Output of the attached container.
    Output {
        /// 1 stdout (and terminals), 2 stderr.
        stream: u8,
        /// The bytes.
        #[serde(with = "bytes")]
        data: Vec<u8>,
    },
    /// The attached container has ended, after its last output.
    AttachEnded,
    /// This client read too slowly and is let go; the log has everything.
    TooSlow,
}

/// A running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// Its id.
    pub container: String,
    /// Its identity as a process.
    pub run: RunRecord,
}

/// A start that succeeded: `run.json` in the container's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Pid on the host.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot. With the boot id, the identity of a process.
    pub start_time: u64,
    /// Which boot.
    pub boot_id: String,
    /// Wall clock in ns since 1970.
    pub started_at: i64,
}

/// How long the parts of a start took in the shim, in ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTimes {
    /// Making and limiting the control group.
    pub cgroup: u64,
    /// Opening and mounting what the plan names.
    pub compile: u64,
    /// The clone.
    pub clone: u64,
    /// What the child did, its execve included.
    pub child: u64,
    /// All of it, with reading the plan and the shim's own book-keeping.
    pub whole: u64,
}

/// The end of a container: `exit.json` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code; 128+N for signal N.
    pub code: i32,
    /// The signal that ended it, 0 if none.
    pub signal: i32,
    /// The kernel killed at least one of its processes for lack of memory.
    pub oom: bool,
    /// Wall clock in ns since 1970.
    pub finished_at: i64,
    /// Which run ended; pid 0 if it never started.
    pub pid: i32,
    /// See [`RunRecord::start_time`].
    pub start_time: u64,
    /// See [`RunRecord::boot_id`].
    pub boot_id: String,
    /// Why, when the container did not end by itself: not started, shim lost, host restarted.
    #[serde(default)]
    pub error: String,
}

/// What takes a container down that did not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nobody heard of its shim any more when the agent came.
    ShimGone,
    /// Its shim died while the agent was there.
    ShimKilled,
    /// The host was booted again.
    HostRestarted,
}

impl Loss {
    const ALL: [Self; 3] = [Self::ShimGone, Self::ShimKilled, Self::HostRestarted];

    /// For people, and for [`ExitRecord::error`].
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::ShimGone => "its shim is gone",
            Self::ShimKilled => "its shim was killed",
            Self::HostRestarted => "the host was restarted",
        }
    }
}

impl ExitRecord {
    /// Did the container go down with its shim or its host? Known by the text: a field more would be another protocol.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        Loss::ALL.iter().any(|loss| loss.text() == self.error)
    }

    /// Is it the end of this run?
    pub fn ends(&self, run: &RunRecord) -> bool {
        self.pid == run.pid && self.start_time == run.start_time && self.boot_id == run.boot_id
    }
}

/// Byte strings as one copy instead of one element after the other.
mod bytes {
    use serde::de::Visitor;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, value: &[u8]) -> Result<Vec<u8>, E> {
                Ok(value.to_vec())
            }
        }
        from.deserialize_bytes(Bytes)
    }
}
