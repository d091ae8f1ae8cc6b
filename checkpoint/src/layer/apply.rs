// SPDX-License-Identifier: Apache-2.0
//! Unpacks a layer's tar, and a list of deletions, onto an upper directory.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use sha2::{Digest, Sha256};
use tar::{Entry, EntryType};

use super::attributes::Attributes;
use super::head::HeadLimit;
use super::upper::Upper;
use super::{Existing, Form, OPAQUE, WHITEOUT, above, existing, plain_path, sparse};
use crate::beneath;
use crate::manifest::Rootfs;

/// The layers of one container, being put one on top of the other into one upper directory.
#[derive(Debug)]
pub struct Stack<'a> {
    dir: BorrowedFd<'a>,
    implied: BTreeSet<PathBuf>,
    rootfs: Rootfs,
}

/// The layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The tar cannot be read.
    #[error("the layer cannot be read after {last:?}")]
    Read {
        /// The last path that could be.
        last: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tar ends too early.
    #[error("the layer is truncated: it ends after {last:?}, without an end mark")]
    Truncated {
        /// The last path in it.
        last: PathBuf,
    },
    /// A path would lead outside.
    #[error("the layer has the path {path:?}, which {problem}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Something that has no place in a layer.
    #[error("the layer has {path:?} of a type that no layer can have ({kind:?})")]
    Type {
        /// The path.
        path: PathBuf,
        /// Its type.
        kind: EntryType,
    },
    /// The list of deletions is not one.
    #[error("deleted.files is not a list of paths")]
    Deleted(#[source] serde_json::Error),
    /// It cannot be written.
    #[error("cannot write {path:?} of the layer")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl<'a> Stack<'a> {
    /// Begins with the empty directory `dir`.
    #[must_use]
    pub fn new(dir: BorrowedFd<'a>) -> Self {
        Self { dir, implied: BTreeSet::new(), rootfs: Rootfs::default() }
    }

    /// Unpacks an uncompressed tar on top of what is there. Reads to the end of `tar`.
    ///
    /// Needs the privilege to give files away and to set `trusted` attributes.
    ///
    /// # Errors
    /// All of [`ApplyError`] but `Deleted`; then the directory is in no defined state.
    pub fn apply(&mut self, tar: impl Read) -> Result<(), ApplyError> {
        let upper = Upper::new(self.dir, std::mem::take(&mut self.implied));
        let mut layer = Layer::new(upper, Form::Layer, Conflict::Replace);
        let source = layer.unpack_all(tar)?;
        self.rootfs.bytes = self.rootfs.bytes.saturating_add(layer.bytes);
        self.rootfs.layers.push(crate::digest::hexadecimal(&source.hash.finalize()));
        self.implied = layer.upper.into_implied();
        Ok(())
    }

    /// Deletes what `deleted.files` of a CRI-O or Podman archive lists: a JSON list of absolute paths.
    ///
    /// # Errors
    /// `Deleted`, `Path` and `Write`.
    pub fn delete(&mut self, json: &[u8]) -> Result<(), ApplyError> {
        let mut upper = Upper::new(self.dir, std::mem::take(&mut self.implied));
        for path in serde_json::from_slice::<Vec<PathBuf>>(json).map_err(ApplyError::Deleted)? {
            let relative = plain_path(path.strip_prefix("/").unwrap_or(&path))
                .map_err(|problem| ApplyError::Path { path: path.clone(), problem })?;
            match relative.file_name() {
                Some(name) => {
                    upper.whiteout(&relative, name).map_err(|source| ApplyError::Write { path, source })?;
                }
                None => return Err(ApplyError::Path { path, problem: "is the root directory" }),
            }
        }
        self.implied = upper.into_implied();
        Ok(())
    }

    /// What the manifest records of the layers.
    #[must_use]
    pub fn finish(mut self) -> Rootfs {
        let paths = self.implied.into_iter().filter_map(|path| path.into_os_string().into_string().ok());
        self.rootfs.implied_directories = paths.collect();
        self.rootfs
    }
}

/// What happens to a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It makes way.
    Replace,
    /// It stays, as do directories with their owner and mode.
    Keep,
}

/// Unpacks the content of a volume, as [`super::write_content`] packs it, into `dir`; returns the bytes in its files.
/// `made` gets every path that was not there before, also when this fails.
///
/// # Errors
/// All of [`ApplyError`] but `Deleted`.
pub fn fill(
    dir: BorrowedFd<'_>,
    tar: impl Read,
    conflict: Conflict,
    made: &mut Vec<PathBuf>,
) -> Result<u64, ApplyError> {
    let mut layer = Layer::new(Upper::new(dir, BTreeSet::new()), Form::Content, conflict);
    let filled = layer.unpack_all(tar).map(|_| layer.bytes);
    made.append(&mut layer.made);
    filled
}

/// Unpacks the content of a container's own tmpfs, as CRIU packs it with `tar`; returns the bytes in its files.
///
/// # Errors
/// All of [`ApplyError`] but `Deleted`.
pub fn fill_tmpfs(dir: BorrowedFd<'_>, tar: impl Read) -> Result<u64, ApplyError> {
    let mut layer = Layer::new(Upper::new(dir, BTreeSet::new()), Form::Tmpfs, Conflict::Replace);
    layer.unpack_all(tar).map(|_| layer.bytes)
}

/// Removes what [`fill`] made, best effort: a directory in which there is something else stays.
pub fn empty(dir: BorrowedFd<'_>, made: &[PathBuf]) {
    for path in made.iter().rev() {
        let (Ok(parent), Some(name)) =
            (beneath::open_dir(dir, Path::new(".").join(above(path))), path.file_name())
        else {
            continue;
        };
        if rustix::fs::unlinkat(&parent, name, AtFlags::empty()).is_err() {
            let _ = rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Hashes what is read, and notes whether the end was reached.
struct Source<R> {
    tar: R,
    hash: Sha256,
    ended: bool,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.tar.read(buffer)?;
        self.ended |= read == 0 && !buffer.is_empty();
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

struct Layer<'a> {
    upper: Upper<'a>,
    form: Form,
    conflict: Conflict,
    /// In a volume, what was not there before.
    made: Vec<PathBuf>,
    bytes: u64,
    /// When directories were last changed: set at the end, since filling them changes it.
    times: Vec<(PathBuf, Timespec)>,
    last: PathBuf,
}

impl<'a> Layer<'a> {
    fn new(upper: Upper<'a>, form: Form, conflict: Conflict) -> Self {
        Self { upper, form, conflict, made: Vec::new(), bytes: 0, times: Vec::new(), last: PathBuf::new() }
    }

    /// Unpacks a tar and reads it to its end.
    fn unpack_all<R: Read>(&mut self, tar: R) -> Result<Source<R>, ApplyError> {
        let head = HeadLimit::default();
        let mut archive = tar::Archive::new(head.of(Source { tar, hash: Sha256::new(), ended: false }));
        self.unpack_entries(&mut archive, &head)?;
        let mut source = archive.into_inner().into_inner();
        let last = || self.last.clone();
        if source.ended {
            return Err(ApplyError::Truncated { last: last() });
        }
        io::copy(&mut source, &mut io::sink()).map_err(|source| ApplyError::Read { last: last(), source })?;
        Ok(source)
    }

    fn unpack_entries<R: Read>(
        &mut self,
        archive: &mut tar::Archive<R>,
        head: &HeadLimit,
    ) -> Result<(), ApplyError> {
        let read = |last: &Path, source| ApplyError::Read { last: last.to_owned(), source };
        let mut entries = archive.entries().map_err(|source| read(&self.last, source))?;
        while let Some(entry) = head.within(|| entries.next()) {
            let mut entry = entry.map_err(|source| read(&self.last, source))?;
            head.body(entry.header().entry_size().map_err(|source| read(&self.last, source))?);
            let path = Path::new(OsStr::from_bytes(&entry.path_bytes())).to_owned();
            let plain = plain_path(&path).map_err(|problem| ApplyError::Path { path, problem })?;
            if entry.header().entry_type() == EntryType::XGlobalHeader {
                continue;
            }
            match plain.file_name() {
                Some(_) if self.conflict == Conflict::Keep && self.upper.holds(&plain) => {}
                Some(name) => {
                    if self.form == Form::Content && !self.upper.holds(&plain) {
                        self.made.push(plain.clone());
                    }
                    self.unpack(&mut entry, &plain, name)?;
                }
                // The top directory of a layer: its attributes come from the container's own upper directory.
                None if self.form == Form::Layer || self.conflict == Conflict::Keep => {}
                None => self.top(&mut entry)?,
            }
            self.last = plain;
        }
        for (path, time) in self.times.drain(..) {
            // A directory may have been replaced by something else later on.
            if let Ok(dir) = self.upper.open_dir(&path) {
                rustix::fs::futimens(dir, &Timestamps { last_access: time, last_modification: time })
                    .map_err(|error| ApplyError::Write { path, source: error.into() })?;
            }
        }
        Ok(())
    }

    /// Gives the top directory of a volume its attributes.
    fn top<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Write { path: ".".into(), source };
        let read = |source| ApplyError::Read { last: PathBuf::new(), source };
        let attributes = Attributes::of(entry).map_err(read)?;
        let top = self.upper.open_dir(Path::new("")).map_err(failed)?;
        attributes.set(&top).map_err(failed)
    }

    fn unpack<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &Path,
        name: &OsStr,
    ) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Write { path: path.to_owned(), source };
        if self.form == Form::Layer && name == OPAQUE {
            return self.upper.opaque(above(path)).map_err(failed);
        }
        if self.form == Form::Layer
            && let Some(deleted) = name.as_bytes().strip_prefix(WHITEOUT.as_bytes())
        {
            return match deleted {
                b"" | b"." | b".." => Err(ApplyError::Path {
                    path: path.to_owned(),
                    problem: "deletes nothing that can have a name",
                }),
                // aufs' own files; nobody has made layers of it for years. Source: OCI image-spec layer.md.
                deleted if deleted.starts_with(WHITEOUT.as_bytes()) => Ok(()),
                deleted => {
                    let deleted = OsStr::from_bytes(deleted);
                    self.upper.whiteout(&path.with_file_name(deleted), deleted).map_err(failed)
                }
            };
        }
        let is_link = entry.header().entry_type().is_hard_link();
        let link = if is_link { Some(link_target(entry, path)?) } else { None };
        let attributes =
            Attributes::of(entry).map_err(|source| ApplyError::Read { last: path.to_owned(), source })?;
        match self.place(entry, path, name, link.as_deref()).map_err(failed)? {
            None => {
                let kind = entry.header().entry_type();
                Err(ApplyError::Type { path: path.to_owned(), kind })
            }
            // Another name of a file whose attributes are set.
            Some(_) if link.is_some() => Ok(()),
            Some(made) => {
                if entry.header().entry_type().is_dir() {
                    self.times.push((path.to_owned(), attributes.time));
                }
                attributes.set(&made).map_err(failed)
            }
        }
    }

    /// Makes what the entry describes, without its attributes, and opens it; `None` when no layer can have such a thing.
    fn place<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &Path,
        name: &OsStr,
        link: Option<&Path>,
    ) -> io::Result<Option<OwnedFd>> {
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            let parent = self.upper.directory(path, name)?;
            self.upper.describe(path);
            return beneath::open_dir(parent.as_fd(), name).map(Some);
        }
        if let Some(target) = link {
            return self.link(target, path, name).map(Some);
        }
        let special = if kind.is_character_special() {
            Some((FileType::CharacterDevice, device(entry)?))
        } else if kind.is_block_special() {
            Some((FileType::BlockDevice, device(entry)?))
        } else {
            kind.is_fifo().then_some((FileType::Fifo, 0))
        };
        let device = special.is_some_and(|(kind, _)| kind != FileType::Fifo);
        if device && self.form == Form::Content {
            return Ok(None);
        }
        if special.is_none()
            && !(kind.is_symlink() || kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse())
        {
            return Ok(None);
        }
        let parent = self.upper.room(path, name)?;
        if let Some((special, device)) = special {
            rustix::fs::mknodat(&parent, name, special, Mode::empty(), device)?;
        } else if kind.is_symlink() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, name)?;
        } else {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR)?);
            let copied = if kind.is_gnu_sparse() {
                copy_holes(entry, &mut file)?
            } else {
                sparse::copy(entry, &mut file)?
            };
            if copied != entry.size() {
                let text = "the layer ends inside this file";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            self.bytes = self.bytes.saturating_add(copied);
            return Ok(Some(file.into()));
        }
        beneath::handle(parent.as_fd(), name).map(Some)
    }

    /// Makes another name for a file of this or an earlier layer.
    fn link(&mut self, target: &Path, path: &Path, name: &OsStr) -> io::Result<OwnedFd> {
        let dir = self.upper.open_dir(above(target)).ok();
        let found = dir.zip(target.file_name()).filter(|_| target != path);
        match found {
            Some((dir, target)) if existing(&dir, target)? == Existing::Other => {
                let parent = self.upper.room(path, name)?;
                rustix::fs::linkat(dir, target, &parent, name, AtFlags::empty())?;
                Ok(parent)
            }
            _ => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("it is a hard link to {target:?}, which the layer does not have"),
            )),
        }
    }
}

/// Copies, and leaves out what is zero in whole blocks.
fn copy_holes(source: &mut impl Read, file: &mut File) -> io::Result<u64> {
    const BLOCK_BYTES: usize = 4096;
    let (mut block, mut copied) = (vec![0; BLOCK_BYTES], 0u64);
    loop {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match source.read(rest)? {
                0 => break,
                read => filled += read,
            }
        }
        let data = block.get(..filled).unwrap_or_default();
        if data.is_empty() {
            file.set_len(copied)?;
            return Ok(copied);
        }
        if data.iter().any(|byte| *byte != 0) {
            file.write_all_at(data, copied)?;
        }
        copied = copied.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
    }
}

fn link_target<R: Read>(entry: &Entry<'_, R>, path: &Path) -> Result<PathBuf, ApplyError> {
    let target = Path::new(OsStr::from_bytes(&entry.link_name_bytes().unwrap_or_default())).to_owned();
    // Docker and containerd write the target relative to the top, some others with a slash before it.
    plain_path(target.strip_prefix("/").unwrap_or(&target)).map_err(|_| ApplyError::Path {
        path: path.to_owned(),
        problem: "is a hard link to something outside",
    })
}

fn device<R: Read>(entry: &Entry<'_, R>) -> io::Result<u64> {
    let header = entry.header();
    let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
    Ok(rustix::fs::makedev(major, minor))
}
