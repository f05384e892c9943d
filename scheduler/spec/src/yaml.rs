//! YAML text to trees, one for each document, within limits that no file can break.

use crate::code;
use crate::node::{Entry, Map, Mark, Node, Value};
use crate::problem::{Problem, Report};
use crate::span::{FileId, Span, offset};
use granit_parser::{Event, Parser, ScalarStyle, ScanError, Tag};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Compose's own limit on nodes, aliases expanded.
pub(crate) const MAX_NODES: usize = 100_000;
/// Nobody nests a stack file deeper; the walks over the tree are recursive and must end well within a thread's stack.
pub(crate) const MAX_DEPTH: usize = 64;
/// Text that aliases may multiply into: more than any real stack, little enough for a small machine.
pub(crate) const MAX_TEXT: usize = 16 << 20;

/// A tree under construction.
struct Frame {
    value: Value,
    start: u32,
    anchor: usize,
    mark: Mark,
    /// The key that waits for its value.
    key: Option<(Arc<str>, Span)>,
    /// Values of `<<`, in order.
    merges: Vec<Node>,
    /// A key that is no text was reported; its value is dropped.
    skip: bool,
    /// Depth of what is below.
    height: usize,
}

/// What an alias may refer to.
struct Anchor {
    node: Option<Node>,
    nodes: usize,
    text: usize,
    height: usize,
}

struct Builder<'a> {
    file: FileId,
    report: &'a mut Report,
    stack: Vec<Frame>,
    anchors: BTreeMap<usize, Anchor>,
    documents: Vec<Node>,
    nodes: usize,
    text: usize,
}

/// Reads all documents of a file. Problems go to the report; `None` when the text is not YAML or breaks a limit.
pub(crate) fn parse(file: FileId, text: &str, report: &mut Report) -> Option<Vec<Node>> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut builder =
        Builder { file, report, stack: Vec::new(), anchors: BTreeMap::new(), documents: Vec::new(), nodes: 0, text: 0 };
    for next in Parser::new_from_str_with_options(text, options) {
        let outcome = match next {
            Ok((event, span)) => builder.take(event, Builder::span(file, &span)),
            Err(error) => Err(builder.syntax(&error, text)),
        };
        if let Err(problem) = outcome {
            builder.report.add(*problem);
            return None;
        }
    }
    Some(builder.documents)
}

type Step = Result<(), Box<Problem>>;

impl Builder<'_> {
    fn span(file: FileId, span: &granit_parser::Span) -> Span {
        let at = |marker: &granit_parser::Marker| offset(marker.byte_offset().unwrap_or(marker.index()));
        Span { file, start: at(&span.start), end: at(&span.end) }
    }

    fn syntax(&self, error: &ScanError, text: &str) -> Box<Problem> {
        let marker = error.marker();
        let start = marker.byte_offset().unwrap_or(marker.index()).min(text.len());
        let len = text[start..].chars().next().map_or(0, char::len_utf8);
        let span = Span { file: self.file, start: offset(start), end: offset(start + len) };
        let info = error.info();
        let nesting = matches!(error.kind(), granit_parser::ErrorKind::RecursionLimitExceeded);
        if nesting {
            return Box::new(
                Problem::error(code::YAML_LIMIT, format!("the document is nested deeper than {MAX_DEPTH} levels"))
                    .at(span, "here"),
            );
        }
        let mut problem =
            Problem::error(code::YAML_SYNTAX, format!("this is not YAML: {}", plain_words(&info))).at(span, "");
        let line = text[..start].rsplit('\n').next().unwrap_or("");
        if line.contains('\t') || text[start..].starts_with('\t') {
            problem = problem.hint("indent with blanks; YAML does not allow tabs there");
        } else if info.contains("unknown anchor") {
            problem = problem.hint("an alias `*name` needs an anchor `&name` above it in the same document");
        } else if info.contains("quoted scalar") || info.contains("quoted") {
            problem = problem.hint("a quote that was opened above is not closed");
        } else if info.contains("mapping values") {
            problem = problem.hint("put a value that has `: ` in it in quotes, or check the indentation");
        }
        Box::new(problem)
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Step {
        match event {
            Event::DocumentStart(..) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.charge(1, text.len(), span)?;
                let mark = mark_of(tag.as_deref());
                let plain_merge = style == ScalarStyle::Plain && &*text == "<<";
                let value = resolve(text, style, tag.as_deref());
                let mut node = Node::new(value, span);
                node.mark = mark;
                if let Value::Text(text) = &node.value {
                    let len = text.len();
                    self.anchor(anchor, &node, 1, len, 0);
                } else {
                    self.anchor(anchor, &node, 1, 0, 0);
                }
                self.place(node, 0, plain_merge)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.open(Value::List(Vec::new()), anchor, mark_of(tag.as_deref()), span)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.open(Value::Map(Map::new()), anchor, mark_of(tag.as_deref()), span)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(id) => self.alias(id, span),
            _ => Ok(()),
        }
    }

    fn charge(&mut self, nodes: usize, text: usize, span: Span) -> Step {
        self.nodes += nodes;
        self.text += text;
        if self.nodes > MAX_NODES || self.text > MAX_TEXT {
            let what = if self.nodes > MAX_NODES {
                format!("more than {MAX_NODES} values")
            } else {
                format!("more than {} MiB of text", MAX_TEXT >> 20)
            };
            return Err(Box::new(
                Problem::error(code::YAML_LIMIT, format!("excessive aliasing or size: the file expands to {what}"))
                    .at(span, "the limit is passed here"),
            ));
        }
        Ok(())
    }

    fn anchor(&mut self, id: usize, node: &Node, nodes: usize, text: usize, height: usize) {
        if id != 0 {
            self.anchors.insert(id, Anchor { node: Some(node.clone()), nodes, text, height });
        }
    }

    fn open(&mut self, value: Value, anchor: usize, mark: Mark, span: Span) -> Step {
        self.charge(1, 0, span)?;
        if self.stack.len() >= MAX_DEPTH {
            return Err(self.too_deep(span));
        }
        if anchor != 0 {
            // The counters so far, to be subtracted at the end.
            self.anchors.insert(anchor, Anchor { node: None, nodes: self.nodes - 1, text: self.text, height: 0 });
        }
        let start = span.start;
        self.stack.push(Frame { value, start, anchor, mark, key: None, merges: Vec::new(), skip: false, height: 0 });
        Ok(())
    }

    fn too_deep(&self, span: Span) -> Box<Problem> {
        let message = format!("the document is nested deeper than {MAX_DEPTH} levels");
        Box::new(Problem::error(code::YAML_LIMIT, message).at(span, "here"))
    }

    fn close(&mut self, span: Span) -> Step {
        let Some(mut frame) = self.stack.pop() else { return Ok(()) };
        if let Value::Map(map) = &mut frame.value {
            for source in frame.merges.drain(..) {
                self.nodes += merge_into(map, source);
            }
        }
        // The end of a block collection is only known by what follows it; trim back to its last child.
        let end = last_end(&frame.value).unwrap_or(span.end).max(frame.start);
        let mut node = Node::new(frame.value, Span { file: self.file, start: frame.start, end });
        node.mark = frame.mark;
        if let Some(anchor) = self.anchors.get_mut(&frame.anchor) {
            anchor.nodes = self.nodes - anchor.nodes;
            anchor.text = self.text - anchor.text;
            anchor.height = frame.height + 1;
            anchor.node = Some(node.clone());
        }
        self.charge(0, 0, span)?;
        self.place(node, frame.height + 1, false)
    }

    fn alias(&mut self, id: usize, span: Span) -> Step {
        let Some(anchor) = self.anchors.get(&id) else { return Ok(()) };
        let Some(mut node) = anchor.node.clone() else {
            return Err(Box::new(
                Problem::error(code::ALIAS_CYCLE, "cycle detected: this alias stands inside of what it refers to")
                    .at(span, "refers to a mapping or list that is not finished here"),
            ));
        };
        let (nodes, text, height) = (anchor.nodes, anchor.text, anchor.height);
        self.charge(nodes.max(1), text, span)?;
        if self.stack.len() + height > MAX_DEPTH {
            return Err(self.too_deep(span));
        }
        // A scalar's alias is a place of its own; for collections the parts keep the places where they are written.
        if !matches!(node.value, Value::List(_) | Value::Map(_)) {
            node.span = span;
        }
        self.place(node, height, false)
    }

    /// Puts a finished node where it belongs: under the waiting key, into the list, or at the top.
    fn place(&mut self, node: Node, height: usize, plain_merge: bool) -> Step {
        let Some(frame) = self.stack.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        frame.height = frame.height.max(height);
        let map = match &mut frame.value {
            Value::List(list) => {
                list.push(node);
                return Ok(());
            }
            Value::Map(map) => map,
            _ => return Ok(()),
        };
        if frame.skip {
            frame.skip = false;
            return Ok(());
        }
        let Some((key, key_span)) = frame.key.take() else {
            match &node.value {
                Value::Text(_) if plain_merge => frame.key = Some((MERGE.into(), node.span)),
                Value::Text(text) => frame.key = Some((text.clone(), node.span)),
                _ => {
                    frame.skip = true;
                    let shown = node.scalar_text().unwrap_or_else(|| node.kind_name().to_owned());
                    self.report.add(
                        Problem::error(
                            code::KEY_NOT_TEXT,
                            format!("non-string key: `{shown}` is {}", node.kind_name()),
                        )
                        .at(node.span, "keys are texts")
                        .hint(format!("put it in quotes: `\"{shown}\"`")),
                    );
                }
            }
            return Ok(());
        };
        if &*key == MERGE {
            let sources = match node.value {
                Value::List(list) => list,
                _ => vec![node],
            };
            for source in sources {
                if matches!(source.value, Value::Map(_)) {
                    frame.merges.push(source);
                } else if !source.is_null() {
                    let found = source.kind_name();
                    self.report.add(
                        Problem::error(code::MERGE_KEY, format!("map merge requires map: `<<` got {found}"))
                            .at(source.span, "a mapping or a list of mappings belongs here"),
                    );
                }
            }
            return Ok(());
        }
        if let Some(first) = map.get(&key) {
            self.report.add(
                Problem::error(code::DUPLICATE_KEY, format!("mapping key `{key}` is already defined"))
                    .at(key_span, "second time")
                    .at(first.key, "first time")
                    .hint("remove one of the two, or put both contents under one key"),
            );
            return Ok(());
        }
        map.insert(key, Entry { key: key_span, node });
        Ok(())
    }
}

/// Stands for a plain `<<`; no key of a document can be this text by itself.
const MERGE: &str = "\u{0}<<";

/// Adds what the mapping does not say itself; returns the number of entries added.
fn merge_into(map: &mut Map, source: Node) -> usize {
    let Value::Map(source) = source.value else { return 0 };
    let before = map.len();
    for (key, entry) in source {
        map.entry(key).or_insert(entry);
    }
    map.len() - before
}

fn last_end(value: &Value) -> Option<u32> {
    match value {
        Value::List(list) => list.last().map(|node| node.span.end),
        Value::Map(map) => map.last().map(|(_, entry)| entry.node.span.end.max(entry.key.end)),
        _ => None,
    }
}

fn mark_of(tag: Option<&Tag>) -> Mark {
    match tag.map(Tag::suffix) {
        Some("reset") => Mark::Reset,
        Some("override") => Mark::Override,
        _ => Mark::None,
    }
}

/// The parser's words, without its own quoting of internals.
fn plain_words(info: &str) -> String {
    info.trim_end_matches('.').to_owned()
}

/// What a scalar means: YAML 1.2's core schema with the numbers of Compose's parser (`022` is octal, `1_000` a thousand).
fn resolve(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let core = tag.and_then(Tag::core_suffix);
    if core == Some("str") || (style != ScalarStyle::Plain && core.is_none()) {
        return Value::Text(text.into());
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY),
        _ => {}
    }
    number(&text).unwrap_or_else(|| Value::Text(text.into()))
}

fn number(text: &str) -> Option<Value> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.as_bytes().first()? {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, &*plain),
    };
    let radix = |prefix: &str| digits.strip_prefix(prefix).or_else(|| digits.strip_prefix(&prefix.to_uppercase()));
    let whole = if let Some(hex) = radix("0x") {
        i64::from_str_radix(hex, 16).ok()
    } else if let Some(binary) = radix("0b") {
        i64::from_str_radix(binary, 2).ok()
    } else if let Some(octal) = radix("0o") {
        i64::from_str_radix(octal, 8).ok()
    } else if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        i64::from_str_radix(digits, 8).ok()
    } else if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    };
    if let Some(whole) = whole {
        return Some(Value::Int(if negative { -whole } else { whole }));
    }
    let mut parts = digits.splitn(2, ['e', 'E']);
    let mantissa = parts.next()?;
    let exponent = parts.next();
    let mantissa_ok = mantissa.bytes().any(|byte| byte.is_ascii_digit())
        && mantissa.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && mantissa.bytes().filter(|byte| *byte == b'.').count() <= 1;
    let exponent_ok = exponent.is_none_or(|exponent| {
        let digits = exponent.trim_start_matches(['+', '-']);
        exponent.len() - digits.len() <= 1 && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    if !mantissa_ok || !exponent_ok {
        return None;
    }
    plain.parse().ok().map(Value::Float)
}
