//! A disk in memory that forgets what was not synced when its power goes, and that can be full or broken.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use orch_scheduler::disk::{Disk, DiskFile};

/// What reaches the disk as one.
const SECTOR: usize = 512;

/// What becomes of writes that were not synced.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Loss {
    /// All are lost.
    Everything,
    /// Each sector of each write is there or not, as this seed has it.
    Sectors(u64),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    now: Vec<u8>,
    /// Since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
}

impl Inode {
    /// Everything that was written is durable.
    fn settle(&mut self) {
        for (at, bytes) in self.pending.drain(..) {
            put(&mut self.durable, at, &bytes);
        }
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}

#[derive(Debug, Default)]
struct Inner {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// The names after each change since the last sync of them.
    pending_names: Vec<BTreeMap<String, usize>>,
    operations: usize,
    stop_at: Option<usize>,
    /// Bytes that files may have together.
    room: Option<usize>,
    fails_to_sync: bool,
}

/// See the module. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimulatedDisk(Arc<Mutex<Inner>>);

impl SimulatedDisk {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().expect("no test panics while it has the disk"))
    }

    /// The power goes at this operation, counted from now; everything from then on fails.
    pub(crate) fn stop_after(&self, operations: usize) {
        self.with(|inner| inner.stop_at = Some(inner.operations + operations));
    }

    /// Operations that changed something so far.
    pub(crate) fn operations(&self) -> usize {
        self.with(|inner| inner.operations)
    }

    pub(crate) fn set_room(&self, room: Option<usize>) {
        self.with(|inner| inner.room = room);
    }

    pub(crate) fn used(&self) -> usize {
        self.with(|inner| inner.used())
    }

    pub(crate) fn set_fails_to_sync(&self, fails: bool) {
        self.with(|inner| inner.fails_to_sync = fails);
    }

    /// What is there when the power is back.
    pub(crate) fn after_power_loss(&self, loss: Loss) -> Self {
        self.with(|inner| {
            let mut random = Random(match loss {
                Loss::Everything => 0,
                Loss::Sectors(seed) => seed,
            });
            let names = match loss {
                Loss::Sectors(_) if !inner.pending_names.is_empty() => {
                    let kept = random.below(inner.pending_names.len() + 1);
                    kept.checked_sub(1).map_or(&inner.durable_names, |kept| &inner.pending_names[kept]).clone()
                }
                _ => inner.durable_names.clone(),
            };
            let inodes: Vec<Inode> = inner
                .inodes
                .iter()
                .map(|inode| {
                    let mut content = inode.durable.clone();
                    if let Loss::Sectors(_) = loss {
                        for (at, bytes) in &inode.pending {
                            keep_some(&mut content, *at, bytes, &mut random);
                        }
                    }
                    Inode { durable: content.clone(), now: content, pending: Vec::new() }
                })
                .collect();
            let (durable_names, pending_names) = (names.clone(), Vec::new());
            Self(Arc::new(Mutex::new(Inner { inodes, names, durable_names, pending_names, ..Inner::default() })))
        })
    }

    /// Turns one bit of a file over.
    pub(crate) fn flip(&self, name: &str, byte: usize, bit: u8) {
        self.with(|inner| {
            let inode = inner.names[name];
            let inode = &mut inner.inodes[inode];
            inode.durable[byte] ^= 1 << bit;
            inode.now[byte] ^= 1 << bit;
        });
    }

    #[allow(dead_code, reason = "of the simulation only")]
    pub(crate) fn has(&self, name: &str) -> bool {
        self.with(|inner| inner.names.contains_key(name))
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        self.with(|inner| inner.inodes[inner.names[name]].now.clone())
    }

    /// A disk with the same content, all of it durable.
    pub(crate) fn copy(&self) -> Self {
        let all = self.clone();
        all.with(|inner| {
            let inodes = inner.inodes.iter().map(|inode| Inode {
                durable: inode.now.clone(),
                now: inode.now.clone(),
                pending: Vec::new(),
            });
            let (names, durable_names) = (inner.names.clone(), inner.names.clone());
            Self(Arc::new(Mutex::new(Inner { inodes: inodes.collect(), names, durable_names, ..Inner::default() })))
        })
    }
}

/// Of each sector of a write: there, or not.
fn keep_some(content: &mut Vec<u8>, at: usize, bytes: &[u8], random: &mut Random) {
    let mut from = 0;
    while from < bytes.len() {
        let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(bytes.len());
        if random.below(2) == 0 {
            if content.len() < at + to {
                content.resize(at + to, 0);
            }
            content[at + from..at + to].copy_from_slice(&bytes[from..to]);
        }
        from = to;
    }
}

/// A splitmix64 generator: small, and the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).expect("it is below a usize")
    }
}

impl Inner {
    fn used(&self) -> usize {
        let linked: std::collections::BTreeSet<usize> = self.names.values().copied().collect();
        linked.into_iter().map(|inode| self.inodes[inode].now.len()).sum()
    }

    /// Counts an operation; from the last one on there is no power.
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.stop_at {
            Some(stop) if self.operations > stop => Err(io::Error::other("the power is gone")),
            _ => Ok(()),
        }
    }

    fn note_names(&mut self) {
        self.pending_names.push(self.names.clone());
    }

    fn has_room_for(&self, inode: usize, length: usize) -> io::Result<()> {
        let more = length.saturating_sub(self.inodes[inode].now.len());
        match self.room {
            Some(room) if more > 0 && self.used() + more > room => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn write(&mut self, inode: usize, bytes: &[u8], at: usize) {
        let file = &mut self.inodes[inode];
        put(&mut file.now, at, bytes);
        file.pending.push((at, bytes.to_vec()));
    }
}

impl Disk for SimulatedDisk {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/simulated").join(name)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.with(|inner| inner.names.get(name).map(|inode| inner.inodes[*inode].now.clone())))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.with(|inner| inner.names.get(name).copied()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.with(|inner| {
            inner.step()?;
            inner.inodes.push(Inode::default());
            let inode = inner.inodes.len() - 1;
            inner.names.insert(name.to_owned(), inode);
            inner.note_names();
            Ok::<_, io::Error>(inode)
        })?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|inner| {
            inner.step()?;
            let inode = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            inner.names.insert(to.to_owned(), inode);
            inner.note_names();
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|inner| {
            if inner.names.contains_key(name) {
                inner.step()?;
                inner.names.remove(name);
                inner.note_names();
            }
            Ok(())
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.with(|inner| {
            inner.step()?;
            inner.durable_names = inner.names.clone();
            inner.pending_names.clear();
            Ok(())
        })
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    inode: usize,
}

impl DiskFile for SimulatedFile {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).expect("test files are small");
        self.disk.with(|inner| {
            inner.has_room_for(self.inode, at + bytes.len())?;
            let went = inner.step();
            // The write during which the power goes may have reached the disk in any part.
            if went.is_ok() || inner.stop_at.is_some_and(|stop| inner.operations == stop + 1) {
                inner.write(self.inode, bytes, at);
            }
            went
        })
    }

    fn allocate(&mut self, from: u64, to: u64) -> io::Result<()> {
        let (from, to) = (usize::try_from(from).expect("small"), usize::try_from(to).expect("small"));
        self.disk.with(|inner| {
            inner.has_room_for(self.inode, to)?;
            inner.step()?;
            inner.write(self.inode, &vec![0; to - from], from);
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.with(|inner| {
            inner.step()?;
            if inner.fails_to_sync {
                return Err(io::Error::other("the disk does not answer"));
            }
            inner.inodes[self.inode].settle();
            Ok(())
        })
    }
}
