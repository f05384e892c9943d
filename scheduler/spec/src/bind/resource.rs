//! Networks, volumes, secrets and configs.

use super::{Binder, extensions, flag, items, parsed, section, text, text_map};
use crate::code;
use crate::load::CONTENT_KEY;
use crate::model::{ContentBytes, FileObjectOrigin, FileObjectSpec, IpamPool, IpamSpec, NetworkSpec, VolumeSpec};
use crate::node::Node;
use crate::problem::Problem;

pub(super) fn network(node: &Node) -> NetworkSpec {
    NetworkSpec {
        name: text(node, "name").unwrap_or_default(),
        driver: text(node, "driver"),
        driver_opts: text_map(node, "driver_opts"),
        ipam: node.get("ipam").map(ipam).unwrap_or_default(),
        external: flag(node, "external").unwrap_or_default(),
        internal: flag(node, "internal").unwrap_or_default(),
        attachable: flag(node, "attachable").unwrap_or_default(),
        enable_ipv4: flag(node, "enable_ipv4"),
        enable_ipv6: flag(node, "enable_ipv6"),
        labels: text_map(node, "labels"),
        extensions: extensions(node),
    }
}

fn ipam(node: &Node) -> IpamSpec {
    let pool = |node: &Node| IpamPool {
        subnet: text(node, "subnet"),
        ip_range: text(node, "ip_range"),
        gateway: parsed(node, "gateway"),
        aux_addresses: section(node, "aux_addresses")
            .filter_map(|(host, entry)| Some((host.to_owned(), entry.node.as_text()?.parse().ok()?)))
            .collect(),
    };
    IpamSpec {
        driver: text(node, "driver"),
        config: items(node, "config").iter().map(pool).collect(),
        options: text_map(node, "options"),
    }
}

pub(super) fn volume(node: &Node) -> VolumeSpec {
    VolumeSpec {
        name: text(node, "name").unwrap_or_default(),
        driver: text(node, "driver"),
        driver_opts: text_map(node, "driver_opts"),
        external: flag(node, "external").unwrap_or_default(),
        labels: text_map(node, "labels"),
        extensions: extensions(node),
    }
}

impl Binder<'_> {
    pub(super) fn file_object(&mut self, what: &str, key: &str, node: &Node) -> FileObjectSpec {
        let external = flag(node, "external").unwrap_or_default();
        let (origin, content) =
            if external { (FileObjectOrigin::Elsewhere, None) } else { self.origin(what, key, node) };
        FileObjectSpec {
            name: text(node, "name").unwrap_or_default(),
            external,
            content,
            origin,
            labels: text_map(node, "labels"),
            driver: text(node, "driver"),
            driver_opts: text_map(node, "driver_opts"),
            template_driver: text(node, "template_driver"),
            extensions: extensions(node),
        }
    }

    fn origin(&mut self, what: &str, key: &str, node: &Node) -> (FileObjectOrigin, Option<ContentBytes>) {
        if let Some(path) = node.some("file") {
            let name = path.scalar_text().unwrap_or_default();
            let content = if self.read_contents { self.content(&name, path, &format!("{what} `{key}`")) } else { None };
            return (FileObjectOrigin::File(name), content.map(ContentBytes));
        }
        if let Some(variable) = node.some("environment") {
            let name = variable.scalar_text().unwrap_or_default();
            let value = text(node, CONTENT_KEY).or_else(|| self.environment.get(&name).map(str::to_owned));
            if value.is_none() && self.read_contents {
                self.report.add(
                    Problem::error(code::REQUIRED_VARIABLE, format!("{what} `{key}`: variable `{name}` is not set"))
                        .at(variable.span, "its value is the content")
                        .hint(format!("set `{name}` in the environment or in `.env`")),
                );
            }
            return (FileObjectOrigin::Environment(name), value.map(|value| ContentBytes(value.into_bytes())));
        }
        if let Some(content) = text(node, "content") {
            return (FileObjectOrigin::Inline, Some(ContentBytes(content.into_bytes())));
        }
        (FileObjectOrigin::Elsewhere, None)
    }
}
