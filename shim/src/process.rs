// SPDX-License-Identifier: Apache-2.0
//! One process that containerd knows: a container's init, or an exec. Its state, pid, exit and streams.
//!
//! Invariant: only this module writes the state, and an exit is recorded once.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use containerd_shim::asynchronous::io::{IoTasks, Stdio};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use crate::logging::{Log, Logging};
use crate::reaper::Exit;
use crate::state::{InvalidTransition, State};

/// A container's init or an exec.
pub(crate) struct Process {
    /// The exec's id; empty for the init.
    pub(crate) exec_id: String,
    /// The streams that containerd asked for: fifo paths, and whether there is a terminal.
    pub(crate) stdio: Stdio,
    /// Where its output goes.
    pub(crate) log: Log,
    standing: Mutex<Standing>,
    exited: watch::Sender<Option<Exit>>,
}

struct Standing {
    state: State,
    pid: i32,
    /// The process itself: its pid may be another's once its exit is reaped.
    pidfd: Option<OwnedFd>,
    io: IoTasks,
    console: Option<File>,
    logging: Option<Logging>,
}

impl Process {
    /// A process in `state` with no pid yet.
    pub(crate) fn new(exec_id: &str, stdio: Stdio, log: Log, state: State) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            stdio,
            log,
            standing: Mutex::new(Standing {
                state,
                pid: 0,
                pidfd: None,
                io: IoTasks::default(),
                console: None,
                logging: None,
            }),
            exited: watch::Sender::new(None),
        }
    }

    // A panic elsewhere must not take the supervision of a pod along: the guarded data is three plain values.
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its pid in the shim's pid namespace; 0 before there is a process.
    pub(crate) fn pid(&self) -> i32 {
        self.standing().pid
    }

    /// Records the pid of a child whose exit is awaited by somebody who subscribed before it could exist.
    pub(crate) fn set_pid(&self, pid: i32) {
        // One that has ended already has no pidfd and needs none.
        let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let mut standing = self.standing();
        (standing.pid, standing.pidfd) = (pid, pidfd);
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH` when it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Errno> {
        match &self.standing().pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, signal),
            None => Err(Errno::SRCH),
        }
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> State {
        self.standing().state
    }

    /// Moves along a transition of [`State`].
    ///
    /// # Errors
    /// When the verb does not fit; the state is then as before.
    pub(crate) fn transition(
        &self,
        verb: impl FnOnce(State) -> Result<State, InvalidTransition>,
    ) -> Result<(), InvalidTransition> {
        let mut standing = self.standing();
        standing.state = verb(standing.state)?;
        Ok(())
    }

    /// Keeps the terminal's master for later resizes.
    pub(crate) fn set_console(&self, console: File) {
        self.standing().console = Some(console);
    }

    /// Sets the terminal's size in characters; a no-op without a terminal, as in containerd's own shim.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> std::io::Result<()> {
        let standing = self.standing();
        let Some(console) = &standing.console else { return Ok(()) };
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(console, size).map_err(Into::into)
    }

    /// Ends the copies of an attempt that failed, for another one: two would share the input.
    pub(crate) async fn renew_io(&self) {
        let fresh = self.io().renew();
        self.io().abort().await;
        self.standing().io = fresh;
    }

    /// The copies between containerd's fifos and the process.
    pub(crate) fn io(&self) -> IoTasks {
        self.standing().io.clone()
    }

    /// Keeps what logs its output.
    pub(crate) fn set_logging(&self, logging: Logging) {
        self.standing().logging = Some(logging);
    }

    /// Lets its output reach its end, but not for ever, and ends the copies.
    pub(crate) async fn shutdown_io(&self) {
        self.io().shutdown().await;
        let logging = self.standing().logging.take();
        if let Some(logging) = logging {
            logging.shutdown().await;
        }
    }

    /// Records the exit, once, and wakes all waiters.
    pub(crate) fn set_exited(&self, exit: Exit) {
        self.standing().state = State::Stopped;
        self.exited.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(exit);
            }
            first
        });
    }

    /// The exit, if it has happened.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exited.borrow()
    }

    /// Waits for the exit.
    pub(crate) async fn wait(&self) -> Exit {
        let mut exited = self.exited.subscribe();
        // The sender lives in `self`, so this cannot end without a value.
        let seen = exited.wait_for(Option::is_some).await;
        seen.ok().and_then(|exit| *exit).unwrap_or_else(Exit::killed)
    }
}
