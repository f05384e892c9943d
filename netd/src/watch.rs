//! One thread that hears what others do to nf_tables: a firewall that comes up after us, or a program that takes out what
//! is not its own.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::error::NetdError;
use crate::netd::{Shared, lock};
use crate::netlink::{self, Membership, Message, NetlinkSocket};
use crate::nft;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// Stops the thread when dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Whether the thread is told of changes. As long as anybody on the machine is, in whichever network namespace, the kernel writes a
/// notice for each element that changes in any of them (`nfnetlink_has_listeners`), which costs it more than the change.
#[derive(Debug)]
pub(crate) struct Hearing {
    membership: Membership,
    /// A byte: notices may have been lost. The end: so shall the thread.
    wake: UnixStream,
    /// Asks how many changes there were; locked while the thread is told of none.
    asking: Mutex<NetlinkSocket>,
}

/// The thread's ends.
#[derive(Debug)]
pub(crate) struct Ears {
    socket: NetlinkSocket,
    woken: UnixStream,
}

/// What the notices since the last look amount to.
#[derive(Debug, Default)]
struct Heard {
    /// Somebody changed our table.
    ours: bool,
    /// Somebody made or removed tables, chains or rules of his own.
    foreign: bool,
}

/// What notices that were lost amount to: they may have been any.
const ANYTHING: Heard = Heard { ours: true, foreign: true };

impl Hearing {
    /// Hears what happens in the calling thread's network namespace from now on.
    pub(crate) fn open() -> io::Result<(Hearing, Ears)> {
        let socket = NetlinkSocket::open(libc::NETLINK_NETFILTER)?;
        let membership = socket.membership(GROUP);
        membership.join()?;
        let asking = Mutex::new(NetlinkSocket::open(libc::NETLINK_NETFILTER)?);
        let (wake, woken) = UnixStream::pair()?;
        Ok((Hearing { membership, wake, asking }, Ears { socket, woken }))
    }

    /// Changes many elements, of which nobody need be told. Others' changes meanwhile are noticed when it is done.
    pub(crate) fn without<T>(&self, change: impl FnOnce() -> T) -> T {
        let mut asking = lock(&self.asking);
        let before = nft::generation(&mut asking);
        if let Err(error) = self.membership.leave() {
            tracing::debug!(%error, "the kernel goes on telling of changes of nf_tables");
        }
        let outcome = change();
        if let Err(error) = self.membership.join() {
            tracing::error!(%error, "no longer watching nf_tables for changes by other programs");
        }
        let missed = !matches!((before, nft::generation(&mut asking)), (Ok(one), Ok(other)) if one == other);
        if missed {
            // A thread that is gone, or has not read as many bytes as a stream holds, needs none.
            let _ = (&self.wake).write(&[0]);
        }
        outcome
    }
}

impl Watch {
    pub(crate) fn start(shared: Arc<Shared>, ears: Ears) -> Result<Watch, NetdError> {
        let watching = Arc::clone(&shared);
        let watch = move || {
            if let Err(error) = run(&watching, ears) {
                tracing::error!(%error, "no longer watching nf_tables for changes by other programs");
            }
        };
        let thread = std::thread::Builder::new().name("netd-watch".into()).spawn(watch);
        let thread = thread.map_err(NetdError::system("watch nf_tables for changes by other programs"))?;
        Ok(Watch { shared, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.shared.hearing.wake.shutdown(Shutdown::Write);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, Ears { mut socket, mut woken }: Ears) -> io::Result<()> {
    let own_port = lock(&shared.table).socket().port();
    let name = shared.names.table();
    loop {
        let mut heard = Heard::default();
        if !socket.listen(woken.as_fd(), |message| heard.hear(message, own_port, &name))? {
            if woken.read(&mut [0; 64])? == 0 {
                return Ok(());
            }
            heard = ANYTHING;
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
        if message.kind == 0 {
            *self = ANYTHING;
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
