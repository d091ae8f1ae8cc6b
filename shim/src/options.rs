// SPDX-License-Identifier: Apache-2.0
//! What containerd's configuration says about the OCI runtime: the `[...runtimes.thaw.options]` table, which
//! reaches a shim as `containerd.runc.v1.Options` because `runtime_type` is `io.containerd.runc.v2`.

use std::path::{Path, PathBuf};

use containerd_shim::asynchronous::util::{read_options, write_options};
use containerd_shim_protos::shim::oci::Options;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::error::TaskError;

/// Where runc keeps its state unless the options name another `Root`; the containerd namespace is added.
///
/// Source: containerd's `cmd/containerd-shim-runc-v2/process.RuncRoot`.
const RUNC_ROOT: &str = "/run/containerd/runc";

/// The runtime options of one container.
#[derive(Debug, Clone, Default)]
pub(crate) struct RuntimeOptions(Options);

impl RuntimeOptions {
    /// Reads what came with CreateTask; nothing at all means the defaults.
    ///
    /// # Errors
    /// When the value does not decode.
    pub(crate) fn decode(any: Option<&Any>) -> Result<Self, TaskError> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else { return Ok(Self::default()) };
        if !any.type_url.ends_with("containerd.runc.v1.Options") {
            return Err(TaskError::InvalidRequest(format!(
                "runtime options of type {}: thaw takes runc's options; set runtime_type = \
                 \"io.containerd.runc.v2\" for this handler in containerd's configuration",
                any.type_url
            )));
        }
        Options::parse_from_bytes(&any.value)
            .map(Self)
            .map_err(|e| TaskError::InvalidRequest(format!("runtime options do not decode: {e}")))
    }

    /// Keeps them in the bundle for the `delete` action, which containerd runs after a shim's death.
    ///
    /// # Errors
    /// When the bundle cannot be written.
    pub(crate) async fn save(&self, bundle: &Path) -> Result<(), TaskError> {
        write_options(bundle, &self.0).await.map_err(|e| TaskError::shim("keep the runtime options", e))
    }

    /// Reads back what [`Self::save`] kept; the defaults when there is nothing.
    pub(crate) async fn load(bundle: &Path) -> Self {
        Self(read_options(bundle).await.unwrap_or_default())
    }

    /// The OCI runtime's name or path.
    pub(crate) fn binary(&self) -> &str {
        if self.0.binary_name.is_empty() { "runc" } else { &self.0.binary_name }
    }

    /// Whether a restored container can be handed over to this OCI runtime.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(crate) fn can_adopt(&self) -> Result<(), String> {
        let binary = self.binary();
        if Path::new(binary).file_name().is_some_and(|name| name == "runc") {
            return Ok(());
        }
        Err(format!(
            "the OCI runtime of this handler is {binary}, and a restored container can only be handed over to runc: \
             leave BinaryName out of the handler's options, or start the container afresh"
        ))
    }

    /// The directory of the OCI runtime's state for a containerd namespace.
    pub(crate) fn root(&self, namespace: &str) -> PathBuf {
        let root = if self.0.root.is_empty() { RUNC_ROOT } else { &self.0.root };
        Path::new(root).join(namespace)
    }

    /// Whether cgroups are made through systemd.
    pub(crate) fn systemd_cgroup(&self) -> bool {
        self.0.systemd_cgroup
    }

    /// Whether to keep the runtime from pivot_root.
    pub(crate) fn no_pivot_root(&self) -> bool {
        self.0.no_pivot_root
    }

    /// Whether to keep the session keyring.
    pub(crate) fn no_new_keyring(&self) -> bool {
        self.0.no_new_keyring
    }

    /// Owner of the stdio pipes: uid and gid on the host.
    pub(crate) fn io_owner(&self) -> (u32, u32) {
        (self.0.io_uid, self.0.io_gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runc_takes_over_a_restored_container() {
        let of = |binary: &str| RuntimeOptions(Options { binary_name: binary.into(), ..Default::default() });
        assert_eq!((of("").can_adopt(), of("/usr/local/sbin/runc").can_adopt()), (Ok(()), Ok(())));
        assert!(of("/usr/bin/crun").can_adopt().unwrap_err().contains("/usr/bin/crun"));
    }
}
