//! The store's hand on the disk: every operation whose order matters after a power cut goes through [`Disk`].
//!
//! In production it is a thin layer over `std::fs`. A test gives it a [`Watch`], sees each operation, stops the store before any
//! of them, and rebuilds the directory as a power cut at that point would leave it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One operation, as a [`Watch`] sees it.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "the paths are for a watching test, which reads those it needs")]
pub(crate) enum Act<'a> {
    /// A new file.
    Create(&'a Path),
    /// Bytes appended to it.
    Write(&'a Path),
    /// fsync of a file.
    SyncFile(&'a Path),
    /// rename within the store.
    Rename(&'a Path, &'a Path),
    /// A new directory.
    MakeDir(&'a Path),
    /// fsync of a directory: its names are durable.
    SyncDir(&'a Path),
    /// syncfs: everything below is durable.
    SyncAll(&'a Path),
    /// A file or tree goes away.
    Remove(&'a Path),
    /// An entry was unpacked into this layer.
    Unpack(&'a Path),
}

/// A test's view of the store's operations.
pub(crate) trait Watch: Send + Sync {
    /// Before an operation; an error is returned by it and nothing is done.
    fn before(&self, act: Act<'_>) -> io::Result<()>;
    /// After it succeeded.
    fn after(&self, act: Act<'_>);
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    watch: Option<Arc<dyn Watch>>,
}

impl Disk {
    #[cfg(test)]
    pub(crate) fn watched(watch: Arc<dyn Watch>) -> Self {
        Self { watch: Some(watch) }
    }

    fn act<T>(&self, act: Act<'_>, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(watch) = &self.watch else { return operation() };
        watch.before(act)?;
        let result = operation()?;
        watch.after(act);
        Ok(result)
    }

    /// Creates a file that must not exist, readable by root only.
    pub(crate) fn create(&self, path: PathBuf) -> io::Result<DiskFile> {
        use std::os::unix::fs::OpenOptionsExt;
        let open = || File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = self.act(Act::Create(&path), open)?;
        Ok(DiskFile { file, path, disk: self.clone() })
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.act(Act::Rename(from, to), || fs::rename(from, to))
    }

    /// Creates a directory for root only: a layer holds set-user-id programs that no local user may reach (CVE-2021-41091).
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        self.act(Act::MakeDir(path), || fs::DirBuilder::new().mode(0o700).create(path))
    }

    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.act(Act::SyncDir(path), || File::open(path)?.sync_all())
    }

    /// Makes everything on the file system of `path` durable: one call for the ten thousand files of a layer, where an fsync of
    /// each would wait for the journal ten thousand times.
    pub(crate) fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.act(Act::SyncAll(path), || Ok(nix::unistd::syncfs(File::open(path)?)?))
    }

    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.act(Act::Remove(path), || fs::remove_file(path))
    }

    pub(crate) fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.act(Act::Remove(path), || fs::remove_dir_all(path))
    }

    /// An entry is about to be unpacked into `layer`.
    pub(crate) fn unpacking(&self, layer: &Path) -> io::Result<()> {
        self.act(Act::Unpack(layer), || Ok(()))
    }

    /// Replaces the file at `path` by `bytes` so that after a power cut it holds the old or the new content, whole.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        match self.remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let written = self.create(temporary.clone()).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync()
        });
        if let Err(error) = written {
            // On a full disk the fragment would keep its blocks; at the next attempt it would be removed anyway.
            self.remove_file(&temporary).ok();
            return Err(error);
        }
        self.rename(&temporary, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new("/")))
    }
}

/// A new file of the store.
pub(crate) struct DiskFile {
    file: File,
    path: PathBuf,
    disk: Disk,
}

impl DiskFile {
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.disk.act(Act::SyncFile(&self.path), || self.file.sync_all())
    }
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { file, path, disk } = self;
        disk.act(Act::Write(path), || file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
