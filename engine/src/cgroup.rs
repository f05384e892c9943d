//! Control groups: where a container's processes are counted, limited, frozen and killed.
//!
//! Three kinds of hosts: v2 alone (today's distributions), v1 alone, and hybrid, where controllers sit on v1 mounts and a v2 tree
//! without controllers lies beside them, good for placing, freezing and killing. A [`Layout`] says which this is; a [`Cgroup`] is one
//! container's group in all of its hierarchies.

mod group;
mod layout;
mod resources;

pub use group::{Cgroup, Stats};
pub use layout::{CgroupError, Hierarchy, Layout};
pub use resources::settings;

use serde::{Deserialize, Serialize};

/// One value written to one file of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The controller, in v1's words on v1 (`memory`, `cpu`), `""` for cgroup v2.
    pub controller: String,
    /// The file.
    pub file: String,
    /// What is written.
    pub value: String,
    /// A kernel without the file is fine.
    pub optional: bool,
}

/// One rule of a device filter: it allows; what no rule allows is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceRule {
    /// `'a'` (all), `'b'` or `'c'`.
    pub kind: char,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// Bits: 1 mknod, 2 read, 4 write (the kernel's BPF_DEVCG_ACC_*).
    pub access: u8,
}

/// One container's group, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// The host's hierarchies.
    pub layout: Layout,
    /// The group's path below each hierarchy's base, without a leading slash.
    pub path: String,
    /// Limits, in the order in which they are written.
    pub settings: Vec<Setting>,
    /// Device rules; `None`: every device.
    pub devices: Option<Vec<DeviceRule>>,
}

impl std::fmt::Display for DeviceRule {
    /// As v1's `devices.allow` takes it: `c 1:3 rwm`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        write!(f, "{} {}:{} ", self.kind, number(self.major), number(self.minor))?;
        let words = [(2, "r"), (4, "w"), (1, "m")];
        words.iter().filter(|(bit, _)| self.access & bit != 0).try_for_each(|(_, word)| f.write_str(word))
    }
}

impl std::str::FromStr for DeviceRule {
    type Err = String;

    /// Parses `c 1:3 rwm`, numbers or `*`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a device rule; write it as `c 1:3 rwm`");
        let [kind, numbers, access] = text.split(' ').collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
        let number = |word: &str| if word == "*" { Ok(None) } else { word.parse().map(Some).map_err(|_| wrong()) };
        let kind = match kind {
            "a" => 'a',
            "b" => 'b',
            "c" => 'c',
            _ => return Err(wrong()),
        };
        Ok(Self { kind, major: number(major)?, minor: number(minor)?, access: access_bits(access).ok_or_else(wrong)? })
    }
}

/// `rwm` as bits; `None` for anything else or nothing.
pub(crate) fn access_bits(text: &str) -> Option<u8> {
    let bit = |letter| match letter {
        'm' => Some(1),
        'r' => Some(2),
        'w' => Some(4),
        _ => None,
    };
    text.chars().try_fold(0, |bits, letter| bit(letter).map(|bit| bits | bit)).filter(|bits| *bits != 0)
}
