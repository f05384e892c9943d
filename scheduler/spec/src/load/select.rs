//! Profiles, services named on the command line, and resources that nothing uses.

use super::Loader;
use super::discover::Project;
use crate::check::suggest;
use crate::code;
use crate::model::{MountSource, StackSpec};
use crate::node::{Map, Node};
use crate::problem::Problem;
use crate::span::Span;
use std::collections::{BTreeMap, BTreeSet};

/// A service that no active profile turns on.
#[derive(Debug)]
pub(crate) struct Inactive {
    pub(crate) key: Span,
    pub(crate) profiles: Vec<String>,
}

impl Loader<'_> {
    /// Takes away the services that are not on, and says which those were.
    pub(super) fn apply_profiles(&mut self, stack: &mut Node, project: &Project) -> BTreeMap<String, Inactive> {
        let mut active: Vec<&str> = self.request.profiles.iter().map(String::as_str).collect();
        if active.is_empty() {
            active = project.environment.get("COMPOSE_PROFILES").into_iter().flat_map(|list| list.split(',')).collect();
        }
        let named = &self.request.services;
        let mut inactive = BTreeMap::new();
        if let Some(services) = stack.get_mut("services").and_then(Node::as_map_mut) {
            services.retain(|name, entry| {
                let profiles: Vec<String> = entry
                    .node
                    .get("profiles")
                    .map(Node::items)
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|node| node.as_text().map(str::to_owned))
                    .collect();
                let on = profiles.is_empty()
                    || active.contains(&"*")
                    || profiles.iter().any(|profile| active.contains(&profile.as_str()))
                    || named.iter().chain(&self.request.enabled).any(|service| **service == **name);
                if !on {
                    inactive.insert(name.to_string(), Inactive { key: entry.key, profiles });
                }
                on
            });
        }
        inactive
    }

    /// Keeps the services that the command line names, and what they depend on.
    pub(super) fn select(&mut self, stack: &mut Node) {
        if self.request.services.is_empty() {
            return;
        }
        let Some(services) = stack.get("services").and_then(Node::as_map) else { return };
        let mut keep: BTreeSet<String> = BTreeSet::new();
        let mut open: Vec<String> = Vec::new();
        for name in &self.request.services {
            if services.contains_key(name.as_str()) {
                open.push(name.clone());
            } else {
                let names: Vec<&str> = services.keys().map(|name| &**name).collect();
                let mut problem = Problem::error(code::SELECTION, format!("no such service: {name}"))
                    .note(format!("services: {}", names.join(", ")));
                problem.hint = suggest(name, names.into_iter());
                self.report.add(problem);
            }
        }
        while let Some(name) = open.pop() {
            if !keep.insert(name.clone()) || !self.request.with_dependencies {
                continue;
            }
            let dependencies = services.get(name.as_str()).and_then(|entry| entry.node.get("depends_on"));
            open.extend(
                dependencies
                    .into_iter()
                    .flat_map(Node::entries)
                    .map(|(name, _)| name.to_string())
                    .filter(|name| services.contains_key(name.as_str())),
            );
        }
        if let Some(services) = stack.get_mut("services").and_then(Node::as_map_mut) {
            let services: &mut Map = services;
            services.retain(|name, _| keep.contains(&**name));
            if !self.request.with_dependencies {
                for entry in services.values_mut() {
                    if let Some(dependencies) = entry.node.get_mut("depends_on").and_then(Node::as_map_mut) {
                        dependencies.retain(|name, _| keep.contains(&**name));
                    }
                }
            }
        }
    }
}

/// Takes away dependencies that may be missing and are off.
pub(super) fn drop_optional(stack: &mut Node, inactive: &BTreeMap<String, Inactive>) {
    for entry in stack.get_mut("services").and_then(Node::as_map_mut).into_iter().flat_map(Map::values_mut) {
        if let Some(dependencies) = entry.node.get_mut("depends_on").and_then(Node::as_map_mut) {
            dependencies.retain(|name, _| !inactive.contains_key(&**name));
        }
    }
}

/// Takes away networks, volumes, secrets and configs that no service uses.
pub(super) fn prune(spec: &mut StackSpec) {
    let services = || spec.services.values();
    let networks: BTreeSet<&str> = services().flat_map(|service| service.networks.keys()).map(String::as_str).collect();
    let secrets: BTreeSet<&str> =
        services().flat_map(|service| &service.secrets).map(|grant| grant.source.as_str()).collect();
    let configs: BTreeSet<&str> =
        services().flat_map(|service| &service.configs).map(|grant| grant.source.as_str()).collect();
    let volumes: BTreeSet<&str> = services()
        .flat_map(|service| &service.volumes)
        .filter_map(|mount| match &mount.source {
            MountSource::Volume { name: Some(name), .. } => Some(name.as_str()),
            MountSource::Other { source, .. } => Some(source.as_str()),
            _ => None,
        })
        .collect();
    spec.networks.retain(|key, _| networks.contains(key.as_str()));
    spec.volumes.retain(|key, _| volumes.contains(key.as_str()));
    // Secrets of a build are used by the client only.
    spec.secrets.retain(|key, _| secrets.contains(key.as_str()));
    spec.configs.retain(|key, _| configs.contains(key.as_str()));
}
