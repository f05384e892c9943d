//! Checks that need more than one value: keys that exclude each other, names that must exist, settings with two places,
//! circles.

use crate::check::{Check, Step, suggest};
use crate::code;
use crate::load::Inactive;
use crate::node::{Node, Value};
use crate::normalize::implied;
use crate::problem::{Problem, Report};
use crate::schema::{Kind, STACK, Support};
use crate::span::Span;
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use std::collections::BTreeMap;

/// Rules about one resource or service alone; they hold for included stacks too.
pub(crate) fn single_values(check: &mut Check<'_>, stack: &Node) {
    for (section, keys) in
        [("secrets", ["file", "environment"].as_slice()), ("configs", &["file", "environment", "content"])]
    {
        for (name, entry) in stack.get(section).into_iter().flat_map(Node::entries) {
            content_source(check, section, name, &entry.node, entry.key, keys);
        }
    }
    for section in ["networks", "volumes", "secrets", "configs"] {
        for (name, entry) in stack.get(section).into_iter().flat_map(Node::entries) {
            external_extras(check, section, name, &entry.node);
        }
    }
    for (name, entry) in stack.get("services").into_iter().flat_map(Node::entries) {
        let service = &entry.node;
        let reserved = service
            .get("deploy")
            .and_then(|node| node.get("resources"))
            .and_then(|node| node.get("reservations"))
            .and_then(|node| node.get("devices"));
        for request in [reserved, service.get("gpus")].into_iter().flatten().flat_map(Node::items) {
            if let (Some(_), Some(ids)) = (request.some("count"), request.some("device_ids")) {
                check.report.add(
                    Problem::error(
                        code::EXCLUSIVE_KEYS,
                        format!("\"count\" and \"device_ids\" attributes are exclusive in a device request of service `{name}`"),
                    )
                    .at(request.key_span("count"), "remove one of the two")
                    .at(ids.span, ""),
                );
            }
        }
    }
}

fn content_source(check: &mut Check<'_>, section: &str, name: &str, object: &Node, key: Span, keys: &[&str]) {
    if object.as_map().is_none() {
        return;
    }
    let present: Vec<&str> = keys.iter().copied().filter(|key| object.get(key).is_some()).collect();
    let list = keys.join("|");
    let singular = section.trim_end_matches('s');
    match present.as_slice() {
        [first, second, ..] => check.report.add(
            Problem::error(
                code::EXCLUSIVE_KEYS,
                format!("{singular} `{name}`: {list} attributes are mutually exclusive"),
            )
            .at(object.key_span(second), "second source of the content")
            .at(object.key_span(first), "first source"),
        ),
        [] if object.get("driver").is_none() && object.get("external").is_none() => {
            check.report.add(
                Problem::error(code::CONTENT_SOURCE, format!("{singular} `{name}`: one of {list} must be set"))
                    .at(key, "where its content comes from is missing")
                    .hint(format!(
                        "write `file: PATH`{}",
                        if section == "configs" { " or `content: …`" } else { " or `environment: VARIABLE`" }
                    )),
            );
        }
        _ => {}
    }
}

fn external_extras(check: &mut Check<'_>, section: &str, name: &str, resource: &Node) {
    if !is_true(resource.get("external")) {
        return;
    }
    let extras: Vec<(&str, Span)> = resource
        .entries()
        .filter(|(key, _)| !matches!(&***key, "external" | "name") && !key.starts_with("x-"))
        .map(|(key, entry)| (&**key, entry.key))
        .collect();
    let Some((first, span)) = extras.first() else { return };
    let singular = section.trim_end_matches('s');
    let message = format!("conflicting parameters \"external\" and \"{first}\" specified for {singular} `{name}`");
    // The reference refuses this for volumes only; for the others people rely on it being ignored.
    let problem = if section == "volumes" {
        Problem::error(code::EXCLUSIVE_KEYS, message)
    } else {
        Problem::warning(code::EXTERNAL_EXTRAS, message)
    };
    check
        .report
        .add(problem.at(*span, "has no effect on what is made elsewhere").at(resource.key_span("external"), ""));
}

fn is_true(node: Option<&Node>) -> bool {
    matches!(node.map(|node| &node.value), Some(Value::Bool(true)))
}

/// Says which keys orch does not act on.
pub(crate) fn warn_unsupported(report: &mut Report, stack: &Node) {
    let mut path = Vec::new();
    unsupported(report, stack, &STACK, &mut path);
}

fn unsupported(report: &mut Report, node: &Node, kind: &'static Kind, path: &mut Vec<Step>) {
    match kind {
        Kind::Nullable(inner) | Kind::Short(_, inner) => unsupported(report, node, inner, path),
        Kind::Named(inner) => {
            for (key, entry) in node.entries() {
                path.push(Step::Key(key.clone()));
                unsupported(report, &entry.node, inner, path);
                path.pop();
            }
        }
        Kind::Table(table) => {
            for (key, entry) in node.entries() {
                let Some(field) = table.field(key) else { continue };
                path.push(Step::Key(key.clone()));
                match field.support {
                    Support::None(why) => report.add(
                        Problem::warning(code::NOT_CARRIED_OUT, format!("{} has no effect", crate::check::place(path)))
                            .at(entry.key, why),
                    ),
                    Support::Obsolete(why) => {
                        report.add(Problem::warning(code::OBSOLETE, format!("`{key}` is obsolete")).at(entry.key, why));
                    }
                    Support::Full => unsupported(report, &entry.node, &field.kind, path),
                }
                path.pop();
            }
        }
        _ => {}
    }
}

/// The checks across services.
pub(crate) struct Consistency<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) stack: &'a Node,
    pub(crate) inactive: &'a BTreeMap<String, Inactive>,
}

impl<'a> Consistency<'a> {
    pub(crate) fn run(&mut self) {
        let stack = self.stack;
        let mut container_names: BTreeMap<&str, (&str, Span)> = BTreeMap::new();
        for (name, entry) in self.services() {
            let service = &entry.node;
            if service.as_map().is_none() {
                continue;
            }
            self.image(name, service, entry.key);
            self.build(name, service);
            self.network(name, service);
            self.references(name, service);
            self.depends_on(name, service);
            self.healthcheck(name, service);
            self.twins(name, service);
            self.fixed_name(name, service);
            self.watch(name, service);
            self.mounts(name, service);
            if let Some(fixed) = service.get("container_name")
                && let Some(text) = fixed.as_text()
            {
                if let Some((other, span)) = container_names.get(text) {
                    self.report.add(
                        Problem::error(
                            code::FIXED_NAME,
                            format!("services `{other}` and `{name}` have the same `container_name`"),
                        )
                        .at(fixed.span, "second time")
                        .at(*span, "first time"),
                    );
                }
                container_names.insert(text, (name, fixed.span));
            }
        }
        for (name, entry) in stack.get("secrets").into_iter().flat_map(Node::entries) {
            let secret = &entry.node;
            let has = |key| secret.some(key).is_some();
            if secret.as_map().is_some()
                && has("external")
                && !is_true(secret.get("external"))
                && !has("file")
                && !has("environment")
                && !has("driver")
            {
                self.report.add(
                    Problem::error(
                        code::CONTENT_SOURCE,
                        format!("secret \"{name}\" must declare either `file` or `environment`"),
                    )
                    .at(entry.key, "where its content comes from is missing"),
                );
            }
        }
        self.cycles();
    }

    fn services(&self) -> impl Iterator<Item = (&'a str, &'a crate::node::Entry)> + use<'a> {
        self.stack.get("services").into_iter().flat_map(Node::entries).map(|(name, entry)| (&**name, entry))
    }

    fn names(&self, section: &str) -> Vec<&'a str> {
        self.stack.get(section).into_iter().flat_map(Node::entries).map(|(name, _)| &**name).collect()
    }

    fn has(&self, section: &str, name: &str) -> bool {
        self.stack.get(section).is_some_and(|section| section.get(name).is_some())
    }

    fn image(&mut self, name: &str, service: &Node, key: Span) {
        let image = service.some("image").is_some_and(|image| image.as_text() != Some(""));
        if !image && service.some("build").is_none() && service.some("provider").is_none() {
            self.report.add(
                Problem::error(
                    code::NO_IMAGE,
                    format!("service \"{name}\" has neither an image nor a build context specified"),
                )
                .at(key, "what should it run?")
                .hint("add `image: NAME` or `build: PATH`"),
            );
        }
    }

    fn build(&mut self, name: &str, service: &Node) {
        let Some(build) = service.some("build") else { return };
        if let (Some(inline), Some(file)) = (build.some("dockerfile_inline"), build.some("dockerfile")) {
            self.report.add(
                Problem::error(
                    code::EXCLUSIVE_KEYS,
                    format!("service \"{name}\" declares mutually exclusive dockerfile and dockerfile_inline"),
                )
                .at(inline.span, "remove one of the two")
                .at(file.span, ""),
            );
        }
        for (context, entry) in build.get("additional_contexts").into_iter().flat_map(Node::entries) {
            let Some(target) = entry.node.as_text().and_then(|text| text.strip_prefix("service:")) else { continue };
            let why = match self.stack.get("services").and_then(|services| services.get(target)) {
                None => "unknown",
                Some(other) if other.some("build").is_none() => "non-buildable",
                Some(_) => continue,
            };
            self.report.add(
                Problem::error(
                    code::BUILD,
                    format!("service \"{name}\" declares {why} service \"{target}\" as additional contexts {context}"),
                )
                .at(entry.node.span, ""),
            );
        }
        let platform = service.get("platform").and_then(Node::as_text);
        let platforms = build.get("platforms").map(Node::items).unwrap_or_default();
        if let Some(platform) = platform
            && !platforms.is_empty()
            && !platforms.iter().any(|node| node.as_text() == Some(platform))
        {
            self.report.add(
                Problem::error(
                    code::BUILD,
                    format!("service `{name}`: service.build.platforms MUST include service.platform \"{platform}\""),
                )
                .at(build.key_span("platforms"), format!("`{platform}` is missing here"))
                .at(service.key_span("platform"), ""),
            );
        }
        for secret in build.get("secrets").map(Node::items).unwrap_or_default() {
            self.reference(name, secret.get("source"), "secrets", "build secret", code::UNDEFINED_SECRET);
        }
    }

    fn network(&mut self, name: &str, service: &Node) {
        let networks = service.get("networks");
        if let Some(mode) = service.some("network_mode")
            && networks.and_then(Node::as_map).is_some_and(|map| !map.is_empty())
        {
            self.report.add(
                Problem::error(
                    code::EXCLUSIVE_KEYS,
                    format!("service {name} declares mutually exclusive `network_mode` and `networks`"),
                )
                .at(mode.span, "remove one of the two")
                .at(service.key_span("networks"), ""),
            );
            return;
        }
        for (network, entry) in networks.into_iter().flat_map(Node::entries) {
            if !self.has("networks", network) {
                let names = self.names("networks");
                self.undefined(name, "network", network, entry.key, &names, "networks", code::UNDEFINED_NETWORK);
            }
            for (family, key) in [(4, "ipv4_address"), (6, "ipv6_address")] {
                if let Some(address) = entry.node.some(key) {
                    self.address(name, network, address, family);
                }
            }
        }
    }

    /// A fixed address must lie in a subnet that the file gives the network.
    fn address(&mut self, name: &str, network: &str, node: &Node, family: u8) {
        let Some(definition) = self.stack.get("networks").and_then(|networks| networks.get(network)) else { return };
        if is_true(definition.get("external")) {
            return;
        }
        let pools = definition.get("ipam").and_then(|ipam| ipam.get("config")).map(Node::items).unwrap_or_default();
        let subnets: Vec<&str> = pools.iter().filter_map(|pool| pool.get("subnet")?.as_text()).collect();
        let Some(address) = node.as_text().and_then(|text| text.parse::<std::net::IpAddr>().ok()) else { return };
        let known: Vec<&&str> = subnets.iter().filter(|subnet| subnet.contains(':') == (family == 6)).collect();
        if known.is_empty() || known.iter().any(|subnet| contains(subnet, address)) {
            return;
        }
        self.report.add(
            Problem::error(
                code::ADDRESS,
                format!("service `{name}`: address {address} is in no subnet of network `{network}`"),
            )
            .at(node.span, format!("its subnets: {}", subnets.join(", "))),
        );
    }

    fn reference(&mut self, name: &str, source: Option<&Node>, section: &str, what: &str, code: code::Code) {
        let Some(source) = source else { return };
        let Some(text) = source.as_text() else { return };
        if !self.has(section, text) {
            let names = self.names(section);
            self.undefined(name, what, text, source.span, &names, section, code);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the words of one sentence")]
    fn undefined(
        &mut self,
        name: &str,
        what: &str,
        missing: &str,
        span: Span,
        names: &[&str],
        section: &str,
        code: code::Code,
    ) {
        let label = suggest(missing, names.iter().copied()).unwrap_or_else(|| match names {
            [] => format!("the file declares no {section}"),
            names => format!("declared: {}", names.join(", ")),
        });
        self.report.add(
            Problem::error(code, format!("service \"{name}\" refers to undefined {what} {missing}"))
                .at(span, label)
                .hint(format!("declare it at the top level: `{section}: {{{missing}: …}}`")),
        );
    }

    fn references(&mut self, name: &str, service: &Node) {
        for mount in service.get("volumes").map(Node::items).unwrap_or_default() {
            let Some(source) = mount.get("source") else { continue };
            let Some(text) = source.as_text().filter(|text| !text.is_empty()) else { continue };
            if mount.get("type").and_then(Node::as_text) == Some("volume") && !self.has("volumes", text) {
                let names = self.names("volumes");
                let label =
                    suggest(text, names.iter().copied()).unwrap_or_else(|| "no such volume at the top level".into());
                self.report.add(
                    Problem::error(
                        code::UNDEFINED_VOLUME,
                        format!("service \"{name}\" refers to undefined volume {text}"),
                    )
                    .at(source.span, label)
                    .hint(format!("declare it: `volumes: {{{text}: }}`; for a path on the host write `./{text}`")),
                );
            }
        }
        for config in service.get("configs").map(Node::items).unwrap_or_default() {
            self.reference(name, config.get("source"), "configs", "config", code::UNDEFINED_CONFIG);
        }
        for secret in service.get("secrets").map(Node::items).unwrap_or_default() {
            self.reference(name, secret.get("source"), "secrets", "secret", code::UNDEFINED_SECRET);
        }
        for (model, entry) in service.get("models").into_iter().flat_map(Node::entries) {
            if !self.has("models", model) {
                let names = self.names("models");
                self.undefined(name, "model", model, entry.key, &names, "models", code::UNDEFINED_MODEL);
            }
        }
    }

    fn depends_on(&mut self, name: &str, service: &Node) {
        let implied: BTreeMap<String, Span> =
            implied(service).into_iter().map(|(target, span, _)| (target, span)).collect();
        let explicit: Vec<(String, Span, bool)> = service
            .get("depends_on")
            .into_iter()
            .flat_map(Node::entries)
            .map(|(target, entry)| {
                let optional = matches!(entry.node.get("required").map(|node| &node.value), Some(Value::Bool(false)));
                (target.to_string(), entry.key, !optional)
            })
            .collect();
        let also = implied.iter().filter(|(target, _)| !explicit.iter().any(|(known, ..)| known == *target));
        let all: Vec<(String, Span, bool)> =
            explicit.iter().cloned().chain(also.map(|(target, span)| (target.clone(), *span, true))).collect();
        for (target, span, required) in all {
            if self.has("services", &target) {
                continue;
            }
            let off = self.inactive.get(&target);
            if off.is_some() && !required {
                continue;
            }
            let mut problem = Problem::error(
                code::UNDEFINED_SERVICE,
                format!("service \"{name}\" depends on undefined service \"{target}\""),
            );
            problem = match off {
                Some(off) => problem
                    .at(span, format!("`{target}` is off: it is in profile {}", off.profiles.join(", ")))
                    .at(off.key, "")
                    .hint(format!(
                        "turn it on with `--profile {}`, or write `required: false`",
                        off.profiles.join(" or ")
                    )),
                None => {
                    let names = self.names("services");
                    let label = suggest(&target, names.iter().copied().filter(|other| *other != name))
                        .unwrap_or_else(|| format!("services here: {}", names.join(", ")));
                    problem.at(span, label)
                }
            };
            self.report.add(problem);
        }
    }

    fn healthcheck(&mut self, name: &str, service: &Node) {
        let Some(test) = service.get("healthcheck").and_then(|check| check.get("test")) else { return };
        let (ok, span) = match &test.value {
            Value::List(items) => match items.first() {
                None => (true, test.span),
                Some(first) => (
                    matches!(first.as_text(), Some("CMD" | "CMD-SHELL" | "NONE"))
                        || matches!(first.value, Value::Invalid),
                    first.span,
                ),
            },
            Value::Text(_) | Value::Null | Value::Invalid => (true, test.span),
            _ => (false, test.span),
        };
        if !ok {
            self.report.add(
                Problem::error(
                    code::BAD_VALUE,
                    format!(
                        "service `{name}`: healthcheck.test must start either by \"CMD\", \"CMD-SHELL\" or \"NONE\""
                    ),
                )
                .at(span, "")
                .hint("write `[CMD, program, argument]`, or one text that a shell runs"),
            );
        }
    }

    fn twins(&mut self, name: &str, service: &Node) {
        let at = |path: &[&str]| path.iter().try_fold(service, |node, key| node.some(key));
        let pairs: [(&str, &[&str]); 5] = [
            ("scale", &["deploy", "replicas"]),
            ("cpus", &["deploy", "resources", "limits", "cpus"]),
            ("mem_limit", &["deploy", "resources", "limits", "memory"]),
            ("mem_reservation", &["deploy", "resources", "reservations", "memory"]),
            ("pids_limit", &["deploy", "resources", "limits", "pids"]),
        ];
        for (own, path) in pairs {
            let (Some(a), Some(b)) = (service.some(own), at(path)) else { continue };
            let (Some(left), Some(right)) = (a.scalar_text(), b.scalar_text()) else { continue };
            if left != right && left != "0" {
                self.report.add(
                    Problem::error(
                        code::TWINS_DISAGREE,
                        format!("service `{name}`: can't set distinct values on '{own}' and '{}'", path.join(".")),
                    )
                    .at(a.span, left)
                    .at(b.span, right)
                    .hint("remove one of the two"),
                );
            }
        }
        let cpus = service.some("cpus").or_else(|| at(&["deploy", "resources", "limits", "cpus"]));
        let Some(cpus) = cpus.filter(|cpus| cpus.scalar_text().is_some_and(|text| text != "0")) else { return };
        for key in ["cpu_quota", "cpu_period"] {
            if service.some(key).is_some() {
                self.report.add(
                    Problem::warning(code::NOT_CARRIED_OUT, format!("`{key}` of service `{name}` has no effect"))
                        .at(service.key_span(key), "`cpus` says the same, and counts")
                        .at(cpus.span, ""),
                );
            }
        }
    }

    fn fixed_name(&mut self, name: &str, service: &Node) {
        let Some(fixed) = service.some("container_name") else { return };
        let replicas = service.get("deploy").and_then(|deploy| deploy.some("replicas"));
        let Some(count) = service.some("scale").or(replicas) else { return };
        if matches!(count.value, Value::Int(count) if count > 1) {
            self.report.add(
                Problem::error(
                    code::FIXED_NAME,
                    format!("service `{name}`: can't set container_name and more than one replica, as container name must be unique"),
                )
                .at(fixed.span, "one container can have this name")
                .at(count.span, "this asks for more"),
            );
        }
    }

    fn watch(&mut self, name: &str, service: &Node) {
        let watch = service.get("develop").and_then(|develop| develop.get("watch"));
        for entry in watch.map(Node::items).unwrap_or_default() {
            let Some(action) = entry.get("action").and_then(Node::as_text) else { continue };
            let target = entry.some("target").is_some_and(|target| target.as_text() != Some(""));
            if action.starts_with("sync") && !target {
                self.report.add(
                    Problem::error(
                        code::WATCH,
                        format!("services.{name}.develop.watch: target is required for non-rebuild actions"),
                    )
                    .at(entry.key_span("action"), "where in the container should the files go?")
                    .hint("add `target: /PATH`"),
                );
            }
        }
    }

    fn mounts(&mut self, name: &str, service: &Node) {
        let mut seen: BTreeMap<String, (String, Span)> = BTreeMap::new();
        for key in ["tmpfs", "volumes"] {
            for (index, item) in service.get(key).map(Node::items).unwrap_or_default().iter().enumerate() {
                let target = match item.as_text() {
                    Some(text) => text.split(':').next().map(crate::short::clean_path),
                    None => item.get("target").and_then(Node::scalar_text),
                };
                let Some(target) = target else { continue };
                let place = format!("{key}[{index}]");
                if let Some((first, span)) = seen.get(&target) {
                    self.report.add(
                        Problem::error(
                            code::MOUNTED_TWICE,
                            format!(
                                "services.{name}.{place}: target {target} already mounted as services.{name}.{first}"
                            ),
                        )
                        .at(item.span, "second mount")
                        .at(*span, "first mount"),
                    );
                }
                seen.insert(target, (place, item.span));
            }
        }
    }

    /// Every strongly connected group of services is one circle to report.
    fn cycles(&mut self) {
        let mut graph: DiGraphMap<&str, Span> = DiGraphMap::new();
        for (name, entry) in self.services() {
            graph.add_node(name);
            for (target, dependency) in entry.node.get("depends_on").into_iter().flat_map(Node::entries) {
                if self.has("services", target) {
                    graph.add_edge(name, target, dependency.key);
                }
            }
            for (target, span, _) in implied(&entry.node) {
                let known = self.services().find(|(service, _)| *service == target);
                if let Some((target, _)) = known
                    && !graph.contains_edge(name, target)
                {
                    graph.add_edge(name, target, span);
                }
            }
        }
        for group in tarjan_scc(&graph) {
            let Some(start) = group.iter().min().copied() else { continue };
            if group.len() == 1 && !graph.contains_edge(start, start) {
                continue;
            }
            let circle = shortest_circle(&graph, start, &group);
            let path: Vec<&str> = circle.iter().copied().chain([start]).collect();
            let mut problem =
                Problem::error(code::DEPENDENCY_CYCLE, format!("dependency cycle detected: {}", path.join(" -> ")));
            for pair in path.windows(2) {
                if let Some(span) = graph.edge_weight(pair[0], pair[1]) {
                    problem = problem.at(*span, format!("`{}` waits for `{}`", pair[0], pair[1]));
                }
            }
            self.report.add(problem.hint("take one of these out; none of the services could start first"));
        }
    }
}

/// Breadth first from `start` back to itself inside of its group.
fn shortest_circle<'s>(graph: &DiGraphMap<&'s str, Span>, start: &'s str, group: &[&'s str]) -> Vec<&'s str> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = std::collections::VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for next in graph.neighbors(at) {
            if next == start {
                let mut circle = vec![at];
                let mut back = at;
                while back != start {
                    back = came_from.get(back).copied().unwrap_or(start);
                    circle.push(back);
                }
                circle.reverse();
                return circle;
            }
            if group.contains(&next) && !came_from.contains_key(next) {
                came_from.insert(next, at);
                queue.push_back(next);
            }
        }
    }
    vec![start]
}

/// Whether a subnet in CIDR notation has the address.
fn contains(subnet: &str, address: std::net::IpAddr) -> bool {
    let Some((base, bits)) = subnet.split_once('/') else { return false };
    let (Ok(base), Ok(bits)) = (base.parse::<std::net::IpAddr>(), bits.parse::<u32>()) else { return false };
    match (base, address) {
        (std::net::IpAddr::V4(base), std::net::IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
            base.to_bits() & mask == address.to_bits() & mask
        }
        (std::net::IpAddr::V6(base), std::net::IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
            base.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}
