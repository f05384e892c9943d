//! Where something stands: files that were read, and ranges in them.

use std::sync::Arc;

/// Which of the files that were read; an index into [`Files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// A range of bytes in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The file.
    pub file: FileId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

/// A place for people: line and column count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

/// One file that was read, kept so that problems can show its lines.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// The path as the messages name it.
    pub path: String,
    /// The text, without byte order mark.
    pub text: Arc<str>,
    line_starts: Vec<u32>,
}

/// All files that were read for one load.
#[derive(Clone, Debug, Default)]
pub struct Files {
    list: Vec<SourceFile>,
}

impl Files {
    /// Takes in one file.
    pub(crate) fn add(&mut self, path: impl Into<String>, text: impl Into<Arc<str>>) -> FileId {
        let text: Arc<str> = text.into();
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(ends.map(|(at, _)| offset(at + 1))).collect();
        let id = FileId(offset(self.list.len()));
        self.list.push(SourceFile { path: path.into(), text, line_starts });
        id
    }

    /// The file of an id that this very collection gave out.
    pub fn get(&self, id: FileId) -> &SourceFile {
        &self.list[id.0 as usize]
    }

    /// All files, in the order in which they were read.
    pub fn iter(&self) -> impl Iterator<Item = (FileId, &SourceFile)> {
        self.list.iter().enumerate().map(|(index, file)| (FileId(offset(index)), file))
    }

    /// Line and column of the first byte of a span.
    pub fn position(&self, span: Span) -> Position {
        self.get(span.file).position(span.start)
    }

    /// The text that a span covers.
    pub fn text(&self, span: Span) -> &str {
        self.get(span.file).text.get(span.start as usize..span.end as usize).unwrap_or("")
    }
}

impl SourceFile {
    /// Line and column of a byte.
    pub fn position(&self, at: u32) -> Position {
        let line = self.line_starts.partition_point(|start| *start <= at);
        let start = self.line_starts[line - 1] as usize;
        let upto = self.text.get(start..at as usize).map_or(0, |text| text.chars().count());
        Position { line: offset(line), column: offset(upto + 1) }
    }

    /// A line by its number (from 1), without its end; empty when there is no such line.
    pub fn line(&self, number: u32) -> &str {
        let Some(start) = number.checked_sub(1).and_then(|index| self.line_starts.get(index as usize)) else {
            return "";
        };
        let rest = &self.text[*start as usize..];
        rest.split('\n').next().unwrap_or("").trim_end_matches('\r')
    }

    /// The byte at which a line (from 1) begins, or the end of the file.
    pub fn line_start(&self, number: u32) -> u32 {
        let index = number.saturating_sub(1) as usize;
        self.line_starts.get(index).copied().unwrap_or_else(|| offset(self.text.len()))
    }
}

/// Files are limited to a few MiB before they are parsed, so that every offset fits.
pub(crate) fn offset(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
