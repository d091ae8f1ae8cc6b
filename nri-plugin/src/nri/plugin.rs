// SPDX-License-Identifier: Apache-2.0
//! What a plugin does: one method for each thing that a runtime tells it.

use async_trait::async_trait;

use super::api::{
    ConfigureRequest, Container, ContainerUpdate, CreateContainerResponse, Event, PodSandbox,
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest,
    ValidateContainerAdjustmentRequest,
};

/// The plugin does not agree; the runtime's request fails with this reason, which users read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// A plugin. Methods that are not written do nothing and agree.
///
/// The runtime waits for each answer, by default 2 seconds; the session answers with an error when three quarters of
/// that have passed, and drops the call. So methods must be quick, must not block the thread, and must bear being
/// dropped at an await. Several may run at once. They must not ask the runtime for anything: it holds a lock meanwhile.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// The events to subscribe to. Those that the runtime does not know are left out.
    fn events(&self) -> &[Event];

    /// The runtime introduces itself and hands over the plugin's configuration, if it has one.
    async fn configure(&self, _runtime: &ConfigureRequest) -> Result<(), Refused> {
        Ok(())
    }

    /// All pods and containers that exist at the beginning of a session, and their wanted updates.
    async fn synchronize(
        &self,
        _pods: Vec<PodSandbox>,
        _containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refused> {
        Ok(Vec::new())
    }

    /// The runtime goes down.
    async fn shutdown(&self) {}

    /// A pod has its network and its sandbox runs.
    async fn run_pod_sandbox(&self, _pod: PodSandbox) -> Result<(), Refused> {
        Ok(())
    }

    /// A pod's resources are about to change.
    async fn update_pod_sandbox(&self, _request: UpdatePodSandboxRequest) -> Result<(), Refused> {
        Ok(())
    }

    /// A pod's resources have changed.
    async fn post_update_pod_sandbox(&self, _pod: PodSandbox) -> Result<(), Refused> {
        Ok(())
    }

    /// A pod stops.
    async fn stop_pod_sandbox(&self, _pod: PodSandbox) -> Result<(), Refused> {
        Ok(())
    }

    /// A pod is gone; perhaps one that the plugin never heard of.
    async fn remove_pod_sandbox(&self, _pod: PodSandbox) -> Result<(), Refused> {
        Ok(())
    }

    /// A container is about to be created and may be adjusted; refusing fails its creation.
    async fn create_container(
        &self,
        _pod: PodSandbox,
        _container: Container,
    ) -> Result<CreateContainerResponse, Refused> {
        Ok(CreateContainerResponse::default())
    }

    /// A container has been created.
    async fn post_create_container(&self, _pod: PodSandbox, _container: Container) -> Result<(), Refused> {
        Ok(())
    }

    /// A container is about to start.
    async fn start_container(&self, _pod: PodSandbox, _container: Container) -> Result<(), Refused> {
        Ok(())
    }

    /// A container runs.
    async fn post_start_container(&self, _pod: PodSandbox, _container: Container) -> Result<(), Refused> {
        Ok(())
    }

    /// A container's resources are about to change.
    async fn update_container(
        &self,
        _request: UpdateContainerRequest,
    ) -> Result<UpdateContainerResponse, Refused> {
        Ok(UpdateContainerResponse::default())
    }

    /// A container's resources have changed.
    async fn post_update_container(&self, _pod: PodSandbox, _container: Container) -> Result<(), Refused> {
        Ok(())
    }

    /// A container stops; perhaps one that the plugin never heard of. Returns updates of others.
    async fn stop_container(
        &self,
        _pod: PodSandbox,
        _container: Container,
    ) -> Result<Vec<ContainerUpdate>, Refused> {
        Ok(Vec::new())
    }

    /// A container is gone; perhaps one that the plugin never heard of.
    async fn remove_container(&self, _pod: PodSandbox, _container: Container) -> Result<(), Refused> {
        Ok(())
    }

    /// Whether what all plugins together made of a new container is right; refusing fails its creation.
    async fn validate_container_adjustment(
        &self,
        _request: ValidateContainerAdjustmentRequest,
    ) -> Result<(), Refused> {
        Ok(())
    }
}
