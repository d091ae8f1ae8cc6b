// SPDX-License-Identifier: Apache-2.0
//! Where things are on this node, with kubelet's own defaults.

use std::path::PathBuf;
use std::time::Duration;

use super::patience::patient;

/// The places and values that kubelet takes from its flags.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The runtime's CRI socket.
    pub socket: PathBuf,
    /// kubelet's `--root-dir`.
    pub root_dir: PathBuf,
    /// kubelet's `podLogsDir`.
    pub pod_logs_dir: PathBuf,
    /// The cgroup above all pods, relative to the root of each hierarchy, without a leading slash. Where it is a
    /// slice (`kubepods.slice`), cgroups are systemd's.
    pub cgroup_parent: String,
    /// Contents of ConfigMaps and Secrets: `<dir>/configmap/<name>/<key>` and `<dir>/secret/<name>/<key>`.
    pub config_dir: Option<PathBuf>,
    /// kubelet's `--seccomp-default`: containers without a profile run under `RuntimeDefault`.
    pub seccomp_default: bool,
    /// Deadline of one CRI call. Source: kubelet's `runtimeRequestTimeout`, 2 minutes.
    pub request_timeout: Duration,
    /// The address of the `kubernetes` Service.
    pub service_host: String,
    /// The address of the cluster's name server.
    pub cluster_dns: String,
    /// The node's name, for the downward API.
    pub node_name: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/containerd/containerd.sock"),
            root_dir: PathBuf::from("/var/lib/kubelet"),
            pod_logs_dir: PathBuf::from("/var/log/pods"),
            cgroup_parent: "kubepods".to_owned(),
            config_dir: None,
            seccomp_default: false,
            request_timeout: Duration::from_secs(120),
            service_host: "10.43.0.1".to_owned(),
            cluster_dns: "10.43.0.10".to_owned(),
            node_name: "node".to_owned(),
        }
    }
}

impl Settings {
    /// The defaults, with `CONTAINERD_SOCKET` and `THAW_CGROUP_PARENT` from the environment where set.
    #[must_use]
    pub fn from_env() -> Self {
        let mut settings = Self::default();
        if let Some(socket) = std::env::var_os("CONTAINERD_SOCKET") {
            settings.socket = PathBuf::from(socket);
        }
        settings.request_timeout = patient(settings.request_timeout);
        if let Ok(parent) = std::env::var("THAW_CGROUP_PARENT") {
            parent.trim_matches('/').clone_into(&mut settings.cgroup_parent);
        }
        settings
    }
}
