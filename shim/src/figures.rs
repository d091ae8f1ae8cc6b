// SPDX-License-Identifier: Apache-2.0
//! Tells the node's plugin how restores and checkpoints went, for figures and for events of the pod. Nothing depends on
//! it being heard.

use std::path::Path;
use std::time::Duration;

use ::checkpoint::record::{Record, SOCKET, Subject, Verb};
use oci_spec::runtime::Spec;

use crate::error::TaskError;
use crate::source::identity;

/// One that went well, with what there is to say, the size of its checkpoint in bytes and how long each step took.
pub(crate) fn done(verb: Verb, spec: &Spec, text: &str, bytes: u64, steps: &[(&str, Duration)]) {
    send(&Record::done(verb, bytes, steps).about(subject(spec), text));
}

/// One that failed.
pub(crate) fn failed(verb: Verb, spec: &Spec, error: &TaskError) {
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
    send(&Record::failed(verb, step).about(subject(spec), &error.to_string()));
}

/// Whose container it is.
fn subject(spec: &Spec) -> Option<Subject> {
    identity(spec.annotations().as_ref()?).map(|who| who.subject())
}

fn send(record: &Record) {
    if let Err(e) = record.send(Path::new(SOCKET)) {
        log::debug!("nobody counts this: {e}");
    }
}
