//! Noticing that this host has another address than the one that the others were told.
//!
//! A node is known by its id and key; its address is only where it is reached. When the address has gone from the host, the node takes up the
//! one from which it has just reached a manager, and starts its process again: everything that knows an address then begins with the new one,
//! and what runs does not notice. It tells the others as it tells them everything, by its facts and by raft's messages. A host that reaches
//! nobody keeps its address: its link may be back at any moment. When all managers get other addresses at once, nobody finds anybody.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use orch_api::error::chain;
use orch_api::tls::node_name;

use super::Peers;
use super::entry::Host;
use crate::identity::Membership;

/// How often to look.
const LOOK: Duration = Duration::from_secs(1);
/// An address must be gone for so many looks: it goes for a moment when a link is configured anew.
const GONE: u32 = 3;
/// How long reaching a manager may take.
const REACH_TIME: Duration = Duration::from_secs(2);

/// Whether an address is one of this host's own.
pub(super) fn is_own(address: IpAddr) -> bool {
    // bind(2) refuses what is nobody's here (EADDRNOTAVAIL); nothing is sent.
    UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

/// The address from which this host has just reached another manager; `None` when it reaches none. What its routes say is not enough: the
/// default route has an answer to everything.
async fn reaching(peers: &Peers, known: &Membership) -> Option<IpAddr> {
    let own = peers.node();
    for manager in known.managers.iter().filter(|manager| manager.node != *own && !manager.node.0.is_empty()) {
        let name = node_name(&manager.node.0);
        let reached = tokio::time::timeout(REACH_TIME, peers.connect(&manager.address, &name)).await;
        if let Ok(Ok(stream)) = reached
            && let Ok(address) = stream.get_ref().0.local_addr()
        {
            return Some(address.ip());
        }
    }
    None
}

/// The membership with another address.
fn moved(known: &Membership, own: &str, former: SocketAddr, address: IpAddr) -> Membership {
    let mut membership = known.clone();
    membership.advertise = SocketAddr::new(address, former.port()).to_string();
    if let Ok(listen) = known.listen.parse::<SocketAddr>()
        && listen.ip() == former.ip()
    {
        membership.listen = SocketAddr::new(address, listen.port()).to_string();
    }
    if let Some(own) = membership.managers.iter_mut().find(|manager| manager.node.0 == own) {
        own.address.clone_from(&membership.advertise);
    }
    membership
}

/// Looks for ever, or until the process must start again.
pub async fn keep(host: Host) {
    let mut gone = 0;
    let mut membership = host.peers.membership();
    loop {
        if membership.borrow_and_update().is_none() {
            // Alone, its address was told to nobody. The sender lives as long as the peers.
            let _ = membership.changed().await;
        }
        tokio::time::sleep(LOOK).await;
        let Some(known) = membership.borrow().clone().filter(|known| !known.translated) else { continue };
        let Ok(former) = known.advertise.parse::<SocketAddr>() else { continue };
        gone = if is_own(former.ip()) { 0 } else { gone + 1 };
        if gone < GONE {
            continue;
        }
        let Some(address) = reaching(&host.peers, &known).await else { continue };
        let membership = moved(&known, &host.peers.node().0, former, address);
        match host.peers.set_membership(membership) {
            Ok(()) => {
                tracing::info!(%former, %address, "this host has another address: starting again with it");
                return host.restart.notify_one();
            }
            Err(error) => tracing::error!(error = chain(&error), "the new address could not be remembered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ManagerAddress;
    use orch_spec::role::Role;

    #[test]
    fn a_new_address_is_taken_up_wherever_the_former_was_kept() {
        let manager = |node: &str, address: &str| ManagerAddress { node: node.into(), address: address.to_owned() };
        let known = Membership {
            cluster: "c".to_owned(),
            role: Role::Manager,
            advertise: "192.0.2.1:7373".to_owned(),
            listen: "192.0.2.1:7374".to_owned(),
            translated: false,
            managers: vec![manager("own", "192.0.2.1:7373"), manager("far", "192.0.2.9:7373")],
        };
        let former: SocketAddr = "192.0.2.1:7373".parse().expect("an address");
        let found = moved(&known, "own", former, [192, 0, 2, 7].into());
        assert_eq!((found.advertise.as_str(), found.listen.as_str()), ("192.0.2.7:7373", "192.0.2.7:7374"));
        assert_eq!(found.managers[0].address, "192.0.2.7:7373");
        assert_eq!(found.managers[1], known.managers[1]);
    }

    #[test]
    fn an_address_is_ones_own_or_not() {
        assert!(is_own([127, 0, 0, 1].into()));
        // RFC 5737: nobody has it.
        assert!(!is_own([203, 0, 113, 5].into()));
    }
}
