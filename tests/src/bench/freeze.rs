// SPDX-License-Identifier: Apache-2.0
//! Freezing a pod's only container into thaw's store, as it is done with the kubelet's API and `thaw import`.

use std::fs;
use std::path::Path;

use anyhow::Context;

use super::command;
use super::record::{Record, timed};
use crate::harness::thaw::{self, Imported};
use crate::kubelet::Kubelet;
use crate::kubelet::cri::api::StopContainerRequest;
use crate::kubelet::state::PodState;

/// Where the archive is meanwhile: on the disk.
const ARCHIVE: &str = "/var/tmp/thaw-bench.tar";

/// Freezes the container, ends it, and imports its checkpoint; measured as `checkpoint` and `import`. The pod stays.
pub(crate) async fn freeze(
    kubelet: &Kubelet,
    state: &PodState,
    record: &mut Record,
) -> anyhow::Result<Imported> {
    let archive = Path::new(ARCHIVE);
    let imported = into(archive, kubelet, state, record).await?;
    fs::remove_file(archive).context("cannot remove the archive")?;
    Ok(imported)
}

/// The same; the archive stays.
pub(crate) async fn into(
    archive: &Path,
    kubelet: &Kubelet,
    state: &PodState,
    record: &mut Record,
) -> anyhow::Result<Imported> {
    let freeze =
        async { kubelet.checkpoint(state, "", Some(archive)).await.context("cannot freeze the program") };
    record.step("checkpoint", timed(freeze)).await?;
    let container_id = state.container("")?.id.clone();
    kubelet.cri.stop_container(StopContainerRequest { container_id, timeout: 0 }).await?;
    let import = async { anyhow::Ok(thaw::import(&[archive.to_owned()])?) };
    record.step("import", timed(import)).await
}

/// Removes the checkpoint from the store.
pub(crate) fn remove(imported: &Imported) -> anyhow::Result<()> {
    command::run("thaw", &["rm", &format!("{}/{}", imported.namespace, imported.reference())]).map(drop)
}
