//! What is done to hosts.

use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orch_tests::fault::Chance;
use orch_tests::host::Host;
use orch_tests::process::Identity;

use crate::fleet::Fleet;
use crate::stream::Excuse;

/// A fault of one host, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its agent is killed.
    Agent(usize),
    /// Its agent stands still.
    Still(usize),
    /// Its cable is cut.
    Cut(usize),
    /// What others send does not arrive there any more.
    Deaf(usize),
    /// Its agent is killed again and again while it starts.
    Crashes(usize, u64),
    /// All its processes are killed, and its cable is cut meanwhile.
    Gone(usize),
    /// It loses its power, and is booted again.
    Power(usize),
    /// The processes of one container are killed.
    Container(usize, u64),
    /// A shim is killed.
    Shim(usize, u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(number) => write!(f, "host {number}: agent killed"),
            Self::Still(number) => write!(f, "host {number}: agent stands still"),
            Self::Cut(number) => write!(f, "host {number}: cable cut"),
            Self::Deaf(number) => write!(f, "host {number}: hears nobody"),
            Self::Crashes(number, _) => write!(f, "host {number}: agent killed again and again while it starts"),
            Self::Gone(number) => write!(f, "host {number}: gone"),
            Self::Power(number) => write!(f, "host {number}: no power"),
            Self::Container(number, _) => write!(f, "host {number}: a container's process killed"),
            Self::Shim(number, _) => write!(f, "host {number}: a shim killed"),
        }
    }
}

impl Fault {
    pub(crate) fn draw(fleet: &Fleet, chance: &mut Chance) -> Self {
        let number = usize::try_from(chance.below(fleet.count as u64)).expect("a few hosts") + 1;
        let which = chance.below(1 << 20);
        match chance.below(17) {
            0..=2 => Self::Agent(number),
            3..=4 => Self::Still(number),
            5..=7 => Self::Cut(number),
            8..=9 => Self::Gone(number),
            10 => Self::Deaf(number),
            15..=16 => Self::Power(number),
            11 => Self::Crashes(number, which),
            12 => Self::Container(number, which),
            _ => Self::Shim(number, which),
        }
    }

    pub(crate) fn host(&self) -> usize {
        match self {
            Self::Agent(n)
            | Self::Still(n)
            | Self::Cut(n)
            | Self::Deaf(n)
            | Self::Gone(n)
            | Self::Power(n)
            | Self::Crashes(n, _)
            | Self::Container(n, _)
            | Self::Shim(n, _) => *n,
        }
    }

    /// Nobody can ask this host for anything meanwhile.
    pub(crate) fn silences(&self) -> bool {
        !matches!(self, Self::Container(..) | Self::Shim(..))
    }

    /// When requests may fail for a fault that lasted so long. Whoever is gone for good takes its tasks along, until that is noticed; an agent
    /// that does not run takes nothing back of what its host leads to.
    pub(crate) fn excuses(&self, from: Instant, lifted: Instant) -> Vec<Excuse> {
        let host = self.host();
        let own = Excuse { host, from, until: lifted + Duration::from_secs(4) };
        let all = |seconds| Excuse { host: 0, from, until: from + Duration::from_secs(seconds) };
        match self {
            Self::Agent(_) | Self::Still(_) | Self::Crashes(..) => vec![own],
            Self::Cut(_) | Self::Deaf(_) | Self::Gone(_) | Self::Power(_) => vec![own, all(5)],
            Self::Container(..) | Self::Shim(..) => vec![all(2)],
        }
    }

    pub(crate) fn begin(&self, fleet: &Fleet) {
        let host = fleet.hosts.host(self.host());
        let port = u8::try_from(self.host()).expect("a few hosts");
        match self {
            Self::Agent(_) => host.kill_agent(),
            Self::Deaf(number) => {
                let others: Vec<usize> = (1..=fleet.count).filter(|other| other != number).collect();
                fleet.hosts.deafen(*number, &others);
            }
            Self::Crashes(_, which) => {
                host.kill_agent();
                let mut chance = Chance::from(*which);
                for _ in 0..4 {
                    host.start_agent_without_waiting(&[]);
                    chance.delay(Duration::from_millis(400));
                    host.agents().into_iter().for_each(|agent| host.kill(agent, Signal::SIGKILL));
                }
            }
            Self::Still(_) => host.signal(host.agent().expect("an agent runs"), Signal::SIGSTOP),
            Self::Cut(_) => fleet.hosts.segment.cut(port).expect("there is a cable"),
            Self::Gone(_) => {
                fleet.hosts.segment.cut(port).expect("there is a cable");
                let agent = host.agent().expect("an agent runs");
                all_end(host, &[&[agent][..], &host.shims()].concat());
            }
            Self::Power(_) => {
                fleet.hosts.segment.cut(port).expect("there is a cable");
                host.lose_power();
            }
            Self::Container(_, which) => {
                let running: Vec<Identity> = fleet.hosts.running(self.host()).into_values().collect();
                one_ends(host, &running, *which);
            }
            Self::Shim(_, which) => one_ends(host, &host.shims(), *which),
        }
    }

    pub(crate) fn lift(&self, fleet: &Fleet) {
        let host = fleet.hosts.host(self.host());
        let port = u8::try_from(self.host()).expect("a few hosts");
        match self {
            Self::Agent(_) | Self::Crashes(..) => host.start_agent(),
            Self::Deaf(_) => fleet.hosts.heal(),
            Self::Still(_) => host.agents().into_iter().for_each(|agent| host.signal(agent, Signal::SIGCONT)),
            Self::Cut(_) => fleet.hosts.segment.mend(port).expect("there is a cable"),
            Self::Gone(_) | Self::Power(_) => {
                fleet.hosts.segment.mend(port).expect("there is a cable");
                host.start_agent();
            }
            Self::Container(..) | Self::Shim(..) => {}
        }
    }
}

fn one_ends(host: &Host, of: &[Identity], which: u64) {
    if !of.is_empty() {
        let place = usize::try_from(which).expect("it is small") % of.len();
        host.signal(of[place], Signal::SIGKILL);
    }
}

/// At once, as at a power cut: numbers are found first.
fn all_end(host: &Host, of: &[Identity]) {
    let outer: Vec<i32> = of.iter().filter_map(|process| host.outer(process.pid)).collect();
    for pid in outer {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
