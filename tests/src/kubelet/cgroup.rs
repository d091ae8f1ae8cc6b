// SPDX-License-Identifier: Apache-2.0
//! The cgroups above a pod's containers: kubelet makes them, the runtime only puts containers beneath.
//!
//! On cgroup v1 a pod has one directory in each hierarchy, on v2 a single one. Where the kubelet's own cgroup is a
//! slice, systemd makes them, see [`super::slice`].

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::KubeletError;
use super::patience::patient;
use super::resources::{Amounts, Class};
use super::{mountinfo, slice};

/// How long the kernel may take to let go of processes that have just ended.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// The mount points of all hierarchies. On a host that mixes both versions the runtime uses the one of v2 too.
///
/// # Errors
/// When the mounts cannot be read.
pub fn hierarchies() -> Result<Vec<PathBuf>, KubeletError> {
    let mounts =
        mountinfo::mounts().map_err(|source| KubeletError::file("read", "/proc/self/mountinfo", source))?;
    let of_type = |mount: &mountinfo::Mount| matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2");
    let mut points: Vec<_> = mounts.into_iter().filter(of_type).map(|mount| mount.mount_point).collect();
    points.sort();
    points.dedup();
    Ok(points)
}

/// The path of a pod's cgroup relative to each hierarchy, with a leading slash, as the runtime is told.
#[must_use]
pub fn of_pod(parent: &str, class: Class, uid: &str) -> String {
    if let Some(parent) = slice::of_path(parent) {
        let pod = format!("pod{uid}");
        let parts: Vec<&str> = class.cgroup().into_iter().chain([pod.as_str()]).collect();
        return slice::path(&slice::beneath(parent, &parts));
    }
    class
        .cgroup()
        .map_or_else(|| format!("/{parent}/pod{uid}"), |class| format!("/{parent}/{class}/pod{uid}"))
}

/// The path of a container's cgroup within its pod's, as containerd's CRI has the runtime make it.
///
/// Source: containerd, `internal/cri/server/helpers.go`, `getCgroupsPath`.
#[must_use]
pub fn of_container(pod: &str, id: &str) -> String {
    if slice::of_path(pod).is_some() {
        format!("{pod}/cri-containerd-{id}.scope")
    } else {
        format!("{pod}/{id}")
    }
}

/// Makes the cgroups of the classes.
///
/// # Errors
/// [`KubeletError::File`] naming the cgroup.
pub fn make_class_groups(parent: &str) -> Result<(), KubeletError> {
    for hierarchy in hierarchies()? {
        for class in ["besteffort", "burstable"] {
            if let Some(parent) = slice::of_path(parent) {
                slice::start(&hierarchy, &slice::beneath(parent, &[class]), None)?;
                continue;
            }
            make(&hierarchy, &format!("/{parent}/{class}"))?;
        }
    }
    Ok(())
}

/// Makes a pod's cgroup in each hierarchy and sets what the pod as a whole may use.
///
/// # Errors
/// [`KubeletError::File`] naming the cgroup.
pub fn make_pod_group(path: &str, amounts: &Amounts) -> Result<(), KubeletError> {
    for hierarchy in hierarchies()? {
        if let Some(slice) = slice::of_path(path) {
            slice::start(&hierarchy, slice, Some(amounts))?;
            continue;
        }
        let group = make(&hierarchy, path)?;
        for (file, value) in limits(amounts) {
            let file = group.join(file);
            if file.exists() {
                fs::write(&file, value).map_err(|source| KubeletError::file("write", &file, source))?;
            }
        }
    }
    Ok(())
}

/// Removes a pod's cgroup from each hierarchy, with what the runtime left beneath it.
///
/// # Errors
/// [`KubeletError::File`] when a cgroup still has processes.
pub fn remove_pod_group(path: &str) -> Result<(), KubeletError> {
    if let Some(slice) = slice::of_path(path) {
        slice::stop(slice)?;
    }
    for hierarchy in hierarchies()? {
        remove_tree(&beneath(&hierarchy, path))?;
    }
    Ok(())
}

/// The files of v1 and v2 that hold the pod's limits; those that a hierarchy lacks are passed over.
fn limits(amounts: &Amounts) -> Vec<(&'static str, String)> {
    let mut limits =
        vec![("cpu.shares", amounts.shares().to_string()), ("cpu.weight", weight(amounts.shares()))];
    if let Some((quota, period)) = amounts.quota() {
        limits.push(("cpu.cfs_period_us", period.to_string()));
        limits.push(("cpu.cfs_quota_us", quota.to_string()));
        limits.push(("cpu.max", format!("{quota} {period}")));
    }
    if let Some(bytes) = amounts.memory_limit {
        limits.push(("memory.limit_in_bytes", bytes.to_string()));
        limits.push(("memory.max", bytes.to_string()));
    }
    limits
}

/// Shares 2..262144 to a weight 1..10000. Source: kubelet, `pkg/kubelet/cm`, `CpuSharesToCpuWeight`.
pub(super) fn weight(shares: i64) -> String {
    (1 + (shares - 2) * 9999 / 262_142).to_string()
}

fn beneath(hierarchy: &Path, path: &str) -> PathBuf {
    hierarchy.join(path.trim_start_matches('/'))
}

/// Makes `path` and what is missing above it. A new v1 cpuset is empty and takes no process, so it gets its
/// parent's; a new v2 cgroup has no controllers unless its parent hands them on.
fn make(hierarchy: &Path, path: &str) -> Result<PathBuf, KubeletError> {
    let mut group = hierarchy.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let parent = group.clone();
        group.push(part);
        hand_controllers_on(&parent)?;
        match fs::create_dir(&group) {
            Ok(()) => copy_cpuset(&parent, &group)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(KubeletError::file("make", &group, source)),
        }
    }
    Ok(group)
}

fn copy_cpuset(parent: &Path, group: &Path) -> Result<(), KubeletError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), group.join(file));
        if !group.join("cgroup.clone_children").exists() || !from.exists() {
            continue;
        }
        let value = fs::read_to_string(&from).map_err(|source| KubeletError::file("read", &from, source))?;
        fs::write(&to, value).map_err(|source| KubeletError::file("write", &to, source))?;
    }
    Ok(())
}

fn hand_controllers_on(parent: &Path) -> Result<(), KubeletError> {
    let Ok(controllers) = fs::read_to_string(parent.join("cgroup.controllers")) else { return Ok(()) };
    let file = parent.join("cgroup.subtree_control");
    let wanted: Vec<String> =
        controllers.split_whitespace().map(|controller| format!("+{controller}")).collect();
    fs::write(&file, wanted.join(" ")).map_err(|source| KubeletError::file("write", &file, source))
}

fn remove_tree(group: &Path) -> Result<(), KubeletError> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(KubeletError::file("list", group, source)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let began = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == ErrorKind::ResourceBusy && began.elapsed() < patient(BUSY_LIMIT) =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(source) => return Err(KubeletError::file("remove", group, source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_shows_the_class() {
        assert_eq!(of_pod("kubepods", Class::BestEffort, "u"), "/kubepods/besteffort/podu");
        assert_eq!(of_pod("a/b", Class::Guaranteed, "u"), "/a/b/podu");
        let slices = "/k.slice/k-besteffort.slice/k-besteffort-podu.slice";
        assert_eq!(of_pod("k.slice", Class::BestEffort, "u"), slices);
    }

    #[test]
    fn shares_map_onto_the_whole_range_of_weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), ("1".into(), "39".into(), "10000".into()));
    }
}
