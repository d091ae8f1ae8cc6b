// SPDX-License-Identifier: Apache-2.0
//! StartTask: the OCI runtime lets an ordinary init go; one from a checkpoint is restored.

use std::sync::Arc;
use std::time::Duration;

use ::checkpoint::annotation::Otherwise;
use log::{debug, warn};

use crate::container::Container;
use crate::create::create_process;
use crate::error::TaskError;
use crate::oom;
use crate::pod::Pod;
use crate::prepared::Prepared;
use crate::reaper::{Exit, Exits};
use crate::restore::restore;
use crate::state::State;

/// How long an init's exit is held back for the exits of its execs, which the kernel has killed with it.
const EXECS_FOLLOW: Duration = Duration::from_secs(2);

/// Starts the init; returns its pid. TaskStart is out before the verb's lock is released, and TaskExit needs
/// that lock: their order holds even for a process that dies at once.
///
/// # Errors
/// Why not. A container whose restore failed is stopped then, and can only be deleted.
pub(crate) async fn start(pod: &Arc<Pod>, container: &Arc<Container>) -> Result<i32, TaskError> {
    let _verb = container.verb.lock().await;
    let state = container.init.state();
    state.start()?;
    match (&container.prepared, state) {
        (Some(prepared), State::CreatedCheckpoint) => resume(pod, container, prepared).await?,
        (Some(_) | None, _) => container.oci.start().await?,
    }
    container.init.transition(State::start)?;
    let pid = container.init.pid();
    match containerd_shim::cgroup::get_cgroup(pid.cast_unsigned()) {
        Ok(cgroup) => container.set_cgroup(cgroup),
        Err(e) => debug!("no cgroup of process {pid}, stats will be missing: {e}"),
    }
    match crate::cgroup::paths(pid) {
        Ok(paths) => drop(container.cgroups.set(paths)),
        Err(e) => debug!("{e}"),
    }
    oom::watch(pod, container);
    pod.events.started(container).await;
    if let Some(prepared) = container.restored() {
        prepared.stopwatch.leave(container, prepared.source.name());
    }
    Ok(pid)
}

/// Restores, or starts normally after a failed restore where the pod says so.
async fn resume(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    prepared: &Arc<Prepared>,
) -> Result<(), TaskError> {
    let exits = Exits::subscribe().await.map_err(|e| TaskError::shim("watch for exits", e))?;
    match restore(pod, container, prepared).await {
        Ok(pid) => {
            prepared.stopwatch.next("taking over");
            container.init.set_pid(pid);
            pod.set_restored_from(&prepared.source.container, &prepared.source.name());
            watch(pod, container, exits, pid);
            Ok(())
        }
        Err(e) if prepared.source.if_failed == Otherwise::Start && !container.restoring.was_killed() => {
            warn!("container {} starts normally, as thaw.dev/if-failed says: {e}", container.id);
            container.remount().await?;
            container.init.renew_io().await;
            create_process(pod, container).await?;
            container.oci.start().await
        }
        Err(e) => {
            container.init.io().abort().await;
            container.init.set_exited(Exit::killed());
            Err(e)
        }
    }
}

/// Records and publishes the exit of the init when it comes.
pub(crate) fn watch(pod: &Arc<Pod>, container: &Arc<Container>, exits: Exits, pid: i32) {
    let (pod, container) = (pod.clone(), container.clone());
    tokio::spawn(async move {
        let exit = exits.of(pid).await;
        if !container.owns_pid_namespace() {
            // Its children are not the kernel's to kill.
            if let Err(e) = container.oci.kill_all(9).await {
                debug!("nothing left to kill in container {}: {e}", container.id);
            }
        }
        let execs = container.execs();
        let all = async {
            for exec in execs.iter().filter(|exec| exec.process.state() == State::Running) {
                exec.process.wait().await;
            }
        };
        // An exec's exit comes first in the stream; one that cannot die does not hold the init's.
        let _ = tokio::time::timeout(EXECS_FOLLOW, all).await;
        let _verb = container.verb.lock().await;
        oom::look_at_the_end(&pod, &container, exit).await;
        container.init.set_exited(exit);
        pod.events.exited(&container, &container.init, exit).await;
    });
}
