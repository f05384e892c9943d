//! Kernel parameters of a container's own namespaces.

use super::plan::{NamespacePlan, Space};
use super::prepare::PrepareError;
use crate::config::{ContainerConfig, NetworkNs};

/// Parameters of the IPC namespace, beside `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Docker's defaults in a network namespace of its own: any user may bind low ports and send echo requests.
const NETWORK_DEFAULTS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Name, value, and whether a kernel without it is fine. Only what belongs to a namespace of the container is let through.
pub(super) fn plan(
    config: &ContainerConfig,
    namespaces: &NamespacePlan,
) -> Result<Vec<(String, String, bool)>, PrepareError> {
    let own_network = namespaces.network != NetworkNs::Host;
    let mut planned = Vec::new();
    if own_network {
        let unset = NETWORK_DEFAULTS.iter().filter(|(name, _)| !config.sysctls.contains_key(*name));
        planned.extend(unset.map(|(name, value)| ((*name).to_owned(), (*value).to_owned(), true)));
    }
    for (name, value) in &config.sysctls {
        let refuse = |problem: &str| Err(PrepareError::invalid(format!("sysctls.{name}"), problem));
        let dotted = name.replace('/', ".");
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:".contains(&byte))
        };
        if !dotted.split('.').all(plain) {
            return refuse("this is not a parameter's name");
        }
        // A line break or a `+` would smuggle in a second parameter in tools that split there (CVE-2022-0811).
        if value.contains(['\n', '\0', '+']) {
            return refuse("the value must not hold a line break, NUL or plus sign");
        }
        let of_ipc = IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.");
        if dotted.starts_with("net.") {
            if !own_network {
                return refuse("it belongs to the network, and this container uses the host's");
            }
        } else if of_ipc {
            if namespaces.ipc == Space::Host {
                return refuse("it belongs to the IPC namespace, and this container uses the host's");
            }
        } else if dotted == "kernel.domainname" {
            if namespaces.uts == Space::Host {
                return refuse("it belongs to the UTS namespace, and this container uses the host's");
            }
        } else {
            return refuse("it is not a parameter of a namespace: it would change the whole host");
        }
        planned.push((dotted, value.clone(), false));
    }
    Ok(planned)
}
