// SPDX-License-Identifier: Apache-2.0
//! Writes one checkpoint: under a temporary name first, visible by one rename at the end.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use sha2::{Digest, Sha256};

use super::remove::remove_tree;
use super::{Root, Store, TEMPORARY, make_dir};
use crate::beneath;
use crate::container_dir::IMAGES;
use crate::id::CheckpointId;
use crate::manifest::{self, File, Manifest};
use crate::reference::Lineage;

/// How often to begin again when somebody cleans away the directory that was just made.
const BEGIN_ATTEMPTS: u32 = 8;
/// How long to wait before that.
const BEGIN_PAUSE: Duration = Duration::from_millis(10);
/// How much is copied at a time, in bytes: as large as the kernel's pages of the page cache get. What is written at once
/// lies in one, and is copied into the memory of a container that much more quickly.
const BUFFER_BYTES: usize = 2 << 20;
/// Files of a checkpoint can be read by root alone: they hold what was in memory.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The checkpoint cannot be written; nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is one with the same id, or one is being written.
    #[error("checkpoint {path} exists already, or is being written", path = path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The store has no root.
    #[error("the store has no root that exists")]
    NoRoot,
    /// The file cannot be part of a checkpoint.
    #[error("{name:?} is not a name that a file of a checkpoint can have")]
    Name {
        /// The name.
        name: String,
    },
    /// What is to be copied cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
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

/// A checkpoint that does not exist yet. Dropped before it is published, it leaves nothing behind.
#[derive(Debug)]
pub struct Writer<'a> {
    root: &'a Root,
    /// `<namespace>/<lineage>`.
    relative: PathBuf,
    id: CheckpointId,
    parent: OwnedFd,
    dir: OwnedFd,
    /// The manifest, empty until the end. Its lock says that we live.
    manifest: std::fs::File,
    published: bool,
}

impl Store {
    /// Begins a checkpoint in the first root.
    ///
    /// # Errors
    /// All of [`WriteError`] but `Name` and `Read`.
    pub fn begin(
        &self,
        namespace: &str,
        lineage: &Lineage,
        id: CheckpointId,
    ) -> Result<Writer<'_>, WriteError> {
        let root = self.roots.first().ok_or(WriteError::NoRoot)?;
        if !crate::reference::is_dns_label(namespace) {
            return Err(WriteError::Name { name: namespace.to_owned() });
        }
        let relative = Path::new(namespace).join(lineage.as_str());
        let path = root.path.join(&relative).join(id.as_str());
        let mut attempt = 1;
        loop {
            let begun = begin(root, namespace, lineage, &id);
            match begun {
                Ok(Some((parent, dir, manifest))) => {
                    let writer = Writer { root, relative, id, parent, dir, manifest, published: false };
                    // The writer exists before this check so that it cleans up.
                    return if path.exists() { Err(WriteError::Exists { path }) } else { Ok(writer) };
                }
                Ok(None) if attempt < BEGIN_ATTEMPTS => attempt += 1,
                Ok(None) => return Err(WriteError::Exists { path }),
                Err(source) => return Err(WriteError::Io { step: "make", path, source }),
            }
            std::thread::sleep(BEGIN_PAUSE);
        }
    }
}

/// The lineage's directory, the new temporary one in it, and its locked manifest; `None` when a cleaner was faster.
fn begin(
    root: &Root,
    namespace: &str,
    lineage: &Lineage,
    id: &CheckpointId,
) -> io::Result<Option<(OwnedFd, OwnedFd, std::fs::File)>> {
    let name = format!("{TEMPORARY}{id}");
    let make = || {
        make_dir(&root.dir, namespace)?;
        let namespace = beneath::open_dir(root.dir.as_fd(), namespace)?;
        make_dir(&namespace, lineage.as_str())?;
        let parent = beneath::open_dir(namespace.as_fd(), lineage.as_str())?;
        rustix::fs::mkdirat(&parent, &name, Mode::RWXU)?;
        Ok(parent)
    };
    let claim = |parent: &OwnedFd| {
        let dir = beneath::open_dir(parent.as_fd(), &name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let manifest = std::fs::File::from(rustix::fs::openat(&dir, manifest::FILE, flags, FILE_MODE)?);
        rustix::fs::flock(&manifest, FlockOperation::NonBlockingLockExclusive)?;
        let lost = rustix::fs::fstat(&manifest)?.st_nlink == 0;
        Ok((!lost).then_some((dir, manifest)))
    };
    let begun = make().and_then(|parent| match claim(&parent) {
        Ok(claimed) => Ok(claimed.map(|(dir, manifest)| (parent, dir, manifest))),
        Err(error) if lost_to_cleaner(&error) => Ok(None),
        Err(error) => {
            let _ = remove_tree(&root.path.join(namespace).join(lineage.as_str()).join(&name));
            Err(error)
        }
    });
    match begun {
        Err(error) if lost_to_cleaner(&error) || error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        done => done,
    }
}

fn lost_to_cleaner(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock)
}

impl Writer<'_> {
    /// The checkpoint's id.
    #[must_use]
    pub fn id(&self) -> &CheckpointId {
        &self.id
    }

    /// Where it lies for now.
    fn path(&self) -> PathBuf {
        self.root.path.join(&self.relative).join(format!("{TEMPORARY}{}", self.id))
    }

    /// Makes the directory of one container.
    ///
    /// # Errors
    /// `Name` and `Io`.
    pub fn container(&self, name: &str) -> Result<ContainerWriter, WriteError> {
        if !crate::reference::is_dns_label(name) {
            return Err(WriteError::Name { name: name.to_owned() });
        }
        let path = self.path().join(name);
        let make = || {
            rustix::fs::mkdirat(&self.dir, name, Mode::RWXU)?;
            let dir = beneath::open_dir(self.dir.as_fd(), name)?;
            rustix::fs::mkdirat(&dir, IMAGES, Mode::RWXU)?;
            Ok(dir)
        };
        let dir = make().map_err(|source| WriteError::Io { step: "make", path: path.clone(), source })?;
        Ok(ContainerWriter { path, dir, files: BTreeMap::new() })
    }

    /// Makes everything durable, writes the manifest, and gives the checkpoint its name.
    ///
    /// # Errors
    /// `Io`; then nothing was published.
    pub fn publish(mut self, manifest: &Manifest) -> Result<PathBuf, WriteError> {
        let path = self.path();
        let failed = |step| {
            let path = path.clone();
            move |source: io::Error| WriteError::Io { step, path, source }
        };
        // One call for what may be 100,000 small files; it returns when all of them are on the disk.
        rustix::fs::syncfs(&self.dir).map_err(|error| failed("write")(error.into()))?;
        self.manifest
            .write_all(&manifest.to_json())
            .and_then(|()| self.manifest.sync_all())
            .and_then(|()| Ok(rustix::fs::fsync(&self.dir)?))
            .map_err(failed("write the manifest of"))?;
        self.name().map_err(failed("rename"))?;
        let durable = || {
            rustix::fs::fsync(&self.parent)?;
            let namespace = self.relative.parent().unwrap_or(&self.relative);
            rustix::fs::fsync(beneath::open_dir(self.root.dir.as_fd(), namespace)?)?;
            rustix::fs::fsync(&self.root.dir)?;
            Ok(())
        };
        durable().map_err(failed("write the directory of"))?;
        Ok(self.root.path.join(&self.relative).join(self.id.as_str()))
    }

    /// Gives the directory its final name; from then on it can be restored, so the lock goes at once.
    fn name(&mut self) -> io::Result<()> {
        let name = self.id.as_str();
        rustix::fs::renameat(&self.parent, format!("{TEMPORARY}{name}"), &self.parent, name)?;
        self.published = true;
        // If this fails the lock goes with the file.
        let _ = rustix::fs::flock(&self.manifest, FlockOperation::Unlock);
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.published {
            // If this fails the next cleaning does it: our lock dies with us.
            let _ = remove_tree(&self.path());
            self.root.remove_empty_parents(&self.relative);
        }
    }
}

/// The directory of one container in a checkpoint that does not exist yet.
#[derive(Debug)]
pub struct ContainerWriter {
    path: PathBuf,
    dir: OwnedFd,
    files: BTreeMap<String, File>,
}

impl ContainerWriter {
    /// Copies one file in: `config.dump`, or `checkpoint/pages-1.img`.
    ///
    /// # Errors
    /// `Name` when it is neither of that form or is there already; `Read` and `Io`.
    pub fn add(&mut self, name: &str, source: &mut dyn Read) -> Result<(), WriteError> {
        let (folder, plain) = name.split_once('/').unwrap_or((".", name));
        let hidden = plain.is_empty() || plain.starts_with('.') || plain.contains(['/', '\0']);
        if hidden || !matches!(folder, "." | IMAGES) || self.files.contains_key(name) {
            return Err(WriteError::Name { name: name.to_owned() });
        }
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = beneath::open_dir(self.dir.as_fd(), folder)
            .and_then(|folder| Ok(rustix::fs::openat(folder, plain, flags, FILE_MODE)?))
            .map(std::fs::File::from)
            .map_err(|source| WriteError::Io { step: "make", path: path.clone(), source })?;
        let unreadable = |source| WriteError::Read { name: name.to_owned(), source };
        let read = read_whole(source, unreadable, |piece| {
            let unwritable = |source| WriteError::Io { step: "write", path: path.clone(), source };
            file.write_all(piece).map_err(unwritable)
        })?;
        self.files.insert(name.to_owned(), read);
        Ok(())
    }

    /// The folder of the CRIU images, for somebody who writes them there; [`Self::take_in`] records them.
    #[must_use]
    pub fn images_path(&self) -> PathBuf {
        self.path.join(IMAGES)
    }

    /// The folder of the container.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records every file that others have written into this folder and that of the images. Each is read to its end, but
    /// for one that is in `known`, by its device and inode: another name of a file that was taken in before.
    ///
    /// # Errors
    /// `Name` for what is no regular file; `Read` and `Io`.
    pub fn take_in(&mut self, known: &mut HashMap<(u64, u64), File>) -> Result<(), WriteError> {
        for folder in [".", IMAGES] {
            let failed = |source| WriteError::Io { step: "list", path: self.path.join(folder), source };
            let dir = beneath::open_dir(self.dir.as_fd(), folder).map_err(failed)?;
            for (name, kind) in beneath::names(dir.as_fd()).map_err(failed)? {
                let name = name.to_string_lossy().into_owned();
                let path = if folder == "." { name.clone() } else { format!("{folder}/{name}") };
                if kind.is_dir() && folder == "." || self.files.contains_key(&path) {
                    continue;
                }
                if !kind.is_file() {
                    return Err(WriteError::Name { name: path });
                }
                let file = digest(dir.as_fd(), &name, known)
                    .map_err(|source| WriteError::Read { name: path.clone(), source })?;
                self.files.insert(path, file);
            }
        }
        Ok(())
    }

    /// Makes `rootfs/` for the writable layer, and opens it.
    ///
    /// # Errors
    /// `Io`.
    pub fn rootfs(&self) -> Result<OwnedFd, WriteError> {
        let open = || {
            let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
            rustix::fs::mkdirat(&self.dir, "rootfs", mode)?;
            let dir = beneath::open_dir(self.dir.as_fd(), "rootfs")?;
            rustix::fs::fchmod(&dir, mode)?;
            Ok(dir)
        };
        open().map_err(|source| WriteError::Io { step: "make", path: self.path.join("rootfs"), source })
    }

    /// Every file so far, for the manifest.
    #[must_use]
    pub fn into_files(self) -> BTreeMap<String, File> {
        self.files
    }
}

/// Length and digest of a file, which from now on root alone can read.
fn digest(dir: BorrowedFd<'_>, name: &str, known: &mut HashMap<(u64, u64), File>) -> io::Result<File> {
    let mut file = beneath::open_file(dir, name)?;
    let metadata = file.metadata()?;
    let number = (metadata.dev(), metadata.ino());
    if let Some(known) = known.get(&number) {
        return Ok(known.clone());
    }
    rustix::fs::fchmod(&file, FILE_MODE)?;
    let file = read_whole(&mut file, |unreadable| unreadable, |_| Ok(()))?;
    known.insert(number, file.clone());
    Ok(file)
}

/// Reads `source` to its end, and gives it piece by piece to `each`.
fn read_whole<E>(
    mut source: impl Read,
    unreadable: impl Fn(io::Error) -> E,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<File, E> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut piece = Vec::with_capacity(BUFFER_BYTES);
    let limit = u64::try_from(BUFFER_BYTES).unwrap_or(u64::MAX);
    loop {
        piece.clear();
        let read = source.by_ref().take(limit).read_to_end(&mut piece).map_err(&unreadable)?;
        if read == 0 {
            return Ok(File { bytes, sha256: crate::digest::hexadecimal(&hash.finalize()) });
        }
        hash.update(&piece);
        each(&piece)?;
        bytes += u64::try_from(read).unwrap_or(u64::MAX);
    }
}

impl AsFd for ContainerWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::manifest::example;

    #[test]
    fn a_checkpoint_can_be_restored_as_soon_as_it_has_its_name() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { roots: vec![root.path().to_owned()], ..Config::default() };
        let store = Store::create(&config).unwrap();
        let id = CheckpointId::new(time::macros::datetime!(2026-11-22 18:15 UTC), 1);
        let lineage: Lineage = "trainer".parse().unwrap();
        let mut writer = store.begin("team", &lineage, id.clone()).unwrap();
        writer.manifest.write_all(&example("team", "trainer", id.clone()).to_json()).unwrap();
        writer.name().unwrap();
        // The writer still lives, as it does while it makes the name durable.
        let found = store.resolve("team", &lineage, &"latest".parse().unwrap()).unwrap();
        assert_eq!(*found.id(), id);
        drop(writer);
    }

    #[test]
    fn what_others_have_written_is_recorded_and_what_is_no_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { roots: vec![root.path().to_owned()], ..Config::default() };
        let store = Store::create(&config).unwrap();
        let id = CheckpointId::unique(time::OffsetDateTime::now_utc()).unwrap();
        let writer = store.begin("team", &"trainer".parse().unwrap(), id).unwrap();
        let [mut one, mut two] = ["one", "two"].map(|name| writer.container(name).unwrap());
        drop(one.rootfs().unwrap());
        one.add("config.dump", &mut &b"{}"[..]).unwrap();
        let pages = one.images_path().join("pages-1.img");
        std::fs::write(&pages, "0123456789").unwrap();
        std::fs::write(one.path().join("dump.log"), "log").unwrap();
        std::fs::hard_link(&pages, two.images_path().join("pages-1.img")).unwrap();
        let mut known = HashMap::new();
        one.take_in(&mut known).unwrap();
        two.take_in(&mut known).unwrap();
        let (one, two) = (one.into_files(), two.into_files());
        assert_eq!(one.keys().collect::<Vec<_>>(), ["checkpoint/pages-1.img", "config.dump", "dump.log"]);
        assert_eq!(one["checkpoint/pages-1.img"].bytes, 10);
        assert_eq!(one["checkpoint/pages-1.img"], two["checkpoint/pages-1.img"]);
        assert_eq!(std::fs::metadata(&pages).unwrap().mode() & 0o777, 0o600);
        let mut three = writer.container("three").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", three.images_path().join("link.img")).unwrap();
        assert!(matches!(three.take_in(&mut known), Err(WriteError::Name { .. })));
    }
}
