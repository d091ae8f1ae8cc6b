// SPDX-License-Identifier: Apache-2.0
//! The CRIU of a restore in progress, for those who end it.

use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

/// The CRIU of a restore in progress, so that a kill can end it.
#[derive(Debug, Default)]
pub(crate) struct Restoring(AtomicI32);

/// In [`Restoring`]: the container was killed. Other values are CRIU's pid, or 0 for none.
const KILLED: i32 = -1;

/// The container was killed before its restore had begun.
#[derive(Debug, thiserror::Error)]
#[error("the container was killed")]
pub(crate) struct Killed;

impl Restoring {
    /// Notes CRIU's pid; the process waits for its first request.
    pub(crate) fn begin(&self, criu: i32) -> Result<(), Killed> {
        let noted = self.0.compare_exchange(0, criu, Ordering::SeqCst, Ordering::SeqCst);
        noted.map(drop).map_err(|_| Killed)
    }

    /// Forgets CRIU, which has done its work and may be reaped from now on.
    pub(crate) fn end(&self) {
        // A kill that came in between stays known: it goes to the restored init.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| (now > 0).then_some(0));
    }

    /// Whether the container was killed.
    pub(crate) fn was_killed(&self) -> bool {
        self.0.load(Ordering::SeqCst) == KILLED
    }

    /// Ends the restore in progress, or keeps one from beginning. CRIU's death is seen as the end of its socket.
    pub(crate) fn kill(&self) {
        if let Some(criu) = criu_pid(self.0.swap(KILLED, Ordering::SeqCst)) {
            // Gone already is as good.
            let _ = kill_process(criu, Signal::KILL);
        }
    }

    /// Ends the restore in progress, which fails; the container was not killed, and may start normally.
    pub(crate) fn abort(&self) {
        if let Some(criu) = criu_pid(self.0.load(Ordering::SeqCst)) {
            // Gone already is as good.
            let _ = kill_process(criu, Signal::KILL);
        }
    }
}

fn criu_pid(value: i32) -> Option<Pid> {
    if value > 0 { Pid::from_raw(value) } else { None }
}
