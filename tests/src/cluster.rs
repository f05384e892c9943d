//! Several hosts as one: machines of their own, joined by one switch.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::host::Host;
use crate::machine::Place;
use crate::output::Output;
use crate::process::Identity;
use crate::segment::{Segment, address};
use crate::wait::{PATIENCE, eventually};

/// How often each answer was given: a page, or why there was none.
pub type Answers = BTreeMap<Result<String, String>, usize>;

/// Hosts on one switch; the first has the number 1.
#[derive(Debug)]
pub struct Hosts {
    /// The switch.
    pub segment: Segment,
    /// In the order of their numbers.
    pub hosts: Vec<Host>,
}

impl Hosts {
    /// Hosts that are alone.
    ///
    /// # Panics
    /// When they cannot be made.
    #[must_use]
    #[track_caller]
    pub fn new(count: u8) -> Self {
        let segment = Segment::new().expect("a switch can be made");
        let hosts = (1..=count).map(|port| {
            let host = Host::new();
            segment.plug(&host, port).expect("a host can be plugged in");
            host.start_agent();
            host
        });
        let hosts = hosts.collect();
        Self { segment, hosts }
    }

    /// The first opened to the others, which have joined it with tokens of these roles.
    ///
    /// # Panics
    /// When they cannot be made.
    #[must_use]
    #[track_caller]
    pub fn cluster(roles: &[&str]) -> Self {
        let count = u8::try_from(roles.len()).expect("a few hosts") + 1;
        let hosts = Self::new(count);
        hosts.init();
        for (place, role) in roles.iter().enumerate() {
            let token = hosts.token(&[role]);
            hosts.join(place + 2, &token).ok();
        }
        hosts
    }

    /// So many managers that all vote and know who leads.
    ///
    /// # Panics
    /// When it does not come to that.
    #[must_use]
    #[track_caller]
    pub fn managers(count: usize) -> Self {
        let hosts = Self::cluster(&vec!["manager"; count - 1]);
        hosts.all_vote();
        hosts
    }

    /// Waits until all hosts know of the same leader and that all of them vote: the number of voters is odd by rule, and a new manager votes
    /// only when it has caught up.
    ///
    /// # Panics
    /// When it does not come to that.
    #[track_caller]
    pub fn all_vote(&self) {
        let count = self.hosts.len();
        eventually(PATIENCE, "all know who leads, and that all vote", || {
            // The agent of one that was promoted starts again, and does not answer for a moment.
            let info = |number: usize| self.host(number).orch(&["cluster", "info", "--format", "json"]);
            let answers =
                (1..=count).map(info).map(|answer| if answer.code == 0 { Ok(answer) } else { Err(answer.stderr) });
            let infos: Vec<Value> = answers.map(|answer| Ok(answer?.json())).collect::<Result<_, String>>()?;
            let agree = infos.iter().all(|info| {
                info["leader"] == infos[0]["leader"]
                    && info["leader"] != ""
                    && info["voters"].as_array().is_some_and(|voters| voters.len() == count)
            });
            if agree { Ok(()) } else { Err(format!("{infos:?}")) }
        });
    }

    /// One of them.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// Has every host know an image.
    ///
    /// # Panics
    /// When one does not take it.
    #[track_caller]
    pub fn load(&self, name: &str) {
        self.hosts.iter().for_each(|host| host.load(name));
    }

    /// Does something while one host asks for the page that the first three publish on port 8080, through each of them, without a pause.
    /// What the deed returned, and the answers through the first, the second and the third.
    ///
    /// # Panics
    /// When the deed does.
    pub fn while_asking<T>(&self, from: usize, act: impl FnOnce() -> T) -> (T, Vec<Answers>) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ask = |number: u8| {
                let done = &done;
                move || {
                    let mut answers = Answers::new();
                    while !done.load(Ordering::Relaxed) {
                        let page = self.host(from).page(Place::Host, address(number), 8080, "/");
                        *answers.entry(page).or_default() += 1;
                    }
                    answers
                }
            };
            let askers: Vec<_> = (1..=3).map(|number| scope.spawn(ask(number))).collect();
            // Whoever asks must end also when the deed fails, or the scope never would.
            let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            done.store(true, Ordering::Relaxed);
            let answers = askers.into_iter().map(|asker| asker.join().expect("whoever asks does not panic")).collect();
            (acted.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), answers)
        })
    }

    /// Opens the first to others.
    #[track_caller]
    pub fn init(&self) {
        self.host(1).orch(&["cluster", "init", "--advertise-addr", &address(1).to_string()]).ok();
    }

    /// A join token of the first.
    #[must_use]
    #[track_caller]
    pub fn token(&self, arguments: &[&str]) -> String {
        let output = self.host(1).orch(&[&["-q", "cluster", "token"], arguments].concat()).ok();
        output.text().trim().to_owned()
    }

    /// Has one join the first.
    #[must_use]
    #[track_caller]
    pub fn join(&self, number: usize, token: &str) -> Output {
        self.host(number).orch(&["cluster", "join", "--token", token, &address(1).to_string()])
    }

    /// What one says of itself and its cluster.
    #[must_use]
    #[track_caller]
    pub fn info(&self, number: usize) -> Value {
        self.host(number).orch(&["cluster", "info", "--format", "json"]).ok().json()
    }

    /// The members that one knows.
    #[must_use]
    #[track_caller]
    pub fn nodes(&self, number: usize) -> Vec<Value> {
        self.host(number).orch(&["cluster", "ls", "--format", "json"]).ok().json_lines()
    }

    /// The id of one's node.
    #[must_use]
    #[track_caller]
    pub fn id(&self, number: usize) -> String {
        self.info(number)["node"].as_str().unwrap_or_default().to_owned()
    }

    /// The number of the host that leads, as one of them knows it.
    ///
    /// # Panics
    /// When there is no leader for long.
    #[must_use]
    #[track_caller]
    pub fn leader(&self, asked: usize) -> usize {
        eventually(PATIENCE, "somebody leads", || {
            let info = self.info(asked);
            let members = self.nodes(asked);
            let leads = members.iter().find(|member| member["node"] == info["leader"]);
            let address_of = |number: &u8| address(*number).to_string();
            let place = leads.and_then(|member| {
                let listens = member["address"].as_str()?;
                (1..=u8::MAX).find(|number| listens.starts_with(&format!("{}:", address_of(number))))
            });
            place.map(usize::from).ok_or_else(|| format!("{info} {members:?}"))
        })
    }

    /// What comes from those hosts does not arrive at this one any more; what it sends does.
    #[track_caller]
    pub fn deafen(&self, number: usize, from: &[usize]) {
        // Before connection tracking, so that what was established is dropped as well.
        let mut rules =
            "add table inet cut\nadd chain inet cut in { type filter hook prerouting priority -450; }\n".to_owned();
        for other in from {
            let other = address(u8::try_from(*other).expect("a few hosts"));
            writeln!(rules, "add rule inet cut in ip saddr {other} drop").expect("text can be written");
        }
        self.host(number).sh(Place::Host, &format!("nft -f - <<'end'\n{rules}end"));
    }

    /// Two groups of hosts do not hear each other any more, in both directions.
    #[track_caller]
    pub fn part(&self, one: &[usize], other: &[usize]) {
        one.iter().for_each(|number| self.deafen(*number, other));
        other.iter().for_each(|number| self.deafen(*number, one));
    }

    /// All hosts hear each other again.
    #[track_caller]
    pub fn heal(&self) {
        for host in &self.hosts {
            host.sh(Place::Host, "nft delete table inet cut 2>/dev/null || true");
        }
    }

    /// The processes of all containers that run on one, by name.
    #[must_use]
    #[track_caller]
    pub fn running(&self, number: usize) -> BTreeMap<String, Identity> {
        let host = self.host(number);
        let containers = host.orch(&["container", "ls", "--format", "json"]).ok().json_lines();
        let name = |container: &Value| container["name"].as_str().unwrap_or_default().to_owned();
        containers.iter().map(|container| (name(container), host.process(container))).collect()
    }

    /// How well the nodes are as one host knows it: `ready`, `suspect` or `down`, by host name.
    #[must_use]
    #[track_caller]
    pub fn states(&self, asked: usize) -> BTreeMap<String, String> {
        let nodes = self.host(asked).orch(&["node", "ls", "--format", "json"]).ok().json_lines();
        let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
        nodes.iter().map(|node| (text(node, "hostname"), text(node, "state"))).collect()
    }

    /// Waits until one host sees all as ready.
    #[track_caller]
    pub fn all_ready(&self, asked: usize) {
        self.so_many_ready(asked, self.hosts.len());
    }

    /// The same of a cluster that not all hosts are in.
    ///
    /// # Panics
    /// When they do not become so.
    #[track_caller]
    pub fn so_many_ready(&self, asked: usize, count: usize) {
        eventually(PATIENCE, "all hosts are ready", || {
            let states = self.states(asked);
            let well = states.len() == count && states.values().all(|state| state == "ready");
            if well { Ok(()) } else { Err(format!("{states:?}")) }
        });
    }
}
