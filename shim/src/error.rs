// SPDX-License-Identifier: Apache-2.0
//! The shim's errors and their one map to ttrpc codes.

use std::path::PathBuf;

use containerd_shim_protos::ttrpc::{self, Code};

use crate::state::InvalidTransition;

/// Why a verb failed. The text reaches the pod's events, so it says what happened and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// No such container or exec here.
    #[error("{0} not found")]
    NotFound(String),
    /// The id is taken.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// The verb does not fit the state.
    #[error(transparent)]
    InvalidTransition(#[from] InvalidTransition),
    /// The request itself is wrong.
    #[error("{0}")]
    InvalidRequest(String),
    /// An operation on a file or a process failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// containerd-shim's own machinery failed.
    #[error("cannot {what}: {source}")]
    Shim {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: containerd_shim::Error,
    },
    /// The OCI runtime failed. In the words of containerd's own shim, which programs that watch pods know.
    #[error("OCI runtime {verb} failed: {said}")]
    Runtime {
        /// The runtime's command.
        verb: &'static str,
        /// The runtime's own words.
        said: String,
    },
    /// The root file system cannot be mounted.
    #[error("cannot mount the root file system at {target}: {source}")]
    Rootfs {
        /// Mount point.
        target: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The restore cannot hold; nothing was left behind.
    #[error("cannot restore container {container}{checkpoint}: {reasons}")]
    Refused {
        /// Container name in the pod.
        container: String,
        /// ` from NAMESPACE/LINEAGE/ID`, or nothing while that is not known.
        checkpoint: String,
        /// All the reasons.
        reasons: String,
    },
    /// The restore failed at a step; what it had made was undone.
    #[error("restore of container {container} from {checkpoint} failed at {step}: {reason}")]
    Restore {
        /// Container name in the pod.
        container: String,
        /// `NAMESPACE/LINEAGE/ID`.
        checkpoint: String,
        /// The step, in plain words.
        step: &'static str,
        /// Why, with the last lines of CRIU's log where it is CRIU's.
        reason: String,
    },
    /// The dump failed; the container goes on.
    #[error("checkpoint of container {container} failed at {step}: {reason}")]
    Checkpoint {
        /// Container id.
        container: String,
        /// The step, in plain words.
        step: &'static str,
        /// Why.
        reason: String,
    },
}

impl TaskError {
    /// For `map_err` on an [`std::io::Error`] or rustix's `Errno`.
    pub(crate) fn io<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { what: what.into(), source: source.into() }
    }

    /// For containerd-shim's errors.
    pub(crate) fn shim(what: &'static str, source: containerd_shim::Error) -> Self {
        Self::Shim { what, source }
    }

    /// The ttrpc code that containerd branches on.
    ///
    /// Source: containerd's `pkg/errdefs` use in `cmd/containerd-shim-runc-v2/task/service.go`.
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::InvalidTransition(_) | Self::Refused { .. } => Code::FAILED_PRECONDITION,
            Self::InvalidRequest(_) => Code::INVALID_ARGUMENT,
            Self::Io { .. }
            | Self::Shim { .. }
            | Self::Runtime { .. }
            | Self::Rootfs { .. }
            | Self::Restore { .. }
            | Self::Checkpoint { .. } => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

/// An error with all its causes, each said once.
pub(crate) fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;

    fn code(error: TaskError) -> Code {
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else { panic!("not a status") };
        status.code()
    }

    #[test]
    fn each_error_has_the_code_that_containerd_branches_on() {
        assert_eq!(code(TaskError::NotFound("container a".into())), Code::NOT_FOUND);
        assert_eq!(code(TaskError::AlreadyExists("container a".into())), Code::ALREADY_EXISTS);
        let transition = InvalidTransition { verb: "start", state: State::Stopped };
        assert_eq!(code(transition.into()), Code::FAILED_PRECONDITION);
        let refused =
            TaskError::Refused { container: "a".into(), checkpoint: String::new(), reasons: "no".into() };
        assert_eq!(code(refused), Code::FAILED_PRECONDITION);
        assert_eq!(code(TaskError::InvalidRequest("x".into())), Code::INVALID_ARGUMENT);
        let io = TaskError::io("open x")(std::io::Error::from_raw_os_error(2));
        assert_eq!(code(io), Code::UNKNOWN);
    }
}
