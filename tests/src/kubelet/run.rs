// SPDX-License-Identifier: Apache-2.0
//! Runs a pod: directory, volumes, cgroup, sandbox, init containers, containers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Kubelet;
use super::cri::CriError;
use super::cri::api::{
    ContainerState as CriState, ListPodSandboxRequest, PodSandboxFilter, PodSandboxStatusRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};
use super::error::KubeletError;
use super::pod_dir::{self, PodDir, make_dir, random_uid};
use super::pod_spec::{Container, Pod, RestartPolicy};
use super::resources::{self, Amounts};
use super::state::PodState;
use super::{cgroup, sandbox, volumes};

/// How often an init container is looked at.
const INIT_POLL: Duration = Duration::from_millis(50);

impl Kubelet {
    /// Runs a pod and returns once all its containers are started. When the sandbox does not come up nothing
    /// is left; when a container does not start the pod stays, to be removed by its name.
    ///
    /// # Errors
    /// [`KubeletError`], with the runtime's own words where the runtime refused.
    pub async fn run(&self, pod: Pod) -> Result<PodState, KubeletError> {
        let mut state = self.run_sandbox(pod).await?;
        let status = PodSandboxStatusRequest { pod_sandbox_id: state.sandbox_id.clone(), verbose: false };
        let status = self.cri.pod_sandbox_status(status).await?.status;
        state.ip = status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        self.save(&state)?;
        for container in state.pod.spec.init_containers.clone() {
            self.start_container(&mut state, &container, 0).await?;
            if container.restart_policy != Some(RestartPolicy::Always) {
                self.wait_for_init(&state, &container).await?;
            }
        }
        for container in state.pod.spec.containers.clone() {
            self.start_container(&mut state, &container, 0).await?;
        }
        Ok(state)
    }

    async fn run_sandbox(&self, mut pod: Pod) -> Result<PodState, KubeletError> {
        let metadata = &pod.metadata;
        match self.find(&metadata.namespace, &metadata.name) {
            Ok(found) => return Err(KubeletError::Exists(found.full_name())),
            Err(KubeletError::NoPod(_)) => {}
            Err(error) => return Err(error),
        }
        let uid = metadata.uid.clone().unwrap_or_else(random_uid);
        let service_account = volumes::name_service_account(&mut pod);
        let amounts = Amounts::of_pod(&pod)?;
        let cgroup = cgroup::of_pod(&self.settings.cgroup_parent, resources::class(&pod)?, &uid);
        let metadata = &pod.metadata;
        let logs = pod_dir::logs(&self.settings.pod_logs_dir, &metadata.namespace, &metadata.name, &uid);
        let dir = PodDir::new(&self.settings.root_dir, &uid);

        dir.create()?;
        let undo = Undo { dir: dir.clone(), logs: logs.clone(), cgroup: cgroup.clone(), armed: true };
        let volumes = volumes::set_up(&pod, service_account.as_deref(), &dir, &self.settings)?;
        cgroup::make_pod_group(&cgroup, &amounts)?;
        make_dir(&logs, 0o755)?;
        let request = RunPodSandboxRequest {
            config: Some(sandbox::config(&pod, &uid, &cgroup, &amounts, &self.settings)),
            runtime_handler: pod.spec.runtime_class_name.clone().unwrap_or_default(),
        };
        let sandbox_id = match self.cri.run_pod_sandbox(request).await {
            Ok(answer) => answer.pod_sandbox_id,
            Err(error) => {
                self.remove_sandboxes_of(&uid).await;
                return Err(error.into());
            }
        };
        let (ip, containers) = (String::new(), BTreeMap::new());
        let state = PodState { pod, uid, sandbox_id, ip, cgroup, volumes, containers };
        if let Err(error) = self.save(&state) {
            self.remove_sandboxes_of(&state.uid).await;
            return Err(error);
        }
        undo.commit();
        Ok(state)
    }

    /// A sandbox that failed may stay on the runtime's books; kubelet collects it later. Errors are passed over,
    /// because the one that led here is reported.
    async fn remove_sandboxes_of(&self, uid: &str) {
        let label_selector = [("io.kubernetes.pod.uid".to_owned(), uid.to_owned())].into();
        let filter = Some(PodSandboxFilter { id: String::new(), label_selector });
        let found = self.cri.list_pod_sandbox(ListPodSandboxRequest { filter }).await;
        for sandbox in found.map(|answer| answer.items).unwrap_or_default() {
            let pod_sandbox_id = sandbox.id.clone();
            let _ = self.cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }).await;
            let _ = self.cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox.id }).await;
        }
    }

    async fn wait_for_init(&self, state: &PodState, container: &Container) -> Result<(), KubeletError> {
        let id = &state.container(&container.name)?.id;
        loop {
            let status = self.container_status(id).await?;
            match status.state() {
                CriState::ContainerExited if status.exit_code == 0 => return Ok(()),
                CriState::ContainerExited | CriState::ContainerUnknown => {
                    return Err(KubeletError::InitFailed {
                        container: container.name.clone(),
                        exit_code: status.exit_code,
                        reason: format!("{} {}", status.reason, status.message).trim().to_owned(),
                    });
                }
                CriState::ContainerCreated | CriState::ContainerRunning => {
                    tokio::time::sleep(INIT_POLL).await;
                }
            }
        }
    }

    /// The process ids of the sandbox and of each container, as the runtime tells them.
    ///
    /// # Errors
    /// [`KubeletError::Cri`], also when the runtime does not tell.
    pub async fn pids(&self, state: &PodState) -> Result<BTreeMap<String, u32>, KubeletError> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: state.sandbox_id.clone(), verbose: true };
        let info = self.cri.pod_sandbox_status(request).await?.info;
        let mut pids = BTreeMap::from([("sandbox".to_owned(), pid(&info, "PodSandboxStatus")?)]);
        for (name, container) in &state.containers {
            let request =
                super::cri::api::ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
            let info = self.cri.container_status(request).await?.info;
            pids.insert(name.clone(), pid(&info, "ContainerStatus")?);
        }
        Ok(pids)
    }
}

/// Source: containerd, `internal/cri/server`: the entry `info` is JSON and has `pid`.
fn pid(info: &std::collections::HashMap<String, String>, call: &'static str) -> Result<u32, KubeletError> {
    let json = info.get("info").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let pid = json.as_ref().and_then(|json| json.get("pid")).and_then(serde_json::Value::as_u64);
    let pid = pid.and_then(|pid| u32::try_from(pid).ok());
    Ok(pid.ok_or(CriError::Incomplete { call, field: "info.pid" })?)
}

/// Removes what stands on the node for a pod that did not come up.
struct Undo {
    dir: PodDir,
    logs: PathBuf,
    cgroup: String,
    armed: bool,
}

impl Undo {
    fn commit(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.armed {
            // Each step stands for itself, and the error that led here is the one that is reported.
            let _ = self.dir.remove();
            let _ = pod_dir::remove_dir(&self.logs);
            let _ = cgroup::remove_pod_group(&self.cgroup);
        }
    }
}
