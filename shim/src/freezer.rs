// SPDX-License-Identifier: Apache-2.0
//! The freezer around a dump, of either cgroup version.
//!
//! CRIU attaches to each process by ptrace; there are two moments in which a process cannot answer, and CRIU would wait
//! for ever, unkillable:
//! - one that was stopped by a signal must run a few instructions, which it cannot in a frozen cgroup v1. So a container
//!   with a stopped process is dumped thawed, CRIU stopping one process after the other, and is frozen again before CRIU
//!   lets go of it;
//! - one that waits for the child of its vfork to call exec goes on only when that child does. So a frozen container is
//!   let go on until nobody waits.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use procfs::process::{ProcState, Process};
use rustix::process::{Pid, Signal, kill_process};

use crate::vfork;

/// How long a cgroup may take to be frozen.
const FREEZING: Duration = Duration::from_secs(1);
/// How long a child may take from vfork to exec; on a busy machine they are milliseconds.
const VFORKING: Duration = Duration::from_secs(5);
/// How long a cgroup may be frozen that a process is to leave.
const FROZEN: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// Why a container cannot be let go on until it can be frozen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezerError {
    /// The cgroup's files.
    #[error("cannot use the freezer of {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// A child of vfork that neither calls exec nor ends.
    #[error(
        "process {pid} ({}) has waited for {} s for a child that it started by vfork to call exec or to end; a process \
         that waits so cannot be frozen: freeze the container when that child has got on",
        comm.escape_debug(), VFORKING.as_secs()
    )]
    Vfork {
        /// Who waits.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// Something does not stop.
    #[error(
        "a process of it has not stopped within {0} s, as one that waits for a disk or for a file system over the \
         network: try again when it has got on"
    )]
    Slow(u64),
    /// On cgroup version 1 it would have to run.
    #[error(
        "a process of it was stopped by a signal; on cgroup v1 such a container must run on for a moment to be frozen, so \
         that several containers cannot be frozen at one instant: continue the process (SIGCONT), or give the node cgroup v2"
    )]
    Stopped,
}

/// The freezer of a cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Freezer {
    cgroup: PathBuf,
    version: Version,
}

/// Source: Linux Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst ("cgroup.freeze").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Freezer {
    /// Of a `cgroup` of version 2, or of the hierarchy `freezer`.
    pub(crate) fn of(cgroup: &Path) -> Self {
        let version = if cgroup.join("freezer.state").exists() { Version::V1 } else { Version::V2 };
        Self { cgroup: cgroup.to_owned(), version }
    }

    /// Of the cgroup that a process is in.
    pub(crate) fn of_process(pid: i32) -> Option<Self> {
        Self::directory(&crate::cgroup::paths(pid).ok()?).map(|cgroup| Self::of(&cgroup))
    }

    /// The directory whose files stop a process that is in `cgroups`.
    pub(crate) fn directory(cgroups: &BTreeMap<String, PathBuf>) -> Option<PathBuf> {
        cgroups.get("freezer").or_else(|| cgroups.get("")).cloned()
    }

    /// Whether all of it is frozen.
    pub(crate) fn is_frozen(&self) -> io::Result<bool> {
        let read = |file: &str| match std::fs::read_to_string(self.cgroup.join(file)) {
            // The root of a hierarchy has no freezer.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        };
        Ok(match self.version {
            Version::V1 => read("freezer.state")?.trim() == "FROZEN",
            Version::V2 => read("cgroup.events")?.lines().any(|line| line == "frozen 1"),
        })
    }

    /// Freezes it and waits for that.
    ///
    /// # Errors
    /// When the cgroup's files cannot be used.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        if !self.freeze_within(FREEZING)? {
            log::warn!("{} takes long to freeze", self.cgroup.display());
        }
        Ok(())
    }

    /// Begins to freeze it.
    ///
    /// # Errors
    /// When the cgroup's files cannot be used.
    pub(crate) fn begin_to_freeze(&self) -> io::Result<()> {
        self.write("FROZEN", "1")
    }

    /// Freezes it; whether that took no longer than `limit`.
    ///
    /// # Errors
    /// When the cgroup's files cannot be used.
    pub(crate) fn freeze_within(&self, limit: Duration) -> io::Result<bool> {
        let began = Instant::now();
        // One that forks meanwhile is frozen at a later attempt of the kernel; in version 1 a read makes it.
        loop {
            self.begin_to_freeze()?;
            if self.is_frozen()? {
                return Ok(true);
            }
            if began.elapsed() > limit {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends SIGKILL to all that is in it. What is frozen dies when it is thawed.
    ///
    /// # Errors
    /// When the cgroup's files cannot be read.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let pids = std::fs::read_to_string(self.cgroup.join("cgroup.procs"))?;
        for pid in pids.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            // Gone already is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        Ok(())
    }

    /// Waits until somebody thaws it: nobody in it moves while it is frozen.
    ///
    /// # Errors
    /// When the cgroup's files cannot be used, and when it stays frozen for long.
    pub(crate) fn wait_thawed(&self) -> io::Result<()> {
        self.wait_thawed_within(FROZEN)
    }

    fn wait_thawed_within(&self, limit: Duration) -> io::Result<()> {
        let began = Instant::now();
        while self.is_frozen()? {
            if began.elapsed() > limit {
                let text =
                    format!("{} is frozen: let it go on, and start the pod again", self.cgroup.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// What an error of its files is called.
    pub(crate) fn unusable(&self, error: io::Error) -> FreezerError {
        FreezerError::Io(self.cgroup.clone(), error)
    }

    /// The directory.
    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Thaws it.
    ///
    /// # Errors
    /// When the cgroup's files cannot be used. One that is gone holds nobody.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        match self.write("THAWED", "0") {
            Err(e) if is_gone(&e) => Ok(()),
            thawed => thawed,
        }
    }

    fn write(&self, v1: &str, v2: &str) -> io::Result<()> {
        let (file, value) = match self.version {
            Version::V1 => ("freezer.state", v1),
            Version::V2 => ("cgroup.freeze", v2),
        };
        // Not made where it is missing: that would fail in other words than that it is.
        let mut file = OpenOptions::new().write(true).truncate(true).open(self.cgroup.join(file))?;
        file.write_all(value.as_bytes())
    }

    /// Whether a process was stopped by a signal, in a cgroup of version 1, which is thawed then if it was frozen.
    pub(crate) fn with_stopped(&self) -> io::Result<Option<Option<Thawed>>> {
        if self.version == Version::V2 {
            return Ok(None);
        }
        // In a frozen cgroup all processes look alike.
        let thawed = self.is_frozen()?.then(|| Thawed::of(self)).transpose()?;
        Ok(has_stopped_process(&self.cgroup)?.then_some(thawed))
    }

    /// Lets a frozen container go on until none of its processes waits for the child of its vfork. One that is not
    /// frozen is left alone.
    ///
    /// # Errors
    /// When a child takes too long; the container is frozen then.
    pub(crate) fn past_vfork(&self) -> Result<(), FreezerError> {
        let failed = |e| self.unusable(e);
        let began = Instant::now();
        while self.is_frozen().map_err(failed)? {
            let Some(vfork::Waiting { pid, comm }) = vfork::find(&self.cgroup).map_err(failed)? else {
                break;
            };
            if began.elapsed() > VFORKING {
                return Err(FreezerError::Vfork { pid, comm });
            }
            let thawed = Thawed::of(self).map_err(failed)?;
            while began.elapsed() < VFORKING && vfork::find(&self.cgroup).map_err(failed)?.is_some() {
                std::thread::sleep(PAUSE);
            }
            drop(thawed);
        }
        Ok(())
    }
}

/// A frozen cgroup that was thawed; frozen again on drop.
#[derive(Debug)]
pub(crate) struct Thawed(Freezer);

impl Thawed {
    fn of(freezer: &Freezer) -> io::Result<Self> {
        freezer.thaw()?;
        Ok(Self(freezer.clone()))
    }

    /// Freezes it again, for what is stopped by CRIU at this moment.
    pub(crate) fn refreeze(&self) -> io::Result<()> {
        self.0.freeze()
    }
}

impl Drop for Thawed {
    fn drop(&mut self) {
        if let Err(e) = self.refreeze() {
            log::warn!("cannot freeze {} again: {e}", self.0.cgroup.display());
        }
    }
}

/// Whether a process in `cgroup` was stopped by a signal.
fn has_stopped_process(cgroup: &Path) -> std::io::Result<bool> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    let stopped = |pid: i32| {
        let state = Process::new(pid).and_then(|process| process.stat()).and_then(|stat| stat.state());
        matches!(state, Ok(ProcState::Stopped | ProcState::Tracing))
    };
    Ok(pids.lines().filter_map(|pid| pid.parse().ok()).any(stopped))
}

/// Whether the cgroup was removed: before its file was opened, or since. Source: linux fs/kernfs/file.c, which refuses what
/// is open of a removed file.
fn is_gone(error: &io::Error) -> bool {
    let removed = Some(rustix::io::Errno::NODEV.raw_os_error());
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == removed
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests own their children")]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_is_removed_before_or_after_its_file_was_opened_is_gone() {
        use rustix::io::Errno;
        let gone = |errno: Errno| is_gone(&errno.into());
        assert!(gone(Errno::NOENT) && gone(Errno::NODEV));
        assert!(!gone(Errno::ACCESS) && !gone(Errno::BUSY));
    }

    fn cgroup(state: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("freezer.state"), state).unwrap();
        dir
    }

    #[test]
    fn the_root_of_a_hierarchy_is_not_frozen() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        let root = Freezer::of(dir.path());
        assert!(!root.is_frozen().unwrap() && root.with_stopped().unwrap().is_none());
        root.past_vfork().unwrap();
    }

    #[test]
    fn one_that_is_frozen_is_waited_for_and_named_when_it_stays_so() {
        let dir = cgroup("FROZEN");
        let freezer = Freezer::of(dir.path());
        let error = freezer.wait_thawed_within(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().starts_with(&format!("{} is frozen", dir.path().display())), "{error}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                freezer.thaw().unwrap();
            });
            freezer.wait_thawed().unwrap();
        });
        assert!(!freezer.is_frozen().unwrap());
    }

    #[test]
    fn one_without_a_stopped_process_is_as_it_was() {
        for state in ["FROZEN", "THAWED"] {
            let dir = cgroup(state);
            std::fs::write(dir.path().join("cgroup.procs"), "").unwrap();
            assert!(Freezer::of(dir.path()).with_stopped().unwrap().is_none());
            assert_eq!(std::fs::read_to_string(dir.path().join("freezer.state")).unwrap(), state);
        }
    }

    #[test]
    fn one_with_a_stopped_process_is_thawed_and_frozen_again() {
        let dir = cgroup("FROZEN");
        let read = || std::fs::read_to_string(dir.path().join("freezer.state")).unwrap();
        let mut stopped = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&stopped);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap();
        std::fs::write(dir.path().join("cgroup.procs"), format!("{}\n", stopped.id())).unwrap();
        let thawed = Freezer::of(dir.path()).with_stopped().unwrap().unwrap();
        assert_eq!(read(), "THAWED");
        drop(thawed);
        assert_eq!(read(), "FROZEN");
        stopped.kill().unwrap();
        stopped.wait().unwrap();
    }

    #[test]
    fn a_process_that_runs_is_not_stopped() {
        let dir = cgroup("THAWED");
        std::fs::write(dir.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        assert!(!has_stopped_process(dir.path()).unwrap());
    }
}
