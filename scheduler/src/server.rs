//! The control plane's part of the API; see [`orch_api::control`] for the table. Handlers translate; the state machine decides.

pub mod cluster;
mod node;
mod object;
mod service;
mod stream;
pub mod tail;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State as Inject};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use orch_api::control::{
    ActRequest, Action as ApiAction, AddressRequest, AddressResponse, ApplyRequest, ApplyResponse, DesiredRequest,
    DownRequest, ImageResolver, IndexResponse, NetworkConnect, NetworkCreate, NetworkView, NodeView, Reachability,
    RunRequest, RunResponse, ScaleRequest, StackSummary, StackView, TaskView, VolumeCreate, VolumeView,
};
use orch_api::error::{ErrorBody, ErrorDetail, LEADER_CHANGED};
use orch_core::plan::{self, Moment};
use orch_core::{
    Act, Action, Answer, ApplyStack, AttachTask, Command, DetachTask, Down, Hint, NetworkDefinition, NewNetwork,
    NewVolume, Refusal, ReserveAddress, RunOneOff, Scale, SetTaskDesired, State, Task, UpOptions,
};
use orch_spec::assignment::{NetworkName, NodeId, TaskId};
use orch_spec::model::{IpamPool, ServiceSpec, StackSpec};
use serde::Deserialize;

use crate::control::{Control, ProposeError};

/// Largest JSON body: a stack with its secrets and configs.
const BODY: usize = 8 << 20;
/// How long a change waits for the first node of an agent that has just started.
const NODE_WAIT: Duration = Duration::from_secs(5);
/// How long a change waits for the end of a `down`: the usual grace of containers, and as much again for the slow.
const DOWN_WAIT: Duration = Duration::from_secs(30);
/// How long a removal waits until the nodes have done it.
const REMOVE_WAIT: Duration = Duration::from_secs(10);
/// How long to wait for nodes to hear where callers are led: as long as one that is to be stopped waits for them.
const REACHABLE_WAIT: Duration = Duration::from_secs(3);
/// The network that is made when the first container of no stack asks for it.
const DEFAULT_NETWORK: &str = "bridge";

/// What to do while nobody leads.
pub(crate) const NO_LEADER: &str =
    "containers run on; try again when most of the managers reach each other: `orch cluster info`";

/// What handlers need.
struct Server {
    control: Control,
    images: Arc<dyn ImageResolver>,
}

type Injected = Inject<Arc<Server>>;
pub(crate) type Reply<T> = Result<Json<T>, Refused>;
type Body<T> = Result<Json<T>, JsonRejection>;
type Asked<T> = Result<Query<T>, QueryRejection>;

/// A refused request.
pub(crate) struct Refused(ErrorDetail);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

impl Refused {
    /// What is said.
    pub(crate) fn into_detail(self) -> ErrorDetail {
        self.0
    }
}

impl From<ErrorDetail> for Refused {
    fn from(detail: ErrorDetail) -> Self {
        Self(detail)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let detail = ErrorDetail::new(refusal.code(), refusal.to_string());
        Self(match refusal.hint() {
            Some(hint) => detail.with_hint(hint),
            None => detail,
        })
    }
}

impl From<ProposeError> for Refused {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(refusal) => refusal.into(),
            other @ ProposeError::Unavailable(_) => {
                let hint = "containers run on; give the command again when that is mended: `orch cluster info`, `orch node ls`";
                Self(ErrorDetail::new("unavailable", other.to_string()).with_hint(hint))
            }
            other @ ProposeError::InTurn => {
                let hint = "give the command again; `orch cluster info` says which managers vote already";
                Self(ErrorDetail::new("unavailable", other.to_string()).with_hint(hint))
            }
            // Another manager is asked then: see `peer::forward`.
            other @ (ProposeError::NotLeader { .. } | ProposeError::Unknown) => {
                Self(ErrorDetail::new(LEADER_CHANGED, other.to_string()).with_hint(NO_LEADER))
            }
            other @ ProposeError::Gone(_) => {
                let hint =
                    "containers run on; see the agent's log, start it again, and look whether the change is there";
                Self(ErrorDetail::new("unavailable", other.to_string()).with_hint(hint))
            }
        }
    }
}

impl From<JsonRejection> for Refused {
    fn from(rejection: JsonRejection) -> Self {
        let message = format!("the request is not understood: {}", rejection.body_text());
        Self(if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ErrorDetail::new("too_large", message)
        } else {
            ErrorDetail::new("invalid", message).with_hint("are command and agent of the same version?")
        })
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self(ErrorDetail::new("invalid", format!("the query is not understood: {}", rejection.body_text())))
    }
}

fn not_found(kind: &str, name: &str) -> Refused {
    let detail = ErrorDetail::new("not_found", format!("no such {kind}: {name}"));
    let lister = match kind {
        "stack" => "`orch ls` lists the stacks that exist",
        "network" => "`orch network ls` lists the networks that exist",
        "volume" => "`orch volume ls` lists the volumes that exist",
        "task" => "`orch task ls` lists the tasks that exist",
        "node" => "`orch node ls` lists the nodes",
        _ => return detail.into(),
    };
    detail.with_hint(lister).into()
}

/// All routes.
pub fn routes(control: Control, images: Arc<dyn ImageResolver>) -> Router {
    Router::new()
        .route("/v1/stacks", get(stacks))
        .route("/v1/stacks/{name}", get(stack))
        .route("/v1/stacks/{name}/watch", get(stream::watch))
        .route("/v1/stacks/{name}/reachable", get(reachable))
        .route("/v1/stacks/{name}/plan", post(plan_up))
        .route("/v1/stacks/{name}/apply", post(apply))
        .route("/v1/stacks/{name}/down", post(down))
        .route("/v1/stacks/{name}/act", post(act))
        .route("/v1/stacks/{name}/scale", post(scale))
        .route("/v1/stacks/{name}/run", post(run))
        .route("/v1/tasks", get(tasks))
        .route("/v1/tasks/{id}", get(task))
        .route("/v1/tasks/{id}/desired", post(desired))
        .route("/v1/tasks/{id}/networks", post(connect))
        .route("/v1/tasks/{id}/networks/{name}", delete(disconnect))
        .route("/v1/events", get(stream::events))
        .route("/v1/networks", get(networks).post(create_network))
        .route("/v1/networks/{name}", get(network).delete(remove_network))
        .route("/v1/networks/{name}/addresses", post(reserve).merge(delete(release)))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{name}", get(volume).delete(remove_volume))
        .route("/v1/tasks/{id}/why", get(service::why))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{id}", get(node::node).post(node::update).delete(node::remove))
        .route("/v1/services", get(service::services))
        .route("/v1/services/{id}", get(service::service).delete(service::remove))
        .route("/v1/services/{id}/update", post(service::update))
        .route("/v1/services/{id}/rollback", post(service::rollback))
        .merge(object::routes())
        .layer(DefaultBodyLimit::max(BODY))
        .with_state(Arc::new(Server { control, images }))
}

async fn propose(server: &Server, command: Command) -> Result<(u64, Answer), Refused> {
    Ok(server.control.propose(command).await?)
}

fn response(index: u64, answer: Answer) -> ApplyResponse {
    ApplyResponse { index, plan: view::plan(&answer.plan), warnings: answer.warnings }
}

/// The ids of all images that services need; those that are not there are all named.
async fn resolve<'a>(
    server: &Server,
    services: impl Iterator<Item = (&'a str, &'a ServiceSpec)>,
) -> Result<BTreeMap<String, String>, Refused> {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, service) in services.filter(|(_, s)| !s.image.is_empty()) {
        users.entry(service.image.clone()).or_default().push(name.to_owned());
    }
    let references: Vec<String> = users.keys().cloned().collect();
    let found = server.images.resolve(&references).await;
    let (mut missing, mut subjects) = (Vec::new(), Vec::new());
    let mut images = BTreeMap::new();
    for (reference, services) in users {
        match found.get(&reference).cloned().flatten() {
            Some(id) => {
                images.insert(reference, id);
            }
            None => {
                missing.push(format!("{reference} (service {})", services.join(", ")));
                subjects.push(reference);
            }
        }
    }
    if missing.is_empty() {
        return Ok(images);
    }
    let message = match missing.as_slice() {
        [one] => format!("image not found: {one}"),
        many => format!("{} images not found", many.len()),
    };
    let mut detail = ErrorDetail::new("image_missing", message)
        .with_hint("`orch image ls` shows what there is; `orch image load` and `orch image import` bring more");
    detail.subjects = subjects.into();
    if missing.len() > 1 {
        detail.details = missing;
    }
    Err(detail.into())
}

/// The services that a request touches: the chosen ones and what they depend on.
fn touched<'a>(
    server: &Server,
    spec: &'a StackSpec,
    chosen: &[String],
    no_deps: bool,
) -> Result<Vec<(&'a str, &'a ServiceSpec)>, Refused> {
    let selected = server.control.read(|state| plan::selected_services(state, spec, chosen, no_deps))?;
    let found = spec.services.iter().filter(|(name, _)| selected.contains(*name));
    Ok(found.map(|(name, service)| (name.as_str(), service)).collect())
}

/// Waits for what a change must not be planned without: a node, whose routes decide which addresses are free, and the end of a `down`
/// of the same stack, though the command that asked for it may be gone.
async fn settle(control: &Control, stack: &str) {
    control.wait_until(NODE_WAIT, |state| !state.nodes.is_empty()).await;
    control.wait_until(DOWN_WAIT, |state| state.stacks.get(stack).is_none_or(|stack| stack.removing.is_none())).await;
}

async fn up_command(server: &Server, name: &str, request: ApplyRequest) -> Result<ApplyStack, Refused> {
    if request.spec.name != name {
        let message = format!("the stack in the path is {name}, that of the body {}", request.spec.name);
        return Err(ErrorDetail::new("invalid", message).into());
    }
    settle(&server.control, name).await;
    let options = request.options;
    let mut services = touched(server, &request.spec, &options.services, options.no_deps)?;
    services.retain(|(service, _)| options.scale.get(*service) != Some(&0));
    let images = resolve(server, services.into_iter()).await?;
    Ok(ApplyStack {
        spec: request.spec,
        files: request.files,
        options: UpOptions {
            services: options.services,
            no_deps: options.no_deps,
            force_recreate: options.force_recreate,
            no_recreate: options.no_recreate,
            always_recreate_deps: options.always_recreate_deps,
            renew_anonymous_volumes: options.renew_anonymous_volumes,
            remove_orphans: options.remove_orphans,
            no_start: options.no_start,
            scale: options.scale,
            timeout: options.timeout,
        },
        images,
    })
}

/// `POST /v1/stacks/{name}/plan`.
async fn plan_up(Inject(server): Injected, Path(name): Path<String>, body: Body<ApplyRequest>) -> Reply<ApplyResponse> {
    let Json(request) = body?;
    let command = up_command(&server, &name, request).await?;
    let (index, answer) = server.control.read(|state| (state.index, plan::up(state, &command, Moment::default())));
    Ok(Json(response(index, answer?)))
}

/// `POST /v1/stacks/{name}/apply`.
async fn apply(Inject(server): Injected, Path(name): Path<String>, body: Body<ApplyRequest>) -> Reply<ApplyResponse> {
    let Json(request) = body?;
    let command = up_command(&server, &name, request).await?;
    let (index, answer) = propose(&server, Command::ApplyStack(command)).await?;
    Ok(Json(response(index, answer)))
}

/// `POST /v1/stacks/{name}/down`.
async fn down(Inject(server): Injected, Path(name): Path<String>, body: Body<DownRequest>) -> Reply<ApplyResponse> {
    let Json(request) = body?;
    let command = Down {
        stack: name,
        volumes: request.volumes,
        services: request.services,
        timeout: request.timeout,
        remove_orphans: request.remove_orphans,
    };
    let (index, answer) = propose(&server, Command::RemoveStack(command)).await?;
    Ok(Json(response(index, answer)))
}

fn action(action: ApiAction) -> Action {
    match action {
        ApiAction::Start => Action::Start,
        ApiAction::Stop => Action::Stop,
        ApiAction::Restart => Action::Restart,
        ApiAction::Pause => Action::Pause,
        ApiAction::Unpause => Action::Unpause,
        ApiAction::Kill => Action::Kill,
        ApiAction::Remove => Action::Remove,
    }
}

/// `POST /v1/stacks/{name}/act`.
async fn act(Inject(server): Injected, Path(name): Path<String>, body: Body<ActRequest>) -> Reply<ApplyResponse> {
    let Json(request) = body?;
    let command = Act {
        stack: name,
        services: request.services,
        tasks: request.tasks.into_iter().map(TaskId::from).collect(),
        action: action(request.action),
        timeout: request.timeout,
        signal: request.signal,
        no_deps: request.no_deps,
        remove_volumes: request.remove_volumes,
        stop: request.stop,
    };
    let (index, answer) = propose(&server, Command::Act(command)).await?;
    Ok(Json(response(index, answer)))
}

/// `POST /v1/stacks/{name}/scale`.
async fn scale(Inject(server): Injected, Path(name): Path<String>, body: Body<ScaleRequest>) -> Reply<ApplyResponse> {
    let Json(request) = body?;
    let command = Scale { stack: name, services: request.services, no_deps: request.no_deps, timeout: request.timeout };
    let (index, answer) = propose(&server, Command::Scale(command)).await?;
    Ok(Json(response(index, answer)))
}

/// `POST /v1/stacks/{name}/run`.
async fn run(Inject(server): Injected, Path(name): Path<String>, body: Body<RunRequest>) -> Reply<RunResponse> {
    let Json(request) = body?;
    settle(&server.control, &name).await;
    let mut services = vec![(request.service.as_str(), &*request.spec)];
    if let Some(spec) = &request.stack {
        let others = touched(&server, spec, std::slice::from_ref(&request.service), request.no_deps)?;
        services.extend(others.into_iter().filter(|(service, _)| *service != request.service));
    }
    let images = resolve(&server, services.into_iter()).await?;
    let command = RunOneOff {
        spec: request.stack.clone(),
        stack: name,
        files: request.files,
        service: request.service,
        one_off: request.spec,
        container_name: request.container_name,
        start: request.start,
        no_deps: request.no_deps,
        use_aliases: request.use_aliases,
        remove_orphans: request.remove_orphans,
        images,
    };
    let (index, answer) = propose(&server, Command::RunOneOff(command)).await?;
    let Some(task) = answer.task else { return Err(ErrorDetail::new("failed", "no task was made").into()) };
    let container_name = server.control.read(|state| state.tasks.get(&task).map(|t| t.container_name.clone()));
    Ok(Json(RunResponse {
        index,
        task: task.to_string(),
        container_name: container_name.unwrap_or_default(),
        plan: view::plan(&answer.plan),
        warnings: answer.warnings,
    }))
}

/// `POST /v1/tasks/{id}/desired`.
async fn desired(Inject(server): Injected, Path(id): Path<String>, body: Body<DesiredRequest>) -> Reply<IndexResponse> {
    let Json(request) = body?;
    let command = SetTaskDesired {
        task: id.into(),
        desired: request.desired,
        timeout: request.timeout,
        signal: request.signal,
        remove_volumes: request.remove_volumes,
    };
    let (index, _) = propose(&server, Command::SetTaskDesired(command)).await?;
    Ok(Json(IndexResponse { index }))
}

/// `POST /v1/tasks/{id}/networks`.
async fn connect(
    Inject(server): Injected,
    Path(id): Path<String>,
    body: Body<NetworkConnect>,
) -> Reply<AddressResponse> {
    let Json(request) = body?;
    let network = NetworkName(request.network);
    ensure_default_network(&server.control, &network).await?;
    let (aliases, ipv4, ipv6) = (request.aliases, request.ipv4, request.ipv6);
    let command = Command::AttachTask(AttachTask { task: id.into(), network, aliases, ipv4, ipv6 });
    let (index, answer) = propose(&server, command).await?;
    Ok(Json(AddressResponse { index, ipv4: answer.addresses.0, ipv6: answer.addresses.1 }))
}

/// `DELETE /v1/tasks/{id}/networks/{name}`.
async fn disconnect(Inject(server): Injected, Path((id, network)): Path<(String, String)>) -> Reply<IndexResponse> {
    let command = Command::DetachTask(DetachTask { task: id.into(), network: NetworkName(network) });
    let (index, _) = propose(&server, command).await?;
    Ok(Json(IndexResponse { index }))
}

/// `GET /v1/stacks`.
async fn stacks(Inject(server): Injected) -> Json<Vec<StackSummary>> {
    Json(server.control.read(|state| state.stacks.keys().filter_map(|name| view::summary(state, name)).collect()))
}

/// `GET /v1/stacks/{name}`.
async fn stack(Inject(server): Injected, Path(name): Path<String>) -> Reply<StackView> {
    server.control.read(|state| view::stack(state, &name)).map(Json).ok_or_else(|| not_found("stack", &name))
}

/// `GET /v1/stacks/{name}/reachable`.
async fn reachable(Inject(server): Injected, Path(name): Path<String>) -> Reply<Reachability> {
    let there = |state: &State| state.stacks.contains_key(&name).then(|| state.leading(&name));
    let wanted = server.control.read(there).ok_or_else(|| not_found("stack", &name))?;
    server.control.wait_until(REACHABLE_WAIT, |state| state.behind(&wanted).next().is_none()).await;
    let hostname = |node: &orch_core::Node| node.facts.hostname.clone();
    Ok(Json(Reachability { behind: server.control.read(|state| state.behind(&wanted).map(hostname).collect()) }))
}

/// `?stack=&service=&node=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TaskQuery {
    stack: Option<String>,
    service: Option<String>,
    node: Option<String>,
}

/// `GET /v1/tasks`.
async fn tasks(Inject(server): Injected, query: Asked<TaskQuery>) -> Reply<Vec<TaskView>> {
    let Query(query) = query?;
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
    Ok(Json(server.control.read(|state: &State| {
        let chosen = state
            .tasks
            .values()
            .filter(|t| fits(&query.stack, &t.stack) && fits(&query.service, &t.service))
            .filter(|t| fits(&query.node, t.node.as_ref().map_or("", |node| node.as_str())));
        let mut found: Vec<&Task> = chosen.collect();
        found.sort_by(|a, b| (&a.stack, a.order()).cmp(&(&b.stack, b.order())));
        found.into_iter().map(|t| view::task(state, t)).collect()
    })))
}

/// `GET /v1/tasks/{id}`.
async fn task(Inject(server): Injected, Path(id): Path<String>) -> Reply<TaskView> {
    let found = server.control.read(|state| state.tasks.get(&TaskId::from(id.as_str())).map(|t| view::task(state, t)));
    found.map(Json).ok_or_else(|| not_found("task", &id))
}

/// `GET /v1/networks`.
async fn networks(Inject(server): Injected) -> Json<Vec<NetworkView>> {
    Json(server.control.read(|state| state.networks.values().map(|n| view::network(state, n)).collect()))
}

/// `GET /v1/networks/{name}`.
async fn network(Inject(server): Injected, Path(name): Path<String>) -> Reply<NetworkView> {
    let name = NetworkName(name);
    let found = server.control.read(|state| state.networks.get(&name).map(|n| view::network(state, n)));
    found.map(Json).ok_or_else(|| not_found("network", name.as_str()))
}

/// `POST /v1/networks`.
async fn create_network(Inject(server): Injected, body: Body<NetworkCreate>) -> Reply<NetworkView> {
    let Json(request) = body?;
    if !matches!(request.driver.as_str(), "" | "bridge" | "overlay") {
        let message = format!("network driver `{}` is not known", request.driver);
        let hint = "leave the driver out, or say `bridge`, or `overlay` for one that reaches over to other nodes";
        return Err(ErrorDetail::new("invalid", message).with_hint(hint).into());
    }
    if request.subnet4.is_none() && (request.ip_range4.is_some() || request.gateway4.is_some()) {
        let message = "an address range or a gateway needs a subnet";
        return Err(ErrorDetail::new("invalid", message).with_hint("add the subnet").into());
    }
    let name = NetworkName(request.name);
    let pool4 =
        (request.subnet4.is_some() || request.gateway4.is_some() || request.ip_range4.is_some()).then(|| IpamPool {
            subnet: request.subnet4,
            ip_range: request.ip_range4,
            gateway: request.gateway4.map(Into::into),
            aux_addresses: BTreeMap::new(),
        });
    let pool6 = (request.subnet6.is_some() || request.gateway6.is_some()).then(|| IpamPool {
        subnet: request.subnet6,
        ip_range: None,
        gateway: request.gateway6.map(Into::into),
        aux_addresses: BTreeMap::new(),
    });
    let definition = NetworkDefinition {
        driver: if request.driver.is_empty() { "bridge".to_owned() } else { request.driver },
        driver_opts: request.driver_opts,
        internal: request.internal,
        enable_ipv4: true,
        enable_ipv6: request.enable_ipv6 || pool6.is_some(),
        pools: pool4.into_iter().chain(pool6).collect(),
        labels: request.labels,
    };
    propose(&server, Command::CreateNetwork(NewNetwork { name: name.clone(), definition })).await?;
    network(Inject(server), Path(name.0)).await
}

/// `DELETE /v1/networks/{name}`.
async fn remove_network(Inject(server): Injected, Path(name): Path<String>) -> Reply<IndexResponse> {
    let name = NetworkName(name);
    let (index, _) = propose(&server, Command::RemoveNetwork { name: name.clone() }).await?;
    server.control.wait_until(REMOVE_WAIT, |state| !state.networks.contains_key(&name)).await;
    Ok(Json(IndexResponse { index }))
}

/// Makes the default network where it is the one that is meant and is not there yet.
async fn ensure_default_network(control: &Control, name: &NetworkName) -> Result<(), ErrorDetail> {
    let there = || control.read(|state| state.networks.contains_key(name));
    if name.as_str() != DEFAULT_NETWORK || there() {
        return Ok(());
    }
    let new = NewNetwork { name: name.clone(), definition: NetworkDefinition::default() };
    match control.propose(Command::CreateNetwork(new)).await {
        Ok(_) => Ok(()),
        // Another one was as quick.
        Err(_) if there() => Ok(()),
        Err(e) => Err(Refused::from(e).0),
    }
}

/// An address on a network for a container of no stack, which runs on `node`; the default network is made by the first one that asks.
///
/// # Errors
/// When there is no such network, it is full, or the address is taken.
pub async fn reserve_address(
    control: &Control,
    network: String,
    node: Option<NodeId>,
    request: AddressRequest,
) -> Result<AddressResponse, ErrorDetail> {
    let name = NetworkName(network);
    ensure_default_network(control, &name).await?;
    if request.holder.is_empty() {
        return Err(ErrorDetail::new("invalid", "an address needs a holder"));
    }
    let command = ReserveAddress {
        network: name,
        holder: request.holder,
        name: request.name,
        aliases: request.aliases,
        ipv4: request.ipv4,
        ipv6: request.ipv6,
        mac: request.mac,
        node,
    };
    let (index, answer) = control.propose(Command::ReserveAddress(command)).await.map_err(|e| Refused::from(e).0)?;
    Ok(AddressResponse { index, ipv4: answer.addresses.0, ipv6: answer.addresses.1 })
}

/// Gives an address back.
///
/// # Errors
/// When the control plane takes no changes.
pub async fn release_address(control: &Control, network: String, holder: String) -> Result<(), ErrorDetail> {
    let command = Command::ReleaseAddress { network: NetworkName(network), holder };
    control.propose(command).await.map(drop).map_err(|e| Refused::from(e).0)
}

/// `POST /v1/networks/{name}/addresses`.
async fn reserve(
    Inject(server): Injected,
    Path(name): Path<String>,
    body: Body<AddressRequest>,
) -> Reply<AddressResponse> {
    let Json(request) = body?;
    Ok(Json(reserve_address(&server.control, name, None, request).await?))
}

/// `?holder=`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HolderQuery {
    holder: String,
}

/// `DELETE /v1/networks/{name}/addresses`.
async fn release(
    Inject(server): Injected,
    Path(name): Path<String>,
    query: Asked<HolderQuery>,
) -> Reply<IndexResponse> {
    let Query(query) = query?;
    release_address(&server.control, name, query.holder).await?;
    Ok(Json(IndexResponse { index: server.control.read(|state| state.index) }))
}

/// `GET /v1/volumes`.
async fn volumes(Inject(server): Injected) -> Json<Vec<VolumeView>> {
    Json(server.control.read(|state| state.volumes.values().map(|v| view::volume(state, v)).collect()))
}

/// `GET /v1/volumes/{name}`.
async fn volume(Inject(server): Injected, Path(name): Path<String>) -> Reply<VolumeView> {
    let found = server.control.read(|state| state.volumes.get(&name).map(|v| view::volume(state, v)));
    found.map(Json).ok_or_else(|| not_found("volume", &name))
}

/// `POST /v1/volumes`.
async fn create_volume(Inject(server): Injected, body: Body<VolumeCreate>) -> Reply<VolumeView> {
    let Json(request) = body?;
    let name = request.name.clone();
    let new = NewVolume {
        name: request.name,
        driver: request.driver,
        driver_opts: request.driver_opts,
        labels: request.labels,
    };
    propose(&server, Command::CreateVolume(new)).await?;
    volume(Inject(server), Path(name)).await
}

/// `DELETE /v1/volumes/{name}`.
async fn remove_volume(Inject(server): Injected, Path(name): Path<String>) -> Reply<IndexResponse> {
    let (index, _) = propose(&server, Command::RemoveVolume { name: name.clone() }).await?;
    let is_settled = |state: &State| state.volumes.get(&name).is_none_or(|volume| !volume.removing);
    server.control.wait_until(REMOVE_WAIT, is_settled).await;
    match server.control.read(|state| state.volumes.get(&name).map(|volume| volume.error.clone())) {
        Some(error) if !error.is_empty() => {
            Err(ErrorDetail::new("failed", format!("volume {name} could not be removed: {error}")).into())
        }
        _ => Ok(Json(IndexResponse { index })),
    }
}

/// `GET /v1/nodes`.
async fn nodes(Inject(server): Injected) -> Json<Vec<NodeView>> {
    let views: Vec<NodeView> =
        server.control.read(|state| state.nodes.iter().map(|(id, n)| view::node(state, id, n)).collect());
    Json(views.into_iter().map(|view| view::led(view, &server.control)).collect())
}
