// SPDX-License-Identifier: Apache-2.0
//! Tells the node's plugin how restores and checkpoints went. Nothing depends on it being heard.

use std::path::Path;
use std::time::Duration;

use ::checkpoint::record::{Record, SOCKET, Verb};

use crate::error::TaskError;

/// One that went well, with the size of its checkpoint in bytes and how long each step took.
pub(crate) fn done(verb: Verb, bytes: u64, steps: &[(&str, Duration)]) {
    send(&Record::done(verb, bytes, steps));
}

/// One that failed.
pub(crate) fn failed(verb: Verb, error: &TaskError) {
    let step = match error {
        TaskError::Restore { step, .. } | TaskError::Checkpoint { step, .. } => step,
        TaskError::Refused { .. } => "refused",
        TaskError::NotFound(_)
        | TaskError::AlreadyExists(_)
        | TaskError::InvalidTransition(_)
        | TaskError::InvalidRequest(_)
        | TaskError::Io { .. }
        | TaskError::Shim { .. }
        | TaskError::Runtime { .. }
        | TaskError::Rootfs { .. } => "shim",
    };
    send(&Record::failed(verb, step));
}

fn send(record: &Record) {
    if let Err(e) = record.send(Path::new(SOCKET)) {
        log::debug!("nobody counts this: {e}");
    }
}
