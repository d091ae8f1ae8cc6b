// SPDX-License-Identifier: Apache-2.0
//! Pods to freeze and to resume; a test changes what it is about.

use super::{HarnessError, Node, process};
use crate::kubelet::error::KubeletError;
use crate::kubelet::pod_check::PodError;
use crate::kubelet::pod_spec::{Container, EnvVar, Pod, Probe};

/// The runtime handler under test.
pub const HANDLER: &str = "thaw";
/// The same with other snapshotters, and what containerd calls these.
pub const SNAPSHOTTERS: [(&str, &str); 3] =
    [("thaw-native", "native"), ("thaw-btrfs", "btrfs"), ("thaw-erofs", "erofs")];
/// The annotation that names a checkpoint.
pub const RESTORE: &str = "thaw.dev/restore";

/// Where the programs of the tests are; the node sees this tree at the same path.
const WORKLOADS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads");

impl Node {
    /// Unpacks the images of the tests for one of the [`SNAPSHOTTERS`].
    ///
    /// # Errors
    /// When containerd does not.
    pub fn unpack_for(&self, snapshotter: &str) -> Result<(), HarnessError> {
        for image in ["pause", "python"] {
            let name = format!("thaw.local/{image}:1");
            let ctr = |arguments: &[&str]| {
                process::output("ctr", &[&["--namespace", "k8s.io", "images"], arguments].concat())
            };
            // Mounting it is what unpacks it.
            let folder = format!("/var/tmp/{}", self.namespace);
            std::fs::create_dir(&folder).map_err(|source| HarnessError::file("make", &folder, source))?;
            ctr(&["mount", "--snapshotter", snapshotter, &name, &folder])?;
            ctr(&["unmount", "--rm", "--snapshotter", snapshotter, &folder])?;
            std::fs::remove_dir(&folder).map_err(|source| HarnessError::file("remove", &folder, source))?;
        }
        Ok(())
    }

    /// A pod with one container, `counter`, that counts and holds this many megabytes.
    ///
    /// # Errors
    /// When the name is none.
    pub fn counter_pod(&self, name: &str, megabytes: u32) -> Result<Pod, HarnessError> {
        self.pod(&format!(
            "
metadata: {{name: {name}}}
spec:
  volumes:
  - {{name: workloads, hostPath: {{path: {WORKLOADS}, type: Directory}}}}
  containers:
  - name: counter
    image: thaw.local/python:1
    command: [python3, /workloads/counter.py]
    env: [{{name: MB, value: '{megabytes}'}}]
    volumeMounts:
    - {{name: workloads, mountPath: /workloads, readOnly: true}}
"
        ))
    }

    /// A pod with one container, `program`, that runs one of the programs of the tests.
    ///
    /// # Errors
    /// When the name is none.
    pub fn workload_pod(&self, name: &str, program: &str) -> Result<Pod, HarnessError> {
        self.pod(&format!(
            "
metadata: {{name: {name}}}
spec:
  volumes:
  - {{name: workloads, hostPath: {{path: {WORKLOADS}, type: Directory}}}}
  containers:
  - name: program
    image: thaw.local/python:1
    command: [python3, -u, /workloads/{program}]
    volumeMounts:
    - {{name: workloads, mountPath: /workloads, readOnly: true}}
"
        ))
    }

    /// A pod with one container, `shell`, that runs a command line in busybox's shell.
    ///
    /// # Errors
    /// When the name is none.
    pub fn shell_pod(&self, name: &str, command: &str) -> Result<Pod, HarnessError> {
        let mut pod = self.pod(&format!(
            "
metadata: {{name: {name}}}
spec:
  containers:
  - name: shell
    image: thaw.local/busybox:1
    command: [/bin/sh, -c]
"
        ))?;
        if let Some(container) = pod.spec.containers.first_mut() {
            container.args = vec![command.to_owned()];
        }
        Ok(pod)
    }

    /// Any part of a pod.
    ///
    /// # Errors
    /// When it is none.
    pub fn parsed<T: serde::de::DeserializeOwned>(&self, yaml: &str) -> Result<T, HarnessError> {
        serde_yaml_ng::from_str(yaml).map_err(|error| KubeletError::from(PodError::Yaml(error)).into())
    }

    /// A pod from its `metadata` and `spec`, in the test's namespace and under the handler under test.
    ///
    /// # Errors
    /// When it is not a pod.
    pub fn pod(&self, yaml: &str) -> Result<Pod, HarnessError> {
        let mut pod =
            Pod::parse(&format!("apiVersion: v1\nkind: Pod\n{}", yaml.trim())).map_err(KubeletError::from)?;
        pod.metadata.namespace.clone_from(&self.namespace);
        pod.spec.runtime_class_name = Some(HANDLER.to_owned());
        Ok(pod)
    }
}

impl Pod {
    /// The same pod with one more annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.metadata.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The same pod under another runtime handler.
    #[must_use]
    pub fn under(mut self, handler: &str) -> Self {
        self.spec.runtime_class_name = Some(handler.to_owned());
        self
    }

    /// The same pod with probes of the counting program, by HTTP and by exec.
    ///
    /// # Errors
    /// Never, unless a probe here is none.
    pub fn probed(self) -> Result<Self, HarnessError> {
        let probe = |yaml: &str| -> Result<Probe, HarnessError> {
            serde_yaml_ng::from_str(yaml).map_err(|error| KubeletError::from(PodError::Yaml(error)).into())
        };
        let ready = probe("{httpGet: {port: 8080}, periodSeconds: 1}")?;
        let live = probe("{exec: {command: [test, -e, /workloads/counter.py]}}")?;
        Ok(self.with_containers(|container| {
            container.readiness_probe = Some(ready.clone());
            container.liveness_probe = Some(live.clone());
        }))
    }

    /// The same pod after a change of each of its containers.
    #[must_use]
    pub fn with_containers(mut self, change: impl Fn(&mut Container)) -> Self {
        self.spec.containers.iter_mut().for_each(change);
        self
    }
}

impl Container {
    /// Sets a variable of the environment.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|variable| variable.name != name);
        self.env.push(EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None });
    }
}
