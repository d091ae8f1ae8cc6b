// SPDX-License-Identifier: Apache-2.0
//! Where mounts really are when their destination leads through links of the root file system.
//!
//! Runtimes resolve the links before they mount, so the kernel and the images know the resolved path:
//! `/var/run/secrets` of a spec is `/run/secrets` in most images. Source: runc libcontainer, securejoin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2, readlinkat};

/// The mount destinations of `spec` that `rootfs` resolves to another path, and that path.
///
/// # Errors
/// When the root file system cannot be looked at.
pub fn resolve_destinations(spec: &Spec, rootfs: BorrowedFd<'_>) -> io::Result<BTreeMap<PathBuf, PathBuf>> {
    let top = path_of(rootfs)?;
    let mut resolved = BTreeMap::new();
    for mount in spec.mounts().iter().flatten() {
        let destination = super::normal(mount.destination());
        let real = resolve(rootfs, &top, &destination)?;
        if real != destination {
            resolved.insert(mount.destination().clone(), real);
        }
    }
    Ok(resolved)
}

fn resolve(rootfs: BorrowedFd<'_>, top: &Path, destination: &Path) -> io::Result<PathBuf> {
    for existing in destination.ancestors() {
        let Some(dir) = open(rootfs, existing)? else { continue };
        let real = path_of(dir.as_fd())?;
        let real =
            real.strip_prefix(top).map_err(|_| io::Error::other(format!("{existing:?} leads outside")))?;
        let missing = destination.strip_prefix(existing).unwrap_or(destination);
        if missing.components().any(|component| !matches!(component, Component::Normal(_))) {
            return Err(io::Error::other(format!("mount destination {destination:?} leads upwards")));
        }
        return Ok(super::normal(Path::new("/").join(real).join(missing)));
    }
    Ok(destination.to_owned())
}

fn open(rootfs: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(rootfs, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(io::Error::other(format!("{path:?}: {error}"))),
    }
}

/// The path of an open file, as the kernel knows it.
fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    let link = readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(OsString::from_vec(link.into_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{MountBuilder, SpecBuilder};

    #[test]
    fn links_are_resolved_within_the_root_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        std::fs::create_dir_all(root.join("run")).unwrap();
        std::fs::create_dir_all(root.join("var")).unwrap();
        std::os::unix::fs::symlink("/run", root.join("var/run")).unwrap();
        std::os::unix::fs::symlink("../../../..", root.join("up")).unwrap();
        let paths = ["/var/run/secrets/x", "/up/data", "/etc/hosts", "/run//y/"];
        let mounts = paths.map(|path| MountBuilder::default().destination(path).build().unwrap());
        let spec = SpecBuilder::default().mounts(mounts).build().unwrap();
        let resolved = resolve_destinations(&spec, std::fs::File::open(&root).unwrap().as_fd()).unwrap();
        let expected = [("/var/run/secrets/x", "/run/secrets/x"), ("/up/data", "/data")];
        assert_eq!(resolved, expected.map(|(from, to)| (from.into(), to.into())).into_iter().collect());
    }
}
