// SPDX-License-Identifier: Apache-2.0
//! DeleteTask, and the `delete` action that containerd runs when a shim has died.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim::asynchronous::util::{read_pid_from_file, read_spec};
use containerd_shim::util::convert_to_timestamp;
use containerd_shim_protos::events::task::TaskDelete;
use log::warn;

use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::error::Error;
use crate::oci::Oci;
use crate::options::RuntimeOptions;
use crate::pod::Pod;
use crate::reaper::Exit;
use crate::rootfs::unmount_all;

/// Which sandbox a container belongs to.
///
/// Source: containerd `internal/cri/annotations/annotations.go`.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Deletes the container, or the exec named `exec_id`; returns its last pid and exit.
///
/// # Errors
/// When it is alive.
pub(crate) async fn delete(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    exec_id: &str,
) -> Result<(i32, Exit), Error> {
    let _verb = container.verb.lock().await;
    let process = container.process(exec_id)?;
    process.state().delete()?;
    let exit = process.exit().unwrap_or_else(Exit::killed);
    if !exec_id.is_empty() {
        process.io.shutdown().await;
        container.remove_exec(exec_id);
        return Ok((process.pid(), exit));
    }
    if process.pid() != 0 {
        container.oci.delete(true).await?;
    }
    process.io.shutdown().await;
    container.unmount();
    pod.remove(&container.id);
    pod.events
        .publish(TaskDelete {
            container_id: container.id.clone(),
            pid: process.pid().cast_unsigned(),
            exit_status: exit.code,
            exited_at: Some(convert_to_timestamp(Some(exit.at))).into(),
            ..Default::default()
        })
        .await;
    Ok((process.pid(), exit))
}

/// Cleans up what a dead shim has left: of container `id`, and if that is a pod's sandbox, of all the pod's
/// containers, because containerd runs `delete` only for the sandbox. Returns the last known pid of `id`.
///
/// Whatever fails is logged and the rest still done: containerd calls only once.
pub(crate) async fn after_death(namespace: &str, id: &str, bundle: &Path) -> i32 {
    for (member, bundle) in members(id, bundle).await {
        clean(namespace, &member, &bundle).await;
    }
    clean(namespace, id, bundle).await;
    read_pid_from_file(&bundle.join("init.pid")).await.unwrap_or(0)
}

/// The other containers of the sandbox `id`, with their bundles.
async fn members(id: &str, bundle: &Path) -> Vec<(String, PathBuf)> {
    let mut members = Vec::new();
    let siblings = bundle.parent().and_then(|bundles| std::fs::read_dir(bundles).ok());
    for sibling in siblings.into_iter().flatten().flatten().filter(|sibling| sibling.file_name() != *id) {
        let Ok(spec) = read_spec(sibling.path()).await else { continue };
        let sandbox = spec.annotations().as_ref().and_then(|all| all.get(SANDBOX_ID).cloned());
        if let (true, Ok(member)) = (sandbox.as_deref() == Some(id), sibling.file_name().into_string()) {
            members.push((member, sibling.path()));
        }
    }
    members
}

async fn clean(namespace: &str, id: &str, bundle: &Path) {
    let options = RuntimeOptions::load(bundle).await;
    match Oci::new(id, bundle, namespace, &options) {
        Ok(oci) => {
            if let Err(e) = oci.delete(true).await {
                warn!("{e}");
            }
        }
        Err(e) => warn!("{e}"),
    }
    // A restore cut short is not known to runc: what it started is found by its cgroup.
    if let Ok(spec) = read_spec(bundle).await {
        match Cgroup::new(id, &spec, options.systemd_cgroup()) {
            Ok(cgroup) => drop(cgroup),
            Err(e) => warn!("{e}"),
        }
    }
    unmount_all(&bundle.join("rootfs"));
}
