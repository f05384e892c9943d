//! From the canonical tree to the typed model. The tree has been checked, so everything here has its right kind; what is
//! reported here is only what needs the world: files with content.

mod resource;
mod service;

use crate::code;
use crate::environment::Environment;
use crate::load::{MAX_CONTENT, ReadError, Source};
use crate::model::{Data, DataMap, StackSpec};
use crate::node::{Node, Value};
use crate::problem::{Problem, Report};
use std::collections::BTreeMap;

/// Makes a spec out of a tree.
pub(crate) struct Binder<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) source: &'a dyn Source,
    pub(crate) environment: &'a Environment,
    pub(crate) read_contents: bool,
}

impl Binder<'_> {
    pub(crate) fn stack(&mut self, tree: &Node, name: &str) -> StackSpec {
        let mut spec = StackSpec { name: name.to_owned(), extensions: extensions(tree), ..StackSpec::default() };
        for (key, entry) in section(tree, "services") {
            let service = self.service(key, &entry.node, name);
            spec.services.insert(key.to_owned(), service);
        }
        for (key, entry) in section(tree, "networks") {
            spec.networks.insert(key.to_owned(), resource::network(&entry.node));
        }
        for (key, entry) in section(tree, "volumes") {
            spec.volumes.insert(key.to_owned(), resource::volume(&entry.node));
        }
        for (key, entry) in section(tree, "secrets") {
            let object = self.file_object("secret", key, &entry.node);
            spec.secrets.insert(key.to_owned(), object);
        }
        for (key, entry) in section(tree, "configs") {
            let object = self.file_object("config", key, &entry.node);
            spec.configs.insert(key.to_owned(), object);
        }
        spec.models = tree.get("models").map(data_map).unwrap_or_default();
        spec
    }

    /// The content of a file that a value names.
    pub(super) fn content(&mut self, path: &str, node: &Node, what: &str) -> Option<Vec<u8>> {
        match self.source.read(path, MAX_CONTENT) {
            Ok(bytes) if bytes.len() <= MAX_CONTENT => Some(bytes),
            outcome => {
                let (code, why) = match outcome {
                    Ok(_) | Err(ReadError::TooLarge(_)) => {
                        (code::TOO_LARGE, format!("it is larger than {} KiB", MAX_CONTENT >> 10))
                    }
                    Err(error) => (code::UNREADABLE, error.to_string()),
                };
                self.report.add(Problem::error(code, format!("cannot read {what} {path}: {why}")).at(node.span, ""));
                None
            }
        }
    }
}

pub(super) fn section<'n>(tree: &'n Node, key: &str) -> impl Iterator<Item = (&'n str, &'n crate::node::Entry)> {
    tree.get(key).into_iter().flat_map(Node::entries).map(|(key, entry)| (&**key, entry))
}

pub(super) fn text(node: &Node, key: &str) -> Option<String> {
    node.some(key)?.scalar_text()
}

/// The text parsed; it was checked before, so what does not parse is left out.
pub(super) fn parsed<T: std::str::FromStr>(node: &Node, key: &str) -> Option<T> {
    node.some(key)?.scalar_text()?.parse().ok()
}

pub(super) fn flag(node: &Node, key: &str) -> Option<bool> {
    match node.get(key)?.value {
        Value::Bool(value) => Some(value),
        _ => None,
    }
}

pub(super) fn int<T: TryFrom<i64>>(node: &Node, key: &str) -> Option<T> {
    match node.get(key)?.value {
        Value::Int(value) => T::try_from(value).ok(),
        _ => None,
    }
}

pub(super) fn texts(node: &Node, key: &str) -> Vec<String> {
    items(node, key).iter().filter_map(Node::scalar_text).collect()
}

pub(super) fn items<'n>(node: &'n Node, key: &str) -> &'n [Node] {
    node.get(key).map(Node::items).unwrap_or_default()
}

/// A mapping of texts; what has no value is the empty text.
pub(super) fn text_map(node: &Node, key: &str) -> BTreeMap<String, String> {
    section(node, key).map(|(key, entry)| (key.to_owned(), entry.node.scalar_text().unwrap_or_default())).collect()
}

/// A mapping of texts in which "no value" is something else than the empty text.
pub(super) fn optional_map(node: &Node, key: &str) -> BTreeMap<String, Option<String>> {
    section(node, key).map(|(key, entry)| (key.to_owned(), entry.node.scalar_text())).collect()
}

pub(super) fn data(node: &Node) -> Data {
    match &node.value {
        Value::Null | Value::Invalid => Data::Null,
        Value::Bool(value) => Data::Bool(*value),
        Value::Int(value) => Data::Int(*value),
        Value::Float(value) => Data::Float(*value),
        Value::Text(text) => Data::Text(text.to_string()),
        Value::List(items) => Data::List(items.iter().map(data).collect()),
        Value::Map(_) => Data::Map(data_map(node)),
    }
}

pub(super) fn data_map(node: &Node) -> DataMap {
    node.entries().map(|(key, entry)| (key.to_string(), data(&entry.node))).collect()
}

/// The `x-*` keys.
pub(super) fn extensions(node: &Node) -> DataMap {
    node.entries()
        .filter(|(key, _)| key.starts_with("x-") && &***key != crate::load::CONTENT_KEY)
        .map(|(key, entry)| (key.to_string(), data(&entry.node)))
        .collect()
}
