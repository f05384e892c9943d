//! `env_file` and `label_file` of services, and variables that are the content of secrets and configs.

use super::Loader;
use super::Scope;
use crate::check::with_variables;
use crate::code;
use crate::dotenv::Format;
use crate::environment::Environment;
use crate::node::{Entry, Map, Node, Value};
use crate::problem::Problem;

/// Carries the content of a secret or config from the scope whose variable it is; never shown.
pub(crate) const CONTENT_KEY: &str = "x-#value";

/// Puts the values of variables that secrets and configs name beside them, in the scope that knows the variables.
pub(super) fn resolve_contents(stack: &mut Node, environment: &Environment) {
    for section in ["secrets", "configs"] {
        let Some(map) = stack.get_mut(section).and_then(Node::as_map_mut) else { continue };
        for entry in map.values_mut() {
            let value = entry.node.get("environment").and_then(Node::as_text).and_then(|name| environment.get(name));
            if let Some(value) = value.map(str::to_owned)
                && entry.node.get(CONTENT_KEY).is_none()
            {
                let span = entry.node.span;
                entry.node.put(CONTENT_KEY, Node::text(value, span));
            }
        }
    }
}

impl Loader<'_> {
    /// Reads the files of all services into their `environment` and `labels`, which win over the files.
    pub(super) fn resolve_env_files(&mut self, stack: &mut Node, scope: &Scope) {
        let Some(services) = stack.get_mut("services").and_then(Node::as_map_mut) else { return };
        for (name, entry) in services {
            self.service_env_files(name, &mut entry.node, &scope.environment);
            self.service_label_files(name, &mut entry.node, &scope.environment);
        }
    }

    fn service_env_files(&mut self, name: &str, service: &mut Node, environment: &Environment) {
        let Some(entry) = service.as_map_mut().and_then(|map| map.shift_remove("env_file")) else { return };
        let own = service.get("environment").cloned();
        let mut merged = Map::new();
        for file in entry.node.items() {
            let Some(path_node) = file.get("path") else { continue };
            let Some(path) = path_node.as_text().map(str::to_owned) else { continue };
            if !self.source.is_file(&path) {
                let required = !matches!(file.get("required").map(|node| &node.value), Some(Value::Bool(false)));
                if required {
                    let problem =
                        Problem::error(code::UNREADABLE, format!("env file of service `{name}` not found: {path}"))
                            .at(path_node.span, "there is no such file")
                            .hint("write `{path: …, required: false}` if it may be missing");
                    self.report.add(with_variables(problem, path_node));
                }
                continue;
            }
            let format =
                if file.get("format").and_then(Node::as_text) == Some("raw") { Format::Raw } else { Format::Dotenv };
            let lookup = |key: &str| {
                environment
                    .get(key)
                    .map(str::to_owned)
                    .or_else(|| own.as_ref()?.get(key)?.scalar_text())
                    .or_else(|| merged.get(key).and_then(|entry: &Entry| entry.node.scalar_text()))
            };
            let assignments = self.env_file(&path, format, Some(path_node.span), &lookup);
            for (assignment, span) in assignments {
                let key = assignment.key.as_str().into();
                merged.shift_remove(&key);
                merged.insert(key, Entry { key: span, node: Node::text(assignment.value, span) });
            }
        }
        overlay(service, "environment", merged, entry.key);
    }

    fn service_label_files(&mut self, name: &str, service: &mut Node, environment: &Environment) {
        let Some(entry) = service.as_map_mut().and_then(|map| map.shift_remove("label_file")) else { return };
        let mut merged = Map::new();
        for file in entry.node.items() {
            let Some(path) = file.as_text().map(str::to_owned) else { continue };
            if !self.source.is_file(&path) {
                self.report.add(
                    Problem::error(code::UNREADABLE, format!("label file of service `{name}` not found: {path}"))
                        .at(file.span, "there is no such file"),
                );
                continue;
            }
            let lookup = |key: &str| environment.get(key).map(str::to_owned);
            for (assignment, span) in self.env_file(&path, Format::Dotenv, Some(file.span), &lookup) {
                let node = Node::text(assignment.value, span);
                merged.insert(assignment.key.into(), Entry { key: span, node });
            }
        }
        overlay(service, "labels", merged, entry.key);
    }
}

/// What the service says itself, on top of what its files said.
fn overlay(service: &mut Node, key: &str, mut below: Map, span: crate::span::Span) {
    if let Some(Value::Map(own)) = service.get(key).map(|node| &node.value) {
        below.extend(own.clone());
    }
    if below.is_empty() && service.get(key).is_none() {
        return;
    }
    service.put(key, Node::new(Value::Map(below), span));
}
