// SPDX-License-Identifier: Apache-2.0
//! A cgroup v1 freezer around a dump. CRIU attaches to each process by ptrace; a process that was stopped by a signal
//! must run a few instructions for that, and in a frozen cgroup v1 it cannot: CRIU would wait for ever, unkillable.
//! So a container with a stopped process is dumped thawed, CRIU stopping one process after the other, and is frozen
//! again before CRIU lets go of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::process::{ProcState, Process};

/// What a file `freezer.state` holds. Source: Linux Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
const FROZEN: &str = "FROZEN";
const THAWED: &str = "THAWED";

/// A frozen cgroup that was thawed for a dump; frozen again on drop.
#[derive(Debug)]
pub(crate) struct Thawed(PathBuf);

impl Thawed {
    /// Thaws `cgroup` (of the hierarchy `freezer`) if it is frozen; `None` where it is not.
    pub(crate) fn from_frozen(cgroup: &Path) -> std::io::Result<Option<Self>> {
        let state = cgroup.join("freezer.state");
        if std::fs::read_to_string(&state)?.trim() == THAWED {
            return Ok(None);
        }
        std::fs::write(&state, THAWED)?;
        Ok(Some(Self(state)))
    }

    /// Freezes it again, for what is stopped by CRIU at this moment.
    pub(crate) fn refreeze(&self) -> std::io::Result<()> {
        // One that forks meanwhile is frozen at a later attempt of the kernel, which a read makes.
        for _ in 0..500 {
            std::fs::write(&self.0, FROZEN)?;
            if std::fs::read_to_string(&self.0)?.trim() == FROZEN {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        log::warn!("{} takes long to freeze", self.0.display());
        Ok(())
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        if let Err(e) = self.refreeze() {
            log::warn!("cannot freeze {} again: {e}", self.0.display());
        }
    }
}

/// Whether a process in `cgroup` was stopped by a signal.
pub(crate) fn has_stopped_process(cgroup: &Path) -> std::io::Result<bool> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let stopped = |pid: i32| {
        let state = Process::new(pid).and_then(|process| process.stat()).and_then(|stat| stat.state());
        matches!(state, Ok(ProcState::Stopped | ProcState::Tracing))
    };
    Ok(pids.lines().filter_map(|pid| pid.parse().ok()).any(stopped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(state: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("freezer.state"), state).unwrap();
        dir
    }

    #[test]
    fn a_frozen_cgroup_is_thawed_and_frozen_again() {
        let dir = cgroup("FROZEN\n");
        let read = || std::fs::read_to_string(dir.path().join("freezer.state")).unwrap();
        let thawed = Thawed::from_frozen(dir.path()).unwrap().unwrap();
        assert_eq!(read(), THAWED);
        drop(thawed);
        assert_eq!(read(), FROZEN);
    }

    #[test]
    fn one_that_runs_is_left_alone() {
        assert!(Thawed::from_frozen(cgroup("THAWED\n").path()).unwrap().is_none());
    }

    #[test]
    fn a_process_that_runs_is_not_stopped() {
        let dir = cgroup(THAWED);
        std::fs::write(dir.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        assert!(!has_stopped_process(dir.path()).unwrap());
    }
}
