//! `$NAME`, `${NAME}`, `${NAME:-default}` and their relatives in the values of a stack file. Keys are left alone.

use crate::code;
use crate::environment::Environment;
use crate::node::{Node, Value, VariableUse};
use crate::problem::{Problem, Report};
use crate::span::{Files, Span, offset};
use std::sync::Arc;

/// Defaults inside of defaults; nobody writes three.
const MAX_NESTING: usize = 32;
/// Bytes that all variables of one load may expand to; a stack file is settings, not data.
const MAX_EXPANSION: usize = 16 << 20;

/// What a template came to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Expansion {
    pub(crate) text: String,
    /// Variables whose value (or lack of one) is in the text.
    pub(crate) used: Vec<String>,
    /// Variables that were needed, are not set and have no default, with where they stand in the template.
    pub(crate) unset: Vec<(String, usize, usize)>,
}

/// What is wrong with a template. Offsets are bytes in it.
#[derive(Debug, PartialEq)]
pub(crate) enum TemplateError {
    Invalid { start: usize, end: usize, why: String },
    Required { name: String, message: String, start: usize, end: usize },
    TooLarge,
}

/// Replaces the variables of one template.
pub(crate) fn expand<'v>(template: &str, lookup: &dyn Fn(&str) -> Option<&'v str>) -> Result<Expansion, TemplateError> {
    let mut out = Expansion::default();
    expand_into(template, 0, 0, lookup, &mut out)?;
    Ok(out)
}

type Lookup<'l, 'v> = &'l dyn Fn(&str) -> Option<&'v str>;

fn expand_into(
    template: &str,
    base: usize,
    depth: usize,
    lookup: Lookup<'_, '_>,
    out: &mut Expansion,
) -> Result<(), TemplateError> {
    let invalid = |start: usize, end: usize, why: &str| TemplateError::Invalid {
        start: base + start,
        end: base + end,
        why: why.into(),
    };
    if depth > MAX_NESTING {
        return Err(invalid(0, template.len(), "defaults are nested too deeply"));
    }
    let mut at = 0;
    while let Some(found) = template[at..].find('$') {
        let dollar = at + found;
        out.text.push_str(&template[at..dollar]);
        let rest = &template[dollar + 1..];
        match rest.bytes().next() {
            Some(b'$') => {
                out.text.push('$');
                at = dollar + 2;
            }
            Some(b'{') => {
                let Some(len) = closing_brace(rest) else {
                    return Err(invalid(dollar, template.len(), "the closing `}` is missing"));
                };
                let inside = &rest[1..len];
                braced(inside, base + dollar, depth, lookup, out)?;
                at = dollar + 1 + len + 1;
            }
            Some(byte) if byte == b'_' || byte.is_ascii_alphabetic() => {
                let len = name_len(rest);
                plain(&rest[..len], base + dollar, base + dollar + 1 + len, lookup, out);
                at = dollar + 1 + len;
            }
            _ => {
                out.text.push('$');
                at = dollar + 1;
            }
        }
        if out.text.len() > MAX_EXPANSION {
            return Err(TemplateError::TooLarge);
        }
    }
    out.text.push_str(&template[at..]);
    Ok(())
}

fn plain(name: &str, start: usize, end: usize, lookup: Lookup<'_, '_>, out: &mut Expansion) {
    match lookup(name) {
        Some(value) => out.text.push_str(value),
        None => out.unset.push((name.to_owned(), start, end)),
    }
    out.used.push(name.to_owned());
}

/// What stands between the braces; `start` is the dollar's offset.
fn braced(
    inside: &str,
    start: usize,
    depth: usize,
    lookup: Lookup<'_, '_>,
    out: &mut Expansion,
) -> Result<(), TemplateError> {
    let end = start + inside.len() + 3;
    let invalid = |why: String| TemplateError::Invalid { start, end, why };
    let len = name_len(inside);
    let (name, rest) = inside.split_at(len);
    if name.is_empty() {
        let why = if inside.trim().is_empty() { "the name is missing" } else { "a name begins with a letter or `_`" };
        return Err(invalid(why.into()));
    }
    if rest.is_empty() {
        plain(name, start, end, lookup, out);
        return Ok(());
    }
    let operators = [(":-", true), (":?", true), (":+", true), ("-", false), ("?", false), ("+", false)];
    let Some((operator, empty_counts)) = operators.into_iter().find(|(operator, _)| rest.starts_with(operator)) else {
        let found = rest.chars().next().unwrap_or(' ');
        return Err(invalid(format!("`{found}` cannot follow the name; `:-`, `-`, `:?`, `?`, `:+` and `+` can")));
    };
    let operand = &rest[operator.len()..];
    let operand_at = start + 2 + len + operator.len();
    let value = lookup(name);
    let present = value.is_some_and(|value| !(empty_counts && value.is_empty()));
    match operator.as_bytes().last() {
        Some(b'-') => {
            out.used.push(name.to_owned());
            match value {
                Some(value) if present => out.text.push_str(value),
                _ => expand_into(operand, operand_at, depth + 1, lookup, out)?,
            }
        }
        Some(b'+') => {
            if present {
                out.used.push(name.to_owned());
                expand_into(operand, operand_at, depth + 1, lookup, out)?;
            }
        }
        _ => match value {
            Some(value) if present => {
                out.used.push(name.to_owned());
                out.text.push_str(value);
            }
            _ => {
                let mut message = Expansion::default();
                expand_into(operand, operand_at, depth + 1, lookup, &mut message)?;
                return Err(TemplateError::Required { name: name.to_owned(), message: message.text, start, end });
            }
        },
    }
    Ok(())
}

fn name_len(text: &str) -> usize {
    let mut bytes = text.bytes();
    if !bytes.next().is_some_and(|byte| byte == b'_' || byte.is_ascii_alphabetic()) {
        return 0;
    }
    1 + bytes.take_while(|byte| *byte == b'_' || byte.is_ascii_alphanumeric()).count()
}

/// Offset of the brace that closes the one at the beginning.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Interpolates whole trees and says what is wrong.
pub(crate) struct Interpolation<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) files: &'a Files,
    pub(crate) report: &'a mut Report,
    pub(crate) expanded: usize,
    pub(crate) path: Vec<String>,
}

impl Interpolation<'_> {
    /// All texts of the tree.
    pub(crate) fn tree(&mut self, node: &mut Node) {
        match &mut node.value {
            Value::Map(map) => {
                for (key, entry) in map {
                    self.path.push(key.to_string());
                    self.tree(&mut entry.node);
                    self.path.pop();
                }
            }
            Value::List(list) => {
                for (index, item) in list.iter_mut().enumerate() {
                    self.path.push(index.to_string());
                    self.tree(item);
                    self.path.pop();
                }
            }
            Value::Text(text) if text.contains('$') => {
                let text = text.clone();
                self.text(node, &text);
            }
            _ => {}
        }
    }

    fn text(&mut self, node: &mut Node, template: &str) {
        let environment = self.environment;
        match expand(template, &|name| environment.get(name)) {
            Ok(expansion) => {
                for (name, start, end) in &expansion.unset {
                    if self.report.first_unset(name) {
                        let span = self.inside(node.span, template, *start, *end);
                        self.report.add(
                            Problem::warning(code::UNSET_VARIABLE, format!("variable `{name}` is not set"))
                                .at(span, "the empty text is used")
                                .hint(format!(
                                    "set it, give a default with `${{{name}:-…}}`, or write `$$` for a plain `$`"
                                )),
                        );
                    }
                }
                self.expanded += expansion.text.len();
                if self.expanded > MAX_EXPANSION {
                    self.too_large(node);
                    return;
                }
                let uses = expansion.used.into_iter().map(|name| {
                    let origin = environment.origin(&name);
                    VariableUse { name, origin }
                });
                node.variables = Some(uses.collect());
                node.value = Value::Text(expansion.text.into());
            }
            Err(TemplateError::TooLarge) => self.too_large(node),
            Err(TemplateError::Invalid { start, end, why }) => {
                let span = self.inside(node.span, template, start, end);
                let path = self.path.join(".");
                self.report.add(
                    Problem::error(code::INTERPOLATION, format!("invalid interpolation format for {path}"))
                        .at(span, why)
                        .hint("a `$` that is meant literally is written `$$`"),
                );
                node.value = Value::Invalid;
            }
            Err(TemplateError::Required { name, message, start, end }) => {
                let span = self.inside(node.span, template, start, end);
                let empty = environment.get(&name).is_some();
                let tail = if message.is_empty() { String::new() } else { format!(": {message}") };
                self.report.add(
                    Problem::error(
                        code::REQUIRED_VARIABLE,
                        format!("required variable {name} is missing a value{tail}"),
                    )
                    .at(span, if empty { "set, but empty" } else { "not set" })
                    .hint(format!("set `{name}` in the environment or in `.env`")),
                );
                node.value = Value::Invalid;
            }
        }
    }

    fn too_large(&mut self, node: &mut Node) {
        let message = format!("the variables of this stack expand to more than {} MiB", MAX_EXPANSION >> 20);
        self.report.add(Problem::error(code::YAML_LIMIT, message).at(node.span, "the limit is passed here"));
        node.value = Value::Invalid;
    }

    /// The part of a scalar, when its text stands in the file as it is; else the whole scalar.
    fn inside(&self, span: Span, template: &str, start: usize, end: usize) -> Span {
        match self.files.text(span).find(template) {
            Some(found) => {
                let from = span.start + offset(found + start);
                Span { file: span.file, start: from, end: from + offset(end - start) }
            }
            None => span,
        }
    }
}

/// A text in which every `$` means itself when it is read again.
pub(crate) fn escape(text: &str) -> Arc<str> {
    if text.contains('$') { text.replace('$', "$$").into() } else { text.into() }
}
