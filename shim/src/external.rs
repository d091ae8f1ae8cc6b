// SPDX-License-Identifier: Apache-2.0
//! What of a container comes from outside of it: CRIU does not dump that, and a restore gives it the new pod's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ::checkpoint::plan::resolve_destinations;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use procfs::process::MountInfo;

use crate::rewrite::open_dir;

/// What `inherit_fd` and `external` call the pod's namespaces, as runc does, so that its restore reads ours.
///
/// Source: runc `libcontainer/criu_linux.go`, criuNsToKey.
const NETWORK_KEY: &str = "extRootNetNS";
const PID_KEY: &str = "extRootPidNS";

/// The mounts that come from outside, of those that the container in `rootfs` has: mount point, and what CRIU calls it.
///
/// # Errors
/// When `rootfs` cannot be looked into.
pub(crate) fn mounts(
    spec: &Spec,
    rootfs: &Path,
    mounts: &[MountInfo],
) -> std::io::Result<Vec<(OsString, PathBuf)>> {
    Ok(external(spec, &binds(spec, rootfs)?, mounts))
}

/// Binds of the spec, cgroup v1 hierarchies, masked files. `binds` are the
/// mount points of the spec's binds. Pure.
///
/// Source: runc `libcontainer/criu_linux.go`, addCriuDumpMount and addMaskPaths.
fn external(spec: &Spec, binds: &BTreeSet<PathBuf>, mounts: &[MountInfo]) -> Vec<(OsString, PathBuf)> {
    let linux = spec.linux().as_ref();
    let masked: Vec<String> = linux.and_then(|linux| linux.masked_paths().clone()).unwrap_or_default();
    let mut external = Vec::new();
    for mount in mounts.iter().filter(|mount| mount.mount_point != Path::new("/")) {
        let at = &mount.mount_point;
        if masked.iter().any(|path| Path::new(path) == at) {
            // A masked directory is an empty tmpfs, which CRIU dumps.
            if mount.root == "/null" {
                external.push((at.clone().into_os_string(), PathBuf::from("/dev/null")));
            }
        } else if binds.contains(at) || !FRESH.contains(&mount.fs_type.as_str()) {
            external.push((at.clone().into_os_string(), at.clone()));
        }
    }
    external
}

/// File systems that the OCI runtime mounts fresh in each container, which CRIU dumps by itself. A cgroup v2
/// mount is one when the container has a cgroup namespace, which it has on every unified host.
const FRESH: [&str; 6] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2"];

/// Where the spec's binds are mounted: the runtime resolves links of the image on the way.
fn binds(spec: &Spec, rootfs: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let resolved = resolve_destinations(spec, open_dir(rootfs).map_err(std::io::Error::other)?.as_fd())?;
    let binds = spec.mounts().iter().flatten().filter(|mount| {
        let bind = |option: &String| option == "bind" || option == "rbind";
        mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(bind)
    });
    Ok(binds
        .map(|mount| resolved.get(mount.destination()).unwrap_or_else(|| mount.destination()).clone())
        .collect())
}

/// Namespaces that belong to the pod and not to the container, as CRIU names them.
///
/// # Errors
/// When the process `pid` has gone.
pub(crate) fn namespaces(spec: &Spec, pid: i32) -> std::io::Result<Vec<OsString>> {
    let mut external = Vec::new();
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    for namespace in namespaces.into_iter().flatten().filter(|namespace| namespace.path().is_some()) {
        let (file, key) = match namespace.typ() {
            LinuxNamespaceType::Network => ("net", NETWORK_KEY),
            LinuxNamespaceType::Pid => ("pid", PID_KEY),
            LinuxNamespaceType::Ipc
            | LinuxNamespaceType::Uts
            | LinuxNamespaceType::Mount
            | LinuxNamespaceType::User
            | LinuxNamespaceType::Cgroup
            | LinuxNamespaceType::Time => continue,
        };
        let inode = rustix::fs::stat(format!("/proc/{pid}/ns/{file}"))?.st_ino;
        external.push(format!("{file}[{inode}]:{key}").into());
    }
    Ok(external)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(lines: &[&str]) -> Vec<MountInfo> {
        lines.iter().map(|line| MountInfo::from_line(line).unwrap()).collect()
    }

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_the_runtime_makes_fresh_is_criu_s_and_what_comes_from_outside_is_external() {
        let spec =
            spec(r#"{"ociVersion": "1.2.0", "linux": {"maskedPaths": ["/proc/kcore", "/proc/acpi"]}}"#);
        let binds = BTreeSet::from([PathBuf::from("/dev/shm"), PathBuf::from("/etc/hosts")]);
        let mounts = mounts(&[
            "10 1 0:50 / / rw - overlay overlay rw,lowerdir=/l",
            "11 10 0:51 / /proc rw - proc proc rw",
            "12 11 0:51 /sys /proc/sys ro - proc proc rw",
            "13 11 0:5 /null /proc/kcore rw - devtmpfs devtmpfs rw",
            "14 11 0:60 / /proc/acpi ro - tmpfs tmpfs ro",
            "15 10 0:52 / /dev rw - tmpfs tmpfs rw",
            "16 15 0:53 / /dev/shm rw - tmpfs shm rw",
            "17 10 8:1 /pods/hosts /etc/hosts rw - ext4 /dev/vda rw",
            "18 10 0:30 /kubepods/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
        ]);
        let external = external(&spec, &binds, &mounts);
        let pair = |key: &str, value: &str| (OsString::from(key), PathBuf::from(value));
        assert_eq!(
            external,
            [
                pair("/proc/kcore", "/dev/null"),
                pair("/dev/shm", "/dev/shm"),
                pair("/etc/hosts", "/etc/hosts"),
                pair("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"),
            ]
        );
    }
}
