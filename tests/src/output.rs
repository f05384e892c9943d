//! What a command said and how it ended, with checks that show all of it when they fail.

use std::os::unix::process::ExitStatusExt;

use serde_json::Value;

/// A command that has ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command as typed.
    pub command: String,
    /// Its exit code; 128+N if signal N ended it.
    pub code: i32,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// What `std` has of a command that has ended.
    #[must_use]
    pub fn new(command: String, output: &std::process::Output) -> Self {
        let code = output.status.code().or_else(|| output.status.signal().map(|s| 128 + s)).unwrap_or(-1);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { command, code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Everything, for a message.
    #[must_use]
    pub fn told(&self) -> String {
        format!(
            "`{}` ended with code {}\n-- stdout:\n{}\n-- stderr:\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }

    /// It ended well.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// It ended with this code.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "expected exit code {code}: {}", self.told());
        self
    }

    /// It ended with another code than 0.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn fails(self) -> Self {
        assert_ne!(self.code, 0, "expected a failure: {}", self.told());
        self
    }

    /// Standard error has each of these words.
    ///
    /// # Panics
    /// When one is missing.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "expected {word:?} on stderr: {}", self.told());
        }
        self
    }

    /// Standard output has each of these words.
    ///
    /// # Panics
    /// When one is missing.
    #[track_caller]
    pub fn prints(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stdout.contains(word), "expected {word:?} on stdout: {}", self.told());
        }
        self
    }

    /// Standard output without blanks at its ends.
    #[must_use]
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }

    /// Standard output as lines.
    #[must_use]
    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// When it is not JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.told()))
    }

    /// Standard output as one JSON value a line.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[track_caller]
    #[must_use]
    pub fn json_lines(&self) -> Vec<Value> {
        let value = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line:?} of {}", self.told()))
        };
        self.stdout.lines().filter(|l| !l.trim().is_empty()).map(value).collect()
    }
}
