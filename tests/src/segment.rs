//! A link that several machines are on: one switch in a network of its own, to which each machine has a cable that can be cut.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::machine::Machine;

/// The switch: a bridge in a network of its own, which ends with the test.
const SWITCH: &str = r"
set -eu
ip link set lo up
ip link add switch type bridge
ip link set switch addrgenmode none up
echo ready
exec cat >/dev/null
";

/// A switch with machines on it.
#[derive(Debug)]
pub struct Segment {
    switch: Child,
    /// Its end is the switch's.
    _alive: ChildStdin,
}

/// The address of the machine at this port (RFC 5737, for documentation: no real network has it).
#[must_use]
pub fn address(port: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, port)
}

impl Segment {
    /// A switch without machines.
    ///
    /// # Errors
    /// When it cannot be made: mostly for want of root.
    pub fn new() -> Result<Self> {
        let mut switch = Command::new("unshare")
            .args(["--net", "--kill-child", "/bin/sh", "-c", SWITCH])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a switch")?;
        let (Some(alive), Some(stdout)) = (switch.stdin.take(), switch.stdout.take()) else { bail!("no pipes") };
        let mut ready = String::new();
        BufReader::new(stdout).read_line(&mut ready).context("read what the switch says")?;
        ensure!(ready == "ready\n", "the switch could not be set up");
        Ok(Self { switch, _alive: alive })
    }

    /// Gives a machine a cable to this port, the address that belongs to it, and a name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn plug(&self, machine: &Machine, port: u8) -> Result<Ipv4Addr> {
        let (switch, machine_id) = (self.switch.id().to_string(), machine.id().to_string());
        let cable = format!("port{port}");
        let words = ["link", "add", "name", &cable, "netns", &switch, "type", "veth", "peer", "name", "eth0"];
        ip(&[&words[..], &["netns", &machine_id]].concat())?;
        self.ip(&["link", "set", &cable, "addrgenmode", "none", "master", "switch", "up"])?;
        let address = address(port);
        let inside = |arguments: &[&str]| machine.run(crate::machine::Place::Host, "ip", arguments).map(drop);
        inside(&["link", "set", "eth0", "addrgenmode", "none"])?;
        inside(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        machine.run(crate::machine::Place::Host, "hostname", &[&format!("host{port}")])?;
        Ok(address)
    }

    /// Cuts a cable, in both directions and without anybody being told.
    ///
    /// # Errors
    /// When there is none.
    pub fn cut(&self, port: u8) -> Result<()> {
        self.ip(&["link", "set", &format!("port{port}"), "nomaster"])
    }

    /// Mends a cable.
    ///
    /// # Errors
    /// When there is none.
    pub fn mend(&self, port: u8) -> Result<()> {
        self.ip(&["link", "set", &format!("port{port}"), "master", "switch"])
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let network = format!("--net=/proc/{}/ns/net", self.switch.id());
        run("nsenter", &[&[network.as_str(), "ip"], arguments].concat())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let _ = self.switch.kill();
        let _ = self.switch.wait();
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}` failed: {}", arguments.join(" "), said.trim());
    Ok(())
}
