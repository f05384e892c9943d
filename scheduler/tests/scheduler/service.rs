//! Nodes, services and tasks of a cluster by requests and answers, with nodes that do at once what they are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use orch_api::control::{
    ApplyRequest, ApplyResponse, ImageResolver, IndexResponse, NodeLink, NodeView, ServiceView, TaskView,
};
use orch_api::error::ErrorBody;
use orch_api::service::{NodeUpdate, ServiceDetail, ServiceUpdate, TaskExplanation};
use orch_core::{ClusterSettings, Command, NodeState};
use orch_scheduler::steward::{self, Sight};
use orch_scheduler::{Control, server};
use orch_spec::assignment::{DesiredTask, NodeFacts, NodeReport, TaskAssignment, TaskState, TaskStatus};
use orch_spec::model::{
    Constraint, DeploySpec, Duration as SpecDuration, NetworkMode, PlacementSpec, ServiceSpec, StackSpec, UpdateConfig,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt;

use crate::simulated_disk::SimulatedDisk;

struct Images;

impl ImageResolver for Images {
    fn resolve<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, BTreeMap<String, Option<String>>> {
        let one = |name: &String| (name.clone(), Some(format!("sha256:{name}")));
        Box::pin(std::future::ready(references.iter().map(one).collect()))
    }
}

struct Cluster {
    control: Control,
    router: Router,
}

impl Cluster {
    /// A cluster of three nodes, and somebody who looks at its timers.
    async fn start() -> Self {
        let control = Control::start_on(Box::new(SimulatedDisk::default())).await.expect("it starts");
        let router = server::routes(control.clone(), Arc::new(Images));
        control.propose(Command::FormCluster(ClusterSettings::default())).await.expect("it is formed");
        for number in 1..=3_u8 {
            let id = format!("node-{number}");
            let mut link = control.connect_node(id.as_str().into());
            let address = Some(std::net::IpAddr::from([192, 168, 9, number]));
            let facts = NodeFacts {
                id: id.as_str().into(),
                hostname: format!("host-{number}"),
                address,
                ..NodeFacts::default()
            };
            link.reports.send(NodeReport::Facts(facts)).await.expect("it listens");
            tokio::spawn(async move { obey(&mut link).await });
        }
        assert!(control.wait_until(LONG, |state| state.nodes.len() == 3).await, "all have joined");
        tokio::spawn(steward::run(control.clone(), |_, _| Sight { state: NodeState::Ready, heard: true }));
        Self { control, router }
    }

    async fn send(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> (StatusCode, Vec<u8>) {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(body.map_or_else(Body::empty, Body::from)).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("a router always answers");
        let status = response.status();
        (status, response.into_body().collect().await.expect("a whole answer").to_bytes().to_vec())
    }

    async fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> T {
        let (status, body) = self.send(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).expect("an answer of its type")
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.ask("GET", path, None).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> T {
        self.ask("POST", path, Some(serde_json::to_vec(body).expect("it can be encoded"))).await
    }

    async fn refused(&self, method: &str, path: &str, body: &impl Serialize) -> (StatusCode, String) {
        let (status, body) = self.send(method, path, Some(serde_json::to_vec(body).expect("it can be encoded"))).await;
        let error: ErrorBody = serde_json::from_slice(&body).expect("an error");
        (status, error.error.message)
    }

    async fn up(&self, image: &str, constraints: &[&str]) {
        let constraints = constraints.iter().map(|text| text.parse::<Constraint>().expect("a constraint")).collect();
        let placement = PlacementSpec { constraints, ..PlacementSpec::default() };
        let update_config = Some(UpdateConfig { monitor: Some(SpecDuration::from_secs(0)), ..UpdateConfig::default() });
        let deploy = DeploySpec { replicas: Some(3), placement, update_config, ..DeploySpec::default() };
        let (image, network_mode) = (image.to_owned(), NetworkMode::None);
        let app = ServiceSpec { image, network_mode, deploy, ..ServiceSpec::default() };
        let services = [("app".to_owned(), app)].into();
        let spec = Arc::new(StackSpec { name: "shop".to_owned(), services, ..StackSpec::default() });
        let request = ApplyRequest { spec, files: Vec::new(), options: Default::default() };
        let _: ApplyResponse = self.post("/v1/stacks/shop/apply", &request).await;
    }

    /// Waits until the service's tasks all run this image, and its update is over.
    async fn until_runs(&self, image: &str) -> ServiceDetail {
        let runs = self.control.wait_until(LONG, |state| {
            let tasks: Vec<_> = state.service_tasks("shop", "app").collect();
            let service = &state.stacks["shop"].services["app"];
            !service.is_rolling()
                && tasks.len() == 3
                && tasks.iter().all(|task| {
                    task.status.state == TaskState::Running && state.revision(task.revision).spec.image == image
                })
        });
        assert!(runs.await, "{image} runs everywhere");
        self.get("/v1/services/shop_app").await
    }
}

/// A deadline that only what never happens reaches.
const LONG: Duration = Duration::from_secs(30);

async fn obey(link: &mut NodeLink) {
    loop {
        let assignment = link.assignments.borrow_and_update().clone();
        let done = |task: &TaskAssignment| TaskStatus {
            task: task.id.clone(),
            state: match task.desired {
                DesiredTask::Created => TaskState::Created,
                DesiredTask::Running | DesiredTask::Paused => TaskState::Running,
                DesiredTask::Stopped => TaskState::Exited,
                DesiredTask::Removed => TaskState::Removed,
            },
            started_at: Some(1),
            restart_generation: task.restart_generation,
            ..TaskStatus::default()
        };
        let statuses = assignment.tasks.iter().map(done).collect();
        let applied = NodeReport::Applied { version: assignment.endpoints_version };
        for report in [NodeReport::Tasks(statuses), applied] {
            if link.reports.send(report).await.is_err() {
                return;
            }
        }
        if link.assignments.changed().await.is_err() {
            return;
        }
    }
}

fn test(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work);
}

#[test]
fn nodes_are_listed_labelled_drained_and_removed() {
    test(async {
        let cluster = Cluster::start().await;
        cluster.up("app:1", &[]).await;
        cluster.until_runs("app:1").await;
        let nodes: Vec<NodeView> = cluster.get("/v1/nodes").await;
        assert_eq!(nodes.iter().map(|node| node.tasks).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!((nodes[0].role.as_str(), nodes[1].role.as_str()), ("manager", "worker"));
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let update = NodeUpdate { labels, availability: Some("drain".to_owned()), ..NodeUpdate::default() };
        let node: NodeView = cluster.post("/v1/nodes/host-2", &update).await;
        assert_eq!((node.availability.as_str(), node.labels["zone"].as_str()), ("drain", "a"));
        let empty = cluster.control.wait_until(LONG, |state| state.nodes[&"node-2".into()].tasks.is_empty()).await;
        assert!(empty, "it is drained");
        let tasks: Vec<TaskView> = cluster.get("/v1/tasks?node=node-1").await;
        assert!(!tasks.is_empty() && tasks.iter().all(|task| task.node == "node-1"));
        let wrong = NodeUpdate { availability: Some("gone".to_owned()), ..NodeUpdate::default() };
        let (status, message) = cluster.refused("POST", "/v1/nodes/node-2", &wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{message}");
        let (status, message) = cluster.refused("DELETE", "/v1/nodes/node-2", &()).await;
        assert_eq!((status, message.as_str()), (StatusCode::CONFLICT, "node host-2 still answers"));
        let _: IndexResponse = cluster.ask("DELETE", "/v1/nodes/node-2?force=true", None).await;
        let (status, _) = cluster.refused("GET", "/v1/nodes/host-2", &()).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn a_service_is_updated_rolled_back_and_removed() {
    test(async {
        let cluster = Cluster::start().await;
        cluster.up("app:1", &[]).await;
        cluster.until_runs("app:1").await;
        let env = BTreeMap::from([("COLOUR".to_owned(), "green".to_owned())]);
        let update = ServiceUpdate {
            image: Some("app:2".to_owned()),
            env,
            update_parallelism: Some(2),
            ..ServiceUpdate::default()
        };
        let done: ApplyResponse = cluster.post("/v1/services/app/update", &update).await;
        assert_eq!(done.plan.changes, 3);
        let detail = cluster.until_runs("app:2").await;
        assert_eq!(detail.service.update_status, "completed");
        assert_eq!(detail.spec.environment["COLOUR"].as_deref(), Some("green"));
        assert_eq!((detail.history, detail.tasks.len()), (1, 3));
        let _: ApplyResponse = cluster.post("/v1/services/shop_app/rollback", &()).await;
        let detail = cluster.until_runs("app:1").await;
        assert_eq!((detail.service.update_status.as_str(), detail.history), ("rollback_completed", 0));
        let (status, message) = cluster.refused("POST", "/v1/services/app/rollback", &()).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{message}");
        let wrong = ServiceUpdate { update_order: Some("both".to_owned()), ..ServiceUpdate::default() };
        let (status, _) = cluster.refused("POST", "/v1/services/app/update", &wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let _: ApplyResponse = cluster.ask("DELETE", "/v1/services/app", None).await;
        let services: Vec<ServiceView> = cluster.get("/v1/services").await;
        assert!(services.is_empty());
    });
}

#[test]
fn a_task_that_waits_says_why_for_every_node() {
    test(async {
        let cluster = Cluster::start().await;
        cluster.up("app:1", &["node.labels.disk == ssd"]).await;
        let detail: ServiceDetail = cluster.get("/v1/services/app").await;
        let why: TaskExplanation = cluster.get(&format!("/v1/tasks/{}/why", detail.tasks[0].id)).await;
        assert_eq!(why.nodes.len(), 3);
        assert!(why.nodes.iter().all(|node| !node.fits && node.reason == "constraint"));
        assert_eq!(
            why.summary,
            "shop-app-1 waits for a node to run on (no suitable node: 3 nodes do not meet `node.labels.disk == ssd`)"
        );
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
        let _: NodeView = cluster.post("/v1/nodes/host-3", &NodeUpdate { labels, ..NodeUpdate::default() }).await;
        cluster.until_runs("app:1").await;
        let why: TaskExplanation = cluster.get("/v1/tasks/shop-app-2/why").await;
        assert_eq!(why.summary, "shop-app-2 is running on host-3");
        assert_eq!(why.nodes.iter().filter(|node| node.fits).count(), 1);
    });
}
