// SPDX-License-Identifier: Apache-2.0
//! Containers of a pod, frozen at one instant.
//!
//! They share volumes, /dev/shm and sockets: what one has seen of another must be in what is kept of the other. So all
//! stand before anything of one is read, and none goes on before all is read.

use std::sync::Arc;
use std::time::Duration;

use crate::checkpoint::{failed, look, name};
use crate::container::Container;
use crate::error::{TaskError, full};
use crate::freezer::{Freezer, FreezerError};

/// How long they may take to stand. Longer than they take on any busy machine; one that waits for a disk may not.
const FREEZING: Duration = Duration::from_secs(10);

/// A container that does not stop.
#[derive(Debug, thiserror::Error)]
#[error("container {container} does not stop: {reason}")]
pub(crate) struct Unstoppable {
    container: String,
    reason: String,
}

impl From<Unstoppable> for TaskError {
    fn from(error: Unstoppable) -> Self {
        Self::Checkpoint { container: error.container, step: STEP, reason: error.reason }
    }
}

/// Frozen containers; they go on when this is dropped.
pub(crate) struct Together(Vec<(Arc<Container>, Freezer)>);

impl Together {
    /// Freezes the containers.
    ///
    /// # Errors
    /// With the first one that does not stop; all go on then.
    pub(crate) fn freeze(containers: &[Arc<Container>]) -> Result<Self, Unstoppable> {
        let unstoppable =
            |container: &Arc<Container>, reason| Unstoppable { container: name(container), reason };
        let mut all = Vec::new();
        for container in containers {
            let none = || unstoppable(container, "it is in no cgroup with a freezer".to_owned());
            all.push((container.clone(), Freezer::of_process(container.init.pid()).ok_or_else(none)?));
        }
        let together = Self(all);
        let each = |step: &dyn Fn(&Freezer) -> Result<(), FreezerError>| {
            together.0.iter().try_for_each(|(container, freezer)| {
                step(freezer).map_err(|e| unstoppable(container, full(&e)))
            })
        };
        // None waits for another one to stand.
        each(&|freezer| freezer.begin_to_freeze().map_err(|e| freezer.unusable(e)))?;
        each(&|freezer| match freezer.freeze_within(FREEZING) {
            Ok(true) => Ok(()),
            Ok(false) => Err(FreezerError::Slow(FREEZING.as_secs())),
            Err(e) => Err(freezer.unusable(e)),
        })?;
        Ok(together)
    }

    /// Lets each container come to where CRIU can stop it, and looks whether CRIU can dump it. One that runs on for a
    /// moment does so before anything is read.
    ///
    /// # Errors
    /// With the first one that cannot be dumped.
    pub(crate) fn settle(&self) -> Result<(), TaskError> {
        for (container, freezer) in &self.0 {
            let failed = |e: FreezerError| failed(container, STEP)(full(&e));
            if freezer.with_stopped().map_err(|e| failed(freezer.unusable(e)))?.is_some() {
                return Err(failed(FreezerError::Stopped));
            }
            freezer.past_vfork().map_err(failed)?;
        }
        self.0.iter().try_for_each(|(container, freezer)| look(container, freezer.cgroup()))
    }

    /// Ends all processes of the containers; they die when they are thawed.
    pub(crate) fn kill(&self) {
        for (container, freezer) in &self.0 {
            if let Err(e) = freezer.kill() {
                log::warn!("cannot end container {}: {e}", container.id);
            }
        }
    }
}

const STEP: &str = "stopping it";

impl Drop for Together {
    fn drop(&mut self) {
        for (container, freezer) in &self.0 {
            if let Err(e) = freezer.thaw() {
                log::warn!("cannot thaw container {}: {e}", container.id);
            }
        }
    }
}
