//! Starts many containers, one after the other, and prints where the time goes: median of each part in µs.
//!
//! `launch_times [COUNT]` as root, with /bin/busybox (busybox-static).

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use orch_engine::cgroup::Layout;
use orch_engine::config::{ContainerConfig, ContainerId, NetworkNs, Seccomp, Share};
use orch_engine::runtime::{Launcher, PrepareContext, Stdio, prepare};

fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(200), |text| text.parse())?;
    let root = std::env::temp_dir().join(format!("orch-launch-times-{}", std::process::id()));
    let result = measure(&root, count);
    fs::remove_dir_all(&root)?;
    result
}

/// A change to the configuration that takes one part away.
type Variant = (&'static str, fn(&mut ContainerConfig, &mut PrepareContext));

fn measure(root: &Path, count: usize) -> Result<(), Box<dyn Error>> {
    for name in ["image/bin", "image/proc", "image/dev", "image/sys", "image/etc", "mountpoint"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("image/bin/busybox"))?;
    symlink("busybox", root.join("image/bin/true"))?;
    let variants: [Variant; 7] = [
        ("default", |_, _| {}),
        ("host network", |config, _| config.namespaces.network = NetworkNs::Host),
        ("host ipc", |config, _| config.namespaces.ipc = Share::Host),
        ("no filter", |config, _| config.process.seccomp = Seccomp::Unconfined),
        ("no masks", |config, _| config.systempaths_unconfined = true),
        ("v2 groups only", |_, context| context.layout.v1.clear()),
        ("reaper", |config, _| config.init = true),
    ];
    say(format_args!(
        "{:14} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "µs, median", "prepare", "cgroup", "compile", "clone", "child", "start", "remove"
    ))?;
    for (name, change) in variants {
        let mut samples: Vec<[Duration; 7]> = Vec::new();
        let mut launcher = Launcher::unsealed()?;
        for number in 0..count {
            samples.push(once(root, number, &mut launcher, change)?);
        }
        let median = |column: usize| {
            let mut values: Vec<_> = samples.iter().map(|sample| sample[column].as_micros()).collect();
            values.sort_unstable();
            values[values.len() / 2]
        };
        let [a, b, c, d, e, f, g] = std::array::from_fn(median);
        say(format_args!("{name:14} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8} {f:>8} {g:>8}"))?;
    }
    Ok(())
}

fn say(line: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{line}")
}

fn once(
    root: &Path,
    number: usize,
    launcher: &mut Launcher,
    change: fn(&mut ContainerConfig, &mut PrepareContext),
) -> Result<[Duration; 7], Box<dyn Error>> {
    // A fresh layer each time, as for a new container.
    let (upper, work) = (root.join("upper"), root.join("work"));
    for directory in [&upper, &work] {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir(directory)?;
    }
    let mut context = PrepareContext {
        instance: format!("launch-times-{}", std::process::id()),
        lower: vec![root.join("image")],
        init_layer: None,
        upper,
        work,
        mountpoint: root.join("mountpoint"),
        hosts: None,
        resolv_conf: None,
        hostname: None,
        files: None,
        volumes: BTreeMap::new(),
        containers: BTreeMap::new(),
        layout: Layout::detect()?,
    };
    let mut config = config(number);
    change(&mut config, &mut context);
    let begin = Instant::now();
    let plan = prepare(&config, &context)?;
    let prepared = begin.elapsed();
    let launched = launcher.launch(&plan, Stdio::null())?;
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(launched.pid), None)?;
    let begin = Instant::now();
    launched.cgroup.remove()?;
    let times = launched.times;
    let start = prepared + times.cgroup + times.compile + times.clone + times.child;
    Ok([prepared, times.cgroup, times.compile, times.clone, times.child, start, begin.elapsed()])
}

fn config(number: usize) -> ContainerConfig {
    let id = ContainerId(format!("{number:064x}").chars().rev().collect());
    ContainerConfig { group: "group".to_owned(), ..ContainerConfig::new(id, "measured", &["/bin/true"]) }
}
