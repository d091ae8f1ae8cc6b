// SPDX-License-Identifier: Apache-2.0
//! Stops a pod with its grace period, and removes every trace of it from the node.

use futures_util::future::join_all;

use super::Kubelet;
use super::cgroup;
use super::cri::CriError;
use super::cri::api::{
    Container, ContainerFilter, ListContainersRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use super::error::KubeletError;
use super::pod_dir;
use super::state::PodState;

impl Kubelet {
    /// Stops all containers at once, each with `grace` seconds between SIGTERM and SIGKILL, or with the pod's
    /// own grace period; then the sandbox. What is stopped already stays so.
    ///
    /// # Errors
    /// [`KubeletError::Cri`].
    pub async fn stop(&self, state: &PodState, grace: Option<i64>) -> Result<(), KubeletError> {
        let timeout = grace.unwrap_or(state.pod.spec.termination_grace_period_seconds);
        let containers = self.containers_of(state).await?;
        let stops = containers.into_iter().map(|container| {
            self.cri.stop_container(StopContainerRequest { container_id: container.id, timeout })
        });
        for stopped in join_all(stops).await {
            found(stopped)?;
        }
        let pod_sandbox_id = state.sandbox_id.clone();
        found(self.cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }).await)
    }

    /// Stops a pod and removes its containers, sandbox, volumes, directory, logs and cgroup.
    ///
    /// # Errors
    /// [`KubeletError::Cri`]; [`KubeletError::StillMounted`]; [`KubeletError::File`]. What was not removed can be tried again.
    pub async fn remove(&self, state: &PodState, grace: Option<i64>) -> Result<(), KubeletError> {
        self.stop(state, grace).await?;
        for container in self.containers_of(state).await? {
            found(self.cri.remove_container(RemoveContainerRequest { container_id: container.id }).await)?;
        }
        let pod_sandbox_id = state.sandbox_id.clone();
        found(self.cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await)?;
        cgroup::remove_pod_group(&state.cgroup)?;
        pod_dir::remove_dir(&self.log_directory(state))?;
        self.pod_dir(state).remove()
    }

    /// Every container that the runtime has for the pod, earlier instances too.
    async fn containers_of(&self, state: &PodState) -> Result<Vec<Container>, KubeletError> {
        let filter =
            ContainerFilter { pod_sandbox_id: state.sandbox_id.clone(), ..ContainerFilter::default() };
        Ok(self.cri.list_containers(ListContainersRequest { filter: Some(filter) }).await?.containers)
    }
}

/// What the runtime does not know is gone, which is what was wanted.
fn found<T>(answer: Result<T, CriError>) -> Result<(), KubeletError> {
    match answer {
        Err(error) if !error.is_not_found() => Err(error.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}
