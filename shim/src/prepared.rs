// SPDX-License-Identifier: Apache-2.0
//! A restore between Create, which looks at all that it needs, and Start, which does it.

use std::path::PathBuf;
use std::sync::Mutex;

use ::checkpoint::plan::Plan;

use crate::error::{TaskError, full};
use crate::filling::Started;
use crate::hasten::Hastened;
use crate::source::Source;
use crate::stopwatch::Stopwatch;
use crate::volumes::FilledFrom;
use crate::waiting_pager::WaitingPager;

/// A restore that Create has found to hold.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The checkpoint.
    pub(crate) source: Source,
    /// What CRIU is told.
    pub(crate) plan: Plan,
    /// Where the OCI runtime keeps its state.
    pub(crate) runtime_root: PathBuf,
    /// Whether cgroups are systemd's.
    pub(crate) systemd_cgroup: bool,
    /// Which of the pod's volumes hold what checkpoint.
    pub(crate) filled: FilledFrom,
    /// What brings its memory while it runs, until the restore begins.
    pub(crate) pager: Mutex<Option<WaitingPager>>,
    /// What CRIU is not to wait for, until the restore has ended.
    pub(crate) hastened: Mutex<Option<Hastened>>,
    /// Where the time goes.
    pub(crate) stopwatch: Stopwatch,
}

impl Prepared {
    /// For `map_err` of a step.
    pub(crate) fn failed<E: std::error::Error + 'static>(
        &self,
        step: &'static str,
    ) -> impl FnOnce(E) -> TaskError {
        let (container, checkpoint) = (self.source.container.clone(), self.source.name());
        move |e| TaskError::Restore { container, checkpoint, step, reason: full(&e) }
    }

    /// A pager that has died takes CRIU along, and is the reason then.
    pub(crate) fn blame<E: std::error::Error + 'static>(
        &self,
        pager: Option<&Started>,
        step: &'static str,
    ) -> impl FnOnce(E) -> TaskError {
        move |e| match pager.and_then(Started::lost) {
            Some(lost) => self.failed("bringing its memory")(lost),
            None => self.failed(step)(e),
        }
    }
}
