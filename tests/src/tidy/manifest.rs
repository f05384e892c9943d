//! Which crate may depend on which: the arrows of the house, and the purity of its pure crates.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Our crates and the ones of ours that each may name in its manifest, as any kind of dependency. Everything else is forbidden.
pub const ARROWS: &[(&str, &[&str])] = &[
    ("orch-spec", &[]),
    ("orch-core", &["orch-spec"]),
    ("orch-api", &["orch-spec"]),
    ("orch-scheduler", &["orch-core", "orch-api", "orch-spec"]),
    ("orch-engine", &[]),
    ("orch-netd", &[]),
    ("orch-agent", &["orch-engine", "orch-netd", "orch-api", "orch-spec"]),
    ("orch", &["orch-agent", "orch-api", "orch-core", "orch-engine", "orch-netd", "orch-scheduler", "orch-spec"]),
    // Scenarios see the product as a user does, through its binary.
    ("orch-tests", &[]),
];

/// The crates that must be pure: text and values in, values out.
pub const PURE: &[&str] = &["orch-spec", "orch-core"];

/// What makes a crate impure: an executor, system calls, sockets, the raft library. Direct or not.
pub const IMPURE: &[&str] = &[
    "async-io",
    "async-std",
    "hyper",
    "libc",
    "mio",
    "nix",
    "polling",
    "raft",
    "reqwest",
    "rtnetlink",
    "rustix",
    "smol",
    "socket2",
    "tokio",
    "ureq",
];

/// One package of the workspace.
#[derive(Debug, Clone, Default)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// What its manifest names, dev and build dependencies included.
    pub dependencies: BTreeSet<String>,
}

/// Dependencies by package, of the whole graph, without dev-dependencies of packages that are not ours.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// Reads every manifest of the workspace at `root`.
///
/// # Errors
/// When cargo cannot read them.
pub fn packages(root: &Path) -> Result<Vec<Package>> {
    let metadata = metadata(root, &["--no-deps"])?;
    let mut packages = Vec::new();
    for package in array(&metadata["packages"]) {
        let dependencies = array(&package["dependencies"]).iter().map(|d| text(&d["name"])).collect();
        packages.push(Package { name: text(&package["name"]), dependencies });
    }
    Ok(packages)
}

/// Reads the resolved graph of the workspace at `root`: what is really linked in, dev-dependencies left out.
///
/// # Errors
/// When cargo cannot resolve it from Cargo.lock.
pub fn graph(root: &Path) -> Result<Graph> {
    let metadata = metadata(root, &["--locked", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"])?;
    let names: BTreeMap<String, String> =
        array(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let name = |id: &Value| names.get(&text(id)).cloned().unwrap_or_default();
    let mut graph = Graph::new();
    for node in array(&metadata["resolve"]["nodes"]) {
        let linked = |d: &&Value| array(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null());
        let dependencies = array(&node["deps"]).iter().filter(linked).map(|d| name(&d["pkg"])).collect::<BTreeSet<_>>();
        graph.entry(name(&node["id"])).or_default().extend(dependencies);
    }
    Ok(graph)
}

fn metadata(root: &Path, arguments: &[&str]) -> Result<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .args(arguments)
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("read cargo's metadata")
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Arrows that the house forbids, and crates that it does not know.
#[must_use]
pub fn forbidden_arrows(packages: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    let ours: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    for package in packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            findings.push(format!(
                "{}: a crate that the table of arrows does not know; give it a place in the house",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| ours.contains(d.as_str())) {
            if !allowed.contains(&dependency.as_str()) && *dependency != package.name {
                findings.push(format!("{} → {dependency}: a forbidden arrow", package.name));
            }
        }
    }
    findings
}

/// Paths by which a pure crate reaches something impure.
#[must_use]
pub fn impurities(graph: &Graph) -> Vec<String> {
    let mut findings = Vec::new();
    for pure in PURE {
        if !graph.contains_key(*pure) {
            findings.push(format!("{pure}: is not in the graph, so its purity cannot be seen"));
        }
        let mut seen = BTreeSet::new();
        let mut queue = vec![vec![*pure]];
        while let Some(path) = queue.pop() {
            let last = path.last().copied().unwrap_or_default();
            for next in graph.get(last).into_iter().flatten() {
                let path = [path.as_slice(), &[next.as_str()]].concat();
                if IMPURE.contains(&next.as_str()) {
                    findings.push(format!("{}: {pure} must stay pure", path.join(" → ")));
                } else if seen.insert(next.as_str()) {
                    queue.push(path);
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        Package { name: name.to_owned(), dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect() }
    }

    fn node(name: &str, dependencies: &[&str]) -> (String, BTreeSet<String>) {
        (name.to_owned(), dependencies.iter().map(|d| (*d).to_owned()).collect())
    }

    #[test]
    fn the_arrows_of_the_house_are_allowed() {
        let packages =
            [package("orch-spec", &["serde"]), package("orch-core", &["orch-spec"]), package("orch", &["orch-core"])];
        assert_eq!(forbidden_arrows(&packages), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_upwards_and_one_between_neighbours_are_found() {
        let packages = [
            package("orch-spec", &["orch-core"]),
            package("orch-core", &[]),
            package("orch-engine", &["orch-netd"]),
            package("orch-netd", &[]),
        ];
        let found = ["orch-spec → orch-core: a forbidden arrow", "orch-engine → orch-netd: a forbidden arrow"];
        assert_eq!(forbidden_arrows(&packages), found);
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        assert_eq!(forbidden_arrows(&[package("orch-helpers", &[])]).len(), 1);
    }

    #[test]
    fn manifests_are_read_with_their_dev_dependencies() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"spec\", \"netd\"]\n");
        let head = |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
        write(
            "spec/Cargo.toml",
            &format!("{}[dev-dependencies]\norch-netd = {{ path = \"../netd\" }}\n", head("orch-spec")),
        );
        write("netd/Cargo.toml", &head("orch-netd"));
        write("spec/src/lib.rs", "");
        write("netd/src/lib.rs", "");
        let found = forbidden_arrows(&packages(root.path()).unwrap());
        assert_eq!(found, ["orch-spec → orch-netd: a forbidden arrow"]);
    }

    #[test]
    fn an_impurity_behind_two_others_is_found_with_its_path() {
        let graph = Graph::from([
            node("orch-spec", &["parser"]),
            node("orch-core", &[]),
            node("parser", &["io"]),
            node("io", &["mio"]),
        ]);
        assert_eq!(impurities(&graph), ["orch-spec → parser → io → mio: orch-spec must stay pure"]);
    }

    #[test]
    fn a_pure_crate_that_is_not_there_is_no_proof() {
        assert_eq!(impurities(&Graph::from([node("orch-core", &[])])).len(), 1);
    }
}
