//! The API, by its requests and answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use orch_api::control::{
    ApplyOptions, ApplyRequest, ApplyResponse, ImageResolver, NodeLink, RunRequest, RunResponse, StackChange,
    StackView, TaskView,
};
use orch_api::error::ErrorBody;
use orch_scheduler::{Control, server};
use orch_spec::assignment::{DesiredTask, NodeFacts, NodeReport, TaskState, TaskStatus};
use orch_spec::model::{Dependency, NetworkAttachment, NetworkSpec, ServiceSpec, StackSpec};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt;

use crate::simulated_disk::SimulatedDisk;

/// Knows every image whose name does not begin with `missing`.
pub(crate) struct Images;

impl ImageResolver for Images {
    fn resolve<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, BTreeMap<String, Option<String>>> {
        let one = |name: &String| (name.clone(), (!name.starts_with("missing")).then(|| format!("sha256:{name}")));
        Box::pin(std::future::ready(references.iter().map(one).collect()))
    }
}

struct Plane {
    control: Control,
    router: Router,
}

impl Plane {
    async fn start() -> Self {
        let control = Control::start_on(Box::new(SimulatedDisk::default())).await.expect("it starts");
        let router = server::routes(control.clone(), Arc::new(Images));
        Self { control, router }
    }

    /// A node that does at once what it is told, until the test ends.
    async fn with_node() -> Self {
        let plane = Self::start().await;
        let mut link = plane.control.connect_node("node".into());
        let facts = NodeFacts { id: "node".into(), hostname: "host".to_owned(), ..NodeFacts::default() };
        link.reports.send(NodeReport::Facts(facts)).await.expect("it listens");
        tokio::spawn(async move { obey(&mut link).await });
        plane
    }

    async fn send(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> (StatusCode, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(body.map_or_else(Body::empty, Body::from)).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("a router always answers");
        let status = response.status();
        (status, response.into_body().collect().await.expect("a whole answer").to_bytes().to_vec())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.send("GET", path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).expect("an answer of its type")
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        let (status, body) = self.send("POST", path, Some(serde_json::to_vec(body).expect("it can be encoded"))).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).expect("an answer of its type")
    }

    async fn refused(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> (StatusCode, ErrorBody) {
        let (status, body) = self.send(method, path, body).await;
        (
            status,
            serde_json::from_slice(&body).unwrap_or_else(|_| panic!("no error: {}", String::from_utf8_lossy(&body))),
        )
    }

    /// Lines of a stream until one is the last.
    async fn watch(&self, path: &str, is_last: impl Fn(&StackChange) -> bool) -> Vec<StackChange> {
        let request = Request::builder().uri(path).body(Body::empty()).expect("a request");
        let mut body = self.router.clone().oneshot(request).await.expect("a router always answers").into_body();
        let (mut lines, mut rest) = (Vec::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            rest.extend_from_slice(frame.expect("an unbroken stream").data_ref().expect("data"));
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let change: StackChange = serde_json::from_slice(&line).expect("a change a line");
                let last = is_last(&change);
                lines.push(change);
                if last {
                    return lines;
                }
            }
        }
        lines
    }
}

async fn obey(link: &mut NodeLink) {
    loop {
        let assignment = link.assignments.borrow_and_update().clone();
        let done = |task: &orch_spec::assignment::TaskAssignment| TaskStatus {
            task: task.id.clone(),
            state: match task.desired {
                DesiredTask::Created => TaskState::Created,
                DesiredTask::Running => TaskState::Running,
                DesiredTask::Paused => TaskState::Paused,
                DesiredTask::Stopped => TaskState::Exited,
                DesiredTask::Removed => TaskState::Removed,
            },
            started_at: Some(1),
            exit_code: (task.desired == DesiredTask::Stopped).then_some(0),
            restart_generation: task.restart_generation,
            ..TaskStatus::default()
        };
        let statuses = assignment.tasks.iter().map(done).collect();
        let removed = assignment.removed_volumes.iter().map(|name| (name.clone(), None)).collect();
        for report in [
            NodeReport::Tasks(statuses),
            NodeReport::NetworksRemoved(assignment.removed_networks.clone()),
            NodeReport::VolumesRemoved(removed),
        ] {
            if link.reports.send(report).await.is_err() {
                return;
            }
        }
        if link.assignments.changed().await.is_err() {
            return;
        }
    }
}

fn spec(images: [&str; 2]) -> Arc<StackSpec> {
    let service = |image: &str| ServiceSpec {
        image: image.to_owned(),
        networks: [("default".to_owned(), NetworkAttachment::default())].into(),
        ..ServiceSpec::default()
    };
    let mut web = service(images[0]);
    web.depends_on.insert("db".to_owned(), Dependency::default());
    Arc::new(StackSpec {
        name: "shop".to_owned(),
        services: [("web".to_owned(), web), ("db".to_owned(), service(images[1]))].into(),
        networks: [("default".to_owned(), NetworkSpec { name: "shop_default".to_owned(), ..NetworkSpec::default() })]
            .into(),
        ..StackSpec::default()
    })
}

fn request(images: [&str; 2]) -> ApplyRequest {
    ApplyRequest { spec: spec(images), files: vec!["/shop.yaml".to_owned()], options: ApplyOptions::default() }
}

fn test(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(std::time::Duration::from_secs(60), work).await.expect("it comes to an end")
    });
}

#[test]
fn a_stack_goes_up_is_seen_and_goes_down() {
    test(async {
        let plane = Plane::with_node().await;
        let planned: ApplyResponse = plane.post("/v1/stacks/shop/plan", &request(["web", "db"])).await;
        let lines: Vec<String> = planned.plan.operations.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["create network shop_default", "create container shop-db-1", "create container shop-web-1"]);
        let applied: ApplyResponse = plane.post("/v1/stacks/shop/apply", &request(["web", "db"])).await;
        assert_eq!(applied.plan.changes, 3);
        plane
            .watch("/v1/stacks/shop/watch", |change| {
                let runs = |task: &TaskView| task.service == "web" && task.status.state == TaskState::Running;
                match change {
                    StackChange::Stack { stack } => stack.tasks.iter().any(runs),
                    StackChange::Task { task, .. } => runs(task),
                    _ => false,
                }
            })
            .await;
        let view: StackView = plane.get("/v1/stacks/shop").await;
        assert_eq!(view.status, "running(2)");
        assert_eq!(view.files, ["/shop.yaml"]);
        assert!(view.tasks.iter().all(|task| task.up_to_date && task.networks["default"].ipv4.is_some()));
        let again: ApplyResponse = plane.post("/v1/stacks/shop/plan", &request(["web", "db"])).await;
        assert_eq!(again.plan.changes, 0);
        let nodes: Vec<orch_api::control::NodeView> = plane.get("/v1/nodes").await;
        assert_eq!((nodes[0].hostname.as_str(), nodes[0].tasks), ("host", 2));

        let watching = plane.watch("/v1/stacks/shop/watch", |change| matches!(change, StackChange::Removed { .. }));
        let down = async { plane.post::<ApplyResponse>("/v1/stacks/shop/down", &serde_json::json!({})).await };
        let (changes, _) = tokio::join!(watching, down);
        let gone: Vec<&str> = changes
            .iter()
            .filter_map(|change| match change {
                StackChange::TaskRemoved { container_name, .. } => Some(container_name.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(gone, ["shop-web-1", "shop-db-1"], "a dependent goes before what it depends on");
        assert!(matches!(changes.last(), Some(StackChange::Removed { .. })));
        let (status, error) = plane.refused("GET", "/v1/stacks/shop", None).await;
        assert_eq!((status, error.error.code.as_str()), (StatusCode::NOT_FOUND, "not_found"));
    });
}

#[test]
fn all_missing_images_are_named_and_nothing_is_changed() {
    test(async {
        let plane = Plane::with_node().await;
        let body = serde_json::to_vec(&request(["missing-a", "missing-b"])).expect("it can be encoded");
        let (status, error) = plane.refused("POST", "/v1/stacks/shop/apply", Some(body)).await;
        assert_eq!((status, error.error.code.as_str()), (StatusCode::NOT_FOUND, "image_missing"));
        assert!(error.error.details.iter().any(|line| line.contains("missing-a")));
        assert!(error.error.details.iter().any(|line| line.contains("missing-b")));
        assert!(error.error.hint.contains("orch image load"));
        assert!(plane.control.read(|state| state.stacks.is_empty() && state.networks.is_empty()));
    });
}

#[test]
fn what_is_not_understood_is_an_error_like_any_other() {
    test(async {
        let plane = Plane::with_node().await;
        for body in ["", "{", "[]", r#"{"spec": 1}"#] {
            let (status, error) = plane.refused("POST", "/v1/stacks/shop/apply", Some(body.as_bytes().to_vec())).await;
            assert_eq!((status, error.error.code.as_str()), (StatusCode::BAD_REQUEST, "invalid"), "{body}");
        }
        let (status, error) = plane.refused("POST", "/v1/stacks/shop/apply", Some(vec![b' '; 9 << 20])).await;
        assert_eq!((status, error.error.code.as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "too_large"));
        let body = serde_json::to_vec(&request(["web", "db"])).expect("it can be encoded");
        let (status, error) = plane.refused("POST", "/v1/stacks/other/apply", Some(body)).await;
        assert_eq!((status, error.error.code.as_str()), (StatusCode::BAD_REQUEST, "invalid"));
        let (status, _) = plane.refused("GET", "/v1/events?since_index=yesterday", None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    });
}

#[test]
fn a_one_off_brings_up_what_it_depends_on_and_starts_when_it_is_told() {
    test(async {
        let plane = Plane::with_node().await;
        let stack = spec(["web", "db"]);
        let run = RunRequest {
            spec: Arc::new(stack.services["web"].clone()),
            stack: Some(stack),
            files: Vec::new(),
            service: "web".to_owned(),
            container_name: None,
            start: false,
            no_deps: false,
            use_aliases: false,
            remove_orphans: false,
        };
        let made: RunResponse = plane.post("/v1/stacks/shop/run", &run).await;
        assert!(made.container_name.starts_with("shop-web-run-"));
        let view: TaskView = plane.get(&format!("/v1/tasks/{}", made.task)).await;
        assert!(view.one_off && view.desired == DesiredTask::Created);
        let path = format!("/v1/tasks/{}/desired", made.task);
        let _: orch_api::control::IndexResponse = plane.post(&path, &serde_json::json!({"desired": "running"})).await;
        let task = made.task.as_str().into();
        let runs = |state: &orch_core::State| {
            state.tasks.get(&task).is_some_and(|task| task.status.state == TaskState::Running)
        };
        assert!(plane.control.wait_until(std::time::Duration::from_secs(30), runs).await);
        let names: Vec<TaskView> = plane.get("/v1/tasks?stack=shop").await;
        assert_eq!(names.len(), 2, "db was brought up, web itself was not");
    });
}

#[test]
fn networks_volumes_and_addresses_are_made_and_removed_by_hand() {
    test(async {
        let plane = Plane::with_node().await;
        let made: orch_api::control::NetworkView =
            plane.post("/v1/networks", &serde_json::json!({"name": "mine", "subnet4": "10.77.0.0/24"})).await;
        assert_eq!(
            (made.subnet4.as_deref(), made.gateway4.map(|a| a.to_string())),
            (Some("10.77.0.0/24"), Some("10.77.0.1".to_owned()))
        );
        let body = serde_json::to_vec(&serde_json::json!({"name": "mine"})).expect("JSON");
        let (status, _) = plane.refused("POST", "/v1/networks", Some(body)).await;
        assert_eq!(status, StatusCode::CONFLICT);
        let body = serde_json::json!({"holder": "c1", "name": "one"});
        let held: orch_api::control::AddressResponse = plane.post("/v1/networks/mine/addresses", &body).await;
        assert_eq!(held.ipv4.map(|a| a.to_string()).as_deref(), Some("10.77.0.2"));
        let (status, error) = plane.refused("DELETE", "/v1/networks/mine", None).await;
        assert_eq!((status, error.error.code.as_str()), (StatusCode::CONFLICT, "in_use"));
        let (status, _) = plane.send("DELETE", "/v1/networks/mine/addresses?holder=c1", None).await;
        assert_eq!(status, StatusCode::OK);
        let (status, _) = plane.send("DELETE", "/v1/networks/mine", None).await;
        assert_eq!(status, StatusCode::OK);
        // Gone when the answer comes: its name is free at once.
        let _: orch_api::control::NetworkView = plane.post("/v1/networks", &serde_json::json!({"name": "mine"})).await;
        // The default network comes with the first who asks.
        let body = serde_json::json!({"holder": "c2", "name": "two"});
        let _: orch_api::control::AddressResponse = plane.post("/v1/networks/bridge/addresses", &body).await;
        let _: orch_api::control::VolumeView = plane.post("/v1/volumes", &serde_json::json!({"name": "data"})).await;
        let (status, _) = plane.send("DELETE", "/v1/volumes/data", None).await;
        assert_eq!(status, StatusCode::OK);
        let (status, _) = plane.refused("GET", "/v1/volumes/data", None).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn events_are_told_from_an_index_on() {
    test(async {
        let plane = Plane::with_node().await;
        let applied: ApplyResponse = plane.post("/v1/stacks/shop/apply", &request(["web", "db"])).await;
        let (_, body) = plane.send("GET", "/v1/events?since_index=0&stack=shop", None).await;
        let actions: Vec<(String, String)> = String::from_utf8(body)
            .expect("text")
            .lines()
            .map(|line| serde_json::from_str::<orch_api::control::Event>(line).expect("an event a line"))
            .map(|event| (event.kind, event.action))
            .collect();
        assert_eq!(actions[..2], [("network".into(), "create".into()), ("stack".into(), "apply".into())]);
        let (_, body) = plane.send("GET", &format!("/v1/events?since_index={}&stack=other", applied.index), None).await;
        assert!(body.is_empty());
    });
}
