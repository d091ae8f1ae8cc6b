// SPDX-License-Identifier: Apache-2.0
//! What the store holds.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::{Root, Store, directories, found};
use crate::beneath;
use crate::id::CheckpointId;
use crate::manifest::{self, Manifest, ManifestError};
use crate::reference::{Lineage, is_dns_label};

/// Which checkpoints to list; a field that is `None` leaves nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Of this lineage.
    pub lineage: Option<Lineage>,
    /// With this id.
    pub id: Option<CheckpointId>,
}

/// One checkpoint of a list.
#[derive(Debug)]
pub struct Listed {
    /// Where it lies.
    pub path: PathBuf,
    /// Its namespace.
    pub namespace: String,
    /// Its lineage.
    pub lineage: Lineage,
    /// Its id.
    pub id: CheckpointId,
    /// What it consists of, or why that cannot be said.
    pub manifest: Result<Manifest, ManifestError>,
}

/// The store cannot be listed or cleaned.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {path}", path = path.display())]
pub struct ListError {
    /// The directory or file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Store {
    /// All checkpoints that the filter leaves, by namespace, lineage and time; within one root after the other.
    ///
    /// # Errors
    /// When a directory cannot be read. A manifest that cannot be read or makes no sense is in the list, as such.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Listed>, ListError> {
        let mut all = Vec::new();
        for root in &self.roots {
            root.each_entry(|entry| {
                let Ok(id) = entry.name.parse::<CheckpointId>() else { return Ok(()) };
                let wanted = filter.namespace.as_ref().is_none_or(|namespace| namespace == entry.namespace)
                    && filter.lineage.as_ref().is_none_or(|lineage| lineage == entry.lineage)
                    && filter.id.as_ref().is_none_or(|wanted| *wanted == id);
                if wanted && let Some(manifest) = entry.manifest() {
                    all.push(Listed {
                        path: entry.path(),
                        namespace: entry.namespace.to_owned(),
                        lineage: entry.lineage.clone(),
                        id,
                        manifest,
                    });
                }
                Ok(())
            })?;
        }
        Ok(all)
    }
}

/// One directory at the depth of checkpoints, whatever its name.
pub(super) struct Entry<'a> {
    root: &'a Root,
    pub(super) namespace: &'a str,
    pub(super) lineage: &'a Lineage,
    pub(super) name: &'a str,
}

impl Entry<'_> {
    /// Its absolute path.
    pub(super) fn path(&self) -> PathBuf {
        self.root.path.join(self.relative())
    }

    fn relative(&self) -> PathBuf {
        [self.namespace, self.lineage.as_str(), self.name].iter().collect()
    }

    fn manifest(&self) -> Option<Result<Manifest, ManifestError>> {
        let path = self.relative().join(manifest::FILE);
        match found(beneath::read(self.root.dir.as_fd(), &path, manifest::LIMIT_BYTES)) {
            Ok(json) => json.map(|json| Manifest::parse(&json)),
            Err(error) => Some(Err(ManifestError::Read(error))),
        }
    }
}

impl Root {
    /// Calls `visit` for every directory at the depth of checkpoints. What vanishes meanwhile is passed over.
    pub(super) fn each_entry(
        &self,
        mut visit: impl FnMut(&Entry<'_>) -> Result<(), ListError>,
    ) -> Result<(), ListError> {
        for namespace in self.children(&PathBuf::from("."))?.iter().filter(|name| is_dns_label(name)) {
            for name in self.children(&PathBuf::from(namespace))? {
                let Ok(lineage) = name.parse::<Lineage>() else { continue };
                for name in self.children(&PathBuf::from(namespace).join(lineage.as_str()))? {
                    visit(&Entry { root: self, namespace, lineage: &lineage, name: &name })?;
                }
            }
        }
        Ok(())
    }

    fn children(&self, path: &PathBuf) -> Result<Vec<String>, ListError> {
        let names = found(beneath::open_dir(self.dir.as_fd(), path))
            .and_then(|dir| dir.map_or_else(|| Ok(Vec::new()), |dir| directories(dir.as_fd())))
            .map_err(|source| ListError { path: self.path.join(path), source })?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }
}
