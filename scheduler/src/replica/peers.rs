//! Messages to and from other replicas.

use super::{
    Assembly, Bytes, Download, Envelope, FRAME_BYTES, Frame, Message, MessageType, NodeId, OFFER, PART, Progress,
    Replica, SnapshotStatus, Task, UPLOAD, transfer, wire,
};

impl Replica {
    /// A message has come; the transport has proved who sent it. What is not for this replica, or not of its cluster, or of somebody who is no
    /// member any more, is dropped.
    pub fn receive(&mut self, from: &NodeId, bytes: Bytes) {
        let Ok((envelope, frame)) = wire::decode(bytes) else {
            tracing::debug!(%from, "a message that is none was dropped");
            return;
        };
        self.receive_frame(from, envelope, frame, true);
    }

    fn receive_frame(&mut self, from: &NodeId, envelope: Envelope, frame: Frame, parts: bool) {
        let Envelope { cluster, from: id, to } = envelope;
        if self.removed || cluster != self.cluster || to != self.identity.id || id == to {
            return;
        }
        if self.members.removed.contains_key(&id) {
            let gone = Envelope { cluster, from: self.identity.id, to: id };
            return self.out.messages.push((from.clone(), wire::encode(gone, &Frame::Removed).into()));
        }
        match self.members.managers.get(&id) {
            Some(member) if member.node != *from => return,
            Some(_) => {}
            None => {
                self.heard.insert(id, from.clone());
            }
        }
        match frame {
            Frame::Messages(messages) => {
                for message in messages.into_iter().filter(|message| message.from == id && message.to == to) {
                    self.step(message);
                }
            }
            Frame::Part { id: frame, number, count, bytes } => {
                let place = self.assemblies.entry(from.clone()).or_default();
                let whole = Assembly::take(place, frame, number, count, bytes).filter(|_| parts);
                if let Some(Ok((envelope, frame))) = whole.map(wire::decode) {
                    self.receive_frame(from, envelope, frame, false);
                }
            }
            Frame::Ask { index, check, first, count } => self.answer_ask(id, index, check, first, count),
            Frame::Chunk { index, check, number, sum, bytes } => {
                let Some(download) = &mut self.download else { return };
                if download.index == index && download.check == check && download.message.from == id {
                    let progress = download.take(number, sum, bytes, self.ticks);
                    self.downloaded(id, index, progress);
                }
            }
            Frame::Received { index, good } => {
                let waits = self.raw.raft.prs().get(id).is_some_and(|p| p.pending_snapshot == index);
                if waits && self.uploads.remove(&id).is_some() {
                    let status = if good { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                    self.raw.report_snapshot(id, status);
                }
            }
            Frame::Removed => {
                // Only somebody who was a member together with this one can know.
                if self.members.managers.contains_key(&id) || self.members.managers.is_empty() {
                    self.retire();
                }
            }
            Frame::Address(address) => self.take_address(id, address),
            Frame::Sum(sum) => self.take_sum(id, sum),
            Frame::Differs(sum) => self.take_verdict(id, sum),
        }
    }

    fn step(&mut self, message: Message) {
        self.note_speaker(message.from);
        if message.get_msg_type() == MessageType::MsgSnapshot {
            return self.announced(message);
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(%error, "a message was not taken");
        }
    }

    /// Sends raft's messages, those to one replica in one frame.
    pub(super) fn send(&mut self, messages: Vec<Message>) {
        let mut gathered: Vec<(u64, usize, Vec<Message>)> = Vec::new();
        for message in messages {
            if !wire::is_sendable(message.get_msg_type()) {
                continue;
            }
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.uploads.insert(message.to, self.ticks);
            }
            let size: usize = message.entries.iter().map(|entry| entry.data.len()).sum();
            match gathered.iter_mut().rev().find(|(to, ..)| *to == message.to) {
                Some((_, bytes, list)) if *bytes + size <= FRAME_BYTES => {
                    *bytes += size;
                    list.push(message);
                }
                _ => gathered.push((message.to, size, vec![message])),
            }
        }
        for (to, _, list) in gathered {
            self.send_frame(to, &Frame::Messages(list));
        }
    }

    pub(super) fn send_frame(&mut self, to: u64, frame: &Frame) {
        let Some(node) = self.node_of(to) else { return };
        let envelope = Envelope { cluster: self.cluster, from: self.identity.id, to };
        let bytes = Bytes::from(wire::encode(envelope, frame));
        if bytes.len() <= PART {
            return self.out.messages.push((node, bytes));
        }
        self.next_frame += 1;
        // Another life of this replica must not go on with a frame of the last.
        let id = self.settings.nonce.wrapping_add(self.next_frame);
        let count = u32::try_from(bytes.len().div_ceil(PART)).unwrap_or(u32::MAX);
        for number in 0..count {
            let from = number as usize * PART;
            let part = Frame::Part { id, number, count, bytes: bytes.slice(from..(from + PART).min(bytes.len())) };
            self.out.messages.push((node.clone(), wire::encode(envelope, &part).into()));
        }
    }

    /// The leader says that there is a snapshot for this replica.
    fn announced(&mut self, message: Message) {
        let index = message.get_snapshot().get_metadata().index;
        if index <= self.raw.raft.raft_log.committed {
            // Raft answers that it is there already.
            let _ = self.raw.step(message);
            return;
        }
        if self.received.is_some() {
            return;
        }
        if let Some(download) = self.download.as_mut().filter(|download| download.is_same(&message)) {
            download.message = message;
            return;
        }
        let from = message.from;
        let Some(mut download) = Download::begin(message, self.ticks) else { return };
        let ask = download.ask(self.ticks);
        self.download = Some(download);
        if let Some(ask) = ask {
            self.send_frame(from, &ask);
        }
    }

    fn downloaded(&mut self, from: u64, index: u64, progress: Progress) {
        match progress {
            Progress::Going(None) => {}
            Progress::Going(Some(ask)) => self.send_frame(from, &ask),
            Progress::Whole(bytes) => {
                let Some(download) = self.download.take() else { return };
                self.received = Some((download.message, bytes.clone()));
                self.out.tasks.push(Task::Check(bytes));
            }
            Progress::Broken => {
                self.download = None;
                self.send_frame(from, &Frame::Received { index, good: false });
            }
        }
    }

    /// A received snapshot was looked at; `members` are those in it when it can be read. See [`Task::Check`].
    pub fn checked(&mut self, index: u64, members: Option<&super::Members>) {
        if self.removed {
            return;
        }
        let Some((mut message, bytes)) = self.received.take() else { return };
        let (from, announced) = (message.from, message.get_snapshot().get_metadata().index);
        let Some(members) = members.filter(|_| index == announced) else {
            tracing::warn!(index, "a snapshot of the control state cannot be read and is not taken");
            return self.send_frame(from, &Frame::Received { index: announced, good: false });
        };
        let conf = super::record::conf_state(self.identity.id, members);
        message.mut_snapshot().mut_metadata().set_conf_state(conf);
        // Raft takes none without data for one; the bytes themselves are none of its business.
        self.received = Some((message.clone(), bytes));
        let taken =
            self.raw.step(message).is_ok() && self.raw.raft.snap().is_some_and(|s| s.get_metadata().index == index);
        if !taken {
            self.received = None;
        }
        self.send_frame(from, &Frame::Received { index, good: true });
    }

    fn answer_ask(&mut self, to: u64, index: u64, check: u32, first: u32, count: u32) {
        let Some(offer) = self.raw.store().offer.clone().filter(|o| o.index == index && o.check == check) else {
            return;
        };
        if let Some(last) = self.uploads.get_mut(&to) {
            *last = self.ticks;
        }
        self.offered = self.ticks;
        for number in first..first.saturating_add(count.min(64)) {
            let Some(piece) = transfer::piece(&offer, number) else { break };
            self.send_frame(to, &piece);
        }
    }

    pub(super) fn tick_transfers(&mut self) {
        let fetching =
            self.download.as_mut().map(|download| (download.message.from, download.index, download.tick(self.ticks)));
        match fetching {
            Some((from, _, Ok(Some(ask)))) => self.send_frame(from, &ask),
            Some((from, index, Err(()))) => {
                self.download = None;
                self.send_frame(from, &Frame::Received { index, good: false });
            }
            _ => {}
        }
        // A peer stays paused until somebody says what became of its snapshot.
        let late: Vec<u64> =
            self.uploads.iter().filter(|(_, last)| **last + UPLOAD <= self.ticks).map(|(id, _)| *id).collect();
        for id in late {
            self.uploads.remove(&id);
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
        if self.uploads.is_empty() && self.offered + OFFER <= self.ticks {
            self.raw.mut_store().offer = None;
        }
    }
}
