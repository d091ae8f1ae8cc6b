// SPDX-License-Identifier: Apache-2.0
//! The files and directories that mounts of the new spec need in the root file system, as the OCI runtime would
//! make them. The root file system is the container's own and hostile: nothing is resolved outside it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use ::checkpoint::plan::Mountpoint;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;

/// Creates the `mountpoints` that are not there yet: below `rootfs`, or, for one inside another mount, in that one's
/// source, because CRIU mounts the outer one first. File systems that the runtime makes fresh (no source) bring
/// theirs along in the images.
///
/// # Errors
/// Names the mount point.
pub(crate) fn create(rootfs: &Path, mountpoints: &[Mountpoint]) -> std::io::Result<()> {
    for mountpoint in mountpoints {
        let Some((root, path)) = place(rootfs, mountpoint, mountpoints) else { continue };
        let made = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Into::into)
            .and_then(|root| {
                make(root.as_fd(), &Mountpoint { destination: path, like: mountpoint.like.clone() })
            });
        made.map_err(|e| {
            std::io::Error::other(format!("mount point {}: {e}", mountpoint.destination.display()))
        })?;
    }
    Ok(())
}

/// The directory that holds a mount point, and its path in there; `None` where it comes with the images. Pure.
fn place<'a>(
    rootfs: &'a Path,
    mountpoint: &Mountpoint,
    all: &'a [Mountpoint],
) -> Option<(&'a Path, PathBuf)> {
    let inside = |outer: &&Mountpoint| {
        outer.destination != mountpoint.destination && mountpoint.destination.starts_with(&outer.destination)
    };
    let outer = all.iter().filter(inside).max_by_key(|outer| outer.destination.components().count());
    match outer {
        None => Some((rootfs, mountpoint.destination.clone())),
        Some(outer) => {
            let path = mountpoint.destination.strip_prefix(&outer.destination).ok()?;
            Some((outer.like.as_deref()?, path.to_owned()))
        }
    }
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
    fn a_point_inside_a_volume_is_made_in_the_volume_and_one_below_dev_comes_with_the_images() {
        let (root, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let points = [
            mountpoint("/dev", None),
            mountpoint("/data", volume.path().to_str()),
            mountpoint("/dev/shm", Some("/tmp")),
            mountpoint("/data/conf", Some("/tmp")),
        ];
        create(root.path(), &points).unwrap();
        assert!(volume.path().join("conf").is_dir());
        assert!(root.path().join("data").is_dir() && !root.path().join("data/conf").exists());
        assert!(root.path().join("dev").is_dir() && !root.path().join("dev/shm").exists());
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
