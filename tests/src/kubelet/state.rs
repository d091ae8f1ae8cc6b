// SPDX-License-Identifier: Apache-2.0
//! What the kubelet knows of a pod between two calls: a JSON file in the pod's directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Kubelet;
use super::error::KubeletError;
use super::pod_dir::{self, PodDir};
use super::pod_spec::Pod;

/// The file's name; kubelet itself has no such file.
const FILE: &str = "thaw-test-pod.json";

/// A pod on this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodState {
    /// The pod as it was admitted: with the API server's defaults and the service account's mount.
    pub pod: Pod,
    /// The pod's uid.
    pub uid: String,
    /// The sandbox's id in the runtime.
    pub sandbox_id: String,
    /// The pod's address; empty with the node's network.
    pub ip: String,
    /// The pod's cgroup, relative to each hierarchy.
    pub cgroup: String,
    /// Where each volume is on the node.
    pub volumes: BTreeMap<String, PathBuf>,
    /// The newest instance of each container that was made.
    pub containers: BTreeMap<String, ContainerState>,
}

/// One instance of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its id in the runtime.
    pub id: String,
    /// How often the container was made before.
    pub attempt: u32,
    /// Its log.
    pub log: PathBuf,
    /// The file of its termination message.
    pub termination_log: PathBuf,
}

impl PodState {
    /// `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.pod.metadata.namespace, self.pod.metadata.name)
    }

    /// `text` with `UID` in place of the pod's, also as systemd's slices have it, without a `-` within a name.
    #[must_use]
    pub fn without_uid(&self, text: &str) -> String {
        text.replace(&self.uid, "UID").replace(&self.uid.replace('-', "_"), "UID")
    }

    /// The instance of a container; an empty name means the pod's only container.
    ///
    /// # Errors
    /// [`KubeletError::NoContainer`].
    pub fn container(&self, name: &str) -> Result<&ContainerState, KubeletError> {
        self.named_container(name).map(|(_, container)| container)
    }

    /// Like [`PodState::container`], with the container's name.
    ///
    /// # Errors
    /// [`KubeletError::NoContainer`].
    pub fn named_container(&self, name: &str) -> Result<(&str, &ContainerState), KubeletError> {
        let wanted = match self.pod.spec.containers.as_slice() {
            [only] if name.is_empty() => only.name.as_str(),
            _ => name,
        };
        let found = self.containers.get_key_value(wanted).map(|(name, state)| (name.as_str(), state));
        found.ok_or_else(|| KubeletError::NoContainer {
            pod: self.full_name(),
            wanted: wanted.to_owned(),
            has: self.containers.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

impl Kubelet {
    /// The directory of a pod.
    #[must_use]
    pub fn pod_dir(&self, state: &PodState) -> PodDir {
        PodDir::new(&self.settings.root_dir, &state.uid)
    }

    /// Finds a pod by its name.
    ///
    /// # Errors
    /// [`KubeletError::NoPod`]; what [`Kubelet::list`] reports.
    pub fn find(&self, namespace: &str, name: &str) -> Result<PodState, KubeletError> {
        let same =
            |state: &PodState| state.pod.metadata.namespace == namespace && state.pod.metadata.name == name;
        let found = self.list()?.into_iter().find(same);
        found.ok_or_else(|| KubeletError::NoPod(format!("{namespace}/{name}")))
    }

    /// All pods of this kubelet, by their names.
    ///
    /// # Errors
    /// [`KubeletError::File`] and [`KubeletError::State`].
    pub fn list(&self) -> Result<Vec<PodState>, KubeletError> {
        let pods = pod_dir::pods(&self.settings.root_dir);
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir(&pods) else { return Ok(found) };
        for entry in entries.flatten() {
            let path = entry.path().join(FILE);
            if path.exists() {
                found.push(read(&path)?);
            }
        }
        found.sort_by_key(PodState::full_name);
        Ok(found)
    }

    pub(crate) fn save(&self, state: &PodState) -> Result<(), KubeletError> {
        let path = self.pod_dir(state).path().join(FILE);
        let text = serde_json::to_vec_pretty(state)
            .map_err(|source| KubeletError::State { path: path.clone(), source })?;
        pod_dir::write_atomically(&path, &text)
    }
}

fn read(path: &Path) -> Result<PodState, KubeletError> {
    let text = fs::read(path).map_err(|source| KubeletError::file("read", path, source))?;
    serde_json::from_slice(&text).map_err(|source| KubeletError::State { path: path.to_owned(), source })
}
