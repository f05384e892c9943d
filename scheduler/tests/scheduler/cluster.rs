//! Several control planes in one process, with their real threads and disks, over a transport in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use orch_core::{Command, MemberRole, NewVolume};
use orch_scheduler::transport::Transport;
use orch_scheduler::{Bootstrap, Control, ControlConfig, Invitation, ProposeError, Standing};
use orch_spec::assignment::NodeId;

/// Everything that is waited for here comes within a second or two; a busy machine may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who hears whom.
#[derive(Default)]
struct Switch {
    ports: Mutex<BTreeMap<NodeId, Control>>,
    cut: Mutex<BTreeSet<NodeId>>,
}

impl Switch {
    fn connect(&self, node: &NodeId, control: &Control) {
        self.ports.lock().expect("no panic with it").insert(node.clone(), control.clone());
    }

    /// As if the process were gone: it neither hears nor is heard.
    fn cut(&self, node: &NodeId) {
        self.cut.lock().expect("no panic with it").insert(node.clone());
    }

    fn heal(&self, node: &NodeId) {
        self.cut.lock().expect("no panic with it").remove(node);
    }
}

struct Port {
    node: NodeId,
    switch: Weak<Switch>,
}

impl Transport for Port {
    fn send(&self, to: &NodeId, message: Bytes) {
        let Some(switch) = self.switch.upgrade() else { return };
        let cut = switch.cut.lock().expect("no panic with it");
        if cut.contains(&self.node) || cut.contains(to) {
            return;
        }
        drop(cut);
        let receiver = switch.ports.lock().expect("no panic with it").get(to).cloned();
        if let Some(receiver) = receiver {
            receiver.receive(&self.node, message);
        }
    }
}

pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    switch: Arc<Switch>,
    pub(crate) controls: BTreeMap<NodeId, Control>,
    bootstraps: BTreeMap<NodeId, Bootstrap>,
}

impl Cluster {
    /// So many managers that vote.
    pub(crate) async fn of(count: usize) -> Self {
        let (dir, switch) = (tempfile::tempdir().expect("a directory"), Arc::new(Switch::default()));
        let mut cluster = Self { dir, switch, controls: BTreeMap::new(), bootstraps: BTreeMap::new() };
        cluster.start(&name(0), Bootstrap::Alone).await;
        for number in 1..count {
            cluster.add(&name(number)).await;
        }
        cluster.wait_for_voters(if count.is_multiple_of(2) { count - 1 } else { count }).await;
        cluster
    }

    async fn start(&mut self, node: &NodeId, bootstrap: Bootstrap) {
        let config = ControlConfig {
            data_dir: self.dir.path().join(&node.0),
            node: node.clone(),
            address: format!("{node}:7000"),
            transport: Arc::new(Port { node: node.clone(), switch: Arc::downgrade(&self.switch) }),
            bootstrap: bootstrap.clone(),
        };
        let control = Control::start(config).await.expect("it starts");
        self.switch.connect(node, &control);
        self.controls.insert(node.clone(), control);
        self.bootstraps.insert(node.clone(), bootstrap);
    }

    async fn stop(&mut self, node: &NodeId) {
        if let Some(control) = self.controls.remove(node) {
            control.shutdown().await;
        }
    }

    async fn restart(&mut self, node: &NodeId) {
        let bootstrap = self.bootstraps[node].clone();
        self.start(node, bootstrap).await;
    }

    fn dir(&self, node: &NodeId) -> std::path::PathBuf {
        self.dir.path().join(&node.0)
    }

    async fn add(&mut self, node: &NodeId) -> Invitation {
        let invitation = self.invite(node).await;
        self.start(node, Bootstrap::Join(invitation.clone())).await;
        invitation
    }

    /// Asks whoever leads, until it is done.
    async fn invite(&self, node: &NodeId) -> Invitation {
        let until = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await;
            match self.controls[&leader].add_manager(node.clone(), format!("{node}:7000")).await {
                Ok(invitation) => return invitation,
                Err(error) if error.is_transient() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{node} cannot be added: {error}"),
            }
        }
    }

    async fn remove(&self, node: &NodeId) {
        let until = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await;
            match self.controls[&leader].remove_manager(node).await {
                Ok(()) => return,
                Err(error) if error.is_transient() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{node} cannot be removed: {error}"),
            }
        }
    }

    /// Who leads, of those that are not cut off.
    pub(crate) async fn leader(&self) -> NodeId {
        let until = Instant::now() + PATIENCE;
        loop {
            let cut = self.switch.cut.lock().expect("no panic with it").clone();
            let mut there = self.controls.iter().filter(|(node, _)| !cut.contains(*node));
            if let Some((node, _)) = there.find(|(_, control)| control.leadership().borrow().is_leader) {
                return node.clone();
            }
            assert!(Instant::now() < until, "nobody leads");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn wait_for_voters(&self, count: usize) {
        for (node, control) in &self.controls {
            let there = control.wait_until(PATIENCE, |state| state.members.voters().len() == count).await;
            assert!(there, "{node} sees {:?}", control.read(|state| state.members.clone()));
        }
    }

    /// Proposes to whoever leads until it is accepted.
    async fn propose(&self, number: usize) -> u64 {
        self.propose_command(volume(number)).await
    }

    async fn propose_command(&self, command: Command) -> u64 {
        let until = Instant::now() + PATIENCE;
        loop {
            let leader = self.leader().await;
            match self.controls[&leader].propose(command.clone()).await {
                Ok((index, _)) => return index,
                // Made already by the try of which nobody could say what became.
                Err(ProposeError::Refused(_)) => return 0,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    }

    async fn shutdown(self) {
        for control in self.controls.values() {
            control.shutdown().await;
        }
    }
}

pub(crate) fn name(number: usize) -> NodeId {
    NodeId(format!("manager-{number}"))
}

pub(crate) fn volume(number: usize) -> Command {
    Command::CreateVolume(NewVolume { name: format!("volume-{number}"), ..NewVolume::default() })
}

fn has(number: usize) -> impl FnMut(&orch_core::State) -> bool {
    move |state| state.volumes.contains_key(&format!("volume-{number}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_every_manager_and_a_follower_names_the_leader() {
    let cluster = Cluster::of(3).await;
    cluster.propose(1).await;
    let leader = cluster.leader().await;
    for (node, control) in &cluster.controls {
        assert!(control.wait_until(PATIENCE, has(1)).await, "{node} has it");
        assert_eq!(control.leadership().borrow().standing, Standing::Voter);
        if *node != leader {
            let refused = control.propose(volume(2)).await.expect_err("only the leader takes changes");
            assert!(matches!(refused, ProposeError::NotLeader { leader: Some(named) } if named == leader));
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_at_a_follower_sees_what_was_acknowledged_before_it_began() {
    let cluster = Cluster::of(3).await;
    for number in 0..30 {
        let index = cluster.propose(number).await;
        let control = &cluster.controls[&name(number % 3)];
        let read = control.read_index().await.expect("the leader answers");
        assert!(read >= index, "{read} after {index}");
        assert!(control.read(has(number)), "the state here has what was acknowledged there");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_accepted_again_soon_after_the_leader_is_gone() {
    let mut cluster = Cluster::of(3).await;
    let mut times = Vec::new();
    for round in 0..5 {
        cluster.propose(100 + round).await;
        let leader = cluster.leader().await;
        cluster.switch.cut(&leader);
        let since = Instant::now();
        cluster.propose(200 + round).await;
        times.push(since.elapsed());
        // Its process is gone; it comes back and has what it missed.
        cluster.stop(&leader).await;
        cluster.switch.heal(&leader);
        cluster.restart(&leader).await;
        let back = &cluster.controls[&leader];
        assert!(back.wait_until(PATIENCE, has(200 + round)).await, "{leader} catches up");
    }
    times.sort();
    println!("leader gone until a change is accepted: median {:?}, longest {:?}", times[times.len() / 2], times[4]);
    for (node, control) in &cluster.controls {
        for round in 0..5 {
            assert!(control.wait_until(PATIENCE, has(100 + round)).await, "{node} has lost a change");
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_ends_hands_its_leadership_over_first() {
    let mut cluster = Cluster::of(3).await;
    cluster.propose(1).await;
    let leader = cluster.leader().await;
    let since = Instant::now();
    cluster.stop(&leader).await;
    cluster.propose(2).await;
    println!("planned change of the leader: {:?} until a change is accepted", since.elapsed());
    assert_ne!(cluster.leader().await, leader);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_is_removed_only_after_another_leads() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let removed = cluster.controls[&leader].clone();
    cluster.remove(&leader).await;
    let mut leadership = removed.leadership();
    let gone = leadership.wait_for(|leadership| leadership.standing == Standing::Removed);
    tokio::time::timeout(PATIENCE, gone).await.expect("it hears of it").expect("it is there");
    let refused = removed.propose(volume(9)).await.expect_err("it takes nothing any more");
    assert!(matches!(refused, ProposeError::NotLeader { .. }), "{refused}");
    cluster.stop(&leader).await;
    // Two voters are left, and one more makes them three.
    cluster.propose(1).await;
    let former = match &cluster.bootstraps[&leader] {
        Bootstrap::Alone | Bootstrap::Never(_) => 1,
        Bootstrap::Join(invitation) => invitation.id,
    };
    let invitation = cluster.add(&leader).await;
    assert!(invitation.id > former, "a number is never given twice");
    cluster.wait_for_voters(3).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_manager_learns_until_a_third_makes_the_number_odd() {
    let mut cluster = Cluster::of(2).await;
    cluster.propose(1).await;
    let second = &cluster.controls[&name(1)];
    assert!(second.wait_until(PATIENCE, has(1)).await);
    let role = second.read(|state| state.members.managers.values().map(|member| member.role).collect::<Vec<_>>());
    assert_eq!(role, [MemberRole::Voter, MemberRole::Learner]);
    cluster.add(&name(2)).await;
    cluster.wait_for_voters(3).await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_accepts_nothing_and_says_that_there_is_no_leader() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let cut = cluster.controls[&leader].clone();
    cluster.switch.cut(&leader);
    // Whatever it is asked from now on is not accepted: neither at once nor when it comes back.
    let lost = cut.propose(volume(7)).await.expect_err("a leader without its majority accepts nothing");
    assert!(!matches!(lost, ProposeError::Refused(_)), "{lost}");
    let mut leadership = cut.leadership();
    let deposed = leadership.wait_for(|leadership| !leadership.is_leader && leadership.leader.is_none());
    tokio::time::timeout(PATIENCE, deposed).await.expect("it sees it").expect("it is there");
    cut.read_index().await.expect_err("nobody can say what was acknowledged elsewhere");
    cluster.propose(8).await;
    cluster.switch.heal(&leader);
    assert!(cut.wait_until(PATIENCE, has(8)).await);
    assert!(!cut.read(has(7)), "what was not accepted has happened");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_refused_and_its_manager_comes_back_as_another() {
    let mut cluster = Cluster::of(3).await;
    for number in 0..20 {
        cluster.propose(number).await;
    }
    let leader = cluster.leader().await;
    let victim = (0..3).map(name).find(|node| *node != leader).expect("there are three");
    cluster.stop(&victim).await;
    damage(&cluster.dir(&victim));
    let config = ControlConfig {
        address: format!("{victim}:7000"),
        bootstrap: cluster.bootstraps[&victim].clone(),
        ..ControlConfig::alone(cluster.dir(&victim), victim.clone())
    };
    let refused = Control::start(config).await.expect_err("a log that has lost something is not believed");
    assert!(refused.to_string().contains("open the control log"), "{refused}");
    cluster.remove(&victim).await;
    cluster.add(&victim).await;
    cluster.wait_for_voters(3).await;
    let back = &cluster.controls[&victim];
    assert!(back.wait_until(PATIENCE, |state| state.volumes.len() == 20).await, "it has everything again");
    cluster.shutdown().await;
}

/// Turns a bit over in the middle of what the log has.
fn damage(dir: &Path) {
    let path = dir.join("log");
    let mut bytes = std::fs::read(&path).expect("it has a log");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("it is not empty");
    bytes[end / 2] ^= 16;
    std::fs::write(path, bytes).expect("the disk takes it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_larger_than_a_message_reaches_the_others() {
    let cluster = Cluster::of(3).await;
    let labels = [("filler".to_owned(), "x".repeat(6 << 20))].into();
    let large = Command::CreateVolume(NewVolume { name: "large".to_owned(), labels, ..NewVolume::default() });
    cluster.propose_command(large).await;
    for control in cluster.controls.values() {
        assert!(control.wait_until(PATIENCE, |state| state.volumes.contains_key("large")).await);
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_changed_is_known_everywhere_after_a_restart() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let moved = (0..3).map(name).find(|node| *node != leader).expect("there are three");
    cluster.stop(&moved).await;
    let config = ControlConfig {
        address: "elsewhere:7000".to_owned(),
        transport: Arc::new(Port { node: moved.clone(), switch: Arc::downgrade(&cluster.switch) }),
        bootstrap: cluster.bootstraps[&moved].clone(),
        ..ControlConfig::alone(cluster.dir(&moved), moved.clone())
    };
    let control = Control::start(config).await.expect("it starts");
    cluster.switch.connect(&moved, &control);
    cluster.controls.insert(moved.clone(), control);
    for (node, control) in &cluster.controls {
        let known = |state: &orch_core::State| {
            state.members.managers.values().any(|member| member.node == moved && member.address == "elsewhere:7000")
        };
        assert!(control.wait_until(PATIENCE, known).await, "{node} knows");
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_nobody_holds_any_more_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let control = Control::start(ControlConfig::alone(dir.path().to_owned(), name(0))).await.expect("it starts");
    let mut leadership = control.leadership();
    drop(control);
    let ended = async { while leadership.changed().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("its threads go with it");
}
