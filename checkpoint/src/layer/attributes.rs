// SPDX-License-Identifier: Apache-2.0
//! Everything of a file but its name, type and content.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::Entry;

use super::{carried_xattr, xattr};
use crate::beneath;

/// The longest list of attribute names, and the longest value, in bytes. Source: limits.h, XATTR_LIST_MAX.
const XATTR_MAX: usize = 65536;

/// Owner, mode, time of the last change, and the extended attributes that travel.
#[derive(Debug, Clone)]
pub(super) struct Attributes {
    owner: (Uid, Gid),
    mode: Mode,
    pub(super) time: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    /// As an entry of a tar has them.
    pub(super) fn of<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Self> {
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "owner"));
        let header = entry.header();
        let owner = (Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?));
        let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
        let seconds = i64::try_from(header.mtime()?).unwrap_or(0);
        let mut attributes =
            Self { owner, mode, time: Timespec { tv_sec: seconds, tv_nsec: 0 }, xattrs: Vec::new() };
        for record in entry.pax_extensions()?.into_iter().flatten() {
            let record = record?;
            match record.key() {
                Ok("mtime") => {
                    attributes.time = record.value().ok().and_then(parse_time).unwrap_or(attributes.time);
                }
                Ok(key) => {
                    let carried = xattr::attribute(key, record.value_bytes());
                    attributes.xattrs.extend(carried.filter(|(name, _)| carried_xattr(name)));
                }
                Err(_) => {}
            }
        }
        Ok(attributes)
    }

    /// As a file has them, of which `stat` was taken.
    pub(super) fn read(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<Self> {
        let nanoseconds = stat.st_mtime_nsec.try_into().unwrap_or(0);
        Ok(Self {
            owner: (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)),
            mode: Mode::from_raw_mode(stat.st_mode & 0o7777),
            time: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds },
            xattrs: xattrs(dir, name)?,
        })
    }

    /// Of the file behind a descriptor, which may be one of [`beneath::handle`]: a name could lead elsewhere by now, as
    /// containers run that have the same volume. Owner first: changing it takes set-user-id bits and capabilities away.
    /// The time of a directory is not set: filling it would change it.
    pub(super) fn set(&self, file: impl AsFd) -> io::Result<()> {
        let file = file.as_fd();
        let kind = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
        rustix::fs::chownat(file, "", Some(self.owner.0), Some(self.owner.1), AtFlags::EMPTY_PATH)?;
        // The kernel follows this link to the file itself, be it a link in its turn.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for (key, value) in &self.xattrs {
            match rustix::fs::setxattr(&path, key.as_str(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(error) => return Err(io::Error::other(format!("attribute {key}: {error}"))),
            }
        }
        if !kind.is_symlink() {
            rustix::fs::chmod(&path, self.mode)?;
        }
        if !kind.is_dir() {
            let times = Timestamps { last_access: self.time, last_modification: self.time };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        Ok(())
    }

    /// As [`Attributes::set`] on a directory that has others: what is not among these goes.
    pub(super) fn replace(&self, parent: impl AsFd, name: &OsStr) -> io::Result<()> {
        for (key, _) in xattrs(parent.as_fd(), name)? {
            if !self.xattrs.iter().any(|(kept, _)| *kept == key) {
                rustix::fs::lremovexattr(beneath::proc_path(parent.as_fd(), name), key.as_str())?;
            }
        }
        self.set(beneath::open_dir(parent.as_fd(), name)?)
    }
}

/// The extended attributes that travel.
///
/// # Errors
/// When one says that the content lies in another layer.
pub(super) fn xattrs(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<(String, Vec<u8>)>> {
    let path = beneath::proc_path(dir, name);
    let mut list = vec![0; XATTR_MAX];
    let length = match rustix::fs::llistxattr(&path, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Vec::new();
    let names = list.get(..length).unwrap_or_default().split(|byte| *byte == 0);
    for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
        if matches!(name, "trusted.overlay.redirect" | "trusted.overlay.metacopy") {
            return Err(io::Error::other(format!(
                "it has the attribute {name}, so its content lies elsewhere"
            )));
        }
        if carried_xattr(name) {
            let mut value = vec![0; XATTR_MAX];
            let length = rustix::fs::lgetxattr(&path, name, value.as_mut_slice())?;
            value.truncate(length);
            xattrs.push((name.to_owned(), value));
        }
    }
    Ok(xattrs)
}

/// `1700000000.123456789`, as in a PAX record.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.chars().chain("000000000".chars()).take(9).collect::<String>();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: digits.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn whoever_puts_a_link_in_a_files_place_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mode = |name: &str| std::fs::metadata(path(name)).unwrap().permissions().mode() & 0o7777;
        for name in ["file", "victim"] {
            std::fs::write(path(name), "").unwrap();
            std::fs::set_permissions(path(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
        let parent = std::fs::File::open(dir.path()).unwrap();
        let file = beneath::handle(parent.as_fd(), "file").unwrap();
        std::fs::rename(path("file"), path("moved")).unwrap();
        std::os::unix::fs::symlink("victim", path("file")).unwrap();
        let stat = rustix::fs::stat(path("moved")).unwrap();
        let mut attributes = Attributes::read(parent.as_fd(), OsStr::new("moved"), &stat).unwrap();
        attributes.mode = Mode::from_raw_mode(0o4755);
        attributes.set(&file).unwrap();
        assert_eq!((mode("moved"), mode("victim")), (0o4755, 0o600));
        // A link can be held as well, and has no mode of its own.
        attributes.time.tv_sec = 7;
        attributes.set(beneath::handle(parent.as_fd(), "file").unwrap()).unwrap();
        let link = std::fs::symlink_metadata(path("file")).unwrap();
        assert_eq!((std::os::unix::fs::MetadataExt::mtime(&link), mode("victim")), (7, 0o600));
    }
}
