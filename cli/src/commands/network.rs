//! `network …`.

use anyhow::Result;
use orch_api::control::{IndexResponse, NetworkCreate, NetworkView};

use super::{client, confirmed, escape};
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
        NetworkCommand::Create { subnet, gateway, internal, ipv6, label, name } => {
            let gateway4 = gateway
                .map(|text| text.parse().map_err(|_| Failure::usage(format!("--gateway {text}: not an IPv4 address"))))
                .transpose()?;
            let request = NetworkCreate {
                name,
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
            let mut found = Vec::new();
            for name in &networks {
                found.push(client.get::<NetworkView>(&format!("/v1/networks/{}", escape(name))).await?);
            }
            printer::json_pretty(&found)?;
        }
        NetworkCommand::Rm { networks } => {
            for name in &networks {
                client.delete::<IndexResponse>(&format!("/v1/networks/{}", escape(name))).await?;
                printer::line(name);
            }
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
