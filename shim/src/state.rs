// SPDX-License-Identifier: Apache-2.0
//! The life of a container's init or of an exec, as containerd names it. Pure.
//!
//! ```text
//!                    start                 pause
//!   Created ─────────────────┐         ┌──────────▶ Paused
//!                            ▼         │               │
//!                         Running ─────┤               │ exit
//!                            ▲         │◀──────────────┤
//!   CreatedCheckpoint ───────┘         │   resume      │
//!                    start (restores)  └──── exit ──▶ Stopped
//! ```
//!
//! - `Created`: the OCI runtime holds the process before its first instruction.
//! - `CreatedCheckpoint`: everything for a restore is checked and mounted, and there is no process yet.
//! - `Running`, `Paused`: there is a process.
//! - `Stopped`: it exited, or it never came to life.
//!
//! Source: the states of containerd's own shim, `cmd/containerd-shim-runc-v2/process/init_state.go`.

use std::fmt;

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Created by the OCI runtime, not started.
    Created,
    /// To be restored from a checkpoint; no process, pid 0.
    CreatedCheckpoint,
    /// Running.
    Running,
    /// Its cgroup is frozen.
    Paused,
    /// Exited.
    Stopped,
}

/// A verb that does not fit the state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {verb} a {state} process")]
pub(crate) struct InvalidTransition {
    /// What was asked.
    pub(crate) verb: &'static str,
    /// Where the process stood.
    pub(crate) state: State,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::CreatedCheckpoint => "created from a checkpoint",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

impl State {
    /// The process runs: started by the runtime, or restored.
    pub(crate) fn start(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Created | Self::CreatedCheckpoint => Ok(Self::Running),
            Self::Running | Self::Paused | Self::Stopped => Err(self.refuse("start")),
        }
    }

    /// The cgroup is frozen.
    pub(crate) fn pause(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Running => Ok(Self::Paused),
            Self::Created | Self::CreatedCheckpoint | Self::Paused | Self::Stopped => {
                Err(self.refuse("pause"))
            }
        }
    }

    /// The cgroup is thawed.
    pub(crate) fn resume(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Paused => Ok(Self::Running),
            Self::Created | Self::CreatedCheckpoint | Self::Running | Self::Stopped => {
                Err(self.refuse("resume"))
            }
        }
    }

    /// Whether there are processes to freeze into images.
    pub(crate) fn checkpoint(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Running | Self::Paused => Ok(self),
            Self::Created | Self::CreatedCheckpoint | Self::Stopped => Err(self.refuse("checkpoint")),
        }
    }

    /// Whether it may be deleted: nothing of it may be alive.
    pub(crate) fn delete(self) -> Result<Self, InvalidTransition> {
        match self {
            Self::Created | Self::CreatedCheckpoint | Self::Stopped => Ok(self),
            Self::Running | Self::Paused => Err(self.refuse("delete")),
        }
    }

    fn refuse(self, verb: &'static str) -> InvalidTransition {
        InvalidTransition { verb, state: self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Verb = fn(State) -> Result<State, InvalidTransition>;
    const STATES: [State; 5] =
        [State::Created, State::CreatedCheckpoint, State::Running, State::Paused, State::Stopped];

    #[test]
    fn every_verb_in_every_state_does_what_the_diagram_says() {
        let table: [(&str, Verb, [Option<State>; 5]); 5] = [
            ("start", State::start, [Some(State::Running), Some(State::Running), None, None, None]),
            ("pause", State::pause, [None, None, Some(State::Paused), None, None]),
            ("resume", State::resume, [None, None, None, Some(State::Running), None]),
            ("checkpoint", State::checkpoint, [None, None, Some(State::Running), Some(State::Paused), None]),
            (
                "delete",
                State::delete,
                [Some(State::Created), Some(State::CreatedCheckpoint), None, None, Some(State::Stopped)],
            ),
        ];
        for (name, verb, expected) in table {
            for (state, expected) in STATES.into_iter().zip(expected) {
                assert_eq!(verb(state).ok(), expected, "{name} in state {state}");
            }
        }
    }
}
