// SPDX-License-Identifier: Apache-2.0
//! The log of the container that was frozen, where the pod wants it in front of the new one.

use ::checkpoint::annotation::Log;
use ::checkpoint::container_dir::ReadDumpError;
use ::checkpoint::container_log::{LIMIT_BYTES, Written};
use log::warn;
use time::OffsetDateTime;

use crate::source::Source;

/// What goes in front of the new log, if the pod asks for it: what had been written until the container was `frozen`.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn old_log(source: &Source, frozen: Option<OffsetDateTime>) -> Result<Written, ReadDumpError> {
    if source.options.log() == Log::New {
        return Ok(Written::default());
    }
    let Some(written) = source.dir.log(frozen)? else {
        warn!("thaw.dev/log: continue, and checkpoint {} has no log", source.name());
        return Ok(Written::default());
    };
    if written.cut {
        warn!("the log of {} is longer than {LIMIT_BYTES} bytes: its beginning is left out", source.name());
    }
    if written.unreadable > 0 {
        warn!(
            "{} lines of the log of {} are left out: they are no log lines",
            written.unreadable,
            source.name()
        );
    }
    Ok(written)
}
