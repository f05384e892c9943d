//! `container run`: the options of one container, as a service of which there is one, and its session.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use orch_api::node::{ContainerRequest, Created};
use orch_spec::model::{HealthTest, Healthcheck, NamespaceMode, NetworkAttachment, NetworkMode, ServiceSpec};
use serde_json::{Value, json};

use crate::args::ContainerRun;
use crate::commands::push::with_images;
use crate::commands::session::{self, SessionOptions};
use crate::commands::{client, one_off, volume};
use crate::exit::{Exit, Failure};
use crate::later;
use crate::printer;
use crate::settings::Settings;
use crate::stack_file;

/// `container run`.
pub(super) async fn run(settings: &Settings, args: ContainerRun) -> Result<Exit> {
    later::check_pull(args.pull.as_deref())?;
    let mut spec = service(&args, &settings.typed_env_files)?;
    if args.tty && args.interactive && !args.detach && !std::io::stdin().is_terminal() {
        let message = "-t with -i needs a terminal, and standard input is none";
        return Err(Failure::usage(message).hint("leave -t out, or run it from a terminal").into());
    }
    if args.rm && args.restart.as_deref().is_some_and(|policy| policy != "no") {
        let message = "--rm removes it once it has exited, and --restart starts it again then";
        return Err(Failure::usage(message).hint("leave one of them out").into());
    }
    spec.stdin_open = args.interactive;
    let client = client(settings)?;
    let request = ContainerRequest {
        name: args.name.clone().unwrap_or_default(),
        spec,
        auto_remove: args.rm,
        start: true,
        size: if args.tty { session::window() } else { None },
        attach_stdin: args.interactive && !args.detach,
        publish_all: args.publish_all,
    };
    let id_file = args.cidfile.as_deref().map(IdFile::new).transpose()?;
    if args.detach {
        let make = async || client.post("/v1/containers", &request).await;
        let made: Created = with_images(settings, &client, make).await.map_err(run_failure)?;
        if let Some(file) = id_file {
            file.write(&made.id)?;
        }
        printer::line(&made.id);
        return Ok(Exit::Done);
    }
    let begin = async || client.upgrade("/v1/containers/run", &request).await;
    let connection = with_images(settings, &client, begin).await.map_err(run_failure)?;
    let options = SessionOptions {
        stdin: args.interactive,
        tty: args.tty,
        signals: args.sig_proxy,
        detach_keys: if args.rm { "" } else { &args.detach_keys },
    };
    let started = |made: &Created| id_file.map_or(Ok(()), |file| file.write(&made.id));
    Ok(session::run_started(connection, &options, started).await.map_err(run_failure)?.exit())
}

/// A file that a container's id goes into; it goes again when no container was made.
struct IdFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl IdFile {
    /// Makes it, so that no container is made whose id could not be written.
    fn new(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = File::create_new(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::new(Exit::Code(125), format!("--cidfile {shown} is there already"))
                    .hint("the container that it names may still be there; remove the file, or choose another one")
            }
            _ => Failure::new(Exit::Code(125), format!("--cidfile {shown} cannot be made: {e}")),
        })?;
        Ok(Self { path: path.to_owned(), file, kept: false })
    }

    fn write(mut self, id: &str) -> Result<()> {
        self.kept = true;
        self.file.write_all(id.as_bytes()).with_context(|| format!("write {}", self.path.display()))
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing depends on it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What keeps a container from being started is exit code 125, Docker's, unless the node says 126 or 127.
fn run_failure(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<orch_api::client::ClientError>() {
        Ok(orch_api::client::ClientError::Refused(mut detail)) => {
            detail.exit_code = detail.exit_code.or(Some(125));
            orch_api::client::ClientError::Refused(detail).into()
        }
        Ok(other) => other.into(),
        Err(other) => other,
    }
}

/// The options of `run` as a service, so that one way leads from either to a container.
fn service(args: &ContainerRun, env_files: &[String]) -> Result<ServiceSpec> {
    let mut keys = serde_json::Map::from_iter([("image".to_owned(), args.image.clone().into())]);
    lists(args, &mut keys);
    words(args, &mut keys);
    structures(args, env_files, &mut keys)?;
    let mut spec = stack_file::service(&Value::Object(keys))?;
    if !args.command.is_empty() {
        spec.command = Some(args.command.clone());
    }
    if let Some(entrypoint) = &args.entrypoint {
        spec.entrypoint = Some(if entrypoint.is_empty() { Vec::new() } else { vec![entrypoint.clone()] });
    }
    spec.healthcheck = healthcheck(args)?.or(spec.healthcheck);
    spec.pid = namespace("pid", args.pid.as_deref(), spec.pid)?;
    spec.ipc = namespace("ipc", args.ipc.as_deref(), spec.ipc)?;
    network(args, &mut spec)?;
    Ok(spec)
}

/// Options that may be repeated.
fn lists(args: &ContainerRun, keys: &mut serde_json::Map<String, Value>) {
    let lists: [(&str, &Vec<String>); 17] = [
        ("tmpfs", &args.tmpfs),
        ("ports", &args.publish),
        ("expose", &args.expose),
        ("group_add", &args.group_add),
        ("cap_add", &args.cap_add),
        ("cap_drop", &args.cap_drop),
        ("security_opt", &args.security_opt),
        ("devices", &args.device),
        ("device_cgroup_rules", &args.device_cgroup_rule),
        ("sysctls", &args.sysctl),
        ("extra_hosts", &args.add_host),
        ("dns", &args.dns),
        ("dns_search", &args.dns_search),
        ("dns_opt", &args.dns_option),
        ("annotations", &args.annotation),
        ("environment", &args.env.iter().filter_map(|e| one_off::variable(e)).collect()),
        ("volumes_from", &args.volumes_from.iter().map(|name| format!("container:{name}")).collect()),
    ];
    for (key, list) in lists {
        if !list.is_empty() {
            keys.insert(key.to_owned(), list.clone().into());
        }
    }
}

/// Options of one word or number, and switches.
fn words(args: &ContainerRun, keys: &mut serde_json::Map<String, Value>) {
    let texts = [
        ("hostname", &args.hostname),
        ("domainname", &args.domainname),
        ("mac_address", &args.mac_address),
        ("user", &args.user),
        ("working_dir", &args.workdir),
        ("cpus", &args.cpus),
        ("cpuset", &args.cpuset_cpus),
        ("mem_limit", &args.memory),
        ("memswap_limit", &args.memory_swap),
        ("mem_reservation", &args.memory_reservation),
        ("cgroup_parent", &args.cgroup_parent),
        ("shm_size", &args.shm_size),
        ("restart", &args.restart),
        ("stop_signal", &args.stop_signal),
        ("uts", &args.uts),
        ("cgroup", &args.cgroupns),
        ("userns_mode", &args.userns),
    ];
    let text = texts.into_iter().filter_map(|(key, text)| Some((key, Value::from(text.clone()?))));
    let numbers = [
        ("pids_limit", args.pids_limit),
        ("oom_score_adj", args.oom_score_adj),
        ("cpu_quota", args.cpu_quota),
        ("cpu_period", args.cpu_period.and_then(|n| i64::try_from(n).ok())),
        ("cpu_shares", args.cpu_shares.and_then(|n| i64::try_from(n).ok())),
    ];
    let number = numbers.into_iter().filter_map(|(key, number)| Some((key, Value::from(number?))));
    let switches =
        [("read_only", args.read_only), ("privileged", args.privileged), ("init", args.init), ("tty", args.tty)];
    let on = switches.into_iter().filter(|(_, on)| *on).map(|(key, _)| (key, Value::from(true)));
    keys.extend(text.chain(number).chain(on).map(|(key, value)| (key.to_owned(), value)));
}

/// Options that the file writes in another way.
fn structures(args: &ContainerRun, env_files: &[String], keys: &mut serde_json::Map<String, Value>) -> Result<()> {
    let mut put = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
    let labels = labels(args)?;
    if !labels.is_empty() {
        put("labels", labels.into());
    }
    let mut mounts: Vec<Value> = args.volume.iter().map(|text| text.clone().into()).collect();
    for text in &args.mount {
        mounts.push(mount(text)?);
    }
    if !mounts.is_empty() {
        put("volumes", mounts.into());
    }
    if !env_files.is_empty() {
        // As Docker reads them: every line is a variable as it stands.
        let raw = env_files.iter().map(|path| json!({"path": path, "format": "raw"}));
        put("env_file", raw.collect());
    }
    if let Some(seconds) = args.stop_timeout {
        put("stop_grace_period", format!("{seconds}s").into());
    }
    if !args.ulimit.is_empty() {
        put("ulimits", ulimits(&args.ulimit)?);
    }
    if !args.log_opt.is_empty() || args.log_driver.is_some() {
        let options: BTreeMap<String, String> = volume::labels(&args.log_opt);
        put("logging", json!({"driver": args.log_driver.as_deref().unwrap_or("json-file"), "options": options}));
    }
    if let Some(weight) = args.blkio_weight {
        put("blkio_config", json!({"weight": weight}));
    }
    Ok(())
}

/// Those of `--label-file`, line by line as they stand, which is how Docker reads them, and behind them those of `--label`.
fn labels(args: &ContainerRun) -> Result<Vec<String>> {
    let mut labels = Vec::new();
    for path in &args.label_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("read the label file {path}"))?;
        let lines = text.lines().map(str::trim_start);
        labels.extend(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned));
    }
    labels.extend(args.label.iter().cloned());
    Ok(labels)
}

/// A `--mount` in the long form of the file.
fn mount(text: &str) -> Result<Value, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("--mount {text}: {why}")).hint(
            "write for example type=bind,source=/srv,target=/data,readonly or type=volume,source=data,target=/data",
        )
    };
    let mut made = json!({"type": "volume"});
    for field in text.split(',') {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let needed = || value.map(Value::from).ok_or_else(|| wrong(format!("`{key}` needs a value")));
        let on = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(wrong(format!("`{key}={other}`: write true or false"))),
        };
        match key {
            "type" => made["type"] = needed()?,
            "source" | "src" => made["source"] = needed()?,
            "target" | "dst" | "destination" => made["target"] = needed()?,
            "readonly" | "ro" => made["read_only"] = on()?.into(),
            "bind-propagation" => made["bind"]["propagation"] = needed()?,
            "bind-recursive" => made["bind"]["recursive"] = needed()?,
            "volume-nocopy" => made["volume"]["nocopy"] = on()?.into(),
            "volume-subpath" => made["volume"]["subpath"] = needed()?,
            "tmpfs-size" => made["tmpfs"]["size"] = needed()?,
            "tmpfs-mode" => made["tmpfs"]["mode"] = needed()?,
            _ => return Err(wrong(format!("`{key}` is not known"))),
        }
    }
    if made["target"].is_null() {
        return Err(wrong("`target` is missing".to_owned()));
    }
    if made["type"] == "bind" {
        // What `-v` makes where there is nothing is an error here, as in Docker.
        made["bind"]["create_host_path"] = false.into();
    }
    Ok(made)
}

/// The options of the health probe; `None` when there are none.
fn healthcheck(args: &ContainerRun) -> Result<Option<Healthcheck>, Failure> {
    let duration = |option: &str, text: &Option<String>| -> Result<Option<orch_spec::model::Duration>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let wrong =
            |_| Failure::usage(format!("--{option} {text} is not a duration")).hint("write for example 1m30s or 500ms");
        text.parse().map(Some).map_err(wrong)
    };
    let test = match (&args.health_cmd, args.no_healthcheck) {
        (_, true) => HealthTest::Disabled,
        (Some(command), _) => HealthTest::Shell(command.clone()),
        (None, _) => HealthTest::Inherit,
    };
    let check = Healthcheck {
        test,
        interval: duration("health-interval", &args.health_interval)?,
        timeout: duration("health-timeout", &args.health_timeout)?,
        retries: args.health_retries,
        start_period: duration("health-start-period", &args.health_start_period)?,
        start_interval: duration("health-start-interval", &args.health_start_interval)?,
    };
    Ok((check != Healthcheck::default()).then_some(check))
}

fn namespace(option: &str, text: Option<&str>, default: NamespaceMode) -> Result<NamespaceMode, Failure> {
    Ok(match text {
        None => default,
        Some("private" | "") => NamespaceMode::Private,
        Some("host") => NamespaceMode::Host,
        Some("none") if option == "ipc" => NamespaceMode::None,
        Some("shareable") if option == "ipc" => NamespaceMode::Shareable,
        Some(other) => match other.strip_prefix("container:").filter(|name| !name.is_empty()) {
            Some(id) => NamespaceMode::Container(id.to_owned()),
            None => {
                let more = if option == "ipc" { ", none, shareable" } else { "" };
                return Err(Failure::usage(format!("--{option} {other} is not known"))
                    .hint(format!("write private, host{more} or container:NAME")));
            }
        },
    })
}

fn network(args: &ContainerRun, spec: &mut ServiceSpec) -> Result<(), Failure> {
    spec.networks.clear();
    spec.network_mode = NetworkMode::Bridge;
    for name in &args.network {
        match name.as_str() {
            "bridge" | "default" => {}
            "none" => spec.network_mode = NetworkMode::None,
            "host" => spec.network_mode = NetworkMode::Host,
            other => match other.strip_prefix("container:") {
                Some(id) => spec.network_mode = NetworkMode::Container(id.to_owned()),
                None => {
                    spec.network_mode = NetworkMode::Stack;
                    let attachment = NetworkAttachment {
                        aliases: args.network_alias.clone(),
                        ipv4_address: args.ip.map(IpAddr::V4),
                        ipv6_address: args.ip6.map(IpAddr::V6),
                        ..NetworkAttachment::default()
                    };
                    spec.networks.insert(other.to_owned(), attachment);
                }
            },
        }
    }
    let address = args.ip.is_some() || args.ip6.is_some();
    if (address && spec.networks.len() != 1) || (!args.network_alias.is_empty() && spec.networks.is_empty()) {
        return Err(Failure::usage(
            "--ip and --ip6 want one network that somebody has made, --network-alias at least one",
        )
        .hint("`orch network create NAME --subnet 10.9.0.0/24`, then `--network NAME`"));
    }
    let alone = args.network.len() > 1
        && (!matches!(spec.network_mode, NetworkMode::Stack) || spec.networks.len() < args.network.len());
    if alone {
        return Err(Failure::usage("`bridge`, `none`, `host` and `container:NAME` do not go with further networks")
            .hint("give the names of networks only; `orch network ls` lists them"));
    }
    Ok(())
}

fn ulimits(texts: &[String]) -> Result<Value> {
    let mut map = serde_json::Map::new();
    for text in texts {
        let parsed = text.split_once('=').and_then(|(name, limits)| {
            let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
            Some((name, soft.parse::<i64>().ok()?, hard.parse::<i64>().ok()?))
        });
        let Some((name, soft, hard)) = parsed else {
            return Err(Failure::usage(format!(
                "--ulimit {text}: write NAME=SOFT[:HARD], for example nofile=1024:4096"
            ))
            .into());
        };
        map.insert(name.to_owned(), json!({"soft": soft, "hard": hard}));
    }
    Ok(Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_as_docker_reads_it() {
        let bind = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rshared").unwrap();
        let expected = json!({"type": "bind", "source": "/a", "target": "/b", "read_only": true,
            "bind": {"propagation": "rshared", "create_host_path": false}});
        assert_eq!(bind, expected);
        let volume = mount("source=v,target=/b,ro=false,volume-nocopy").unwrap();
        let expected =
            json!({"type": "volume", "source": "v", "target": "/b", "read_only": false, "volume": {"nocopy": true}});
        assert_eq!(volume, expected);
        for wrong in ["type=bind,source=/a", "target", "target=/b,color=red", "target=/b,readonly=maybe"] {
            assert!(mount(wrong).is_err(), "{wrong}");
        }
    }
}
