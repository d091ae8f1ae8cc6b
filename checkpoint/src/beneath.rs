// SPDX-License-Identifier: Apache-2.0
//! Opens files and directories beneath a directory that is already open.
//!
//! Invariant: nothing here follows a link, leaves the directory, blocks on a FIFO or reads without a limit.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::path::Arg;

/// `openat2` gives up with EAGAIN when something is renamed meanwhile; this often it is tried again.
/// Source: openat2(2), RESOLVE_BENEATH.
const OPEN_ATTEMPTS: u32 = 16;

/// Opens `path` beneath `dir`, refusing links in every component.
fn open(dir: BorrowedFd<'_>, path: &std::ffi::CStr, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut attempt = 1;
    loop {
        match openat2(dir, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) if attempt < OPEN_ATTEMPTS => attempt += 1,
            done => return Ok(done?),
        }
    }
}

/// Opens a directory beneath `dir`.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, path: impl Arg) -> io::Result<OwnedFd> {
    let path = path.into_c_str()?;
    open(dir, &path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Holds whatever is at `path` beneath `dir`, of any type, be it a link: for its attributes, and not for its content.
pub(crate) fn handle(dir: BorrowedFd<'_>, path: impl Arg) -> io::Result<OwnedFd> {
    let path = path.into_c_str()?;
    open(dir, &path, OFlags::PATH)
}

/// Opens a regular file beneath `dir` for reading.
pub(crate) fn open_file(dir: BorrowedFd<'_>, path: impl Arg) -> io::Result<File> {
    open_regular(dir, path, OFlags::RDONLY)
}

/// Opens a regular file beneath `dir` for reading and writing; it must exist.
pub(crate) fn open_file_rw(dir: BorrowedFd<'_>, path: impl Arg) -> io::Result<File> {
    open_regular(dir, path, OFlags::RDWR)
}

fn open_regular(dir: BorrowedFd<'_>, path: impl Arg, access: OFlags) -> io::Result<File> {
    let path = path.into_c_str()?;
    let file = File::from(open(dir, &path, access | OFlags::NONBLOCK | OFlags::NOCTTY)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// Reads a regular file beneath `dir` that must not be longer than `limit` bytes.
pub(crate) fn read(dir: BorrowedFd<'_>, path: impl Arg, limit: u64) -> io::Result<Vec<u8>> {
    read_to_limit(open_file(dir, path)?, limit)
}

/// Reads everything from `source`, which must not be longer than `limit` bytes.
pub(crate) fn read_to_limit(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than the {limit} bytes allowed"),
        ));
    }
    Ok(bytes)
}

/// The names in a directory with their types (without `.` and `..`), sorted.
pub(crate) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<(std::ffi::OsString, FileType)>> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            FileType::RegularFile
            | FileType::Directory
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => entry.file_type(),
        };
        names.push((name.to_owned(), kind));
    }
    names.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(names)
}

/// The path by which this process can name an entry of an open directory, for calls that take no descriptor.
pub(crate) fn proc_path(dir: impl AsFd, name: &std::ffi::OsStr) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    std::path::Path::new("/proc/self/fd").join(dir.as_fd().as_raw_fd().to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::fs::write(dir.path().join("real/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let root = File::open(dir.path()).unwrap();
        assert!(read(root.as_fd(), "real/file", 1).is_ok());
        assert!(read(root.as_fd(), "link/file", 1).is_err());
        assert!(open_dir(root.as_fd(), "link").is_err());
        assert!(open_dir(root.as_fd(), "..").is_err());
        assert!(open_dir(root.as_fd(), "/").is_err());
    }

    #[test]
    fn a_fifo_neither_blocks_nor_opens() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        rustix::fs::mknodat(&root, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(open_file(root.as_fd(), "fifo").is_err());
    }

    #[test]
    fn a_file_longer_than_the_limit_is_refused() {
        assert_eq!(read_to_limit(&b"1234"[..], 4).unwrap(), b"1234");
        assert!(read_to_limit(&b"12345"[..], 4).is_err());
    }
}
