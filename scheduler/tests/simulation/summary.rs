//! What runs have seen, so that they mean something.

use std::ops::AddAssign;

/// What has happened in a run, or in many.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) events: u64,
    pub(crate) acknowledged: u64,
    pub(crate) reads: u64,
    pub(crate) leaders: u64,
    pub(crate) power_losses: u64,
    pub(crate) kills: u64,
    pub(crate) lost_messages: u64,
    pub(crate) restored: u64,
    pub(crate) stored: u64,
    pub(crate) added: u64,
    pub(crate) removed: u64,
    pub(crate) promoted: u64,
    pub(crate) damaged: u64,
    pub(crate) full: u64,
    pub(crate) failed_syncs: u64,
    pub(crate) live: u64,
    pub(crate) sessions: u64,
    pub(crate) reports: u64,
    pub(crate) used: u64,
    pub(crate) accidents: u64,
    pub(crate) marked: u64,
    pub(crate) rested: u64,
    pub(crate) returned: u64,
    pub(crate) led_on: u64,
    pub(crate) sums: u64,
    pub(crate) damaged_snapshots: u64,
    pub(crate) followed: u64,
    pub(crate) attached: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        let Self { events, acknowledged, reads, leaders, power_losses, kills, lost_messages, restored, .. } = other;
        self.events += events;
        self.acknowledged += acknowledged;
        self.reads += reads;
        self.leaders += leaders;
        self.power_losses += power_losses;
        self.kills += kills;
        self.lost_messages += lost_messages;
        self.restored += restored;
        let Self { stored, added, removed, promoted, damaged, full, failed_syncs, live, .. } = other;
        self.stored += stored;
        self.added += added;
        self.removed += removed;
        self.promoted += promoted;
        self.damaged += damaged;
        self.full += full;
        self.failed_syncs += failed_syncs;
        self.live += live;
        let Self { sessions, reports, used, accidents, marked, rested, returned, led_on, sums, .. } = other;
        self.sessions += sessions;
        self.reports += reports;
        self.used += used;
        self.accidents += accidents;
        self.marked += marked;
        self.rested += rested;
        self.returned += returned;
        self.led_on += led_on;
        self.sums += sums;
        let Self { damaged_snapshots, followed, attached, skipped, .. } = other;
        self.damaged_snapshots += damaged_snapshots;
        self.followed += followed;
        self.attached += attached;
        self.skipped += skipped;
    }
}
