//! The hosts, the stacks on them, and what is expected of both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orch_tests::cluster::Hosts;
use orch_tests::host::Host;
use orch_tests::output::Output;
use orch_tests::segment::address;

/// What stands in the files of whoever uses the secret, and in no file of a host's state.
pub(crate) const SECRET: &str = "plaintext-of-the-soak";

/// A page behind an address and a published port, and somebody on every host who asks for names.
const FRONT: &str = "
name: front
services:
  page:
    image: busybox
    init: true
    environment: {VERSION: 'v@VERSION'}
    command: [sh, -c, '@BEGIN mkdir -p /www; echo $$VERSION $$(hostname) >/www/index.html; exec httpd -f -p 80 -h /www']
    healthcheck:
      {test: [CMD, wget, -q, -O, /dev/null, 'http://127.0.0.1/'], start_period: 30s, start_interval: 200ms, interval: 3s}
    ports: ['8080:80']
    deploy:
      replicas: @REPLICAS
      update_config: {parallelism: 2, order: start-first, failure_action: rollback, monitor: 500ms}
      rollback_config: {parallelism: 2, order: start-first}
      restart_policy: {condition: any, delay: 200ms}
  caller:
    {image: busybox, init: true, command: [sleep, infinity], restart: always, deploy: {mode: global}}
";

/// Data, a secret, one on every host, dependencies, and updates that stop first.
const BACK: &str = "
name: back
services:
  store:
    image: busybox
    init: true
    restart: always
    environment: {VERSION: 'v@VERSION'}
    command: [sh, -c, 'echo $$VERSION >>/data/log; exec sleep infinity']
    volumes: ['data:/data']
    secrets: [password]
    healthcheck: {test: [CMD, test, -s, /run/secrets/password], start_period: 30s, start_interval: 200ms, interval: 3s}
  each:
    image: busybox
    init: true
    restart: always
    command: [sh, -c, 'mkdir -p /www; echo each $$(hostname) >/www/index.html; exec httpd -f -p 80 -h /www']
    secrets: [password]
    depends_on: {store: {condition: service_healthy}}
    deploy: {mode: global, endpoint_mode: dnsrr}
  worker:
    image: busybox
    init: true
    restart: always
    environment: {VERSION: 'v@VERSION'}
    command: [sleep, infinity]
    depends_on: {each: {condition: service_started}}
    deploy: {replicas: 4, update_config: {parallelism: 2, order: stop-first, failure_action: pause}}
volumes: {data: {}}
secrets: {password: {external: true}}
";

/// Hosts as one, and one beside them that asks from outside.
pub(crate) struct Fleet {
    /// Those that are nodes.
    pub(crate) hosts: Hosts,
    /// Who asks from outside.
    pub(crate) outside: Arc<Host>,
    /// So many are nodes.
    pub(crate) count: usize,
    /// Which of them are managers, by number less one.
    pub(crate) managers: Vec<bool>,
    pub(crate) replicas: u64,
    pub(crate) version: u64,
    /// Whether the second stack shall run.
    pub(crate) back: bool,
    /// Whether the two before are known: a command that failed may have been carried out.
    pub(crate) sure: bool,
    /// How much of each agent's log was looked at.
    pub(crate) read: Vec<usize>,
    /// The addresses of all tasks.
    pub(crate) addresses: BTreeSet<String>,
    /// What agents warned of, and how often.
    pub(crate) warned: BTreeMap<String, u64>,
    /// The longest time that a command took.
    pub(crate) slowest: Duration,
}

impl Fleet {
    pub(crate) fn new(count: usize) -> Self {
        let mut hosts = Hosts::new(u8::try_from(count + 1).expect("a few hosts"));
        let outside = Arc::new(hosts.hosts.pop().expect("there are some"));
        hosts.init();
        let token = hosts.token(&["manager"]);
        (2..=count).for_each(|number| drop(hosts.join(number, &token).ok()));
        hosts.so_many_ready(1, count);
        hosts.host(1).load("busybox");
        hosts.host(1).invoke(&["secret", "create", "password", "-"]).stdin(format!("{SECRET}-0")).run().ok();
        let (managers, read) = (vec![true; count], vec![0; count]);
        let fleet = Self {
            hosts,
            outside,
            count,
            managers,
            replicas: 4,
            version: 0,
            back: true,
            sure: true,
            read,
            addresses: BTreeSet::new(),
            warned: BTreeMap::new(),
            slowest: Duration::ZERO,
        };
        for stack in ["front", "back"] {
            fleet.write(1, stack, "");
            let file = format!("{stack}.yaml");
            fleet.hosts.host(1).orch(&["-f", &file, "up", "-d", "--wait", "--wait-timeout", "60"]).ok();
        }
        fleet.hosts.all_vote();
        fleet
    }

    /// Writes a stack's file on a host, as it shall be now.
    pub(crate) fn write(&self, number: usize, stack: &str, begin: &str) {
        let text = if stack == "front" { FRONT } else { BACK };
        let text = text.replace("@REPLICAS", &self.replicas.to_string()).replace("@VERSION", &self.version.to_string());
        self.hosts.host(number).write(&format!("{stack}.yaml"), &text.replace("@BEGIN", begin));
    }

    /// A command on a host, which must end; whether it succeeds is the caller's business.
    pub(crate) fn orch(&mut self, number: usize, arguments: &[&str]) -> Output {
        let begun = Instant::now();
        let output = self.hosts.host(number).start(arguments).ends(Duration::from_secs(150));
        self.slowest = self.slowest.max(begun.elapsed());
        output
    }

    /// The hosts that are managers, but for these.
    pub(crate) fn managers_but(&self, others: &[usize]) -> Vec<usize> {
        (1..=self.count).filter(|number| self.managers[number - 1] && !others.contains(number)).collect()
    }

    /// How many tasks each service shall have.
    pub(crate) fn wanted(&self) -> BTreeMap<(String, String), u64> {
        let nodes = self.count as u64;
        let mut wanted = vec![("front", "page", self.replicas), ("front", "caller", nodes)];
        if self.back {
            wanted.extend([("back", "store", 1), ("back", "each", nodes), ("back", "worker", 4)]);
        }
        wanted.into_iter().map(|(stack, service, count)| ((stack.to_owned(), service.to_owned()), count)).collect()
    }

    /// Puts what the agents said where it outlives the hosts.
    pub(crate) fn keep(&self, seed: u64) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("soak-{seed}"));
        let _ = std::fs::create_dir_all(&folder);
        for (number, host) in (1..).zip(&self.hosts.hosts) {
            let _ = std::fs::write(folder.join(format!("host{number}.log")), host.agent_log());
        }
        folder
    }

    /// The address of a host.
    pub(crate) fn address(number: usize) -> std::net::Ipv4Addr {
        address(u8::try_from(number).expect("a few hosts"))
    }
}
