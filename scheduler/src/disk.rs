//! The few things that the control log asks of a file system, as a trait: so that a test can take the power away between any two of them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::seal::Seal;

/// One directory.
///
/// As on a real disk, nothing is durable until [`DiskFile::sync`], and no name until [`Disk::sync_names`].
pub trait Disk: Send {
    /// Where it is, for messages.
    fn path(&self, name: &str) -> PathBuf;

    /// The whole of a file; `None` when there is none.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Opens a file that exists.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Makes a file, empty, in place of any of that name.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// The system's.
    fn sync_names(&self) -> io::Result<()>;

    /// What encrypts everything that is written here; `None` = nothing is.
    fn seal(&self) -> Option<Seal> {
        None
    }
}

/// An open file.
pub trait DiskFile: Send {
    /// Writes at a place.
    ///
    /// # Errors
    /// The system's; how much is written then is not known.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Takes space up to this length, filled with zeros.
    ///
    /// # Errors
    /// The system's; the file is as long as it was, or longer.
    fn allocate(&mut self, from: u64, to: u64) -> io::Result<()>;

    /// Makes the content durable. After an error nobody knows what is.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file of the key that a directory is encrypted with.
const KEY: &str = "key";

/// A directory of the host. Everything in it but the key is encrypted.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    seal: Seal,
}

impl Directory {
    /// The directory, made when it is not there, for nobody else to read: what is in it are secrets.
    ///
    /// # Errors
    /// The system's.
    pub fn make(path: PathBuf) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        // The names of the folders that are made here must be as durable as what will be in them.
        let missing = path.ancestors().skip(1).take_while(|folder| !folder.exists()).count();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        for folder in path.ancestors().skip(1).take(missing + 1) {
            let folder = if folder.as_os_str().is_empty() { std::path::Path::new(".") } else { folder };
            File::open(folder)?.sync_all()?;
        }
        let seal = Seal::at(&path.join(KEY))?;
        Ok(Self { path, seal })
    }
}

impl Disk for Directory {
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match File::open(self.path(name)).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(self.path(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).read(true).write(true).mode(0o600).open(self.path(name))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn seal(&self) -> Option<Seal> {
        Some(self.seal.clone())
    }
}

impl DiskFile for File {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn allocate(&mut self, from: u64, to: u64) -> io::Result<()> {
        let (offset, length) = (i64::try_from(from).unwrap_or(i64::MAX), i64::try_from(to - from).unwrap_or(i64::MAX));
        nix::fcntl::posix_fallocate(&*self, offset, length).map_err(io::Error::from)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.sync_data()
    }
}
