//! The canonical model as text: what `config` prints, in Compose's own shapes, and what loads again as the same.

use crate::interpolate::escape;
use crate::load::CONTENT_KEY;
use crate::node::{Node, Value};
use serde_json::{Map as JsonMap, Number, Value as Json};
use std::fmt::Write as _;

/// The tree as JSON with sorted keys. With `escaped`, `$` is doubled so that the text can be loaded again.
pub fn to_json(tree: &Node, escaped: bool) -> Json {
    json(tree, escaped, &[])
}

/// The tree as YAML with sorted keys, `name` and `services` first, `$` doubled so that it can be loaded again.
pub fn to_yaml(tree: &Node) -> String {
    let mut out = String::new();
    let Json::Object(map) = to_json(tree, true) else { return out };
    let first = ["name", "services", "networks", "volumes", "secrets", "configs", "models"];
    let keys = first.iter().copied().filter(|key| map.contains_key(*key));
    let rest = map.keys().map(String::as_str).filter(|key| !first.contains(key));
    for key in keys.chain(rest) {
        entry(&mut out, key, &map[key], 0);
    }
    out
}

fn json(node: &Node, escaped: bool, path: &[&str]) -> Json {
    match &node.value {
        Value::Null | Value::Invalid => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::Number((*value).into()),
        Value::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
        Value::Text(text) => Json::String(if escaped { escape(text).to_string() } else { text.to_string() }),
        Value::List(items) => Json::Array(items.iter().map(|item| json(item, escaped, path)).collect()),
        Value::Map(map) => {
            let mut out = JsonMap::new();
            let mut keys: Vec<&str> = map.keys().map(|key| &**key).filter(|key| *key != CONTENT_KEY).collect();
            keys.sort_unstable();
            for key in keys {
                let inner: Vec<&str> = path.iter().copied().chain([key]).collect();
                out.insert(key.to_owned(), member(&map[key].node, escaped, &inner));
            }
            Json::Object(out)
        }
    }
}

/// Shapes that Compose prints otherwise than it keeps them.
fn member(node: &Node, escaped: bool, path: &[&str]) -> Json {
    // What stands inside of a service, its `build` or not; names that people chose never decide.
    let place = match path {
        ["services", _, "build", rest @ ..] | ["services", _, rest @ ..] => rest,
        _ => &[],
    };
    match (place, &node.value) {
        // Permission bits read best in octal, as a text, which every YAML parser leaves alone.
        (["secrets" | "configs", "mode"] | ["volumes", "tmpfs", "mode"], Value::Int(mode)) => {
            Json::String(format!("0{mode:o}"))
        }
        // Compose prints amounts of processor time and ratios as numbers.
        (
            [.., "cpus" | "max_failure_ratio"] | ["cpu_period" | "cpu_quota" | "cpu_rt_period" | "cpu_rt_runtime"],
            Value::Text(text),
        ) if place.first() == Some(&"deploy") || place.len() == 1 => {
            let whole = text.parse::<i64>().ok().map(Json::from);
            whole
                .or_else(|| text.parse().ok().and_then(Number::from_f64).map(Json::Number))
                .unwrap_or_else(|| Json::String(text.to_string()))
        }
        (["extra_hosts"], Value::Map(hosts)) => {
            let mut lines = Vec::new();
            for (host, entry) in hosts {
                for address in entry.node.items() {
                    lines.push(Json::String(format!("{host}={}", address.as_text().unwrap_or_default())));
                }
            }
            Json::Array(lines)
        }
        (["ulimits"], Value::Map(limits)) => {
            let mut out = JsonMap::new();
            for (name, entry) in limits {
                let (soft, hard) = (entry.node.get("soft"), entry.node.get("hard"));
                let one = soft.zip(hard).filter(|(soft, hard)| soft.same(hard)).map(|(soft, _)| soft);
                out.insert(name.to_string(), json(one.unwrap_or(&entry.node), escaped, path));
            }
            Json::Object(out)
        }
        (["ssh"], Value::Map(keys)) => {
            let line = |(id, entry): (&std::sync::Arc<str>, &crate::node::Entry)| match entry.node.as_text() {
                Some(path) => Json::String(format!("{id}={path}")),
                None => Json::String(id.to_string()),
            };
            Json::Array(keys.iter().map(line).collect())
        }
        _ => json(node, escaped, path),
    }
}

fn entry(out: &mut String, key: &str, value: &Json, depth: usize) {
    let _ = write!(out, "{:width$}{}:", "", scalar(&Json::String(key.to_owned()), depth), width = depth * 2);
    match value {
        Json::Object(map) if !map.is_empty() => {
            out.push('\n');
            for (key, value) in map {
                entry(out, key, value, depth + 1);
            }
        }
        Json::Array(items) if !items.is_empty() => {
            out.push('\n');
            for value in items {
                item(out, value, depth + 1);
            }
        }
        other => {
            let _ = writeln!(out, " {}", scalar(other, depth));
        }
    }
}

fn item(out: &mut String, value: &Json, depth: usize) {
    let indent = depth * 2;
    match value {
        Json::Object(map) if !map.is_empty() => {
            let mut inner = String::new();
            for (key, value) in map {
                entry(&mut inner, key, value, depth + 1);
            }
            let _ = write!(out, "{:indent$}- {}", "", &inner[indent + 2..]);
        }
        Json::Array(items) if !items.is_empty() => {
            let mut inner = String::new();
            for value in items {
                item(&mut inner, value, depth + 1);
            }
            let _ = write!(out, "{:indent$}- {}", "", &inner[indent + 2..]);
        }
        other => {
            let _ = writeln!(out, "{:indent$}- {}", "", scalar(other, depth));
        }
    }
}

/// A text is plain only when no YAML parser, old or new, could take it for something else.
fn scalar(value: &Json, depth: usize) -> String {
    match value {
        Json::String(text) if is_plain(text) => text.clone(),
        Json::String(text) if is_block(text) => block(text, depth),
        // JSON's quoting is YAML's double quoting.
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let first_ok = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_'));
    let all_ok = text.chars().all(|c| c.is_ascii_alphanumeric() || "/_-.@+=$,() ;".contains(c) || c == ':');
    let word = text.to_ascii_lowercase();
    first_ok
        && all_ok
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !matches!(word.as_str(), "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null")
}

fn is_block(text: &str) -> bool {
    text.trim_end_matches('\n').contains('\n')
        && !text.starts_with([' ', '\t', '\n'])
        && text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control())
        && !text.contains(['\u{feff}', '\u{85}', '\u{2028}', '\u{2029}'])
        && !text.lines().any(|line| line.ends_with([' ', '\t']))
}

fn block(text: &str, depth: usize) -> String {
    let body = text.trim_end_matches('\n');
    let newlines = text.len() - body.len();
    let mut out = String::from(match newlines {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    let lines = if newlines > 1 { &text[..text.len() - 1] } else { body };
    for line in lines.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            let _ = write!(out, "{:width$}{line}", "", width = (depth + 1) * 2);
        }
    }
    out
}
