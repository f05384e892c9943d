//! Files that the engine makes for a container: /etc/hosts, /etc/hostname, /etc/resolv.conf in the run directory, secrets and configs
//! on a tmpfs and nowhere else.

use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{Inner, lock};
use crate::config::{ContainerConfig, ContainerId, InjectedFile, Share};
use crate::container::directory::{make, remove_tree};

/// /etc/hosts of a container for which the caller writes none.
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// Generated files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The file system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The contents of secrets and configs live in memory only and are gone.
    #[error("the contents of {missing:?} are not on this host any more (it was restarted); supply them again")]
    Missing {
        /// The first one's path inside.
        missing: String,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Io { doing, path, source }
}

/// Where a start finds what was generated.
#[derive(Debug, Default)]
pub(super) struct Generated {
    pub(super) hosts: Option<PathBuf>,
    pub(super) hostname: Option<PathBuf>,
    pub(super) resolv_conf: Option<PathBuf>,
    pub(super) files: Option<PathBuf>,
}

impl Inner {
    fn generated_dir(&self, id: &ContainerId) -> PathBuf {
        self.config.run_dir.join("containers").join(&id.0)
    }

    fn secrets_root(&self) -> PathBuf {
        self.config.run_dir.join("files")
    }

    /// Writes a container's files anew, as each start finds them.
    pub(super) fn generate(&self, config: &ContainerConfig) -> Result<Generated, FilesError> {
        let directory = self.generated_dir(&config.id);
        make(&directory, 0o710).map_err(failed("create", &directory))?;
        let hostname = if config.hostname.is_empty() { config.id.short() } else { &config.hostname };
        let mut generated = Generated::default();
        let own_name = config.namespaces.uts == Share::Private;
        let hosts = config
            .etc_hosts
            .clone()
            .unwrap_or_else(|| if own_name { format!("{HOSTS}127.0.1.1\t{hostname}\n") } else { HOSTS.to_owned() });
        let owner = outside(config, 0);
        generated.hosts = Some(write_plain(&directory, "hosts", &hosts, owner)?);
        if own_name {
            generated.hostname = Some(write_plain(&directory, "hostname", &format!("{hostname}\n"), owner)?);
        }
        if let Some(text) = &config.etc_resolv_conf {
            generated.resolv_conf = Some(write_plain(&directory, "resolv.conf", text, owner)?);
        }
        if !config.files.is_empty() {
            let files = self.secrets_root().join(&config.id.0);
            for (index, file) in config.files.iter().enumerate() {
                if !files.join(index.to_string()).exists() {
                    return Err(FilesError::Missing { missing: file.target.clone() });
                }
            }
            generated.files = Some(files);
        }
        Ok(generated)
    }

    /// Puts the contents of secrets and configs on a tmpfs: file `i` for the `i`th.
    pub(super) fn write_injected(&self, config: &ContainerConfig, files: &[InjectedFile]) -> Result<(), FilesError> {
        let root = self.secrets_root();
        let directory = root.join(&config.id.0);
        {
            // A second tmpfs would hide another container's files, and one that goes would leave these to the disk. With a directory on
            // it, it stays.
            let _injecting = lock(&self.injecting);
            ensure_tmpfs(&root)?;
            remove_tree(&directory).map_err(failed("remove", &directory))?;
            make(&directory, 0o710).map_err(failed("create", &directory))?;
        }
        for (index, file) in files.iter().enumerate() {
            let path = directory.join(index.to_string());
            let write = || -> io::Result<()> {
                let mut opened = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
                opened.write_all(&file.content)?;
                fchown(&opened, Some(outside(config, file.uid)), Some(outside(config, file.gid)))?;
                // After the owner, which would take set-id bits away.
                opened.set_permissions(std::fs::Permissions::from_mode(file.mode & 0o7777))
            };
            write().map_err(failed("write", &path))?;
        }
        Ok(())
    }

    /// Removes what was generated for a container, and the tmpfs with the last of its files.
    pub(super) fn remove_generated(&self, id: &ContainerId) {
        let root = self.secrets_root();
        for directory in [self.generated_dir(id), root.join(&id.0)] {
            if let Err(e) = remove_tree(&directory) {
                tracing::warn!(path = %directory.display(), error = %e, "generated files stay behind");
            }
        }
        let _injecting = lock(&self.injecting);
        let empty = std::fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_none());
        if empty {
            // EINVAL: the run directory is on a tmpfs itself and nothing is mounted. EBUSY: somebody looks at it; next time.
            let _ = umount2(&root, MntFlags::UMOUNT_NOFOLLOW);
            let _ = std::fs::remove_dir(&root);
        }
    }

    /// Removes what is left of containers that do not exist any more, after a crash.
    pub(super) fn sweep_run_dir(&self) {
        for root in [self.config.run_dir.join("containers"), self.secrets_root()] {
            let Ok(entries) = std::fs::read_dir(&root) else { continue };
            for entry in entries.flatten() {
                let id = ContainerId(entry.file_name().to_string_lossy().into_owned());
                if self.container(&id).is_err() {
                    self.remove_generated(&id);
                }
            }
        }
    }
}

/// The host's id of an owner inside. One that the container does not have gives root inside.
fn outside(config: &ContainerConfig, id: u32) -> u32 {
    config.user_namespace.ids().map_or(id, |ids| ids.outside(id).unwrap_or(ids.first))
}

fn write_plain(directory: &Path, name: &str, text: &str, owner: u32) -> Result<PathBuf, FilesError> {
    let path = directory.join(name);
    // Written in place: a running container that shares it has this very file mounted.
    let write = || -> io::Result<()> {
        let mut file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        if owner != 0 {
            fchown(&file, Some(owner), Some(owner))?;
        }
        file.set_permissions(std::fs::Permissions::from_mode(0o644))
    };
    write().map_err(failed("write", &path))?;
    Ok(path)
}

/// A directory in memory: the run directory's own file system where that is a tmpfs, else one mounted for it.
fn ensure_tmpfs(root: &Path) -> Result<(), FilesError> {
    make(root, 0o710).map_err(failed("create", root))?;
    let kind = statfs(root).map_err(|e| failed("look at the file system of", root)(e.into()))?;
    if kind.filesystem_type() == TMPFS_MAGIC {
        return Ok(());
    }
    // Swap could write it to disk; noswap (6.4) keeps it in memory, where the kernel knows it.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let with = |options| mount(Some("orch"), root, Some("tmpfs"), flags, Some(options));
    with("mode=0710,noswap").or_else(|_| with("mode=0710")).map_err(|e| failed("mount a tmpfs on", root)(e.into()))
}
