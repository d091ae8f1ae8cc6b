// SPDX-License-Identifier: Apache-2.0
//! Lays an upper directory onto a root file system that is no overlay, so that it becomes what an overlay of both would
//! show. Contents are shared with the layer where the file system can do that (reflinks), else copied.
//!
//! What was there is moved aside and not removed: until [`Laid::keep`] all can be put back.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timestamps, statat};

use super::attributes::Attributes;
use super::upper::{is_opaque, remove};
use super::{DEPTH_MAX, Existing, above, existing, sparse};
use crate::beneath;

/// Where what was there goes meanwhile: a directory at the top, which only root may enter.
const ASIDE: &str = ".thaw-aside";

/// The layer cannot be laid onto the root file system.
#[derive(Debug, thiserror::Error)]
#[error("cannot lay {path:?} of the layer onto the root file system")]
pub struct LayError {
    path: PathBuf,
    source: io::Error,
}

/// A layer that lies on a root file system; on drop all is as it was before, unless kept.
#[derive(Debug)]
pub struct Laid {
    root: OwnedFd,
    changes: Vec<Change>,
    moved: u64,
    kept: bool,
    /// Bytes of files that share their content with the layer.
    pub shared: u64,
    /// Bytes of files that were copied.
    pub copied: u64,
}

#[derive(Debug)]
enum Change {
    /// Something that was not there.
    Made(PathBuf),
    /// Something that lies aside under this number.
    Moved(PathBuf, u64),
    /// A directory that had these attributes.
    Changed(PathBuf, Attributes),
}

/// Lays the upper directory `layer` onto the root file system `root`; of the directories `implied` the layer says nothing
/// but that they are there.
///
/// # Errors
/// When something cannot be read or written; all is as it was then.
pub fn lay(layer: BorrowedFd<'_>, root: OwnedFd, implied: &[String]) -> Result<Laid, LayError> {
    let failed = |source: io::Error| LayError { path: PathBuf::new(), source };
    let top = root.try_clone().map_err(failed)?;
    rustix::fs::mkdirat(&root, ASIDE, Mode::RWXU)
        .map_err(|error| LayError { path: ASIDE.into(), source: error.into() })?;
    let mut laid = Laid { root, changes: Vec::new(), moved: 0, kept: false, shared: 0, copied: 0 };
    let mut layout = Layout { laid: &mut laid, implied, links: HashMap::new(), shares: true };
    if is_opaque(layer).map_err(failed)? {
        layout.clear(&top, Path::new("")).map_err(failed)?;
    }
    layout.entries(layer, &top, Path::new(""), false)?;
    Ok(laid)
}

impl Laid {
    /// Leaves it as it is, and removes what it has replaced.
    ///
    /// # Errors
    /// When that cannot be removed; it stays in a directory that only root can enter.
    pub fn keep(mut self) -> io::Result<()> {
        self.kept = true;
        remove(&self.root, OsStr::new(ASIDE))
    }

    /// Moves aside what has this name, if there is something.
    fn move_aside(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        let aside = beneath::open_dir(self.root.as_fd(), ASIDE)?;
        match rustix::fs::renameat(dir, name, aside, self.moved.to_string()) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            moved => {
                moved?;
                self.changes.push(Change::Moved(path.to_owned(), self.moved));
                self.moved += 1;
                Ok(())
            }
        }
    }

    fn undo(&self, change: &Change) -> io::Result<()> {
        let open = |path: &Path| beneath::open_dir(self.root.as_fd(), Path::new(".").join(above(path)));
        let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
        match change {
            Change::Made(path) => remove(&open(path)?, &name(path)),
            Change::Moved(path, number) => {
                let aside = beneath::open_dir(self.root.as_fd(), ASIDE)?;
                Ok(rustix::fs::renameat(aside, number.to_string(), open(path)?, name(path))?)
            }
            Change::Changed(path, attributes) => {
                let parent = open(path)?;
                attributes.replace(&parent, &name(path))?;
                set_time(&parent, &name(path), attributes)
            }
        }
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // What cannot be put back goes with the container.
        for change in std::mem::take(&mut self.changes).iter().rev() {
            let _ = self.undo(change);
        }
        let _ = remove(&self.root, OsStr::new(ASIDE));
    }
}

/// The work.
struct Layout<'a> {
    laid: &'a mut Laid,
    implied: &'a [String],
    /// Where the first name of a file with several is.
    links: HashMap<(u64, u64), PathBuf>,
    /// Whether contents can be shared, as far as is known.
    shares: bool,
}

impl Layout<'_> {
    /// Lays what is in `from` into `to`, which is new itself if `fresh`: then nothing in it needs to be undone.
    fn entries(
        &mut self,
        from: BorrowedFd<'_>,
        to: &OwnedFd,
        path: &Path,
        fresh: bool,
    ) -> Result<(), LayError> {
        let failed = |source| LayError { path: path.to_owned(), source };
        if path.components().count() > DEPTH_MAX {
            return Err(failed(io::Error::other("it lies too deep")));
        }
        let names = beneath::names(from).map_err(failed)?;
        for (name, _) in names {
            let child = path.join(&name);
            let failed = |source| LayError { path: child.clone(), source };
            match existing(from, &name).map_err(failed)? {
                Existing::Nothing => {}
                Existing::Whiteout => self.laid.move_aside(to, &name, &child).map_err(failed)?,
                Existing::Directory => self.directory(from, to, &name, &child, fresh)?,
                Existing::Other => {
                    self.laid.move_aside(to, &name, &child).map_err(failed)?;
                    self.note_made(&child, fresh);
                    self.other(from, to, &name, &child).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    fn note_made(&mut self, path: &Path, fresh: bool) {
        if !fresh {
            self.laid.changes.push(Change::Made(path.to_owned()));
        }
    }

    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: &OwnedFd,
        name: &OsStr,
        path: &Path,
        fresh: bool,
    ) -> Result<(), LayError> {
        let failed = |source: io::Error| LayError { path: path.to_owned(), source };
        let stat = |dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed(error.into()));
        let layer = beneath::open_dir(from, name).map_err(failed)?;
        let attributes = Attributes::read(from, name, &stat(from)?).map_err(failed)?;
        let there = existing(to, name).map_err(failed)?;
        let (held, fresh) = if there == Existing::Directory {
            let held = Attributes::read(to.as_fd(), name, &stat(to.as_fd())?).map_err(failed)?;
            self.laid.changes.push(Change::Changed(path.to_owned(), held.clone()));
            (Some(held), fresh)
        } else {
            self.laid.move_aside(to, name, path).map_err(failed)?;
            self.note_made(path, fresh);
            rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(|error| failed(error.into()))?;
            (None, true)
        };
        let target = beneath::open_dir(to.as_fd(), name).map_err(failed)?;
        if is_opaque(&layer).map_err(failed)? {
            self.clear(&target, path).map_err(failed)?;
        }
        self.entries(layer.as_fd(), &target, path, fresh)?;
        // Of one that is only on the way to something else nothing is known.
        let implied = self.implied.iter().any(|implied| Path::new(implied) == path);
        let attributes = held.filter(|_| implied).unwrap_or(attributes);
        attributes.replace(to, name).and_then(|()| set_time(to, name, &attributes)).map_err(failed)
    }

    /// Moves aside all that is in a directory.
    fn clear(&mut self, dir: &OwnedFd, path: &Path) -> io::Result<()> {
        for (name, _) in beneath::names(dir.as_fd())? {
            if !(path.as_os_str().is_empty() && name == ASIDE) {
                self.laid.move_aside(dir, &name, &path.join(&name))?;
            }
        }
        Ok(())
    }

    /// Makes what is no directory.
    fn other(&mut self, from: BorrowedFd<'_>, to: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let dir = beneath::open_dir(self.laid.root.as_fd(), Path::new(".").join(above(first)))?;
                let first = first.file_name().unwrap_or_default();
                return Ok(rustix::fs::linkat(dir, first, to, name, AtFlags::empty())?);
            }
            self.links.insert(key, path.to_owned());
        }
        match kind {
            FileType::RegularFile => self.file(from, to, name, &stat)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target.as_c_str(), to, name)?;
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                rustix::fs::mknodat(to, name, kind, Mode::empty(), stat.st_rdev)?;
            }
            FileType::Directory | FileType::Socket | FileType::Unknown => return Ok(()),
        }
        Attributes::read(from, name, &stat)?.set(beneath::handle(to.as_fd(), name)?)
    }

    fn file(&mut self, from: BorrowedFd<'_>, to: &OwnedFd, name: &OsStr, stat: &Stat) -> io::Result<()> {
        let mut source = beneath::open_file(from, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut target = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
        if stat.st_size == 0 {
            return Ok(());
        }
        self.shares = self.shares && rustix::fs::ioctl_ficlone(&target, &source).is_ok();
        if self.shares {
            self.laid.shared = self.laid.shared.saturating_add(stat.st_size.try_into().unwrap_or(0));
        } else {
            let copied = sparse::copy(&mut source, &mut target)?;
            self.laid.copied = self.laid.copied.saturating_add(copied);
        }
        Ok(())
    }
}

fn set_time(parent: &OwnedFd, name: &OsStr, attributes: &Attributes) -> io::Result<()> {
    let times = Timestamps { last_access: attributes.time, last_modification: attributes.time };
    Ok(rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use rustix::fs::XattrFlags;

    use super::*;

    /// Every path beneath a folder, with mode, owner, time and content.
    fn all(dir: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let mut todo = vec![dir.to_owned()];
        while let Some(at) = todo.pop() {
            for entry in std::fs::read_dir(&at).unwrap() {
                let path = entry.unwrap().path();
                let meta = std::fs::symlink_metadata(&path).unwrap();
                let content = match meta.file_type() {
                    kind if kind.is_symlink() => std::fs::read_link(&path).unwrap().display().to_string(),
                    kind if kind.is_file() => std::fs::read_to_string(&path).unwrap(),
                    _ => String::new(),
                };
                if meta.is_dir() {
                    todo.push(path.clone());
                }
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                let (mode, owner, time) = (meta.mode(), meta.uid(), meta.mtime());
                lines.push(format!("{name} {mode:o} {owner} {time} {content}"));
            }
        }
        lines.sort();
        lines
    }

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    /// An image's root file system, and a layer with every kind of change.
    fn both() -> (tempfile::TempDir, tempfile::TempDir) {
        let (root, layer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(
            root.path(),
            &[
                ("etc/kept", "kept"),
                ("etc/changed", "old"),
                ("etc/gone", "gone"),
                ("opt/a/deep", "deep"),
                ("srv/one", "1"),
                ("file", "file"),
                ("tmp/t", "t"),
            ],
        );
        std::os::unix::fs::symlink("/outside", root.path().join("link")).unwrap();
        std::fs::set_permissions(root.path().join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        let at = |path: &str| layer.path().join(path);
        write(
            layer.path(),
            &[
                ("etc/changed", "new"),
                ("etc/made/here", "made"),
                ("opt/only", "only"),
                ("srv", "a file"),
                ("file/inside", "inside"),
                ("link/inside", "in"),
                ("tmp/more", "more"),
            ],
        );
        std::fs::hard_link(at("etc/made/here"), at("etc/second")).unwrap();
        std::os::unix::fs::symlink("changed", at("etc/points")).unwrap();
        std::fs::set_permissions(at("etc"), PermissionsExt::from_mode(0o750)).unwrap();
        let etc = File::open(at("etc")).unwrap();
        rustix::fs::mknodat(&etc, "gone", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        rustix::fs::mknodat(&etc, "never", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        rustix::fs::mknodat(&etc, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        rustix::fs::setxattr(at("opt"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        (root, layer)
    }

    fn laid(root: &Path, layer: &Path) -> Result<Laid, LayError> {
        lay(File::open(layer).unwrap().as_fd(), File::open(root).unwrap().into(), &["tmp".to_owned()])
    }

    #[test]
    fn the_root_file_system_becomes_what_an_overlay_would_show() {
        let (root, layer) = both();
        let laid = laid(root.path(), layer.path()).unwrap();
        assert!(laid.shared + laid.copied > 20);
        laid.keep().unwrap();
        let at = |path: &str| root.path().join(path);
        let text = |path: &str| std::fs::read_to_string(at(path)).unwrap();
        assert_eq!(
            (text("etc/kept"), text("etc/changed"), text("etc/points")),
            ("kept".into(), "new".into(), "new".into())
        );
        assert!(!at("etc/gone").exists() && !at("etc/never").exists() && !at("opt/a").exists());
        assert_eq!(
            (text("opt/only"), text("srv"), text("file/inside")),
            ("only".into(), "a file".into(), "inside".into())
        );
        assert!(
            at("link").symlink_metadata().unwrap().is_dir(),
            "the link of the image is replaced, not followed"
        );
        assert_eq!(at("etc/second").metadata().unwrap().ino(), at("etc/made/here").metadata().unwrap().ino());
        assert_eq!(at("etc").metadata().unwrap().mode() & 0o7777, 0o750);
        assert_eq!(at("tmp").metadata().unwrap().mode() & 0o7777, 0o1777, "nothing was known of it");
        assert_eq!(
            at("etc").metadata().unwrap().mtime(),
            layer.path().join("etc").metadata().unwrap().mtime()
        );
        assert!(!at(ASIDE).exists());
    }

    #[test]
    fn without_being_kept_all_is_as_it_was() {
        let (root, layer) = both();
        let before = all(root.path());
        drop(laid(root.path(), layer.path()).unwrap());
        assert_eq!(all(root.path()), before);
    }

    #[test]
    fn what_cannot_be_laid_leaves_all_as_it_was() {
        let (root, layer) = both();
        let before = all(root.path());
        rustix::fs::setxattr(
            layer.path().join("tmp/more"),
            "trusted.overlay.redirect",
            b"/x",
            XattrFlags::empty(),
        )
        .unwrap();
        let error = laid(root.path(), layer.path()).unwrap_err();
        assert!(error.to_string().contains("tmp/more"), "{error}");
        assert_eq!(all(root.path()), before);
    }

    #[test]
    fn an_opaque_layer_leaves_nothing_of_the_image() {
        let (root, layer) = both();
        rustix::fs::setxattr(layer.path(), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        laid(root.path(), layer.path()).unwrap().keep().unwrap();
        assert!(!root.path().join("etc/kept").exists() && root.path().join("etc/changed").exists());
    }
}
