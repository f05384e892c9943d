//! What a source file may hold, be called, and grow to.

use super::File;

/// A file past this length is a sign that two things share a room.
pub const MOST_LINES: usize = 800;

/// Files that are longer, with the length they may have and why. The list may only shrink: an entry that a file no longer needs, or
/// that allows more than it needs, is a finding too.
pub const LONG: &[(&str, usize, &str)] = &[];

/// Words that say nothing about what a file holds.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "misc", "mod"];

/// The one crate that may be unsafe, and where.
const UNSAFE_CRATE: &str = "engine/src/";
const UNSAFE_PLACE: &str = "engine/src/sys";

/// Folders of pure crates: no order may depend on a hasher, no time or chance come from outside.
const PURE_FOLDERS: &[&str] = &["scheduler/core/src/"];

/// A Rust file's text in two, each with as many lines as the whole: the code without comments and string contents, and the comments.
#[must_use]
pub fn split(text: &str) -> (String, String) {
    let bytes: Vec<char> = text.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < bytes.len() {
        let here = at(i);
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        if here == '/' && at(i + 1) == '/' {
            while i < bytes.len() && at(i) != '\n' {
                comments.push(at(i));
                i += 1;
            }
        } else if here == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => depth += 1,
                    ('*', '/') => depth -= 1,
                    _ => {}
                }
                comments.push(at(i));
                if at(i) == '\n' {
                    code.push('\n');
                }
                i += 1;
                if depth == 0 || i >= bytes.len() {
                    // The slash that ends it.
                    i += 1;
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(&bytes, i).filter(|_| !word_before) {
            let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            while at(i) != '"' {
                i += 1;
            }
            i += 1;
            while i < bytes.len() && !end.chars().enumerate().all(|(n, c)| at(i + n) == c) {
                newline(at(i), &mut code, &mut comments);
                i += 1;
            }
            i += end.len();
        } else if here == '"' {
            i += 1;
            while i < bytes.len() && at(i) != '"' {
                newline(at(i), &mut code, &mut comments);
                // A backslash before the end of the line hides no line.
                i += if at(i) == '\\' && at(i + 1) != '\n' { 2 } else { 1 };
            }
            i += 1;
        } else if here == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            // A character, not a lifetime.
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while i < bytes.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            code.push(here);
            if here == '\n' {
                comments.push('\n');
            }
            i += 1;
        }
    }
    (code, comments)
}

fn newline(here: char, code: &mut String, comments: &mut String) {
    if here == '\n' {
        code.push('\n');
        comments.push('\n');
    }
}

/// The number of `#` if a raw string starts at `i`: `r"`, `r#"`, `br#"`, `cr"`.
fn raw_string(text: &[char], i: usize) -> Option<usize> {
    let mut at = i;
    if matches!(text.get(at), Some('b' | 'c')) {
        at += 1;
    }
    if text.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = text[at..].iter().take_while(|c| **c == '#').count();
    (text.get(at + hashes) == Some(&'"')).then_some(hashes)
}

/// Whether `word` stands in `line` as a whole word.
#[must_use]
pub fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part) && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// Lines of the file's code in which `predicate` finds something, counted from 1.
fn code_lines(file: &File, predicate: impl Fn(&str) -> bool) -> Vec<usize> {
    let (code, _) = split(&file.text);
    code.lines().enumerate().filter(|(_, line)| predicate(line)).map(|(n, _)| n + 1).collect()
}

/// Crates without `#![forbid(unsafe_code)]` at their root, and `unsafe` outside the one place for it.
#[must_use]
pub fn unsafe_code(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.is_rust()) {
        let root = file.path.ends_with("src/lib.rs") || file.path.ends_with("src/main.rs");
        let (code, _) = split(&file.text);
        let forbids = code.contains("#![forbid(unsafe_code)]");
        if root && !file.path.starts_with(UNSAFE_CRATE) && !forbids {
            findings.push(format!("{}: lacks #![forbid(unsafe_code)]", file.path));
        }
        let place = file.path.strip_prefix(UNSAFE_PLACE).is_some_and(|rest| rest.starts_with(['.', '/', '_']));
        if !place {
            let found = code_lines(file, |line| has_word(line, "unsafe"));
            findings.extend(found.iter().map(|n| format!("{}:{n}: unsafe code outside {UNSAFE_PLACE}", file.path)));
        }
    }
    findings
}

/// Files whose names say nothing.
#[must_use]
pub fn empty_names(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.is_rust()) {
        let parts: Vec<&str> = file.path.trim_end_matches(".rs").split('/').collect();
        for part in parts.iter().filter(|p| EMPTY_NAMES.contains(p)) {
            findings.push(format!(
                "{}: `{part}` is no noun for what it holds (`foo.rs` + `foo/`, never mod.rs)",
                file.path
            ));
        }
    }
    findings
}

/// Files that are too long, and exceptions that are no longer needed.
#[must_use]
pub fn long_files(files: &[File], exceptions: &[(&str, usize, &str)]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.is_rust()) {
        let lines = file.text.lines().count();
        match exceptions.iter().find(|(path, ..)| *path == file.path) {
            None if lines > MOST_LINES => {
                findings.push(format!(
                    "{}: {lines} lines; past {MOST_LINES}, look for the seam between two things",
                    file.path
                ));
            }
            Some((_, most, _)) if lines > *most => {
                findings.push(format!(
                    "{}: {lines} lines; it is an exception already and may not grow past {most}",
                    file.path
                ));
            }
            Some((_, most, _)) if lines <= MOST_LINES || lines + 50 < *most => {
                findings.push(format!("{}: {lines} lines; the exception for {most} must shrink with it", file.path));
            }
            _ => {}
        }
    }
    for (path, _, reason) in exceptions {
        if !files.iter().any(|f| f.path == *path) {
            findings.push(format!("{path}: an exception for a file that is not there"));
        }
        if reason.is_empty() {
            findings.push(format!("{path}: an exception without a reason"));
        }
    }
    findings
}

/// Tests that are turned off.
#[must_use]
pub fn ignored_tests(files: &[File]) -> Vec<String> {
    let ignored = |line: &str| line.trim_start().starts_with("#[ignore") || line.contains(", ignore)]");
    let in_file = |file: &File| {
        let found = code_lines(file, ignored);
        found
            .into_iter()
            .map(|n| format!("{}:{n}: a test that is turned off proves nothing", file.path))
            .collect::<Vec<_>>()
    };
    files.iter().filter(|f| f.is_rust()).flat_map(in_file).collect()
}

/// Work left for later that no issue knows of.
#[must_use]
pub fn unknown_work(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        // A lock file's hashes and recorded data hold any letters.
        if file.path.ends_with(".lock") || file.path.contains("testdata/") {
            continue;
        }
        let comments = if file.is_rust() { split(&file.text).1 } else { file.text.clone() };
        for (n, line) in comments.lines().enumerate() {
            let marked = ["TODO", "FIXME", "XXX"].iter().any(|word| has_word(line, word));
            let number = line.split('#').skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            if marked && !number {
                findings.push(format!("{}:{}: work left for later needs an issue: #NUMBER", file.path, n + 1));
            }
        }
    }
    findings
}

/// What would make a pure crate's results depend on something that is not its input.
#[must_use]
pub fn indeterminism(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.is_rust() && PURE_FOLDERS.iter().any(|p| f.path.starts_with(p))) {
        for (word, instead) in [
            ("HashMap", "BTreeMap: its order is the same everywhere"),
            ("HashSet", "BTreeSet: its order is the same everywhere"),
            ("Instant::now", "a time that is passed in"),
            ("SystemTime::now", "a time that is passed in"),
        ] {
            let found = code_lines(file, |line| has_word(line, word));
            findings.extend(found.iter().map(|n| format!("{}:{n}: {word}: use {instead}", file.path)));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_comments_and_code_are_told_apart() {
        let text =
            "let a = \"// no\"; // yes\nlet b = r#\"un\"safe\n\"#; let c = '\"'; /* two\nlines */ fn d<'a>() {}\n";
        let (code, comments) = split(text);
        assert_eq!(code, "let a = ; \nlet b = \n; let c = ; \n fn d<'a>() {}\n");
        assert_eq!(comments, "// yes\n\n/* two\nlines *\n");
    }

    #[test]
    fn a_crate_that_does_not_forbid_unsafe_code_is_found() {
        let files = [
            File::new("cli/src/main.rs", "// #![forbid(unsafe_code)]\nfn main() {}"),
            File::new("netd/src/lib.rs", "#![forbid(unsafe_code)]\n"),
            File::new("engine/src/lib.rs", ""),
        ];
        assert_eq!(unsafe_code(&files), ["cli/src/main.rs: lacks #![forbid(unsafe_code)]"]);
    }

    #[test]
    fn unsafe_is_found_everywhere_but_in_its_place() {
        let block = "fn f() { unsafe { g() } }";
        let files = [
            File::new("engine/src/sys.rs", block),
            File::new("engine/src/sys/raw.rs", block),
            File::new("engine/src/sys_descriptor.rs", block),
            File::new("engine/src/system.rs", block),
            File::new("engine/src/runtime.rs", "// unsafe is a word\nlet s = \"unsafe\"; let unsafely = 1;"),
        ];
        assert_eq!(unsafe_code(&files), ["engine/src/system.rs:1: unsafe code outside engine/src/sys"]);
    }

    #[test]
    fn names_that_say_nothing_are_found_in_files_and_folders() {
        let files = [
            File::new("a/src/utils.rs", ""),
            File::new("a/src/b/mod.rs", ""),
            File::new("a/common/c.rs", ""),
            File::new("a/src/model.rs", ""),
        ];
        assert_eq!(empty_names(&files).len(), 3);
    }

    #[test]
    fn the_ratchet_of_lengths_turns_one_way() {
        let long = |lines: usize| File::new("a.rs", &"x\n".repeat(lines));
        assert!(long_files(&[long(MOST_LINES)], &[]).is_empty());
        assert_eq!(long_files(&[long(MOST_LINES + 1)], &[]).len(), 1);
        assert!(long_files(&[long(900)], &[("a.rs", 900, "a table")]).is_empty());
        assert_eq!(long_files(&[long(901)], &[("a.rs", 900, "a table")]).len(), 1);
        assert_eq!(long_files(&[long(820)], &[("a.rs", 900, "a table")]).len(), 1);
        assert_eq!(long_files(&[long(700)], &[("a.rs", 900, "a table")]).len(), 1);
        assert_eq!(long_files(&[], &[("a.rs", 900, "")]).len(), 2);
    }

    #[test]
    fn tests_that_are_turned_off_are_found() {
        let files = [File::new("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn a() {}\n// #[ignore]\n")];
        assert_eq!(ignored_tests(&files), ["a.rs:2: a test that is turned off proves nothing"]);
    }

    #[test]
    fn work_for_later_needs_an_issue() {
        let files = [
            File::new("a.rs", "// TODO: later\n// TODO #12: known\nlet todo = \"TODO\";\n"),
            File::new("b.sh", "# FIXME\n"),
        ];
        assert_eq!(unknown_work(&files).len(), 2);
    }

    #[test]
    fn a_hasher_or_a_clock_in_a_pure_crate_is_found() {
        let text = "use std::collections::HashMap; // HashMap\nlet now = Instant::now();\n";
        assert_eq!(indeterminism(&[File::new("scheduler/core/src/a.rs", text)]).len(), 2);
        assert!(indeterminism(&[File::new("netd/src/a.rs", text)]).is_empty());
    }
}
