//! A replica whose state is changed behind its back: the others see it, and it takes part in nothing more until it has theirs.

use super::{Event, Invitation, MS, SECOND, StateRole, Weather, World};
use orch_scheduler::replica::Write;

/// So long there is time for what needs some entries or some messages.
const PATIENCE: u64 = 60 * SECOND;

impl World {
    /// A replica says that its state is not that of the others. It may be wrong only when that is so.
    pub(super) fn quarantine(&mut self, place: usize, writes: Vec<Write>) {
        let node = &mut self.nodes[place];
        let Some(up) = &mut node.up else { return };
        let why = up.replica.contradiction().expect("it says why");
        assert!(up.twisted, "R5: {} is accused and is as all others: {why}", node.name);
        up.writes.extend(writes);
        while !up.writes.is_empty() {
            up.write(0).expect("the disk is well");
        }
        node.up = None;
        node.damaged = true;
        self.at(SECOND, Event::Start(place));
    }

    /// Lets time pass until something is so.
    fn wait(&mut self, what: &str, mut wish: impl FnMut(&Self) -> bool) {
        let end = self.now + PATIENCE;
        while !wish(self) {
            assert!(self.now < end, "{what} does not come about");
            let next = self.now + 100 * MS;
            self.run_until(next);
        }
    }

    fn are_whole(&self) -> bool {
        let voters = self.oracle.latest.voters();
        voters.len() >= 3
            && self.oracle.latest.learners().len() < 2
            && self.nodes.iter().all(|node| {
                let member = self.oracle.latest.id_of(&node.name);
                let invited = node.invitation.as_ref().map(|invitation| invitation.id);
                member.is_none() || member == invited && node.up.is_some() && !node.damaged
            })
    }

    /// One of at least three managers, the leader or another, has another state from one moment on. Says whether there are hosts enough.
    pub(crate) fn twist(mut self, leader: bool) -> bool {
        if self.nodes.len() < 4 {
            return false;
        }
        self.nodes[0].invitation = Some(Invitation { id: 1, cluster: "simulated".to_owned() });
        self.network.weather = Weather::FAIR;
        self.trouble = false;
        // What is sent as a snapshot is what the sender has: here all follow, and none is sent but to who comes back.
        self.trailing = 10_000;
        self.nodes.iter_mut().for_each(|node| node.slowness = 2 * MS);
        self.at(0, Event::Start(0));
        (0..3).for_each(|client| self.at(100 * MS, Event::Client(client)));
        self.at(300 * MS, Event::Operator);
        self.wait("a cluster of three", Self::are_whole);
        self.settled = true;
        self.wait("a cluster at rest", |world| world.are_whole() && world.leader().is_some());
        let leads = self.leader().expect("just looked");
        let voters = self.oracle.latest.voters();
        let place = (0..self.nodes.len())
            .find(|place| {
                let id = self.nodes[*place].up.as_ref().map_or(0, |up| up.replica.identity().id);
                voters.contains(&id) && (*place == leads) == leader
            })
            .expect("there are three");
        let former = self.nodes[place].invitation.clone();
        let up = self.nodes[place].up.as_mut().expect("it votes");
        up.state.revision_sequence += 1;
        up.twisted = true;
        self.wait("the one that differs is found", |world| world.broken.contains(&place));
        let why = String::from_utf8(self.nodes[place].disk.content("condemned")).expect("a text");
        assert!(why.contains("votes and serves no more"), "{why}");
        self.settled = false;
        self.wait("it comes back", |world| world.nodes[place].invitation != former && world.are_whole());
        assert!(self.nodes[place].disk.has("condemned.aside") && !self.nodes[place].disk.has("condemned"));
        let others = self.nodes.iter().filter_map(|node| node.up.as_ref());
        let led = others.filter(|up| up.replica.raft().state == StateRole::Leader).count();
        assert_eq!(led, 1);
        self.make_peace();
        true
    }
}
