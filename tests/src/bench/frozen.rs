// SPDX-License-Identifier: Apache-2.0
//! What all cases restore: one program, frozen once. Its sandbox and pod directory stay, for the cases that have
//! no pod of their own; its container has ended.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use super::record::Record;
use super::{Bench, freeze, workload};
use crate::harness::pods::RESTORE;
use crate::harness::thaw::Imported;
use crate::kubelet::mountinfo;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// Where containerd has the bundles of CRI's containers.
pub(crate) const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// A frozen program.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// The archive that CRI made.
    pub(crate) archive: PathBuf,
    /// The checkpoint in thaw's store.
    imported: Imported,
    /// The container's directory in it.
    pub(crate) dir: PathBuf,
    /// The lower layers of the root file system, the uppermost first: the checkpoint's, then the image's.
    pub(crate) layers: Vec<PathBuf>,
    /// The program's OCI configuration.
    pub(crate) spec: Value,
    /// The size of its memory.
    pub(crate) megabytes: u64,
    /// The checksum of it.
    pub(crate) checksum: String,
    /// Its pod.
    pub(crate) state: PodState,
}

impl Frozen {
    /// Runs a program with so much memory under `handler`, freezes it into an archive, ends it, and imports the
    /// archive into thaw's store.
    pub(crate) async fn make(
        bench: &Bench,
        handler: &str,
        megabytes: u64,
        record: &mut Record,
    ) -> anyhow::Result<Self> {
        let name = format!("frozen-{megabytes}");
        let dir = bench.heartbeat.dir();
        let pod = workload::pod(&name, handler, &bench.image, megabytes, dir)?;
        let watch = bench.heartbeat.watch()?;
        let state = bench.kubelet.run(pod).await?;
        watch.beat()?;
        let checksum = workload::checksum(&state.ip).await?;
        let id = state.container(workload::CONTAINER)?.id.clone();
        let spec = fs::read(format!("{BUNDLES}/{id}/config.json")).context("cannot read the OCI spec")?;
        let mut layers = image_layers(&id)?;

        let archive = bench.work.join(format!("{name}.tar"));
        let imported = freeze::into(&archive, &bench.kubelet, &state, record).await?;
        let dir = imported.dir().join(workload::CONTAINER);
        layers.insert(0, dir.join("rootfs"));
        let spec = serde_json::from_slice(&spec).context("cannot understand the OCI spec")?;
        Ok(Self { archive, imported, dir, layers, spec, megabytes, checksum, state })
    }

    /// A pod with the same program in `image`, as `handler` and `image` make it: `bench-CASE`.
    pub(crate) fn pod(&self, bench: &Bench, case: &str, handler: &str, image: &str) -> anyhow::Result<Pod> {
        workload::pod(&format!("bench-{case}"), handler, image, self.megabytes, bench.heartbeat.dir())
    }

    /// A pod that goes on from this checkpoint.
    pub(crate) fn resumed(&self, bench: &Bench, case: &str) -> anyhow::Result<Pod> {
        Ok(self.pod(bench, case, "thaw", &bench.image)?.annotated(RESTORE, &self.imported.reference()))
    }

    /// CRIU's images.
    pub(crate) fn images(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }

    /// The largest pages file.
    pub(crate) fn pages(&self) -> anyhow::Result<PathBuf> {
        let entries = fs::read_dir(self.images()).context("cannot list the images")?.flatten();
        let pages = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"));
        let largest = pages.max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()));
        Ok(largest.context("there is no pages file")?.path())
    }

    /// Removes the pod, the archive and the checkpoint.
    pub(crate) async fn remove(self, bench: &Bench) -> anyhow::Result<()> {
        bench.kubelet.remove(&self.state, Some(0)).await?;
        fs::remove_file(&self.archive).context("cannot remove the archive")?;
        freeze::remove(&self.imported)
    }
}

/// The lower directories of a running container's overlay.
fn image_layers(id: &str) -> anyhow::Result<Vec<PathBuf>> {
    let rootfs = Path::new(BUNDLES).join(id).join("rootfs");
    let mounts = mountinfo::mounts().context("cannot read the mounts")?;
    let overlay = mounts.iter().find(|mount| mount.mount_point == rootfs && mount.fs_type == "overlay");
    let Some(overlay) = overlay else { bail!("the program's root file system is no overlay") };
    let lower = overlay.super_options.split(',').find_map(|option| option.strip_prefix("lowerdir="));
    Ok(lower.context("the overlay has no lower directories")?.split(':').map(PathBuf::from).collect())
}
