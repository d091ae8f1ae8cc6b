// SPDX-License-Identifier: Apache-2.0
//! A directory of images: opens plain names in it, nothing else, and reads bounded amounts.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use thiserror::Error;

use super::{
    file::{FormatError, ImageFile},
    ipcns::{IpcError, IpcKind, IpcObjects},
    view::{View, ViewError},
};

/// The largest image that is read, in bytes. What is larger (pages) is never read whole.
const IMAGE: u64 = 64 << 20;
/// The most files that a directory may have: a few for each process and file system.
const FILES: usize = 1 << 20;

/// Why an image could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The directory could not be read.
    #[error("cannot list the images")]
    List {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are more files than any checkpoint has.
    #[error("there are more than {limit} images")]
    TooMany {
        /// The most that are listed.
        limit: usize,
    },
    /// The name is not one of a file in the directory.
    #[error("{name:?} is not the name of an image")]
    Name {
        /// The name.
        name: String,
    },
    /// The file could not be opened.
    #[error("cannot open image {name}")]
    Open {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a device, a pipe or a socket.
    #[error("image {name} is not a regular file")]
    NotRegular {
        /// The file.
        name: String,
    },
    /// It is larger than any image of its kind.
    #[error("image {name} has more than {limit} bytes")]
    TooLarge {
        /// The file.
        name: String,
        /// The most that is read.
        limit: u64,
    },
    /// The file could not be read.
    #[error("cannot read image {name}")]
    Read {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not an image, or a damaged one.
    #[error("image {name} is damaged")]
    Format {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// It is an image, but not of what it should be.
    #[error("image {name} is not usable")]
    View {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: ViewError,
    },
    /// It holds no System V objects, or damaged ones.
    #[error("image {name} is damaged")]
    Ipc {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: IpcError,
    },
}

/// A directory of images.
#[derive(Debug)]
pub struct ImagesDir {
    fd: OwnedFd,
}

impl ImagesDir {
    /// The directory that `fd` is.
    #[must_use]
    pub fn open(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The names of the regular files in it, sorted.
    ///
    /// # Errors
    /// [`LoadError::List`], [`LoadError::TooMany`].
    pub fn names(&self) -> Result<Vec<String>, LoadError> {
        let list = |source: rustix::io::Errno| LoadError::List { source: source.into() };
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(list)? {
            let entry = entry.map_err(list)?;
            let stat = statat(&self.fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW).map_err(list)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                continue;
            }
            if names.len() == FILES {
                return Err(LoadError::TooMany { limit: FILES });
            }
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The image `name`.
    ///
    /// # Errors
    /// [`LoadError`], except `List`, `TooMany` and `View`.
    pub fn read(&self, name: &str) -> Result<ImageFile, LoadError> {
        let bytes = self.read_bytes(name)?;
        ImageFile::parse(&bytes).map_err(|source| LoadError::Format { name: name.to_owned(), source })
    }

    /// The image `name` as what it is.
    ///
    /// # Errors
    /// [`LoadError`], except `List` and `TooMany`.
    pub fn load<V: View>(&self, name: &str) -> Result<V, LoadError> {
        V::from_image(self.read(name)?).map_err(|source| LoadError::View { name: name.to_owned(), source })
    }

    /// The System V objects of `kind` that the image `name` holds.
    ///
    /// # Errors
    /// [`LoadError`], except `List`, `TooMany`, `Format` and `View`.
    pub fn ipc_objects(&self, kind: IpcKind, name: &str) -> Result<IpcObjects, LoadError> {
        let bytes = self.read_bytes(name)?;
        IpcObjects::parse(kind, &bytes).map_err(|source| LoadError::Ipc { name: name.to_owned(), source })
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let name = || name.to_owned();
        let file = self.open_regular(&name())?;
        let read = |source| LoadError::Read { name: name(), source };
        let mut bytes = Vec::new();
        file.take(IMAGE.saturating_add(1)).read_to_end(&mut bytes).map_err(read)?;
        if u64::try_from(bytes.len()).is_ok_and(|size| size <= IMAGE) {
            Ok(bytes)
        } else {
            Err(LoadError::TooLarge { name: name(), limit: IMAGE })
        }
    }

    /// Opens the regular file `name`, which may be larger than an image.
    ///
    /// # Errors
    /// [`LoadError::Name`], [`LoadError::Open`], [`LoadError::NotRegular`].
    pub fn open_regular(&self, name: &str) -> Result<File, LoadError> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(LoadError::Name { name: name.to_owned() });
        }
        let open = |source: io::Error| LoadError::Open { name: name.to_owned(), source };
        // A pipe must not make the call wait for its writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = openat2(&self.fd, name, flags, Mode::empty(), resolve);
        let file = File::from(file.map_err(|errno| open(errno.into()))?);
        if file.metadata().map_err(open)?.is_file() {
            Ok(file)
        } else {
            Err(LoadError::NotRegular { name: name.to_owned() })
        }
    }
}

impl AsFd for ImagesDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, mknodat};
    use tempfile::TempDir;

    use super::*;
    use crate::image::{Kind, Utsns};

    fn directory() -> (TempDir, ImagesDir) {
        let dir = tempfile::tempdir().unwrap();
        let images = ImagesDir::open(File::open(dir.path()).unwrap().into());
        (dir, images)
    }

    #[test]
    fn an_image_is_read_by_its_plain_name() {
        let (dir, images) = directory();
        let file = ImageFile::new(Kind::Files, Vec::new());
        fs::write(dir.path().join("files.img"), file.to_bytes()).unwrap();
        assert_eq!(images.read("files.img").unwrap(), file);
        assert_eq!(images.names().unwrap(), ["files.img"]);
    }

    #[test]
    fn links_directories_pipes_and_paths_are_refused() {
        let (dir, images) = directory();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/files.img"), "x").unwrap();
        symlink("sub/files.img", dir.path().join("link")).unwrap();
        mknodat(CWD, dir.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(images.read("link"), Err(LoadError::Open { .. })));
        assert!(matches!(images.read("sub"), Err(LoadError::NotRegular { .. })));
        assert!(matches!(images.read("fifo"), Err(LoadError::NotRegular { .. })));
        for name in ["", ".", "..", "sub/files.img", "/etc/passwd", "a\0b"] {
            assert!(matches!(images.read(name), Err(LoadError::Name { .. })), "{name}");
        }
        assert!(images.names().unwrap().is_empty());
    }

    #[test]
    fn a_file_above_the_limit_is_refused() {
        let (dir, images) = directory();
        File::create(dir.path().join("big.img")).unwrap().set_len(IMAGE + 1).unwrap();
        assert!(matches!(images.read("big.img"), Err(LoadError::TooLarge { .. })));
    }

    #[test]
    fn errors_name_the_image() {
        let (dir, images) = directory();
        fs::write(dir.path().join("utsns-1.img"), ImageFile::new(Kind::Files, Vec::new()).to_bytes())
            .unwrap();
        fs::write(dir.path().join("short.img"), "abc").unwrap();
        let message = |error: LoadError| error.to_string();
        assert_eq!(
            message(images.load::<Utsns>("utsns-1.img").unwrap_err()),
            "image utsns-1.img is not usable"
        );
        assert_eq!(message(images.read("short.img").unwrap_err()), "image short.img is damaged");
        assert_eq!(message(images.read("none.img").unwrap_err()), "cannot open image none.img");
    }
}
