//! What people and programs read: data on stdout, talk on stderr, tables, and errors.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::exit::{Exit, Failure};
use orch_api::client::ClientError;
use orch_api::error::chain;

/// Writes to stdout; a reader that went away (`| head`) ends the process quietly, as every tool's does.
pub(crate) fn out(text: &str) {
    write_or_end(&mut std::io::stdout().lock(), text.as_bytes());
}

/// One line to stdout.
pub(crate) fn line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    write_or_end(&mut stdout, text.as_bytes());
    write_or_end(&mut stdout, b"\n");
}

/// Bytes to stdout.
pub(crate) fn bytes(content: &[u8]) {
    write_or_end(&mut std::io::stdout().lock(), content);
}

/// Bytes to stderr.
pub(crate) fn error_bytes(content: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(content);
    let _ = stderr.flush();
}

/// One line of talk to stderr.
pub(crate) fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Nobody reads: there is nobody to tell.
    let _ = writeln!(stderr, "{text}");
}

#[expect(clippy::exit, reason = "the one place where a vanished reader ends the process, as SIGPIPE would")]
fn write_or_end(to: &mut impl Write, content: &[u8]) {
    let Err(e) = to.write_all(content).and_then(|()| to.flush()) else { return };
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(i32::from(Exit::Code(141).code()));
    }
    say(&format!("error: write standard output: {e}"));
    std::process::exit(i32::from(Exit::Failed.code()));
}

/// One object as JSON on a line of its own.
///
/// # Errors
/// When it cannot be serialised.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?);
    Ok(())
}

/// One object as indented JSON.
///
/// # Errors
/// When it cannot be serialised.
pub(crate) fn json_pretty(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// How a listing is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    /// Columns.
    Table,
    /// One object a line.
    Json,
    /// A template with `{{.Field}}`.
    Template(String),
}

impl Format {
    /// Reads `--format`.
    ///
    /// # Errors
    /// For anything that is no format.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "table" | "text" => Ok(Self::Table),
            "json" | "{{json .}}" => Ok(Self::Json),
            _ if text.contains("{{") => Ok(Self::Template(text.strip_prefix("table ").unwrap_or(text).to_owned())),
            _ => Err(Failure::usage(format!(
                "--format {text}: write `table`, `json` or a template like '{{{{.Name}}}}'"
            ))),
        }
    }
}

/// Fills `{{.Field}}` of a template from a row's JSON; field names are compared without case and underscores, so that `{{.ID}}`,
/// `{{.Name}}` and `{{.ExitCode}}` work.
pub(crate) fn fill(template: &str, row: &serde_json::Value) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        text.push_str(&rest[..start]);
        let Some(length) = rest[start..].find("}}") else { break };
        let expression = rest[start + 2..start + length].trim();
        match expression {
            "json ." => text.push_str(&row.to_string()),
            _ => text.push_str(&field(row, expression.trim_start_matches("json ").trim_start_matches('.'))),
        }
        rest = &rest[start + length + 2..];
    }
    text.push_str(rest);
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// Refuses a template that asks for what no row has.
fn check_fields(template: &str, row: &serde_json::Value) -> Result<(), Failure> {
    let Some(map) = row.as_object() else { return Ok(()) };
    let expressions = template.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0.trim()));
    for expression in expressions.filter(|expression| *expression != "json .") {
        let path = expression.trim_start_matches("json ").trim_start_matches('.');
        let first = path.split('.').next().unwrap_or_default();
        if !map.keys().any(|key| plain(key) == plain(first)) {
            let known: Vec<&str> = map.keys().map(String::as_str).collect();
            return Err(Failure::usage(format!("--format: there is no field `{first}`"))
                .hint(format!("there are {}", known.join(", "))));
        }
    }
    Ok(())
}

/// A field's name without what people write differently.
fn plain(name: &str) -> String {
    name.replace('_', "").to_ascii_lowercase()
}

fn field(row: &serde_json::Value, path: &str) -> String {
    let mut value = row;
    for part in path.split('.') {
        let found = match value {
            serde_json::Value::Object(map) => {
                map.get(part).or_else(|| map.iter().find(|(key, _)| plain(key) == plain(part)).map(|(_, value)| value))
            }
            serde_json::Value::Array(list) => part.parse::<usize>().ok().and_then(|index| list.get(index)),
            _ => None,
        };
        let Some(found) = found else { return String::new() };
        value = found;
    }
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Prints a listing: rows as JSON objects and as cells of a table.
///
/// # Errors
/// When a row cannot be serialised.
pub(crate) fn listing<T: Serialize>(
    format: &Format,
    quiet: bool,
    rows: &[T],
    titles: &[&str],
    cells: impl Fn(&T) -> Vec<String>,
    name: impl Fn(&T) -> String,
) -> Result<()> {
    if quiet {
        rows.iter().for_each(|row| line(&name(row)));
        return Ok(());
    }
    match format {
        Format::Json => rows.iter().try_for_each(json),
        Format::Template(template) => rows.iter().try_for_each(|row| {
            let row = serde_json::to_value(row)?;
            check_fields(template, &row)?;
            line(&fill(template, &row));
            Ok(())
        }),
        Format::Table => {
            out(&table(titles, &rows.iter().map(cells).collect::<Vec<_>>()));
            Ok(())
        }
    }
}

/// Columns, padded, three blanks between.
pub(crate) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = titles.iter().map(|t| t.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut push = |cells: &[&str]| {
        let mut line = String::new();
        for (index, cell) in cells.iter().enumerate() {
            line.push_str(cell);
            if index + 1 < cells.len() {
                let pad = widths.get(index).copied().unwrap_or(0).saturating_sub(cell.chars().count()) + 3;
                line.extend(std::iter::repeat_n(' ', pad));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    push(titles);
    for row in rows {
        push(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

/// Says an error on stderr and tells how the process ends.
pub(crate) fn failure(error: &anyhow::Error, color: bool) -> Exit {
    let paint = |code: &str, text: &str| if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let head = paint("1;31", "error");
    let mut exit = Exit::Failed;
    let (mut details, mut hint) = (Vec::new(), String::new());
    let message = if let Some(failure) = error.downcast_ref::<Failure>() {
        exit = failure.exit;
        details.clone_from(&failure.details);
        hint.clone_from(&failure.hint);
        failure.message.clone()
    } else if let Some(ClientError::Refused(refused)) = error.downcast_ref::<ClientError>() {
        if let Some(code) = refused.exit_code {
            exit = Exit::Code(code);
        } else if refused.code == "timeout" {
            exit = Exit::Deadline;
        }
        details.clone_from(&refused.details);
        hint.clone_from(&refused.hint);
        refused.message.clone()
    } else {
        chain(error.as_ref())
    };
    if !message.is_empty() {
        say(&format!("{head}: {message}"));
    }
    details.iter().for_each(|detail| say(&format!("  {detail}")));
    if !hint.is_empty() {
        say(&format!("\n{}: {hint}", paint("36", "hint")));
    }
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_finds_fields_whatever_their_case() {
        let row = serde_json::json!({"name": "web-1", "exit_code": 3, "ports": [{"published": 80}]});
        assert_eq!(fill("{{.Name}} {{ .ExitCode }} {{.ports.0.published}} {{.None}}|", &row), "web-1 3 80 |");
    }

    #[test]
    fn a_template_that_asks_for_what_is_not_there_is_refused() {
        let row = serde_json::json!({"name": "web-1", "exit_code": 3, "labels": {}});
        assert!(check_fields("{{.ExitCode}} {{json .}} {{.labels.none}}", &row).is_ok());
        let refused = check_fields("{{.Name}} {{.Nope}}", &row).unwrap_err();
        assert_eq!(refused.message, "--format: there is no field `Nope`");
    }

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_blanks() {
        let text =
            table(&["NAME", "STATE"], &[vec!["a-long-name".into(), "up".into()], vec!["b".into(), String::new()]]);
        assert_eq!(text, "NAME          STATE\na-long-name   up\nb\n");
    }
}
