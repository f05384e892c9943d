//! Looks for something that must be written nowhere: as it is, in base64 at each of the three alignments, and in hexadecimal digits.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::host::Host;

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What `text` is in base64 wherever it stands, when so many bytes stand before it: the digits that depend on `text` alone.
fn base64(text: &str, before: usize) -> String {
    let bytes: Vec<u8> = std::iter::repeat_n(0, before).chain(text.bytes()).collect();
    let digits = bytes.chunks_exact(3).flat_map(|three| {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[bits >> shift & 63]))
    });
    // A digit has six bits: the first ones are of what stands before.
    digits.skip((before * 8).div_ceil(6)).collect()
}

fn spellings(text: &str) -> Vec<String> {
    let mut hexadecimal = String::new();
    text.bytes().for_each(|byte| write!(hexadecimal, "{byte:02x}").expect("text can be written"));
    let upper = hexadecimal.to_uppercase();
    (0..3).map(|before| base64(text, before)).chain([text.to_owned(), hexadecimal, upper]).collect()
}

/// Files below a folder that hold it, each with all of its bytes looked at.
///
/// # Panics
/// When they cannot be looked at.
#[track_caller]
#[must_use]
pub fn files(root: &Path, text: &str) -> Vec<String> {
    let mut grep = Command::new("grep");
    // Sockets, pipes and devices are no files; what is binary is looked at as text.
    grep.args(["-rlaF", "-D", "skip"]).stdin(Stdio::null()).env("LC_ALL", "C");
    for spelling in spellings(text) {
        grep.arg("-e").arg(spelling);
    }
    let output = grep.arg("--").arg(root).output().expect("grep can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    // Files come and go while they are looked at.
    let vanished = said.lines().all(|line| line.ends_with("No such file or directory"));
    assert!(output.status.code().is_some_and(|code| code < 2) || vanished, "{said}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Processes of a host that have it in their words or in their environment.
#[must_use]
pub fn processes(host: &Host, text: &str) -> Vec<String> {
    let (processes, spellings) = (host.processes(), spellings(text));
    let mut found = Vec::new();
    for pid in processes.all() {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(processes.path(pid).join(file)).unwrap_or_default();
            let read = String::from_utf8_lossy(&bytes);
            if spellings.iter().any(|spelling| read.contains(spelling.as_str())) {
                found.push(format!("{file} of process {pid} ({})", processes.command(pid)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_however_it_is_written() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // "xyz-secret-of-nobody" and the same with one and two bytes before, by base64(1).
        let written = [
            "a secret-of-nobody b",
            "eHl6LXNlY3JldC1vZi1ub2JvZHk=",
            "LXh5ei1zZWNyZXQtb2Ytbm9ib2R5",
            "LS14eXotc2VjcmV0LW9mLW5vYm9keQ==",
            "7365637265742d6f662d6e6f626f6479",
            "7365637265742D6F662D6E6F626F6479",
        ];
        for (number, text) in written.iter().enumerate() {
            std::fs::write(folder.path().join(number.to_string()), text).expect("a file can be written");
        }
        std::fs::write(folder.path().join("other"), "secret-of-somebody").expect("a file can be written");
        let mut found = files(folder.path(), "secret-of-nobody");
        found.sort();
        let expected: Vec<String> =
            (0..written.len()).map(|n| folder.path().join(n.to_string()).display().to_string()).collect();
        assert_eq!(found, expected);
    }
}
