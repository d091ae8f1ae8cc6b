// SPDX-License-Identifier: Apache-2.0
//! What the node's plugin noted in the container's annotations: facts, and what it knows against a restore.
//!
//! Invariant: no note ever allows anything. They change what an error says, or add one; and one that comes from the
//! pod itself fails the container.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use ::checkpoint::annotation::{AnnotationError, AnnotationErrors, INTERNAL, PREPARED, REFUSED};
use oci_spec::runtime::Spec;

/// The notes of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// The checkpoint that the plugin has prepared the container for.
    pub(crate) prepared: Option<String>,
    /// What it knows against the restore.
    pub(crate) refused: Option<String>,
    all: BTreeMap<String, String>,
}

/// The notes cannot be believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotesError {
    /// The pod has set them itself.
    #[error(transparent)]
    Forged(#[from] AnnotationErrors),
    /// What the pod has set cannot be read.
    #[error("cannot read the sandbox's config.json: {0}")]
    Sandbox(#[from] io::Error),
}

impl Notes {
    /// The notes, and all other annotations.
    pub(crate) fn split(annotations: &HashMap<String, String>) -> (Self, BTreeMap<&str, &str>) {
        let pairs = annotations.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let (notes, asked): (BTreeMap<_, _>, BTreeMap<_, _>) =
            pairs.partition(|(key, _)| key.starts_with(INTERNAL));
        let all: BTreeMap<String, String> =
            notes.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let notes = Self { prepared: all.get(PREPARED).cloned(), refused: all.get(REFUSED).cloned(), all };
        (notes, asked)
    }

    /// Plugins adjust containers and never sandboxes, so a note that the sandbox has as well is the pod's own.
    ///
    /// # Errors
    /// [`NotesError`], with all keys that the pod has set.
    pub(crate) fn are_not_the_pods(&self, sandbox: &Path) -> Result<(), NotesError> {
        if self.all.is_empty() {
            return Ok(());
        }
        let spec = std::fs::read(sandbox.join("config.json"))?;
        let spec: Spec = serde_json::from_slice(&spec).map_err(io::Error::from)?;
        let pods = spec.annotations().clone().unwrap_or_default();
        let forged = self.all.iter().filter(|(key, value)| pods.get(*key) == Some(value));
        let forged: Vec<_> = forged.map(|(key, _)| AnnotationError::Reserved { key: key.clone() }).collect();
        if forged.is_empty() { Ok(()) } else { Err(AnnotationErrors(forged).into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(annotations: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let spec = format!(r#"{{"ociVersion": "1.2.0", "annotations": {annotations}}}"#);
        std::fs::write(dir.path().join("config.json"), spec).unwrap();
        dir
    }

    fn notes(pairs: &[(&str, &str)]) -> Notes {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Notes::split(&annotations).0
    }

    #[test]
    fn the_plugins_notes_are_told_from_the_pods() {
        let noted = notes(&[(PREPARED, "team/a/1"), (REFUSED, "no"), ("thaw.dev/restore", "latest")]);
        assert_eq!((noted.prepared.as_deref(), noted.refused.as_deref()), (Some("team/a/1"), Some("no")));
        for pods in
            ["{}", r#"{"thaw.dev/internal.prepared": "another"}"#, r#"{"thaw.dev/restore": "latest"}"#]
        {
            noted.are_not_the_pods(sandbox(pods).path()).unwrap();
        }
        let forged =
            sandbox(r#"{"thaw.dev/internal.prepared": "team/a/1", "thaw.dev/internal.refused": "no"}"#);
        let error = noted.are_not_the_pods(forged.path()).unwrap_err().to_string();
        assert!(error.contains(PREPARED) && error.contains(REFUSED) && error.contains("reserved"), "{error}");
    }

    #[test]
    fn without_notes_nothing_is_read_and_with_them_the_sandbox_must_be_known() {
        let nowhere = Path::new("/nonexistent");
        notes(&[("thaw.dev/restore", "latest")]).are_not_the_pods(nowhere).unwrap();
        assert!(notes(&[(PREPARED, "x")]).are_not_the_pods(nowhere).is_err());
    }
}
