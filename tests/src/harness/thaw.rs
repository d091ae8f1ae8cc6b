// SPDX-License-Identifier: Apache-2.0
//! The `thaw` command, and the store that it writes to.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{HarnessError, process};
use crate::kubelet::state::PodState;

/// Where checkpoints are by default.
pub const STORE: &str = "/var/lib/thaw/checkpoints";

/// What `thaw import --json` and `thaw checkpoint --json` print: the name of a checkpoint.
#[derive(Debug, Clone, Deserialize)]
pub struct Imported {
    /// The Kubernetes namespace that it belongs to.
    pub namespace: String,
    /// The line of checkpoints.
    pub lineage: String,
    /// The checkpoint's own id.
    pub id: String,
}

impl Imported {
    /// As a pod of another lineage names it: `<lineage>/<id>`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}/{}", self.lineage, self.id)
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Path::new(STORE).join(&self.namespace).join(&self.lineage).join(&self.id)
    }
}

/// Imports archives of one pod as one checkpoint.
///
/// # Errors
/// What `thaw` says.
pub fn import(archives: &[PathBuf]) -> Result<Imported, HarnessError> {
    let paths: Vec<_> = archives.iter().map(|path| path.to_string_lossy()).collect();
    let mut arguments = vec!["import", "--json"];
    arguments.extend(paths.iter().map(|path| &**path));
    let said = process::output("thaw", &arguments)?;
    serde_json::from_str(&said).map_err(|_| HarnessError::answer("thaw import --json", said))
}

/// Freezes a whole pod into a checkpoint.
///
/// # Errors
/// What `thaw` says.
pub fn checkpoint(state: &PodState, arguments: &[&str]) -> Result<Imported, HarnessError> {
    let pod = format!("{}/{}", state.pod.metadata.namespace, state.pod.metadata.name);
    let mut words = vec!["checkpoint", "--json", pod.as_str()];
    words.extend(arguments);
    let said = process::output("thaw", &words)?;
    serde_json::from_str(&said).map_err(|_| HarnessError::answer("thaw checkpoint --json", said))
}

/// Removes every checkpoint of a namespace.
///
/// # Errors
/// When one cannot be removed.
pub fn remove_namespace(namespace: &str) -> Result<(), HarnessError> {
    let dir = Path::new(STORE).join(namespace);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(HarnessError::file("remove", &dir, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
