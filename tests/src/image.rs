//! The images that scenarios run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::tidy::repository;

/// The folder of NAME.tar for every image of the examples: `$ORCH_IMAGES`, or what `tests/images/build` makes or has made.
///
/// # Panics
/// When they cannot be made.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(given) = std::env::var_os("ORCH_IMAGES").filter(|v| !v.is_empty()) {
            return PathBuf::from(given);
        }
        let build = repository().join("tests/images/build");
        let output = Command::new(&build).output().expect("tests/images/build can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tests/images/build failed: {said}");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}

/// The archive of one image.
#[must_use]
pub fn archive(name: &str) -> PathBuf {
    folder().join(format!("{name}.tar"))
}

/// Writes a tar of a root file system of busybox at `path`, with `files` (path, content) in it as well.
///
/// # Panics
/// When this host has no static busybox or no tar.
pub fn root_archive(path: &Path, files: &[(&str, &str)]) {
    let tree = tempfile::tempdir().expect("a temporary folder can be made");
    for folder in ["bin", "etc", "tmp"] {
        std::fs::create_dir(tree.path().join(folder)).expect("a folder can be made");
    }
    std::fs::copy("/bin/busybox", tree.path().join("bin/busybox"))
        .expect("this host has /bin/busybox (package busybox-static)");
    for applet in ["sh", "cat", "echo", "sleep", "true", "ls"] {
        std::os::unix::fs::symlink("busybox", tree.path().join("bin").join(applet)).expect("a link can be made");
    }
    for (name, content) in files {
        std::fs::write(tree.path().join(name), content).expect("a file can be written");
    }
    let status = Command::new("tar").arg("-C").arg(tree.path()).arg("-cf").arg(path).arg(".").status();
    assert!(status.is_ok_and(|s| s.success()), "tar could not write {}", path.display());
}
