//! The keys of `build`, and kinds that it shares with the service.

use super::service::GRANT_KIND;
use super::{ALL_TEXTS, ANY_INT, KEYED_TEXTS, Kind, ONE_OR_TEXTS, Short, TEXT, TEXT_ITEM, Table, Unique, key, table};
use crate::scalar;

/// How an image is built.
pub(super) static BUILD: Table = table(&[
    key("additional_contexts", Kind::KeyValues),
    key("args", Kind::KeyValues),
    key("cache_from", ALL_TEXTS),
    key("cache_to", ALL_TEXTS),
    key("context", TEXT),
    key("dockerfile", TEXT),
    key("dockerfile_inline", TEXT),
    key("entitlements", ALL_TEXTS),
    key("extra_hosts", Kind::Short(Short::ExtraHosts, &HOSTS)),
    key("isolation", TEXT),
    key("labels", Kind::KeyValues),
    key("network", TEXT),
    key("no_cache", Kind::Bool),
    key("no_cache_filter", ONE_OR_TEXTS),
    key("platforms", ALL_TEXTS),
    key("privileged", Kind::Bool),
    key("provenance", Kind::BoolOrText),
    key("pull", Kind::Bool),
    key("sbom", Kind::BoolOrText),
    key("secrets", Kind::List(&GRANT_KIND, Unique::No)),
    key("shm_size", Kind::Scalar(Some(scalar::bytes))),
    key("ssh", Kind::Short(Short::Ssh, &SSH)),
    key("tags", KEYED_TEXTS),
    key("target", TEXT),
    key("ulimits", Kind::Named(&ULIMITS)),
]);

static SSH: Kind = Kind::KeyValues;

/// Host names with one or more addresses.
pub(super) static HOSTS: Kind = Kind::Named(&HOST_ADDRESSES);
static HOST_ADDRESSES: Kind = Kind::List(&TEXT_ITEM, Unique::Whole);

/// One process limit.
pub(super) static ULIMITS: Kind = Kind::Short(Short::Ulimit, &ULIMIT);
static ULIMIT: Kind = Kind::Table(&table(&[key("hard", ANY_INT).required(), key("soft", ANY_INT).required()]));
