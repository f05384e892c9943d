//! Whether the network between the nodes carries what containers send to each other: tried when a node comes and now and then, before
//! anybody wonders why pages half load.
//!
//! [`Underlays`] decides, purely: which way is tried next, and what of it is worth telling. A verdict is told when it was given twice in a
//! row, for the other node may only be about to make its tunnel. A node that does not answer at all is none of this module's business.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orch_netd::{Underlay, UnderlayVerdict};
use orch_spec::assignment::{Assignment, NodeId};

use crate::{Shared, chain, cluster};

/// A node that has come gets so long to make its tunnels.
const FIRST: Duration = Duration::from_secs(3);
/// Between two tries of which the first went wrong.
const AGAIN: Duration = Duration::from_secs(5);
/// Between tries of a way that is known to fail, or to a node that does not answer.
const FAILING: Duration = Duration::from_secs(15);
/// Between tries of a way that works: three packets.
const WORKING: Duration = Duration::from_secs(600);
/// At most one look at what is to be tried in this time.
const LOOK: Duration = Duration::from_secs(1);

/// A way to another node: from here, to there.
type Path = (IpAddr, IpAddr);

#[derive(Debug)]
struct Way {
    path: Path,
    due: Instant,
    last: Option<UnderlayVerdict>,
    /// What is told of it.
    told: Option<UnderlayVerdict>,
    tried: bool,
}

/// What is known of the ways to other nodes.
#[derive(Debug, Default)]
pub(crate) struct Underlays {
    ways: BTreeMap<NodeId, Way>,
    /// This host's address whose card computes wrong checksums inside of tunnels, so that the kernel does it instead.
    spared: Option<IpAddr>,
    /// The card's name and driver.
    card: String,
    reported: Option<BTreeMap<NodeId, String>>,
}

impl Underlays {
    /// Goes on from what an earlier agent has told netd.
    pub(crate) fn new(former: Option<Underlay>) -> Self {
        let spared = former.filter(|underlay| underlay.own_checksums).map(|underlay| underlay.address);
        Self { spared, card: spared.map(card).unwrap_or_default(), ..Self::default() }
    }

    /// Takes in which ways there are, and says which to try now, or when to look again.
    fn next(&mut self, paths: &BTreeMap<NodeId, Path>, now: Instant) -> Result<(NodeId, Path), Option<Instant>> {
        self.ways.retain(|node, way| paths.get(node) == Some(&way.path));
        for (node, path) in paths {
            let new = Way { path: *path, due: now + FIRST, last: None, told: None, tried: false };
            self.ways.entry(node.clone()).or_insert(new);
        }
        match self.ways.iter().min_by_key(|(_, way)| way.due) {
            Some((node, way)) if way.due <= now => Ok((node.clone(), way.path)),
            first => Err(first.map(|(_, way)| way.due)),
        }
    }

    /// Takes in how a way was found; `None`: it cannot be judged. Says whether this host's card is to be spared checksums from now on.
    fn judge(&mut self, node: &NodeId, path: Path, verdict: Option<UnderlayVerdict>, now: Instant) -> bool {
        let Some(way) = self.ways.get_mut(node).filter(|way| way.path == path) else { return false };
        way.tried = true;
        let is_confirmed = verdict.is_some() && kind(way.last) == kind(verdict);
        way.last = verdict;
        way.due = now;
        match verdict {
            Some(UnderlayVerdict::Carries { .. }) => {
                way.told = None;
                way.due += WORKING;
            }
            None | Some(UnderlayVerdict::Unreachable) => {
                way.told = None;
                way.due += FAILING;
            }
            Some(_) if !is_confirmed => way.due += AGAIN,
            Some(UnderlayVerdict::Checksums) if self.spared != Some(path.0) => {
                (self.spared, self.card) = (Some(path.0), card(path.0));
                way.last = None;
                way.due += AGAIN;
                return true;
            }
            Some(_) => {
                way.told = verdict;
                way.due += FAILING;
            }
        }
        false
    }

    /// What there is to tell, and was not told before. Nothing until every way was tried once: what an earlier agent has told stands until then.
    fn news(&mut self) -> Option<BTreeMap<NodeId, String>> {
        if !self.ways.values().all(|way| way.tried) || self.ways.is_empty() && self.reported.is_none() {
            return None;
        }
        let mut all: BTreeMap<NodeId, String> = BTreeMap::new();
        for (node, way) in &self.ways {
            let spared = (self.spared == Some(way.path.0)).then(|| {
                format!(
                    "{} computes wrong checksums inside of tunnels: this host does it instead, and is slower for it",
                    self.card
                )
            });
            let trouble = way.told.map(|verdict| verdict.to_string()).or(spared);
            all.extend(trouble.map(|trouble| (node.clone(), trouble)));
        }
        if self.reported.as_ref() == Some(&all) {
            return None;
        }
        self.reported = Some(all.clone());
        Some(all)
    }
}

/// Verdicts of the same kind differ by figures.
fn kind(verdict: Option<UnderlayVerdict>) -> Option<std::mem::Discriminant<UnderlayVerdict>> {
    verdict.map(|verdict| std::mem::discriminant(&verdict))
}

/// The ways from here that can be tried.
fn paths(assignment: &Assignment) -> BTreeMap<NodeId, Path> {
    let Some(mesh) = &assignment.mesh else { return BTreeMap::new() };
    let Some(own) = &mesh.own else { return BTreeMap::new() };
    mesh.peers.iter().map(|peer| (peer.node.clone(), (own.underlay, peer.underlay))).collect()
}

/// The link that has an address, with its driver's name where it has one.
fn card(address: IpAddr) -> String {
    let name = nix::ifaddrs::getifaddrs().ok().and_then(|mut all| {
        let has = |found: &nix::sys::socket::SockaddrStorage| match address {
            IpAddr::V4(v4) => found.as_sockaddr_in().is_some_and(|found| found.ip() == v4),
            IpAddr::V6(v6) => found.as_sockaddr_in6().is_some_and(|found| found.ip() == v6),
        };
        all.find(|link| link.address.as_ref().is_some_and(has)).map(|link| link.interface_name)
    });
    let Some(name) = name else { return format!("the card of {address}") };
    let driver = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok();
    match driver.as_deref().and_then(|path| path.file_name()) {
        Some(driver) => format!("{name} ({})", driver.to_string_lossy()),
        None => name,
    }
}

fn known(shared: &Shared) -> MutexGuard<'_, Underlays> {
    shared.underlays.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This host's address whose card is to be spared checksums inside of tunnels.
pub(crate) fn spared(shared: &Shared) -> Option<IpAddr> {
    known(shared).spared
}

/// What there is to tell the control plane.
pub(crate) fn news(shared: &Shared) -> Option<BTreeMap<NodeId, String>> {
    known(shared).news()
}

/// Tries the ways to other nodes, for ever.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut version = shared.version.subscribe();
    loop {
        let paths = paths(&shared.lock().assignment.clone());
        let next = known(&shared).next(&paths, Instant::now());
        match next {
            Ok((node, path)) => attempt(&shared, &node, path).await,
            Err(due) => {
                let due = due.map(tokio::time::Instant::from_std);
                let sleep = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = sleep => {}
                    changed = version.changed() => if changed.is_err() { return },
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

async fn attempt(shared: &Arc<Shared>, node: &NodeId, path: Path) {
    let (netd, (_, there)) = (shared.netd.clone(), path);
    let verdict = match tokio::task::spawn_blocking(move || netd.probe_underlay(there)).await {
        Ok(Ok(verdict)) => Some(verdict),
        Ok(Err(e)) => {
            tracing::debug!(node = %node.0, error = chain(&e), "the way to a node cannot be judged");
            None
        }
        Err(e) => {
            tracing::error!(error = %e, "the way to a node was not tried to the end");
            None
        }
    };
    if known(shared).judge(node, path, verdict, Instant::now()) {
        cluster::changed(shared);
    }
    shared.touch();
}

#[cfg(test)]
mod tests {
    use UnderlayVerdict::{Carries, Checksums, Filtered, TooSmall, Unreachable};

    use super::*;

    const HERE: [u8; 4] = [127, 0, 0, 1];

    fn path(last: u8) -> Path {
        (HERE.into(), [192, 0, 2, last].into())
    }

    /// Tries every way that is due until none is, and says what is told.
    fn told(
        underlays: &mut Underlays,
        paths: &BTreeMap<NodeId, Path>,
        now: &mut Instant,
        verdicts: &[(&str, UnderlayVerdict)],
    ) -> Vec<String> {
        for (expected, verdict) in verdicts {
            let (node, path) = loop {
                match underlays.next(paths, *now) {
                    Ok(found) => break found,
                    Err(due) => *now = due.expect("there are ways"),
                }
            };
            assert_eq!(node.0, *expected);
            underlays.judge(&node, path, Some(*verdict), *now);
        }
        let news = underlays.news().unwrap_or_default();
        news.into_iter().map(|(node, why)| format!("{}: {why}", node.0)).collect()
    }

    #[test]
    fn only_what_fails_twice_in_a_row_is_told_and_told_again_when_it_works() {
        let (mut underlays, mut now) = (Underlays::default(), Instant::now());
        let both = BTreeMap::from([("b".into(), path(2)), ("c".into(), path(3))]);
        let mut told = |verdicts: &[(&str, UnderlayVerdict)]| told(&mut underlays, &both, &mut now, verdicts);
        let (works, filtered) = (Carries { mtu: 1450 }, Filtered { port: 14_789 });
        assert_eq!(told(&[("b", filtered)]), [""; 0], "c was not tried yet");
        assert_eq!(told(&[("c", Unreachable)]), [""; 0]);
        let failing = told(&[("b", filtered)]);
        assert!(
            failing.len() == 1 && failing[0].starts_with("b: the node answers, but not through a tunnel"),
            "{failing:?}"
        );
        assert_eq!(told(&[("c", works), ("b", works)]), [""; 0]);
        // Figures may differ.
        let small = |fits| TooSmall { mtu: 1450, fits, overhead: 50 };
        let failing = told(&[("c", small(1300)), ("b", works), ("c", small(1290))]);
        assert!(failing.len() == 1 && failing[0].starts_with("c: packets of 1290 bytes pass"), "{failing:?}");
    }

    #[test]
    fn what_works_again_is_taken_back_and_so_is_what_was_said_of_a_node_that_is_gone() {
        let (mut underlays, mut now) = (Underlays::default(), Instant::now());
        let one = BTreeMap::from([("b".into(), path(2))]);
        let filtered = Filtered { port: 14_789 };
        for verdict in [Carries { mtu: 1450 }, filtered] {
            told(&mut underlays, &one, &mut now, &[("b", filtered), ("b", filtered)]);
            assert_eq!(underlays.news(), None, "told already");
            told(&mut underlays, &one, &mut now, &[("b", verdict)]);
        }
        underlays.reported = Some(BTreeMap::from([("b".into(), "it failed".to_owned())]));
        assert!(underlays.next(&BTreeMap::new(), now).is_err());
        assert_eq!(underlays.news(), Some(BTreeMap::new()));
    }

    #[test]
    fn a_card_that_spoils_checksums_is_spared_them_and_named() {
        let (mut underlays, mut now) = (Underlays::default(), Instant::now());
        let one = BTreeMap::from([("b".into(), path(2))]);
        told(&mut underlays, &one, &mut now, &[("b", Checksums), ("b", Checksums)]);
        assert_eq!(underlays.spared, Some(HERE.into()));
        let news = told(&mut underlays, &one, &mut now, &[("b", Carries { mtu: 1450 })]);
        assert_eq!(news, [""; 0], "told already");
        let told = underlays.reported.clone().unwrap_or_default();
        let slower = "lo computes wrong checksums inside of tunnels: this host does it instead, and is slower for it";
        assert_eq!(told, BTreeMap::from([("b".into(), slower.to_owned())]));
        // The next agent goes on with it.
        let underlay = Underlay { address: HERE.into(), port: 14_789, own_checksums: true };
        assert_eq!(Underlays::new(Some(underlay)).spared, Some(HERE.into()));
    }
}
