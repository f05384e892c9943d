//! Which ids a container with a user namespace of its own gets.
//!
//! They come from 0x70000000..0x7ffe0000, which no distribution gives to anybody (systemd's list of ids calls it unused, and the ids of
//! its own containers end below), or from what /etc/subuid and /etc/subgid both set aside for the name `orch`. Both lie below 2³¹, where
//! `ping_group_range` ends. What the two files give to others is left alone.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::{Containers, EngineError};
use crate::config::{ContainerConfig, IdRange, UserNamespace};

/// Whose entries of /etc/subuid and /etc/subgid are ours.
const NAME: &str = "orch";
/// Where ids come from if there are none.
const POOL: Range<u64> = 0x7000_0000..0x7ffe_0000;
/// Bits above the largest id: as for users of images.
const END: u64 = 1 << 31;

impl Containers {
    /// Gives a configuration that asks for ids some that no other container has. They are taken from now on.
    ///
    /// # Errors
    /// When all are taken.
    pub(super) fn allot(&mut self, config: &mut ContainerConfig, instance: &str) -> Result<(), EngineError> {
        match config.user_namespace {
            UserNamespace::Host => {}
            UserNamespace::Own(ids) => self.take(ids, config)?,
            UserNamespace::Auto => {
                let read = |path| std::fs::read_to_string(path).unwrap_or_default();
                let blocks = blocks(&read("/etc/subuid"), &read("/etc/subgid"));
                let free = from(&blocks, instance).find(|ids| !self.ids.contains_key(&ids.first));
                let ids = free.ok_or_else(|| {
                    EngineError::Conflict(format!(
                        "there are no ids left for another container with `userns_mode: auto`: {} have all of them",
                        self.ids.len()
                    ))
                })?;
                self.ids.insert(ids.first, config.id.clone());
                config.user_namespace = UserNamespace::Own(ids);
            }
        }
        Ok(())
    }

    /// Takes the ids of a container that has some already: one that was read from the disk.
    pub(super) fn take(&mut self, ids: IdRange, config: &ContainerConfig) -> Result<(), EngineError> {
        match self.ids.get(&ids.first) {
            Some(other) if *other != config.id => {
                Err(EngineError::Conflict(format!("the ids from {} on are those of container {other}", ids.first)))
            }
            _ => {
                self.ids.insert(ids.first, config.id.clone());
                Ok(())
            }
        }
    }

    /// Gives the ids of a container back.
    pub(super) fn give_back(&mut self, config: &ContainerConfig) {
        if let Some(ids) = config.user_namespace.ids()
            && self.ids.get(&ids.first) == Some(&config.id)
        {
            self.ids.remove(&ids.first);
        }
    }
}

/// All blocks, lowest first, beginning with one that the instance's name chooses: two agents on one kernel do not know of each other.
fn from<'a>(blocks: &'a [IdRange], instance: &str) -> impl Iterator<Item = IdRange> + 'a {
    // The default instance begins at the beginning.
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(instance));
    let turn = if instance.is_empty() { 0 } else { u32::from_be_bytes([a, b, c, d]) };
    let start = turn as usize % blocks.len().max(1);
    blocks[start..].iter().chain(&blocks[..start]).copied()
}

/// The blocks of 65 536 ids that containers may have, by what the two files say.
fn blocks(subuid: &str, subgid: &str) -> Vec<IdRange> {
    let (users, groups) = (entries(subuid), entries(subgid));
    let of = |list: &[(String, Range<u64>)], ours: bool| -> Vec<Range<u64>> {
        list.iter().filter(|(name, _)| (name == NAME) == ours).map(|(_, range)| range.clone()).collect()
    };
    let (our_users, our_groups) = (of(&users, true), of(&groups, true));
    let own = !our_users.is_empty() || !our_groups.is_empty();
    let (our_users, our_groups) = if own { (our_users, our_groups) } else { (vec![POOL], vec![POOL]) };
    let others: Vec<_> = of(&users, false).into_iter().chain(of(&groups, false)).collect();
    let length = u64::from(IdRange::LENGTH);
    let mut blocks = Vec::new();
    for range in our_users {
        for first in (range.start.max(1)..range.end.min(END)).step_by(IdRange::LENGTH as usize) {
            let end = first + length;
            let inside = |range: &Range<u64>| range.start <= first && end <= range.end;
            let touches = |range: &Range<u64>| range.start < end && first < range.end;
            if end <= range.end.min(END) && our_groups.iter().any(inside) && !others.iter().any(touches) {
                // Below 2³¹.
                blocks.extend(u32::try_from(first).map(|first| IdRange { first }));
            }
        }
    }
    blocks.sort_by_key(|ids| ids.first);
    // Entries may overlap.
    let mut last = 0;
    blocks.retain(|ids| {
        let free = u64::from(ids.first) >= last;
        if free {
            last = u64::from(ids.first) + length;
        }
        free
    });
    blocks
}

/// `name:first:count`, one a line; others are no entries.
fn entries(text: &str) -> Vec<(String, Range<u64>)> {
    let entry = |line: &str| {
        let mut fields = line.trim().split(':');
        let (name, first, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let _: u64 = first;
        Some((name.to_owned(), first..first.checked_add(count)?))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firsts(subuid: &str, subgid: &str) -> Vec<u32> {
        blocks(subuid, subgid).iter().map(|ids| ids.first).collect()
    }

    #[test]
    fn without_entries_the_whole_pool_is_ours() {
        let all = firsts("", "");
        assert_eq!((all.len(), all[0], all[1]), (4094, 0x7000_0000, 0x7001_0000));
        assert_eq!(all.last(), Some(&0x7ffd_0000));
        assert_eq!(firsts("lisa:100000:65536\n# words\n", "nonsense").len(), 4094);
    }

    #[test]
    fn what_is_anothers_is_left_alone() {
        // In the middle of the first block, and the third for groups only.
        let all = firsts("lisa:1879048200:10\n", "bob:1879179264:1\n");
        assert_eq!(&all[..2], [0x7001_0000, 0x7003_0000]);
    }

    #[test]
    fn entries_of_our_name_are_used_where_both_files_have_them() {
        let users = "orch:200000:131072\norch:1000000:65536\n";
        assert_eq!(firsts(users, "orch:200000:131072\norch:2000000:65536\n"), [200_000, 265_536]);
        assert_eq!(firsts(users, ""), [0; 0]);
        assert_eq!(firsts("orch:0:65537\norch:4294900000:70000\n", "orch:0:4294967295\n"), [1]);
        assert_eq!(firsts("orch:200000:65536\norch:200100:65536\n", "orch:0:400000\n"), [200_000]);
    }

    #[test]
    fn instances_begin_elsewhere_and_go_round() {
        let blocks = blocks("", "");
        assert_eq!(from(&blocks, "").next(), Some(blocks[0]));
        let named: Vec<_> = from(&blocks, "second").collect();
        assert_ne!(named[0], blocks[0]);
        assert_eq!(named.len(), blocks.len());
        assert_eq!(from(&blocks, "second").next(), Some(named[0]));
        assert_eq!(from(&[], "second").next(), None);
    }
}
