// SPDX-License-Identifier: Apache-2.0
//! The node under test, which one test has for itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use super::leaks::Snapshot;
use super::thaw::{self, Imported};
use super::{HarnessError, Need, counter, needs, process};
use crate::kubelet::Kubelet;
use crate::kubelet::cri::api::ContainerState;
use crate::kubelet::patience::patient;
use crate::kubelet::pod_dir::random_text;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// Tests take turns within a test program; `scripts/test` runs one program after the other.
static TURN: Mutex<()> = Mutex::const_new(());

/// How long what is ending may take to be gone.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a pod may take until it is ready.
const READY: Duration = Duration::from_secs(60);

/// The node, with a Kubernetes namespace of the test's own.
#[derive(Debug)]
pub struct Node {
    /// The kubelet.
    pub kubelet: Kubelet,
    /// The namespace of the test's pods and checkpoints; no other test has the same.
    pub namespace: String,
    before: Snapshot,
    _turn: MutexGuard<'static, ()>,
}

impl Node {
    /// Waits for its turn, removes what a failed test left, and looks at the node. `None`, after a line
    /// `SKIP <reason>`, when the machine lacks what the test needs.
    pub async fn enter(needs: &[Need]) -> Option<Self> {
        let turn = TURN.lock().await;
        let kubelet = match needs::meet(needs).await {
            Ok(kubelet) => kubelet,
            Err(reason) => {
                println!("SKIP {reason}");
                return None;
            }
        };
        for left in kubelet.list().unwrap_or_default() {
            println!("removing pod {}, which an earlier test left", left.full_name());
            if let Err(error) = kubelet.remove(&left, Some(0)).await {
                println!("it stays: {error}");
            }
        }
        let before = Snapshot::take(&kubelet.settings.cgroup_parent);
        let namespace = format!("test-{}", random_text(8, b"abcdefghijklmnopqrstuvwxyz"));
        Some(Self { kubelet, namespace, before, _turn: turn })
    }

    /// Runs a pod and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start or does not become ready.
    pub async fn run(&self, pod: Pod) -> Result<PodState, HarnessError> {
        let state = self.kubelet.run(pod).await?;
        self.kubelet.wait_ready(&state, patient(READY)).await?;
        Ok(state)
    }

    /// Runs a pod that counts and waits until the program answers: from then on there is something to freeze.
    ///
    /// # Errors
    /// As [`Node::run`]; when the program does not answer.
    pub async fn run_counter(&self, pod: Pod) -> Result<PodState, HarnessError> {
        let state = self.run(pod).await?;
        counter::state(&state, counter::PORT).await?;
        Ok(state)
    }

    /// Removes a pod at once.
    ///
    /// # Errors
    /// When something of it stays.
    pub async fn remove(&self, state: &PodState) -> Result<(), HarnessError> {
        Ok(self.kubelet.remove(state, Some(0)).await?)
    }

    /// Waits until a container has ended and returns its exit code. An empty name means the only container.
    ///
    /// # Errors
    /// When it has not ended within ten seconds.
    pub async fn exit_code(&self, state: &PodState, container: &str) -> Result<i32, HarnessError> {
        let id = &state.container(container)?.id;
        let began = Instant::now();
        loop {
            let status = self.kubelet.container_status(id).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status.exit_code);
            }
            if began.elapsed() > patient(SETTLE) {
                return Err(HarnessError::answer("the runtime", format!("{:?}", status.state())));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Freezes every container of a pod through CRI, each into an archive, while the pod runs on.
    ///
    /// # Errors
    /// When a container cannot be frozen.
    pub async fn freeze(&self, state: &PodState) -> Result<Vec<PathBuf>, HarnessError> {
        let mut archives = Vec::new();
        for container in &state.pod.spec.containers {
            let name = format!("{}-{}-{}.tar", self.namespace, state.pod.metadata.name, container.name);
            let archive = PathBuf::from("/var/tmp").join(name);
            archives.push(self.kubelet.checkpoint(state, &container.name, Some(&archive)).await?);
        }
        Ok(archives)
    }

    /// Freezes a pod, imports the archives as one checkpoint, and removes the archives.
    ///
    /// # Errors
    /// When one of these fails.
    pub async fn freeze_into_store(&self, state: &PodState) -> Result<Imported, HarnessError> {
        let archives = self.freeze(state).await?;
        let imported = thaw::import(&archives);
        for archive in archives {
            std::fs::remove_file(&archive)
                .map_err(|source| HarnessError::file("remove", &archive, source))?;
        }
        imported
    }

    /// Removes the test's checkpoints and checks that the node is as it was when the test entered it.
    ///
    /// # Errors
    /// [`HarnessError::Leaks`].
    pub async fn leave(self) -> Result<(), HarnessError> {
        thaw::remove_namespace(&self.namespace)?;
        collect_garbage()?;
        let began = Instant::now();
        loop {
            let added = self.before.added_in(&Snapshot::take(&self.kubelet.settings.cgroup_parent));
            if added.is_empty() {
                return Ok(());
            }
            if began.elapsed() > patient(SETTLE) {
                return Err(HarnessError::Leaks(added));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Makes containerd remove at once what it would remove at some later time: the end of a lease can wait for that. Where
/// containerd is stopped before it has, folders of snapshots stay that it knows nothing of.
///
/// # Errors
/// When it does not.
pub fn collect_garbage() -> Result<(), HarnessError> {
    const LEASE: &str = "thaw-test";
    process::output("ctr", &["--namespace", "k8s.io", "leases", "create", "--id", LEASE])?;
    process::output("ctr", &["--namespace", "k8s.io", "leases", "delete", "--sync", LEASE]).map(drop)
}
