// SPDX-License-Identifier: Apache-2.0
//! The bundles of what runs on this node, as containerd's state directory has them, and how a pod is named there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

/// Where containerd keeps its bundles: a node's own, and that of RKE2 and k3s. Source: containerd `state` in config.toml.
const STATES: [&str; 2] = ["/run/containerd", "/run/k3s/containerd"];
/// Below it, a directory for each namespace of containerd with one for each task.
/// Source: containerd `core/runtime/v2`, plugin io.containerd.runtime.v2.task.
pub(crate) const BUNDLES: &str = "io.containerd.runtime.v2.task";
/// The longest spec that is read, in bytes.
const SPEC_LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// Annotations that containerd's CRI writes into each spec.
/// Source: containerd `internal/cri/annotations/annotations.go`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";

/// A pod of this node, as the command line names it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PodArguments {
    /// The pod, with its namespace where pods of several namespaces have the name
    #[arg(value_name = "[NAMESPACE/]POD")]
    pub(crate) pod: String,
    /// containerd's state directory [default: /run/containerd and /run/k3s/containerd]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

/// Pods of several namespaces are meant.
#[derive(Debug, thiserror::Error)]
#[error("pods of several namespaces are called {0}: name one of {1}")]
pub(crate) struct Ambiguous(String, String);

/// The sandbox of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// Where its bundle is.
    pub(crate) bundle: PathBuf,
}

impl PodArguments {
    /// The bundles of this node.
    pub(crate) fn bundles(&self) -> Vec<PathBuf> {
        let states = self
            .state
            .as_ref()
            .map_or_else(|| STATES.map(PathBuf::from).to_vec(), |state| vec![state.clone()]);
        states.iter().flat_map(|state| bundles(state)).collect()
    }

    /// Whether this pod is meant.
    pub(crate) fn names(&self, namespace: &str, pod: &str) -> bool {
        self.pod.split_once('/').map_or(self.pod == pod, |meant| meant == (namespace, pod))
    }

    /// Refuses what was found in several namespaces.
    pub(crate) fn one<'a>(&self, namespaces: impl Iterator<Item = &'a str>) -> Result<(), Ambiguous> {
        let names: BTreeSet<String> =
            namespaces.map(|namespace| format!("{namespace}/{}", self.pod)).collect();
        if names.len() < 2 {
            return Ok(());
        }
        Err(Ambiguous(self.pod.clone(), names.into_iter().collect::<Vec<_>>().join(", ")))
    }

    /// The sandbox of the pod; `None` where there is none on this node.
    pub(crate) fn sandbox(&self) -> Result<Option<Sandbox>, Ambiguous> {
        let mut found = Vec::new();
        for bundle in self.bundles() {
            // One that goes away meanwhile is no pod's.
            let Some(annotations) = annotations(&bundle) else { continue };
            let get = |key: &str| annotations.get(key).map(String::as_str);
            if let (Some("sandbox"), Some(namespace), Some(pod)) =
                (get(CONTAINER_TYPE), get(SANDBOX_NAMESPACE), get(SANDBOX_NAME))
                && self.names(namespace, pod)
            {
                found.push(Sandbox { namespace: namespace.to_owned(), bundle });
            }
        }
        self.one(found.iter().map(|sandbox| sandbox.namespace.as_str()))?;
        Ok(found.pop())
    }
}

fn bundles(state: &Path) -> Vec<PathBuf> {
    let entries =
        |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(state.join(BUNDLES)).flat_map(entries).collect()
}

/// The annotations of a bundle's spec.
fn annotations(bundle: &Path) -> Option<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let mut json = Vec::new();
    let file = std::fs::File::open(bundle.join("config.json")).ok()?;
    file.take(SPEC_LIMIT_BYTES).read_to_end(&mut json).ok()?;
    serde_json::from_slice::<Spec>(&json).ok().map(|spec| spec.annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(tasks: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let state = tempfile::tempdir().unwrap();
        for (number, (kind, namespace, pod)) in tasks.iter().enumerate() {
            let bundle = state.path().join(BUNDLES).join("k8s.io").join(number.to_string());
            std::fs::create_dir_all(&bundle).unwrap();
            let spec = serde_json::json!({ "annotations": {
                CONTAINER_TYPE: kind, SANDBOX_NAMESPACE: namespace, SANDBOX_NAME: pod,
            }});
            std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        }
        std::fs::create_dir(state.path().join(BUNDLES).join("k8s.io/without-spec")).unwrap();
        state
    }

    fn find(state: &tempfile::TempDir, pod: &str) -> Result<Option<Sandbox>, Ambiguous> {
        PodArguments { pod: pod.to_owned(), state: Some(state.path().to_owned()) }.sandbox()
    }

    #[test]
    fn a_pod_is_found_by_its_name_alone_where_that_is_enough() {
        let state = node(&[("sandbox", "n", "p"), ("container", "n", "p"), ("sandbox", "m", "q")]);
        let found = find(&state, "p").unwrap().unwrap();
        assert!(found.namespace == "n" && found.bundle.ends_with("k8s.io/0"), "{found:?}");
        assert_eq!(find(&state, "m/q").unwrap().unwrap().namespace, "m");
        assert_eq!(find(&state, "n/q").unwrap(), None);
        assert_eq!(find(&state, "p/n").unwrap(), None);
    }

    #[test]
    fn pods_of_several_namespaces_are_named() {
        let state = node(&[("sandbox", "n", "p"), ("sandbox", "m", "p")]);
        let said = find(&state, "p").unwrap_err().to_string();
        assert!(said.ends_with("name one of m/p, n/p"), "{said}");
        assert!(find(&state, "n/p").unwrap().is_some());
    }
}
