// SPDX-License-Identifier: Apache-2.0
//! Exec: one more process in the container, by the OCI runtime, for ordinary and restored containers alike.

use std::sync::Arc;

use containerd_shim::asynchronous::io::Stdio;
use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};
use oci_spec::runtime::Process as OciProcess;
use rustix::process::Signal;

use crate::container::{Container, Exec};
use crate::error::TaskError;
use crate::logging::Log;
use crate::pod::Pod;
use crate::process::Process;
use crate::reaper::{Exit, Exits};
use crate::state::State;
use crate::stdio::Wiring;

/// Records an exec; it runs at [`start`].
///
/// # Errors
/// When the id is taken or the process does not decode.
pub(crate) async fn add(pod: &Pod, container: &Container, req: &ExecProcessRequest) -> Result<(), TaskError> {
    let invalid =
        |e| TaskError::InvalidRequest(format!("exec {}: the process does not decode: {e}", req.exec_id));
    let spec: OciProcess = serde_json::from_slice(&req.spec.value).map_err(invalid)?;
    let stdio = Stdio::new(&req.stdin, &req.stdout, &req.stderr, req.terminal);
    let log = Log::of(&stdio, &req.exec_id, &pod.namespace)?;
    let process = Process::new(&req.exec_id, stdio, log, State::Created);
    container.add_exec(Exec { spec, process })?;
    pod.events
        .publish(TaskExecAdded {
            container_id: container.id.clone(),
            exec_id: req.exec_id.clone(),
            ..Default::default()
        })
        .await;
    Ok(())
}

/// Runs an exec; returns its pid.
///
/// # Errors
/// When the runtime cannot; the exec is stopped then.
pub(crate) async fn start(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    exec_id: &str,
) -> Result<i32, TaskError> {
    let exec = container.exec(exec_id)?;
    let _verb = container.verb.lock().await;
    exec.process.state().start()?;
    let exits = Exits::subscribe().await.map_err(|e| TaskError::shim("watch for exits", e))?;
    let wiring = Wiring::new(&exec.process, container.io_owner).await?;
    let ran = container.oci.exec(exec_id, &exec.spec, wiring.io(), wiring.console_socket()).await;
    let pid = match ran {
        Ok(pid) => pid,
        Err(e) => {
            exec.process.set_exited(Exit::killed());
            return Err(e);
        }
    };
    exec.process.set_pid(pid);
    watch(pod, container, &exec, exits, pid);
    let wired = wiring.attach(&exec.process).await;
    if let Err(e) = wired.and_then(|()| Ok(exec.process.transition(State::start)?)) {
        // It must not run on without anybody at its streams.
        let _ = exec.process.signal(Signal::KILL);
        return Err(e);
    }
    pod.events
        .publish(TaskExecStarted {
            container_id: container.id.clone(),
            exec_id: exec_id.to_owned(),
            pid: pid.cast_unsigned(),
            ..Default::default()
        })
        .await;
    Ok(pid)
}

/// Records and publishes the exit of an exec when it comes, after TaskExecStarted.
fn watch(pod: &Arc<Pod>, container: &Arc<Container>, exec: &Arc<Exec>, exits: Exits, pid: i32) {
    let (pod, container, exec) = (pod.clone(), container.clone(), exec.clone());
    tokio::spawn(async move {
        let exit = exits.of(pid).await;
        let _verb = container.verb.lock().await;
        exec.process.set_exited(exit);
        pod.events.exited(&container, &exec.process, exit).await;
    });
}
