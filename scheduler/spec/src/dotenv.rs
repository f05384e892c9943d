//! Environment files: `.env`, `--env-file`, `env_file` and `label_file`.

use crate::interpolate::{TemplateError, expand};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes that the variables in one file may expand to; each line may double the one before.
const MAX_EXPANSION: usize = 4 << 20;

/// One variable of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assignment {
    pub(crate) key: String,
    pub(crate) value: String,
    /// Bytes of the line in the file.
    pub(crate) range: Range<usize>,
}

/// What is wrong with a file, and where.
#[derive(Debug, PartialEq)]
pub(crate) struct DotenvError {
    pub(crate) message: String,
    pub(crate) line: usize,
    pub(crate) range: Range<usize>,
}

/// The two formats of `env_file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Quotes, escapes, comments and variables.
    Dotenv,
    /// `KEY=` and the rest of the line as it is.
    Raw,
}

/// Reads a whole file. `lookup` answers before the file's own earlier lines do. A key without `=` takes its value from
/// `lookup` and is left out when there is none. Also returns the variables that were used and are not set.
pub(crate) fn parse(
    text: &str,
    format: Format,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Assignment>, DotenvError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = &text.replace("\r\n", "\n");
    let mut reader = Reader { text, at: 0, lookup, own: BTreeMap::new(), list: Vec::new(), expanded: 0 };
    match format {
        Format::Dotenv => while reader.statement()? {},
        Format::Raw => reader.raw(),
    }
    Ok(reader.list)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    lookup: &'a dyn Fn(&str) -> Option<String>,
    own: BTreeMap<String, String>,
    list: Vec<Assignment>,
    /// Bytes that variables expanded to so far.
    expanded: usize,
}

impl Reader<'_> {
    fn error<T>(&self, message: String, start: usize, end: usize) -> Result<T, DotenvError> {
        let line = self.text[..start].matches('\n').count() + 1;
        Err(DotenvError { message, line, range: start..end })
    }

    fn line_end(&self, from: usize) -> usize {
        self.text[from..].find('\n').map_or(self.text.len(), |len| from + len)
    }

    fn raw(&mut self) {
        let mut start = 0;
        for line in self.text.split('\n') {
            let range = start..start + line.len();
            start = range.end + 1;
            let trimmed = line.trim_start();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            match line.split_once('=') {
                Some((key, value)) => self.add(key.trim().to_owned(), value.to_owned(), range),
                None => {
                    if let Some(value) = (self.lookup)(line.trim()) {
                        self.add(line.trim().to_owned(), value, range);
                    }
                }
            }
        }
    }

    fn add(&mut self, key: String, value: String, range: Range<usize>) {
        self.own.insert(key.clone(), value.clone());
        self.list.push(Assignment { key, value, range });
    }

    /// One assignment; false at the end of the file.
    fn statement(&mut self) -> Result<bool, DotenvError> {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.is_empty() {
                return Ok(false);
            }
            if !trimmed.starts_with('#') {
                break;
            }
            self.at = self.line_end(self.at);
        }
        let start = self.at;
        let rest = &self.text[start..];
        if let Some(after) = rest.strip_prefix("export")
            && after.starts_with([' ', '\t'])
        {
            self.at += rest.len() - after.trim_start_matches([' ', '\t']).len();
        }
        let key_start = self.at;
        let line_end = self.line_end(key_start);
        let line = &self.text[key_start..line_end];
        let key_len = line.find(['=', ':']).unwrap_or(line.len());
        let key = line[..key_len].trim_end();
        for (offset, c) in key.char_indices() {
            if !(c.is_alphanumeric() || c.is_whitespace() || matches!(c, '_' | '.' | '-' | '[' | ']')) {
                let shown = line.chars().take(60).collect::<String>();
                let at = key_start + offset;
                let message = format!("unexpected character {c:?} in variable name {shown:?}");
                return self.error(message, at, at + c.len_utf8());
            }
        }
        if key.contains(char::is_whitespace) {
            return self.error("key cannot contain a space".into(), key_start, key_start + key.len());
        }
        if key.is_empty() {
            return self.error("the variable's name is missing".into(), key_start, line_end);
        }
        let key = key.to_owned();
        if key_len == line.len() {
            self.at = line_end;
            if let Some(value) = (self.lookup)(&key) {
                self.add(key, value, start..line_end);
            }
            return Ok(true);
        }
        self.at = key_start + key_len + 1;
        let value = self.value()?;
        let end = self.at;
        self.add(key, value, start..end.min(line_end));
        Ok(true)
    }

    fn value(&mut self) -> Result<String, DotenvError> {
        let line_end = self.line_end(self.at);
        let line = &self.text[self.at..line_end];
        let trimmed = line.trim_start();
        let start = self.at + (line.len() - trimmed.len());
        match trimmed.bytes().next() {
            Some(b'\'') => self.single(start),
            Some(b'"') => self.double(start),
            _ => {
                self.at = line_end;
                // A comment needs a blank before it; `KEY= # x` has one in front of the trimmed text.
                let cut = line.find(" #").unwrap_or(line.len());
                let value = line[..cut].trim().to_owned();
                self.expand(&value, start, line_end)
            }
        }
    }

    /// Literal but for `\'`, which does not end the text.
    fn single(&mut self, start: usize) -> Result<String, DotenvError> {
        let body = &self.text[start + 1..];
        let mut escaped = false;
        for (at, c) in body.char_indices() {
            if c == '\'' && !escaped {
                self.at = start + 1 + at + 1;
                return Ok(body[..at].replace("\\'", "'"));
            }
            escaped = c == '\\' && !escaped;
        }
        self.unterminated(start)
    }

    fn unterminated<T>(&self, start: usize) -> Result<T, DotenvError> {
        let end = self.line_end(start);
        self.error(format!("unterminated quoted value {}", &self.text[start..end]), start, end)
    }

    fn double(&mut self, start: usize) -> Result<String, DotenvError> {
        let body = &self.text[start + 1..];
        let mut template = String::new();
        let mut chars = body.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at = start + 1 + at + 1;
                    return self.expand(&template, start, start + 1 + at);
                }
                '\\' => {
                    let Some((_, next)) = chars.next() else { break };
                    match next {
                        'n' => template.push('\n'),
                        'r' => template.push('\r'),
                        't' => template.push('\t'),
                        'a' => template.push('\u{7}'),
                        'b' => template.push('\u{8}'),
                        'f' => template.push('\u{c}'),
                        'v' => template.push('\u{b}'),
                        '\\' | '"' => template.push(next),
                        '$' => template.push_str("$$"),
                        '0' => {
                            let mut code = 0u32;
                            let mut digits = 0;
                            while digits < 3
                                && let Some(digit) = chars.peek().and_then(|(_, c)| c.to_digit(8))
                            {
                                code = code * 8 + digit;
                                digits += 1;
                                chars.next();
                            }
                            match char::from_u32(code).filter(|_| digits > 0) {
                                Some(c) => template.push(c),
                                None => template.push_str("\\0"),
                            }
                        }
                        other => {
                            template.push('\\');
                            template.push(other);
                        }
                    }
                }
                other => template.push(other),
            }
        }
        self.unterminated(start)
    }

    fn expand(&mut self, template: &str, start: usize, end: usize) -> Result<String, DotenvError> {
        if !template.contains('$') {
            return Ok(template.to_owned());
        }
        let outside: BTreeMap<&str, String> =
            variable_names(template).filter_map(|name| (self.lookup)(name).map(|value| (name, value))).collect();
        let lookup = |name: &str| outside.get(name).or_else(|| self.own.get(name)).map(String::as_str);
        match expand(template, &lookup) {
            Ok(expansion) => {
                self.expanded += expansion.text.len();
                if self.expanded > MAX_EXPANSION {
                    return self.error("the values of this file grow too large".into(), start, end);
                }
                Ok(expansion.text)
            }
            Err(TemplateError::Required { name, message, .. }) => {
                self.error(format!("required variable {name} is missing a value: {message}"), start, end)
            }
            Err(TemplateError::Invalid { why, .. }) => {
                self.error(format!("invalid interpolation format: {why}; a plain `$` is written `$$`"), start, end)
            }
            Err(TemplateError::TooLarge) => self.error("the value grows too large".into(), start, end),
        }
    }
}

/// Everything in a template that could be the name of a variable.
fn variable_names(template: &str) -> impl Iterator<Item = &str> {
    template.split(|c: char| !(c == '_' || c.is_ascii_alphanumeric())).filter(|name| !name.is_empty())
}
