// SPDX-License-Identifier: Apache-2.0
//! The files and directories that mounts of the new spec need in the root file system, as the OCI runtime would
//! make them. The root file system is the container's own and hostile: nothing is resolved outside it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use ::checkpoint::plan::Mountpoint;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;

/// Creates the `mountpoints` below `rootfs` that are not there yet.
///
/// # Errors
/// Names the mount point.
pub(crate) fn create(rootfs: &Path, mountpoints: &[Mountpoint]) -> std::io::Result<()> {
    let root = open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for mountpoint in mountpoints {
        make(root.as_fd(), mountpoint).map_err(|e| {
            std::io::Error::other(format!("mount point {}: {e}", mountpoint.destination.display()))
        })?;
    }
    Ok(())
}

fn make(root: BorrowedFd<'_>, mountpoint: &Mountpoint) -> std::io::Result<()> {
    let file = match &mountpoint.like {
        Some(source) => {
            let stat = rustix::fs::statat(CWD, source, rustix::fs::AtFlags::empty())
                .map_err(|e| std::io::Error::other(format!("{}: {e}", source.display())))?;
            rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory
        }
        None => false,
    };
    let mut parts: Vec<_> = mountpoint
        .destination
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
        })
        .collect();
    let last = if file { parts.pop() } else { None };
    let mut at = Path::new("").to_owned();
    let mut directory = step(root, Path::new("."))?;
    for part in parts {
        at.push(part);
        directory = match step(root, &at) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                // 0755, root: as runc makes them.
                mkdirat(&directory, part, Mode::from_raw_mode(0o755))?;
                step(root, &at)?
            }
            Err(e) => return Err(e.into()),
        };
    }
    let Some(name) = last else { return Ok(()) };
    at.push(name);
    match openat2(root, &at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o755)).map(drop)?;
            Ok(())
        }
        other => other.map(drop).map_err(Into::into),
    }
}

/// A directory of the container, links resolved inside its root.
fn step(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mountpoint(destination: &str, like: Option<&str>) -> Mountpoint {
        Mountpoint { destination: destination.into(), like: like.map(Into::into) }
    }

    #[test]
    fn a_file_source_gets_a_file_and_a_directory_source_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let points = [mountpoint("/etc/hosts", Some("/dev/null")), mountpoint("/data/x", Some("/tmp"))];
        create(root.path(), &points).unwrap();
        assert!(root.path().join("etc/hosts").is_file());
        assert!(root.path().join("data/x").is_dir());
        create(root.path(), &points).expect("what is there already is left alone");
    }

    #[test]
    fn a_link_out_of_the_root_is_resolved_inside_it() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), root.path().join("data")).unwrap();
        let made = create(root.path(), &[mountpoint("/data/x", None)]);
        assert!(made.is_err(), "the link leads to a directory that the container does not have");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
