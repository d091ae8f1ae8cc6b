// SPDX-License-Identifier: Apache-2.0
//! What a shim and its containers leave on a machine: processes, mounts, cgroups, files, descriptors.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::Process;
use rustix::mount::{UnmountFlags, unmount};

use super::bundle::Bundle;
use super::shim::Shim;

/// A line for each thing, so that two moments can be compared.
pub(crate) type Traces = BTreeSet<String>;

/// Everything that can be seen of `bundle`'s container, and all descriptors and children of the shim.
pub(crate) fn of(shim: &Shim<'_>, bundle: &Bundle) -> Traces {
    let node = shim.node;
    let mut traces = Traces::new();
    let mut add = |what: &str, name: String| {
        traces.insert(format!("{what} {name}"));
    };
    for stat in processes().filter(|stat| stat.ppid.cast_unsigned() == shim.pid) {
        add(if stat.state == 'Z' { "zombie" } else { "child" }, stat.pid.to_string());
    }
    for directory in cgroups(&format!("{}/{}", node.cgroup(), bundle.id)) {
        add("cgroup", directory.display().to_string());
        let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        procs.split_whitespace().for_each(|pid| add("process in cgroup", pid.to_owned()));
    }
    for mount in mounts(shim.pid, &node.path("")) {
        add("mount", mount.display().to_string());
    }
    for folder in [bundle.restore_dir(), node.runc_root(), node.path("store")] {
        files(&folder).into_iter().for_each(|file| add("file", file));
    }
    for console in list(Path::new("/run")) {
        if console.display().to_string().starts_with(&format!("/run/thaw-console-{}-", shim.pid)) {
            add("file", console.display().to_string());
        }
    }
    // Numbers of sockets and pipes say nothing; how many there are does.
    for descriptor in list(&PathBuf::from(format!("/proc/{}/fd", shim.pid))) {
        if let Ok(target) = fs::read_link(&descriptor)
            && !is_proc(&descriptor)
        {
            add("descriptor", format!("{} {}", descriptor.file_name().unwrap().display(), kind(&target)));
        }
    }
    traces
}

/// Whether it is on a /proc: a library of the shim's keeps one for good, from the first cgroup on.
fn is_proc(descriptor: &Path) -> bool {
    rustix::fs::statfs(descriptor).is_ok_and(|fs| fs.f_type == 0x9fa0)
}

fn kind(target: &Path) -> String {
    let text = target.display().to_string();
    text.split_once(":[").map_or(text.as_str(), |(kind, _)| kind).to_owned()
}

fn list(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Every file below, with its size and time of change.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in list(folder) {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let changed = metadata.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        found.push(format!("{} {} {changed}", path.display(), metadata.len()));
        if metadata.is_dir() {
            found.extend(files(&path));
        }
    }
    found
}

/// The mount points below `directory` that a process sees, the deepest last.
fn mounts(pid: u32, directory: &Path) -> Vec<PathBuf> {
    let mounts = Process::new(pid.cast_signed()).and_then(|process| process.mountinfo());
    let mounts = mounts.map(|mounts| mounts.0).unwrap_or_default();
    mounts.into_iter().map(|mount| mount.mount_point).filter(|at| at.starts_with(directory)).collect()
}

/// Every directory of a cgroup, in all hierarchies.
fn cgroups(path: &str) -> Vec<PathBuf> {
    let below = |hierarchy: &Path| hierarchy.join(path.trim_start_matches('/'));
    let root = Path::new("/sys/fs/cgroup");
    let mut all: Vec<PathBuf> = list(root).iter().map(|hierarchy| below(hierarchy)).collect();
    all.push(below(root));
    all.retain(|directory| directory.is_dir());
    all
}

fn processes() -> impl Iterator<Item = procfs::process::Stat> {
    procfs::process::all_processes().unwrap().flatten().filter_map(|process| process.stat().ok())
}

/// Whether a process is there and not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    Process::new(pid.cast_signed()).and_then(|process| process.stat()).is_ok_and(|stat| stat.state != 'Z')
}

/// The shim, and everything that came of it: its children, what has a cgroup of this node's, or its
/// directory in the environment.
pub(crate) fn family(shim: u32, directory: &Path, namespace: &str) -> Vec<i32> {
    let directory = directory.display().to_string();
    let mentions = |pid: u32, file: &str, text: &str| {
        let content = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&content).contains(text)
    };
    // Its number may be somebody else's by now.
    let lives = mentions(shim, "cmdline", namespace);
    let belongs = |stat: &procfs::process::Stat| {
        let pid = stat.pid.cast_unsigned();
        let of_shim = lives && (pid == shim || stat.ppid.cast_unsigned() == shim);
        let marked = mentions(pid, "cgroup", namespace) || mentions(pid, "environ", &directory);
        pid != std::process::id() && (of_shim || marked)
    };
    processes().filter(belongs).map(|stat| stat.pid).collect()
}

/// Unmounts and removes everything of a node's that is outside its directory's own files.
pub(crate) fn clean(directory: &Path, namespace: &str) {
    for mount in mounts(std::process::id(), directory).iter().rev() {
        let _ = unmount(mount, UnmountFlags::DETACH);
    }
    for cgroup in cgroups(&format!("/{namespace}")) {
        for _ in 0..100 {
            list(&cgroup).iter().filter(|path| path.is_dir()).for_each(|path| drop(fs::remove_dir(path)));
            if fs::remove_dir(&cgroup).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
