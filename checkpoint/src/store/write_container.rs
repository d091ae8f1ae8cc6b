// SPDX-License-Identifier: Apache-2.0
//! Writes what a checkpoint holds of one container, with the digest of each file.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use super::write::WriteError;
use crate::beneath;
use crate::container_dir::IMAGES;
use crate::manifest::File;

/// How much is copied at a time, in bytes: as large as the kernel's pages of the page cache get. What is written at once
/// lies in one, and is copied into the memory of a container that much more quickly.
const BUFFER_BYTES: usize = 2 << 20;
/// Files of a checkpoint can be read by root alone: they hold what was in memory.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The directory of one container in a checkpoint that does not exist yet.
#[derive(Debug)]
pub struct ContainerWriter {
    path: PathBuf,
    dir: OwnedFd,
    files: BTreeMap<String, File>,
}

impl ContainerWriter {
    /// `dir`, which lies at `path` and has a folder for images, and nothing else yet.
    pub(super) fn new(path: PathBuf, dir: OwnedFd) -> Self {
        Self { path, dir, files: BTreeMap::new() }
    }

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
        let unwritable = |source| WriteError::Io { step: "write", path: path.clone(), source };
        let read = read_whole(source, unreadable, |piece| {
            // An archive spells out the holes that a file had.
            if piece.iter().all(|byte| *byte == 0) {
                let length = i64::try_from(piece.len()).unwrap_or(i64::MAX);
                return file.seek(SeekFrom::Current(length)).map(drop).map_err(unwritable);
            }
            file.write_all(piece).map_err(unwritable)
        })?;
        file.set_len(read.bytes).map_err(unwritable)?;
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
    use crate::id::CheckpointId;
    use crate::store::Store;

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
