// SPDX-License-Identifier: Apache-2.0
//! Signals, pause and resume.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::container::Container;
use crate::error::TaskError;
use crate::reaper::Exit;
use crate::state::State;

/// Sends `signal` to a process, or to `all` of the container. A restore in progress is ended.
///
/// # Errors
/// [`TaskError::NotFound`] for a process that has exited, as containerd expects.
pub(crate) async fn kill(
    container: &Arc<Container>,
    exec_id: &str,
    signal: u32,
    all: bool,
) -> Result<(), TaskError> {
    let process = container.process(exec_id)?;
    let gone = || TaskError::NotFound(format!("process of container {} has exited and", container.id));
    match process.state() {
        State::Stopped => return Err(gone()),
        State::CreatedCheckpoint => {
            container.restoring.kill();
            let _verb = container.verb.lock().await;
            if process.state() == State::CreatedCheckpoint {
                // There is no process; containerd waits for its end all the same.
                process.set_exited(Exit::killed());
            }
            if process.state() == State::Stopped {
                return Ok(());
            }
        }
        State::Created if process.pid() == 0 => {
            process.set_exited(Exit::killed());
            return Ok(());
        }
        State::Created | State::Running | State::Paused => {}
    }
    if all && exec_id.is_empty() {
        return container.oci.kill_all(signal).await;
    }
    let pid = Pid::from_raw(process.pid()).ok_or_else(gone)?;
    let signal = i32::try_from(signal)
        .ok()
        .and_then(Signal::from_named_raw)
        .ok_or_else(|| TaskError::InvalidRequest(format!("signal {signal} is unknown")))?;
    // The pid is ours until its exit is reaped, and a reaped one is Stopped: it cannot be somebody else's.
    match kill_process(pid, signal) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Err(gone()),
        Err(e) => return Err(TaskError::io(format!("signal process {}", process.pid()))(e)),
    }
    if signal == Signal::KILL && container.init.state() == State::Paused {
        // A frozen cgroup v1 does not let its tasks die.
        container.oci.resume().await?;
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
