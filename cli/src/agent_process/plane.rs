//! What the control plane asks of this node, and this node of the control plane, wherever that is.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use orch_agent::Agent;
use orch_api::client::{Client, ClientError};
use orch_api::control::{AddressRequest, AddressResponse, ImageResolver};
use orch_api::error::ErrorDetail;
use orch_api::plane::ControlPlane;
use orch_api::tls::{MANAGER_NAME, node_name};
use orch_core::Command;
use orch_scheduler::peer::Peers;
use orch_scheduler::peer::forward::{Leader, Place};
use orch_spec::assignment::NodeReport;

/// How long another node may take to say what an image is.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The nodes as the control plane's finder of images: this one first, then all others. Asked right before every plan, it also says when
/// the host's routes have changed, so that no subnet is chosen which the host reaches otherwise.
pub(super) struct Images {
    agent: Agent,
    leader: Leader,
    routes: Mutex<Vec<String>>,
}

impl Images {
    pub(super) fn new(agent: Agent, leader: Leader) -> Self {
        Self { agent, leader, routes: Mutex::default() }
    }

    async fn tell_new_routes(&self) {
        let agent = self.agent.clone();
        let Ok(facts) = tokio::task::spawn_blocking(move || agent.facts()).await else { return };
        let changed = {
            let mut told = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = *told != facts.routes;
            told.clone_from(&facts.routes);
            changed
        };
        if changed {
            let node = self.leader.peers.node().clone();
            let report = orch_scheduler::peer::link::placed(&self.leader.peers, NodeReport::Facts(facts));
            if let Err(e) = self.leader.propose(Command::Report { node, report }).await {
                tracing::warn!(error = %e, "the host's routes could not be reported");
            }
        }
    }

    /// Asks all other nodes for images that this one does not have.
    async fn ask_others(&self, found: &mut BTreeMap<String, Option<String>>) {
        let missing: Vec<String> = found.iter().filter(|(_, id)| id.is_none()).map(|(name, _)| name.clone()).collect();
        if missing.is_empty() {
            return;
        }
        let own = self.leader.peers.node().clone();
        let others: Vec<(String, String)> = self.leader.control.read(|state| {
            let others = state.security.members.iter().filter(|(node, _)| **node != own);
            others.map(|(node, member)| (node_name(&node.0), member.address.clone())).collect()
        });
        let ask = |(name, address): &(String, String), image: &String| {
            let client = self.leader.peers.endpoint(address, name).map(Client::new);
            let image = image.clone();
            async move {
                let path = format!("/v1/image?name={}", crate::commands::escape(&image));
                let asking = async { client?.get::<serde_json::Value>(&path).await.ok() };
                let answer = tokio::time::timeout(ANSWER_TIME, asking).await.ok().flatten();
                answer.and_then(|detail| Some((image, detail["Id"].as_str().or(detail["id"].as_str())?.to_owned())))
            }
        };
        let asked = others.iter().flat_map(|other| missing.iter().map(move |image| ask(other, image)));
        for (image, id) in join_all(asked).await.into_iter().flatten() {
            found.insert(image, Some(id));
        }
    }
}

impl ImageResolver for Images {
    fn resolve<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, BTreeMap<String, Option<String>>> {
        let (agent, references) = (self.agent.clone(), references.to_vec());
        Box::pin(async move {
            self.tell_new_routes().await;
            let here = tokio::task::spawn_blocking(move || agent.resolve_images(&references)).await;
            let mut found = here.unwrap_or_default();
            self.ask_others(&mut found).await;
            found
        })
    }
}

/// The control plane as the agent of this process sees it: here, or on any manager.
pub(super) struct Plane {
    pub(super) peers: Peers,
    /// On a manager.
    pub(super) leader: Option<Leader>,
}

impl Plane {
    /// Managers to ask, the leader first: as clients.
    fn managers(&self) -> Vec<Client> {
        let leader = self.leader.as_ref().map(Leader::place);
        let first = match leader {
            Some(Place::There(leader)) => self.peers.endpoint(&leader.address, &node_name(&leader.node)),
            _ => None,
        };
        let membership = self.peers.membership();
        let known = membership.borrow().as_ref().map(|membership| membership.managers.clone()).unwrap_or_default();
        let others = known.iter().filter_map(|manager| {
            let name = if manager.node.0.is_empty() { MANAGER_NAME.to_owned() } else { node_name(&manager.node.0) };
            self.peers.endpoint(&manager.address, &name)
        });
        first.into_iter().chain(others).map(Client::new).collect()
    }

    fn here(&self) -> Option<&Leader> {
        self.leader.as_ref().filter(|leader| leader.place() == Place::Here)
    }
}

fn detail(error: ClientError) -> ErrorDetail {
    match error {
        ClientError::Refused(detail) => detail,
        other => ErrorDetail::new("unavailable", other.to_string()),
    }
}

impl ControlPlane for Plane {
    fn reserve_address(
        &self,
        network: String,
        request: AddressRequest,
    ) -> BoxFuture<'_, Result<AddressResponse, ErrorDetail>> {
        Box::pin(async move {
            if let Some(leader) = self.here() {
                return orch_scheduler::server::reserve_address(&leader.control, network, request).await;
            }
            let path = format!("/v1/peer/addresses/{}", crate::commands::escape(&network));
            let mut last = ErrorDetail::new("unavailable", "no manager is known");
            for manager in self.managers() {
                match manager.post(&path, &request).await.map_err(detail) {
                    Err(error) if error.code == "unavailable" => last = error,
                    answer => return answer,
                }
            }
            Err(last)
        })
    }

    fn release_address(&self, network: String, holder: String) -> BoxFuture<'_, Result<(), ErrorDetail>> {
        Box::pin(async move {
            if let Some(leader) = self.here() {
                return orch_scheduler::server::release_address(&leader.control, network, holder).await;
            }
            let escape = crate::commands::escape;
            let path = format!("/v1/peer/addresses/{}?holder={}", escape(&network), escape(&holder));
            let mut last = ErrorDetail::new("unavailable", "no manager is known");
            for manager in self.managers() {
                match manager.delete(&path).await.map_err(detail) {
                    Err(error) if error.code == "unavailable" => last = error,
                    answer => return answer,
                }
            }
            Err(last)
        })
    }
}
