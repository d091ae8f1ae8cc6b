// SPDX-License-Identifier: Apache-2.0
//! Packs an upper directory into a layer's tar: the inverse of unpacking one.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, statat};
use tar::{Builder, EntryType, Header};

use super::attributes::xattrs;
use super::upper::is_opaque;
use super::{DEPTH_MAX, Existing, Form, OPAQUE, WHITEOUT, existing, xattr};
use crate::beneath;

/// The layer cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum WriteLayerError {
    /// A file has a name that in a layer means a deletion.
    #[error("{path:?} cannot be part of a layer: names that begin with .wh. mean deletions there")]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// It is deeper than what could be unpacked again.
    #[error("{path:?} lies too deep to be part of a layer")]
    Depth {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be read, or the tar not be written.
    #[error("cannot pack {path:?} of the layer")]
    Pack {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Packs the upper directory `dir`, of the form that [`super::Stack`] makes, into an uncompressed tar. Nobody may
/// change the directory meanwhile.
///
/// # Errors
/// All of [`WriteLayerError`].
pub fn write(dir: BorrowedFd<'_>, tar: impl Write) -> Result<(), WriteLayerError> {
    Packer::new(tar, Form::Layer).pack(dir)
}

/// Packs the content of a volume into an uncompressed tar, holes as holes. Devices and sockets are left out.
///
/// # Errors
/// `Depth` and `Pack`.
pub fn write_content(dir: BorrowedFd<'_>, tar: impl Write) -> Result<(), WriteLayerError> {
    Packer::new(tar, Form::Content).pack(dir)
}

struct Packer<W: Write> {
    form: Form,
    tar: Builder<W>,
    /// The first path of every file that has several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    fn new(tar: W, form: Form) -> Self {
        Self { form, tar: Builder::new(tar), links: HashMap::new() }
    }

    fn pack(mut self, dir: BorrowedFd<'_>) -> Result<(), WriteLayerError> {
        let failed = |source| WriteLayerError::Pack { path: PathBuf::new(), source };
        if self.form == Form::Content {
            // A layer's top directory is the container's own, a volume's has the owner that its user gave it.
            self.entry(dir, OsStr::new("."), Path::new(".")).map_err(failed)?;
        }
        self.directory(dir, Path::new(""), 0)?;
        self.tar.into_inner().and_then(|mut tar| tar.flush()).map_err(failed)
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, path: &Path, depth: usize) -> Result<(), WriteLayerError> {
        if depth > DEPTH_MAX {
            return Err(WriteLayerError::Depth { path: path.to_owned() });
        }
        let failed = |source| WriteLayerError::Pack { path: path.to_owned(), source };
        if self.form == Form::Layer && is_opaque(dir).map_err(failed)? {
            self.marker(&path.join(OPAQUE)).map_err(failed)?;
        }
        for (name, _) in beneath::names(dir).map_err(failed)? {
            let child = path.join(&name);
            let failed = |source| WriteLayerError::Pack { path: child.clone(), source };
            if self.form == Form::Layer && name.as_bytes().starts_with(WHITEOUT.as_bytes()) {
                return Err(WriteLayerError::Name { path: child });
            }
            match existing(dir, &name).map_err(failed)? {
                Existing::Nothing => {}
                Existing::Whiteout if self.form == Form::Content => {}
                Existing::Whiteout => {
                    let mut marker = OsString::from(WHITEOUT);
                    marker.push(&name);
                    self.marker(&child.with_file_name(marker)).map_err(failed)?;
                }
                Existing::Directory => {
                    self.entry(dir, &name, &child).map_err(failed)?;
                    let sub = beneath::open_dir(dir, &name).map_err(failed)?;
                    self.directory(sub.as_fd(), &child, depth + 1)?;
                }
                Existing::Other => self.entry(dir, &name, &child).map_err(failed)?,
            }
        }
        Ok(())
    }

    /// An empty file whose name is its meaning.
    fn marker(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(0);
        self.tar.append_data(&mut header, path, io::empty())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<()> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut header = header(&stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_dir() && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                header.set_entry_type(EntryType::Link);
                return self.tar.append_link(&mut header, path, first);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        let mut special = |header: &mut Header, kind: EntryType| {
            header.set_entry_type(kind);
            self.tar.append_pax_extensions(
                records(dir, name, &stat)?.iter().map(|(k, v)| (k.as_str(), v.as_slice())),
            )
        };
        match kind {
            FileType::Directory => special(&mut header, EntryType::Directory)?,
            FileType::Fifo => special(&mut header, EntryType::Fifo)?,
            FileType::CharacterDevice | FileType::BlockDevice if self.form == Form::Content => return Ok(()),
            FileType::CharacterDevice => special(&mut header, EntryType::Char)?,
            FileType::BlockDevice => special(&mut header, EntryType::Block)?,
            FileType::Symlink => {
                special(&mut header, EntryType::Symlink)?;
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                return self.tar.append_link(
                    &mut header,
                    path,
                    Path::new(OsStr::from_bytes(target.to_bytes())),
                );
            }
            FileType::RegularFile => {
                special(&mut header, EntryType::Regular)?;
                let mut file = beneath::open_file(dir, name)?;
                let bytes = file.metadata()?.len();
                if self.form == Form::Content && has_holes(&file)? {
                    return self.tar.append_file(path, &mut file);
                }
                header.set_size(bytes);
                // Whatever happens to the file, the tar stays one that can be read.
                let padded = file.take(bytes).chain(io::repeat(0)).take(bytes);
                return self.tar.append_data(&mut header, path, padded);
            }
            FileType::Socket | FileType::Unknown => return Ok(()),
        }
        self.tar.append_data(&mut header, path, io::empty())
    }
}

/// Whether it takes less room than it is long. Source: stat(2), blocks are of 512 bytes.
fn has_holes(file: &std::fs::File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    Ok(metadata.blocks().saturating_mul(512) < metadata.len())
}

fn header(stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    // The GNU header has both fields, so these cannot fail.
    let _ = header.set_device_major(rustix::fs::major(stat.st_rdev));
    let _ = header.set_device_minor(rustix::fs::minor(stat.st_rdev));
    header
}

/// What a tar header has no room for: the fraction of the time, and extended attributes.
fn records(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut records = Vec::new();
    if stat.st_mtime_nsec != 0 && stat.st_mtime >= 0 {
        let time = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
        records.push(("mtime".to_owned(), time.into_bytes()));
    }
    let carried = xattrs(dir, name)?.into_iter();
    records.extend(carried.map(|(name, value)| xattr::record(&name, &value)));
    Ok(records)
}
