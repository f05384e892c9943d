//! Relative paths of a canonical tree made absolute.

use crate::node::{Map, Node, Value};
use crate::short::{clean_path, is_windows_path};

/// Where relative paths count from.
#[derive(Clone, Debug)]
pub(crate) struct Base<'a> {
    /// Absolute folder.
    pub(crate) folder: &'a str,
    /// The user's home, for `~`.
    pub(crate) home: Option<&'a str>,
}

/// `path` as seen from `folder`, cleaned.
pub(crate) fn join(folder: &str, path: &str) -> String {
    if path.starts_with('/') || is_windows_path(path) || path.starts_with("\\\\") {
        return if path.starts_with('/') { clean_path(path) } else { path.to_owned() };
    }
    if path.is_empty() {
        return folder.to_owned();
    }
    clean_path(&format!("{folder}/{path}"))
}

/// The folder that a file lies in.
pub(crate) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((folder, _)) => folder,
        None => ".",
    }
}

/// Addresses that are no files of this machine.
pub(crate) fn is_remote(path: &str) -> bool {
    path.contains("://") || path.starts_with("git@") || path.starts_with("github.com/")
}

impl Base<'_> {
    /// A file or folder.
    pub(crate) fn path(&self, path: &str) -> String {
        let home = match (path.strip_prefix('~'), self.home) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => Some(format!("{home}{rest}")),
            _ => None,
        };
        join(self.folder, home.as_deref().unwrap_or(path))
    }

    fn absolute(&self, node: Option<&mut Node>) {
        if let Some(node) = node
            && let Value::Text(text) = &node.value
            && !text.is_empty()
        {
            let absolute = self.path(text);
            if absolute != **text {
                node.value = Value::Text(absolute.into());
            }
        }
    }

    /// A build context: everything but local paths stays.
    fn context(&self, node: Option<&mut Node>) {
        let local = node.as_ref().and_then(|node| node.as_text()).is_some_and(|text| {
            !is_remote(text)
                && !text.starts_with("service:")
                && !text.starts_with("docker-image:")
                && !text.starts_with("oci-layout:")
                && !text.contains(".git#")
                && !text.ends_with(".git")
        });
        if local {
            self.absolute(node);
        }
    }

    /// The whole tree of a stack.
    pub(crate) fn stack(&self, stack: &mut Node) {
        for service in entries(stack.get_mut("services")) {
            self.service(service);
        }
        for section in ["configs", "secrets"] {
            for object in entries(stack.get_mut(section)) {
                self.absolute(object.get_mut("file"));
            }
        }
        for volume in entries(stack.get_mut("volumes")) {
            let local = volume.get("driver").and_then(Node::as_text) == Some("local");
            let Some(options) = volume.get_mut("driver_opts") else { continue };
            if local && options.get("o").and_then(Node::as_text) == Some("bind") {
                self.absolute(options.get_mut("device"));
            }
        }
    }

    /// One service in canonical form.
    pub(crate) fn service(&self, service: &mut Node) {
        if let Some(build) = service.get_mut("build") {
            self.context(build.get_mut("context"));
            for context in entries(build.get_mut("additional_contexts")) {
                self.context(Some(context));
            }
            for key in entries(build.get_mut("ssh")) {
                self.absolute(Some(key));
            }
        }
        for file in items(service.get_mut("env_file")) {
            self.absolute(file.get_mut("path"));
        }
        for file in items(service.get_mut("label_file")) {
            self.absolute(Some(file));
        }
        if let Some(develop) = service.get_mut("develop") {
            for watch in items(develop.get_mut("watch")) {
                self.absolute(watch.get_mut("path"));
            }
        }
        for mount in items(service.get_mut("volumes")) {
            if mount.get("type").and_then(Node::as_text) == Some("bind") {
                self.absolute(mount.get_mut("source"));
            }
        }
    }
}

fn entries(node: Option<&mut Node>) -> impl Iterator<Item = &mut Node> {
    node.and_then(Node::as_map_mut).into_iter().flat_map(Map::values_mut).map(|entry| &mut entry.node)
}

fn items(node: Option<&mut Node>) -> impl Iterator<Item = &mut Node> {
    node.and_then(Node::as_list_mut).into_iter().flatten()
}
