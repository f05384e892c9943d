//! Networks and volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use orch_spec::assignment::{NetworkName, NodeId, TaskId};
use orch_spec::model::{IpamPool, NetworkSpec, VolumeSpec};
use serde::{Deserialize, Serialize};

use super::reservation_holder;
use crate::address::Pool;

/// What a network shall be; another definition means another network under the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkDefinition {
    /// `bridge`.
    pub driver: String,
    /// Options of the driver.
    pub driver_opts: BTreeMap<String, String>,
    /// No way out.
    pub internal: bool,
    /// Has IPv4.
    pub enable_ipv4: bool,
    /// Has IPv6.
    pub enable_ipv6: bool,
    /// Address pools that were asked for.
    pub pools: Vec<IpamPool>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Default for NetworkDefinition {
    fn default() -> Self {
        Self {
            driver: "bridge".to_owned(),
            driver_opts: BTreeMap::new(),
            internal: false,
            enable_ipv4: true,
            enable_ipv6: false,
            pools: Vec::new(),
            labels: BTreeMap::new(),
        }
    }
}

impl From<&NetworkSpec> for NetworkDefinition {
    fn from(spec: &NetworkSpec) -> Self {
        Self {
            driver: spec.driver.clone().unwrap_or_else(|| "bridge".to_owned()),
            driver_opts: spec.driver_opts.clone(),
            internal: spec.internal,
            enable_ipv4: spec.enable_ipv4.unwrap_or(true),
            enable_ipv6: spec.enable_ipv6.unwrap_or(false),
            pools: spec.ipam.config.clone(),
            labels: spec.labels.clone(),
        }
    }
}

/// How far a network is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkPhase {
    /// It is what it shall be.
    #[default]
    Active,
    /// It is to be made anew; its former self goes as soon as the tasks on it are gone.
    Replacing(Box<Network>),
    /// It goes as soon as nobody uses it.
    Removing,
}

/// A network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Full name.
    pub name: NetworkName,
    /// The stack that made it; empty = by hand.
    pub stack: String,
    /// Its key in the file.
    pub key: String,
    /// What it was asked to be.
    pub definition: NetworkDefinition,
    /// IPv4 addresses.
    pub pool4: Option<Pool>,
    /// IPv6 addresses.
    pub pool6: Option<Pool>,
    /// Addresses that containers outside of stacks hold, by holder.
    pub reservations: BTreeMap<String, Reservation>,
    /// The addresses that stand for services on it, by `<stack>/<service>`.
    #[serde(default)]
    pub vips: BTreeMap<String, Vip>,
    /// The number of its VXLAN; `None` = it ends at each host.
    #[serde(default)]
    pub vni: Option<u32>,
    /// Index of the last change of who can be reached on it.
    #[serde(default)]
    pub endpoints_changed: u64,
    /// Tasks with an endpoint on it.
    pub users: BTreeSet<TaskId>,
    /// Nodes that have been told to have it and have not yet said that it is gone.
    pub nodes: BTreeSet<NodeId>,
    /// How far it is.
    pub phase: NetworkPhase,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    /// Index of the last entry that changed it.
    pub changed: u64,
}

impl Network {
    /// The pools of both families.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pool4.iter().chain(&self.pool6)
    }

    /// What it will be: itself, or its successor while it is being replaced. Plans are made against this.
    pub fn planned(&self) -> &Self {
        match &self.phase {
            NetworkPhase::Replacing(successor) => successor,
            NetworkPhase::Active | NetworkPhase::Removing => self,
        }
    }

    /// See [`Network::planned`].
    pub(crate) fn planned_mut(&mut self) -> &mut Self {
        if matches!(self.phase, NetworkPhase::Replacing(_)) {
            let NetworkPhase::Replacing(successor) = &mut self.phase else { unreachable!("just matched") };
            return successor;
        }
        self
    }

    /// Tasks on it, and tasks that will be on its successor.
    pub fn all_users(&self) -> BTreeSet<&TaskId> {
        self.users.iter().chain(&self.planned().users).collect()
    }

    /// Whether the task, which is on this network, has no place on what the network will be.
    pub fn displaces(&self, task: &TaskId) -> bool {
        matches!(&self.phase, NetworkPhase::Replacing(successor) if !successor.users.contains(task))
    }

    /// Whether it reaches over to other nodes, or will: networks of stacks do, and those made by hand that were asked to.
    pub fn reaches_over(&self) -> bool {
        match self.definition.driver.as_str() {
            "overlay" => true,
            "bridge" => !self.stack.is_empty(),
            _ => false,
        }
    }

    /// Frees the addresses of a container outside of stacks; says whether it had any.
    pub(crate) fn release(&mut self, container: &str) -> bool {
        let holder = reservation_holder(container);
        for pool in [&mut self.pool4, &mut self.pool6].into_iter().flatten() {
            pool.held.retain(|_, present| *present != holder);
        }
        self.reservations.remove(container).is_some()
    }

    /// Whether tasks may use it now.
    pub fn is_active(&self) -> bool {
        self.phase == NetworkPhase::Active
    }
}

/// The addresses that stand for a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// In the network's IPv4 subnet.
    pub ipv4: Option<Ipv4Addr>,
    /// In the network's IPv6 subnet.
    pub ipv6: Option<Ipv6Addr>,
}

/// An address held by a container outside of stacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reservation {
    /// The container's name.
    pub name: String,
    /// Its names in DNS.
    pub aliases: Vec<String>,
    /// Its address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its address.
    pub ipv6: Option<Ipv6Addr>,
    /// Its MAC address, where it is not the one that follows from the address.
    pub mac: Option<String>,
    /// Where it runs.
    pub node: Option<NodeId>,
}

/// A named volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Full name.
    pub name: String,
    /// The stack that made it; empty = by hand.
    pub stack: String,
    /// Its key in the file.
    pub key: String,
    /// `local`.
    pub driver: String,
    /// Options of the driver.
    pub driver_opts: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Tasks that mount it.
    pub users: BTreeSet<TaskId>,
    /// Nodes that have been told to have it and have not yet said that it is gone.
    pub nodes: BTreeSet<NodeId>,
    /// The node where its data is, and so all tasks that use it.
    #[serde(default)]
    pub pinned: Option<NodeId>,
    /// It goes as soon as nobody uses it.
    pub removing: bool,
    /// Why a node could not remove it.
    pub error: String,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    /// Index of the last entry that changed it.
    pub changed: u64,
}

/// The driver of volumes whose file names none.
pub(crate) fn volume_driver(spec: &VolumeSpec) -> String {
    spec.driver.clone().unwrap_or_else(|| "local".to_owned())
}
