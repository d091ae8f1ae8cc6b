// SPDX-License-Identifier: Apache-2.0
//! A small kubelet: reads an ordinary Pod and drives a container runtime over CRI as kubelet does.
//!
//! It owns the pod's directory, its volumes, its cgroup and its log directory on the node. It has no API
//! server, no image puller and no control loop: each method does one thing once, and what it knows between
//! two calls stands in the pod's directory ([`state`]).
//!
//! Every directory, mount and cgroup that it makes for a pod is gone when [`Kubelet::remove`] returns.

pub mod cgroup;
pub mod checkpoint;
pub mod container;
pub mod cri;
pub mod env;
pub mod error;
pub mod exec;
pub mod http;
pub mod logs;
pub mod mountinfo;
pub mod patience;
pub mod payload;
pub mod pod_check;
pub mod pod_dir;
pub mod pod_spec;
pub mod probe;
pub mod quantity;
pub mod resources;
pub mod run;
pub mod sandbox;
pub mod security;
pub mod settings;
pub mod slice;
pub mod start;
pub mod state;
pub mod stop;
pub mod stream;
pub mod sub_path;
pub mod volumes;

use self::cri::Cri;
use self::error::KubeletError;
use self::settings::Settings;

/// A connection to one container runtime, and the places on this node that belong to its pods.
#[derive(Debug)]
pub struct Kubelet {
    /// Where things are on this node.
    pub settings: Settings,
    /// The runtime, for calls that the kubelet has no verb for.
    pub cri: Cri,
}

impl Kubelet {
    /// Connects to the runtime and makes the cgroups of the quality-of-service classes, as kubelet does at its
    /// start.
    ///
    /// # Errors
    /// [`KubeletError::Cri`] when nothing answers at the socket; [`KubeletError::File`] when a cgroup cannot be made.
    pub async fn connect(settings: Settings) -> Result<Self, KubeletError> {
        let cri = Cri::connect(&settings.socket, settings.request_timeout).await?;
        cgroup::make_class_groups(&settings.cgroup_parent)?;
        Ok(Self { settings, cri })
    }
}
