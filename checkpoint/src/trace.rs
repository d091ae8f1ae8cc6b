// SPDX-License-Identifier: Apache-2.0
//! Where the time of a restore went: the shim leaves it in the bundle of the container that it restored, and
//! `thaw trace` shows it.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Its name in the bundle.
pub const FILE: &str = "restore-trace.json";
/// The longest that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// One restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container in the pod.
    pub container: String,
    /// `NAMESPACE/LINEAGE/ID` of the checkpoint.
    pub checkpoint: String,
    /// What was done, in order; nothing overlaps.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// When it began, microseconds after containerd asked for the task (Task.Create).
    pub begin_us: u64,
    /// How long it took, microseconds.
    pub took_us: u64,
}

impl Trace {
    /// Leaves it in a bundle.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, bundle: &Path) -> io::Result<()> {
        std::fs::write(bundle.join(FILE), serde_json::to_vec(self)?)
    }

    /// The trace in a bundle; `None` for one of a container that was not restored.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(bundle: &Path) -> io::Result<Option<Self>> {
        let file = match std::fs::File::open(bundle.join(FILE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut json = Vec::new();
        file.take(LIMIT).read_to_end(&mut json)?;
        Ok(Some(serde_json::from_slice(&json)?))
    }

    /// From the first step's begin to the last one's end, microseconds.
    #[must_use]
    pub fn total_us(&self) -> u64 {
        self.steps.iter().map(Step::end_us).max().unwrap_or(0)
    }
}

impl Step {
    /// When it ended, microseconds after containerd asked for the task.
    #[must_use]
    pub fn end_us(&self) -> u64 {
        self.begin_us.saturating_add(self.took_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_in_a_bundle_is_found_there() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Trace::read(bundle.path()).unwrap(), None);
        let step = |name: &str, begin_us, took_us| Step { name: name.to_owned(), begin_us, took_us };
        let trace = Trace {
            namespace: "n".to_owned(),
            pod: "p".to_owned(),
            container: "c".to_owned(),
            checkpoint: "n/p/i".to_owned(),
            steps: vec![step("a", 0, 20), step("b", 20, 5)],
        };
        trace.write(bundle.path()).unwrap();
        assert_eq!(Trace::read(bundle.path()).unwrap().unwrap(), trace);
        assert_eq!(trace.total_us(), 25);
        std::fs::write(bundle.path().join(FILE), "{}").unwrap();
        assert!(Trace::read(bundle.path()).is_err());
    }
}
