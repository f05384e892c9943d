//! Every route says who may call it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orch_api::access;
use orch_scheduler::identity::Identity;
use orch_scheduler::peer::entry::Host;
use orch_scheduler::peer::forward::Leader;
use orch_scheduler::peer::heartbeat::Pulse;
use orch_scheduler::peer::link::Knowledge;
use orch_scheduler::peer::{Peers, images};
use orch_scheduler::server::cluster::{Manager, Worker, leader_routes, own_routes, worker_routes};
use orch_scheduler::{Control, server};

use crate::api::Images;
use crate::simulated_disk::SimulatedDisk;

const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

/// `METHOD path` of each route of a router, by its own account of itself (the only one that axum gives):
/// `routes: {RouteId(1): MethodRouter(MethodRouter { get: BoxedHandler, post: None, … }), …}, node: Node { paths: {RouteId(1): "/v1/…", …} }`.
fn routes(router: &axum::Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let text = text.split("fallback_router").next().unwrap_or_default();
    let (mut paths, mut methods) = (BTreeMap::new(), Vec::new());
    for part in text.split("RouteId(").skip(1) {
        let Some((id, what)) = part.split_once("): ") else { continue };
        if let Some(path) = what.strip_prefix('"') {
            paths.insert(id, path.split('"').next().unwrap_or_default());
        } else {
            let has = |method: &&str| {
                [" Route", " BoxedHandler"].iter().any(|kind| what.contains(&format!("{method}:{kind}")))
            };
            methods.extend(METHODS.iter().filter(|method| has(method)).map(|method| (id, method.to_uppercase())));
        }
    }
    methods.into_iter().map(|(id, method)| format!("{method} {}", paths[id])).collect()
}

fn rules() -> BTreeSet<String> {
    access::RULES.iter().map(|rule| format!("{} {}", rule.method, rule.path)).collect()
}

fn undeclared(routes: &BTreeSet<String>) -> Vec<String> {
    routes.difference(&rules()).cloned().collect()
}

#[tokio::test]
async fn every_route_of_a_manager_and_of_a_worker_says_who_may_call_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let control = Control::start_on(Box::new(SimulatedDisk::default())).await.expect("it starts");
    let peers = Peers::open("node".into(), Identity::at(dir.path().join("identity"))).expect("nothing is there yet");
    let host = Host {
        peers: peers.clone(),
        data_dir: dir.path().to_owned(),
        version: "0.1.0".to_owned(),
        listeners: tokio::sync::mpsc::channel(1).0,
        restart: Arc::default(),
    };
    let leader = Leader { control: control.clone(), peers };
    let manager = Manager { leader: leader.clone(), host: host.clone(), pulse: Pulse::default() };
    let router = server::routes(control, Arc::new(Images))
        .merge(own_routes(manager.clone()))
        .merge(images::routes(leader))
        .merge(leader_routes(manager));
    let found = routes(&router);
    assert!(found.contains("POST /v1/stacks/{name}/apply") && found.len() > 40, "the walk lost its way: {found:?}");
    assert_eq!(undeclared(&found), Vec::<String>::new(), "routes without a rule in orch_api::access");

    let worker = worker_routes(Worker { host, knowledge: Knowledge::default() });
    assert!(routes(&worker).contains("GET /v1/cluster"));
    assert_eq!(undeclared(&routes(&worker)), Vec::<String>::new());
}

#[test]
fn a_route_without_a_rule_is_found() {
    let router = axum::Router::new()
        .route("/v1/cluster", axum::routing::get(|| async {}))
        .route("/v1/forgotten", axum::routing::put(|| async {}).delete(|| async {}));
    assert_eq!(undeclared(&routes(&router)), ["DELETE /v1/forgotten", "PUT /v1/forgotten"]);
}

#[test]
fn every_route_of_a_node_says_who_may_call_it() {
    // The agent's router needs a whole host to be made; its source says the same.
    let source = include_str!("../../../engine/agent/src/routes.rs");
    let mut found = BTreeSet::new();
    for part in source.split(".route(").skip(1) {
        let mut words = part.split('"');
        let path = words.nth(1).expect("a path in quotes");
        let rest = words.next().expect("handlers");
        let handlers = rest.split(".route(").next().unwrap_or_default();
        let handlers = handlers.split(".layer").next().unwrap_or_default();
        for method in METHODS {
            if handlers.contains(&format!(" {method}(")) || handlers.contains(&format!(".{method}(")) {
                found.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    assert!(found.contains("PUT /v1/containers/{id}/archive") && found.len() > 30, "the walk lost its way: {found:?}");
    assert_eq!(undeclared(&found), Vec::<String>::new(), "routes without a rule in orch_api::access");
}
