//! How a later file (or an extending service) joins what came before it: attribute by attribute, as the tables say.

use crate::check::{Check, Step};
use crate::code;
use crate::node::{Map, Mark, Node, Value};
use crate::problem::Problem;
use crate::schema::{Kind, Merge, Short};
use crate::short;

/// Takes away from `base` what `over` marks with `!reset` or `!override`.
pub(crate) fn apply_marks(base: &mut Node, over: &Node) {
    let (Value::Map(base), Value::Map(over)) = (&mut base.value, &over.value) else { return };
    for (key, entry) in over {
        if entry.node.mark == Mark::None {
            if let Some(below) = base.get_mut(key) {
                apply_marks(&mut below.node, &entry.node);
            }
        } else {
            base.shift_remove(key);
        }
    }
}

/// Removes what is marked `!reset`, and the marks.
pub(crate) fn strip_marks(node: &mut Node) {
    node.mark = Mark::None;
    match &mut node.value {
        Value::Map(map) => {
            map.retain(|_, entry| entry.node.mark != Mark::Reset);
            for entry in map.values_mut() {
                strip_marks(&mut entry.node);
            }
        }
        Value::List(list) => {
            list.retain(|item| item.mark != Mark::Reset);
            list.iter_mut().for_each(strip_marks);
        }
        _ => {}
    }
}

/// `over` on top of `base`, both of this kind in whatever form.
pub(crate) fn merge(check: &mut Check<'_>, base: Node, over: Node, kind: &'static Kind, rule: Merge) -> Node {
    if rule == Merge::Replace {
        return over;
    }
    if over.is_null() && !matches!(base.value, Value::Invalid) {
        return base;
    }
    if base.is_null() || matches!(base.value, Value::Invalid) || matches!(over.value, Value::Invalid) {
        return over;
    }
    match rule {
        Merge::Logging => return logging(check, base, over, kind),
        Merge::Pools => return pools(check, base, over, kind),
        Merge::ByKind | Merge::Replace => {}
    }
    match kind {
        Kind::Any => generic(check, base, over),
        Kind::Nullable(inner) => merge(check, base, over, inner, Merge::ByKind),
        Kind::Short(Short::Ulimit, _) => over,
        Kind::Short(short, long) => {
            let base = long_form(check, base, *short);
            let over = long_form(check, over, *short);
            merge(check, base, over, long, Merge::ByKind)
        }
        Kind::KeyValues => {
            let (mut base, mut over) = (base, over);
            check.node(&mut base, kind);
            check.node(&mut over, kind);
            overlay(base, over)
        }
        Kind::Scalars => maps(check, base, over, |_| None),
        Kind::List(..) => append(check, base, over),
        Kind::OneOrList(..) => {
            let (base, over) = (listed(base), listed(over));
            append(check, base, over)
        }
        Kind::Named(item) => {
            let hosts = matches!(item, Kind::List(..));
            let item: &'static Kind = item;
            let merged = maps(check, base, over, |_| Some((item, Merge::ByKind)));
            if hosts { without_repeats(merged) } else { merged }
        }
        Kind::Table(table) => maps(check, base, over, |key| table.field(key).map(|field| (&field.kind, field.merge))),
        _ => scalar(check, base, over),
    }
}

fn long_form(check: &mut Check<'_>, mut node: Node, short: Short) -> Node {
    match short {
        Short::Build => short::build(&mut node),
        Short::DependsOn => short::depends_on(check, &mut node),
        Short::Names => short::names(check, &mut node),
        Short::EnvFile => short::env_file(check, &mut node),
        Short::ExtraHosts => short::extra_hosts(check, &mut node),
        Short::External => short::external(check, &mut node),
        _ => {}
    }
    node
}

fn listed(node: Node) -> Node {
    if matches!(node.value, Value::Text(_)) { node.with(Value::List(vec![node.clone()])) } else { node }
}

fn cannot(check: &mut Check<'_>, base: &Node, over: &Node) -> Node {
    let problem = Problem::error(
        code::CANNOT_OVERRIDE,
        format!("cannot override {}: {} on top of {}", check.place(), over.kind_name(), base.kind_name()),
    )
    .at(over.span, format!("this is {}", over.kind_name()))
    .at(base.span, format!("{} so far", base.kind_name()))
    .hint("use the same form in both places, or `!override` to replace the whole value");
    check.report.add(problem);
    Node::invalid(over.span)
}

fn scalar(check: &mut Check<'_>, base: Node, over: Node) -> Node {
    match (&base.value, &over.value) {
        (Value::Map(_), Value::Map(_)) | (Value::List(_), Value::List(_)) => over,
        (Value::Map(_) | Value::List(_), _) => cannot(check, &base, &over),
        _ => over,
    }
}

fn generic(check: &mut Check<'_>, base: Node, over: Node) -> Node {
    match (&base.value, &over.value) {
        (_, Value::Null) => base,
        (Value::Map(_), Value::Map(_)) => maps(check, base, over, |_| None),
        (Value::List(_), Value::List(_)) => append(check, base, over),
        (Value::Map(_) | Value::List(_), _) => cannot(check, &base, &over),
        _ => over,
    }
}

fn append(check: &mut Check<'_>, mut base: Node, over: Node) -> Node {
    match (&mut base.value, over.value) {
        (Value::List(items), Value::List(more)) => {
            items.extend(more);
            base
        }
        (_, value) => cannot(check, &base, &Node::new(value, over.span)),
    }
}

fn overlay(mut base: Node, over: Node) -> Node {
    if let (Value::Map(base), Value::Map(over)) = (&mut base.value, over.value) {
        base.extend(over);
    }
    base
}

type KindOf<'k> = dyn Fn(&str) -> Option<(&'static Kind, Merge)> + 'k;

fn maps(
    check: &mut Check<'_>,
    mut base: Node,
    over: Node,
    kind_of: impl Fn(&str) -> Option<(&'static Kind, Merge)>,
) -> Node {
    let kind_of: &KindOf<'_> = &kind_of;
    let over_span = over.span;
    match (&mut base.value, over.value) {
        (Value::Map(map), Value::Map(more)) => {
            for (key, entry) in more {
                match map.get_mut(&key) {
                    None => {
                        map.insert(key, entry);
                    }
                    Some(below) => {
                        let (kind, rule) = kind_of(&key).unwrap_or((&Kind::Any, Merge::ByKind));
                        let under = std::mem::replace(&mut below.node, Node::invalid(over_span));
                        let untouched = entry.node.is_null() && rule != Merge::Replace;
                        below.node =
                            check.step(Step::Key(key.clone()), |check| merge(check, under, entry.node, kind, rule));
                        if !untouched {
                            below.key = entry.key;
                        }
                    }
                }
            }
            base
        }
        (_, value) => cannot(check, &base, &Node::new(value, over_span)),
    }
}

/// Lists of addresses: an address that was there already is not added again.
fn without_repeats(mut node: Node) -> Node {
    for entry in node.as_map_mut().into_iter().flat_map(Map::values_mut) {
        if let Some(list) = entry.node.as_list_mut() {
            let mut seen = std::collections::BTreeSet::new();
            list.retain(|item| item.scalar_text().is_none_or(|text| seen.insert(text)));
        }
    }
    node
}

fn logging(check: &mut Check<'_>, base: Node, over: Node, kind: &'static Kind) -> Node {
    let driver = |node: &Node| node.get("driver").and_then(Node::scalar_text);
    match (driver(&base), driver(&over)) {
        (Some(a), Some(b)) if a != b => over,
        _ => merge(check, base, over, kind, Merge::ByKind),
    }
}

fn pools(check: &mut Check<'_>, mut base: Node, over: Node, kind: &'static Kind) -> Node {
    let Kind::List(item, _) = kind else { return over };
    let item: &'static Kind = item;
    let over_span = over.span;
    let (Value::List(pools), Value::List(more)) = (&mut base.value, over.value) else {
        return cannot(check, &base, &Node::new(Value::Null, over_span));
    };
    let subnet = |node: &Node| node.get("subnet").and_then(Node::scalar_text);
    for pool in more {
        match pools.iter_mut().find(|known| subnet(known) == subnet(&pool)) {
            Some(known) => {
                let under = std::mem::replace(known, Node::invalid(over_span));
                *known = merge(check, under, pool, item, Merge::ByKind);
            }
            None => pools.push(pool),
        }
    }
    base
}
