//! The OpenAPI 3.1 document of the API, made from the types that requests and answers really are; every node serves it at
//! `GET /v1/openapi.json`.
//!
//! What nodes say to each other (`/v1/peer/…`) is not in it: that is orch's own, and changes with its version.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::access::{RULES, Rule};
use crate::cluster::{
    ClientCertificate, ClientRequest, ClientView, ClusterView, InitRequest, JoinRequest, Joined, LeaveRequest,
    TokenRequest, TokenText, TokenView,
};
use crate::control::{
    ActRequest, AddressRequest, AddressResponse, ApplyRequest, ApplyResponse, DesiredRequest, DownRequest, Event,
    IndexResponse, NetworkConnect, NetworkCreate, NetworkView, NodeView, Reachability, RunRequest, RunResponse,
    ScaleRequest, ServiceView, StackChange, StackSummary, StackView, TaskView, VolumeCreate, VolumeView,
};
use crate::error::ErrorBody;
use crate::image::{ImageOffer, NamedImage, Offered};
use crate::node::{
    AttachRequest, ContainerRequest, ContainerView, Created, DiskUse, ExecRequest, ImageView, Info, LogLine,
    PruneRequest, Pruned, Stats, StopRequest, Top, VolumeView as NodeVolume,
};
use crate::object::{ObjectCreate, ObjectUpdate, ObjectView};
use crate::service::{NodeUpdate, ServiceDetail, ServiceUpdate, TaskExplanation};

/// A part of the stack model: what `orch config --format json` prints is made from it. It follows the Compose specification and has no
/// schema here.
#[derive(JsonSchema)]
#[schemars(transparent)]
pub struct Model(#[allow(dead_code, reason = "stands for a shape only")] Map<String, Value>);

/// Makes the schema of a type, with its parts beside it.
type Shape = fn(&mut SchemaGenerator) -> Schema;

fn shape<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// What a body is.
#[derive(Clone, Copy)]
enum Content {
    /// One JSON value.
    Json(Shape),
    /// A JSON value a line, until there are no more or the caller goes.
    Lines(Shape),
    /// A tar archive.
    Tar,
    /// Bytes, compressed with zstd where `content-encoding` says so.
    Blob,
    /// The connection becomes a stream of frames: `Upgrade: orch-stream`; see [`crate::stream`].
    Frames,
    /// Nothing.
    Nothing,
}

use Content::{Blob, Frames, Json, Lines, Nothing, Tar};

/// What one route does.
struct Operation {
    method: &'static str,
    path: &'static str,
    /// One sentence.
    about: &'static str,
    /// Query parameters with what they are.
    query: &'static [(&'static str, &'static str)],
    takes: Content,
    gives: Content,
}

const fn get(path: &'static str, about: &'static str, gives: Content) -> Operation {
    Operation { method: "GET", path, about, query: &[], takes: Nothing, gives }
}

const fn post(path: &'static str, about: &'static str, takes: Content, gives: Content) -> Operation {
    Operation { method: "POST", path, about, query: &[], takes, gives }
}

const fn delete(path: &'static str, about: &'static str, gives: Content) -> Operation {
    Operation { method: "DELETE", path, about, query: &[], takes: Nothing, gives }
}

const fn with(operation: Operation, query: &'static [(&'static str, &'static str)]) -> Operation {
    Operation { query, ..operation }
}

const IMAGE: (&str, &str) = ("name", "name, id, or the beginning of an id");

/// The cluster itself.
const CLUSTER: &[Operation] = &[
    get("/v1/cluster", "The cluster as this node knows it.", Json(shape::<ClusterView>)),
    post(
        "/v1/cluster/init",
        "Makes this host the first manager of a cluster.",
        Json(shape::<InitRequest>),
        Json(shape::<ClusterView>),
    ),
    post(
        "/v1/cluster/join",
        "Joins the cluster that the token belongs to.",
        Json(shape::<JoinRequest>),
        Json(shape::<Joined>),
    ),
    post("/v1/cluster/leave", "Leaves the cluster.", Json(shape::<LeaveRequest>), Nothing),
    get("/v1/cluster/tokens", "Join tokens, without their secrets.", Json(shape::<Vec<TokenView>>)),
    post("/v1/cluster/tokens", "Makes a join token.", Json(shape::<TokenRequest>), Json(shape::<TokenText>)),
    with(
        delete("/v1/cluster/tokens", "Revokes the join tokens of a role.", Nothing),
        &[("role", "`worker` or `manager`")],
    ),
    get("/v1/cluster/clients", "Client certificates that have been given.", Json(shape::<Vec<ClientView>>)),
    post(
        "/v1/cluster/clients",
        "Gives a client certificate.",
        Json(shape::<ClientRequest>),
        Json(shape::<ClientCertificate>),
    ),
    delete("/v1/cluster/clients/{name}", "Revokes a client's certificates.", Nothing),
];

/// Stacks, and what they are made of.
const STACKS: &[Operation] = &[
    get("/v1/stacks", "All stacks.", Json(shape::<Vec<StackSummary>>)),
    get("/v1/stacks/{name}", "A stack with its services, tasks, networks and volumes.", Json(shape::<StackView>)),
    get("/v1/stacks/{name}/watch", "A stack as it is, then each change of it.", Lines(shape::<StackChange>)),
    get(
        "/v1/stacks/{name}/reachable",
        "Waits, for seconds at most, until every node leads callers to a stack's tasks as they are when this is asked.",
        Json(shape::<Reachability>),
    ),
    post(
        "/v1/stacks/{name}/plan",
        "Says what `apply` would do.",
        Json(shape::<ApplyRequest>),
        Json(shape::<ApplyResponse>),
    ),
    post(
        "/v1/stacks/{name}/apply",
        "Makes the stack what the file says (`orch up`).",
        Json(shape::<ApplyRequest>),
        Json(shape::<ApplyResponse>),
    ),
    post("/v1/stacks/{name}/down", "Removes the stack.", Json(shape::<DownRequest>), Json(shape::<ApplyResponse>)),
    post(
        "/v1/stacks/{name}/act",
        "Starts, stops, restarts, pauses, kills or removes tasks of it.",
        Json(shape::<ActRequest>),
        Json(shape::<ApplyResponse>),
    ),
    post(
        "/v1/stacks/{name}/scale",
        "Sets numbers of replicas.",
        Json(shape::<ScaleRequest>),
        Json(shape::<ApplyResponse>),
    ),
    post(
        "/v1/stacks/{name}/run",
        "Makes a one-off task of a service.",
        Json(shape::<RunRequest>),
        Json(shape::<RunResponse>),
    ),
    with(
        get("/v1/tasks", "Tasks.", Json(shape::<Vec<TaskView>>)),
        &[("stack", "only of this stack"), ("service", "only of this service"), ("node", "only on this node")],
    ),
    get("/v1/tasks/{id}", "One task.", Json(shape::<TaskView>)),
    get("/v1/tasks/{id}/why", "Why a task is where it is, or waits.", Json(shape::<TaskExplanation>)),
    post(
        "/v1/tasks/{id}/desired",
        "Sets what one task shall be.",
        Json(shape::<DesiredRequest>),
        Json(shape::<IndexResponse>),
    ),
    post(
        "/v1/tasks/{id}/networks",
        "Takes a task onto a further network; its container's view lists that once it is there.",
        Json(shape::<NetworkConnect>),
        Json(shape::<AddressResponse>),
    ),
    delete("/v1/tasks/{id}/networks/{name}", "Takes a task off a network.", Json(shape::<IndexResponse>)),
    with(
        get("/v1/events", "What has happened, and with `follow` what happens.", Lines(shape::<Event>)),
        &[("since_index", "from this index on"), ("follow", "`true` or `false`"), ("stack", "only of this stack")],
    ),
    get("/v1/networks", "Networks.", Json(shape::<Vec<NetworkView>>)),
    post("/v1/networks", "Makes a network of no stack.", Json(shape::<NetworkCreate>), Json(shape::<NetworkView>)),
    get("/v1/networks/{name}", "One network.", Json(shape::<NetworkView>)),
    delete("/v1/networks/{name}", "Removes a network of no stack.", Json(shape::<IndexResponse>)),
    post(
        "/v1/networks/{name}/addresses",
        "Reserves an address for a container of no stack.",
        Json(shape::<AddressRequest>),
        Json(shape::<AddressResponse>),
    ),
    with(
        delete("/v1/networks/{name}/addresses", "Gives an address back.", Json(shape::<IndexResponse>)),
        &[("holder", "who has it")],
    ),
    get("/v1/volumes", "Volumes.", Json(shape::<Vec<VolumeView>>)),
    post("/v1/volumes", "Makes a volume of no stack.", Json(shape::<VolumeCreate>), Json(shape::<VolumeView>)),
    get("/v1/volumes/{name}", "One volume.", Json(shape::<VolumeView>)),
    delete("/v1/volumes/{name}", "Removes a volume.", Json(shape::<IndexResponse>)),
];

/// Services and nodes.
const SERVICES: &[Operation] = &[
    with(get("/v1/services", "Services.", Json(shape::<Vec<ServiceView>>)), &[("stack", "only of this stack")]),
    get("/v1/services/{id}", "One service with its tasks.", Json(shape::<ServiceDetail>)),
    delete("/v1/services/{id}", "Removes a service.", Json(shape::<ApplyResponse>)),
    post(
        "/v1/services/{id}/update",
        "Changes a service, and rolls the change out.",
        Json(shape::<ServiceUpdate>),
        Json(shape::<ApplyResponse>),
    ),
    post("/v1/services/{id}/rollback", "Goes back to the specification before.", Nothing, Json(shape::<ApplyResponse>)),
    get("/v1/nodes", "Nodes.", Json(shape::<Vec<NodeView>>)),
    get("/v1/nodes/{id}", "One node.", Json(shape::<NodeView>)),
    post(
        "/v1/nodes/{id}",
        "Changes a node's role, availability or labels.",
        Json(shape::<NodeUpdate>),
        Json(shape::<NodeView>),
    ),
    with(
        delete("/v1/nodes/{id}", "Removes a node from the cluster.", Json(shape::<IndexResponse>)),
        &[("force", "also one that is not down")],
    ),
];

/// The node that is asked, and containers.
const CONTAINERS: &[Operation] = &[
    get("/v1/openapi.json", "This document.", Json(shape::<Map<String, Value>>)),
    get("/v1/info", "The node.", Json(shape::<Info>)),
    get("/v1/df", "What lies on its disk.", Json(shape::<DiskUse>)),
    post("/v1/prune", "Removes what nothing uses.", Json(shape::<PruneRequest>), Json(shape::<Pruned>)),
    with(
        get("/v1/containers", "Containers.", Json(shape::<Vec<ContainerView>>)),
        &[("all", "also those that do not run")],
    ),
    post("/v1/containers", "Makes a container of no stack.", Json(shape::<ContainerRequest>), Json(shape::<Created>)),
    post("/v1/containers/run", "Makes one, attaches to it and starts it.", Json(shape::<ContainerRequest>), Frames),
    get("/v1/containers/{id}", "One container.", Json(shape::<ContainerView>)),
    with(
        delete("/v1/containers/{id}", "Removes a container.", Nothing),
        &[("force", "kill it first"), ("volumes", "its anonymous volumes too")],
    ),
    get(
        "/v1/containers/{id}/inspect",
        "Everything about one, in the words of `docker inspect`.",
        Json(shape::<Map<String, Value>>),
    ),
    post(
        "/v1/containers/{id}/networks",
        "Takes a container of no stack onto a further network; its view lists that once it is there.",
        Json(shape::<NetworkConnect>),
        Nothing,
    ),
    delete("/v1/containers/{id}/networks/{name}", "Takes a container of no stack off a network.", Nothing),
    post("/v1/containers/{id}/start", "Starts it.", Nothing, Nothing),
    post(
        "/v1/containers/{id}/stop",
        "Asks it to stop, and kills it when its time is over.",
        Json(shape::<StopRequest>),
        Nothing,
    ),
    post("/v1/containers/{id}/restart", "Stops and starts it.", Json(shape::<StopRequest>), Nothing),
    post("/v1/containers/{id}/kill", "Sends it a signal.", Json(shape::<StopRequest>), Nothing),
    post("/v1/containers/{id}/pause", "Freezes it.", Nothing, Nothing),
    post("/v1/containers/{id}/unpause", "Thaws it.", Nothing, Nothing),
    post(
        "/v1/containers/{id}/wait",
        "Waits until it has exited; answers with its exit code.",
        Nothing,
        Json(shape::<i32>),
    ),
    post("/v1/containers/{id}/attach", "Its streams.", Json(shape::<AttachRequest>), Frames),
    post("/v1/containers/{id}/exec", "Runs a command inside.", Json(shape::<ExecRequest>), Frames),
    with(
        get("/v1/containers/{id}/logs", "Its log.", Lines(shape::<LogLine>)),
        &[
            ("follow", "`true`: also what comes"),
            ("tail", "only so many of the last lines"),
            ("since", "nothing older (RFC 3339)"),
            ("until", "nothing newer (RFC 3339)"),
            ("until_end", "when following ends: `exit`, `end` (no policy starts it again), `removal`"),
        ],
    ),
    get("/v1/containers/{id}/stats", "What it uses.", Json(shape::<Stats>)),
    get("/v1/containers/{id}/top", "Its processes.", Json(shape::<Top>)),
    with(
        get("/v1/containers/{id}/archive", "Files of it.", Tar),
        &[("path", "which"), ("follow", "follow a symbolic link at the end")],
    ),
    with(
        Operation { method: "PUT", ..post("/v1/containers/{id}/archive", "Unpacks files into it.", Tar, Nothing) },
        &[("path", "folder to unpack into"), ("owners", "keep owners")],
    ),
    with(
        get("/v1/containers/{id}/archive/directory", "Whether a path of it is a folder.", Json(shape::<bool>)),
        &[("path", "which"), ("follow", "follow a symbolic link at the end")],
    ),
];

/// Secrets and configs that people make.
const OBJECTS: &[Operation] = &[
    get("/v1/secrets", "Secrets, without what is in them.", Json(shape::<Vec<ObjectView>>)),
    post("/v1/secrets", "Makes a secret.", Json(shape::<ObjectCreate>), Json(shape::<ObjectView>)),
    get("/v1/secrets/{name}", "One secret, without what is in it.", Json(shape::<ObjectView>)),
    post(
        "/v1/secrets/{name}",
        "Gives a secret other content; services that use it follow.",
        Json(shape::<ObjectUpdate>),
        Json(shape::<ObjectView>),
    ),
    delete("/v1/secrets/{name}", "Removes a secret that no service uses.", Nothing),
    get("/v1/configs", "Configs.", Json(shape::<Vec<ObjectView>>)),
    post("/v1/configs", "Makes a config.", Json(shape::<ObjectCreate>), Json(shape::<ObjectView>)),
    get("/v1/configs/{name}", "One config with its content.", Json(shape::<ObjectView>)),
    post(
        "/v1/configs/{name}",
        "Gives a config other content; services that use it follow.",
        Json(shape::<ObjectUpdate>),
        Json(shape::<ObjectView>),
    ),
    delete("/v1/configs/{name}", "Removes a config that no service uses.", Nothing),
];

/// Images and volumes of the node that is asked.
const STORE: &[Operation] = &[
    get("/v1/images", "Images.", Json(shape::<Vec<ImageView>>)),
    with(get("/v1/image", "One image, in the words of `docker inspect`.", Json(shape::<Map<String, Value>>)), &[IMAGE]),
    with(
        delete(
            "/v1/image",
            "Removes an image, or a name of it; answers with what is gone.",
            Json(shape::<Vec<String>>),
        ),
        &[IMAGE, ("force", "also when it has other names")],
    ),
    with(
        post("/v1/image/tag", "Gives an image a further name.", Nothing, Nothing),
        &[IMAGE, ("target", "the new name")],
    ),
    with(get("/v1/image/history", "How it was made, newest first.", Json(shape::<Vec<Map<String, Value>>>)), &[IMAGE]),
    with(
        post("/v1/images/import", "Makes an image of a root file system.", Tar, Json(shape::<ImageView>)),
        &[("reference", "its name"), ("message", "a comment"), ("change", "a Dockerfile instruction; repeatable")],
    ),
    post("/v1/images/load", "Takes images of a `docker save` or an OCI layout.", Tar, Json(shape::<Vec<ImageView>>)),
    with(
        get(
            "/v1/images/resolve",
            "Which images names mean on this node.",
            Json(shape::<BTreeMap<String, Option<NamedImage>>>),
        ),
        &[("name", "name or id; repeatable")],
    ),
    with(get("/v1/images/offer", "What an image consists of.", Json(shape::<ImageOffer>)), &[IMAGE]),
    post(
        "/v1/images/offer",
        "Says which blobs of an image are missing; when none is, the image is there now.",
        Json(shape::<ImageOffer>),
        Json(shape::<Offered>),
    ),
    with(
        get("/v1/images/blobs/{digest}", "A blob of an image.", Blob),
        &[("image", "the image's id"), ("offset", "the first byte")],
    ),
    Operation {
        method: "PUT",
        ..post("/v1/images/blobs/{digest}", "Takes a blob of an image that was offered.", Blob, Nothing)
    },
    with(get("/v1/images/save", "Images as `docker load` takes them.", Tar), &[("name", "name or id; repeatable")]),
    get("/v1/node/volumes", "Volumes that lie on this node.", Json(shape::<Vec<NodeVolume>>)),
    post("/v1/node/volumes", "Makes one.", Json(shape::<NodeVolume>), Json(shape::<NodeVolume>)),
    get("/v1/node/volumes/{name}", "One of them.", Json(shape::<NodeVolume>)),
    delete("/v1/node/volumes/{name}", "Removes one with its content.", Nothing),
];

fn operations() -> impl Iterator<Item = &'static Operation> {
    [CLUSTER, STACKS, SERVICES, OBJECTS, CONTAINERS, STORE].into_iter().flatten()
}

/// The document.
pub fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in operations() {
        let Some(rule) = RULES.iter().find(|rule| is_of(operation, rule)) else { continue };
        let described = describe(operation, rule, &mut generator);
        paths.entry(operation.path).or_default().insert(operation.method.to_lowercase(), described);
    }
    let error = generator.subschema_for::<ErrorBody>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "orch",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Served at the unix socket of a node, and at its address by mutual TLS. Header 32 KiB, JSON 8 MiB, 30 s \
                to send the header. Times are milliseconds since the epoch unless they are text (RFC 3339).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {"Error": {
                "description": "What is wrong, and what to do about it.",
                "content": {"application/json": {"schema": error}},
            }},
        },
    })
}

fn is_of(operation: &Operation, rule: &Rule) -> bool {
    rule.method == operation.method && rule.path == operation.path
}

fn describe(operation: &Operation, rule: &Rule, generator: &mut SchemaGenerator) -> Value {
    let in_path = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path =
        in_path.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}));
    let in_query = operation
        .query
        .iter()
        .map(|(name, about)| json!({"name": name, "in": "query", "description": about, "schema": {"type": "string"}}));
    let mut described = json!({
        "summary": operation.about,
        "description": format!("From another host it needs {}.", rule.access.needs()),
        "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
        "responses": {"default": {"$ref": "#/components/responses/Error"}},
    });
    if let Some(content) = content(operation.takes, generator) {
        described["requestBody"] = json!({"required": true, "content": content});
    }
    let (status, about) = match operation.gives {
        Frames => (
            "101",
            "The connection is a stream of frames from here on: kind (1 byte), length (4 bytes, big endian), content.",
        ),
        _ => ("200", "Done."),
    };
    described["responses"][status] = json!({"description": about});
    if let Some(content) = content(operation.gives, generator) {
        described["responses"][status]["content"] = content;
    }
    described
}

fn content(content: Content, generator: &mut SchemaGenerator) -> Option<Value> {
    match content {
        Json(shape) => Some(json!({"application/json": {"schema": shape(generator)}})),
        Lines(shape) => Some(json!({"application/x-ndjson": {"schema": shape(generator)}})),
        Tar => Some(json!({"application/x-tar": {"schema": {"type": "string", "format": "binary"}}})),
        Blob => Some(json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}})),
        Frames | Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path of everything that nodes say to each other.
    const BETWEEN_NODES: &str = "/v1/peer/";

    #[test]
    fn every_route_that_is_not_between_nodes_is_described_once_and_no_other() {
        let public = |rule: &&Rule| !rule.path.starts_with(BETWEEN_NODES);
        for rule in RULES.iter().filter(public) {
            let found = operations().filter(|operation| is_of(operation, rule)).count();
            assert_eq!(found, 1, "{} {} is described {found} times", rule.method, rule.path);
        }
        for operation in operations() {
            assert!(
                RULES.iter().filter(public).any(|rule| is_of(operation, rule)),
                "{} {} is no route",
                operation.method,
                operation.path
            );
        }
    }

    /// Every `$ref` of a value.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|part| references(part, found));
            }
            Value::Array(list) => list.iter().for_each(|part| references(part, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_a_part_of_the_document() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100, "only {} references", found.len());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads elsewhere"));
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    #[test]
    fn a_type_is_described_in_the_words_of_its_documentation() {
        let document = document();
        let option = &document["components"]["schemas"]["ApplyOptions"]["properties"]["remove_orphans"];
        assert!(option["description"].as_str().is_some_and(|text| !text.is_empty()), "{option}");
    }
}
