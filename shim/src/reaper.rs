// SPDX-License-Identifier: Apache-2.0
//! Exits of child processes. One loop owns `wait`; everybody else subscribes here **before** the process can exist and claims the exit once its pid is known, so an exit in
//! between is not lost.

use containerd_shim::asynchronous::monitor::{
    Subscription, monitor_notify_by_pid, monitor_subscribe, monitor_unsubscribe,
};
use containerd_shim::monitor::{Subject, Topic};
use log::error;
use rustix::process::{WaitOptions, wait};
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

/// Starts the loop: it reaps every child, whoever started it, and tells its exit to all subscribers.
///
/// containerd-shim has one of its own, which loses the exits by real-time signals.
///
/// # Errors
/// When SIGCHLD cannot be watched.
pub(crate) fn run() -> std::io::Result<()> {
    let mut children = signal(SignalKind::child())?;
    tokio::spawn(async move {
        while children.recv().await.is_some() {
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                let killed = status.terminating_signal().map(|signal| signal.saturating_add(128));
                let Some(code) = status.exit_status().or(killed) else { continue };
                if let Err(e) = monitor_notify_by_pid(pid.as_raw_nonzero().get(), code).await {
                    error!("cannot tell the exit of process {pid:?}: {e}");
                }
            }
        }
    });
    Ok(())
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 + signal number.
    pub(crate) code: u32,
    /// When its exit was seen.
    pub(crate) at: OffsetDateTime,
}

impl Exit {
    /// What containerd is told of a process that was killed before it came to life.
    ///
    /// Source: 128 + SIGKILL, as containerd-shim-runc-v2 answers.
    pub(crate) fn killed() -> Self {
        Self { code: 137, at: OffsetDateTime::now_utc() }
    }
}

/// The exits of children from the moment of its creation on.
pub(crate) struct Exits(Subscription);

impl Exits {
    /// Starts to record exits.
    pub(crate) async fn subscribe() -> Result<Self, containerd_shim::Error> {
        monitor_subscribe(Topic::Pid).await.map(Self)
    }

    /// Waits for the exit of `pid`, which may already have happened.
    pub(crate) async fn of(mut self, pid: i32) -> Exit {
        while let Some(event) = self.0.rx.recv().await {
            if let Subject::Pid(exited) = event.subject
                && exited == pid
            {
                let code = u32::try_from(event.exit_code).unwrap_or(255);
                return Exit { code, at: OffsetDateTime::now_utc() };
            }
        }
        error!("the exit of process {pid} was lost: the reaper has gone");
        Exit { code: 255, at: OffsetDateTime::now_utc() }
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let id = self.0.id;
        runtime.spawn(async move {
            if let Err(e) = monitor_unsubscribe(id).await {
                error!("cannot unsubscribe from exits: {e}");
            }
        });
    }
}
