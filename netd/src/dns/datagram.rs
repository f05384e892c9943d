//! UDP: a few threads, each with an epoll set of sandboxes' sockets, that take and send many datagrams in one system call.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use super::listener::Asker;
use super::query::Transport;
use super::random::Shuffle;
use super::serve::{ReplyTo, Shared};

/// Datagrams taken in one call. Under load a call costs as much as a datagram; thirty-two make that small, and one busy
/// sandbox gets no more than this before the next one's turn.
const BATCH: usize = 32;
/// Bytes of a query that are read. Longer ones are cut and then refused as malformed; a question with EDNS needs some 300.
const LARGEST: usize = 4096;
/// Sockets reported by one wait.
const EVENTS: usize = 64;
/// The event that means "stop".
const STOP: u64 = u64::MAX;

/// A sandbox's UDP socket.
#[derive(Debug)]
struct Receiver {
    socket: Arc<UdpSocket>,
    asker: Arc<Asker>,
}

/// What a thread and those who give it sockets have in common.
#[derive(Debug)]
struct Set {
    epoll: Epoll,
    stop: EventFd,
    stopping: AtomicBool,
    /// By event number. Held locked while a batch of events is served: once [`Datagrams::remove`] returns, nobody uses the
    /// socket, and the port is free.
    receivers: Mutex<HashMap<u64, Receiver>>,
}

/// The threads that serve UDP.
#[derive(Debug)]
pub(crate) struct Datagrams {
    sets: Vec<Arc<Set>>,
    threads: Vec<JoinHandle<()>>,
    next: AtomicU64,
}

/// A socket being served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Serving(u64);

impl Datagrams {
    /// Starts the threads.
    pub(crate) fn start(count: usize, shared: &Arc<Shared>) -> io::Result<Datagrams> {
        let mut datagrams = Datagrams { sets: Vec::new(), threads: Vec::new(), next: AtomicU64::new(0) };
        for index in 0..count.max(1) {
            let set = Arc::new(Set {
                epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
                stop: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
                stopping: AtomicBool::new(false),
                receivers: Mutex::default(),
            });
            set.epoll.add(&set.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
            let (serving, shared) = (set.clone(), shared.clone());
            datagrams.sets.push(set);
            let thread = thread::Builder::new().name(format!("dns-udp-{index}"));
            datagrams.threads.push(thread.spawn(move || serve(&serving, &shared))?);
        }
        Ok(datagrams)
    }

    /// Serves a socket.
    pub(crate) fn add(&self, socket: UdpSocket, asker: Arc<Asker>) -> io::Result<Serving> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let set = self.set(number);
        let socket = Arc::new(socket);
        let mut receivers = set.receivers.lock().unwrap_or_else(PoisonError::into_inner);
        set.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        receivers.insert(number, Receiver { socket, asker });
        Ok(Serving(number))
    }

    /// Stops serving a socket and closes it.
    pub(crate) fn remove(&self, serving: Serving) {
        let set = self.set(serving.0);
        let mut receivers = set.receivers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = receivers.remove(&serving.0) {
            let _ = set.epoll.delete(&receiver.socket);
        }
    }

    fn set(&self, number: u64) -> &Set {
        // The remainder is below the number of sets.
        &self.sets[(number % self.sets.len() as u64) as usize]
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        for set in &self.sets {
            set.stopping.store(true, Ordering::Relaxed);
            let _ = set.stop.write(1);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(set: &Set, shared: &Arc<Shared>) {
    let mut buffers = Buffers::new();
    let mut events = [EpollEvent::empty(); EVENTS];
    while !set.stopping.load(Ordering::Relaxed) {
        let count = match set.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "waiting for DNS queries failed; the thread ends");
                return;
            }
        };
        let receivers = set.receivers.lock().unwrap_or_else(PoisonError::into_inner);
        for event in &events[..count] {
            if let Some(receiver) = receivers.get(&event.data()) {
                buffers.serve(receiver, shared);
            }
        }
    }
}

/// What a thread needs for one round, kept from round to round.
struct Buffers {
    input: Vec<[u8; LARGEST]>,
    received: MultiHeaders<SockaddrIn>,
    sent: MultiHeaders<SockaddrIn>,
    answers: Vec<(SockaddrIn, Vec<u8>)>,
    shuffle: Shuffle,
}

impl Buffers {
    fn new() -> Buffers {
        Buffers {
            input: vec![[0; LARGEST]; BATCH],
            received: MultiHeaders::preallocate(BATCH, None),
            sent: MultiHeaders::preallocate(BATCH, None),
            answers: Vec::with_capacity(BATCH),
            shuffle: Shuffle::new(),
        }
    }

    /// Takes what waits on a socket, up to a batch, and answers it.
    fn serve(&mut self, receiver: &Receiver, shared: &Shared) {
        let Buffers { input, received, answers, shuffle, .. } = self;
        let mut origins = [(0usize, None); BATCH];
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = input.iter_mut().map(|bytes| [IoSliceMut::new(bytes)]).collect();
        let count = {
            let descriptor = receiver.socket.as_raw_fd();
            let Ok(messages) = recvmmsg(descriptor, received, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None) else {
                return;
            };
            let mut count = 0;
            for (message, origin) in messages.zip(&mut origins) {
                *origin = (message.bytes, message.address);
                count += 1;
            }
            count
        };
        for (bytes, (length, address)) in input.iter().zip(&origins[..count]) {
            let Some(peer) = address else { continue };
            let reply = || ReplyTo::Udp(Arc::downgrade(&receiver.socket), SocketAddrV4::from(*peer));
            // The parser is not ours, and these bytes are anybody's: should one make it panic, the sender loses that answer
            // and not every sandbox its DNS. Nothing is half-changed by then: handling a query changes counters only.
            let handled = catch_unwind(AssertUnwindSafe(|| {
                shared.handle(&receiver.asker, &bytes[..*length], Transport::Udp, shuffle, reply)
            }));
            let answer = handled.unwrap_or_else(|_| {
                tracing::error!(sandbox = %receiver.asker.sandbox, "a DNS query caused a panic; it is not answered");
                None
            });
            answers.extend(answer.map(|answer| (*peer, answer)));
        }
        self.send(&receiver.socket);
    }

    fn send(&mut self, socket: &UdpSocket) {
        let slices: Vec<[IoSlice<'_>; 1]> = self.answers.iter().map(|(_, answer)| [IoSlice::new(answer)]).collect();
        let peers: Vec<Option<SockaddrIn>> = self.answers.iter().map(|(peer, _)| Some(*peer)).collect();
        let mut first = 0;
        while first < slices.len() {
            let rest = (slices[first..].iter(), &peers[first..]);
            let descriptor = socket.as_raw_fd();
            first += match sendmmsg(descriptor, &mut self.sent, rest.0, rest.1, [], MsgFlags::MSG_DONTWAIT) {
                Ok(sent) => sent.count().max(1),
                // This one cannot be sent; clients of UDP ask again. The others may still be.
                Err(_) => 1,
            };
        }
        self.answers.clear();
    }
}
