//! The control plane as its users and its disk see it.

#[path = "scheduler/access.rs"]
mod access;
#[path = "scheduler/api.rs"]
mod api;
#[path = "scheduler/cluster.rs"]
mod cluster;
#[path = "scheduler/damage.rs"]
mod damage;
#[path = "scheduler/full_disk.rs"]
mod full_disk;
#[path = "scheduler/identity.rs"]
mod identity;
#[path = "scheduler/kill.rs"]
mod kill;
#[path = "scheduler/order.rs"]
mod order;
#[path = "scheduler/power_loss.rs"]
mod power_loss;
#[path = "scheduler/readmission.rs"]
mod readmission;
#[path = "scheduler/sealed.rs"]
mod sealed;
#[path = "scheduler/service.rs"]
mod service;
#[path = "scheduler/simulated_disk.rs"]
mod simulated_disk;
