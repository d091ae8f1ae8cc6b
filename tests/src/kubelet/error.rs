// SPDX-License-Identifier: Apache-2.0
//! What can go wrong while a pod is driven.

use std::path::{Path, PathBuf};

use super::cri::CriError;
use super::pod_check::PodError;
use super::resources::ResourceError;

/// A failed step of the kubelet.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// A call to the runtime failed.
    #[error(transparent)]
    Cri(#[from] CriError),

    /// The pod's YAML was not accepted.
    #[error(transparent)]
    Pod(#[from] PodError),

    /// A resource quantity was not accepted.
    #[error(transparent)]
    Resource(#[from] ResourceError),

    /// An operation on a file, a directory, a mount or a cgroup failed.
    #[error("cannot {verb} {}", .path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },

    /// A pod of this name and namespace is there already.
    #[error("pod {0} exists already; remove it first")]
    Exists(String),

    /// No pod answers to this name.
    #[error("no pod {0} on this node")]
    NoPod(String),

    /// The pod has no container of this name, or the name was left out where the pod has more than one.
    #[error("pod {pod} has no container {wanted:?}; it has {has}")]
    NoContainer {
        /// The pod.
        pod: String,
        /// The name that was asked for; empty where it was left out.
        wanted: String,
        /// The names of its containers.
        has: String,
    },

    /// The image is not on the node, and the kubelet of the tests does not pull.
    #[error("image {0} is not on the node; import it first, for nothing is pulled here")]
    NoImage(String),

    /// A ConfigMap or Secret has no contents on this node.
    #[error("volume {volume} wants {kind} {name}, but there is no configuration folder; give --config DIR")]
    NoConfig {
        /// The volume.
        volume: String,
        /// `configmap` or `secret`.
        kind: &'static str,
        /// The object's name.
        name: String,
    },

    /// An init container ended in failure.
    #[error("init container {container} ended with exit code {exit_code}: {reason}")]
    InitFailed {
        /// The container.
        container: String,
        /// Its exit code.
        exit_code: i32,
        /// The runtime's reason and message.
        reason: String,
    },

    /// A container did not become ready in time, or ended before it was.
    #[error("container {container} is not ready: {reason}")]
    NotReady {
        /// The container.
        container: String,
        /// The last probe's answer, or how the container ended.
        reason: String,
    },

    /// Mounts are left beneath a pod's directory, so it is not removed.
    #[error("mounts are left beneath {}: {}; the directory is kept", .dir.display(), .left.join(", "))]
    StillMounted {
        /// The pod's directory.
        dir: PathBuf,
        /// The mount points.
        left: Vec<String>,
    },

    /// The pod's state file cannot be read.
    #[error("cannot understand {}", .path.display())]
    State {
        /// The state file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },

    /// A time cannot be written down.
    #[error("cannot write a time down")]
    Time(#[source] time::error::Format),
}

impl KubeletError {
    /// A failed operation on `path`.
    pub(crate) fn file(
        verb: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::File { verb, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// The runtime's own words, where the error came from the runtime.
    #[must_use]
    pub fn cri_message(&self) -> Option<&str> {
        if let Self::Cri(error) = self { Some(error.message()) } else { None }
    }
}
