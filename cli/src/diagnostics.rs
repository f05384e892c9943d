//! Shows what is wrong with a stack file: the line, where on it, why, and what to do, in the shape that compilers use.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use orch_spec::problem::{Problem, Severity};
use orch_spec::span::{FileId, Files};

use crate::printer;

/// More than this at once helps nobody.
const MOST: usize = 20;

/// Says the problems on stderr, errors first.
pub(crate) fn say(problems: &[&Problem], files: &Files, color: bool) {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let (errors, warnings): (Vec<&Problem>, Vec<&Problem>) = problems.iter().copied().partition(|p| p.is_error());
    for problem in errors.iter().chain(&warnings).take(MOST) {
        printer::say(&render(problem, files, &renderer));
        printer::say("");
    }
    let left = (errors.len() + warnings.len()).saturating_sub(MOST);
    if left > 0 {
        printer::say(&format!("and {left} more"));
    }
    if !errors.is_empty() {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let mut touched: Vec<FileId> = errors.iter().filter_map(|p| p.labels.first()).map(|l| l.span.file).collect();
        touched.sort_unstable();
        touched.dedup();
        printer::say(&format!("{} in {}", count(errors.len(), "error"), count(touched.len().max(1), "file")));
    }
}

fn render(problem: &Problem, files: &Files, renderer: &Renderer) -> String {
    let level = match problem.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let code = problem.code.to_string();
    let mut group = Group::with_title(level.primary_title(problem.message.as_str()).id(code.as_str()));
    let mut shown: Vec<FileId> = Vec::new();
    let mut first = true;
    for label in &problem.labels {
        if shown.contains(&label.span.file) {
            continue;
        }
        shown.push(label.span.file);
        let file = files.get(label.span.file);
        let mut snippet = Snippet::source(&*file.text).path(file.path.as_str());
        for other in problem.labels.iter().filter(|l| l.span.file == label.span.file) {
            let kind = if first { AnnotationKind::Primary } else { AnnotationKind::Context };
            first = false;
            let annotation = kind.span(bytes(other.span.start, other.span.end, &file.text));
            snippet = snippet.annotation(if other.text.is_empty() {
                annotation
            } else {
                annotation.label(other.text.as_str())
            });
        }
        group = group.element(snippet);
    }
    for note in &problem.notes {
        group = group.element(Level::NOTE.message(note.as_str()));
    }
    if let Some(hint) = &problem.hint {
        group = group.element(Level::HELP.message(hint.as_str()));
    }
    renderer.render(&[group])
}

/// A span as a range of bytes that lies within the text and on character boundaries, whatever the parser said.
fn bytes(start: u32, end: u32, text: &str) -> Range<usize> {
    let mut start = (start as usize).min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let mut end = (end as usize).clamp(start, text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    // A value over several lines is shown by its first.
    let line_end = text[start..end].find('\n').map_or(end, |at| start + at);
    start..line_end.max(start)
}
