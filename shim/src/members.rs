// SPDX-License-Identifier: Apache-2.0
//! The record of a pod's containers in the sandbox's bundle: `members/<id>`, whose content is the container's
//! cgroup path.
//!
//! When a shim dies, containerd removes the bundles of the pod's containers by itself and runs `delete` for the
//! sandbox alone: what else the shim had started is known from here.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::TaskError;

const DIRECTORY: &str = "members";

/// Notes container `id`, before anything of it exists. `sandbox` is the bundle of the sandbox.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn note(sandbox: &Path, id: &str, cgroup: Option<&Path>) -> Result<(), TaskError> {
    let directory = sandbox.join(DIRECTORY);
    let made = match std::fs::create_dir(&directory) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        Ok(()) | Err(_) => Ok(()),
    };
    let path = cgroup.map(|path| path.display().to_string()).unwrap_or_default();
    made.and_then(|()| std::fs::write(directory.join(id), path)).map_err(TaskError::io("note the container"))
}

/// Forgets container `id`, after nothing of it is left.
pub(crate) fn forget(sandbox: &Path, id: &str) {
    if let Err(e) = std::fs::remove_file(sandbox.join(DIRECTORY).join(id)) {
        log::debug!("container {id} was not noted: {e}");
    }
}

/// The containers that are noted, with their cgroup paths.
pub(crate) fn list(sandbox: &Path) -> Vec<(String, Option<PathBuf>)> {
    let Ok(entries) = std::fs::read_dir(sandbox.join(DIRECTORY)) else { return Vec::new() };
    let noted = entries.flatten().filter_map(|entry| {
        let cgroup = std::fs::read_to_string(entry.path()).ok()?;
        let cgroup = (!cgroup.is_empty()).then(|| PathBuf::from(cgroup));
        Some((entry.file_name().into_string().ok()?, cgroup))
    });
    noted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_listed_until_it_is_forgotten() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(list(bundle.path()), []);
        note(bundle.path(), "a", Some(Path::new("/kubepods/a"))).unwrap();
        note(bundle.path(), "b", None).unwrap();
        forget(bundle.path(), "b");
        forget(bundle.path(), "never-noted");
        assert_eq!(list(bundle.path()), [("a".to_owned(), Some(PathBuf::from("/kubepods/a")))]);
    }
}
