// SPDX-License-Identifier: Apache-2.0
//! What stands on the node: processes, mounts, cgroups, network namespaces and files; and what was added.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::process;
use crate::kubelet::cgroup;
use crate::kubelet::mountinfo;

/// Folders in which a pod, a container, a checkpoint or a restore may leave something, and how deep to look.
const FOLDERS: [(&str, u32); 11] = [
    ("/dev/shm", 8),
    ("/run", 8),
    ("/tmp", 8),
    ("/var/lib/cni", 8),
    ("/var/lib/containerd/io.containerd.grpc.v1.cri", 8),
    ("/var/lib/containerd/io.containerd.runtime.v2.task", 8),
    ("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots", 1),
    ("/var/lib/kubelet/pods", 8),
    ("/var/log/pods", 8),
    ("/var/tmp", 8),
    ("/usr/local", 8),
];

/// Where an init writes at its own times. What it keeps for containers are units, which are looked at.
const OF_THE_INIT: [&str; 4] = ["/run/log/", "/run/systemd/", "/run/udev/", "/run/user/"];

/// Where containerd has the layers of erofs.
const EROFS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots";

/// Ends of paths that stay on purpose.
const STAY: [&str; 20] = [
    // Folders that the first container on a node brings about.
    "/io.containerd.grpc.v1.cri/containers",
    "/io.containerd.grpc.v1.cri/sandboxes",
    "/io.containerd.runtime.v2.task/k8s.io",
    "/run/containerd/fifo",
    "/run/containerd/runc",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/s",
    "/run/netns",
    "/run/thaw",
    "/run/thaw/metrics.sock",
    "/run/thaw/records.sock",
    // The options that cgroup2 has until the next boot.
    "/run/thaw-cgroup2-options",
    "/var/lib/cni/networks",
    "/var/lib/cni/networks/pods",
    // CRIU's cache of what the kernel can do.
    "/criu.kdat",
    // iptables' lock.
    "/xtables.lock",
    // The network plugin's memory of the last address, its lock, and the folder of its results.
    "/last_reserved_ip.0",
    "/last_reserved_ip.1",
    "/lock",
    "/var/lib/cni/results",
];

/// What stands on the node at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at everything; what cannot be read is not there.
    #[must_use]
    pub fn take(cgroup_parent: &str) -> Self {
        let mut things = BTreeSet::new();
        things.extend(processes());
        things.extend(mounts());
        things.extend(units());
        for hierarchy in cgroup::hierarchies().unwrap_or_default() {
            walk(&hierarchy.join(cgroup_parent), 8, &mut |path| {
                if path.is_dir() {
                    things.insert(format!("cgroup {}", path.display()));
                }
            });
        }
        for (folder, depth) in FOLDERS {
            walk(Path::new(folder), depth, &mut |path| {
                let path = path.to_string_lossy();
                let of_the_init = OF_THE_INIT.iter().any(|folder| path.starts_with(folder));
                if !of_the_init && !STAY.iter().any(|stay| path.ends_with(stay)) {
                    things.insert(format!("file {path}"));
                }
            });
        }
        Self { things }
    }

    /// What is in `later` and was not here before.
    #[must_use]
    pub fn added_in(&self, later: &Self) -> Vec<String> {
        later.things.difference(&self.things).cloned().collect()
    }
}

/// Each process by its number, its start time and its name, so that a new one under an old number is seen.
fn processes() -> impl Iterator<Item = String> {
    process::all().into_iter().filter(|pid| !is_of_the_machine(*pid)).filter_map(|pid| {
        let stat = process::read(pid, "stat").ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        // A test may have started it again.
        if name.ends_with("(containerd") {
            return None;
        }
        // Source: proc_pid_stat(5): the start time is field 22, the 20th after the name.
        let start = rest.split_whitespace().nth(19)?;
        let command = process::read(pid, "cmdline").unwrap_or_default().replace('\0', " ");
        Some(format!("process {name}) started at {start}: {}", command.trim_end()))
    })
}

/// Whether a process comes and goes with a machine of its own, where systemd is the init: a thread of the kernel, or
/// one of a service other than the runtime's, which shims belong to.
fn is_of_the_machine(pid: u32) -> bool {
    let cgroups = process::read(pid, "cgroup").unwrap_or_default();
    match cgroups.strip_prefix("0::/system.slice/") {
        Some(service) => !service.starts_with("containerd.service"),
        // Source: proc_pid_cmdline(5): the kernel's threads have no command line.
        None => cgroups == "0::/\n" && process::read(pid, "cmdline").is_ok_and(|line| line.is_empty()),
    }
}

/// Each mount; one that stands twice is counted.
fn mounts() -> Vec<String> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    // containerd keeps an image's layers of erofs mounted when the last container of it is gone.
    let layer = |mount: &mountinfo::Mount| mount.fs_type == "erofs" && mount.mount_point.starts_with(EROFS);
    for mount in mountinfo::mounts().unwrap_or_default().into_iter().filter(|mount| !layer(mount)) {
        let (point, root) = (mount.mount_point.display(), mount.root.display());
        *seen.entry(format!("mount {point} ({} {root})", mount.fs_type)).or_default() += 1;
    }
    seen.into_iter()
        .flat_map(|(mount, count)| (1..=count).map(move |which| format!("{mount} #{which}")))
        .collect()
}

/// The slices and scopes of pods that systemd knows of, where it is the init: a pod has one slice, a container one
/// scope.
fn units() -> Vec<String> {
    if !Path::new("/run/systemd/system").exists() {
        return Vec::new();
    }
    let list =
        ["list-units", "--all", "--plain", "--no-legend", "--no-pager", "kubepods*", "cri-containerd*"];
    let listed = process::output("systemctl", &list).unwrap_or_default();
    listed.lines().filter_map(|line| Some(format!("unit {}", line.split_whitespace().next()?))).collect()
}

/// Shows every path beneath `folder` on the same file system.
fn walk(folder: &Path, depth: u32, show: &mut impl FnMut(&Path)) {
    let device = |path: &Path| fs::symlink_metadata(path).map(|found| found.dev()).ok();
    let own = device(folder);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        show(&path);
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if depth > 1 && is_dir && device(&path) == own {
            walk(&path, depth - 1, show);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_named_and_what_was_there_is_not() {
        let of =
            |things: &[&str]| Snapshot { things: things.iter().map(|thing| (*thing).to_owned()).collect() };
        assert_eq!(of(&["a", "b"]).added_in(&of(&["b", "c"])), ["c"]);
    }

    #[test]
    fn a_new_process_is_seen() {
        let before: BTreeSet<_> = processes().collect();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let added: Vec<_> = processes().filter(|process| !before.contains(process)).collect();
        child.kill().unwrap();
        child.try_wait().unwrap();
        assert!(added.iter().any(|process| process.contains("sleep")), "{added:?}");
    }

    #[test]
    fn a_file_is_seen_as_deep_as_was_asked() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let mut seen = Vec::new();
        walk(folder.path(), 1, &mut |path| seen.push(path.to_owned()));
        assert_eq!(seen, [folder.path().join("a")]);
    }
}
