//! `cluster …`.

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use orch_api::client::Client;
use orch_api::cluster::{
    ClientCertificate, ClientRequest, ClientView, ClusterView, InitRequest, JoinRequest, Joined, LeaveRequest,
    PeerView, TokenRequest, TokenText,
};
use orch_spec::role::Role;

use super::{client, each, escape};
use crate::args::{ClientCommand, ClusterCommand, ClusterInit, ClusterJoin, ClusterToken};
use crate::exit::{Exit, Failure};
use crate::printer::{self, Format};
use crate::settings::Settings;

/// How long this host's agent may take to start again as a member, and to reach a manager.
const SETTLE: Duration = Duration::from_secs(30);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// Runs one of the verbs.
pub(super) async fn run(settings: &Settings, command: ClusterCommand) -> Result<Exit> {
    match command {
        ClusterCommand::Init(args) => init(settings, args).await?,
        ClusterCommand::Join(args) => join(settings, args).await?,
        ClusterCommand::Leave { force } => leave(settings, force).await?,
        ClusterCommand::Token(args) => token(settings, args).await?,
        ClusterCommand::Info { format } => info(settings, &format).await?,
        ClusterCommand::Ls(list) => {
            let view: ClusterView = client(settings)?.get("/v1/cluster").await?;
            let peers = if view.members.is_empty() { view.managers } else { view.members };
            let cells = |peer: &PeerView| {
                let leads = if peer.node == view.leader { "leader" } else { "" };
                vec![peer.node.clone(), peer.role.clone(), peer.address.clone(), leads.to_owned()]
            };
            let format = Format::parse(&list.format)?;
            let titles = ["NODE", "ROLE", "ADDRESS", "LEADER"];
            printer::listing(&format, settings.quiet, &peers, &titles, cells, |peer| peer.node.clone())?;
        }
        ClusterCommand::Client(command) => return clients(settings, command).await,
    }
    Ok(Exit::Done)
}

/// `90s`, `15m`, `24h`, `7d`, or seconds; 0 = no bound.
fn seconds(text: &str) -> Result<u64, Failure> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let value = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    value.ok_or_else(|| Failure::usage(format!("`{text}` is not a time")).hint("write it like 90s, 15m, 24h or 7d"))
}

async fn init(settings: &Settings, args: ClusterInit) -> Result<()> {
    let client = client(settings)?;
    let request = InitRequest {
        advertise: args.advertise_addr.unwrap_or_default(),
        listen: args.listen_addr.unwrap_or_default(),
        certificate_life: args.cert_expiry.as_deref().map(seconds).transpose()?.unwrap_or(0),
    };
    let view: ClusterView = client.post("/v1/cluster/init", &request).await?;
    printer::say(&format!("cluster {} is open; this node {} manages it at {}", view.id, view.node, view.address));
    let token = TokenRequest { role: Role::Worker, rotate: false, life: None, once: false };
    let token: TokenText = client.post("/v1/cluster/tokens", &token).await?;
    printer::say("on another host, within 24 hours:");
    printer::line(&format!("orch cluster join --token {} {}", token.token, view.address));
    printer::say("`orch cluster token manager` prints what a further manager joins with");
    Ok(())
}

async fn join(settings: &Settings, args: ClusterJoin) -> Result<()> {
    let token = if args.token == "-" {
        let mut text = String::new();
        std::io::stdin().take(4096).read_to_string(&mut text).context("read the token from standard input")?;
        text.trim().to_owned()
    } else {
        args.token
    };
    let request = JoinRequest {
        token,
        manager: args.manager,
        advertise: args.advertise_addr.unwrap_or_default(),
        listen: args.listen_addr.unwrap_or_default(),
    };
    let client = client(settings)?;
    let joined: Joined = client.post("/v1/cluster/join", &request).await?;
    for warning in &joined.warnings {
        printer::say(&format!("warning: {warning}"));
    }
    let is_there = |view: &ClusterView| {
        view.id == joined.cluster && view.connected && (joined.role == "worker" || !view.leader.is_empty())
    };
    if !becomes(&client, is_there).await {
        let message = format!("node {} was let in, but does not reach its managers yet", joined.node);
        return Err(Failure::new(Exit::Failed, message)
            .hint("it goes on trying; `orch cluster info` says how it stands, the agent's log why")
            .into());
    }
    printer::say(&format!("this host is node {} of cluster {}, as a {}", joined.node, joined.cluster, joined.role));
    Ok(())
}

/// Waits until the agent, which starts again meanwhile, shows the cluster as wished.
async fn becomes(client: &Client, wish: impl Fn(&ClusterView) -> bool) -> bool {
    let until = Instant::now() + SETTLE;
    while Instant::now() < until {
        // The one that answers before it has ended looks as it did.
        tokio::time::sleep(LOOK).await;
        if client.get::<ClusterView>("/v1/cluster").await.is_ok_and(|view| wish(&view)) {
            return true;
        }
    }
    false
}

async fn leave(settings: &Settings, force: bool) -> Result<()> {
    let client = client(settings)?;
    let before: ClusterView = client.get("/v1/cluster").await?;
    client.post::<Option<()>>("/v1/cluster/leave", &LeaveRequest { force }).await?;
    if !becomes(&client, |view| view.id != before.id && !view.open).await {
        let message = format!("this host has left cluster {}, but its agent has not come back alone yet", before.id);
        return Err(Failure::new(Exit::Failed, message).hint("see the agent's log").into());
    }
    printer::say(&format!("this host has left cluster {}", before.id));
    Ok(())
}

async fn token(settings: &Settings, args: ClusterToken) -> Result<()> {
    let client = client(settings)?;
    let role: Role = args.role.parse().map_err(|e: orch_spec::role::UnknownRole| Failure::usage(e.to_string()))?;
    if args.revoke {
        client.delete::<Option<()>>(&format!("/v1/cluster/tokens?role={role}")).await?;
        printer::say(&format!("no {role} token counts any more"));
        return Ok(());
    }
    let request = TokenRequest { role, rotate: args.rotate, life: Some(seconds(&args.ttl)?), once: args.once };
    let made: TokenText = client.post("/v1/cluster/tokens", &request).await?;
    if settings.quiet {
        printer::line(&made.token);
    } else {
        let manager = made.managers.first().cloned().unwrap_or_default();
        printer::line(&format!("orch cluster join --token {} {manager}", made.token));
    }
    Ok(())
}

async fn info(settings: &Settings, format: &str) -> Result<()> {
    let view: ClusterView = client(settings)?.get("/v1/cluster").await?;
    if format == "json" {
        return printer::json(&view);
    }
    if !view.open {
        printer::line(&format!("cluster {}: this host alone", view.id));
        printer::say("`orch cluster init` opens it to other hosts");
        return Ok(());
    }
    let managers: Vec<&str> = view.managers.iter().map(|manager| manager.address.as_str()).collect();
    let leader = if view.leader.is_empty() { "none known" } else { &view.leader };
    printer::line(&format!(
        "cluster {}\nnode {} ({}) at {}{}\nleader {leader}\nmanagers {}{}\nauthority sha256:{}",
        view.id,
        view.node,
        view.role,
        view.address,
        match (view.removed, view.connected) {
            (true, _) => ", which was removed from the cluster",
            (false, false) => ", without a connection to a manager",
            (false, true) => "",
        },
        managers.join(", "),
        // A worker does not know.
        if view.voters.is_empty() { String::new() } else { format!("; {} of them vote", view.voters.len()) },
        view.authority
    ));
    if view.removed {
        printer::say(
            "what it runs goes on without anybody's care; `orch cluster leave` ends it, then this host can join again",
        );
    }
    Ok(())
}

async fn clients(settings: &Settings, command: ClientCommand) -> Result<Exit> {
    let client = client(settings)?;
    match command {
        ClientCommand::Create { name, role, ttl, out } => {
            let role = role.parse().map_err(|e: orch_spec::role::UnknownRole| Failure::usage(e.to_string()))?;
            let life = match seconds(&ttl)? {
                0 => return Err(Failure::usage("a client's certificate must end some day").into()),
                life => Some(life),
            };
            let folder = out.unwrap_or_else(|| PathBuf::from(&name));
            let made: ClientCertificate =
                client.post("/v1/cluster/clients", &ClientRequest { name, role, life }).await?;
            write(&folder, &made).with_context(|| format!("write the certificate into {}", folder.display()))?;
            printer::line(&made.name);
            let manager = made.managers.first().cloned().unwrap_or_default();
            printer::say(&format!("use it with ORCH_CERT_PATH={} orch --host tcp://{manager} …", folder.display()));
        }
        ClientCommand::Ls(list) => {
            let views: Vec<ClientView> = client.get("/v1/cluster/clients").await?;
            let cells = |view: &ClientView| vec![view.name.clone(), view.role.to_string(), time(view.expires_at)];
            let format = Format::parse(&list.format)?;
            let titles = ["NAME", "ROLE", "EXPIRES"];
            printer::listing(&format, settings.quiet, &views, &titles, cells, |view| view.name.clone())?;
        }
        ClientCommand::Rm { names } => {
            let views: Vec<ClientView> = client.get("/v1/cluster/clients").await?;
            let names: Vec<String> = names.iter().flat_map(|name| meant(&views, name)).collect();
            return each::each(settings, &names, async |name| {
                client.delete::<Option<()>>(&format!("/v1/cluster/clients/{}", escape(name))).await?;
                printer::line(name);
                Ok(())
            })
            .await;
        }
    }
    Ok(Exit::Done)
}

/// The certificates that somebody means: the one of this name, or all that were made for it (`alice` has `alice.177c19ed`).
fn meant(views: &[ClientView], name: &str) -> Vec<String> {
    let made_for = |view: &&ClientView| view.name.rsplit_once('.').is_some_and(|(person, _)| person == name);
    let is_one = views.iter().any(|view| view.name == name);
    let all: Vec<String> = views.iter().filter(made_for).map(|view| view.name.clone()).collect();
    if is_one || all.is_empty() { vec![name.to_owned()] } else { all }
}

fn time(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "never".to_owned(), |time| time.to_string())
}

/// Writes what a client needs; the key for its owner only.
fn write(folder: &Path, made: &ClientCertificate) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    for (name, text, mode) in
        [("ca.pem", &made.ca, 0o644), ("cert.pem", &made.cert, 0o644), ("key.pem", &made.key, 0o600)]
    {
        let mut options = std::fs::OpenOptions::new();
        options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(mode)
            .open(folder.join(name))?
            .write_all(text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        for (text, expected) in [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800), ("0", 0)] {
            assert_eq!(seconds(text).ok(), Some(expected), "{text}");
        }
        for text in ["", "h", "1w", "-1h", "1.5h", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
