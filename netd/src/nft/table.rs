//! The table of an instance: what shall be in it, kept in memory, and the one socket that puts it into the kernel.
//!
//! The socket stays open for the life of the process. The kernel ties an owned table to the socket that made it, and to
//! close one after a transaction that deleted rules costs 15 ms.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::ruleset::{self, Set};
use super::{Element, Family, TABLE_OWNER, TABLE_PERSIST, Transaction};
use crate::netlink::{NetlinkError, NetlinkSocket};

/// What we ask for: nobody else changes the table, and it stays when we end.
const OWNED: u32 = TABLE_OWNER | TABLE_PERSIST;

/// Why the table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// No netlink socket.
    #[error("cannot open an nf_tables socket")]
    Socket(#[source] std::io::Error),
    /// The table belongs to a process that lives.
    #[error(
        "the nftables table `inet {table}` is owned by another process: does an agent of this instance run already?"
    )]
    Owned {
        /// Its name.
        table: String,
    },
    /// The kernel refused a change.
    #[error("cannot {action} the nftables table `inet {table}`: {source}")]
    Refused {
        /// What was being done.
        action: &'static str,
        /// Its name.
        table: String,
        /// The kernel's answer.
        source: NetlinkError,
    },
}

/// A change of content: elements that go and elements that come, in one transaction.
#[derive(Debug, Default, Clone)]
pub(crate) struct Change {
    pub(crate) remove: Vec<(Set, Element)>,
    pub(crate) add: Vec<(Set, Element)>,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    name: String,
    socket: NetlinkSocket,
    content: BTreeMap<Set, BTreeSet<Element>>,
    /// It is in the kernel.
    exists: bool,
    /// Flags that this kernel takes; found out by trying.
    flags: u32,
    /// This kernel has zones of connection tracking; found out by trying.
    zoned: bool,
}

impl Table {
    /// Prepares to keep the table; touches the kernel's only from [`Table::apply`] on.
    pub(crate) fn new(name: &str) -> Result<Table, TableError> {
        let socket = NetlinkSocket::open(libc::NETLINK_NETFILTER).map_err(TableError::Socket)?;
        Ok(Table { name: name.to_owned(), socket, content: BTreeMap::new(), exists: false, flags: OWNED, zoned: true })
    }

    /// Leaves the table open to others from now on, as kernels before 6.9 do.
    pub(crate) fn disown(&mut self) {
        self.flags = 0;
    }

    /// The socket, for other work on nf_tables that must not open one of its own.
    pub(crate) fn socket(&mut self) -> &mut NetlinkSocket {
        &mut self.socket
    }

    /// Whether other programs cannot change it.
    pub(crate) fn is_owned(&self) -> bool {
        self.flags & TABLE_OWNER != 0
    }

    /// Makes a change, remembers it, and makes it so in the kernel. When the kernel's table turns out to be another than
    /// the one remembered (somebody changed it), all of it is written anew: there is no state in which only half is there.
    pub(crate) fn apply(&mut self, change: Change) -> Result<(), TableError> {
        let mut transaction = Transaction::new();
        let mut removed: BTreeMap<Set, Vec<Element>> = BTreeMap::new();
        let mut added: BTreeMap<Set, Vec<Element>> = BTreeMap::new();
        for (set, element) in change.remove {
            if self.content.entry(set).or_default().remove(&element) {
                removed.entry(set).or_default().push(element);
            }
        }
        for (set, element) in change.add {
            if self.content.entry(set).or_default().insert(element.clone()) {
                added.entry(set).or_default().push(element);
            }
        }
        if !self.exists && self.is_empty() {
            return Ok(());
        }
        if self.exists {
            for (set, elements) in &removed {
                transaction.delete_elements(Family::Inet, &self.name, &set.layout(), elements);
            }
            for (set, elements) in &added {
                transaction.add_elements(Family::Inet, &self.name, &set.layout(), elements);
            }
            match transaction.commit(&mut self.socket) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(table = self.name, %error, "the nftables table is not as we left it: writing it anew");
                }
            }
        }
        let rewritten = self.rewrite();
        if rewritten.is_err() {
            // What the kernel takes on no account must not stay in the way of everybody else's changes.
            for (set, elements) in added {
                self.content.entry(set).or_default().retain(|element| !elements.contains(element));
            }
            if self.exists {
                self.rewrite()?;
            }
        }
        rewritten
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.content.values().all(BTreeSet::is_empty)
    }

    /// Replaces the kernel's table by what is remembered, in one transaction: at no moment is there none, and flows that
    /// conntrack knows do not notice.
    pub(crate) fn rewrite(&mut self) -> Result<(), TableError> {
        // As it is wanted, then plain, for kernels that do not know the flags; each over a table of ours that nobody owns just
        // now, and over a plain one, as neither can become the other in place.
        let flags = [(OWNED, self.flags), (0, self.flags), (OWNED, 0), (0, 0)];
        let attempts = [self.zoned, false].into_iter().flat_map(|zoned| flags.map(|(is, shall)| (zoned, is, shall)));
        let mut outcome = Ok(());
        for (zoned, present, wanted) in attempts {
            outcome = self.write(present, wanted, zoned);
            match &outcome {
                Err(error) if matches!(error.errno, Errno::EOPNOTSUPP | Errno::EINVAL) => continue,
                Err(_) => break,
                Ok(()) => {
                    if self.zoned && !zoned {
                        tracing::warn!(
                            "this kernel has no zones of connection tracking: a client that uses one port of its own towards several \
                             hosts at the same time may wait for an answer on all but one"
                        );
                    }
                    (self.flags, self.zoned) = (wanted, zoned);
                    self.exists = true;
                    break;
                }
            }
        }
        outcome.map_err(|source| match source.errno {
            Errno::EPERM if nix::unistd::geteuid().is_root() => TableError::Owned { table: self.name.clone() },
            _ => TableError::Refused { action: "write", table: self.name.clone(), source },
        })
    }

    fn write(&mut self, present: u32, wanted: u32, zoned: bool) -> Result<(), NetlinkError> {
        let mut transaction = Transaction::new();
        // Made if it is missing, so that it can be deleted: a deletion of nothing would be an error.
        transaction.table(Family::Inet, &self.name, present);
        transaction.delete_table(Family::Inet, &self.name);
        transaction.table(Family::Inet, &self.name, wanted);
        ruleset::write(&mut transaction, &self.name, zoned);
        for (set, elements) in &self.content {
            transaction.add_elements(Family::Inet, &self.name, &set.layout(), elements);
        }
        transaction.commit(&mut self.socket)
    }

    /// Takes the table out of the kernel. One that is not there is fine.
    pub(crate) fn delete(&mut self) -> Result<(), TableError> {
        self.content.clear();
        let mut outcome = Ok(());
        for present in [OWNED, 0] {
            let mut transaction = Transaction::new();
            transaction.table(Family::Inet, &self.name, present);
            transaction.delete_table(Family::Inet, &self.name);
            outcome = transaction.commit(&mut self.socket);
            match &outcome {
                Err(error) if matches!(error.errno, Errno::EOPNOTSUPP | Errno::EINVAL) => continue,
                _ => break,
            }
        }
        self.exists = false;
        outcome.map_err(|source| match source.errno {
            Errno::EPERM if nix::unistd::geteuid().is_root() => TableError::Owned { table: self.name.clone() },
            _ => TableError::Refused { action: "delete", table: self.name.clone(), source },
        })
    }
}
