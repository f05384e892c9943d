//! Copying between the host and a container (`cp`): tar out, tar in.
//!
//! Nothing is executed inside (CVE-2019-14271: a helper that loaded the container's libraries), no path is looked up twice, and every
//! look-up is made by the kernel within the container's root (CVE-2018-15664). A running container is seen through its own mounts,
//! volumes included; a stopped one through its layers.

mod extract;
mod owner;
mod pack;
pub(crate) mod root;
pub(crate) mod tree;

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::config::ContainerId;
use crate::engine::{Container, Engine, EngineError, Inner, lock};
use crate::runtime::Identity;
use root::Root;

pub use extract::CopyIn;
pub use pack::PathStat;

/// A copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The container's root.
    #[error("open the file system of container {container}")]
    Root {
        /// Which.
        container: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A path inside.
    #[error("{doing} {path} in the container")]
    Inside {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The archive that came in.
    #[error("read the archive to copy")]
    Archive(#[source] io::Error),
    /// An entry of it that would not stay where it is put.
    #[error("the archive's entry {0:?} has `..` in its path")]
    Outside(PathBuf),
    /// The host.
    #[error("start copying")]
    Host(#[source] io::Error),
}

fn inside(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.into();
    move |source| CopyError::Inside { doing, path, source }
}

/// A tar stream out of a container. An error in the middle shows as an error of the last read.
#[derive(Debug)]
pub struct CopyOut {
    /// What is at the path.
    pub stat: PathStat,
    pipe: io::PipeReader,
    outcome: std::sync::mpsc::Receiver<Result<(), CopyError>>,
}

impl Read for CopyOut {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.pipe.read(buffer)?;
        if count == 0
            && !buffer.is_empty()
            && let Ok(Err(e)) = self.outcome.recv()
        {
            return Err(io::Error::other(e));
        }
        Ok(count)
    }
}

impl Engine {
    /// A path of a container as a tar stream: its last component is the first entry. A link at the end is followed only with `follow`.
    ///
    /// # Errors
    /// When there is no such container or path.
    pub fn copy_out(&self, id: &ContainerId, path: &str, follow: bool) -> Result<CopyOut, EngineError> {
        let (inner, container) = (Arc::clone(&self.inner), self.inner.container(id)?);
        let (reader, writer) = io::pipe().map_err(CopyError::Host)?;
        let (tell_found, found) = std::sync::mpsc::sync_channel(1);
        let (tell_outcome, outcome) = std::sync::mpsc::sync_channel(1);
        let path = path.to_owned();
        let work = move || {
            // In this thread, for the lock goes with it.
            let packed = inner.with_root(&container, |root| {
                let (top, stat) = match pack::find(root, &path, follow) {
                    Ok(found) => found,
                    Err(e) => {
                        let _ = tell_found.send(Err(e));
                        return Ok(());
                    }
                };
                // Nobody waits for it if the caller has gone.
                if tell_found.send(Ok(stat.clone())).is_ok() {
                    pack::pack(top, &stat, root.ids(), writer)
                } else {
                    Ok(())
                }
            });
            let _ = tell_outcome.send(packed);
        };
        std::thread::Builder::new().name("engine-copy".to_owned()).spawn(work).map_err(CopyError::Host)?;
        match found.recv() {
            Ok(stat) => Ok(CopyOut { stat: stat?, pipe: reader, outcome }),
            // It did not come so far.
            Err(_) => match outcome.recv() {
                Ok(Err(e)) => Err(e.into()),
                _ => Err(CopyError::Host(io::ErrorKind::BrokenPipe.into()).into()),
            },
        }
    }

    /// Unpacks a tar stream into a directory of a container.
    ///
    /// # Errors
    /// When there is no such directory, or an entry cannot be written; what came before it is there.
    pub fn copy_in(
        &self,
        id: &ContainerId,
        directory: &str,
        archive: impl Read,
        options: &CopyIn,
    ) -> Result<(), EngineError> {
        let container = self.inner.container(id)?;
        let copied = self.inner.with_root(&container, |root| {
            let host = |source| CopyError::Host(source);
            let _as_root = root.ids().map(owner::MakesAsRoot::of).transpose().map_err(host)?;
            extract::extract(root, directory, archive, options)
        });
        Ok(copied?)
    }

    /// What is at a path of a container.
    ///
    /// # Errors
    /// When there is no such container or path.
    pub fn stat_path(&self, id: &ContainerId, path: &str, follow: bool) -> Result<PathStat, EngineError> {
        let container = self.inner.container(id)?;
        Ok(self.inner.with_root(&container, |root| pack::find(root, path, follow).map(|(_, stat)| stat))?)
    }
}

impl Inner {
    /// Lends a container's root. One that does not run cannot be started meanwhile: two mounts of one upper layer see no sense in each
    /// other's changes.
    fn with_root<T>(
        &self,
        container: &Container,
        work: impl FnOnce(&Root) -> Result<T, CopyError>,
    ) -> Result<T, CopyError> {
        let failed = |source| CopyError::Root { container: container.name(), source };
        let operation = lock(&container.operation);
        let state = container.state();
        if state.phase.is_alive() {
            drop(operation);
            let process = Identity { pid: state.pid, start_time: state.start_time };
            let ids = container.config().user_namespace.ids();
            let root = Root::of_process(process, ids).map_err(failed)?;
            return work(&root);
        }
        let image = self.images.0.resolve(&container.config().image_id).map_err(|e| failed(io::Error::other(e)))?;
        let (upper, below) = (container.directory.join("upper"), container.directory.join("work"));
        let scratch = self.config.run_dir.join("root");
        let layers: Vec<_> = image.layers.into_iter().chain([self.data.init_layer.clone()]).collect();
        let root = Root::of_layers(&layers, Some((&upper, &below)), &scratch).map_err(failed)?;
        work(&root)
    }
}

/// Flags for looking at something without opening it.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW);
