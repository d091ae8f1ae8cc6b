// SPDX-License-Identifier: Apache-2.0
//! What `thaw node install` did to a node, kept so that all of it can be undone: `/var/lib/thaw/node.json`.
//!
//! It is written before the first change and removed after the last one is undone, so it may name changes that were not
//! made; undoing those changes nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::place::CONF_D;
use super::tree::{Tree, TreeError};

/// Where the record is on a node.
pub(crate) const PATH: &str = "/var/lib/thaw/node.json";

/// All that was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) version: u32,
    /// Files, in the order in which they were changed.
    pub(crate) files: Vec<Recorded>,
    /// Directories that were made, the outermost first.
    pub(crate) folders: Vec<PathBuf>,
}

/// One file that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recorded {
    pub(crate) path: PathBuf,
    pub(crate) change: Kept,
}

impl Recorded {
    /// Whether it makes containerd read a directory of drop-ins.
    pub(crate) fn is_import(&self) -> bool {
        let (Kept::Created(text) | Kept::Inserted(text)) = &self.change;
        text.contains(CONF_D)
    }
}

/// What was done to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kept {
    /// It is ours, with this text.
    Created(String),
    /// This text was put into a file that was there.
    Inserted(String),
}

/// The record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(
        "{PATH} is damaged, so what was installed is not known; remove it, and the files named in \
         docs/operate/troubleshoot.md, by hand"
    )]
    Parse(#[from] serde_json::Error),
    #[error("{PATH} was written by a newer thaw (record version {version}); use that one")]
    Version { version: u32 },
}

/// The version of the format that this thaw writes.
const VERSION: u32 = 1;

impl Record {
    /// Reads a node's record; one that is not there is an empty one.
    pub(crate) fn load(tree: &Tree) -> Result<Self, RecordError> {
        let Some(text) = tree.read(Path::new(PATH))? else { return Ok(Self::default()) };
        let record: Self = serde_json::from_str(&text)?;
        if record.version > VERSION {
            return Err(RecordError::Version { version: record.version });
        }
        Ok(record)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folders.is_empty()
    }

    /// Whether the file at `path` was made by us.
    pub(crate) fn created(&self, path: &Path) -> bool {
        self.files.iter().any(|file| file.path == path && matches!(file.change, Kept::Created(_)))
    }

    /// The files that were made by us.
    pub(crate) fn own_files(&self) -> Vec<PathBuf> {
        self.files.iter().filter(|file| self.created(&file.path)).map(|file| file.path.clone()).collect()
    }

    /// Writes the record; an empty one is removed.
    pub(crate) fn save(&self, tree: &Tree) -> Result<(), TreeError> {
        let path = Path::new(PATH);
        if self.is_empty() {
            return tree.remove(path);
        }
        for folder in tree.missing_folders(path) {
            tree.make_folder(&folder)?;
        }
        let record = Self { version: VERSION, ..self.clone() };
        // The types have string keys only, and cannot fail to become JSON.
        tree.write(path, &(serde_json::to_string_pretty(&record).unwrap_or_default() + "\n"))
    }
}
