// SPDX-License-Identifier: Apache-2.0
//! Signals, pause and resume.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::container::Container;
use crate::error::TaskError;
use crate::freezer::Freezer;
use crate::reaper::Exit;
use crate::state::State;

/// Sends the signal `number` to a process, or to `all` of the container. A restore in progress is ended.
///
/// # Errors
/// [`TaskError::NotFound`] for a process that has exited, as containerd expects.
pub(crate) async fn kill(
    container: &Arc<Container>,
    exec_id: &str,
    number: u32,
    all: bool,
) -> Result<(), TaskError> {
    let process = container.process(exec_id)?;
    let gone = || TaskError::NotFound("process already finished:".into());
    let signal = crate::signal::signal(number)
        .ok_or_else(|| TaskError::InvalidRequest(format!("signal {number} is unknown")))?;
    if process.state() == State::Stopped {
        return Err(gone());
    }
    if process.pid() == 0 {
        container.restoring.kill();
        // A verb that is making the process ends, or has it made, before this goes on.
        let _verb = container.verb.lock().await;
        if process.pid() == 0 {
            // There is none; containerd waits for its end all the same.
            process.set_exited(Exit::killed());
            return Ok(());
        }
    }
    if all && exec_id.is_empty() {
        return container.oci.kill_all(number).await;
    }
    match process.signal(signal) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Err(gone()),
        Err(e) => return Err(TaskError::io(format!("signal process {}", process.pid()))(e)),
    }
    if signal == Signal::KILL && exec_id.is_empty() {
        // A frozen cgroup v1 does not let its tasks die: one that is paused, or that is frozen with its pod. In version 2
        // they may be gone by now, which the runtime would take for an error.
        if let Some(freezer) = Freezer::of_process(process.pid()) {
            freezer.thaw().map_err(TaskError::io("thaw the container".to_owned()))?;
        }
    }
    Ok(())
}

/// Freezes the container.
///
/// # Errors
/// When it does not run, or the runtime cannot.
pub(crate) async fn pause(container: &Container) -> Result<(), TaskError> {
    let _verb = container.verb.lock().await;
    container.init.state().pause()?;
    container.oci.pause().await?;
    Ok(container.init.transition(State::pause)?)
}

/// Thaws the container.
///
/// # Errors
/// When it is not paused, or the runtime cannot.
pub(crate) async fn resume(container: &Container) -> Result<(), TaskError> {
    let _verb = container.verb.lock().await;
    container.init.state().resume()?;
    container.oci.resume().await?;
    Ok(container.init.transition(State::resume)?)
}
