//! Networks, volumes and addresses.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State as Handed};
use axum::http::StatusCode;
use orch_api::control::{
    AddressRequest, AddressResponse, IndexResponse, NetworkCreate, NetworkView, VolumeCreate, VolumeView,
};
use orch_core::{Clash, Command, Missing, NetworkDefinition, NewNetwork, NewVolume, Refusal, ReserveAddress};
use orch_spec::assignment::NetworkName;
use orch_spec::model::IpamPool;
use serde::Deserialize;

use super::fault::Fault;
use super::{Context, view};
use crate::control::{Control, ProposeError};

/// How long a removal waits for the nodes to have done it.
const REMOVE_WAIT: Duration = Duration::from_secs(10);
/// The network of containers that name none; made when the first one comes.
const BRIDGE: &str = "bridge";

type Body<T> = Result<Json<T>, JsonRejection>;

pub(crate) async fn networks(Handed(context): Handed<Context>) -> Json<Vec<NetworkView>> {
    Json(context.control.read(|state| state.networks.values().map(|network| view::network(state, network)).collect()))
}

pub(crate) async fn network(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
) -> Result<Json<NetworkView>, Fault> {
    show_network(&context.control, &name).map(Json)
}

fn show_network(control: &Control, name: &str) -> Result<NetworkView, Fault> {
    let key = NetworkName::from(name);
    let found = control.read(|state| state.networks.get(&key).map(|network| view::network(state, network)));
    found.ok_or_else(|| Refusal::from(Missing::Network(name.to_owned())).into())
}

pub(crate) async fn create_network(
    Handed(context): Handed<Context>,
    body: Body<NetworkCreate>,
) -> Result<(StatusCode, Json<NetworkView>), Fault> {
    let request = body?.0;
    let name = request.name.clone();
    let definition = definition(request)?;
    let command = NewNetwork { name: NetworkName(name.clone()), definition };
    context.control.propose(Command::CreateNetwork(command)).await?;
    Ok((StatusCode::CREATED, Json(show_network(&context.control, &name)?)))
}

fn definition(request: NetworkCreate) -> Result<NetworkDefinition, Fault> {
    if !matches!(request.driver.as_str(), "" | "bridge") {
        let message = format!("network driver `{}` is not known", request.driver);
        return Err(Fault::new("invalid", message).hint("leave the driver out, or say `bridge`"));
    }
    if request.subnet4.is_none() && (request.ip_range4.is_some() || request.gateway4.is_some()) {
        return Err(Fault::new("invalid", "an address range or a gateway needs a subnet").hint("add the subnet"));
    }
    let mut pools = Vec::new();
    if request.subnet4.is_some() {
        let gateway = request.gateway4.map(Into::into);
        pools.push(IpamPool { subnet: request.subnet4, ip_range: request.ip_range4, gateway, ..IpamPool::default() });
    }
    let enable_ipv6 = request.enable_ipv6 || request.subnet6.is_some();
    if request.subnet6.is_some() {
        let gateway = request.gateway6.map(Into::into);
        pools.push(IpamPool { subnet: request.subnet6, gateway, ..IpamPool::default() });
    }
    Ok(NetworkDefinition {
        internal: request.internal,
        enable_ipv6,
        pools,
        driver_opts: request.driver_opts,
        labels: request.labels,
        ..NetworkDefinition::default()
    })
}

pub(crate) async fn remove_network(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
) -> Result<Json<IndexResponse>, Fault> {
    let name = NetworkName(name);
    let applied = context.control.propose(Command::RemoveNetwork { name: name.clone() }).await?;
    context.control.wait_until(REMOVE_WAIT, |state| !state.networks.contains_key(&name)).await;
    Ok(Json(IndexResponse { index: applied.index }))
}

pub(crate) async fn reserve(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
    body: Body<AddressRequest>,
) -> Result<Json<AddressResponse>, Fault> {
    reserve_address(&context.control, name, body?.0).await.map(Json)
}

pub(crate) async fn reserve_address(
    control: &Control,
    network: String,
    request: AddressRequest,
) -> Result<AddressResponse, Fault> {
    let network = NetworkName(network);
    if network.as_str() == BRIDGE && !control.read(|state| state.networks.contains_key(&network)) {
        let command = NewNetwork { name: network.clone(), definition: NetworkDefinition::default() };
        match control.propose(Command::CreateNetwork(command)).await {
            // Somebody else was as fast.
            Ok(_) | Err(ProposeError::Refused(Refusal::Clash(Clash::Exists { .. }))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let AddressRequest { holder, name, aliases, ipv4, ipv6 } = request;
    if holder.is_empty() {
        return Err(Fault::new("invalid", "an address needs a holder"));
    }
    let command = ReserveAddress { network, holder, name, aliases, ipv4, ipv6 };
    let applied = control.propose(Command::ReserveAddress(command)).await?;
    let (ipv4, ipv6) = applied.answer.addresses;
    Ok(AddressResponse { index: applied.index, ipv4, ipv6 })
}

/// Whose addresses.
#[derive(Debug, Deserialize)]
pub(crate) struct HolderQuery {
    holder: String,
}

pub(crate) async fn release(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
    query: Result<Query<HolderQuery>, QueryRejection>,
) -> Result<Json<IndexResponse>, Fault> {
    release_address(&context.control, name, query?.0.holder).await.map(Json)
}

pub(crate) async fn release_address(
    control: &Control,
    network: String,
    holder: String,
) -> Result<IndexResponse, Fault> {
    let command = Command::ReleaseAddress { network: NetworkName(network), holder };
    let applied = control.propose(command).await?;
    Ok(IndexResponse { index: applied.index })
}

pub(crate) async fn volumes(Handed(context): Handed<Context>) -> Json<Vec<VolumeView>> {
    Json(context.control.read(|state| state.volumes.values().map(|volume| view::volume(state, volume)).collect()))
}

pub(crate) async fn volume(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
) -> Result<Json<VolumeView>, Fault> {
    show_volume(&context.control, &name).map(Json)
}

fn show_volume(control: &Control, name: &str) -> Result<VolumeView, Fault> {
    let found = control.read(|state| state.volumes.get(name).map(|volume| view::volume(state, volume)));
    found.ok_or_else(|| Refusal::from(Missing::Volume(name.to_owned())).into())
}

pub(crate) async fn create_volume(
    Handed(context): Handed<Context>,
    body: Body<VolumeCreate>,
) -> Result<(StatusCode, Json<VolumeView>), Fault> {
    let VolumeCreate { name, driver, driver_opts, labels } = body?.0;
    let command = NewVolume { name: name.clone(), driver, driver_opts, labels };
    context.control.propose(Command::CreateVolume(command)).await?;
    Ok((StatusCode::CREATED, Json(show_volume(&context.control, &name)?)))
}

pub(crate) async fn remove_volume(
    Handed(context): Handed<Context>,
    Path(name): Path<String>,
) -> Result<Json<IndexResponse>, Fault> {
    let applied = context.control.propose(Command::RemoveVolume { name: name.clone() }).await?;
    let settled = |state: &orch_core::State| state.volumes.get(&name).is_none_or(|volume| !volume.removing);
    context.control.wait_until(REMOVE_WAIT, settled).await;
    let error = context.control.read(|state| state.volumes.get(&name).map(|volume| volume.error.clone()));
    match error {
        Some(error) if !error.is_empty() => {
            Err(Fault::new("failed", format!("volume {name} could not be removed: {error}")))
        }
        _ => Ok(Json(IndexResponse { index: applied.index })),
    }
}
