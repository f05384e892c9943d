//! From a container's configuration to what its shim is given.

use std::collections::BTreeMap;

use super::{Container, EngineError, Inner};
use crate::config::{ContainerConfig, ContainerId, MountKind, Share};
use crate::runtime::{self, Identity, PrepareContext};

impl Inner {
    /// Gathers what a start needs, fills empty volumes from the image, and compiles the plan.
    pub(super) fn prepare(&self, container: &Container, config: &ContainerConfig) -> Result<Vec<u8>, EngineError> {
        let image = self.images.0.resolve(&config.image_id)?;
        let mut volumes = BTreeMap::new();
        for mount in &config.mounts {
            if let MountKind::Volume { name, nocopy, subpath } = &mount.kind {
                let data = self.volumes.ensure(name, false)?;
                if !nocopy && subpath.is_empty() {
                    self.volumes.copy_up(name, &image.layers, &mount.target)?;
                }
                volumes.insert(name.clone(), data);
            }
        }
        let generated = self.generate(config)?;
        let context = PrepareContext {
            instance: self.config.instance.clone(),
            lower: image.layers,
            init_layer: Some(self.data.init_layer.clone()),
            upper: container.directory.join("upper"),
            work: container.directory.join("work"),
            mountpoint: self.config.run_dir.join("root"),
            hosts: generated.hosts,
            resolv_conf: generated.resolv_conf,
            hostname: generated.hostname,
            files: generated.files,
            volumes,
            containers: self.shared_containers(config),
            layout: self.layout.clone(),
        };
        let plan = runtime::prepare(config, &context)?;
        postcard::to_stdvec(&plan).map_err(|e| EngineError::Invalid(format!("the start plan cannot be encoded: {e}")))
    }

    /// The running containers whose namespaces this one joins. One that does not run is missing here, and preparing says so.
    fn shared_containers(&self, config: &ContainerConfig) -> BTreeMap<ContainerId, Identity> {
        let spaces = &config.namespaces;
        let shares = [&spaces.pid, &spaces.ipc, &spaces.uts, &spaces.cgroup];
        let ids = shares.into_iter().filter_map(|share| if let Share::Container(id) = share { Some(id) } else { None });
        ids.filter_map(|id| {
            let state = self.container(id).ok()?.state();
            state.phase.is_alive().then(|| (id.clone(), Identity { pid: state.pid, start_time: state.start_time }))
        })
        .collect()
    }
}
