//! What is asked of the cluster.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use orch_tests::fault::Chance;
use orch_tests::output::Output;

use crate::fleet::{Fleet, SECRET};
use crate::stream::Excuse;

/// A change, asked of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Scale,
    Update(&'static str),
    Bad,
    Rollback,
    Drain(usize),
    Pause(usize),
    Role(usize),
    Killed,
    Down,
    Secret,
    Token,
    Leave(usize),
    Restart,
}

impl Act {
    pub(crate) fn draw(fleet: &Fleet, chance: &mut Chance, busy: &[usize]) -> Self {
        let number = usize::try_from(chance.below(fleet.count as u64)).expect("a few hosts") + 1;
        match chance.below(17) {
            0..=1 => Self::Scale,
            2..=3 => Self::Update("front"),
            4 => Self::Update("back"),
            5 => Self::Bad,
            6 => Self::Rollback,
            7..=8 => Self::Drain(number),
            9 => Self::Pause(number),
            10 => Self::Role(number),
            11 => Self::Killed,
            12 => Self::Down,
            13 => Self::Secret,
            14 => Self::Token,
            15 if busy.is_empty() => Self::Leave(number),
            _ => Self::Restart,
        }
    }

    /// A host that leaves answers no requests meanwhile.
    pub(crate) fn excuse(self, from: Instant) -> Option<Excuse> {
        let Self::Leave(host) = self else { return None };
        Some(Excuse { host, from, until: Instant::now() + Duration::from_secs(4) })
    }

    /// Asks a host that can be asked; says what came of it. Where nobody decides, nothing has to come of it but an answer.
    pub(crate) fn carry_out(self, fleet: &mut Fleet, chance: &mut Chance, busy: &[usize]) {
        let managers = fleet.managers_but(busy);
        if managers.is_empty() {
            return;
        }
        let asked = managers[usize::try_from(chance.below(managers.len() as u64)).expect("a few hosts")];
        println!("   {self:?}, asked of host {asked}");
        let begun = Instant::now();
        let output = self.ask(fleet, chance, asked);
        let decided = fleet.managers_but(busy).len() * 2 > fleet.managers_but(&[]).len();
        if let Some(output) = output {
            let last = output.stderr.lines().last().unwrap_or_default().to_owned();
            println!("     {} after {:.1} s: {last}", output.code, begun.elapsed().as_secs_f64());
            if decided && busy.is_empty() && output.code != 0 && self != Self::Bad {
                println!("     REFUSED with nobody missing: {}", output.told());
            }
        }
    }

    fn up(fleet: &mut Fleet, asked: usize, stack: &str, begin: &str) -> Output {
        fleet.write(asked, stack, begin);
        let file = format!("{stack}.yaml");
        fleet.orch(asked, &["-f", &file, "up", "-d", "--wait", "--wait-timeout", "60"])
    }

    fn ask(self, fleet: &mut Fleet, chance: &mut Chance, asked: usize) -> Option<Output> {
        let host = |number: usize| format!("host{number}");
        match self {
            Self::Scale => {
                let wish = 1 + chance.below(9);
                let output = fleet.orch(asked, &["service", "scale", &format!("front_page={wish}")]);
                fleet.sure &= output.code == 0;
                fleet.replicas = wish;
                Some(output)
            }
            Self::Update(stack) => {
                fleet.version += 1;
                let output = Self::up(fleet, asked, stack, "");
                fleet.sure &= output.code == 0;
                fleet.back |= stack == "back";
                Some(output)
            }
            Self::Bad => {
                fleet.version += 1;
                Some(Self::up(fleet, asked, "front", "exit 3;"))
            }
            Self::Rollback => {
                // The number of replicas goes back, too.
                fleet.sure = false;
                Some(fleet.orch(asked, &["service", "rollback", "front_page", "--wait-timeout", "60"]))
            }
            Self::Drain(number) => {
                let drain = fleet.orch(asked, &["node", "update", "--availability", "drain", &host(number)]);
                chance.delay(Duration::from_secs(6));
                fleet.orch(asked, &["node", "update", "--availability", "active", &host(number)]);
                Some(drain)
            }
            Self::Pause(number) => {
                let pause = fleet.orch(asked, &["node", "update", "--availability", "pause", &host(number)]);
                chance.delay(Duration::from_secs(2));
                fleet.orch(asked, &["node", "update", "--availability", "active", &host(number)]);
                Some(pause)
            }
            Self::Role(number) => {
                let verb = if fleet.managers[number - 1] { "demote" } else { "promote" };
                if verb == "demote" && fleet.managers_but(&[]).len() * 2 <= fleet.count {
                    return None;
                }
                let output = fleet.orch(asked, &["node", verb, &host(number)]);
                fleet.managers[number - 1] ^= output.code == 0;
                fleet.sure &= output.code == 0;
                Some(output)
            }
            Self::Killed => {
                fleet.version += 1;
                fleet.write(asked, "front", "");
                let running = fleet.hosts.host(asked).start(&["-f", "front.yaml", "up", "-d", "--wait"]);
                chance.delay(Duration::from_millis(500));
                running.signal(Signal::SIGKILL);
                drop(running);
                None
            }
            Self::Down => {
                let down = fleet.orch(asked, &["-p", "back", "down", "-t", "1"]);
                fleet.sure &= down.code == 0;
                fleet.back = false;
                if chance.below(3) > 0 {
                    chance.delay(Duration::from_secs(2));
                    fleet.back = true;
                    fleet.sure &= Self::up(fleet, asked, "back", "").code == 0;
                }
                Some(down)
            }
            Self::Secret => {
                fleet.version += 1;
                let content = format!("{SECRET}-{}", fleet.version);
                let update = fleet.hosts.host(asked).invoke(&["secret", "update", "password", "-"]).stdin(content);
                Some(update.start().ends(Duration::from_secs(150)))
            }
            Self::Token => Some(fleet.orch(asked, &["-q", "cluster", "token", "worker", "--revoke"])),
            Self::Leave(number) => Self::leave(fleet, asked, number),
            Self::Restart => Some(fleet.orch(asked, &["-p", "front", "restart", "page"])),
        }
    }

    /// A node is removed, leaves, and comes again as a new one.
    fn leave(fleet: &mut Fleet, asked: usize, number: usize) -> Option<Output> {
        if asked == number {
            return None;
        }
        let removed = fleet.orch(asked, &["node", "rm", "--force", &format!("host{number}")]);
        let left = fleet.orch(number, &["cluster", "leave", "--force"]);
        println!("     left: {} {}", left.code, left.stderr.trim());
        let role = if fleet.managers[number - 1] { "manager" } else { "worker" };
        let token = fleet.orch(asked, &["-q", "cluster", "token", role]).ok().text().trim().to_owned();
        let to = Fleet::address(asked).to_string();
        fleet.orch(number, &["cluster", "join", "--token", &token, &to]).ok();
        Some(removed)
    }
}
