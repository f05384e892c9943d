//! The canonical digest of a service: the same text exactly when its containers need not be recreated.

use super::{ServiceSpec, StackSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt;

/// Says how the digest is made; a change of the rules must change it.
const RULES: &[u8] = b"orch-service-digest-1\n";

/// `sha256` in lower-case hexadecimal of what makes a service's containers what they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceDigest(pub String);

impl fmt::Display for ServiceDigest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl ServiceSpec {
    /// The digest of this service inside `stack`, which supplies the content of the granted secrets and configs.
    ///
    /// Left out, as Compose leaves them out, because they change no container: `build`, `pull_policy`, `scale`,
    /// `deploy.replicas`, `depends_on`, `profiles`; and what only steers orch: placement, the update and rollback configuration.
    /// Keys equal to their default do not count, so that a key added to orch later leaves all digests as they were.
    pub fn digest(&self, stack: &StackSpec) -> ServiceDigest {
        let mut reduced = self.clone();
        reduced.build = None;
        reduced.pull_policy = None;
        reduced.scale = None;
        reduced.deploy.replicas = None;
        reduced.deploy.placement = super::PlacementSpec::default();
        reduced.deploy.update_config = None;
        reduced.deploy.rollback_config = None;
        reduced.depends_on.clear();
        reduced.profiles.clear();
        reduced.develop = None;
        reduced.attach = None;

        let mut hasher = Sha256::new();
        hasher.update(RULES);
        hasher.update(canonical_text(&reduced).as_bytes());
        for (kind, grants, objects) in
            [("secret", &self.secrets, &stack.secrets), ("config", &self.configs, &stack.configs)]
        {
            for grant in grants {
                let Some(object) = objects.get(&grant.source) else { continue };
                hasher.update(format!("\n{kind} {} {}\n", grant.source, object.name));
                if let Some(content) = &object.content {
                    hasher.update(Sha256::digest(&content.0));
                }
            }
        }
        ServiceDigest(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl StackSpec {
    /// The digest of one service; `None` when there is none of this name.
    pub fn service_digest(&self, service: &str) -> Option<ServiceDigest> {
        self.services.get(service).map(|spec| spec.digest(self))
    }
}

/// JSON with sorted keys, without top-level keys at their default and without nested nulls.
fn canonical_text(service: &ServiceSpec) -> String {
    let to_value =
        |spec: &ServiceSpec| serde_json::to_value(spec).expect("a spec has only text keys and finite numbers");
    let (mut value, default) = (to_value(service), to_value(&ServiceSpec::default()));
    if let (Value::Object(map), Value::Object(default)) = (&mut value, &default) {
        map.retain(|key, value| default.get(key) != Some(value));
        for (key, value) in map.iter_mut() {
            // In `environment` a null is a statement: the variable is removed.
            if key != "environment" {
                prune_nulls(value);
            }
        }
        map.sort_keys();
    }
    value.to_string()
}

fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(prune_nulls);
            map.sort_keys();
        }
        Value::Array(list) => list.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}
