//! Filling an empty volume with what the image has where it will be mounted: contents, owners, modes, extended attributes, links.
//!
//! Everything is read below the image's root by descriptor, links resolved inside it (CVE-2022-23648: an image whose volume path led
//! to the host's /etc), and written below a directory that no one else sees, which then takes the volume's place by one rename.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;

use super::{VolumeError, failed};
use crate::container::directory::{make, remove_tree};
use crate::copy::root::Root;
use crate::copy::tree;

/// Copies `target` of the merged `layers` into `data`, which must be empty.
pub(super) fn copy_up(layers: &[PathBuf], target: &str, data: &Path) -> Result<(), VolumeError> {
    let volume = data.parent().unwrap_or(data);
    let scratch = volume.join("mount");
    let new = volume.join("data.new");
    let root = make(&scratch, 0o700).and_then(|()| Root::of_layers(layers, None, &scratch));
    let _ = std::fs::remove_dir(&scratch);
    let root = root.map_err(failed("mount the image for", volume))?;
    let source = match root.open(target, OFlag::O_PATH) {
        Ok(found) => found,
        // Nothing to copy: the image does not have the path, or nothing that could be reached.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => return Ok(()),
        Err(e) => return Err(failed("look in the image for", Path::new(target))(e)),
    };
    let source = File::from(source);
    let meta = source.metadata().map_err(failed("look at", Path::new(target)))?;
    if !meta.is_dir() {
        return Err(VolumeError::OverFile { path: target.to_owned() });
    }
    remove_tree(&new).map_err(failed("remove", &new))?;
    let copied = || -> io::Result<()> {
        make(&new, 0o700)?;
        let from = root.open(target, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let to: OwnedFd = File::open(&new)?.into();
        tree::copy(&from, &to)?;
        tree::copy_attributes(&from, &to)?;
        nix::unistd::fchownat(
            AT_FDCWD,
            &new,
            Some(meta.uid().into()),
            Some(meta.gid().into()),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        nix::sys::stat::fchmod(to.as_fd(), Mode::from_bits_truncate(meta.mode() & 0o7777))?;
        // All of it before the rename: a volume is empty or whole, also after a power cut.
        nix::unistd::syncfs(&to)?;
        // An empty directory may be replaced.
        std::fs::rename(&new, data)?;
        File::open(volume)?.sync_all()
    };
    copied().map_err(|source| {
        let _ = remove_tree(&new);
        VolumeError::Io { doing: "copy the image's content into", path: data.to_owned(), source }
    })
}
