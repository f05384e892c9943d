//! `network …`.

use anyhow::Result;
use orch_api::client::{Client, ClientError};
use orch_api::control::{AddressResponse, IndexResponse, NetworkConnect, NetworkCreate, NetworkView};
use orch_api::node::ContainerView;
use serde_json::Value;

use super::{client, confirmed, container, each, escape};
use crate::args::NetworkCommand;
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// Runs one of the verbs.
pub(super) async fn run(settings: &Settings, command: NetworkCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        NetworkCommand::Ls(list) => {
            let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
            let cells = |n: &NetworkView| {
                let subnets =
                    [n.subnet4.clone(), n.subnet6.clone()].into_iter().flatten().collect::<Vec<_>>().join(", ");
                vec![n.name.clone(), n.driver.clone(), n.stack.clone(), subnets]
            };
            let titles = ["NAME", "DRIVER", "STACK", "SUBNETS"];
            let format = Format::parse(&list.format)?;
            printer::listing(&format, settings.quiet, &networks, &titles, cells, |n| n.name.clone())?;
        }
        NetworkCommand::Create { subnet, gateway, driver, internal, ipv6, label, name } => {
            let gateway4 = gateway
                .map(|text| text.parse().map_err(|_| Failure::usage(format!("--gateway {text}: not an IPv4 address"))))
                .transpose()?;
            let request = NetworkCreate {
                name,
                driver,
                subnet4: subnet,
                gateway4,
                internal,
                enable_ipv6: ipv6,
                labels: super::volume::labels(&label),
                ..NetworkCreate::default()
            };
            let made: NetworkView = client.post("/v1/networks", &request).await?;
            printer::line(&made.name);
        }
        NetworkCommand::Inspect { networks } => {
            return each::inspect(settings, &networks, async |name| {
                Ok(client.get::<NetworkView>(&format!("/v1/networks/{}", escape(name))).await?)
            })
            .await;
        }
        NetworkCommand::Rm { networks } => {
            return each::each(settings, &networks, async |name| {
                client.delete::<IndexResponse>(&format!("/v1/networks/{}", escape(name))).await?;
                printer::line(name);
                Ok(())
            })
            .await;
        }
        NetworkCommand::Connect { ip, ip6, alias, network, container } => {
            let request = NetworkConnect { network, aliases: alias, ipv4: ip, ipv6: ip6 };
            connect(&client, &container, &request).await?;
        }
        NetworkCommand::Disconnect { force, network, container } => {
            disconnect(&client, &container, &network, force).await?;
        }
        NetworkCommand::Prune { force } => {
            if !force && !confirmed("Remove all networks that no stack has and nothing uses?") {
                return Err(Failure::new(Exit::Failed, "nothing removed").hint("say yes, or use -f").into());
            }
            let networks: Vec<NetworkView> = client.get("/v1/networks").await?;
            for network in networks.iter().filter(|n| n.stack.is_empty() && n.endpoints.is_empty()) {
                client.delete::<IndexResponse>(&format!("/v1/networks/{}", escape(&network.name))).await?;
                printer::line(&network.name);
            }
        }
    }
    Ok(Exit::Done)
}

async fn connect(client: &Client, container: &str, request: &NetworkConnect) -> Result<()> {
    let view = container::view(client, container).await?;
    let network = &request.network;
    if view.stack.is_empty() {
        client.post::<Value>(&format!("/v1/containers/{}/networks", escape(&view.id)), request).await?;
    } else {
        client.post::<AddressResponse>(&format!("/v1/tasks/{}/networks", escape(&view.task)), request).await?;
    }
    loop {
        let now = container::view(client, &view.id).await?;
        if now.networks.contains_key(network) {
            return Ok(());
        }
        if let Some(why) = now.network_errors.get(network) {
            // What does not work is not kept for a later start either.
            let _ = leave(client, &view, network).await;
            let message = format!("container {} was not connected to network {network}: {why}", view.name);
            return Err(Failure::new(Exit::Failed, message).into());
        }
        tokio::time::sleep(container::LOOK).await;
    }
}

async fn disconnect(client: &Client, container: &str, network: &str, force: bool) -> Result<()> {
    let view = match container::view(client, container).await {
        Err(ClientError::Refused(detail)) if force && detail.code == "not_found" => return Ok(()),
        found => found?,
    };
    if force && !view.networks.contains_key(network) {
        return Ok(());
    }
    leave(client, &view, network).await?;
    while container::view(client, &view.id).await?.networks.contains_key(network) {
        tokio::time::sleep(container::LOOK).await;
    }
    Ok(())
}

async fn leave(client: &Client, view: &ContainerView, network: &str) -> Result<()> {
    if view.stack.is_empty() {
        client.delete::<Value>(&format!("/v1/containers/{}/networks/{}", escape(&view.id), escape(network))).await?;
    } else {
        client
            .delete::<IndexResponse>(&format!("/v1/tasks/{}/networks/{}", escape(&view.task), escape(network)))
            .await?;
    }
    Ok(())
}
