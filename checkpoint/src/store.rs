// SPDX-License-Identifier: Apache-2.0
//! The directories that hold checkpoints: `<root>/<namespace>/<lineage>/<id>/`.
//!
//! Who may do what at the same time is settled by `flock` on `manifest.json`:
//!
//! ```text
//!   Writer            exclusive, from birth under a temporary name until the directory has its final name
//!   CheckpointDir     shared, as long as it is held: somebody restores from it or lives on it
//!   remove            exclusive, refused while anybody holds a shared lock
//!   clean             exclusive: whoever gets it on a temporary directory knows that its writer is dead
//! ```
//!
//! The kernel drops the lock of a process that dies, however it dies.
//!
//! Invariants: every component is opened without following a link; a directory with a temporary name, or without a
//! manifest, is no checkpoint; a directory gets its final name by one rename after everything in it is durable.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::config::Config;

mod list;
mod remove;
mod resolve;
mod write;
mod write_container;

pub use list::{Filter, ListError, Listed};
pub use remove::RemoveError;
pub use resolve::{CheckpointDir, ResolveError};
pub use write::{WriteError, Writer};
pub use write_container::ContainerWriter;

/// Directories that are not (or no longer) checkpoints have names that begin so.
pub const TEMPORARY: &str = ".tmp-";

/// The checkpoints that this node can see.
#[derive(Debug)]
pub struct Store {
    /// The roots that exist, in the order of the configuration.
    roots: Vec<Root>,
    /// The roots that do not exist; they hold nothing.
    absent: Vec<PathBuf>,
    shared_namespaces: Vec<String>,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    dir: OwnedFd,
}

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// A root cannot be opened.
    #[error("cannot open the checkpoint root {path} (it must be a directory, and no link)", path = path.display())]
    Open {
        /// The root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A root cannot be made.
    #[error("cannot make the checkpoint root {path}", path = path.display())]
    Create {
        /// The root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than root could plant checkpoints.
    #[error(transparent)]
    Unsafe(#[from] UnsafeDirectory),
}

/// A directory of the store to which others than root could write.
#[derive(Debug, thiserror::Error)]
#[error("{path} {problem}: it must be owned by root and writable by nobody else (chown root, chmod go-w)", path = path.display())]
pub struct UnsafeDirectory {
    /// The directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl Store {
    /// Opens the configured roots; one that does not exist holds nothing.
    ///
    /// # Errors
    /// All of [`OpenStoreError`] but `Create`.
    pub fn open(config: &Config) -> Result<Self, OpenStoreError> {
        let mut store = Self {
            roots: Vec::new(),
            absent: Vec::new(),
            shared_namespaces: config.shared_namespaces.clone(),
        };
        for path in &config.roots {
            match open_root(path) {
                Ok(dir) => {
                    check_safe(&dir, path).map_err(OpenStoreError::Unsafe)?;
                    store.roots.push(Root { path: path.clone(), dir });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => store.absent.push(path.clone()),
                Err(source) => return Err(OpenStoreError::Open { path: path.clone(), source }),
            }
        }
        Ok(store)
    }

    /// As [`Store::open`], but makes the first root (mode 0700) where it does not exist.
    ///
    /// # Errors
    /// All of [`OpenStoreError`].
    pub fn create(config: &Config) -> Result<Self, OpenStoreError> {
        if let Some(path) = config.roots.first() {
            let create = |source| OpenStoreError::Create { path: path.clone(), source };
            if let Some(parent) = path.parent() {
                std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(create)?;
            }
            make_dir(CWD, path).map_err(create)?;
        }
        Self::open(config)
    }
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Makes a directory for root alone, unless it exists.
fn make_dir(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<()> {
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Only root (this process, in a test) may own a directory of the store or write to it.
fn check_safe(dir: impl AsFd, path: &Path) -> Result<(), UnsafeDirectory> {
    let refuse = |problem| Err(UnsafeDirectory { path: path.to_owned(), problem });
    let stat = match rustix::fs::fstat(dir) {
        Ok(stat) => stat,
        Err(error) => return refuse(format!("cannot be examined ({error})")),
    };
    let owner = stat.st_uid;
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return refuse(format!("is owned by user {owner}"));
    }
    if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        return refuse(format!("has mode {:04o}", stat.st_mode & 0o7777));
    }
    Ok(())
}

/// The names of the directories in `dir`, sorted; links and files are no part of the store.
fn directories(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = crate::beneath::names(dir)?;
    names.retain(|(_, kind)| kind.is_dir());
    Ok(names.into_iter().map(|(name, _)| name).collect())
}

/// `None` where there is no such file or directory.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
