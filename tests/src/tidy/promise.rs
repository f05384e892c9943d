//! What the project's pages promise and name.

use std::collections::BTreeSet;

use super::File;
use super::source::split;

/// Top folders of any Linux machine; a page that names another one names somebody's own machine. The rest are routes of the API and
/// folders inside the examples' containers.
const KNOWN_ROOTS: &[&str] = &[
    "bin", "boot", "dev", "etc", "lib", "lib64", "media", "mnt", "opt", "proc", "run", "sbin", "srv", "sys", "tmp",
    "usr", "var", "v1", "data", "app", "www", "state",
];

/// The page of promises.
pub const SPECIFICATION: &str = "SPECIFICATION.md";

/// Every function name of the repository's Rust files.
fn functions(files: &[File]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files.iter().filter(|f| f.is_rust()) {
        let (code, _) = split(&file.text);
        for (at, _) in code.match_indices("fn ") {
            let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                names.insert(name);
            }
        }
    }
    names
}

/// The words between backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Rows of the specification's tables (`| promise | proof |`) whose last cell names no test or benchmark, or one that is not there.
/// A proof is the name of a test function (with its module or file in front, if at all, by `::`) or the path of a program.
#[must_use]
pub fn unproven(files: &[File]) -> Vec<String> {
    let Some(page) = files.iter().find(|f| f.path == SPECIFICATION) else {
        return vec![format!("{SPECIFICATION}: is missing; it says what orch promises and which test proves it")];
    };
    let functions = functions(files);
    let mut findings = Vec::new();
    let mut rows = 0;
    let lines: Vec<&str> = page.text.lines().collect();
    for (n, line) in lines.iter().enumerate() {
        let ruler = |line: &&str| line.starts_with('|') && line.chars().all(|c| "|-: ".contains(c));
        let heading = lines.get(n + 1).is_some_and(ruler);
        if !line.starts_with('|') || ruler(line) || heading {
            continue;
        }
        rows += 1;
        let proof = line.trim_end().trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let names = quoted(proof);
        if names.is_empty() {
            findings.push(format!("{SPECIFICATION}:{}: a promise without a test", n + 1));
        }
        for name in names {
            let function = name.rsplit("::").next().unwrap_or(name);
            let path = name.split(' ').next().unwrap_or(name);
            if !functions.contains(function) && !files.iter().any(|f| f.path == path) {
                findings.push(format!("{SPECIFICATION}:{}: there is no test or program `{name}`", n + 1));
            }
        }
    }
    if rows == 0 {
        findings.push(format!("{SPECIFICATION}: holds no table of promises"));
    }
    findings
}

/// Absolute paths in pages that no reader's machine has.
#[must_use]
pub fn foreign_paths(files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|f| f.path.ends_with(".md")) {
        for (n, line) in file.text.lines().enumerate() {
            for (at, _) in line.match_indices('/') {
                let before = line[..at].chars().next_back().unwrap_or(' ');
                let rest: String = line[at + 1..].chars().take_while(|c| !" `'\")>,;|".contains(*c)).collect();
                let Some((top, below)) = rest.split_once('/') else { continue };
                let starts =
                    " `'\"(=:|".contains(before) && top.starts_with(|c: char| c.is_ascii_alphabetic() || c == '.');
                if starts && !below.is_empty() && !KNOWN_ROOTS.contains(&top) {
                    findings.push(format!(
                        "{}:{}: /{rest} is a path of one machine, not of every reader's",
                        file.path,
                        n + 1
                    ));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: &str) -> Vec<File> {
        let text = format!("# Promises\n\n| promise | proof |\n|---|---|\n{rows}");
        vec![
            File::new(SPECIFICATION, &text),
            File::new("tests/tests/a.rs", "#[test]\nfn it_starts() {}\n"),
            File::new("tests/bench", "#!/bin/sh\n"),
        ]
    }

    #[test]
    fn a_promise_with_a_test_or_a_program_is_proven() {
        assert_eq!(unproven(&page("| it starts | `a::it_starts`, `tests/bench up` |\n")), Vec::<String>::new());
    }

    #[test]
    fn a_promise_without_a_test_that_exists_is_found() {
        assert_eq!(unproven(&page("| it starts | pending |\n| it stops | `it_stops` |\n")).len(), 2);
    }

    #[test]
    fn a_missing_or_empty_page_proves_nothing() {
        assert_eq!(unproven(&[]).len(), 1);
        assert_eq!(unproven(&[File::new(SPECIFICATION, "# Promises\n")]).len(), 1);
    }

    #[test]
    fn paths_of_one_machine_are_found_in_pages() {
        let text = "See `/var/lib/orch`, https://orch.example/a/b, a/b/c and GET /v1/stacks.\nBuilt in /builds/me/orch, /home/me/x.\n";
        assert_eq!(foreign_paths(&[File::new("README.md", text)]).len(), 2);
        assert!(foreign_paths(&[File::new("a.rs", "// /builds/me")]).is_empty());
    }
}
