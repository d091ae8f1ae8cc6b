// SPDX-License-Identifier: Apache-2.0
//! The pod that this shim serves: its containers by id, the event stream, and which checkpoints it has used.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::RwLock;

use crate::container::Container;
use crate::error::TaskError;
use crate::events::Events;
use crate::oom::PodKills;
use crate::source::identity;
use crate::state::State;
use crate::volumes::FilledFrom;
use crate::waiting_pager::WaitingPagers;

/// Everything the shim knows.
pub(crate) struct Pod {
    /// containerd's namespace, `k8s.io` under Kubernetes.
    pub(crate) namespace: String,
    /// The bundle of the sandbox, which the shim was started in.
    pub(crate) bundle: PathBuf,
    /// Where events go, in order.
    pub(crate) events: Events,
    /// Which of the pod's volumes hold what checkpoint.
    pub(crate) filled: FilledFrom,
    /// Pagers whose containers are still to be created.
    pub(crate) waiting_pagers: WaitingPagers,
    /// What the kernel has killed for memory in all of it.
    pub(crate) kills: PodKills,
    /// Read by whoever writes a checkpoint into the store, which goes on when the pod has gone.
    pub(crate) recording: RwLock<()>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    restored: Mutex<HashMap<String, String>>,
}

impl Pod {
    /// An empty pod.
    pub(crate) fn new(namespace: &str, bundle: PathBuf, events: Events) -> Self {
        let namespace = namespace.to_owned();
        let (containers, restored) = (Mutex::default(), Mutex::default());
        let (filled, kills) = (FilledFrom::default(), PodKills::default());
        let waiting_pagers = WaitingPagers::default();
        let recording = RwLock::default();
        Self { namespace, bundle, events, filled, waiting_pagers, kills, recording, containers, restored }
    }

    /// The container with containerd's `id`.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        containers.get(id).cloned().ok_or_else(|| TaskError::NotFound(format!("container {id}")))
    }

    /// All containers.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The containers of Kubernetes' pod that run beside the one called `id`; the sandbox's own is none of them.
    pub(crate) fn running_beside(&self, id: &str) -> Vec<Arc<Container>> {
        let mut others = self.all();
        others.retain(|other| {
            let named = other.spec.annotations().as_ref().and_then(identity).is_some();
            named && other.id != id && other.init.state() == State::Running
        });
        others
    }

    /// Adds a container.
    ///
    /// # Errors
    /// [`TaskError::AlreadyExists`].
    pub(crate) fn add(&self, container: Arc<Container>) -> Result<(), TaskError> {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.contains_key(&container.id) {
            return Err(TaskError::AlreadyExists(format!("container {}", container.id)));
        }
        containers.insert(container.id.clone(), container);
        Ok(())
    }

    /// Forgets a container.
    pub(crate) fn remove(&self, id: &str) {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Whether no container is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Removes the file of the socket that containerd speaks to this shim by; connections that there are go on.
    pub(crate) async fn remove_socket(&self) {
        let Ok(address) = tokio::fs::read_to_string(self.bundle.join("address")).await else { return };
        let path = address.strip_prefix("unix://").unwrap_or(&address);
        if let Err(e) = tokio::fs::remove_file(path).await {
            log::debug!("cannot remove {path}: {e}");
        }
    }

    /// The checkpoints that this pod's containers were last restored from, by the containers' names.
    pub(crate) fn restored_from(&self) -> HashMap<String, String> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers the checkpoint that container `name` is restored from, so that a crash does not replay it.
    pub(crate) fn set_restored_from(&self, name: &str, checkpoint: &str) {
        let mut restored = self.restored.lock().unwrap_or_else(PoisonError::into_inner);
        restored.insert(name.to_owned(), checkpoint.to_owned());
    }
}
