//! What is different between two specifications, in words.

use orch_spec::model::ServiceSpec;
use serde_json::Value;

use crate::state::Revision;

/// Longest value that is shown whole, in characters.
const SHOWN: usize = 60;
/// Of what two long values begin with alike so much is shown, in characters.
const ALIKE: usize = 20;
/// Reasons shown; more are counted.
const REASONS: usize = 4;

/// The differences that force a new container, each as one phrase: `environment FOO changed (a → b)`.
pub fn explain_changes(old: &Revision, new: &Revision) -> Vec<String> {
    let mut reasons = Vec::new();
    if old.hash != new.hash {
        compare_specs(&old.spec, &new.spec, &mut reasons);
        compare_files(old, new, &mut reasons);
        if reasons.is_empty() {
            reasons.push("its configuration digest changed".to_owned());
        }
    }
    compare_names("network", &old.networks, &new.networks, &mut reasons);
    compare_names("volume", &old.volumes, &new.volumes, &mut reasons);
    reasons
}

/// The phrases as one, cut where there are too many.
pub(crate) fn join(reasons: &[String]) -> String {
    match reasons.len().checked_sub(REASONS) {
        Some(more) if more > 0 => format!("{}; and {more} more", reasons[..REASONS].join("; ")),
        _ => reasons.join("; "),
    }
}

/// Keys that change no container, as [`ServiceSpec::digest`] leaves them out.
fn reduced(spec: &ServiceSpec) -> Value {
    let mut spec = spec.clone();
    spec.build = None;
    spec.pull_policy = None;
    spec.scale = None;
    spec.deploy.replicas = None;
    spec.deploy.placement = orch_spec::model::PlacementSpec::default();
    spec.deploy.update_config = None;
    spec.deploy.rollback_config = None;
    spec.depends_on.clear();
    spec.profiles.clear();
    spec.develop = None;
    spec.attach = None;
    serde_json::to_value(&spec).unwrap_or(Value::Null)
}

fn compare_specs(old: &ServiceSpec, new: &ServiceSpec, reasons: &mut Vec<String>) {
    let (old, new) = (reduced(old), reduced(new));
    let (Value::Object(old), Value::Object(new)) = (&old, &new) else { return };
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
        // One level of names reads better than the whole map: `environment FOO changed`.
        match (old, new) {
            (Value::Object(old), Value::Object(new)) if !is_variant(old) && !is_variant(new) => {
                let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for name in names {
                    compare_value(&format!("{key} {name}"), old.get(name), new.get(name), reasons);
                }
            }
            _ => compare_value(key, Some(old), Some(new), reasons),
        }
    }
}

/// How serde writes an enumeration's variant with content; taking it for a map would read oddly.
fn is_variant(map: &serde_json::Map<String, Value>) -> bool {
    map.len() == 1 && map.values().all(|value| value.is_object())
}

fn compare_value(what: &str, old: Option<&Value>, new: Option<&Value>, reasons: &mut Vec<String>) {
    if old == new || (is_nothing(old) && is_nothing(new) && !what.starts_with("environment ")) {
        return;
    }
    reasons.push(match (old, new) {
        // Whole structures read badly, and what is in them is in the file.
        (old, new) if [old, new].into_iter().flatten().any(is_structure) => format!("{what} changed"),
        (None, Some(new)) => format!("{what} added ({})", show(new)),
        (Some(old), None) => format!("{what} removed (was {})", show(old)),
        (old, new) if is_nothing(old) => format!("{what} set ({})", new.map_or_else(String::new, show)),
        (old, new) if is_nothing(new) => format!("{what} unset (was {})", old.map_or_else(String::new, show)),
        (Some(old), Some(new)) => {
            let (old, new) = show_both(old, new);
            format!("{what} changed ({old} → {new})")
        }
        (None, None) => return,
    });
}

fn is_nothing(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

fn is_structure(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => list.iter().any(|one| one.is_object() || one.is_array()),
        _ => false,
    }
}

fn show(value: &Value) -> String {
    cut(&plain(value), 0)
}

/// Two values; of those that are too long to be shown whole what is different, and a little before it.
fn show_both(old: &Value, new: &Value) -> (String, String) {
    let (old, new) = (plain(old), plain(new));
    let is_long = old.chars().count().max(new.chars().count()) > SHOWN;
    let alike = old.chars().zip(new.chars()).take_while(|(old, new)| old == new).count();
    let from = if is_long { alike.saturating_sub(ALIKE) } else { 0 };
    (cut(&old, from), cut(&new, from))
}

/// A value on one line.
fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// As much of a text as is shown, from this character on.
fn cut(text: &str, from: usize) -> String {
    let before = if from > 0 { "…" } else { "" };
    let rest: Vec<char> = text.chars().skip(from).collect();
    if rest.len() <= SHOWN {
        return format!("{before}{}", rest.iter().collect::<String>());
    }
    format!("{before}{}…", rest[..SHOWN - 1].iter().collect::<String>())
}

fn compare_files(old: &Revision, new: &Revision, reasons: &mut Vec<String>) {
    for file in &new.files {
        match old.files.iter().find(|former| former.target == file.target) {
            // By a digest whoever reads a plan could try out passwords.
            Some(former) if former.digest != file.digest && (file.secret || former.secret) => {
                reasons.push(format!("secret {} changed", file.target));
            }
            Some(former) if former.digest != file.digest => {
                let (former, now) = (short(&former.digest), short(&file.digest));
                reasons.push(format!("config {} changed ({former} → {now})", file.target));
            }
            _ => {}
        }
    }
}

/// Twelve digits tell two configs apart.
fn short(digest: &str) -> String {
    format!("sha256:{}", digest.get(..12).unwrap_or(digest))
}

fn compare_names<V: PartialEq + std::fmt::Display>(
    kind: &str,
    old: &std::collections::BTreeMap<String, V>,
    new: &std::collections::BTreeMap<String, V>,
    reasons: &mut Vec<String>,
) {
    for (key, new) in new {
        if let Some(old) = old.get(key)
            && old != new
        {
            reasons.push(format!("{kind} {key} is another one ({old} → {new})"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_long_values_that_begin_alike_the_difference_is_shown() {
        let long =
            |port: u16| Value::String(format!("sh -c {} exec httpd -p {port} {}", "x".repeat(200), "y".repeat(200)));
        let (old, new) = show_both(&long(80), &long(81));
        assert!(old.starts_with('…') && old.contains("httpd -p 80 ") && old.ends_with('…'), "{old}");
        assert!(new.contains("httpd -p 81 "), "{new}");
        assert_eq!(show_both(&"info".into(), &"debug".into()), ("info".to_owned(), "debug".to_owned()));
        let (short, long) = show_both(&"a".into(), &format!("ab{}", "c".repeat(100)).into());
        assert!(short == "a" && long.starts_with("ab"), "{short} {long}");
    }
}
