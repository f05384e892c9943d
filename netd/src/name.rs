//! Names of kernel objects. They follow from the instance and the caller's id alone, so that an agent finds its own again
//! without having remembered anything.

use crate::config::{NetworkId, SandboxId};
use crate::hash::hash;

/// What every bridge's name begins with, whatever the instance: one pattern lets a foreign firewall know all of them.
pub const BRIDGE_PREFIX: &str = "orb-";
/// What the name of every host end of a veth pair begins with.
const VETH_PREFIX: &str = "orv-";
/// What the name of every tunnel begins with.
pub(crate) const TUNNEL_PREFIX: &str = "orx-";
/// Digits without the letters that people confuse.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The names of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    instance: String,
    /// Three digits that stand for the instance.
    mark: String,
}

impl Names {
    pub(crate) fn new(instance: &str) -> Names {
        Names { instance: instance.to_owned(), mark: digits(hash(&[instance]), 3) }
    }

    /// The nftables table. Other instances of the same network namespace have their own.
    pub(crate) fn table(&self) -> String {
        if self.instance == "orch" { "orch".to_owned() } else { format!("orch-{}", self.instance) }
    }

    /// The bridge of a network: 15 characters, the most that Linux allows.
    pub(crate) fn bridge(&self, network: &NetworkId) -> String {
        format!("{}{}", self.bridge_prefix(), digits(hash(&[&self.instance, &network.0]), 8))
    }

    /// The host's end of an endpoint.
    pub(crate) fn veth(&self, sandbox: &SandboxId, network: &NetworkId) -> String {
        format!("{}{}", self.veth_prefix(), digits(hash(&[&self.instance, &sandbox.0, &network.0]), 8))
    }

    /// The tunnel of a network to other nodes.
    pub(crate) fn tunnel(&self, network: &NetworkId) -> String {
        format!("{}{}", self.tunnel_prefix(), digits(hash(&[&self.instance, &network.0]), 8))
    }

    /// The wire of the ports that every node publishes. Shorter than a network's tunnel, so it is none's.
    pub(crate) fn mesh(&self) -> String {
        format!("{}mesh", self.tunnel_prefix())
    }

    /// What this instance's tunnels begin with.
    pub(crate) fn tunnel_prefix(&self) -> String {
        format!("{TUNNEL_PREFIX}{}", self.mark)
    }

    /// What this instance's bridges begin with.
    pub(crate) fn bridge_prefix(&self) -> String {
        format!("{BRIDGE_PREFIX}{}", self.mark)
    }

    /// What this instance's veth ends begin with.
    pub(crate) fn veth_prefix(&self) -> String {
        format!("{VETH_PREFIX}{}", self.mark)
    }
}

fn digits(mut number: u64, count: usize) -> String {
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(char::from(DIGITS[(number & 31) as usize]));
        number >>= 5;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_linux_and_never_change() {
        let names = Names::new("orch");
        assert_eq!(names.table(), "orch");
        assert_eq!(Names::new("t1").table(), "orch-t1");
        // Literal on purpose: a new build that computes others would lose what an older one made.
        assert_eq!(names.bridge(&"demo_default".into()), "orb-zfzk9d58zpb");
        assert_eq!(names.veth(&"a".into(), &"demo_default".into()).len(), 15);
    }

    #[test]
    fn instances_do_not_share_names() {
        let (one, two) = (Names::new("orch"), Names::new("other"));
        assert_ne!(one.bridge_prefix(), two.bridge_prefix());
        assert_ne!(one.veth(&"ab".into(), &"c".into()), one.veth(&"a".into(), &"bc".into()));
    }
}
