//! The keys of `deploy`.

use super::{ANY_INT, Kind, TEXT, TEXTS, Table, Unique, key, table};
use crate::scalar;

/// Replicas, placement, resources, updates.
pub(super) static DEPLOY: Kind = Kind::Table(&table(&[
    key("endpoint_mode", Kind::Choice(&["vip", "dnsrr"])),
    key("labels", Kind::KeyValues),
    key("mode", Kind::Choice(&["replicated", "global", "replicated-job", "global-job"])),
    key("placement", Kind::Table(&PLACEMENT)),
    key("replicas", Kind::Int(0, u32::MAX as i64)),
    key("resources", Kind::Table(&RESOURCES)),
    key("restart_policy", Kind::Table(&RESTART_POLICY)),
    key("rollback_config", Kind::Table(&ROLLBACK)),
    key("update_config", Kind::Table(&UPDATE)),
]));

static PLACEMENT: Table = table(&[
    key("constraints", Kind::List(&CONSTRAINT, Unique::No)),
    key("max_replicas_per_node", Kind::Int(0, u32::MAX as i64)),
    key("preferences", Kind::List(&PREFERENCE, Unique::No)),
]);
static CONSTRAINT: Kind = Kind::Text(Some(scalar::constraint));
static PREFERENCE: Kind = Kind::Table(&table(&[key("spread", TEXT)]));

static RESOURCES: Table =
    table(&[key("limits", Kind::Table(&LIMITS)), key("reservations", Kind::Table(&RESERVATIONS))]);
static LIMITS: Table = table(&[
    key("cpus", Kind::Scalar(Some(scalar::cpus))),
    key("memory", Kind::Text(Some(scalar::bytes))),
    key("pids", Kind::Int(-1, i64::MAX)),
]);
static RESERVATIONS: Table = table(&[
    key("cpus", Kind::Scalar(Some(scalar::cpus))),
    key("devices", Kind::List(&DEVICE_REQUEST_STRICT, Unique::No)),
    key("generic_resources", Kind::List(&GENERIC, Unique::No)),
    key("memory", Kind::Text(Some(scalar::bytes))),
]);
static GENERIC: Kind = Kind::Table(&table(&[key("discrete_resource_spec", Kind::Table(&DISCRETE))]));
static DISCRETE: Table = table(&[key("kind", TEXT).required(), key("value", ANY_INT).required()]);

static DEVICE_REQUEST_STRICT: Kind = Kind::Table(&table(&[
    key("capabilities", TEXTS).required(),
    key("count", Kind::Count),
    key("device_ids", TEXTS),
    key("driver", TEXT),
    key("options", Kind::KeyValues),
]));
/// An entry of `gpus`, where the capability is implied.
pub(super) static DEVICE_REQUEST: Kind = Kind::Table(&table(&[
    key("capabilities", TEXTS),
    key("count", Kind::Count),
    key("device_ids", TEXTS),
    key("driver", TEXT),
    key("options", Kind::KeyValues),
]));

static RESTART_POLICY: Table = table(&[
    key("condition", Kind::Choice(&["none", "on-failure", "any"])),
    key("delay", Kind::Text(Some(scalar::duration))),
    key("max_attempts", Kind::Int(0, u32::MAX as i64)),
    key("window", Kind::Text(Some(scalar::duration))),
]);

static UPDATE: Table = table(&[
    key("delay", Kind::Text(Some(scalar::duration))),
    key("failure_action", Kind::Choice(&["continue", "pause", "rollback"])),
    key("max_failure_ratio", Kind::Scalar(Some(scalar::ratio))),
    key("monitor", Kind::Text(Some(scalar::duration))),
    key("order", Kind::Choice(&["start-first", "stop-first"])),
    key("parallelism", Kind::Int(0, u32::MAX as i64)),
]);
static ROLLBACK: Table = table(&[
    key("delay", Kind::Text(Some(scalar::duration))),
    key("failure_action", Kind::Choice(&["continue", "pause"])),
    key("max_failure_ratio", Kind::Scalar(Some(scalar::ratio))),
    key("monitor", Kind::Text(Some(scalar::duration))),
    key("order", Kind::Choice(&["start-first", "stop-first"])),
    key("parallelism", Kind::Int(0, u32::MAX as i64)),
]);
