//! Mounts whose owners are mapped to the ids of a container that has its own: what lies on disk has the ids that the image says, or
//! that other containers wrote, and the container sees them as its own.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

use super::super::super::ids::IdRange;
use super::super::super::plan::{Propagation, RootPlan};
use super::super::{Compiler, LaunchError, open_error, text};
use super::{open_bind, propagation_flag, set_attributes};
use crate::sys::child::IdmappedLayers;
use crate::sys::raw::{self, MOUNT_ATTR_IDMAP, MOUNT_ATTR_RDONLY, MountAttr};

impl Compiler<'_> {
    /// The host's id of an owner inside. One that the container does not have gives root inside: it is that of a device of the host.
    pub(super) fn owner(&self, inside: u32) -> u32 {
        self.own_ids.map_or(inside, |(ids, _)| ids.outside(inside).unwrap_or(ids.first))
    }

    /// A tmpfs's options with the owners that they name as ids of the host.
    pub(super) fn with_own_ids(&self, options: &[(String, String)]) -> Result<Vec<(String, String)>, LaunchError> {
        let Some((ids, _)) = self.own_ids else { return Ok(options.to_vec()) };
        let shifted = |(key, value): &(String, String)| {
            if key != "uid" && key != "gid" {
                return Ok((key.clone(), value.clone()));
            }
            let outside = value.parse().ok().and_then(|inside| ids.outside(inside));
            outside.map(|id| (key.clone(), id.to_string())).ok_or_else(|| LaunchError::ForeignId {
                what: format!("a tmpfs's {key}"),
                id: value.clone(),
                length: IdRange::LENGTH,
            })
        };
        options.iter().map(shifted).collect()
    }

    /// The layers as idmapped mounts.
    pub(super) fn idmapped_layers(&mut self, root: &RootPlan) -> Result<IdmappedLayers, LaunchError> {
        let mut trees = Vec::new();
        for (index, layer) in root.lower.iter().enumerate() {
            trees.push((self.idmapped(layer)?, text("a layer", &index.to_string())?));
        }
        // Both are reached through one mount, as overlayfs asks.
        let beside = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let (parent, Some(upper), Some(work)) = (root.upper.parent(), beside(&root.upper), beside(&root.work)) else {
            return Err(open_error("find the directory of", &root.upper, Errno::ENOTDIR));
        };
        let own = parent.filter(|parent| root.work.parent() == Some(parent));
        let own = own.ok_or_else(|| open_error("find beside its upper directory", &root.work, Errno::EXDEV))?;
        trees.push((self.idmapped(own)?, c"own".to_owned()));
        let lower: Vec<_> = (0..root.lower.len()).rev().map(|index| index.to_string()).collect();
        let mut options = format!("index=off,lowerdir={},upperdir=own/{upper},workdir=own/{work}", lower.join(":"));
        if root.volatile {
            options.push_str(",volatile");
        }
        Ok(IdmappedLayers { trees, options: text("the layers", &options)? })
    }

    fn idmapped(&mut self, directory: &Path) -> Result<std::os::fd::RawFd, LaunchError> {
        let tree = open_bind(directory, "", false)?;
        self.map(&tree, (false, Propagation::Private), 0).map_err(|errno| unmapped(directory, errno))?;
        Ok(self.keep(tree))
    }

    /// A path of the host as a detached tree with the attributes and propagation asked for.
    pub(super) fn bind(
        &self,
        source: &Path,
        subpath: &str,
        shape: (bool, Propagation),
        attrs: u64,
        mapped: bool,
    ) -> Result<OwnedFd, LaunchError> {
        let tree = open_bind(source, subpath, shape.0)?;
        if self.own_ids.is_none() || !mapped {
            set_attributes(&tree, source, shape, attrs)?;
            return Ok(tree);
        }
        match self.map(&tree, shape, attrs) {
            // A file system that maps nothing (procfs, sysfs, most network ones). What is only read is shown as it is: the owners
            // are nobody inside, and what everybody may read can be read.
            Err(Errno::EINVAL) if attrs & MOUNT_ATTR_RDONLY != 0 => {
                let tree = open_bind(source, subpath, shape.0)?;
                set_attributes(&tree, source, shape, attrs)?;
                Ok(tree)
            }
            Err(errno) => Err(unmapped(source, errno)),
            Ok(()) => Ok(tree),
        }
    }

    fn map(&self, tree: &OwnedFd, (recursive, propagation): (bool, Propagation), attrs: u64) -> Result<(), Errno> {
        let Some((_, namespace)) = self.own_ids else { return Ok(()) };
        let attr = MountAttr {
            set: attrs | MOUNT_ATTR_IDMAP,
            propagation: propagation_flag(propagation),
            userns_fd: namespace as u64,
            ..MountAttr::default()
        };
        raw::mount_setattr(tree.as_raw_fd(), recursive, &attr)
    }
}

fn unmapped(path: &Path, errno: Errno) -> LaunchError {
    LaunchError::Unmapped { path: path.to_owned(), source: errno.into() }
}
