// SPDX-License-Identifier: Apache-2.0
//! Changes an overlay upper directory so that it stands for one more layer on top of what it stood for.
//!
//! Invariant: what the layer being applied has made itself is never hidden by that layer's own deletions.
//! Source: OCI image-spec layer.md: "Whiteout files MUST only apply to resources in lower/parent layers".

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::{Existing, OPAQUE_XATTR, OPAQUE_YES, above, existing};
use crate::beneath;

/// The mode of a directory of which nothing is known.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

pub(super) struct Upper<'a> {
    root: BorrowedFd<'a>,
    /// What the layer being applied made, and every directory on the way to it.
    own: HashSet<PathBuf>,
    /// Directories that had to be made without anything being known of them.
    implied: BTreeSet<PathBuf>,
}

impl<'a> Upper<'a> {
    /// `implied`: what earlier layers left so.
    pub(super) fn new(root: BorrowedFd<'a>, implied: BTreeSet<PathBuf>) -> Self {
        Self { root, own: HashSet::new(), implied }
    }

    /// The directories of which still nothing is known, as far as they are still there.
    pub(super) fn into_implied(mut self) -> BTreeSet<PathBuf> {
        let mut implied = std::mem::take(&mut self.implied);
        implied.retain(|path| self.open_dir(path).is_ok());
        implied
    }

    /// Notes that the layer says what this directory is like.
    pub(super) fn describe(&mut self, path: &Path) {
        self.implied.remove(path);
    }

    /// Notes that the layer has this path.
    pub(super) fn made(&mut self, path: &Path) {
        for path in path.ancestors() {
            if !self.own.insert(path.to_owned()) {
                break;
            }
        }
    }

    pub(super) fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        beneath::open_dir(self.root, if path.as_os_str().is_empty() { Path::new(".") } else { path })
    }

    /// Whether there is something at `path`.
    pub(super) fn holds(&self, path: &Path) -> bool {
        let found =
            self.open_dir(above(path)).and_then(|dir| existing(&dir, path.file_name().unwrap_or_default()));
        found.is_ok_and(|found| found != Existing::Nothing)
    }

    /// Opens the directory that `path` lies in, and makes what is missing of it.
    pub(super) fn parent(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let parent = above(path);
        if let Ok(dir) = self.open_dir(parent) {
            return Ok(dir);
        }
        let (mut dir, mut at) = (self.open_dir(Path::new(""))?, PathBuf::new());
        for name in parent {
            at.push(name);
            match existing(&dir, name)? {
                Existing::Directory => {}
                Existing::Nothing => {
                    make_directory(&dir, name)?;
                    self.implied.insert(at.clone());
                }
                Existing::Whiteout => {
                    rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
                    make_directory(&dir, name)?;
                    set_opaque(&beneath::open_dir(dir.as_fd(), name)?)?;
                }
                Existing::Other => {
                    return Err(io::Error::new(
                        io::ErrorKind::NotADirectory,
                        format!("{} is not a directory", at.display()),
                    ));
                }
            }
            dir = beneath::open_dir(dir.as_fd(), name)?;
        }
        Ok(dir)
    }

    /// Makes sure that there is a directory, and opens the one that it lies in.
    pub(super) fn directory(&mut self, path: &Path, name: &OsStr) -> io::Result<OwnedFd> {
        let parent = self.parent(path)?;
        match existing(&parent, name)? {
            Existing::Directory => {}
            Existing::Nothing => {
                make_directory(&parent, name)?;
                self.implied.insert(path.to_owned());
            }
            // Both hid whatever lies below them, so the directory must.
            Existing::Whiteout | Existing::Other => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                make_directory(&parent, name)?;
                set_opaque(&beneath::open_dir(parent.as_fd(), name)?)?;
            }
        }
        self.made(path);
        Ok(parent)
    }

    /// Makes room for something that is not a directory, and opens the directory that it goes into.
    pub(super) fn room(&mut self, path: &Path, name: &OsStr) -> io::Result<OwnedFd> {
        let parent = self.parent(path)?;
        remove(&parent, name)?;
        self.made(path);
        Ok(parent)
    }

    /// Hides what lower layers have at `path`.
    pub(super) fn whiteout(&mut self, path: &Path, name: &OsStr) -> io::Result<()> {
        if self.own.contains(path) {
            // The layer puts something new in the place of what it deletes.
            return match existing(self.parent(path)?, name)? {
                Existing::Directory => self.opaque(path),
                Existing::Nothing | Existing::Whiteout | Existing::Other => Ok(()),
            };
        }
        if self.hidden_below(path)? {
            return Ok(());
        }
        let parent = self.parent(path)?;
        remove(&parent, name)?;
        if !self.opaque_above(path)? {
            rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)?;
        }
        Ok(())
    }

    /// Makes the directory hide what lower layers have in it, and takes out what they put into this one.
    pub(super) fn opaque(&mut self, path: &Path) -> io::Result<()> {
        self.clear(path)?;
        match path.file_name() {
            // The top of the layer: everything below is hidden by the directory itself.
            None => set_opaque(self.root),
            Some(name) => set_opaque(beneath::open_dir(self.directory(path, name)?.as_fd(), name)?),
        }
    }

    /// Removes everything in the directory that the layer being applied did not make.
    fn clear(&self, path: &Path) -> io::Result<()> {
        let dir = match self.open_dir(path) {
            Ok(dir) => dir,
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                    _ => Err(error),
                };
            }
        };
        for (name, kind) in beneath::names(dir.as_fd())? {
            let child = path.join(&name);
            if !self.own.contains(&child) {
                remove(&dir, &name)?;
            } else if kind.is_dir() {
                self.clear(&child)?;
            }
        }
        Ok(())
    }

    /// Whether something that is no directory stands on the way to `path`, so that there is nothing to hide.
    fn hidden_below(&self, path: &Path) -> io::Result<bool> {
        let mut dir = self.open_dir(Path::new(""))?;
        for name in above(path) {
            match existing(&dir, name)? {
                Existing::Directory => dir = beneath::open_dir(dir.as_fd(), name)?,
                Existing::Nothing => return Ok(false),
                Existing::Whiteout | Existing::Other => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Whether a directory on the way to `path` hides all lower layers. A whiteout in such a directory would be
    /// pointless, and overlayfs would show it: it only filters whiteouts out of directories that it merges.
    fn opaque_above(&self, path: &Path) -> io::Result<bool> {
        for dir in path.ancestors().skip(1) {
            if is_opaque(self.open_dir(dir)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn make_directory(parent: impl AsFd, name: &OsStr) -> io::Result<()> {
    rustix::fs::mkdirat(&parent, name, IMPLIED_MODE)?;
    // The umask has taken bits away.
    Ok(rustix::fs::fchmod(beneath::open_dir(parent.as_fd(), name)?, IMPLIED_MODE)?)
}

fn set_opaque(dir: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(dir, OPAQUE_XATTR, OPAQUE_YES, XattrFlags::empty())?)
}

/// Whether the directory hides what lies below it.
pub(super) fn is_opaque(dir: impl AsFd) -> io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(dir, OPAQUE_XATTR, &mut value) {
        Ok(_) => Ok(value == OPAQUE_YES),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes whatever has this name; links are removed, not followed.
pub(super) fn remove(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => std::fs::remove_dir_all(beneath::proc_path(dir, name)),
        Err(error) => Err(error.into()),
    }
}
