// SPDX-License-Identifier: Apache-2.0
//! Freezes a running container into an archive, as kubelet's checkpoint API does.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Kubelet;
use super::cri::api::CheckpointContainerRequest;
use super::error::KubeletError;
use super::pod_dir::make_dir;
use super::state::PodState;

impl Kubelet {
    /// Writes a checkpoint of a container to `archive`, or to where kubelet would put it, and returns where it
    /// is. The container runs on. An empty container name means the only one.
    ///
    /// # Errors
    /// [`KubeletError::NoContainer`]; [`KubeletError::Cri`].
    pub async fn checkpoint(
        &self,
        state: &PodState,
        container: &str,
        archive: Option<&Path>,
    ) -> Result<PathBuf, KubeletError> {
        let (name, container) = state.named_container(container)?;
        let archive = match archive {
            Some(path) => path.to_owned(),
            None => self.default_archive(state, name)?,
        };
        let request = CheckpointContainerRequest {
            container_id: container.id.clone(),
            location: archive.to_string_lossy().into_owned(),
            timeout: 0,
        };
        self.cri.checkpoint_container(request).await?;
        Ok(archive)
    }

    /// Source: kubelet, `pkg/kubelet/kubelet.go`, `CheckpointContainer`.
    fn default_archive(&self, state: &PodState, container: &str) -> Result<PathBuf, KubeletError> {
        let dir = self.settings.root_dir.join("checkpoints");
        make_dir(&dir, 0o700)?;
        let now = OffsetDateTime::now_utc();
        let time = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).map_err(KubeletError::Time)?;
        let metadata = &state.pod.metadata;
        Ok(dir.join(format!("checkpoint-{}_{}-{container}-{time}.tar", metadata.name, metadata.namespace)))
    }
}
