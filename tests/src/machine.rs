//! A machine of its own on this kernel: network, mounts, processes and host name, with a neighbour on its LAN.
//!
//! Process 1 is a small shell that ends when the test lets go of its standard input, however the test ends; with it end all
//! processes of the machine, and with them its mounts and its network. Control groups are the kernel's, not the machine's, so they
//! are found by the instance's name.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::Processes;

/// The machine's address on its LAN (RFC 5737, for documentation: no real network has it).
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The neighbour's address.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// Sets the machine up from inside its namespaces and is process 1 of it. procfs and sysfs show the namespaces of who mounts them, so
/// both are mounted anew; the control groups, which lie below sysfs, are carried over. Mount events are shared, as systemd does it.
const PROCESS_1: &str = concat!(
    include_str!("machine/namespaces.sh"),
    r#"
# The neighbour is who would know names outside.
echo 'nameserver 198.51.100.2' >/run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf
ip link set lo up
unshare --net sleep infinity &
lan=$!
until [ "$(readlink /proc/$lan/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add lan0 type veth peer name lan0 netns "$lan"
# No link-local addresses: they would come into being some time after everything else.
ip link set lan0 addrgenmode none
ip address add 198.51.100.1/24 dev lan0
ip address add fd00:1ab::1/64 dev lan0 nodad
ip link set lan0 up
ip route add default via 198.51.100.2
inside="nsenter --net=/proc/$lan/ns/net ip"
$inside link set lo up
$inside link set lan0 addrgenmode none
$inside address add 198.51.100.2/24 dev lan0
$inside address add fd00:1ab::2/64 dev lan0 nodad
$inside link set lan0 up
$inside route add default via 198.51.100.1
# Until the kernel has seen the carrier, routes are marked as down, and those of IPv6 are missing.
until ip -6 route show table local | grep -q 'ff00::/8 dev lan0' && ! ip route | grep -q linkdown; do sleep 0.01; done
# The end of standard input is the end of the test; `wait` takes in orphans meanwhile, as any process 1 does.
exec 3<&0 </dev/null
cat <&3 >/dev/null &
end=$!
# Whoever looks at processes reads their command lines, which come a moment later than the names (execve).
until [ "$(tr '\0' ' ' </proc/$lan/cmdline)+$(tr '\0' ' ' </proc/$end/cmdline)" = "sleep infinity +cat " ]; do :; done
echo "ready $lan"
wait "$end" || true
"#
);

/// Namespaces of one place on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The machine itself.
    Host,
    /// Its neighbour on the LAN: another network, the same files.
    Neighbour,
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    process_1: Child,
    /// Its end is the machine's.
    _alive: ChildStdin,
    neighbour: i32,
}

impl Machine {
    /// Makes one.
    ///
    /// # Errors
    /// When it cannot be made: mostly for want of root.
    pub fn new() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "needs root: containers, networks and control groups are made for real"
        );
        // Namespaces belong to a thread; this one ends when process 1 has inherited them.
        let made = std::thread::spawn(|| -> Result<Child> {
            unshare(
                CloneFlags::CLONE_NEWNET
                    | CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWPID
                    | CloneFlags::CLONE_NEWUTS,
            )
            .context("unshare")?;
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", PROCESS_1, "process-1"]).current_dir("/");
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            shell.spawn().context("start process 1 of a machine")
        });
        let mut process_1 = made.join().map_err(|_| anyhow::anyhow!("the thread that makes a machine panicked"))??;
        let (Some(alive), Some(stdout)) = (process_1.stdin.take(), process_1.stdout.take()) else { bail!("no pipes") };
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready).context("read what process 1 says")?;
        let Some(neighbour) = ready.strip_prefix("ready ").and_then(|n| n.trim().parse().ok()) else {
            drop(alive);
            let output = process_1.wait_with_output().context("wait for process 1")?;
            bail!("a machine could not be set up: {}", String::from_utf8_lossy(&output.stderr).trim());
        };
        Ok(Self { process_1, _alive: alive, neighbour })
    }

    /// Process 1, as this test's procfs numbers it.
    fn keeper(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.process_1.id()))
    }

    /// Process 1, by the number that this test sees.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process_1.id()
    }

    /// A path of the machine, as this test reaches it.
    #[must_use]
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.keeper().join("root").join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()))
    }

    /// Its processes, by its own numbers.
    #[must_use]
    pub fn processes(&self) -> Processes {
        Processes::at(self.path("/proc"))
    }

    /// Does something inside: what it starts is a process of the machine, what it connects goes through its network, what it opens is
    /// its file. Runs in a thread of its own.
    ///
    /// # Errors
    /// When the namespaces cannot be entered.
    pub fn inside<T: Send>(&self, place: Place, act: impl FnOnce() -> T + Send) -> Result<T> {
        let open = |path: PathBuf| std::fs::File::open(&path).with_context(|| format!("open {}", path.display()));
        let net = match place {
            Place::Host => open(self.keeper().join("ns/net"))?,
            Place::Neighbour => open(self.processes().path(self.neighbour).join("ns/net"))?,
        };
        let (pid, mnt) = (open(self.keeper().join("ns/pid"))?, open(self.keeper().join("ns/mnt"))?);
        let uts = open(self.keeper().join("ns/uts"))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                // setns(2): a thread that shares its root and working folder with others cannot change its mount namespace.
                unshare(CloneFlags::CLONE_FS).context("unshare(CLONE_FS)")?;
                setns(net.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the network")?;
                setns(pid.as_fd(), CloneFlags::CLONE_NEWPID).context("enter the processes")?;
                setns(uts.as_fd(), CloneFlags::CLONE_NEWUTS).context("enter the host name")?;
                setns(mnt.as_fd(), CloneFlags::CLONE_NEWNS).context("enter the mounts")?;
                Ok(act())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a program of this host on the machine, and waits for it.
    ///
    /// # Errors
    /// When it cannot be started, or fails.
    pub fn run(&self, place: Place, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .inside(place, || Command::new(program).args(arguments).stdin(Stdio::null()).output())?
            .with_context(|| format!("run {program}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{program} {}` failed: {}", arguments.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The id that this test has to use for a process of the machine, to signal it.
    #[must_use]
    pub fn outer(&self, inner: i32) -> Option<i32> {
        let namespace = std::fs::read_link(self.keeper().join("ns/pid_for_children")).ok()?;
        let here = Processes::at("/proc");
        here.all().into_iter().find(|pid| {
            let Some(numbers) = here.status(*pid, "NSpid") else { return false };
            let mut numbers = numbers.split_whitespace();
            // The machine's processes have two numbers; those of a container inside have one more.
            numbers.nth(1).and_then(|n| n.parse().ok()) == Some(inner) && self.holds(&here, *pid, &namespace)
        })
    }

    /// Whether a process is of this machine: its pid namespace is the machine's or, for a container's, a child of it.
    fn holds(&self, here: &Processes, pid: i32, namespace: &Path) -> bool {
        if std::fs::read_link(here.path(pid).join("ns/pid")).is_ok_and(|ns| ns == namespace) {
            return true;
        }
        // A container's process: some ancestor is in the machine's namespace, for every one begins as a child of a shim there.
        let mut at = pid;
        while let Some(parent) = here.parent(at).filter(|p| *p > 1) {
            if std::fs::read_link(here.path(parent).join("ns/pid")).is_ok_and(|ns| ns == namespace) {
                return true;
            }
            at = parent;
        }
        false
    }
}

impl Machine {
    /// Ends all its processes, and with them all that they held.
    pub fn end(&mut self) {
        // SIGKILL for process 1 of a pid namespace ends every process in it, and `wait` returns when all of them have been waited for
        // (pid_namespaces(7)), those by this test too. It may have forgotten one; that must not hang it.
        let _ = self.process_1.kill();
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.process_1.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}
