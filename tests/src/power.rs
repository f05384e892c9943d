//! A machine loses its power and is booted again: its disk is all that it keeps.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{Host, RUN};
use crate::machine::Place;
use crate::traces;
use crate::wait::until;

/// What the kernel forgets: mounts, files in memory, links and packet filters; and another id of the boot.
const BOOT: &str = r#"
for place in $(awk '{print $5}' /proc/self/mountinfo | grep -e "^@RUN/" -e "^@DATA/" | sort -r); do umount -l "$place" 2>/dev/null || true; done
rm -rf @RUN
for link in $(ip -o link | sed -n 's/^[0-9]*: \([^:@]*\).*/\1/p'); do
    case $link in lo | lan0 | eth0) ;; *) ip link delete "$link" 2>/dev/null || true ;; esac
done
nft list tables | while read -r table; do nft delete "$table" 2>/dev/null || true; done
umount /proc/sys/kernel/random/boot_id 2>/dev/null || true
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
"#;

impl Host {
    /// Ends everything of orch at once and has the machine forget what no disk keeps. Start the agent to go on.
    ///
    /// # Panics
    /// When something does not end.
    #[track_caller]
    pub fn lose_power(&self) {
        let ours = self.agents().into_iter().chain(self.shims()).map(|process| process.pid);
        // Numbers are found first, so that all end in the same moment.
        let mut all: Vec<i32> = ours.filter_map(|pid| self.outer(pid)).collect();
        for group in traces::groups(self.instance()) {
            let members = std::fs::read_to_string(format!("{group}/cgroup.procs")).unwrap_or_default();
            all.extend(members.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        for pid in all {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // Only groups without processes can be removed.
        until(Duration::from_secs(20), "all control groups of orch are gone", || {
            let mut groups = traces::groups(self.instance());
            groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
            groups.iter().for_each(|group| drop(std::fs::remove_dir(group)));
            traces::groups(self.instance()).is_empty()
        });
        let data = self.data().display().to_string();
        self.sh(Place::Host, &BOOT.replace("@RUN", RUN).replace("@DATA", &data));
    }
}
