//! The ends of containers and execs: what they leave is cleared away, the end is recorded, then told.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::launch::remove_if_empty;
use super::process::{Container, Ending, Output, reap};
use super::protocol::{ExitRecord, Notice};
use super::record;
use super::server::{READ_STEP, Server, Source, now};
use super::syncs::{Syncs, Work};
use crate::logs::Stream;
use crate::sys_descriptor::release_free_memory;

/// Output taken in one go after a container's end; a process that outlived it (sharing the host's pids, in uninterruptible sleep) may
/// write for ever.
const LAST_OUTPUT: usize = 4 << 20;
/// How long what a container left behind may take to go before its end is told all the same: Docker waits as long for its streams.
const ENDING_LIMIT: Duration = Duration::from_secs(2);

/// An end on its way to the disk.
#[derive(Debug)]
pub(super) struct Recording {
    exit: ExitRecord,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The record itself is being written to the disk.
    Record,
    /// It has its name, which is being written to the disk.
    Name,
}

impl Server {
    pub(super) fn init_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.ending.is_some() {
            return;
        }
        let (code, signal) = match reap(&container.init) {
            Ok(Some(end)) => end,
            Ok(None) => return,
            // Someone else reaped it, which nobody does: the code is unknown, the end is not.
            Err(_) => (255, 0),
        };
        container.ending =
            Some(Ending { code, signal, oom: false, since: Instant::now(), finished_at: now(), recording: None });
        let token = container.init_token;
        self.forget_init(id, token);
        self.progress_ending(id);
    }

    /// Clears away what a container left, and once that is done, or has taken too long, records and tells its end.
    pub(super) fn progress_ending(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(ending) = container.ending.as_mut().filter(|ending| ending.recording.is_none()) else { return };
        // Read before the group goes, and the counter with it.
        ending.oom |= container.group.oom_kills() > 0;
        let removed = remove_if_empty(&container.group) || {
            // What cannot be killed shows by the group not becoming empty.
            let _ = container.group.kill();
            remove_if_empty(&container.group)
        };
        if !removed && ending.since.elapsed() < ENDING_LIMIT {
            return;
        }
        for index in 0..2 {
            let mut taken = 0;
            while taken < LAST_OUTPUT {
                match self.read_output(id, index) {
                    Some(count) => taken += count,
                    None => break,
                }
            }
        }
        self.close_streams(id);
        self.record_end(id);
    }

    fn close_streams(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for (index, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            container.log.end(stream, &mut self.scratch);
            if let Some(output) = container.outputs[index].take() {
                // It may have left the loop before.
                let _ = self.epoll.delete(&output.descriptor);
                self.sources.remove(&output.token);
            }
        }
        if let Some(input) = container.input.take()
            && let Some(pipe) = input.pipe
        {
            self.unwatch(&pipe, input.token);
        }
    }

    /// Writes the record. Where it must survive a power cut, the loop goes on while the disk is busy: many containers end at once.
    fn record_end(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let Some(ending) = &container.ending else { return };
        let exit = ExitRecord {
            code: ending.code,
            signal: ending.signal,
            oom: ending.oom,
            finished_at: ending.finished_at,
            pid: container.run.pid,
            start_time: container.run.start_time,
            boot_id: container.run.boot_id.clone(),
            error: String::new(),
        };
        let written = record::write_unnamed_exit(&container.directory, &exit);
        let file = match written {
            Ok(file) => file,
            Err(e) => return self.not_recorded(id, exit, &e),
        };
        if !container.durable {
            let named = record::name_exit(&container.directory);
            return match named {
                Ok(()) => self.tell_end(id, exit),
                Err(e) => self.not_recorded(id, exit, &e),
            };
        }
        self.sync(id, Recording { exit, stage: Stage::Record }, &file);
    }

    /// Has a stage written to the disk.
    fn sync(&mut self, id: &str, recording: Recording, file: &impl AsFd) {
        let work = if recording.stage == Stage::Record { Work::Data } else { Work::All };
        match self.begin_sync(id, file, work) {
            Ok(()) => {
                if let Some(ending) = self.containers.get_mut(id).and_then(|c| c.ending.as_mut()) {
                    ending.recording = Some(recording);
                }
            }
            // No thread is to be had: then the loop waits.
            Err(_) => {
                let file = file.as_fd();
                let synced = if work == Work::Data { nix::unistd::fdatasync(file) } else { nix::unistd::fsync(file) };
                self.synced(id, recording, synced.map_err(Into::into));
            }
        }
    }

    fn begin_sync(&mut self, id: &str, file: &impl AsFd, work: Work) -> io::Result<()> {
        // It may be closed meanwhile.
        let file = file.as_fd().try_clone_to_owned()?;
        if self.syncs.is_none() {
            self.syncs = Some(self.watched_syncs()?);
        }
        let Some(syncs) = &self.syncs else { return Err(io::ErrorKind::Unsupported.into()) };
        self.next_sync += 1;
        syncs.begin(file, work, self.next_sync)?;
        self.syncing.insert(self.next_sync, id.to_owned());
        Ok(())
    }

    fn watched_syncs(&mut self) -> io::Result<Syncs> {
        let syncs = Syncs::new()?;
        self.watch(syncs.event(), EpollFlags::EPOLLIN, Source::Synced)?;
        Ok(syncs)
    }

    /// Something has reached the disk, or is unmounted.
    pub(super) fn take_synced(&mut self) {
        for (number, outcome) in self.syncs.as_ref().map(Syncs::finished).unwrap_or_default() {
            let Some(id) = self.syncing.remove(&number) else { continue };
            let recording = self.containers.get_mut(&id).and_then(|c| c.ending.as_mut()?.recording.take());
            if let Some(recording) = recording {
                self.synced(&id, recording, outcome);
            }
        }
        for (number, _) in self.unmounts.as_ref().map(Syncs::finished).unwrap_or_default() {
            if let Some(id) = self.unmounting.remove(&number) {
                self.start_held(&id);
            }
        }
    }

    /// Lets go of a container's mounts. Its end is told already: it must not wait for what the rest of the host has to write.
    fn unmount(&mut self, id: &str, mounts: OwnedFd) {
        if self.unmounts.is_none() {
            // Without, `mounts` is closed here.
            self.unmounts = self.watched_syncs().ok();
        }
        let Some(unmounts) = &self.unmounts else { return };
        self.next_sync += 1;
        if unmounts.begin(mounts, Work::Close, self.next_sync).is_ok() {
            self.unmounting.insert(self.next_sync, id.to_owned());
        }
    }

    /// A stage is over: the next one, or the end is told.
    fn synced(&mut self, id: &str, recording: Recording, outcome: io::Result<()>) {
        let Some(container) = self.containers.get(id) else { return };
        let Recording { exit, stage } = recording;
        let named = outcome.and_then(|()| match stage {
            Stage::Record => {
                record::name_exit(&container.directory)?;
                container.directory.try_clone().map(Some)
            }
            Stage::Name => Ok(None),
        });
        match named {
            Ok(Some(directory)) => self.sync(id, Recording { exit, stage: Stage::Name }, &directory),
            Ok(None) => self.tell_end(id, exit),
            Err(e) => self.not_recorded(id, exit, &e),
        }
    }

    fn not_recorded(&mut self, id: &str, mut exit: ExitRecord, why: &io::Error) {
        exit.error = format!("the exit could not be recorded on disk: {why}");
        self.tell_end(id, exit);
    }

    fn tell_end(&mut self, id: &str, exit: ExitRecord) {
        let mounts = self.containers.remove(id).and_then(|container| container.mounts);
        for (client, _) in self.clients.values_mut() {
            if client.attachment.as_ref().is_some_and(|a| a.container == id) {
                client.notify(Notice::AttachEnded);
                client.closing = true;
            } else if client.subscribed {
                client.notify(Notice::Exited { container: id.to_owned(), exit: exit.clone() });
            }
        }
        if let Some(mounts) = mounts {
            self.unmount(id, mounts);
        }
        if self.scratch.capacity() > READ_STEP {
            self.scratch = Vec::new();
        }
        release_free_memory();
    }

    pub(super) fn exec_ended(&mut self, token: u64) {
        let Some(exec) = self.execs.get(&token) else { return };
        let code = match reap(&exec.pidfd) {
            Ok(Some((code, _))) => code,
            Ok(None) => return,
            Err(_) => 255,
        };
        let Some(exec) = self.execs.remove(&token) else { return };
        self.unwatch(&exec.pidfd, token);
        if let Some((client, _)) = self.clients.get_mut(&exec.owner.0) {
            client.notify(Notice::ExecExited { exec: exec.owner.1, code });
        }
    }
}

impl Container {
    /// What its first process left is being cleared away, which is looked at by the clock.
    pub(super) fn is_being_cleared(&self) -> bool {
        self.ending.as_ref().is_some_and(|ending| ending.recording.is_none())
    }

    pub(super) fn needs_clock(&self) -> bool {
        let waits = |output: &Output| output.look_again.is_some() || output.held_until.is_some();
        self.is_being_cleared() || self.outputs.iter().flatten().any(waits)
    }
}
