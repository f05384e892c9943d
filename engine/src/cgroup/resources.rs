//! Limits, lowered to the files of v1 and v2. Nothing is written here; block devices are looked up by path.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Setting;
use super::layout::{CgroupError, Layout};
use crate::config::{BlkioLimit, Resources};

/// The default CFS period in µs, the kernel's own.
const PERIOD: u64 = 100_000;

/// Docker's floor: less does not even hold a shell, and the child is killed while it starts.
const MIN_MEMORY: u64 = 6 << 20;

/// The files to write for these limits, in order.
///
/// # Errors
/// [`CgroupError::NoController`] for a limit that this host cannot enforce, [`CgroupError::Limit`] for one that makes no sense,
/// [`CgroupError::Read`] for a block device that is none.
pub fn settings(resources: &Resources, layout: &Layout) -> Result<Vec<Setting>, CgroupError> {
    let mut lowering = Lowering { layout, settings: Vec::new() };
    lowering.memory(resources)?;
    lowering.cpu(resources)?;
    lowering.cpuset(resources)?;
    lowering.pids(resources)?;
    lowering.io(resources)?;
    Ok(lowering.settings)
}

struct Lowering<'a> {
    layout: &'a Layout,
    settings: Vec<Setting>,
}

/// Where a controller is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Lowering<'_> {
    fn version(&self, what: &str, v1: &'static str, v2: &'static str) -> Result<Version, CgroupError> {
        if self.layout.v1_of(v1).is_some() {
            Ok(Version::One)
        } else if self.layout.v2_has(v2) {
            Ok(Version::Two)
        } else {
            Err(CgroupError::NoController { what: what.to_owned(), controller: v2 })
        }
    }

    fn push(&mut self, controller: &str, file: &str, value: impl ToString, optional: bool) {
        let (controller, file) = (controller.to_owned(), file.to_owned());
        self.settings.push(Setting { controller, file, value: value.to_string(), optional });
    }

    fn memory(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        let limit = resources.memory.filter(|limit| *limit > 0);
        if let Some(limit) = limit {
            if limit < MIN_MEMORY {
                return refuse("memory", format!("{limit} bytes are below the minimum of 6 MiB"));
            }
            // Twice the memory unless said otherwise: as much swap as memory.
            let total = match resources.memory_swap.filter(|swap| *swap != 0) {
                None => i64::try_from(limit.saturating_mul(2)).unwrap_or(-1),
                Some(-1) => -1,
                Some(total) if u64::try_from(total).is_ok_and(|total| total >= limit) => total,
                Some(total) => {
                    return refuse("memory_swap", format!("{total} is below the memory limit {limit}; it counts both"));
                }
            };
            match self.version("a memory limit", "memory", "memory")? {
                Version::One => {
                    self.push("memory", "memory.limit_in_bytes", limit, false);
                    // Missing when the kernel does not account swap.
                    self.push("memory", "memory.memsw.limit_in_bytes", total, true);
                }
                Version::Two => {
                    let swap =
                        u64::try_from(total).map_or_else(|_| "max".to_owned(), |total| (total - limit).to_string());
                    self.push("", "memory.swap.max", swap, true);
                    self.push("", "memory.max", limit, false);
                }
            }
        }
        if let Some(reservation) = resources.memory_reservation.filter(|reservation| *reservation > 0) {
            if limit.is_some_and(|limit| reservation > limit) {
                return refuse("memory_reservation", format!("{reservation} is above the memory limit"));
            }
            match self.version("a memory reservation", "memory", "memory")? {
                Version::One => self.push("memory", "memory.soft_limit_in_bytes", reservation, false),
                Version::Two => self.push("", "memory.low", reservation, false),
            }
        }
        // v2 has neither; the stack file's reader says so.
        if self.layout.v1_of("memory").is_some() {
            if let Some(swappiness) = resources.memory_swappiness {
                if swappiness > 100 {
                    return refuse("memory_swappiness", format!("{swappiness} is not within 0..100"));
                }
                self.push("memory", "memory.swappiness", swappiness, true);
            }
            if resources.oom_kill_disable {
                self.push("memory", "memory.oom_control", 1, false);
            }
        }
        Ok(())
    }

    fn cpu(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
            match self.version("a CPU weight", "cpu", "cpu")? {
                Version::One => self.push("cpu", "cpu.shares", shares.clamp(2, 262_144), false),
                Version::Two => self.push("", "cpu.weight", weight(shares), false),
            }
        }
        let (period, quota) = match resources.nano_cpus.filter(|cpus| *cpus > 0) {
            Some(_) if resources.cpu_quota.is_some() || resources.cpu_period.is_some() => {
                return refuse(
                    "cpus",
                    "it cannot be combined with a CPU period or quota, which say the same".to_owned(),
                );
            }
            // A billionth of a CPU is a ten-thousandth of a µs of the period; the kernel takes no quota below 1000 µs.
            Some(cpus) => (Some(PERIOD), Some(i64::try_from(cpus / 10_000).unwrap_or(i64::MAX).max(1000))),
            None => {
                (resources.cpu_period.filter(|period| *period > 0), resources.cpu_quota.filter(|quota| *quota != 0))
            }
        };
        if period.is_none() && quota.is_none() {
            return Ok(());
        }
        if let Some(period) = period.filter(|period| !(1000..=1_000_000).contains(period)) {
            return refuse("cpu_period", format!("{period} µs is not within 1000..1000000"));
        }
        if let Some(quota) = quota.filter(|quota| *quota != -1 && *quota < 1000) {
            return refuse("cpu_quota", format!("{quota} µs is below 1000"));
        }
        match self.version("a CPU limit", "cpu", "cpu")? {
            Version::One => {
                if let Some(period) = period {
                    self.push("cpu", "cpu.cfs_period_us", period, false);
                }
                if let Some(quota) = quota {
                    self.push("cpu", "cpu.cfs_quota_us", quota, false);
                }
            }
            Version::Two => {
                let quota =
                    quota.filter(|quota| *quota > 0).map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                self.push("", "cpu.max", format!("{quota} {}", period.unwrap_or(PERIOD)), false);
            }
        }
        Ok(())
    }

    fn cpuset(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        let Some(set) = resources.cpuset.as_deref().filter(|set| !set.is_empty()) else { return Ok(()) };
        let range = |word: &str| {
            word.split('-').all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        if !set.split(',').all(range) {
            return refuse("cpuset", format!("{set:?} is not a list such as `0-3,5`"));
        }
        // The kernel's answer to a processor that is not there is a number, and under cgroup v2 silence.
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
        if let (Some(last), Some(wanted)) = (last_processor(&online), last_processor(set))
            && wanted > last
        {
            return refuse("cpuset", format!("there is no processor {wanted}: this host has {}", online.trim()));
        }
        match self.version("a CPU set", "cpuset", "cpuset")? {
            Version::One => self.push("cpuset", "cpuset.cpus", set, false),
            Version::Two => self.push("", "cpuset.cpus", set, false),
        }
        Ok(())
    }

    fn pids(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        let Some(limit) = resources.pids else { return Ok(()) };
        // Docker's reading: nothing and less is unlimited, which a new group is anyway.
        if limit <= 0 {
            return Ok(());
        }
        match self.version("a limit of processes", "pids", "pids")? {
            Version::One => self.push("pids", "pids.max", limit, false),
            Version::Two => self.push("", "pids.max", limit, false),
        }
        Ok(())
    }

    fn io(&mut self, resources: &Resources) -> Result<(), CgroupError> {
        if let Some(value) = resources.blkio_weight.filter(|weight| *weight > 0) {
            if !(10..=1000).contains(&value) {
                return refuse("blkio_weight", format!("{value} is not within 10..1000"));
            }
            // Either file is there or not with the I/O scheduler; a weight is a wish.
            match self.version("an I/O weight", "blkio", "io")? {
                Version::One => {
                    self.push("blkio", "blkio.bfq.weight", value, true);
                    self.push("blkio", "blkio.weight", value, true);
                }
                Version::Two => {
                    self.push("", "io.bfq.weight", value, true);
                    self.push("", "io.weight", 1 + (u32::from(value) - 10) * 9999 / 990, true);
                }
            }
        }
        for limit in &resources.blkio {
            let device = block_device(limit)?;
            let version = self.version("an I/O limit", "blkio", "io")?;
            let (v1, v2) = match limit.kind.as_str() {
                "read_bps" => ("blkio.throttle.read_bps_device", "rbps"),
                "write_bps" => ("blkio.throttle.write_bps_device", "wbps"),
                "read_iops" => ("blkio.throttle.read_iops_device", "riops"),
                "write_iops" => ("blkio.throttle.write_iops_device", "wiops"),
                "weight" => {
                    let value = format!("{device} {}", limit.value);
                    match version {
                        Version::One => self.push("blkio", "blkio.weight_device", value, true),
                        Version::Two => self.push("", "io.bfq.weight", value, true),
                    }
                    continue;
                }
                other => return refuse("blkio", format!("{other:?} is not a limit of a block device")),
            };
            match version {
                Version::One => self.push("blkio", v1, format!("{device} {}", limit.value), false),
                Version::Two => self.push("", "io.max", format!("{device} {v2}={}", limit.value), false),
            }
        }
        Ok(())
    }
}

/// The highest number of a list such as `0-3,5`.
fn last_processor(list: &str) -> Option<u32> {
    list.trim().split([',', '-']).filter_map(|number| number.parse().ok()).max()
}

fn refuse<T>(limit: &'static str, problem: String) -> Result<T, CgroupError> {
    Err(CgroupError::Limit { limit, problem })
}

/// `major:minor` of a block device.
fn block_device(limit: &BlkioLimit) -> Result<String, CgroupError> {
    let path = Path::new(&limit.path);
    let failed = |source| CgroupError::Read { path: PathBuf::from(path), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.file_type().is_block_device() {
        return refuse("blkio", format!("{} is not a block device", path.display()));
    }
    Ok(format!("{}:{}", libc::major(metadata.rdev()), libc::minor(metadata.rdev())))
}

/// v1's shares (2..262144, usual 1024) as v2's weight (1..10000, usual 100): a curve through the three fixed points, as runc 1.3.2 and
/// crun 1.23 compute it; the straight line used before gave 1024 only 39.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cgroup::Hierarchy;

    fn v2() -> Layout {
        let controllers = ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_owned).into();
        Layout {
            v2: Some(Hierarchy { mount: "/sys/fs/cgroup".into(), base: String::new(), controllers }),
            v1: Vec::new(),
        }
    }

    fn v1() -> Layout {
        let hierarchy = |name: &str| Hierarchy {
            mount: Path::new("/sys/fs/cgroup").join(name),
            base: String::new(),
            controllers: name.split(',').map(str::to_owned).collect(),
        };
        Layout {
            v2: Some(Hierarchy {
                mount: "/sys/fs/cgroup/unified".into(),
                base: String::new(),
                controllers: BTreeSet::new(),
            }),
            v1: ["cpu,cpuacct", "cpuset", "memory", "pids", "blkio"].map(hierarchy).to_vec(),
        }
    }

    /// One line a setting.
    fn lines(resources: &Resources, layout: &Layout) -> Vec<String> {
        let line = |setting: Setting| {
            format!("{}={}{}", setting.file, setting.value, if setting.optional { " ?" } else { "" })
        };
        settings(resources, layout).unwrap().into_iter().map(line).collect()
    }

    #[test]
    fn weights_follow_the_published_vectors() {
        let vectors = [
            (2, 1),
            (102, 17),
            (256, 35),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (4096, 303),
            (8192, 532),
            (262_144, 10_000),
        ];
        for (shares, expected) in vectors {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn every_limit_has_its_file_on_both_versions() {
        let resources = Resources {
            nano_cpus: Some(1_500_000_000),
            cpu_shares: Some(512),
            cpuset: Some("0-1".to_owned()),
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            memory_reservation: Some(32 << 20),
            pids: Some(50),
            blkio_weight: Some(10),
            ..Resources::default()
        };
        assert_eq!(
            lines(&resources, &v2()),
            [
                "memory.swap.max=33554432 ?",
                "memory.max=67108864",
                "memory.low=33554432",
                "cpu.weight=59",
                "cpu.max=150000 100000",
                "cpuset.cpus=0-1",
                "pids.max=50",
                "io.bfq.weight=10 ?",
                "io.weight=1 ?",
            ]
        );
        assert_eq!(
            lines(&resources, &v1()),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=100663296 ?",
                "memory.soft_limit_in_bytes=33554432",
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=150000",
                "cpuset.cpus=0-1",
                "pids.max=50",
                "blkio.bfq.weight=10 ?",
                "blkio.weight=10 ?",
            ]
        );
    }

    #[test]
    fn swap_is_what_is_left_of_the_sum() {
        let with = |swap| Resources { memory: Some(64 << 20), memory_swap: swap, ..Resources::default() };
        assert_eq!(lines(&with(None), &v2())[0], "memory.swap.max=67108864 ?");
        assert_eq!(lines(&with(Some(64 << 20)), &v2())[0], "memory.swap.max=0 ?");
        assert_eq!(lines(&with(Some(-1)), &v2())[0], "memory.swap.max=max ?");
        assert!(settings(&with(Some(32 << 20)), &v2()).is_err());
    }

    #[test]
    fn a_limit_that_the_host_cannot_enforce_is_refused() {
        let bare = Layout { v2: v1().v2, v1: Vec::new() };
        let error = settings(&Resources { memory: Some(64 << 20), ..Resources::default() }, &bare).unwrap_err();
        assert_eq!(error.to_string(), "a memory limit needs the memory controller, which this host does not have");
    }
}
