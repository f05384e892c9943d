//! One thread that hears what others do to nf_tables: a firewall that comes up after us, or a program that takes out what
//! is not its own.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::error::NetdError;
use crate::netd::{Shared, lock};
use crate::netlink::{self, Message, NetlinkSocket};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// Stops the thread when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

/// What the notices since the last look amount to.
#[derive(Debug, Default)]
struct Heard {
    /// Somebody changed our table.
    ours: bool,
    /// Somebody made or removed tables, chains or rules of his own.
    foreign: bool,
}

impl Watch {
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Watch, NetdError> {
        let action = "watch nf_tables for changes by other programs";
        let (stop, stopped) = UnixStream::pair().map_err(NetdError::system(action))?;
        // Opened here, in the host's namespace, and not on the thread: what happens from now on is heard.
        let socket = NetlinkSocket::open(libc::NETLINK_NETFILTER).map_err(NetdError::system(action))?;
        socket.subscribe(GROUP).map_err(NetdError::system(action))?;
        let watch = move || {
            if let Err(error) = run(&shared, socket, &stopped) {
                tracing::error!(%error, "no longer watching nf_tables for changes by other programs");
            }
        };
        let thread = std::thread::Builder::new().name("netd-watch".into()).spawn(watch);
        Ok(Watch { stop: Some(stop), thread: Some(thread.map_err(NetdError::system(action))?) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, mut socket: NetlinkSocket, stop: &UnixStream) -> io::Result<()> {
    let own_port = lock(&shared.table).socket().port();
    let name = shared.names.table();
    loop {
        let mut heard = Heard::default();
        if !socket.listen(stop.as_fd(), |message| heard.hear(message, own_port, &name))? {
            return Ok(());
        }
        if heard.ours {
            let mut table = lock(&shared.table);
            if !table.is_empty() {
                tracing::warn!(table = name, "another program changed our nftables table: writing it anew");
                if let Err(error) = table.rewrite() {
                    tracing::error!(%error, "cannot write our nftables table anew");
                }
            }
        }
        if heard.foreign {
            shared.refresh_foreign();
        }
    }
}

impl Heard {
    fn hear(&mut self, message: &Message<'_>, own_port: u32, table: &str) {
        /// `NFT_MSG_NEWGEN`: comes once with every transaction, and says nothing else.
        const NEW_GENERATION: u16 = 15;
        /// Elements, in which other firewalls' changes do not concern us.
        const ELEMENTS: std::ops::RangeInclusive<u16> = 12..=14;
        // Notices that were lost may have been any.
        if message.kind == 0 {
            *self = Heard { ours: true, foreign: true };
            return;
        }
        let kind = message.kind & 0xff;
        if message.port == own_port || kind == NEW_GENERATION {
            return;
        }
        // In all of these the first attribute is the table's name.
        let name = netlink::attributes(message.body.get(4..).unwrap_or(&[])).next().map(|(_, name)| name);
        let is_ours = name.is_some_and(|name| name.strip_suffix(&[0]).unwrap_or(name) == table.as_bytes());
        self.ours |= is_ours;
        self.foreign |= !is_ours && !ELEMENTS.contains(&kind);
    }
}
