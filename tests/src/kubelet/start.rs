// SPDX-License-Identifier: Apache-2.0
//! Starts one container of a pod whose sandbox runs, and restarts it.

use std::fs;

use super::Kubelet;
use super::container::{Instance, log_path, mount};
use super::cri::CriError;
use super::cri::api::ImageSpec;
use super::cri::api::{
    ContainerState as CriState, ContainerStatus, ContainerStatusRequest, CreateContainerRequest, Image,
    ImageStatusRequest, Mount, MountPropagation as CriPropagation, RemoveContainerRequest,
    StartContainerRequest, StopContainerRequest,
};
use super::env::{self, Facts};
use super::error::KubeletError;
use super::pod_dir::{self, make_dir};
use super::pod_spec::{Container, MountPropagation};
use super::resources::{self, Amounts};
use super::state::{ContainerState, PodState};
use super::{sandbox, sub_path};

impl Kubelet {
    /// Makes a container, which does not run yet. It becomes the pod's only when it is started.
    ///
    /// # Errors
    /// [`KubeletError::Cri`], [`KubeletError::NoImage`], [`KubeletError::File`].
    pub async fn create_container(
        &self,
        state: &PodState,
        container: &Container,
        attempt: u32,
    ) -> Result<ContainerState, KubeletError> {
        let image = self.image(&container.image).await?;
        let dir = self.pod_dir(state);
        dir.write_etc_hosts(&etc_hosts_text(state)?)?;
        let termination_log = dir.new_termination_log(&container.name)?;
        let mut mounts = self.volume_mounts(state, container)?;
        if mounts.iter().all(|mount| mount.container_path != "/etc/hosts") {
            mounts.push(mount("/etc/hosts", &dir.etc_hosts(), false));
        }
        mounts.push(mount(&container.termination_message_path, &termination_log, false));

        let config = self.instance(state, container, attempt, &image, mounts)?.config();
        let log = self.log_directory(state).join(log_path(container, attempt));
        if let Some(dir) = log.parent() {
            make_dir(dir, 0o755)?;
        }
        let pod_amounts = Amounts::of_pod(&state.pod)?;
        let sandbox_config =
            sandbox::config(&state.pod, &state.uid, &state.cgroup, &pod_amounts, &self.settings);
        let request = CreateContainerRequest {
            pod_sandbox_id: state.sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let id = self.cri.create_container(request).await?.container_id;
        Ok(ContainerState { id, attempt, log, termination_log })
    }

    /// Makes and starts a container. When it cannot be started it is removed again, and the error has the
    /// runtime's words; the pod stays.
    ///
    /// # Errors
    /// [`KubeletError::Cri`], [`KubeletError::NoImage`], [`KubeletError::File`].
    pub async fn start_container(
        &self,
        state: &mut PodState,
        container: &Container,
        attempt: u32,
    ) -> Result<(), KubeletError> {
        let made = self.create_container(state, container, attempt).await?;
        let container_id = made.id.clone();
        if let Err(error) =
            self.cri.start_container(StartContainerRequest { container_id: container_id.clone() }).await
        {
            // The start's error is the one that matters; what cannot be removed now is removed with the pod.
            let _ = self.cri.remove_container(RemoveContainerRequest { container_id }).await;
            return Err(error.into());
        }
        state.containers.insert(container.name.clone(), made);
        self.save(state)
    }

    /// Stops a container, where it still runs, and starts a new instance of it in the same sandbox.
    ///
    /// # Errors
    /// As [`Kubelet::start_container`].
    pub async fn restart_container(&self, state: &mut PodState, name: &str) -> Result<(), KubeletError> {
        let (name, old) = state.named_container(name)?;
        let (name, id, attempt) = (name.to_owned(), old.id.clone(), old.attempt + 1);
        let timeout = state.pod.spec.termination_grace_period_seconds;
        self.cri.stop_container(StopContainerRequest { container_id: id, timeout }).await?;
        let container = state.pod.all_containers().find(|container| container.name == name).cloned();
        match container {
            Some(container) => self.start_container(state, &container, attempt).await,
            None => Err(KubeletError::NoPod(name)),
        }
    }

    /// The runtime's view of a container.
    ///
    /// # Errors
    /// [`KubeletError::Cri`].
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus, KubeletError> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.cri.container_status(request).await?.status;
        Ok(status.ok_or(CriError::Incomplete { call: "ContainerStatus", field: "status" })?)
    }

    async fn image(&self, name: &str) -> Result<Image, KubeletError> {
        let spec = ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
        let found = self.cri.image_status(ImageStatusRequest { image: Some(spec) }).await?.image;
        found.ok_or_else(|| KubeletError::NoImage(name.to_owned()))
    }

    fn instance<'a>(
        &self,
        state: &'a PodState,
        container: &'a Container,
        attempt: u32,
        image: &'a Image,
        mounts: Vec<Mount>,
    ) -> Result<Instance<'a>, KubeletError> {
        let target =
            container.target_container_name.as_deref().map(|name| state.container(name)).transpose()?;
        let facts = Facts {
            pod: &state.pod,
            uid: &state.uid,
            ip: &state.ip,
            service_host: &self.settings.service_host,
            node_name: &self.settings.node_name,
        };
        let amounts = Amounts::of_container(container)?;
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let capacity = resources::memory_capacity(&meminfo).unwrap_or(i64::MAX);
        let oom_score_adj = resources::oom_score_adj(resources::class(&state.pod)?, &amounts, capacity);
        Ok(Instance {
            pod: &state.pod,
            uid: &state.uid,
            container,
            attempt,
            target_id: target.map(|target| target.id.as_str()),
            image,
            env: env::of_container(container, &facts)?,
            mounts,
            resources: amounts.to_linux(oom_score_adj),
            seccomp_default: self.settings.seccomp_default,
        })
    }

    fn volume_mounts(&self, state: &PodState, container: &Container) -> Result<Vec<Mount>, KubeletError> {
        let dir = self.pod_dir(state);
        let mut mounts = Vec::new();
        for (index, wanted) in container.volume_mounts.iter().enumerate() {
            let Some(volume) = state.volumes.get(&wanted.name) else { continue };
            let source = if wanted.sub_path.is_empty() {
                volume.clone()
            } else {
                sub_path::bind(&dir, volume, wanted, &container.name, index)?
            };
            let propagation = match wanted.mount_propagation {
                MountPropagation::None => CriPropagation::PropagationPrivate,
                MountPropagation::HostToContainer => CriPropagation::PropagationHostToContainer,
                MountPropagation::Bidirectional => CriPropagation::PropagationBidirectional,
            };
            let mount = mount(&wanted.mount_path, &source, wanted.read_only);
            mounts.push(Mount { propagation: propagation.into(), ..mount });
        }
        Ok(mounts)
    }

    pub(crate) fn log_directory(&self, state: &PodState) -> std::path::PathBuf {
        let metadata = &state.pod.metadata;
        pod_dir::logs(&self.settings.pod_logs_dir, &metadata.namespace, &metadata.name, &state.uid)
    }
}

/// Whether the runtime says that a container runs.
#[must_use]
pub fn is_running(status: &ContainerStatus) -> bool {
    status.state() == CriState::ContainerRunning
}

fn etc_hosts_text(state: &PodState) -> Result<String, KubeletError> {
    if !state.pod.spec.host_network {
        return Ok(pod_dir::etc_hosts_text(&state.ip, &state.pod.hostname()));
    }
    let node = fs::read_to_string("/etc/hosts")
        .map_err(|source| KubeletError::file("read", "/etc/hosts", source))?;
    Ok(format!("# Kubernetes-managed hosts file (host network).\n{node}"))
}
