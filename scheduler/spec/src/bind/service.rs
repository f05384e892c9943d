//! One service.

use super::{
    Binder, data, data_map, extensions, flag, int, items, optional_map, parsed, section, text, text_map, texts,
};
use crate::model::*;
use crate::node::{Node, Value};

impl Binder<'_> {
    pub(super) fn service(&mut self, name: &str, node: &Node, stack: &str) -> ServiceSpec {
        let mut spec = ServiceSpec {
            image: image(name, node, stack),
            platform: text(node, "platform"),
            pull_policy: pull_policy(node),
            build: node.some("build").map(data),
            extensions: extensions(node),
            ..ServiceSpec::default()
        };
        process(&mut spec, node);
        networking(&mut spec, node);
        storage(&mut spec, node);
        life(&mut spec, node);
        resources(&mut spec, node);
        isolation(&mut spec, node);
        spec.security_opt = self.security(node);
        spec
    }

    fn security(&mut self, node: &Node) -> SecurityOptions {
        let mut security = SecurityOptions::default();
        for item in items(node, "security_opt") {
            let Some(option) = item.as_text() else { continue };
            let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
            match (key, value) {
                ("no-new-privileges", "" | "true") => security.no_new_privileges = Some(true),
                ("no-new-privileges", "false") => security.no_new_privileges = Some(false),
                ("seccomp", "unconfined") => security.seccomp = Some(SeccompProfile::Unconfined),
                ("seccomp", "builtin") => security.seccomp = Some(SeccompProfile::Builtin),
                ("seccomp", path) if self.read_contents => {
                    let profile = self.content(path, item, "seccomp profile");
                    security.seccomp =
                        profile.map(|bytes| SeccompProfile::Profile(String::from_utf8_lossy(&bytes).into_owned()));
                }
                ("apparmor", profile) => security.apparmor = Some(profile.to_owned()),
                ("label", label) => security.label.push(label.to_owned()),
                ("systempaths", "unconfined") => security.systempaths_unconfined = true,
                _ => security.other.push(option.to_owned()),
            }
        }
        security
    }
}

fn image(name: &str, node: &Node, stack: &str) -> String {
    let own = text(node, "image").filter(|image| !image.is_empty());
    own.unwrap_or_else(|| if node.some("build").is_some() { format!("{stack}-{name}") } else { String::new() })
}

fn pull_policy(node: &Node) -> Option<PullPolicy> {
    const DAY: i64 = 86_400;
    Some(match text(node, "pull_policy")?.as_str() {
        "always" => PullPolicy::Always,
        "never" => PullPolicy::Never,
        "build" => PullPolicy::Build,
        "daily" => PullPolicy::Every(Duration::from_secs(DAY)),
        "weekly" => PullPolicy::Every(Duration::from_secs(7 * DAY)),
        "refresh" => PullPolicy::Every(parsed(node, "pull_refresh_after").unwrap_or_default()),
        other => match other.strip_prefix("every_").and_then(|interval| interval.parse().ok()) {
            Some(interval) => PullPolicy::Every(interval),
            None => PullPolicy::Missing,
        },
    })
}

fn command(node: &Node, key: &str) -> Option<Vec<String>> {
    node.some(key).map(|_| texts(node, key))
}

fn process(spec: &mut ServiceSpec, node: &Node) {
    spec.command = command(node, "command");
    spec.entrypoint = command(node, "entrypoint");
    spec.environment = optional_map(node, "environment");
    spec.working_dir = text(node, "working_dir");
    spec.user = text(node, "user");
    spec.group_add = texts(node, "group_add");
    spec.container_name = text(node, "container_name");
    spec.hostname = text(node, "hostname");
    spec.domainname = text(node, "domainname");
    spec.labels = text_map(node, "labels");
    spec.annotations = text_map(node, "annotations");
    spec.tty = flag(node, "tty").unwrap_or_default();
    spec.stdin_open = flag(node, "stdin_open").unwrap_or_default();
    spec.init = flag(node, "init");
    spec.attach = flag(node, "attach");
    spec.logging = node
        .some("logging")
        .map(|logging| LoggingSpec { driver: text(logging, "driver"), options: text_map(logging, "options") });
}

fn networking(spec: &mut ServiceSpec, node: &Node) {
    spec.ports = items(node, "ports").iter().map(port).collect();
    spec.expose = texts(node, "expose").iter().filter_map(|text| text.parse().ok()).collect();
    spec.network_mode = match text(node, "network_mode") {
        None => NetworkMode::Stack,
        Some(mode) => match (mode.as_str(), mode.split_once(':')) {
            ("none", _) => NetworkMode::None,
            ("host", _) => NetworkMode::Host,
            ("bridge" | "default", _) => NetworkMode::Bridge,
            (_, Some(("service", name))) => NetworkMode::Service(name.to_owned()),
            (_, Some(("container", name))) => NetworkMode::Container(name.to_owned()),
            _ => NetworkMode::Network(mode),
        },
    };
    if spec.network_mode == NetworkMode::Stack {
        spec.networks =
            section(node, "networks").map(|(key, entry)| (key.to_owned(), attachment(&entry.node))).collect();
    }
    spec.mac_address = text(node, "mac_address");
    let link = |text: &String| {
        let (target, alias) = text.split_once(':').unwrap_or((text, text));
        LinkSpec { target: target.to_owned(), alias: alias.to_owned() }
    };
    spec.links = texts(node, "links").iter().map(link).collect();
    spec.external_links = texts(node, "external_links").iter().map(link).collect();
    spec.extra_hosts = section(node, "extra_hosts")
        .map(|(host, entry)| (host.to_owned(), entry.node.items().iter().filter_map(Node::scalar_text).collect()))
        .collect();
    spec.dns = texts(node, "dns");
    spec.dns_search = texts(node, "dns_search");
    spec.dns_opt = texts(node, "dns_opt");
}

fn protocol(text: Option<&str>) -> Protocol {
    match text {
        Some("udp") => Protocol::Udp,
        Some("sctp") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn port(node: &Node) -> PortSpec {
    let published = text(node, "published").and_then(|text| crate::scalar::port_range(&text));
    PortSpec {
        host_ip: parsed(node, "host_ip"),
        published: published.map(|(start, end)| PortRange { start, end }),
        target: int(node, "target").unwrap_or_default(),
        protocol: protocol(text(node, "protocol").as_deref()),
        mode: if text(node, "mode").as_deref() == Some("host") { PublishMode::Host } else { PublishMode::Ingress },
        name: text(node, "name"),
        app_protocol: text(node, "app_protocol"),
    }
}

fn attachment(node: &Node) -> NetworkAttachment {
    NetworkAttachment {
        aliases: texts(node, "aliases"),
        ipv4_address: parsed(node, "ipv4_address"),
        ipv6_address: parsed(node, "ipv6_address"),
        link_local_ips: texts(node, "link_local_ips").iter().filter_map(|text| text.parse().ok()).collect(),
        mac_address: text(node, "mac_address"),
        interface_name: text(node, "interface_name"),
        driver_opts: text_map(node, "driver_opts"),
        priority: int(node, "priority").unwrap_or_default(),
        gw_priority: int(node, "gw_priority").unwrap_or_default(),
    }
}

fn storage(spec: &mut ServiceSpec, node: &Node) {
    spec.volumes = items(node, "volumes").iter().map(mount).collect();
    spec.tmpfs = texts(node, "tmpfs")
        .iter()
        .map(|text| {
            let (target, options) = text.split_once(':').unwrap_or((text, ""));
            let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
            TmpfsSpec { target: crate::short::clean_path(target), options }
        })
        .collect();
    spec.volumes_from = texts(node, "volumes_from").iter().map(|text| volumes_from(text)).collect();
    spec.secrets = grants(node, "secrets", "/run/secrets/");
    spec.configs = grants(node, "configs", "/");
    spec.read_only = flag(node, "read_only").unwrap_or_default();
    spec.shm_size = parsed(node, "shm_size");
    spec.storage_opt = text_map(node, "storage_opt");
}

fn mount(node: &Node) -> MountSpec {
    let part = |key: &str| node.some(key);
    let source_text = text(node, "source");
    let source = match text(node, "type").as_deref() {
        Some("bind") => MountSource::Bind {
            path: source_text.unwrap_or_default(),
            // Compose makes the folder only when the `bind` mapping exists, which the short form always has.
            create_host_path: part("bind").is_some_and(|bind| flag(bind, "create_host_path").unwrap_or(true)),
            propagation: part("bind").and_then(|bind| text(bind, "propagation")).filter(|text| !text.is_empty()),
            recursive: part("bind").and_then(|bind| text(bind, "recursive")),
            selinux: part("bind").and_then(|bind| text(bind, "selinux")),
        },
        Some("tmpfs") => MountSource::Tmpfs {
            size: part("tmpfs").and_then(|tmpfs| parsed(tmpfs, "size")),
            mode: part("tmpfs").and_then(|tmpfs| int(tmpfs, "mode")),
        },
        Some("image") => MountSource::Image {
            image: source_text.unwrap_or_default(),
            subpath: part("image").and_then(|image| text(image, "subpath")),
        },
        Some(kind @ ("cluster" | "npipe")) => {
            MountSource::Other { kind: kind.to_owned(), source: source_text.unwrap_or_default() }
        }
        _ => MountSource::Volume {
            name: source_text.filter(|source| !source.is_empty()),
            nocopy: part("volume").and_then(|volume| flag(volume, "nocopy")).unwrap_or_default(),
            subpath: part("volume").and_then(|volume| text(volume, "subpath")),
            labels: part("volume").map(|volume| text_map(volume, "labels")).unwrap_or_default(),
        },
    };
    MountSpec {
        source,
        target: text(node, "target").unwrap_or_default(),
        read_only: flag(node, "read_only").unwrap_or_default(),
    }
}

fn volumes_from(text: &str) -> VolumesFrom {
    let (rest, container) = text.strip_prefix("container:").map_or((text, false), |rest| (rest, true));
    let (source, mode) = rest.split_once(':').unwrap_or((rest, "rw"));
    VolumesFrom { source: source.to_owned(), container, read_only: mode == "ro" }
}

fn grants(node: &Node, key: &str, folder: &str) -> Vec<GrantSpec> {
    let grant = |node: &Node| {
        let source = text(node, "source").unwrap_or_default();
        let target = text(node, "target").unwrap_or_else(|| source.clone());
        GrantSpec {
            target: if target.starts_with('/') { target } else { format!("{folder}{target}") },
            source,
            uid: parsed(node, "uid"),
            gid: parsed(node, "gid"),
            mode: int(node, "mode"),
        }
    };
    items(node, key).iter().map(grant).collect()
}

fn life(spec: &mut ServiceSpec, node: &Node) {
    spec.depends_on = section(node, "depends_on")
        .map(|(name, entry)| {
            let condition = match text(&entry.node, "condition").as_deref() {
                Some("service_healthy") => DependencyCondition::Healthy,
                Some("service_completed_successfully") => DependencyCondition::CompletedSuccessfully,
                _ => DependencyCondition::Started,
            };
            let dependency = Dependency {
                condition,
                restart: flag(&entry.node, "restart").unwrap_or_default(),
                required: flag(&entry.node, "required").unwrap_or(true),
            };
            (name.to_owned(), dependency)
        })
        .collect();
    spec.healthcheck = node.some("healthcheck").map(healthcheck);
    spec.restart = text(node, "restart").filter(|text| !text.is_empty()).map(|text| match text.split_once(':') {
        Some((_, attempts)) => RestartPolicy::OnFailure { max_attempts: attempts.parse().ok() },
        None => match text.as_str() {
            "always" => RestartPolicy::Always,
            "on-failure" => RestartPolicy::OnFailure { max_attempts: None },
            "unless-stopped" => RestartPolicy::UnlessStopped,
            _ => RestartPolicy::No,
        },
    });
    spec.stop_signal = text(node, "stop_signal");
    spec.stop_grace_period = parsed(node, "stop_grace_period");
    spec.pre_start = items(node, "pre_start").iter().map(hook).collect();
    spec.post_start = items(node, "post_start").iter().map(hook).collect();
    spec.pre_stop = items(node, "pre_stop").iter().map(hook).collect();
    spec.scale = int(node, "scale");
    spec.deploy = node.some("deploy").map(deploy).unwrap_or_default();
    spec.profiles = texts(node, "profiles");
    spec.provider = node.some("provider").map(data);
    spec.develop = node.some("develop").map(data);
    spec.models = node.get("models").map(data_map).unwrap_or_default();
}

fn healthcheck(node: &Node) -> Healthcheck {
    let test = match node.get("test").map(|test| &test.value) {
        _ if flag(node, "disable") == Some(true) => HealthTest::Disabled,
        Some(Value::Text(line)) if !line.is_empty() => HealthTest::Shell(line.to_string()),
        Some(Value::List(_)) => {
            let words = texts(node, "test");
            match words.split_first() {
                Some((kind, _)) if kind == "NONE" => HealthTest::Disabled,
                Some((kind, rest)) if kind == "CMD-SHELL" => HealthTest::Shell(rest.join(" ")),
                Some((_, rest)) => HealthTest::Command(rest.to_vec()),
                None => HealthTest::Inherit,
            }
        }
        _ => HealthTest::Inherit,
    };
    Healthcheck {
        test,
        interval: parsed(node, "interval"),
        timeout: parsed(node, "timeout"),
        retries: int(node, "retries"),
        start_period: parsed(node, "start_period"),
        start_interval: parsed(node, "start_interval"),
    }
}

fn hook(node: &Node) -> HookSpec {
    HookSpec {
        command: command(node, "command"),
        image: text(node, "image"),
        user: text(node, "user"),
        privileged: flag(node, "privileged").unwrap_or_default(),
        working_dir: text(node, "working_dir"),
        environment: optional_map(node, "environment"),
        per_replica: flag(node, "per_replica").unwrap_or_default(),
    }
}

fn deploy(node: &Node) -> DeploySpec {
    let placement = node.some("placement");
    let update = |key: &str| node.some(key).map(update_config);
    DeploySpec {
        mode: match text(node, "mode").as_deref() {
            Some("global") => DeployMode::Global,
            Some("replicated-job") => DeployMode::ReplicatedJob,
            Some("global-job") => DeployMode::GlobalJob,
            _ => DeployMode::Replicated,
        },
        replicas: int(node, "replicas"),
        endpoint_mode: text(node, "endpoint_mode")
            .map(|mode| if mode == "vip" { EndpointMode::Vip } else { EndpointMode::Dnsrr }),
        labels: text_map(node, "labels"),
        placement: placement.map(placement_spec).unwrap_or_default(),
        resources: node.some("resources").map(deploy_resources).unwrap_or_default(),
        restart_policy: node.some("restart_policy").map(|policy| DeployRestartPolicy {
            condition: text(policy, "condition").map(|condition| match condition.as_str() {
                "none" => RestartCondition::None,
                "on-failure" => RestartCondition::OnFailure,
                _ => RestartCondition::Any,
            }),
            delay: parsed(policy, "delay"),
            max_attempts: int(policy, "max_attempts"),
            window: parsed(policy, "window"),
        }),
        update_config: update("update_config"),
        rollback_config: update("rollback_config"),
        extensions: extensions(node),
    }
}

fn placement_spec(node: &Node) -> PlacementSpec {
    PlacementSpec {
        constraints: texts(node, "constraints").iter().filter_map(|text| text.parse().ok()).collect(),
        spread: items(node, "preferences").iter().filter_map(|preference| text(preference, "spread")).collect(),
        max_replicas_per_node: int(node, "max_replicas_per_node").unwrap_or_default(),
    }
}

fn deploy_resources(node: &Node) -> DeployResources {
    let limits = node.some("limits").map(|limits| ResourceLimits {
        cpus: parsed(limits, "cpus"),
        memory: parsed(limits, "memory"),
        pids: int(limits, "pids"),
    });
    let reservations = node.some("reservations").map(|reservations| ResourceReservations {
        cpus: parsed(reservations, "cpus"),
        memory: parsed(reservations, "memory"),
        generic_resources: items(reservations, "generic_resources")
            .iter()
            .filter_map(|item| item.get("discrete_resource_spec"))
            .filter_map(|item| Some((text(item, "kind")?, int(item, "value")?)))
            .collect(),
        devices: items(reservations, "devices").iter().map(|node| device_request(node, None)).collect(),
    });
    DeployResources { limits: limits.unwrap_or_default(), reservations: reservations.unwrap_or_default() }
}

fn device_request(node: &Node, implied: Option<&str>) -> DeviceRequest {
    let mut capabilities = texts(node, "capabilities");
    if let Some(implied) = implied
        && !capabilities.iter().any(|capability| capability == implied)
    {
        capabilities.push(implied.to_owned());
    }
    DeviceRequest {
        capabilities,
        count: int(node, "count"),
        device_ids: texts(node, "device_ids"),
        driver: text(node, "driver"),
        options: text_map(node, "options"),
    }
}

fn update_config(node: &Node) -> UpdateConfig {
    UpdateConfig {
        parallelism: int(node, "parallelism"),
        delay: parsed(node, "delay"),
        failure_action: text(node, "failure_action").map(|action| match action.as_str() {
            "continue" => FailureAction::Continue,
            "rollback" => FailureAction::Rollback,
            _ => FailureAction::Pause,
        }),
        monitor: parsed(node, "monitor"),
        max_failure_ratio: parsed(node, "max_failure_ratio").unwrap_or_default(),
        order: text(node, "order")
            .map(|order| if order == "start-first" { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst }),
    }
}

fn resources(spec: &mut ServiceSpec, node: &Node) {
    spec.cpus = parsed(node, "cpus");
    spec.cpu_shares = int(node, "cpu_shares");
    spec.cpu_quota = parsed(node, "cpu_quota");
    spec.cpu_period = parsed(node, "cpu_period");
    spec.cpu_rt_period = parsed(node, "cpu_rt_period");
    spec.cpu_rt_runtime = parsed(node, "cpu_rt_runtime");
    spec.cpuset = text(node, "cpuset");
    spec.cpu_count = int(node, "cpu_count");
    spec.cpu_percent = parsed(node, "cpu_percent");
    spec.mem_limit = parsed(node, "mem_limit");
    spec.mem_reservation = parsed(node, "mem_reservation");
    spec.memswap_limit = parsed(node, "memswap_limit");
    spec.mem_swappiness = int(node, "mem_swappiness");
    spec.pids_limit = int(node, "pids_limit");
    spec.oom_kill_disable = flag(node, "oom_kill_disable").unwrap_or_default();
    spec.oom_score_adj = int(node, "oom_score_adj");
    spec.blkio_config = node.some("blkio_config").map(blkio);
    spec.cgroup_parent = text(node, "cgroup_parent");
    spec.ulimits = section(node, "ulimits")
        .filter_map(|(name, entry)| {
            Some((name.to_owned(), Ulimit { soft: int(&entry.node, "soft")?, hard: int(&entry.node, "hard")? }))
        })
        .collect();
    spec.sysctls = text_map(node, "sysctls");
    spec.gpus = items(node, "gpus").iter().map(|node| device_request(node, Some("gpu"))).collect();
}

fn blkio(node: &Node) -> BlkioConfig {
    let rates = |key: &str| {
        items(node, key).iter().filter_map(|limit| Some((text(limit, "path")?, parsed(limit, "rate")?))).collect()
    };
    BlkioConfig {
        weight: int(node, "weight"),
        weight_device: items(node, "weight_device")
            .iter()
            .filter_map(|limit| Some((text(limit, "path")?, int(limit, "weight")?)))
            .collect(),
        device_read_bps: rates("device_read_bps"),
        device_write_bps: rates("device_write_bps"),
        device_read_iops: rates("device_read_iops"),
        device_write_iops: rates("device_write_iops"),
    }
}

fn isolation(spec: &mut ServiceSpec, node: &Node) {
    let capabilities = |key: &str| {
        let bare = |text: &String| text.to_ascii_uppercase().trim_start_matches("CAP_").to_owned();
        texts(node, key).iter().map(bare).collect()
    };
    spec.cap_add = capabilities("cap_add");
    spec.cap_drop = capabilities("cap_drop");
    spec.privileged = flag(node, "privileged").unwrap_or_default();
    spec.devices = items(node, "devices")
        .iter()
        .map(|device| {
            let source = text(device, "source").unwrap_or_default();
            DeviceSpec {
                target: text(device, "target").unwrap_or_else(|| source.clone()),
                source,
                permissions: text(device, "permissions").unwrap_or_else(|| "rwm".into()),
            }
        })
        .collect();
    spec.device_cgroup_rules = texts(node, "device_cgroup_rules");
    spec.pid = namespace(node, "pid");
    spec.ipc = namespace(node, "ipc");
    spec.uts = namespace(node, "uts");
    spec.cgroup = namespace(node, "cgroup");
    spec.userns_mode = namespace(node, "userns_mode");
    spec.runtime = text(node, "runtime");
    spec.isolation = text(node, "isolation");
    spec.use_api_socket = flag(node, "use_api_socket").unwrap_or_default();
    spec.credential_spec = node.some("credential_spec").map(data);
}

fn namespace(node: &Node, key: &str) -> NamespaceMode {
    let Some(mode) = text(node, key) else { return NamespaceMode::Default };
    match (mode.as_str(), mode.split_once(':')) {
        ("host", _) => NamespaceMode::Host,
        ("private" | "auto", _) => NamespaceMode::Private,
        ("shareable", _) => NamespaceMode::Shareable,
        ("none", _) => NamespaceMode::None,
        (_, Some(("service", name))) => NamespaceMode::Service(name.to_owned()),
        (_, Some(("container", name))) => NamespaceMode::Container(name.to_owned()),
        _ => NamespaceMode::Default,
    }
}
