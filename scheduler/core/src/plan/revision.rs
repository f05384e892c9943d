//! From a service in a file to a specification with everything resolved that the stack around it decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use orch_spec::assignment::{FileAssignment, NetworkName};
use orch_spec::model::{FileObjectSpec, GrantSpec, MountSource, NetworkMode, NetworkSpec, ServiceSpec, StackSpec};

use crate::error::{Missing, Refusal, SpecFault};
use crate::identity;
use crate::state::Revision;

/// Name of the network that `network_mode: bridge` stands for; it belongs to no stack.
pub(crate) const BRIDGE: &str = "bridge";
/// The network of services that name none.
pub(crate) const DEFAULT_NETWORK: &str = "default";
/// Permission bits of secrets and configs that say none (Compose specification, "secrets").
const FILE_MODE: u32 = 0o444;

/// The specification of one service.
pub(crate) fn resolve(stack: &StackSpec, service: &str, spec: &ServiceSpec) -> Result<Revision, Refusal> {
    Ok(Revision {
        hash: spec.digest(stack).0,
        networks: networks(stack, service, spec)?,
        volumes: volumes(stack, service, spec)?,
        files: files(stack, service, spec)?,
        spec: Arc::new(spec.clone()),
    })
}

/// A specification with another service in it; what it was resolved with stays.
pub(crate) fn changed(applied: &Revision, spec: &Arc<ServiceSpec>) -> Revision {
    // Without the stack's objects: they are the same before and after.
    let digest = |spec: &ServiceSpec| spec.digest(&StackSpec::default()).0;
    let (former, now) = (digest(&applied.spec), digest(spec));
    let hash = if former == now { applied.hash.clone() } else { now };
    Revision { spec: Arc::clone(spec), hash, ..applied.clone() }
}

/// The definition of one of the stack's networks; the default network needs none.
pub(crate) fn network_spec(stack: &StackSpec, key: &str) -> Option<NetworkSpec> {
    match stack.networks.get(key) {
        Some(spec) if spec.name.is_empty() => {
            Some(NetworkSpec { name: format!("{}_{key}", stack.name), ..spec.clone() })
        }
        Some(spec) => Some(spec.clone()),
        None if key == DEFAULT_NETWORK => {
            Some(NetworkSpec { name: format!("{}_{key}", stack.name), ..NetworkSpec::default() })
        }
        None => None,
    }
}

fn networks(stack: &StackSpec, service: &str, spec: &ServiceSpec) -> Result<BTreeMap<String, NetworkName>, Refusal> {
    let single = |key: &str, name: &str| Ok(BTreeMap::from([(key.to_owned(), NetworkName::from(name))]));
    match &spec.network_mode {
        NetworkMode::None | NetworkMode::Host | NetworkMode::Service(_) | NetworkMode::Container(_) => {
            Ok(BTreeMap::new())
        }
        NetworkMode::Bridge => single(BRIDGE, BRIDGE),
        NetworkMode::Network(name) => single(name, name),
        NetworkMode::Stack => {
            let default = DEFAULT_NETWORK.to_owned();
            let keys: Vec<&String> =
                if spec.networks.is_empty() { vec![&default] } else { spec.networks.keys().collect() };
            keys.into_iter()
                .map(|key| match network_spec(stack, key) {
                    Some(found) => Ok((key.clone(), NetworkName(found.name))),
                    None => {
                        let (service, key) = (service.to_owned(), key.clone());
                        Err(SpecFault::Undefined { service, kind: "network", key }.into())
                    }
                })
                .collect()
        }
    }
}

fn volumes(stack: &StackSpec, service: &str, spec: &ServiceSpec) -> Result<BTreeMap<String, String>, Refusal> {
    let mut names = BTreeMap::new();
    for mount in &spec.volumes {
        let MountSource::Volume { name: Some(key), .. } = &mount.source else { continue };
        let Some(volume) = stack.volumes.get(key) else {
            return Err(SpecFault::Undefined { service: service.to_owned(), kind: "volume", key: key.clone() }.into());
        };
        let name = if volume.name.is_empty() { format!("{}_{key}", stack.name) } else { volume.name.clone() };
        names.insert(key.clone(), name);
    }
    Ok(names)
}

fn files(stack: &StackSpec, service: &str, spec: &ServiceSpec) -> Result<Vec<FileAssignment>, Refusal> {
    let secrets = spec.secrets.iter().map(|grant| (grant, &stack.secrets, true));
    let configs = spec.configs.iter().map(|grant| (grant, &stack.configs, false));
    secrets.chain(configs).map(|(grant, objects, secret)| file(&stack.name, service, grant, objects, secret)).collect()
}

fn file(
    stack: &str,
    service: &str,
    grant: &GrantSpec,
    objects: &BTreeMap<String, FileObjectSpec>,
    secret: bool,
) -> Result<FileAssignment, Refusal> {
    let kind = if secret { "secret" } else { "config" };
    let (service, key) = (service.to_owned(), grant.source.clone());
    let Some(object) = objects.get(&grant.source) else {
        return Err(SpecFault::Undefined { service, kind, key }.into());
    };
    let Some(content) = &object.content else {
        if object.external {
            let (name, stack) = (object.name.clone(), stack.to_owned());
            return Err(Missing::External { kind, name, key, stack }.into());
        }
        let why = "it comes from a driver";
        return Err(SpecFault::NoContent { service, kind, key, why }.into());
    };
    Ok(FileAssignment {
        target: target(grant, secret),
        digest: identity::sha256_hex(&content.0),
        content: Arc::new(content.clone()),
        uid: grant.uid.unwrap_or(0),
        gid: grant.gid.unwrap_or(0),
        mode: grant.mode.unwrap_or(FILE_MODE),
        secret,
        name: object.name.clone(),
        external: object.external,
    })
}

/// Secrets are under `/run/secrets` unless their target is absolute, configs under `/`.
fn target(grant: &GrantSpec, secret: bool) -> String {
    let name = if grant.target.is_empty() { &grant.source } else { &grant.target };
    match (name.starts_with('/'), secret) {
        (true, _) => name.clone(),
        (false, true) => format!("/run/secrets/{name}"),
        (false, false) => format!("/{name}"),
    }
}
