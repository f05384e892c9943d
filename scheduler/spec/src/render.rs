//! Problems as plain text: for tests, for pipes, and wherever no colours are wanted.

use crate::problem::{Label, Problem, Severity};
use crate::span::{Files, SourceFile};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Problems shown in full; what comes after is only counted.
const MAX_SHOWN: usize = 20;
/// Longest piece of a line that is shown.
const MAX_WIDTH: usize = 160;

/// All problems, each with its line and a pointer to the place, and a closing count.
pub fn render_plain(problems: &[Problem], files: &Files) -> String {
    let mut out = String::new();
    for problem in problems.iter().take(MAX_SHOWN) {
        one(&mut out, problem, files);
        out.push('\n');
    }
    out.push_str(&closing(problems));
    out
}

fn one(out: &mut String, problem: &Problem, files: &Files) {
    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let _ = writeln!(out, "{severity}[{}]: {}", problem.code, problem.message);
    // Labels in one file share a snippet; further files follow.
    let mut by_file: Vec<(crate::span::FileId, Vec<&Label>)> = Vec::new();
    for label in &problem.labels {
        match by_file.iter_mut().find(|(file, _)| *file == label.span.file) {
            Some((_, labels)) => labels.push(label),
            None => by_file.push((label.span.file, vec![label])),
        }
    }
    let number_width = problem.labels.iter().map(|label| files.position(label.span).line).max().unwrap_or(1);
    let gutter = number_width.to_string().len();
    for (index, (file, labels)) in by_file.iter().enumerate() {
        let source = files.get(*file);
        let at = source.position(labels[0].span.start);
        let arrow = if index == 0 { "-->" } else { ":::" };
        let _ = writeln!(out, "{:gutter$}{arrow} {}:{}:{}", "", source.path, at.line, at.column);
        snippet(out, source, labels, gutter);
    }
    for note in &problem.notes {
        let _ = writeln!(out, "{:gutter$} = note: {note}", "");
    }
    if let Some(hint) = &problem.hint {
        let _ = writeln!(out, "{:gutter$} = hint: {hint}", "");
    }
}

fn snippet(out: &mut String, source: &SourceFile, labels: &[&Label], gutter: usize) {
    let mut lines: BTreeMap<u32, Vec<&Label>> = BTreeMap::new();
    for label in labels {
        lines.entry(source.position(label.span.start).line).or_default().push(label);
    }
    let _ = writeln!(out, "{:gutter$} |", "");
    let mut previous: Option<u32> = None;
    for (number, labels) in lines {
        if previous.is_some_and(|previous| previous + 1 < number) {
            let _ = writeln!(out, "{:gutter$}...", "");
        }
        previous = Some(number);
        let line = source.line(number);
        let shown: String = line.chars().take(MAX_WIDTH).map(visible).collect();
        let _ = writeln!(out, "{number:>gutter$} | {shown}");
        for label in labels {
            let start = source.position(label.span.start).column as usize - 1;
            if start > MAX_WIDTH {
                continue;
            }
            let line_start = source.line_start(number) as usize;
            let end = (label.span.end as usize).min(line_start + line.len()).max(label.span.start as usize);
            let covered = source.text.get(label.span.start as usize..end).unwrap_or("");
            let width = display_width(covered).clamp(1, MAX_WIDTH);
            let before: usize = display_width(&line.chars().take(start).collect::<String>());
            let text = if label.text.is_empty() { String::new() } else { format!(" {}", label.text) };
            let _ = writeln!(out, "{:gutter$} | {:before$}{}{text}", "", "", "^".repeat(width));
        }
    }
}

/// Control characters would move the pointer or the terminal's cursor.
fn visible(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Columns on a terminal: two for the wide scripts, one for everything else that matters in a stack file.
fn display_width(text: &str) -> usize {
    text.chars()
        .map(|c| match u32::from(c) {
            0x1100..=0x115f
            | 0x2e80..=0xa4cf
            | 0xac00..=0xd7a3
            | 0xf900..=0xfaff
            | 0xfe30..=0xfe6f
            | 0xff00..=0xff60
            | 0xffe0..=0xffe6
            | 0x1f300..=0x1faff
            | 0x20000..=0x3fffd => 2,
            0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
            _ => 1,
        })
        .sum()
}

fn closing(problems: &[Problem]) -> String {
    let errors = problems.iter().filter(|problem| problem.is_error()).count();
    let warnings = problems.len() - errors;
    let files: BTreeSet<_> =
        problems.iter().filter_map(|problem| problem.labels.first()).map(|label| label.span.file).collect();
    let count = |number: usize, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
    let mut parts = Vec::new();
    if errors > 0 {
        parts.push(count(errors, "error"));
    }
    if warnings > 0 {
        parts.push(count(warnings, "warning"));
    }
    if parts.is_empty() {
        return String::new();
    }
    let place = if files.is_empty() { String::new() } else { format!(" in {}", count(files.len(), "file")) };
    let explain = problems.iter().find(|problem| problem.is_error()).or(problems.first());
    let explain = explain.map(|problem| format!(" · `orch explain {}`", problem.code)).unwrap_or_default();
    let hidden = problems.len().saturating_sub(MAX_SHOWN);
    let more = if hidden > 0 { format!("{hidden} more not shown\n") } else { String::new() };
    format!("{more}{}{place}{explain}\n", parts.join(", "))
}
