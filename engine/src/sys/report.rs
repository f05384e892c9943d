//! What a child tells its launcher before it executes: one fixed-size message, so that nothing needs memory between clone and exec.

use nix::errno::Errno;

/// What was being done when it failed. The number travels in a [`Record`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Prepare,
    Cgroup,
    Join,
    Host,
    Loopback,
    Propagation,
    Root,
    Mount,
    Sysctl,
    OomScore,
    Limit,
    Terminal,
    Streams,
    Pivot,
    Directory,
    DirectoryOutside,
    Descriptors,
    UserNamespace,
    Capabilities,
    User,
    Filter,
    Exec,
}

impl Step {
    const ALL: [Self; 22] = [
        Self::Prepare,
        Self::Cgroup,
        Self::Join,
        Self::Host,
        Self::Loopback,
        Self::Propagation,
        Self::Root,
        Self::Mount,
        Self::Sysctl,
        Self::OomScore,
        Self::Limit,
        Self::Terminal,
        Self::Streams,
        Self::Pivot,
        Self::Directory,
        Self::DirectoryOutside,
        Self::Descriptors,
        Self::UserNamespace,
        Self::Capabilities,
        Self::User,
        Self::Filter,
        Self::Exec,
    ];

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// One message of the child. Ten bytes: kind, step, errno, argument, the integers in native order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// The master of the terminal travels with this message.
    Terminal,
    /// Nothing was executed.
    Failed(Failure),
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
    /// Which of several: an index into the program's list that belongs to the step.
    pub(crate) argument: u32,
}

/// Length of a message.
pub(crate) const RECORD: usize = 10;

impl Record {
    pub(crate) fn encode(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        if let Self::Failed(failure) = self {
            bytes[0] = 1;
            bytes[1] = failure.step as u8;
            bytes[2..6].copy_from_slice(&(failure.errno as i32).to_ne_bytes());
            bytes[6..10].copy_from_slice(&failure.argument.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        match bytes[0] {
            0 => Some(Self::Terminal),
            1 => Some(Self::Failed(Failure {
                step: Step::from_number(bytes[1])?,
                errno: Errno::from_raw(i32::from_ne_bytes([bytes[2], bytes[3], bytes[4], bytes[5]])),
                argument: u32::from_ne_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]),
            })),
            _ => None,
        }
    }
}
