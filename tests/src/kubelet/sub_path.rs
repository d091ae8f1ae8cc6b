// SPDX-License-Identifier: Apache-2.0
//! `subPath`: a part of a volume, bound under the pod's own directory before a container sees it.
//!
//! The volume's contents belong to the pod, so the path is walked beneath the volume; a link in it cannot lead
//! out. Source: kubelet, `pkg/volume/util/subpath/subpath_linux.go`.

use std::fs::{File, create_dir};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::KubeletError;
use super::pod_dir::{PodDir, make_dir};
use super::pod_spec::VolumeMount;

/// Binds the sub path of `mount` and returns where; `index` is the mount's place in the container's list.
/// A sub path that is not there becomes a directory.
///
/// # Errors
/// [`KubeletError::File`].
pub fn bind(
    dir: &PodDir,
    volume: &Path,
    mount: &VolumeMount,
    container: &str,
    index: usize,
) -> Result<PathBuf, KubeletError> {
    let failed = |errno: Errno| KubeletError::file("open the subPath", volume.join(&mount.sub_path), errno);
    let part = open_beneath(volume, Path::new(&mount.sub_path)).map_err(failed)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&part).map_err(failed)?.st_mode);
    let target = dir.sub_path(&mount.name, container, index);
    if target.exists() {
        // A restarted container gets the same bind again.
        return Ok(target);
    }
    if let Some(parent) = target.parent() {
        make_dir(parent, 0o750)?;
    }
    let made =
        if kind == FileType::Directory { create_dir(&target) } else { File::create(&target).map(drop) };
    made.map_err(|source| KubeletError::file("make", &target, source))?;
    let source = format!("/proc/thread-self/fd/{}", part.as_raw_fd());
    rustix::mount::mount_bind_recursive(source, &target)
        .map_err(|source| KubeletError::file("bind a subPath at", &target, source))?;
    Ok(target)
}

fn open_beneath(volume: &Path, sub_path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = rustix::fs::openat(CWD, volume, flags | OFlags::DIRECTORY, Mode::empty())?;
    match rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let mut at = root;
    for part in sub_path.components() {
        match rustix::fs::mkdirat(&at, part.as_os_str(), Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let no_links = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        at = rustix::fs::openat2(&at, part.as_os_str(), flags, Mode::empty(), no_links)?;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_becomes_a_directory() {
        let volume = tempfile::tempdir().unwrap();
        open_beneath(volume.path(), Path::new("a/b")).unwrap();
        assert!(volume.path().join("a/b").is_dir());
    }

    #[test]
    fn a_link_cannot_lead_out_of_the_volume() {
        let (volume, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), volume.path().join("link")).unwrap();
        assert!(open_beneath(volume.path(), Path::new("link/secret")).is_err());
    }
}
