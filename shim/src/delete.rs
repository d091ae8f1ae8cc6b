// SPDX-License-Identifier: Apache-2.0
//! DeleteTask, and the `delete` action that containerd runs when a shim has died.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::asynchronous::util::{read_pid_from_file, read_spec};
use containerd_shim::util::convert_to_timestamp;
use containerd_shim_protos::events::task::TaskDelete;
use log::warn;

use crate::cgroup::{Cgroup, cgroup_path};
use crate::container::Container;
use crate::error::TaskError;
use crate::members;
use crate::oci::Oci;
use crate::options::RuntimeOptions;
use crate::pod::Pod;
use crate::reaper::Exit;
use crate::rootfs::unmount_all;
use crate::state::State;

/// How long a killed init may take to be reaped.
const END: Duration = Duration::from_secs(10);

/// Deletes the container, or the exec named `exec_id`; returns its last pid and exit.
///
/// # Errors
/// When it is alive.
pub(crate) async fn delete(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    exec_id: &str,
) -> Result<(i32, Exit), TaskError> {
    let process = container.process(exec_id)?;
    if exec_id.is_empty() && process.state() == State::Created && process.pid() != 0 {
        end(container).await?;
    }
    let verb = container.verb.lock().await;
    process.state().delete()?;
    let exit = process.exit().unwrap_or_else(Exit::killed);
    if !exec_id.is_empty() {
        // Whoever reads its output may be slow, and other execs are not to wait for that.
        drop(verb);
        process.shutdown_io().await;
        container.remove_exec(exec_id);
        return Ok((process.pid(), exit));
    }
    if process.pid() != 0 {
        container.oci.delete(true).await?;
    }
    if let Some(filling) = container.filling() {
        filling.end().await;
    }
    process.shutdown_io().await;
    container.unmount().await;
    pod.remove(&container.id);
    members::forget(&pod.bundle, &container.id);
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

/// Ends an init that was created and never started, so that its exit is published before its deletion.
async fn end(container: &Container) -> Result<(), TaskError> {
    let verb = container.verb.lock().await;
    if container.init.state() == State::Created {
        container.oci.delete(true).await?;
    }
    // The exit is recorded under the same lock.
    drop(verb);
    if tokio::time::timeout(END, container.init.wait()).await.is_err() {
        warn!("the init of container {} does not end", container.id);
    }
    Ok(())
}

/// Cleans up what a dead shim has left of container `id`, and if that is a pod's sandbox, of all the pod's
/// containers. Returns the last known pid of `id`.
///
/// Whatever fails is logged and the rest still done: containerd calls only once.
pub(crate) async fn after_death(namespace: &str, id: &str, bundle: &Path) -> i32 {
    let options = RuntimeOptions::load(bundle).await;
    let bundles = bundle.parent().unwrap_or(bundle);
    let mut members = members::list(bundle);
    members.retain(|(member, _)| member != id);
    // containerd gives this five seconds: first nothing may run, then it is tidied up.
    for (member, cgroup) in &members {
        if let Some(Ok(cgroup)) =
            cgroup.clone().map(|path| Cgroup::new(member, path, None, options.systemd_cgroup()))
        {
            cgroup.kill();
            cgroup.keep();
        }
    }
    for (member, cgroup) in members {
        clean(namespace, &member, &bundles.join(&member), bundle, cgroup, &options).await;
    }
    let cgroup = read_spec(bundle).await.ok().and_then(|spec| cgroup_path(&spec));
    clean(namespace, id, bundle, bundle, cgroup, &options).await;
    // A shim that was killed has left the file of its socket; there is none where the shim goes on without this one.
    remove_socket(bundle).await;
    read_pid_from_file(&bundle.join("init.pid")).await.unwrap_or(0)
}

/// Cleans up after container `id`; `home` is the bundle of what `delete` was called for.
async fn clean(
    namespace: &str,
    id: &str,
    bundle: &Path,
    home: &Path,
    cgroup: Option<PathBuf>,
    options: &RuntimeOptions,
) {
    // containerd removes the bundles of the pod's containers meanwhile, and the runtime does nothing without the folder
    // of its log.
    let log = if home.is_dir() { home } else { Path::new("/run") };
    // First all in the cgroup, also what a restore cut short has started, which runc does not know.
    if let Some(cgroup) = cgroup {
        match Cgroup::new(id, cgroup, None, options.systemd_cgroup()) {
            Ok(cgroup) => drop(cgroup),
            Err(e) => warn!("{e}"),
        }
    }
    match Oci::new(id, log, namespace, options) {
        Ok(oci) => {
            if let Err(e) = oci.delete(true).await {
                warn!("{e}");
            }
        }
        Err(e) => warn!("{e}"),
    }
    unmount_all(&bundle.join("rootfs"));
    for layer in std::fs::read_dir(bundle.join("lower")).into_iter().flatten().flatten() {
        unmount_all(&layer.path());
    }
}

/// Removes the file of the socket that is named in a bundle, if nobody listens there.
async fn remove_socket(bundle: &Path) {
    let Ok(address) = tokio::fs::read_to_string(bundle.join("address")).await else { return };
    let path = address.strip_prefix("unix://").unwrap_or(&address);
    let refused =
        tokio::net::UnixStream::connect(path).await.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    if refused && let Err(e) = tokio::fs::remove_file(path).await {
        warn!("cannot remove {path}: {e}");
    }
}
