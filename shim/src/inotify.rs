// SPDX-License-Identifier: Apache-2.0
//! Where CRIU finds what a container watches by inotify. The kernel tells a watched file's handle, which an overlay
//! cannot open; so CRIU looks for its inode in folders that it is told.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use procfs::process::{FDTarget, MountInfo, Process};

/// The folders to search: all at the top of the root file system but those on which something is mounted. `None` where
/// no process of `cgroup` watches anything, for the search takes its time.
pub(crate) fn folders_to_search(
    cgroup: &Path,
    rootfs: &Path,
    mounts: &[MountInfo],
) -> std::io::Result<Option<Vec<PathBuf>>> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    if !pids.lines().filter_map(|pid| pid.parse().ok()).any(watches) {
        return Ok(None);
    }
    let mounted: BTreeSet<&Path> = mounts.iter().map(|mount| mount.mount_point.as_path()).collect();
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(rootfs)? {
        let entry = entry?;
        let folder = Path::new("/").join(entry.file_name());
        if entry.file_type()?.is_dir() && !mounted.contains(folder.as_path()) {
            folders.push(folder);
        }
    }
    Ok(Some(folders))
}

/// Whether a process has a descriptor of inotify(7).
fn watches(pid: i32) -> bool {
    // One that ends meanwhile watches nothing.
    let Ok(descriptors) = Process::new(pid).and_then(|process| process.fd()) else { return false };
    let inotify = |target: &FDTarget| matches!(target, FDTarget::AnonInode(kind) if kind == "inotify");
    descriptors.filter_map(Result::ok).any(|descriptor| inotify(&descriptor.target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_folders_but_mounts_are_searched_if_something_is_watched() {
        let (cgroup, rootfs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(cgroup.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        for folder in ["proc", "etc"] {
            std::fs::create_dir(rootfs.path().join(folder)).unwrap();
        }
        std::os::unix::fs::symlink("etc", rootfs.path().join("link")).unwrap();
        let proc = MountInfo::from_line("11 10 0:51 / /proc rw - proc proc rw").unwrap();
        let search = || folders_to_search(cgroup.path(), rootfs.path(), std::slice::from_ref(&proc)).unwrap();
        assert_eq!(search(), None);
        let _watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
        assert_eq!(search(), Some(vec![PathBuf::from("/etc")]));
    }
}
