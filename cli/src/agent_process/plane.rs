//! What the control plane asks of this node, and this node of the control plane, wherever that is.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures_util::future::BoxFuture;
use orch_agent::Agent;
use orch_api::client::{Client, ClientError, escape};
use orch_api::control::{AddressRequest, AddressResponse, ImageResolver};
use orch_api::error::ErrorDetail;
use orch_api::image::{self, BlobStream, Holder, Holders, ImageOffer, NamedImage};
use orch_api::plane::ControlPlane;
use orch_api::tls::{MANAGER_NAME, node_name};
use orch_core::{Command, Turn};
use orch_scheduler::peer::forward::{Leader, Place};
use orch_scheduler::peer::{Peers, images};
use orch_spec::assignment::NodeReport;

/// The nodes as the control plane's finder of images: a name means what was last given that name, wherever that was. Asked right before
/// every plan, it also says when the host's routes have changed, so that no subnet is chosen which the host reaches otherwise.
pub(super) struct Images {
    agent: Agent,
    leader: Leader,
    routes: Mutex<Vec<String>>,
}

impl Images {
    pub(super) fn new(agent: Agent, leader: Leader) -> Self {
        Self { agent, leader, routes: Mutex::default() }
    }

    /// Says what images were made for, before a plan places tasks of theirs.
    async fn note_platforms(&self, images: impl Iterator<Item = &NamedImage>) {
        let images = images.map(|named| (named.id.clone(), named.platform.clone()));
        let new = self.leader.control.read(|state| state.unnoted_platforms(images));
        if !new.is_empty()
            && let Err(e) = self.leader.propose(Command::NotePlatforms(new)).await
        {
            tracing::warn!(error = %e, "what images were made for could not be said");
        }
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
            if let Err(e) = self.leader.propose(Command::Report { node, turn: Turn::default(), report }).await {
                tracing::warn!(error = %e, "the host's routes could not be reported");
            }
        }
    }
}

impl ImageResolver for Images {
    fn resolve<'a>(&'a self, references: &'a [String]) -> BoxFuture<'a, BTreeMap<String, Option<String>>> {
        let (agent, references) = (self.agent.clone(), references.to_vec());
        Box::pin(async move {
            self.tell_new_routes().await;
            let elsewhere = images::resolve(&self.leader, &references).await;
            let here = tokio::task::spawn_blocking(move || agent.named_images(&references)).await.unwrap_or_default();
            let newest = |(reference, here): (String, Option<NamedImage>)| {
                let there = elsewhere.get(&reference).cloned();
                (reference, here.into_iter().chain(there).max_by_key(|named| named.since))
            };
            let found: BTreeMap<String, Option<NamedImage>> = here.into_iter().map(newest).collect();
            self.note_platforms(found.values().flatten()).await;
            found.into_iter().map(|(reference, named)| (reference, named.map(|named| named.id))).collect()
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

    /// Asks one manager after the other, as long as what one says against it may be otherwise at the next.
    async fn ask_managers<T, F>(
        &self,
        may_be_otherwise: impl Fn(&ErrorDetail) -> bool,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, ErrorDetail>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut last = ErrorDetail::new("unavailable", "no manager is known");
        for manager in self.managers() {
            match ask(manager).await.map_err(detail) {
                Err(error) if may_be_otherwise(&error) => last = error,
                answer => return answer,
            }
        }
        Err(last)
    }

    fn here(&self) -> Option<&Leader> {
        self.leader.as_ref().filter(|leader| leader.place() == Place::Here)
    }
}

/// A manager is not well.
fn is_unwell(error: &ErrorDetail) -> bool {
    error.code == "unavailable"
}

/// A manager is not well, or does not know yet what this node was told to run.
fn is_behind(error: &ErrorDetail) -> bool {
    is_unwell(error) || error.code == "forbidden"
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
                let node = Some(self.peers.node().clone());
                return orch_scheduler::server::reserve_address(&leader.control, network, node, request).await;
            }
            let path = &format!("/v1/peer/addresses/{}", escape(&network));
            let request = &request;
            self.ask_managers(is_unwell, move |manager: Client| async move { manager.post(path, request).await }).await
        })
    }

    fn release_address(&self, network: String, holder: String) -> BoxFuture<'_, Result<(), ErrorDetail>> {
        Box::pin(async move {
            if let Some(leader) = self.here() {
                return orch_scheduler::server::release_address(&leader.control, network, holder).await;
            }
            let path = &format!("/v1/peer/addresses/{}?holder={}", escape(&network), escape(&holder));
            self.ask_managers(is_unwell, move |manager: Client| async move { manager.delete(path).await }).await
        })
    }

    fn image_named(&self, name: String) -> BoxFuture<'_, Option<String>> {
        Box::pin(async move {
            // A worker gets images of its own tasks only.
            let found = images::resolve(self.leader.as_ref()?, std::slice::from_ref(&name)).await;
            found.get(&name).map(|named| named.id.clone())
        })
    }

    fn image_holders(&self, image: String) -> BoxFuture<'_, Result<Holders, ErrorDetail>> {
        Box::pin(async move {
            let own = self.peers.node();
            if let Some(leader) = &self.leader {
                return Ok(images::holders(leader, &image, own).await);
            }
            let path = &format!("/v1/peer/images/{}", escape(&image));
            self.ask_managers(is_behind, move |manager: Client| async move { manager.get(path).await }).await
        })
    }

    fn image_offer(&self, image: String, from: Holder) -> BoxFuture<'_, Result<ImageOffer, ErrorDetail>> {
        Box::pin(async move {
            if let Some(leader) = &self.leader {
                let giver = images::giver(leader, &from.node)?;
                return giver.get(&images::offer_path(&image)).await.map_err(detail);
            }
            let path = &format!("/v1/peer/images/{}/offer?node={}", escape(&image), escape(&from.node.0));
            self.ask_managers(is_behind, move |manager: Client| async move { manager.get(path).await }).await
        })
    }

    fn image_blob(
        &self,
        image: String,
        digest: String,
        offset: u64,
        from: Holder,
    ) -> BoxFuture<'_, Result<BlobStream, ErrorDetail>> {
        Box::pin(async move {
            if let Some(leader) = &self.leader {
                let giver = images::giver(leader, &from.node)?;
                return image::blob(&giver, &images::blob_path(&image, &digest, offset)).await.map_err(detail);
            }
            let (id, digest, node) = (escape(&image), escape(&digest), escape(&from.node.0));
            let path = &format!("/v1/peer/images/{id}/blobs/{digest}?node={node}&offset={offset}");
            self.ask_managers(is_behind, move |manager: Client| async move { image::blob(&manager, path).await }).await
        })
    }
}
