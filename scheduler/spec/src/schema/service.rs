//! The keys of a service.

use super::build::{BUILD, HOSTS, ULIMITS};
use super::deploy::{DEPLOY, DEVICE_REQUEST};
use super::{
    ANY_INT, Field, KEYED_TEXTS, Kind, Merge, NATURAL, ONE_OR_KEYED_TEXTS, ONE_OR_TEXTS, SCALAR_ITEM, Short, TEXT,
    TEXTS, Table, Unique, closed_table, key, table,
};
use crate::node::Node;
use crate::scalar;

/// One service.
pub(crate) static SERVICE: Table = table(SERVICE_KEYS);

const WINDOWS: &str = "it only means something on Windows";
const LATER: &str = "orch keeps it but does not act on it yet";

const SERVICE_KEYS: &[Field] = &[
    key("annotations", Kind::KeyValues),
    key("attach", Kind::Bool),
    key("blkio_config", Kind::Table(&BLKIO)),
    key("build", Kind::Short(Short::Build, &BUILD_KIND))
        .unsupported("orch builds no images yet; load one and name it with `image`"),
    key("cap_add", Kind::List(&CAPABILITY, Unique::Whole)),
    key("cap_drop", Kind::List(&CAPABILITY, Unique::Whole)),
    key("cgroup", Kind::Text(Some(scalar::cgroup_mode))),
    key("cgroup_parent", TEXT),
    key("command", Kind::Command).merged(Merge::Replace),
    key("configs", Kind::List(&GRANT_KIND, Unique::By(config_target))),
    key("container_name", Kind::Text(Some(scalar::container_name))),
    key("cpu_count", NATURAL).unsupported(WINDOWS),
    key("cpu_percent", Kind::Number).unsupported(WINDOWS),
    key("cpu_period", Kind::Scalar(Some(scalar::microseconds))),
    key("cpu_quota", Kind::Scalar(Some(scalar::microseconds))),
    key("cpu_rt_period", Kind::Scalar(Some(scalar::microseconds))).unsupported("cgroup v2 has no real-time budget"),
    key("cpu_rt_runtime", Kind::Scalar(Some(scalar::microseconds))).unsupported("cgroup v2 has no real-time budget"),
    key("cpu_shares", NATURAL),
    key("cpus", Kind::Scalar(Some(scalar::cpus))),
    key("cpuset", Kind::Text(Some(scalar::cpuset))),
    key("credential_spec", Kind::Table(&CREDENTIAL_SPEC)).unsupported(WINDOWS),
    key("depends_on", Kind::Short(Short::DependsOn, &DEPENDENCIES)),
    key("deploy", Kind::Nullable(&DEPLOY)),
    key("develop", Kind::Nullable(&DEVELOP)).unsupported(LATER),
    key("device_cgroup_rules", TEXTS),
    key("devices", Kind::List(&DEVICE_KIND, Unique::By(target))),
    key("dns", ONE_OR_KEYED_TEXTS),
    key("dns_opt", KEYED_TEXTS),
    key("dns_search", ONE_OR_KEYED_TEXTS),
    key("domainname", TEXT),
    key("entrypoint", Kind::Command).merged(Merge::Replace),
    key("env_file", Kind::Short(Short::EnvFile, &ENV_FILES)),
    key("environment", Kind::KeyValues),
    key("expose", Kind::List(&EXPOSED, Unique::Whole)),
    key("extends", Kind::Any),
    key("external_links", TEXTS).unsupported(LATER),
    key("extra_hosts", Kind::Short(Short::ExtraHosts, &HOSTS)),
    key("gpus", Kind::Short(Short::Gpus, &GPUS)).unsupported(LATER),
    key("group_add", Kind::List(&SCALAR_ITEM, Unique::Whole)),
    key("healthcheck", Kind::Table(&HEALTHCHECK)),
    key("hostname", Kind::Text(Some(scalar::hostname))),
    key("image", Kind::Text(Some(scalar::image))),
    key("init", Kind::Bool),
    key("ipc", Kind::Text(Some(scalar::ipc_mode))),
    key("isolation", TEXT).unsupported(WINDOWS),
    key("label_file", ONE_OR_TEXTS),
    key("labels", Kind::KeyValues),
    key("links", KEYED_TEXTS),
    key("logging", Kind::Table(&LOGGING)).merged(Merge::Logging),
    key("mac_address", TEXT),
    key("mem_limit", Kind::Scalar(Some(scalar::bytes))),
    key("mem_reservation", Kind::Scalar(Some(scalar::bytes))),
    key("mem_swappiness", Kind::Int(-1, 100)).unsupported("cgroup v2 has no swappiness"),
    key("memswap_limit", Kind::Scalar(Some(scalar::bytes))),
    key("models", Kind::Short(Short::Names, &SERVICE_MODELS)).unsupported("orch runs no model runner"),
    key("network_mode", TEXT),
    key("networks", Kind::Short(Short::Names, &ATTACHMENTS)),
    key("oom_kill_disable", Kind::Bool).unsupported("cgroup v2 has no such switch"),
    key("oom_score_adj", Kind::Int(-1000, 1000)),
    key("pid", Kind::Nullable(&PID_MODE)),
    key("pids_limit", Kind::Int(-1, i64::MAX)),
    key("platform", TEXT),
    key("ports", Kind::Short(Short::Ports, &PORTS)),
    key("post_start", Kind::List(&HOOK, Unique::No)).unsupported(LATER),
    key("pre_start", Kind::List(&PRE_START, Unique::No)).unsupported(LATER),
    key("pre_stop", Kind::List(&HOOK, Unique::No)).unsupported(LATER),
    key("privileged", Kind::Bool),
    key("profiles", KEYED_TEXTS),
    key("provider", Kind::Table(&PROVIDER)).unsupported("orch starts no external providers"),
    key("pull_policy", Kind::Text(Some(scalar::pull_policy))),
    key("pull_refresh_after", Kind::Text(Some(scalar::duration))),
    key("read_only", Kind::Bool),
    key("restart", Kind::Text(Some(scalar::restart))),
    key("runtime", TEXT).unsupported("orch is its own runtime"),
    key("scale", Kind::Int(0, u32::MAX as i64)),
    key("secrets", Kind::List(&GRANT_KIND, Unique::By(secret_target))),
    key("security_opt", Kind::List(&SECURITY_OPTION, Unique::Whole)),
    key("shm_size", Kind::Scalar(Some(scalar::bytes))),
    key("stdin_open", Kind::Bool),
    key("stop_grace_period", Kind::Text(Some(scalar::duration))),
    key("stop_signal", Kind::Text(Some(scalar::signal))),
    key("storage_opt", Kind::Scalars).unsupported(LATER),
    key("sysctls", Kind::KeyValues),
    key("tmpfs", ONE_OR_KEYED_TEXTS),
    key("tty", Kind::Bool),
    key("ulimits", Kind::Named(&ULIMITS)),
    key("use_api_socket", Kind::Bool).unsupported(LATER),
    key("user", TEXT),
    key("userns_mode", Kind::Text(Some(scalar::userns_mode))),
    key("uts", Kind::Text(Some(scalar::uts_mode))),
    key("volumes", Kind::List(&MOUNT_KIND, Unique::By(target))),
    key("volumes_from", TEXTS),
    key("working_dir", TEXT),
];

static CAPABILITY: Kind = Kind::Text(Some(scalar::capability));
static SECURITY_OPTION: Kind = Kind::Text(Some(scalar::security_option));
static PID_MODE: Kind = Kind::Text(Some(scalar::pid_mode));
static EXPOSED: Kind = Kind::Scalar(Some(scalar::exposed));
static BUILD_KIND: Kind = Kind::Table(&BUILD);

static BLKIO: Table = closed_table(&[
    key("device_read_bps", Kind::List(&BLKIO_LIMIT, Unique::No)),
    key("device_read_iops", Kind::List(&BLKIO_LIMIT, Unique::No)),
    key("device_write_bps", Kind::List(&BLKIO_LIMIT, Unique::No)),
    key("device_write_iops", Kind::List(&BLKIO_LIMIT, Unique::No)),
    key("weight", Kind::Int(0, 1000)),
    key("weight_device", Kind::List(&BLKIO_WEIGHT, Unique::No)),
]);
static BLKIO_LIMIT: Kind = Kind::Table(&closed_table(&[
    key("path", TEXT).required(),
    key("rate", Kind::Scalar(Some(scalar::bytes))).required(),
]));
static BLKIO_WEIGHT: Kind =
    Kind::Table(&closed_table(&[key("path", TEXT).required(), key("weight", Kind::Int(0, 1000)).required()]));

static CREDENTIAL_SPEC: Table = table(&[key("config", TEXT), key("file", TEXT), key("registry", TEXT)]);

static DEPENDENCIES: Kind = Kind::Named(&DEPENDENCY);
static DEPENDENCY: Kind = Kind::Table(&table(&[
    key("condition", Kind::Choice(&["service_started", "service_healthy", "service_completed_successfully"]))
        .required(),
    key("required", Kind::Bool),
    key("restart", Kind::Bool),
]));

static DEVELOP: Kind = Kind::Table(&table(&[key("watch", Kind::List(&WATCH, Unique::No))]));
static WATCH: Kind = Kind::Short(Short::Watch, &WATCH_LONG);
static WATCH_LONG: Kind = Kind::Table(&table(&[
    key("action", Kind::Choice(&["rebuild", "sync", "restart", "sync+restart", "sync+exec"])).required(),
    key("exec", HOOK_TABLE),
    key("ignore", ONE_OR_TEXTS),
    key("include", ONE_OR_TEXTS),
    key("initial_sync", Kind::Bool),
    key("path", TEXT).required(),
    key("target", TEXT),
]));

static DEVICE_KIND: Kind = Kind::Short(Short::Device, &DEVICE);
static DEVICE: Kind =
    Kind::Table(&table(&[key("permissions", TEXT), key("source", TEXT).required(), key("target", TEXT)]));

static ENV_FILES: Kind = Kind::List(&ENV_FILE, Unique::By(path));
static ENV_FILE: Kind = Kind::Table(&closed_table(&[
    key("format", Kind::Choice(&["raw", ""])),
    key("path", TEXT).required(),
    key("required", Kind::Bool),
]));

static GPUS: Kind = Kind::List(&DEVICE_REQUEST, Unique::No);

static HEALTHCHECK: Table = table(&[
    key("disable", Kind::Bool),
    key("interval", Kind::Text(Some(scalar::duration))),
    key("retries", NATURAL),
    key("start_interval", Kind::Text(Some(scalar::duration))),
    key("start_period", Kind::Text(Some(scalar::duration))),
    key("test", Kind::Any).merged(Merge::Replace),
    key("timeout", Kind::Text(Some(scalar::duration))),
]);

static LOGGING: Table = table(&[key("driver", TEXT), key("options", Kind::Scalars)]);

static SERVICE_MODELS: Kind = Kind::Named(&SERVICE_MODEL);
static SERVICE_MODEL: Kind = Kind::Nullable(&SERVICE_MODEL_TABLE);
static SERVICE_MODEL_TABLE: Kind = Kind::Table(&table(&[key("endpoint_var", TEXT), key("model_var", TEXT)]));

static ATTACHMENTS: Kind = Kind::Named(&ATTACHMENT);
static ATTACHMENT: Kind = Kind::Nullable(&ATTACHMENT_TABLE);
static ATTACHMENT_TABLE: Kind = Kind::Table(&table(&[
    key("aliases", KEYED_TEXTS),
    key("driver_opts", Kind::Scalars),
    key("gw_priority", ANY_INT),
    key("interface_name", TEXT),
    key("ipv4_address", Kind::Text(Some(scalar::ipv4))),
    key("ipv6_address", Kind::Text(Some(scalar::ipv6))),
    key("link_local_ips", Kind::List(&ADDRESS, Unique::Whole)).unsupported(LATER),
    key("mac_address", TEXT),
    key("priority", ANY_INT),
]));
static ADDRESS: Kind = Kind::Text(Some(scalar::ip));

static PORTS: Kind = Kind::List(&PORT, Unique::By(port_key));
static PORT: Kind = Kind::Table(&table(&[
    key("app_protocol", TEXT),
    key("host_ip", Kind::Text(Some(scalar::ip))),
    key("mode", Kind::Choice(&["ingress", "host"])),
    key("name", TEXT),
    key("protocol", Kind::Text(Some(scalar::protocol))),
    key("published", Kind::Scalar(Some(scalar::published))),
    key("target", Kind::Int(1, 65535)).required(),
]));

const HOOK_TABLE: Kind = Kind::Table(&table(&[
    key("command", Kind::Command).required().merged(Merge::Replace),
    key("environment", Kind::KeyValues),
    key("privileged", Kind::Bool),
    key("user", TEXT),
    key("working_dir", TEXT),
]));
static HOOK: Kind = HOOK_TABLE;
static PRE_START: Kind = Kind::Table(&table(&[
    key("command", Kind::Command).merged(Merge::Replace),
    key("environment", Kind::KeyValues),
    key("image", TEXT),
    key("per_replica", Kind::Bool),
    key("privileged", Kind::Bool),
    key("user", TEXT),
    key("working_dir", TEXT),
]));

static PROVIDER_OPTION: Kind = Kind::OneOrList(&PLAIN, Unique::No);
static PLAIN: Kind = Kind::Plain;
static PROVIDER: Table = table(&[key("options", Kind::Named(&PROVIDER_OPTION)), key("type", TEXT).required()]);

/// One grant of a secret or config.
pub(super) static GRANT_KIND: Kind = Kind::Short(Short::Grant, &GRANT);
static GRANT: Kind = Kind::Table(&table(&[
    key("gid", Kind::Text(Some(scalar::id))),
    key("mode", Kind::FileMode),
    key("source", TEXT).required(),
    key("target", TEXT),
    key("uid", Kind::Text(Some(scalar::id))),
]));

static MOUNT_KIND: Kind = Kind::Short(Short::Mount, &MOUNT);
static MOUNT: Kind = Kind::Table(&table(&[
    key("bind", Kind::Table(&MOUNT_BIND)),
    key("consistency", TEXT),
    key("image", Kind::Table(&MOUNT_IMAGE)),
    key("read_only", Kind::Bool),
    key("source", TEXT),
    key("target", TEXT),
    key("tmpfs", Kind::Table(&MOUNT_TMPFS)),
    key("type", Kind::Choice(&["bind", "volume", "tmpfs", "cluster", "npipe", "image"])).required(),
    key("volume", Kind::Table(&MOUNT_VOLUME)),
]));
static MOUNT_BIND: Table = table(&[
    key("create_host_path", Kind::Bool),
    key("propagation", Kind::Choice(&["", "private", "rprivate", "shared", "rshared", "slave", "rslave"])),
    key("recursive", Kind::Choice(&["enabled", "disabled", "writable", "readonly"])),
    key("selinux", Kind::Choice(&["z", "Z"])),
]);
static MOUNT_VOLUME: Table = table(&[key("labels", Kind::KeyValues), key("nocopy", Kind::Bool), key("subpath", TEXT)]);
static MOUNT_TMPFS: Table = table(&[key("mode", Kind::FileMode), key("size", Kind::Scalar(Some(scalar::bytes)))]);
static MOUNT_IMAGE: Table = table(&[key("subpath", TEXT)]);

fn target(node: &Node) -> Option<String> {
    node.get("target").or_else(|| node.get("source"))?.scalar_text()
}

fn path(node: &Node) -> Option<String> {
    node.get("path")?.scalar_text()
}

fn secret_target(node: &Node) -> Option<String> {
    grant_target(node, "/run/secrets/")
}

fn config_target(node: &Node) -> Option<String> {
    grant_target(node, "/")
}

fn grant_target(node: &Node, folder: &str) -> Option<String> {
    let name = node.get("target").or_else(|| node.get("source"))?.scalar_text()?;
    Some(if name.starts_with('/') { name } else { format!("{folder}{name}") })
}

fn port_key(node: &Node) -> Option<String> {
    let text = |key: &str, default: &str| {
        node.get(key).and_then(Node::scalar_text).filter(|text| !text.is_empty()).unwrap_or_else(|| default.into())
    };
    // Two ports of the node chosen by the system for one target are one mapping, as in Compose.
    Some(format!(
        "{}:{}:{}/{}",
        text("host_ip", "0.0.0.0"),
        text("published", ""),
        text("target", ""),
        text("protocol", "tcp")
    ))
}
