// SPDX-License-Identifier: Apache-2.0
//! Takes checkpoints away, and what dead processes left behind.
//!
//! A checkpoint that goes first gets a temporary name: from then on it does not exist, and if this process dies the
//! next cleaning finishes its work.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::{ListError, Root, Store, TEMPORARY, found};
use crate::beneath;
use crate::id::CheckpointId;
use crate::manifest;
use crate::reference::Lineage;

/// The checkpoint is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such checkpoint.
    #[error("there is no checkpoint {name}; `thaw list` shows what this node has")]
    NotFound {
        /// Its name.
        name: String,
    },
    /// A container lives on it, or somebody reads it.
    #[error(
        "checkpoint {name} is in use: a container that was restored from it still runs; delete its pod first"
    )]
    InUse {
        /// Its name.
        name: String,
    },
    /// A system call failed.
    #[error("cannot {step} {path}", path = path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Store {
    /// Removes a checkpoint that nobody uses, wherever it lies.
    ///
    /// # Errors
    /// All of [`RemoveError`].
    pub fn remove(&self, namespace: &str, lineage: &Lineage, id: &CheckpointId) -> Result<(), RemoveError> {
        let mut removed = false;
        for root in &self.roots {
            removed |= root.remove(namespace, lineage, id)?;
        }
        let name = format!("{namespace}/{lineage}/{id}");
        if removed { Ok(()) } else { Err(RemoveError::NotFound { name }) }
    }

    /// Removes what dead writers and removers left behind, and says how many directories that were.
    ///
    /// # Errors
    /// When a directory cannot be read or removed.
    pub fn clean(&self) -> Result<usize, ListError> {
        let mut cleaned = 0;
        for root in &self.roots {
            root.each_entry(|entry| {
                if entry.name.starts_with(TEMPORARY) {
                    let path = entry.path();
                    cleaned += usize::from(clean(&path).map_err(|source| ListError { path, source })?);
                }
                Ok(())
            })?;
        }
        Ok(cleaned)
    }
}

impl Root {
    fn remove(&self, namespace: &str, lineage: &Lineage, id: &CheckpointId) -> Result<bool, RemoveError> {
        let relative = Path::new(namespace).join(lineage.as_str());
        let path = self.path.join(&relative).join(id.as_str());
        let failed = |step| {
            let path = path.clone();
            move |source: io::Error| RemoveError::Io { step, path, source }
        };
        let Some(parent) = found(beneath::open_dir(self.dir.as_fd(), &relative)).map_err(failed("open"))?
        else {
            return Ok(false);
        };
        let file = Path::new(id.as_str()).join(manifest::FILE);
        let Some(lock) = found(beneath::open_file_rw(parent.as_fd(), &file)).map_err(failed("open"))? else {
            return Ok(false);
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(RemoveError::InUse { name: format!("{namespace}/{lineage}/{id}") });
            }
            Err(error) => return Err(failed("lock")(error.into())),
        }
        let temporary = format!("{TEMPORARY}{id}");
        rustix::fs::renameat(&parent, id.as_str(), &parent, &temporary)
            .and_then(|()| rustix::fs::fsync(&parent))
            .map_err(|error| failed("rename")(error.into()))?;
        let temporary = path.with_file_name(temporary);
        remove_tree(&temporary).map_err(|source| RemoveError::Io {
            step: "remove",
            path: temporary,
            source,
        })?;
        self.remove_empty_parents(&relative);
        Ok(true)
    }

    /// Removes the lineage and the namespace if nothing else is in them.
    pub(super) fn remove_empty_parents(&self, lineage: &Path) {
        for path in lineage.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if rustix::fs::unlinkat(&self.dir, path, rustix::fs::AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
    }
}

/// Removes a temporary directory if its owner is dead.
fn clean(path: &Path) -> io::Result<bool> {
    let Some(dir) = found(super::open_root(path))? else { return Ok(false) };
    // A writer makes and locks this file right after the directory. One that has not come so far will find the
    // file locked or gone, and begins again.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Some(lock) =
        found(rustix::fs::openat(&dir, manifest::FILE, flags, Mode::RUSR | Mode::WUSR).map_err(Into::into))?
    else {
        return Ok(false);
    };
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => remove_tree(path).map(|()| true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes a directory with everything in it; links are removed, not followed.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    found(std::fs::remove_dir_all(path)).map(|_| ())
}
