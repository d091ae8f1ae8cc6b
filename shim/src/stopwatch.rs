// SPDX-License-Identifier: Apache-2.0
//! Notes where the time of a restore goes, from Create on.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::checkpoint::trace::{Step, Trace};

use crate::container::Container;
use crate::source::identity;

/// The steps of one restore so far. A step ends where the next one begins, so that no time is missing.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    begun: Instant,
    steps: Mutex<Vec<(&'static str, Duration)>>,
}

impl Stopwatch {
    /// Begins with the step `name`.
    pub(crate) fn start(name: &'static str) -> Self {
        Self { begun: Instant::now(), steps: Mutex::new(vec![(name, Duration::ZERO)]) }
    }

    /// Ends the step before, if any, and begins `name`.
    pub(crate) fn next(&self, name: &'static str) {
        let now = self.begun.elapsed();
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push((name, now));
    }

    /// Leaves what it has noted in the bundle of a container that was restored from `checkpoint`.
    pub(crate) fn leave(&self, container: &Container, checkpoint: String) {
        let annotations = container.spec.annotations().clone().unwrap_or_default();
        let Some(who) = identity(&annotations) else { return };
        let trace = Trace {
            namespace: who.namespace.to_owned(),
            pod: who.pod.to_owned(),
            container: who.container.to_owned(),
            checkpoint,
            steps: self.stop(),
        };
        if let Err(e) = trace.write(&container.bundle) {
            log::warn!("cannot note where the time went: {e}");
        }
    }

    /// Ends the last step.
    fn stop(&self) -> Vec<Step> {
        let end = self.begun.elapsed();
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = steps.iter().skip(1).map(|(_, begin)| *begin).chain([end]);
        let step = |(&(name, begin), end): (&(&'static str, Duration), Duration)| Step {
            name: name.to_owned(),
            begin_us: micros(begin),
            took_us: micros(end.saturating_sub(begin)),
        };
        steps.iter().zip(ends).map(step).collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_ends_where_the_next_begins() {
        let stopwatch = Stopwatch::start("a");
        std::thread::sleep(Duration::from_millis(2));
        stopwatch.next("b");
        stopwatch.next("c");
        let steps = stopwatch.stop();
        assert_eq!(steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(steps[0].begin_us == 0 && steps[0].took_us >= 2000);
        for pair in steps.windows(2) {
            // Each is rounded down by itself.
            assert!(pair[1].begin_us - pair[0].end_us() <= 1);
        }
    }
}
