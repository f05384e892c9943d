//! What the attributes of a service come to inside its containers.

use orch_tests::host::Host;
use orch_tests::wait::{PATIENCE, eventually};

/// `NAME VALUE` lines as `NAME=VALUE` words, for comparing several in one assertion.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One value of a container's own control group: its file under cgroup v2, or controller and file under v1.
fn limit(host: &Host, service: &str, v2: &str, v1: &str) -> String {
    host.exec(service, &format!("cd /sys/fs/cgroup; if [ -e cgroup.controllers ]; then cat {v2}; else cat {v1}; fi"))
}

#[test]
fn limits_are_those_of_the_file() {
    let host = Host::with_busybox();
    host.stack(
        "x-a: &a {image: busybox, command: sleep infinity, init: true}
services:
  own:
    <<: *a
    cpus: 0.5
    cpuset: '0'
    cpu_shares: 512
    mem_limit: 64m
    memswap_limit: 80m
    mem_reservation: 32m
    pids_limit: 33
    oom_score_adj: 321
    shm_size: 8m
    ulimits: {nofile: {soft: 100, hard: 200}, core: 0}
    sysctls: {net.core.somaxconn: 333, kernel.msgmax: '9000'}
  quota: {<<: *a, cpu_period: 50000, cpu_quota: 20000, mem_limit: 64m, memswap_limit: -1, pids_limit: -1}
  deployed:
    <<: *a
    deploy: {resources: {limits: {cpus: '0.25', memory: 40M, pids: 21}, reservations: {memory: 20M}}}",
    );
    host.up();
    let v2 = host.exec("own", "ls /sys/fs/cgroup").contains("cgroup.controllers");
    let cpu = |service: &str| words(&limit(&host, service, "cpu.max", "cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us"));
    let memory = |service: &str| {
        let v1 =
            ["limit_in_bytes", "memsw.limit_in_bytes", "soft_limit_in_bytes"].map(|f| format!("memory/memory.{f}"));
        words(&limit(&host, service, "memory.max memory.swap.max memory.low", &v1.join(" ")))
    };
    assert_eq!(cpu("own"), "50000 100000");
    assert_eq!(cpu("quota"), "20000 50000");
    assert_eq!(cpu("deployed"), "25000 100000");
    let mib = |n: u64| n << 20;
    // Of memory and swap together v2 keeps the swap alone.
    let both = |memory: u64, swap: u64, low: u64| {
        if v2 { format!("{memory} {swap} {low}") } else { format!("{memory} {} {low}", memory + swap) }
    };
    assert_eq!(memory("own"), both(mib(64), mib(16), mib(32)));
    assert_eq!(memory("deployed"), both(mib(40), mib(40), mib(20)));
    let unlimited = memory("quota");
    let swap = unlimited.split(' ').nth(1).unwrap();
    assert!(swap == "max" || swap.parse::<u64>().unwrap() > 1 << 60, "{unlimited}");
    let pids = |service: &str| limit(&host, service, "pids.max", "pids/pids.max");
    assert_eq!([pids("own"), pids("quota"), pids("deployed")], ["33", "max", "21"]);
    assert_eq!(limit(&host, "own", "cpu.weight", "cpu/cpu.shares"), if v2 { "59" } else { "512" });
    assert_eq!(limit(&host, "own", "cpuset.cpus", "cpuset/cpuset.cpus"), "0");
    assert_eq!(words(&host.exec("own", "grep Cpus_allowed_list /proc/self/status")), "Cpus_allowed_list: 0");
    assert_eq!(words(&host.exec("own", "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")), "321 321");
    assert_eq!(words(&host.exec("own", "ulimit -n; ulimit -Hn; ulimit -c")), "100 200 0");
    assert_eq!(words(&host.exec("own", "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax")), "333 9000");
    assert!(host.exec("own", "df -k /dev/shm").contains(" 8192 "));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn privileges_are_those_of_the_file() {
    let host = Host::with_busybox();
    host.write(
        "no-mkdir.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#,
    );
    host.stack(
        "x-a: &a {image: busybox, command: sleep infinity, init: true}
services:
  someone:
    <<: *a
    user: '1000:1001'
    group_add: [tty, '4242']
    cap_add: [NET_ADMIN]
    cap_drop: [cap_chown]
    security_opt: [no-new-privileges]
    hostname: named
    domainname: example.org
    annotations: {an: notated}
    labels: [la=belled]
  filtered: {<<: *a, security_opt: ['seccomp=no-mkdir.json', 'systempaths=unconfined']}
  unfiltered: {<<: *a, security_opt: ['seccomp:unconfined'], cap_drop: [ALL], cap_add: [KILL]}
  everything: {<<: *a, privileged: true}
  device: {<<: *a, devices: ['/dev/kmsg:/dev/messages:r']}
  ruled: {<<: *a, device_cgroup_rules: ['c 1:11 w']}
  sealed: {<<: *a, read_only: true, tmpfs: ['/scratch:size=1m,mode=1770,uid=1000'], working_dir: /made/for/it, tty: true}",
    );
    host.up();
    assert_eq!(host.exec("someone", "id"), "uid=1000 gid=1001 groups=5(tty),1001,4242");
    let status = |service: &str, line: &str| words(&host.exec(service, &format!("grep {line}: /proc/1/status")));
    assert_eq!(status("someone", "NoNewPrivs"), "NoNewPrivs: 1");
    assert_eq!(status("someone", "Seccomp"), "Seccomp: 2");
    // The fourteen with NET_ADMIN (bit 12) and without CHOWN (bit 0).
    assert_eq!(status("someone", "CapBnd"), "CapBnd: 00000000a80435fa");
    assert_eq!(words(&host.exec("someone", "hostname; hostname -f")), "named named.example.org");
    let shown = host.orch(&["container", "inspect", "work-someone-1"]).ok().json();
    assert_eq!(shown[0]["config"]["annotations"]["an"], "notated");
    assert_eq!(shown[0]["config"]["labels"]["la"], "belled");

    assert!(host.orch(&["exec", "-T", "filtered", "mkdir", "/x"]).fails().stderr.contains("No space left"));
    host.exec("filtered", "[ -w /proc/sys/kernel/ns_last_pid ] && cat /proc/timer_list >/dev/null");
    assert_eq!(status("unfiltered", "Seccomp"), "Seccomp: 0");
    assert_eq!(status("unfiltered", "CapEff"), "CapEff: 0000000000000020");
    assert_eq!(status("everything", "Seccomp"), "Seccomp: 0");
    host.exec("everything", "mount -t tmpfs none /mnt 2>/dev/null || { mkdir /mnt; mount -t tmpfs none /mnt; }");

    // The kernel's log: opened, and nothing written.
    let refused = |service: &str, script: &str| {
        host.orch(&["exec", "-T", service, "sh", "-c", script]).fails().says(&["Operation not permitted"]);
    };
    host.exec("device", "[ -c /dev/messages ]");
    refused("device", ": >>/dev/messages");
    host.exec("ruled", "mknod /messages c 1 11; : >>/messages");
    refused("ruled", ": </messages");

    assert_eq!(host.exec("sealed", "pwd"), "/made/for/it");
    host.orch(&["exec", "-T", "sealed", "touch", "here"]).fails().says(&["Read-only"]);
    assert!(host.exec("sealed", "ls -ldn /scratch").starts_with("drwxrwx--T"));
    assert!(host.exec("sealed", "ls -ldn /scratch").contains(" 1000 "));
    assert!(host.exec("sealed", "grep ' /scratch ' /proc/mounts").contains("rw,nosuid,nodev,noexec"));
    assert!(host.exec("sealed", "readlink /proc/1/fd/0").starts_with("/dev/pts/"));
    host.down();
    host.leaves_no_trace();
}

#[test]
fn namespaces_are_shared_as_the_file_says() {
    let host = Host::with_busybox();
    host.stack(
        "x-a: &a {image: busybox, command: sleep infinity}
services:
  owner:
    <<: *a
    hostname: landlord
    extra_hosts: ['one:10.1.2.3', 'up:host-gateway']
    dns_search: [corp.example]
    ipc: shareable
    shm_size: 9m
    ports: ['8080:80']
    init: true
  guest:
    <<: *a
    network_mode: service:owner
    pid: service:owner
    ipc: service:owner
    command: sh -c 'mkdir /www; echo guest >/www/index.html; exec httpd -f -p 80 -h /www'
  alone: {<<: *a, network_mode: none, ipc: none, userns_mode: host}
  open: {<<: *a, network_mode: host, pid: host, ipc: host, uts: host, cgroup: host}
  named: {<<: *a, network_mode: host}",
    );
    host.up();
    let namespace =
        |service: &str, kind: &str| host.exec(service, &format!("ls -l /proc/self/ns/{kind} | sed 's/.* //'"));
    for kind in ["net", "pid", "ipc"] {
        assert_eq!(namespace("guest", kind), namespace("owner", kind), "{kind}");
        assert_ne!(namespace("alone", kind), namespace("owner", kind), "{kind}");
    }
    for kind in ["mnt", "uts", "cgroup", "time"] {
        assert_ne!(namespace("guest", kind), namespace("owner", kind), "{kind}");
    }
    assert!(host.exec("guest", "ps").contains("sleep infinity"), "the guest sees the owner's processes");
    assert!(host.exec("guest", "df -k /dev/shm").contains(" 9216 "), "the guest has the owner's /dev/shm");
    // One network, one set of names.
    for file in ["/etc/hosts", "/etc/resolv.conf"] {
        assert_eq!(host.exec("guest", &format!("cat {file}")), host.exec("owner", &format!("cat {file}")));
    }
    assert_eq!(host.exec("guest", "hostname"), "landlord");
    let hosts = host.exec("owner", "cat /etc/hosts");
    assert!(hosts.contains("\tlandlord") && hosts.contains("10.1.2.3\tone") && hosts.contains("\tup"), "{hosts}");
    let page = eventually(PATIENCE, "the guest serves the owner's port", || {
        host.page(orch_tests::machine::Place::Host, std::net::Ipv4Addr::LOCALHOST, 8080, "/")
    });
    assert_eq!(page.trim(), "guest");

    assert_eq!(host.exec("alone", "ls /sys/class/net"), "lo");
    host.orch(&["exec", "-T", "alone", "grep", "-q", " /dev/shm ", "/proc/mounts"]).fails();

    let ours = host.sh(orch_tests::machine::Place::Host, "cat /proc/sys/kernel/hostname; ls /sys/class/net | wc -l");
    assert_eq!(words(&host.exec("open", "hostname; ls /sys/class/net | wc -l")), words(&ours));
    assert_eq!(words(&host.exec("named", "hostname; ls /sys/class/net | wc -l")), words(&ours));
    assert!(
        host.exec("named", "cat /etc/hosts")
            .contains(host.sh(orch_tests::machine::Place::Host, "cat /etc/hosts").trim())
    );
    assert!(
        host.exec("open", "cat /proc/self/cgroup").contains(host.instance()),
        "{}",
        host.exec("open", "cat /proc/self/cgroup")
    );

    // What the owner is made of changed: the guest joins the new one.
    let before = namespace("owner", "net");
    host.stack(&std::fs::read_to_string(host.folder().join("stack.yaml")).unwrap().replace("landlord", "landlady"));
    host.up();
    assert_ne!(namespace("owner", "net"), before);
    assert_eq!(namespace("guest", "net"), namespace("owner", "net"));
    assert_eq!(namespace("guest", "pid"), namespace("owner", "pid"));
    assert_eq!(host.exec("guest", "hostname"), "landlady");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn mounts_are_where_and_how_the_file_says() {
    let host = Host::with_busybox();
    host.write("host/file", "of the host\n");
    host.write("secret.txt", "of a file");
    host.stack(
        "x-a: &a {image: busybox, command: sleep infinity, init: true}
services:
  filler: {<<: *a, command: sh -c 'mkdir -p /v/a/b; echo below >/v/a/b/file', volumes: ['shared:/v']}
  user:
    <<: *a
    depends_on: {filler: {condition: service_completed_successfully}}
    volumes:
      - full:/etc
      - {type: volume, source: empty, target: /bin/../empty, volume: {nocopy: true}}
      - {type: volume, source: shared, target: /part, volume: {subpath: a/b}, read_only: true}
      - ./host:/host:ro
      - ./made/by/short:/short
      - {type: bind, source: ./host, target: /slave, bind: {propagation: rslave}}
      - {type: tmpfs, target: /memory, tmpfs: {size: 2m, mode: 0700}}
      - /anonymous
      - ./host/file:/one-file
    volumes_from: ['filler:ro']
    configs: [inline, {source: variable, target: /etc/variable.conf, mode: 0440, uid: '5', gid: '6'}]
    secrets: [file, {source: variable, target: renamed, mode: 0400, uid: '1000'}]
volumes: {full: {}, empty: {}, shared: {}}
configs: {inline: {content: 'inline $WHO'}, variable: {environment: WHO}}
secrets: {file: {file: ./secret.txt}, variable: {environment: SECRET}}",
    );
    host.invoke(&["up", "-d", "--wait"]).env("WHO", "me").env("SECRET", "hidden").run().ok();
    host.exec("user", "[ -s /etc/passwd ] && [ -z \"$(ls /empty)\" ] && echo y >/short/y && echo z >/anonymous/z");
    assert_eq!(
        host.exec("user", "cat /part/file /host/file /slave/file /one-file"),
        "below\nof the host\nof the host\nof the host"
    );
    assert_eq!(host.exec("user", "cat /v/a/b/file"), "below");
    for path in ["/part/x", "/v/x", "/host/x", "/inline", "/run/secrets/file"] {
        host.orch(&["exec", "-T", "user", "sh", "-c", &format!("echo x >{path}")]).fails().says(&["Read-only"]);
    }
    assert_eq!(std::fs::read_to_string(host.folder().join("made/by/short/y")).unwrap(), "y\n");
    assert!(host.exec("user", "ls -ld /memory; df -k /memory").contains(" 2048 "));
    assert!(host.exec("user", "ls -ld /memory").starts_with("drwx------"));
    assert_eq!(
        host.exec("user", "cat /inline /etc/variable.conf /run/secrets/file /run/secrets/renamed"),
        "inline memeof a filehidden"
    );
    let owners =
        host.exec("user", "stat -c '%a %u %g' /inline /etc/variable.conf /run/secrets/file /run/secrets/renamed");
    assert_eq!(owners, "444 0 0\n440 5 6\n444 0 0\n400 1000 0");
    host.write("stack.yaml", "services: {lost: {image: busybox, volumes: [{type: bind, source: ./nowhere, target: /x, bind: {create_host_path: false}}]}}");
    host.orch(&["up", "-d", "--wait"]).fails().says(&["nowhere"]);
    host.orch(&["down", "-v"]).ok();
    host.leaves_no_trace();
}

#[test]
fn addresses_and_names_are_those_of_the_file() {
    let host = Host::with_busybox();
    host.stack(
        "x-a: &a {image: busybox, command: sleep infinity, init: true}
services:
  server: {<<: *a}
  client:
    <<: *a
    links: ['server:linked']
    mac_address: 02:42:ac:11:65:43
    dns: [192.0.2.53]
    dns_search: [corp.example]
    dns_opt: ['ndots:2']
    extra_hosts: {one: 10.1.2.3, six: '::9'}
    networks: {default: {aliases: [other], ipv4_address: 172.30.9.9, priority: 5}, second: {interface_name: second0}}
networks: {default: {ipam: {config: [{subnet: 172.30.9.0/24}]}}, second: {}}",
    );
    host.up();
    let resolv = host.exec("client", "cat /etc/resolv.conf");
    for line in ["nameserver 127.0.0.11", "search corp.example", "options ndots:2"] {
        assert!(resolv.lines().any(|l| l == line), "{resolv}");
    }
    let server = host.container("server")["networks"]["default"]["ipv4"].as_str().unwrap().to_owned();
    let answer = |service: &str, name: &str| host.exec(service, &format!("nslookup -type=a {name}. 127.0.0.11"));
    assert!(answer("client", "linked").contains(&server), "{}", answer("client", "linked"));
    assert!(answer("server", "other").contains("172.30.9.9"), "{}", answer("server", "other"));
    let interface = host.exec("client", "ip address show eth0; ip link show second0");
    assert!(interface.contains("02:42:ac:11:65:43") && interface.contains("172.30.9.9/24"), "{interface}");
    let hosts = host.exec("client", "cat /etc/hosts");
    assert!(hosts.contains("10.1.2.3\tone") && hosts.contains("::9\tsix"), "{hosts}");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_services_life_goes_as_the_file_says() {
    let host = Host::with_busybox();
    host.stack(
        "x-a: &a {image: busybox, command: sleep infinity, init: true, stop_grace_period: 1s}
services:
  db:
    <<: *a
    healthcheck: {test: [CMD, 'true'], interval: 1h, start_period: 1h, start_interval: 200ms}
  follows: {<<: *a, depends_on: {db: {condition: service_healthy, restart: true}}}
  stays: {<<: *a, depends_on: {db: {condition: service_healthy}, absent: {condition: service_started, required: false}}}
  absent: {<<: *a, profiles: [off]}
  asked:
    image: busybox
    command: sh -c 'trap \"echo asked; exit 3\" USR1; while :; do sleep 0.05; done'
    stop_signal: SIGUSR1
    stop_grace_period: 2m
  silent: {<<: *a, command: sh -c 'echo said; exec sleep infinity', logging: {driver: none}}",
    );
    // Within an hour there is no regular probe: only those of the start make it healthy.
    host.up();
    let before = host.running();
    let started = host.container("follows")["started_at"].clone();
    host.orch(&["restart", "db"]).ok();
    host.becomes("follows", "restarted too", |now| now["state"] == "running" && now["started_at"] != started);
    let after = host.running();
    assert_ne!(after["work-follows-1"], before["work-follows-1"]);
    assert_ne!(after["work-db-1"], before["work-db-1"]);
    assert_eq!(after["work-stays-1"], before["work-stays-1"]);
    host.orch(&["stop", "asked"]).ok();
    let asked = host.becomes("asked", "over", |c| c["state"] == "exited");
    assert_eq!(asked["exit_code"], 3);
    host.orch(&["logs", "--no-log-prefix", "asked"]).ok().prints(&["asked"]);
    assert_eq!(host.orch(&["logs", "--no-log-prefix", "silent"]).ok().text(), "");
    host.down();
    host.leaves_no_trace();
}

#[test]
fn a_services_command_variables_streams_and_ports_are_those_of_the_file() {
    let host = Host::with_busybox();
    let names = orch_tests::nameserver::NameServer::start(&host);
    let server = orch_tests::machine::NEIGHBOUR;
    host.write("first.env", "FROM_FILE=first\nBOTH=first\n# a comment\nQUOTED='two words'\n");
    host.write("second.env", "BOTH=second\n");
    host.stack(&format!(
        "x-a: &a {{image: busybox, command: sleep infinity, init: true}}
services:
  text: {{image: busybox, command: echo 'two words' $$HOME, environment: {{HOME: /unused}}}}
  list: {{image: busybox, command: [echo, 'a  b', '$$HOME']}}
  entry: {{image: busybox, entrypoint: [echo, entered], command: [with, this]}}
  line: {{image: busybox, entrypoint: sh -c 'echo entered as $$0'}}
  told:
    <<: *a
    environment: [FIXED=yes, PASSED, UNSET, BOTH_AGAIN=file]
    env_file: [first.env, {{path: second.env}}, {{path: absent.env, required: false}}]
    dns: [{server}]
  mapped: {{<<: *a, environment: {{NUMBER: 5, EMPTY: '', NULLED: }}}}
  opened: {{image: busybox, command: cat, stdin_open: true}}
  closed: {{image: busybox, command: cat}}
  bridged: {{<<: *a, network_mode: bridge}}
  many: {{<<: *a, deploy: {{replicas: 2}}}}
  more: {{<<: *a, scale: 2}}
  served:
    image: busybox
    init: true
    command: sh -c 'mkdir /www; echo served >/www/index.html; for p in 80 81 82; do httpd -p $$p -h /www; done; exec sleep infinity'
    expose: ['80', '81-82']
    ports:
      - '8180-8182:80-82'
      - {{target: 80, published: '8190', host_ip: 127.0.0.1, protocol: tcp}}
      - '80'",
    ));
    host.invoke(&["up", "-d", "--wait"]).env("PASSED", "on").run().ok();
    let said = |service: &str| host.orch(&["logs", "--no-log-prefix", service]).ok().text().to_owned();
    assert_eq!(said("text"), "two words $HOME");
    assert_eq!(said("list"), "a  b $HOME");
    assert_eq!(said("entry"), "entered with this");
    assert_eq!(said("line"), "entered as sh");

    let variable = |service: &str, name: &str| host.exec(service, &format!("echo \"${{{name}-unset}}\""));
    for (name, value) in [
        ("FIXED", "yes"),
        ("PASSED", "on"),
        ("UNSET", "unset"),
        ("FROM_FILE", "first"),
        ("BOTH", "second"),
        ("QUOTED", "two words"),
        ("BOTH_AGAIN", "file"),
    ] {
        assert_eq!(variable("told", name), value, "{name}");
    }
    assert_eq!([variable("mapped", "NUMBER"), variable("mapped", "EMPTY")], ["5", ""]);
    let outside = host.exec("told", &format!("nslookup -type=a {}. 127.0.0.11", orch_tests::nameserver::OUTSIDE));
    assert!(outside.contains(&orch_tests::nameserver::OUTSIDE_ADDRESS.to_string()), "{outside}");

    // Who reads an open input waits; who has none has read its end.
    assert_eq!(host.container("opened")["state"], "running");
    assert_eq!(
        (&host.container("closed")["state"], &host.container("closed")["exit_code"]),
        (&"exited".into(), &0.into())
    );
    assert!(host.container("bridged")["networks"].get("default").is_none());
    assert!(host.exec("bridged", "ip -4 address show eth0").contains("inet "));
    let count = |service: &str| host.ps().iter().filter(|c| c["service"] == service).count();
    assert_eq!([count("many"), count("more")], [2, 2]);

    let page = |address: std::net::Ipv4Addr, port: u16| {
        host.page(orch_tests::machine::Place::Host, address, port, "/").map(|page| page.trim().to_owned())
    };
    for port in [8180, 8181, 8182, 8190] {
        assert_eq!(page(std::net::Ipv4Addr::LOCALHOST, port).as_deref(), Ok("served"), "{port}");
    }
    page(orch_tests::machine::ADDRESS, 8190).unwrap_err();
    let chosen = host.container("served")["ports"].clone();
    let chosen = chosen.as_array().unwrap().iter().filter_map(|p| u16::try_from(p["published"].as_u64()?).ok());
    let chosen: Vec<u16> = chosen.filter(|port| !(8180..=8190).contains(port)).collect();
    assert!(!chosen.is_empty(), "{:?}", host.container("served")["ports"]);
    assert_eq!(page(orch_tests::machine::ADDRESS, chosen[0]).as_deref(), Ok("served"), "{chosen:?}");
    drop(names);
    host.down();
    host.leaves_no_trace();
}

#[test]
fn ids_of_its_own_leave_a_service_what_it_needs() {
    let host = Host::with_busybox();
    host.stack(
        "x-a: &a {image: busybox, command: sleep infinity, init: true}
services:
  web:
    <<: *a
    userns_mode: auto
    command: sh -c 'echo served >/data/index.html; exec httpd -f -p 80 -h /data'
    volumes: ['data:/data']
    ports: ['8080:80']
    healthcheck: {test: wget -q -O /dev/null http://127.0.0.1/, interval: 1s, retries: 30}
  other:
    <<: *a
    userns_mode: auto
    network_mode: service:web
    volumes: ['data:/data']
  plain: {<<: *a, volumes: ['data:/data']}
volumes: {data: }",
    );
    host.up();
    let page = eventually(PATIENCE, "it serves its port", || {
        host.page(orch_tests::machine::Place::Host, std::net::Ipv4Addr::LOCALHOST, 8080, "/")
    });
    assert_eq!(page.trim(), "served");
    let map = |service: &str| words(&host.exec(service, "cat /proc/self/uid_map"));
    assert!(!map("web").starts_with("0 0 ") && map("web").ends_with(" 65536"), "{}", map("web"));
    assert_ne!(map("web"), map("other"));
    assert_eq!(map("plain"), "0 0 4294967295");
    for service in ["web", "other", "plain"] {
        assert_eq!(host.exec(service, "stat -c %u /data/index.html; cat /data/index.html"), "0\nserved", "{service}");
    }
    assert_eq!(host.exec("plain", "wget -q -O - http://web/"), "served");
    // The network is the host's to rule: raw sockets, which this ping wants, are not for root inside.
    host.orch(&["exec", "-T", "web", "ping", "-c", "1", "plain"]).fails().says(&["permission denied"]);
    assert_eq!(host.exec("other", "wget -q -O - http://127.0.0.1/"), "served");
    host.orch(&["down", "-v", "-t", "2"]).ok();
    host.orch(&["container", "run", "--rm", "--userns", "auto", "busybox", "id", "-u"]).ok();
    host.leaves_no_trace();
}
