//! The short forms of the specification and what they mean in the long one.

use crate::check::{Check, Step};
use crate::code;
use crate::node::{Entry, Map, Node, Value};
use crate::problem::Problem;
use crate::scalar;
use crate::schema::Short;
use crate::span::Span;

/// Turns a short form into the long one; what is long already stays.
pub(crate) fn lengthen(check: &mut Check<'_>, node: &mut Node, short: Short) {
    match short {
        Short::Build => build(node),
        Short::DependsOn => depends_on(check, node),
        Short::Names => names(check, node),
        Short::Ports => ports(check, node),
        Short::Mount => mount(check, node),
        Short::Device => device(node),
        Short::Grant => grant(node),
        Short::EnvFile => env_file(check, node),
        Short::ExtraHosts => extra_hosts(check, node),
        Short::Gpus => gpus(check, node),
        Short::Ulimit => ulimit(node),
        Short::Ssh => ssh(check, node),
        Short::External => external(check, node),
        Short::Include => include(node),
        Short::Watch => watch(check, node),
    }
}

/// A mapping with the given entries, all at the place of `from`.
fn mapping(from: &Node, entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let entry = |(key, value): (&'static str, Value)| (key.into(), Entry { key: from.span, node: from.with(value) });
    Value::Map(entries.into_iter().map(entry).collect())
}

fn text_value(text: &str) -> Value {
    Value::Text(text.into())
}

pub(crate) fn build(node: &mut Node) {
    if matches!(node.value, Value::Text(_)) {
        let context = node.value.clone();
        node.value = mapping(node, [("context", context)]);
    }
}

/// The list under `key` as a mapping of its texts; duplicates are a problem.
fn list_to_map(check: &mut Check<'_>, node: &mut Node, make: impl Fn(&Node) -> Value) {
    let Value::List(items) = &mut node.value else { return };
    let items = std::mem::take(items);
    let mut map = Map::new();
    for (index, mut item) in items.into_iter().enumerate() {
        let Value::Text(name) = &item.value else {
            if !matches!(item.value, Value::Invalid) {
                check.step(Step::Index(index), |check| check.wrong(&mut item, "a text"));
            }
            continue;
        };
        let name = name.clone();
        if let Some(first) = map.get(&name) {
            let place = check.place();
            let first: &Entry = first;
            check.report.add(
                Problem::error(code::LISTED_TWICE, format!("{place} lists `{name}` twice"))
                    .at(item.span, "second time")
                    .at(first.key, "first time"),
            );
            continue;
        }
        let value = make(&item);
        map.insert(name, Entry { key: item.span, node: item.with(value) });
    }
    node.value = Value::Map(map);
}

pub(crate) fn names(check: &mut Check<'_>, node: &mut Node) {
    list_to_map(check, node, |_| Value::Null);
}

pub(crate) fn depends_on(check: &mut Check<'_>, node: &mut Node) {
    list_to_map(check, node, |item| {
        mapping(item, [("condition", text_value("service_started")), ("required", Value::Bool(true))])
    });
    if check.partial {
        return;
    }
    for entry in node.as_map_mut().into_iter().flat_map(Map::values_mut) {
        let span = entry.node.span;
        if entry.node.as_map().is_some_and(|map| !map.contains_key("required")) {
            entry.node.put("required", Node::new(Value::Bool(true), span));
        }
    }
}

fn device(node: &mut Node) {
    let Value::Text(text) = &node.value else { return };
    let text = text.clone();
    if !text.starts_with('/') && text.contains('=') {
        // A CDI name, `vendor/class=device`.
        node.value = mapping(node, [("source", text_value(&text))]);
        return;
    }
    let mut parts = text.splitn(3, ':');
    let source = parts.next().unwrap_or_default();
    let target = parts.next().unwrap_or(source);
    let permissions = parts.next().unwrap_or("rwm");
    node.value = mapping(
        node,
        [("source", text_value(source)), ("target", text_value(target)), ("permissions", text_value(permissions))],
    );
}

fn grant(node: &mut Node) {
    if matches!(node.value, Value::Text(_)) {
        let source = node.value.clone();
        node.value = mapping(node, [("source", source)]);
    }
}

pub(crate) fn env_file(check: &mut Check<'_>, node: &mut Node) {
    if matches!(node.value, Value::Text(_)) {
        let one = node.clone();
        node.value = Value::List(vec![one]);
    }
    if let Value::List(items) = &mut node.value {
        for item in items {
            if matches!(item.value, Value::Text(_)) {
                let path = item.value.clone();
                item.value = mapping(item, [("path", path)]);
            }
            let span = item.span;
            if !check.partial && item.as_map().is_some_and(|map| !map.contains_key("required")) {
                item.put("required", Node::new(Value::Bool(true), span));
            }
        }
    }
}

pub(crate) fn extra_hosts(check: &mut Check<'_>, node: &mut Node) {
    if let Value::List(items) = &mut node.value {
        let items = std::mem::take(items);
        let mut map = Map::new();
        for (index, mut item) in items.into_iter().enumerate() {
            let Value::Text(text) = &item.value else {
                if !matches!(item.value, Value::Invalid) {
                    check.step(Step::Index(index), |check| check.wrong(&mut item, "a text `HOST=ADDRESS`"));
                }
                continue;
            };
            let text = text.clone();
            let Some((host, address)) = text.split_once('=').or_else(|| text.split_once(':')) else {
                let why = format!("`{text}` names no address; write `HOST=ADDRESS`");
                check.step(Step::Index(index), |check| check.bad(&mut item, why));
                continue;
            };
            add_host(check, &mut map, host, address, &item);
        }
        node.value = Value::Map(map);
    } else if let Value::Map(entries) = &mut node.value {
        let entries = std::mem::take(entries);
        let mut map = Map::new();
        for (host, entry) in entries {
            match &entry.node.value {
                Value::Text(address) => add_host(check, &mut map, &host, address, &entry.node),
                Value::List(addresses) => {
                    for address in addresses {
                        match address.as_text() {
                            Some(text) => add_host(check, &mut map, &host, text, address),
                            None => {
                                check.step(Step::Key(host.clone()), |check| check.wrong(&mut address.clone(), "a text"))
                            }
                        }
                    }
                }
                Value::Invalid => {}
                _ => check.step(Step::Key(host.clone()), |check| {
                    check.wrong(&mut entry.node.clone(), "an address or a list of addresses");
                }),
            }
        }
        node.value = Value::Map(map);
    }
}

fn add_host(check: &mut Check<'_>, map: &mut Map, host: &str, address: &str, from: &Node) {
    let (host, address) = (host.trim(), address.trim());
    if host.is_empty() || host.contains([':', '/']) {
        let why = format!("bad host name `{host}`");
        return check.bad(&mut from.clone(), why);
    }
    if address.contains(',') {
        return address.split(',').for_each(|address| add_host(check, map, host, address, from));
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if bare.is_empty() {
        let why = format!("host `{host}` has no address");
        return check.bad(&mut from.clone(), why);
    }
    let new = || Entry { key: from.span, node: from.with(Value::List(Vec::new())) };
    let entry = map.entry(host.into()).or_insert_with(new);
    if let Some(list) = entry.node.as_list_mut() {
        list.push(from.with(text_value(bare)));
    }
}

fn gpus(check: &mut Check<'_>, node: &mut Node) {
    let Value::Text(text) = &node.value else { return };
    if &**text != "all" {
        let why = format!("`{text}` is no list of devices; write `all` or a list");
        return check.bad(node, why);
    }
    let all = mapping(node, [("count", Value::Int(-1))]);
    let item = node.with(all);
    node.value = Value::List(vec![item]);
}

fn ulimit(node: &mut Node) {
    if matches!(node.value, Value::Int(_) | Value::Text(_)) {
        let value = node.value.clone();
        node.value = mapping(node, [("soft", value.clone()), ("hard", value)]);
    }
}

fn ssh(check: &mut Check<'_>, node: &mut Node) {
    let Value::List(items) = &node.value else { return };
    for item in items {
        if let Some(text) = item.as_text()
            && !text.contains('=')
            && text != "default"
        {
            let why = format!("invalid ssh key `{text}`; write `default` or `ID=PATH`");
            let mut item = item.clone();
            check.bad(&mut item, why);
        }
    }
}

pub(crate) fn external(check: &mut Check<'_>, node: &mut Node) {
    let Some(entry) = node.as_map().and_then(|map| map.get("external")) else { return };
    let (key, external) = (entry.key, entry.node.clone());
    let Value::Map(inner) = &external.value else { return };
    let span = external.span;
    if let Some(unknown) = inner.keys().find(|key| &***key != "name" && !key.starts_with("x-")) {
        let problem =
            Problem::error(code::UNKNOWN_KEY, format!("unknown key `{unknown}` in `external` of {}", check.place()))
                .at(inner.get(unknown).map_or(key, |entry| entry.key), "only `name` is known here");
        check.report.add(problem);
    }
    check.report.add(
        Problem::warning(code::OBSOLETE, format!("`external.name` of {} is obsolete", check.place()))
            .at(key, "")
            .hint("write `external: true` and `name: …` beside it"),
    );
    if let Some(name) = external.get("name") {
        let conflict = node.get("name").and_then(Node::as_text).is_some_and(|own| Some(own) != name.as_text());
        if conflict {
            let problem = Problem::error(
                code::EXCLUSIVE_KEYS,
                format!("`name` and `external.name` of {} conflict; only use `name`", check.place()),
            )
            .at(name.span, "another name than")
            .at(node.key_span("name"), "this one");
            check.report.add(problem);
        } else {
            let name = name.clone();
            node.put("name", name);
        }
    }
    node.put("external", Node::new(Value::Bool(true), span));
}

fn include(node: &mut Node) {
    if matches!(node.value, Value::Text(_)) {
        let path = node.value.clone();
        node.value = mapping(node, [("path", path)]);
    }
}

fn watch(check: &mut Check<'_>, node: &mut Node) {
    let blank = node.get("path").and_then(Node::as_text).is_some_and(str::is_empty);
    if blank && let Some(path) = node.get_mut("path") {
        let span = path.span;
        let place = check.place();
        check.report.add(Problem::error(code::WATCH, format!("`path` in {place}: value can't be blank")).at(span, ""));
        *path = Node::invalid(span);
    }
}

/// One published port in pieces.
#[derive(Debug, PartialEq)]
pub(crate) struct ShortPort {
    pub(crate) host_ip: Option<String>,
    pub(crate) published: Option<String>,
    pub(crate) target: u16,
    pub(crate) protocol: String,
}

/// Reads `[[HOST_IP:]PUBLISHED:]TARGET[/PROTOCOL]`; one text may be several ports.
pub(crate) fn parse_port(text: &str) -> Result<Vec<ShortPort>, String> {
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = scalar::protocol(protocol)?;
    let (rest, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (host_ip, host) = match rest.rsplit_once(':') {
        Some((ip, host)) => (ip, host),
        None => ("", rest),
    };
    // `IP::TARGET` leaves the host port open; a bracketed address may be all that stands before the target.
    let (host_ip, host) = if host_ip.is_empty() && host.contains(['.', '[']) { (host, "") } else { (host_ip, host) };
    let ip = host_ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(host_ip);
    if !ip.is_empty() {
        scalar::ip(ip)?;
    }
    if container.is_empty() {
        return Err("no port specified: `` (the container's port is missing)".into());
    }
    let (first, last) = scalar::port_range(container)
        .ok_or_else(|| format!("invalid containerPort: `{container}` is neither a port (1-65535) nor a range"))?;
    let count = last - first;
    let make = |published: Option<String>, target: u16| ShortPort {
        host_ip: (!ip.is_empty()).then(|| ip.to_owned()),
        published,
        target,
        protocol: protocol.clone(),
    };
    if host.is_empty() {
        return Ok((first..=last).map(|target| make(None, target)).collect());
    }
    if host == "0" {
        return Ok((first..=last).map(|target| make(Some("0".into()), target)).collect());
    }
    let (start, end) = scalar::port_range(host)
        .ok_or_else(|| format!("invalid hostPort: `{host}` is neither a port (1-65535) nor a range"))?;
    if end - start != count {
        if count != 0 {
            return Err(format!(
                "invalid ranges specified for container and host ports: {} on the host, {} in the container",
                u32::from(end - start) + 1,
                u32::from(count) + 1
            ));
        }
        return Ok(vec![make(Some(format!("{start}-{end}")), first)]);
    }
    Ok((0..=count).map(|index| make(Some((start + index).to_string()), first + index)).collect())
}

fn ports(check: &mut Check<'_>, node: &mut Node) {
    let Value::List(items) = &mut node.value else { return };
    let items = std::mem::take(items);
    let mut list = Vec::with_capacity(items.len());
    for (index, mut item) in items.into_iter().enumerate() {
        let text = match &item.value {
            Value::Text(text) => text.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Map(_) => {
                blank_published(&mut item);
                list.push(item);
                continue;
            }
            Value::Invalid => continue,
            _ => {
                check.step(Step::Index(index), |check| check.wrong(&mut item, "a text, a number or a mapping"));
                continue;
            }
        };
        match parse_port(&text) {
            Ok(ports) => list.extend(ports.into_iter().map(|port| port_node(port, &item))),
            Err(why) => {
                let place = check.place();
                let problem = Problem::error(code::BAD_PORT, format!("{place}: `{text}`: {why}"))
                    .at(item.span, "")
                    .hint("a port is `[[HOST_IP:]PUBLISHED:]TARGET[/tcp|udp|sctp]`, for example `\"8080:80\"`");
                check.refuse(&mut item, problem);
            }
        }
    }
    node.value = Value::List(list);
}

/// The host port that is not chosen may be left out or empty.
fn blank_published(item: &mut Node) {
    let blank = item.get("published").is_some_and(|node| node.as_text() == Some(""));
    if blank && let Some(map) = item.as_map_mut() {
        map.shift_remove("published");
    }
}

fn port_node(port: ShortPort, item: &Node) -> Node {
    let entries = [
        Some(("mode", text_value("ingress"))),
        port.host_ip.map(|ip| ("host_ip", text_value(&ip))),
        Some(("target", Value::Int(port.target.into()))),
        port.published.map(|published| ("published", text_value(&published))),
        Some(("protocol", text_value(&port.protocol))),
    ];
    item.with(mapping(item, entries.into_iter().flatten()))
}

/// One mount in pieces.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ShortMount {
    pub(crate) source: Option<String>,
    pub(crate) target: String,
    pub(crate) bind: bool,
    pub(crate) read_only: Option<bool>,
    pub(crate) nocopy: bool,
    pub(crate) selinux: Option<String>,
    pub(crate) propagation: Option<String>,
    pub(crate) unknown: Vec<String>,
}

/// Reads `[SOURCE:]TARGET[:OPTIONS]`.
pub(crate) fn parse_mount(text: &str) -> Result<ShortMount, String> {
    if text.trim().is_empty() {
        return Err("invalid empty volume spec".into());
    }
    let parts = split_mount(text);
    if parts.iter().any(|part| part.is_empty()) {
        return Err("empty section between colons".into());
    }
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, options] => (Some(source), target, &**options),
        _ => return Err("too many colons".into()),
    };
    let mut mount = ShortMount { target: target.clone(), source: source.cloned(), ..ShortMount::default() };
    mount.bind = mount.source.as_deref().is_some_and(is_path);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = Some(true),
            "rw" => mount.read_only = Some(false),
            "nocopy" => mount.nocopy = true,
            "z" | "Z" => mount.selinux = Some(option.to_owned()),
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                mount.propagation = Some(option.to_owned());
            }
            other => mount.unknown.push(other.to_owned()),
        }
    }
    Ok(mount)
}

/// A source that is a path of the host and not the name of a volume.
pub(crate) fn is_path(source: &str) -> bool {
    source.starts_with(['.', '/', '~']) || source.starts_with("\\\\") || is_windows_path(source)
}

/// `C:\…` or `C:/…`.
pub(crate) fn is_windows_path(path: &str) -> bool {
    let mut chars = path.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.next() == Some(':')
        && matches!(chars.next(), Some('\\' | '/'))
}

/// Splits at colons that are neither inside of `${…}` nor behind a drive letter.
fn split_mount(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut braces = 0usize;
    let bytes = text.as_bytes();
    for (at, c) in text.char_indices() {
        let last = parts.last_mut().expect("there is always a part");
        match c {
            '{' if braces > 0 || bytes.get(at.wrapping_sub(1)) == Some(&b'$') => {
                braces += 1;
                last.push(c);
            }
            '}' if braces > 0 => {
                braces -= 1;
                last.push(c);
            }
            ':' if braces == 0 && !(is_drive(last) && drive_follows(&text[at + 1..])) => parts.push(String::new()),
            _ => last.push(c),
        }
    }
    parts
}

fn is_drive(part: &str) -> bool {
    part.len() == 1 && part.as_bytes()[0].is_ascii_alphabetic()
}

/// Whether what follows a letter and a colon makes them a drive: a backslash, or a path that itself has a target behind.
/// `a:/b` is the volume `a`, as a person on Linux means it.
fn drive_follows(rest: &str) -> bool {
    rest.starts_with('\\')
        || rest.starts_with('/')
            && rest.split_once(':').is_some_and(|(_, target)| target.starts_with('/') || is_windows_path(target))
}

fn mount(check: &mut Check<'_>, node: &mut Node) {
    if let Value::Text(text) = &node.value {
        let text = text.clone();
        match parse_mount(&text) {
            Ok(mount) => {
                if !mount.unknown.is_empty() {
                    let list = mount.unknown.join("`, `");
                    check.report.add(
                        Problem::warning(
                            code::UNKNOWN_OPTION,
                            format!("{}: option `{list}` has no effect", check.place()),
                        )
                        .at(node.span, "known: ro, rw, nocopy, z, Z, [r]private, [r]shared, [r]slave"),
                    );
                }
                node.value = mount_value(mount, node);
            }
            Err(why) => {
                let problem = Problem::error(
                    code::BAD_MOUNT,
                    format!("{}: invalid spec `{text}`: {why}", check.place()),
                )
                .at(node.span, "")
                .hint(
                    "a mount is `[SOURCE:]TARGET[:OPTIONS]`, for example `data:/var/lib/data` or `./conf:/etc/conf:ro`",
                );
                check.refuse(node, problem);
            }
        }
        return;
    }
    clean_long_mount(check, node);
}

fn mount_value(mount: ShortMount, node: &Node) -> Value {
    let kind = if mount.bind { "bind" } else { "volume" };
    let mut bind = Map::new();
    let mut insert = |key: &str, value: Value| {
        bind.insert(key.into(), Entry { key: node.span, node: node.with(value) });
    };
    if let Some(propagation) = &mount.propagation {
        insert("propagation", text_value(propagation));
    }
    if mount.bind {
        insert("create_host_path", Value::Bool(true));
    }
    if let Some(selinux) = &mount.selinux {
        insert("selinux", text_value(selinux));
    }
    let volume = if mount.nocopy { mapping(node, [("nocopy", Value::Bool(true))]) } else { mapping(node, []) };
    let target = clean_path(&mount.target);
    let entries = [
        Some(("type", text_value(kind))),
        mount.source.as_deref().map(|source| ("source", text_value(source))),
        Some(("target", text_value(&target))),
        mount.read_only.filter(|read_only| *read_only).map(|read_only| ("read_only", Value::Bool(read_only))),
        (!bind.is_empty()).then_some(("bind", Value::Map(bind))),
        (!mount.bind).then_some(("volume", volume)),
    ];
    mapping(node, entries.into_iter().flatten())
}

fn clean_long_mount(check: &mut Check<'_>, node: &mut Node) {
    let span = node.span;
    let kind = node.get("type").and_then(Node::as_text).unwrap_or_default().to_owned();
    if let Some(target) = node.get_mut("target")
        && let Value::Text(text) = &target.value
    {
        let clean = clean_path(text);
        target.value = Value::Text(clean.into());
    } else if node.as_map().is_some_and(|map| !map.contains_key("target")) && !check.partial {
        missing(check, node, span, "target", "where it is mounted");
    }
    let no_source = node.as_map().is_some_and(|map| !map.contains_key("source"));
    if kind == "bind" && no_source && !check.partial {
        let place = check.place();
        check.report.add(
            Problem::error(
                code::BAD_MOUNT,
                format!("{place}: invalid mount config for type \"bind\": field Source must not be empty"),
            )
            .at(span, "`source` is needed: the path on the host"),
        );
        node.put("source", Node::invalid(span));
    }
}

fn missing(check: &mut Check<'_>, node: &mut Node, span: Span, key: &str, what: &str) {
    let place = check.place();
    check.report.add(
        Problem::error(code::MISSING_KEY, format!("{place}: missing property `{key}`"))
            .at(span, format!("`{key}` is needed: {what}")),
    );
    node.put(key, Node::invalid(span));
}

/// Without `.`, `..` and repeated slashes, as far as that can be known from the text.
pub(crate) fn clean_path(path: &str) -> String {
    if path.is_empty() || path.contains('\\') {
        return path.to_owned();
    }
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    match (absolute, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".into(),
        (false, false) => parts.join("/"),
    }
}
