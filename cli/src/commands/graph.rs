//! `graph`: the stack as a picture: services, what they depend on, networks and published ports.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use orch_spec::model::{DependencyCondition, StackSpec};
use petgraph::graphmap::DiGraphMap;

use crate::args::Graph;
use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{printer, stack_file};

/// Prints the picture.
pub(super) fn run(settings: &Settings, args: &Graph) -> Result<Exit> {
    let loaded = stack_file::load(settings, &[])?;
    let text = match args.output.as_str() {
        "dot" => dot(&loaded.spec),
        "mermaid" => mermaid(&loaded.spec),
        "svg" => svg(&loaded.spec),
        other => return Err(Failure::usage(format!("-o {other}: write `dot`, `mermaid` or `svg`")).into()),
    };
    printer::out(&text);
    Ok(Exit::Done)
}

fn condition(condition: DependencyCondition) -> &'static str {
    match condition {
        DependencyCondition::Started => "",
        DependencyCondition::Healthy => "healthy",
        DependencyCondition::CompletedSuccessfully => "completed",
    }
}

fn edges(spec: &StackSpec) -> impl Iterator<Item = (&str, &str, &'static str)> {
    spec.services.iter().flat_map(|(name, service)| {
        service.depends_on.iter().map(move |(on, d)| (name.as_str(), on.as_str(), condition(d.condition)))
    })
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Writing to a string cannot fail, so its results are not looked at in this file.
fn dot(spec: &StackSpec) -> String {
    let mut text = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box];\n", quoted(&spec.name));
    for (name, service) in &spec.services {
        let label = format!("{name}\\n{}", service.image.replace('"', ""));
        let _ = writeln!(text, "  {} [label=\"{label}\"];", quoted(name));
        for port in &service.ports {
            let published = port.published.map(|p| p.to_string()).unwrap_or_default();
            let host = format!("{published}:{}/{}", port.target, port.protocol);
            let _ = writeln!(text, "  {} [shape=ellipse]; {} -> {};", quoted(&host), quoted(&host), quoted(name));
        }
    }
    for (from, to, label) in edges(spec) {
        let _ = writeln!(text, "  {} -> {} [label={}];", quoted(from), quoted(to), quoted(label));
    }
    text.push_str("}\n");
    text
}

fn mermaid(spec: &StackSpec) -> String {
    let ids: BTreeMap<&str, usize> = spec.services.keys().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let mut text = String::from("graph LR\n");
    for (name, id) in &ids {
        let _ = writeln!(text, "  s{id}[\"{}\"]", name.replace('"', ""));
    }
    for (from, to, label) in edges(spec) {
        let (Some(from), Some(to)) = (ids.get(from), ids.get(to)) else { continue };
        let arrow = if label.is_empty() { "-->".to_owned() } else { format!("-->|{label}|") };
        let _ = writeln!(text, "  s{from} {arrow} s{to}");
    }
    text
}

const BOX_WIDTH: usize = 170;
const BOX_HEIGHT: usize = 44;
const GAP_X: usize = 70;
const GAP_Y: usize = 26;

/// Columns by depth: what depends on nothing stands on the right.
fn layers(spec: &StackSpec) -> Vec<Vec<&str>> {
    let mut graph = DiGraphMap::<&str, ()>::new();
    spec.services.keys().for_each(|name| {
        graph.add_node(name);
    });
    edges(spec).filter(|(_, to, _)| spec.services.contains_key(*to)).for_each(|(from, to, _)| {
        graph.add_edge(from, to, ());
    });
    // The loader refuses cycles, so the order exists; without it every service stands in one column.
    let order = petgraph::algo::toposort(&graph, None).unwrap_or_default();
    let mut depth: BTreeMap<&str, usize> = BTreeMap::new();
    for name in order.into_iter().rev() {
        let below = graph.neighbors(name).map(|n| depth.get(n).copied().unwrap_or(0) + 1).max().unwrap_or(0);
        depth.insert(name, below);
    }
    let deepest = depth.values().copied().max().unwrap_or(0);
    let mut columns = vec![Vec::new(); deepest + 1];
    for name in spec.services.keys() {
        columns[deepest - depth.get(name.as_str()).copied().unwrap_or(0)].push(name.as_str());
    }
    columns
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn svg(spec: &StackSpec) -> String {
    let columns = layers(spec);
    let tallest = columns.iter().map(Vec::len).max().unwrap_or(0);
    let (width, height) = (columns.len() * (BOX_WIDTH + GAP_X) + GAP_X / 2, tallest * (BOX_HEIGHT + GAP_Y) + GAP_Y);
    let mut place: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (column, names) in columns.iter().enumerate() {
        for (row, name) in names.iter().enumerate() {
            place.insert(name, (GAP_X / 2 + column * (BOX_WIDTH + GAP_X), GAP_Y + row * (BOX_HEIGHT + GAP_Y)));
        }
    }
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <defs><marker id=\"a\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\">\
         <path d=\"M0 0L8 4L0 8z\" fill=\"#555\"/></marker></defs>\n"
    );
    for (from, to, label) in edges(spec) {
        let (Some((x1, y1)), Some((x2, y2))) = (place.get(from), place.get(to)) else { continue };
        let (x1, y1, y2) = (x1 + BOX_WIDTH, y1 + BOX_HEIGHT / 2, y2 + BOX_HEIGHT / 2);
        let _ = writeln!(
            text,
            "<path d=\"M{x1} {y1}C{} {y1} {} {y2} {x2} {y2}\" fill=\"none\" stroke=\"#555\" marker-end=\"url(#a)\"/>",
            x1 + GAP_X / 2,
            x2.saturating_sub(GAP_X / 2),
        );
        if !label.is_empty() {
            let _ =
                writeln!(text, "<text x=\"{}\" y=\"{}\" font-size=\"10\" fill=\"#555\">{label}</text>", x1 + 6, y1 - 4);
        }
    }
    for (name, (x, y)) in &place {
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"6\" fill=\"#eef4fb\" stroke=\"#3b6ea5\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x + BOX_WIDTH / 2,
            y + 19,
            xml(name)
        );
        let image = spec.services.get(*name).map(|s| s.image.as_str()).unwrap_or_default();
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\" fill=\"#555\">{}</text>",
            x + BOX_WIDTH / 2,
            y + 35,
            xml(image)
        );
    }
    text.push_str("</svg>\n");
    text
}
