//! What follows from a stack without being written: default values, the implicit network, implicit dependencies, names.

use crate::environment::Environment;
use crate::node::{Map, Node, Value};
use crate::span::Span;

/// Defaults of a single model, before it is merged into another.
pub(crate) fn defaults(stack: &mut Node) {
    for (_, service) in named(stack.get_mut("services")) {
        for request in device_requests(service) {
            let span = request.span;
            if request.get("count").is_none() && request.get("device_ids").is_none() {
                request.put("count", Node::new(Value::Int(-1), span));
            }
        }
        if let Some(build) = service.get_mut("build").filter(|build| build.as_map().is_some()) {
            let span = build.span;
            if build.some("context").is_none() {
                build.put("context", Node::text(".", span));
            }
        }
        if let Some(test) = service.get_mut("healthcheck").and_then(|check| check.get_mut("test"))
            && let Value::Text(line) = &test.value
            && !line.is_empty()
        {
            let words = [Node::text("CMD-SHELL", test.span), Node::text(line.clone(), test.span)];
            test.value = Value::List(words.into());
        }
        if let Some(servers) = service.get_mut("dns").and_then(Node::as_list_mut) {
            servers.retain(|server| server.as_text() != Some(""));
        }
        for secret in items(service.get_mut("secrets")) {
            let span = secret.span;
            if secret.get("target").is_none()
                && let Some(source) = secret.get("source").and_then(Node::as_text).map(str::to_owned)
            {
                secret.put("target", Node::text(format!("/run/secrets/{source}"), span));
            }
        }
        for port in items(service.get_mut("ports")) {
            let span = port.span;
            for (key, value) in [("protocol", "tcp"), ("mode", "ingress")] {
                if port.as_map().is_some_and(|map| !map.contains_key(key)) {
                    port.put(key, Node::text(value, span));
                }
            }
        }
        for mount in items(service.get_mut("volumes")) {
            if let Some(bind) = mount.get_mut("bind").filter(|bind| bind.as_map().is_some()) {
                let span = bind.span;
                if bind.get("create_host_path").is_none() {
                    bind.put("create_host_path", Node::new(Value::Bool(true), span));
                }
            }
        }
    }
}

fn device_requests(service: &mut Node) -> Vec<&mut Node> {
    let Some(map) = service.as_map_mut() else { return Vec::new() };
    let mut requests = Vec::new();
    for (key, entry) in map {
        match &**key {
            "gpus" => requests.extend(items(Some(&mut entry.node))),
            "deploy" => {
                let devices = entry
                    .node
                    .get_mut("resources")
                    .and_then(|node| node.get_mut("reservations"))
                    .and_then(|node| node.get_mut("devices"));
                requests.extend(items(devices));
            }
            _ => {}
        }
    }
    requests
}

/// Pass-through values: `environment` entries and build arguments without a value take the project's.
pub(crate) fn resolve_environment(stack: &mut Node, environment: &Environment) {
    for (_, service) in named(stack.get_mut("services")) {
        for (name, value) in named(service.get_mut("environment")) {
            pass_through(name, value, environment);
        }
        for hooks in ["pre_start", "post_start", "pre_stop"] {
            for hook in items(service.get_mut(hooks)) {
                for (name, value) in named(hook.get_mut("environment")) {
                    pass_through(name, value, environment);
                }
            }
        }
        if let Some(args) = service.get_mut("build").and_then(|build| build.get_mut("args")) {
            for (name, value) in named(Some(args)) {
                pass_through(name, value, environment);
            }
            if let Some(map) = args.as_map_mut() {
                map.retain(|_, entry| !entry.node.is_null());
            }
        }
    }
}

fn pass_through(name: &str, node: &mut Node, environment: &Environment) {
    if node.is_null()
        && let Some(value) = environment.get(name)
    {
        node.value = Value::Text(value.into());
    }
}

/// The last step for the whole stack.
pub(crate) fn normalize(stack: &mut Node, name: &str) {
    networks(stack);
    for (_, service) in named(stack.get_mut("services")) {
        if service.get("pull_policy").and_then(Node::as_text) == Some("if_not_present") {
            let span = service.key_span("pull_policy");
            service.put("pull_policy", Node::text("missing", span));
        }
        if let Some(build) = service.get_mut("build").filter(|build| build.as_map().is_some()) {
            let span = build.span;
            if build.some("dockerfile").is_none() && build.some("dockerfile_inline").is_none() {
                build.put("dockerfile", Node::text("Dockerfile", span));
            }
        }
        for mount in items(service.get_mut("volumes")) {
            if let Some(target) = mount.get_mut("target")
                && let Value::Text(text) = &target.value
            {
                target.value = Value::Text(crate::short::clean_path(text).into());
            }
        }
        implicit_dependencies(service);
        let image = service.some("image").cloned();
        for hook in items(service.get_mut("pre_start")) {
            if let Some(image) = &image
                && hook.as_map().is_some()
                && hook.get("image").is_none()
            {
                hook.put("image", image.clone());
            }
        }
    }
    for section in ["networks", "volumes", "configs", "secrets"] {
        for (key, resource) in named(stack.get_mut(section)) {
            if resource.is_null() {
                resource.value = Value::Map(Map::new());
            }
            if resource.as_map().is_some() && resource.some("name").is_none() {
                let external = matches!(resource.get("external").map(|node| &node.value), Some(Value::Bool(true)));
                let full = if external { key.to_owned() } else { format!("{name}_{key}") };
                let span = resource.span;
                resource.put("name", Node::text(full, span));
            }
        }
    }
}

fn networks(stack: &mut Node) {
    let mut used: Option<Span> = None;
    for (_, service) in named(stack.get_mut("services")) {
        if service.as_map().is_none() || service.get("provider").is_some() || service.get("network_mode").is_some() {
            continue;
        }
        match service.get("networks") {
            Some(networks) if networks.as_map().is_some_and(|map| !map.is_empty()) => {
                if networks.get("default").is_some() {
                    used = used.or(Some(networks.span));
                }
            }
            Some(networks) if matches!(networks.value, Value::Invalid) => {}
            _ => {
                let span = service.span;
                let mut networks = Node::map(span);
                networks.put("default", Node::new(Value::Null, span));
                service.put("networks", networks);
                used = used.or(Some(span));
            }
        }
    }
    let Some(span) = used else { return };
    if stack.get("networks").is_none_or(Node::is_null) {
        stack.put("networks", Node::map(span));
    }
    if let Some(networks) = stack.get_mut("networks")
        && networks.get("default").is_none()
    {
        networks.put("default", Node::new(Value::Null, span));
    }
}

/// Services that a service refers to by other keys than `depends_on`, with where and whether it restarts with them.
pub(crate) fn implied(service: &Node) -> Vec<(String, Span, bool)> {
    let mut list = Vec::new();
    for link in service.get("links").map(Node::items).unwrap_or_default() {
        if let Some(text) = link.as_text() {
            list.push((text.split(':').next().unwrap_or(text).to_owned(), link.span, true));
        }
    }
    for key in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        if let Some(node) = service.get(key)
            && let Some(shared) = node.as_text().and_then(|text| text.strip_prefix("service:"))
        {
            list.push((shared.to_owned(), node.span, true));
        }
    }
    for from in service.get("volumes_from").map(Node::items).unwrap_or_default() {
        if let Some(text) = from.as_text().filter(|text| !text.starts_with("container:")) {
            list.push((text.split(':').next().unwrap_or(text).to_owned(), from.span, false));
        }
    }
    list
}

fn implicit_dependencies(service: &mut Node) {
    for (target, span, restart) in implied(service) {
        if service.get("depends_on").is_none_or(Node::is_null) {
            service.put("depends_on", Node::map(span));
        }
        let Some(depends_on) = service.get_mut("depends_on") else { continue };
        if depends_on.as_map().is_some_and(|map| !map.contains_key(&*target)) {
            let mut dependency = Node::map(span);
            dependency.put("condition", Node::text("service_started", span));
            dependency.put("restart", Node::new(Value::Bool(restart), span));
            dependency.put("required", Node::new(Value::Bool(true), span));
            depends_on.put(&target, dependency);
        }
    }
}

fn named(node: Option<&mut Node>) -> impl Iterator<Item = (&str, &mut Node)> {
    node.and_then(Node::as_map_mut).into_iter().flatten().map(|(key, entry)| (&**key, &mut entry.node))
}

fn items(node: Option<&mut Node>) -> impl Iterator<Item = &mut Node> {
    node.and_then(Node::as_list_mut).into_iter().flatten()
}
