//! Everything that a runtime could leave on a machine, to be compared before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

use crate::machine::{Machine, Place};

/// What a machine holds, by kind: each thing as a line for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    kinds: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Traces {
    /// Looks at the machine, and for its control groups at all that have `instance` in their path.
    ///
    /// # Errors
    /// When the machine cannot be looked at.
    pub fn of(machine: &Machine, instance: &str) -> Result<Self> {
        let mut traces = Self::default();
        let processes = machine.processes();
        traces.add("process", processes.all().into_iter().map(|pid| format!("{pid}: {}", processes.command(pid))));
        traces.add("mount", mounts(&machine.path("/proc/1/mountinfo"))?);
        let links = machine.run(Place::Host, "ip", &["-brief", "link"])?;
        traces.add("link", links.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned));
        let rules = machine.run(Place::Host, "ip", &["rule"])? + &machine.run(Place::Host, "ip", &["-6", "rule"])?;
        traces.add("routing rule", rules.lines().map(str::to_owned));
        let routes = machine.run(Place::Host, "ip", &["route", "show", "table", "all"])?;
        // Anycast routes come with forwarding, which is turned on for containers and stays on for whoever else relies on it.
        let routes = routes.lines().map(str::trim).filter(|l| !l.starts_with("anycast "));
        traces.add("route", routes.map(str::to_owned));
        traces.add("packet filter", tables(&machine.run(Place::Host, "nft", &["list", "ruleset"])?));
        traces.add("control group", groups(instance));
        traces.add("file in /run", tree(&machine.path("/run")));
        Ok(traces)
    }

    fn add(&mut self, kind: &'static str, lines: impl IntoIterator<Item = String>) {
        self.kinds.entry(kind).or_default().extend(lines);
    }

    /// What is here and was not there before, one a line, except what `allowed` knows.
    #[must_use]
    pub fn beyond(&self, before: &Self, allowed: impl Fn(&str, &str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, things) in &self.kinds {
            let known = before.kinds.get(kind);
            for thing in things.iter().filter(|t| !known.is_some_and(|k| k.contains(*t)) && !allowed(kind, t)) {
                lines.push(format!("{kind} left behind: {thing}"));
            }
        }
        lines
    }

    /// What was there before and is here no more: someone else's property.
    #[must_use]
    pub fn missing(&self, before: &Self) -> Vec<String> {
        // Mounts come into a machine from the host it is on; there, others may remove the folders under them.
        let gone = |kind: &str, thing: &str| {
            kind == "mount" && thing.rsplit_once(" (").is_some_and(|(path, _)| !Path::new(path).exists())
        };
        before.beyond(self, gone).into_iter().map(|l| l.replacen("left behind", "taken away", 1)).collect()
    }
}

/// Mount points with what is mounted there.
fn mounts(mountinfo: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(mountinfo)?;
    let line = |line: &str| {
        let (place, what) = line.split_once(" - ")?;
        let kind = what.split(' ').next()?;
        Some(format!("{} ({kind})", place.split(' ').nth(4)?))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Lines of the rule set, each with its table, so that an element left in a table counts as well as a table.
fn tables(rules: &str) -> Vec<String> {
    let (mut table, mut lines) = (String::new(), Vec::new());
    for line in rules.lines().filter(|l| !l.trim().is_empty() && l.trim() != "}") {
        if line.starts_with("table") {
            table = line.trim_end_matches(" {").to_owned();
            lines.push(table.clone());
        } else {
            lines.push(format!("{table}: {}", line.trim()));
        }
    }
    lines
}

/// Control groups of all hierarchies that the instance's name is part of.
#[must_use]
pub fn groups(instance: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains(instance) {
                    found.push(path.to_string_lossy().into_owned());
                }
                folders.push(path);
            }
        }
    }
    found
}

/// Paths of all that lies below `root`, relative to it; sockets and pipes too. Folders end with `/`.
#[must_use]
pub fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.path().strip_prefix(root).unwrap_or(&entry.path()).to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.push(format!("{name}/"));
                folders.push(entry.path());
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(kind: &'static str, things: &[&str]) -> Traces {
        let mut traces = Traces::default();
        traces.add(kind, things.iter().map(|t| (*t).to_owned()));
        traces
    }

    #[test]
    fn what_is_new_or_gone_is_told_with_its_kind() {
        let (before, after) = (traces("link", &["lo", "eth0"]), traces("link", &["lo", "orb-1"]));
        assert_eq!(after.beyond(&before, |_, _| false), ["link left behind: orb-1"]);
        assert_eq!(after.missing(&before), ["link taken away: eth0"]);
        assert!(after.beyond(&before, |kind, thing| kind == "link" && thing.starts_with("orb-")).is_empty());
    }

    #[test]
    fn an_element_left_in_a_map_is_a_line_of_its_own() {
        let rules = "table inet orch {\n\tmap ports {\n\t\ttype inet_service : ipv4_addr\n\t\telements = { 80 : 10.0.0.2 }\n\t}\n}\n";
        assert!(tables(rules).contains(&"table inet orch: elements = { 80 : 10.0.0.2 }".to_owned()));
    }
}
