//! The rules of the house that a machine can check, as functions over what was read: the manifests as packages, the files as text.
//!
//! `tests/tidy.rs` applies them to this repository; each function is also tested on small made-up trees, so that a rule that can
//! no longer fail is noticed. Every finding is one line for people: where, what, and what the rule is.

pub mod manifest;
pub mod promise;
pub mod source;

use std::path::{Path, PathBuf};

/// One text file of the repository.
#[derive(Debug, Clone)]
pub struct File {
    /// Relative to the repository, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl File {
    /// A file as a test makes it up.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// The last part of its path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Whether it is Rust.
    #[must_use]
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// The root of this repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Every text file below `root`, in order of path; build output, caches and git's own folder left out.
///
/// # Errors
/// When a folder cannot be read.
pub fn files(root: &Path) -> std::io::Result<Vec<File>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let skipped = name.starts_with("target") || matches!(name.as_str(), ".git" | ".cache" | "__pycache__");
                if !skipped {
                    folders.push(entry.path());
                }
            } else if kind.is_file() {
                // What is not UTF-8 is data, not text.
                let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
                let path = entry.path().strip_prefix(root).unwrap_or(&entry.path()).to_string_lossy().into_owned();
                found.push(File { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
