//! The top level: the stack and its networks, volumes, secrets, configs and models.

use super::service::SERVICE;
use super::{ALL_TEXTS, ANY_INT, Kind, Merge, ONE_OR_TEXTS, Short, TEXT, Table, Unique, closed_table, key, table};
use crate::scalar;

/// A whole stack file.
pub(crate) static STACK: Kind = Kind::Table(&table(&[
    key("configs", Kind::Named(&CONFIG)),
    key("include", Kind::Any),
    key("models", Kind::Named(&MODEL)).unsupported("orch runs no model runner"),
    key("name", TEXT),
    key("networks", Kind::Named(&NETWORK)),
    key("secrets", Kind::Named(&SECRET)),
    key("services", Kind::Named(&SERVICE_KIND)),
    key("version", TEXT).obsolete("the specification has no versions any more; remove the line"),
    key("volumes", Kind::Named(&VOLUME)),
]));

/// The list under `include`.
pub(crate) static INCLUDE: Kind = Kind::List(&INCLUDE_ITEM, Unique::No);
static INCLUDE_ITEM: Kind = Kind::Short(Short::Include, &INCLUDE_LONG);
static INCLUDE_LONG: Kind = Kind::Table(&closed_table(&[
    key("env_file", ONE_OR_TEXTS),
    key("path", ONE_OR_TEXTS).required(),
    key("project_directory", TEXT),
]));

static SERVICE_KIND: Kind = Kind::Table(&SERVICE);

static NETWORK: Kind = Kind::Nullable(&NETWORK_EXTERNAL);
static NETWORK_EXTERNAL: Kind = Kind::Short(Short::External, &NETWORK_TABLE);
static NETWORK_TABLE: Kind = Kind::Table(&table(&[
    key("attachable", Kind::Bool),
    key("driver", TEXT),
    key("driver_opts", Kind::Scalars),
    key("enable_ipv4", Kind::Bool),
    key("enable_ipv6", Kind::Bool),
    key("external", Kind::Bool),
    key("internal", Kind::Bool),
    key("ipam", Kind::Table(&IPAM)),
    key("labels", Kind::KeyValues),
    key("name", TEXT),
]));
static IPAM: Table = table(&[
    key("config", Kind::List(&POOL, Unique::No)).merged(Merge::Pools),
    key("driver", TEXT),
    key("options", Kind::Scalars),
]);
static POOL: Kind = Kind::Table(&table(&[
    key("aux_addresses", Kind::Named(&ADDRESS)),
    key("gateway", Kind::Text(Some(scalar::ip))),
    key("ip_range", Kind::Text(Some(scalar::cidr))),
    key("subnet", Kind::Text(Some(scalar::cidr))),
]));
static ADDRESS: Kind = Kind::Text(Some(scalar::ip));

static VOLUME: Kind = Kind::Nullable(&VOLUME_EXTERNAL);
static VOLUME_EXTERNAL: Kind = Kind::Short(Short::External, &VOLUME_TABLE);
static VOLUME_TABLE: Kind = Kind::Table(&table(&[
    key("driver", TEXT),
    key("driver_opts", Kind::Scalars),
    key("external", Kind::Bool),
    key("labels", Kind::KeyValues),
    key("name", TEXT),
]));

static SECRET: Kind = Kind::Short(Short::External, &SECRET_TABLE);
static SECRET_TABLE: Kind = Kind::Table(&table(&[
    key("driver", TEXT),
    key("driver_opts", Kind::Scalars),
    key("environment", TEXT),
    key("external", Kind::Bool),
    key("file", TEXT),
    key("labels", Kind::KeyValues),
    key("name", TEXT),
    key("template_driver", TEXT).unsupported("orch renders no templates"),
]));

static CONFIG: Kind = Kind::Short(Short::External, &CONFIG_TABLE);
static CONFIG_TABLE: Kind = Kind::Table(&table(&[
    key("content", TEXT),
    key("environment", TEXT),
    key("external", Kind::Bool),
    key("file", TEXT),
    key("labels", Kind::KeyValues),
    key("name", TEXT),
    key("template_driver", TEXT).unsupported("orch renders no templates"),
]));

static MODEL: Kind = Kind::Table(&table(&[
    key("context_size", ANY_INT),
    key("model", TEXT).required(),
    key("name", TEXT),
    key("runtime_flags", ALL_TEXTS),
]));
