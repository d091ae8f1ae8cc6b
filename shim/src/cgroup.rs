// SPDX-License-Identifier: Apache-2.0
//! The cgroup of a restored container: made from the **new** spec, CRIU put into it before it restores anything, so that
//! all restored tasks are in it from their first moment and CRIU itself manages none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::systemd::SystemdClient;
use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager, CgroupSetup, ControllerOpt, create_cgroup_manager,
    get_cgroup_setup,
};
use libcgroups::v2;
use oci_spec::runtime::{LinuxResources, Spec};
use procfs::process::Process as ProcFs;
use rustix::process::{Pid, Signal, kill_process};

use crate::bpf::{Instruction, attach_device_filter};
use crate::device_filter;
use crate::error::TaskError;
use crate::freezer::Freezer;

/// Where hierarchies are mounted. Source: cgroups(7), and what systemd, runc and kubelet take for granted.
const ROOT: &str = "/sys/fs/cgroup";

/// How long killed processes may take to leave the cgroup; those in disk wait take longer.
const LEAVE: Duration = Duration::from_secs(2);

/// The same after a failed restore, whose memory may be tens of gigabytes in pages of 4 KB. What starts in its stead
/// wants an empty cgroup.
const LEAVE_RESTORE: Duration = Duration::from_secs(60);

/// `/dev/console`. Source: Linux `Documentation/admin-guide/devices.txt`.
const CONSOLE: (i64, i64) = (5, 1);

/// How long systemd may take to let go of a scope that it was told to stop.
const STOP: Duration = Duration::from_secs(5);

/// A container's cgroup; emptied and removed on drop unless kept.
pub(crate) struct Cgroup {
    manager: AnyCgroupManager,
    /// Where it is below the hierarchies' roots, or what systemd makes it of.
    path: PathBuf,
    resources: Option<LinuxResources>,
    /// The device rules on cgroup v2; on v1 they are files that `manager` writes.
    device_filter: Option<Vec<Instruction>>,
    /// The unit, where the cgroup is systemd's.
    scope: Option<String>,
    /// Directories in hierarchies that the library leaves out, see [`without_controllers`].
    others: Vec<PathBuf>,
    /// How long killed processes may take to leave it.
    leave: Duration,
    kept: bool,
}

impl Cgroup {
    /// The cgroup at `path`, by cgroupfs or through systemd, for a container with `spec`; without one only to find
    /// what is in the cgroup and to remove it.
    ///
    /// # Errors
    /// When the hierarchies or systemd cannot be found.
    pub(crate) fn new(
        id: &str,
        path: PathBuf,
        spec: Option<&Spec>,
        systemd: bool,
    ) -> Result<Self, TaskError> {
        let scope = if systemd { scope(&path) } else { None };
        let others = if scope.is_none() { without_controllers(&path)? } else { Vec::new() };
        let manager = create_cgroup_manager(CgroupConfig {
            cgroup_path: path.clone(),
            systemd_cgroup: systemd,
            container_name: id.to_owned(),
        })
        .map_err(failed("find the cgroup hierarchies"))?;
        let resources = spec.and_then(|spec| spec.linux().as_ref()?.resources().clone());
        let device_filter = spec.filter(|_| unified()).map(device_filter::program);
        let leave = if spec.is_some() { LEAVE_RESTORE } else { LEAVE };
        Ok(Self { manager, path, resources, device_filter, scope, others, leave, kept: false })
    }

    /// Makes the cgroup, sets the spec's limits and device rules, and puts `pid` into it.
    ///
    /// # Errors
    /// When the kernel or systemd refuses any of it.
    pub(crate) fn place(&self, pid: i32) -> Result<(), TaskError> {
        for directory in &self.others {
            let joined = std::fs::create_dir_all(directory)
                .and_then(|()| std::fs::write(directory.join("cgroup.procs"), pid.to_string()));
            joined.map_err(TaskError::io(format!("put CRIU into {}", directory.display())))?;
        }
        let task = nix::unistd::Pid::from_raw(pid);
        self.manager.add_task(task).map_err(failed("put CRIU into the container's cgroup"))?;
        if let Some(resources) = &self.resources {
            let options = ControllerOpt {
                resources,
                disable_oom_killer: false,
                oom_score_adj: None,
                freezer_state: None,
            };
            self.manager.apply(&options).map_err(failed("set the container's limits"))?;
            deny_console(pid, resources)?;
            if self.scope.is_some() {
                // systemd answers before it has done it, and rounds; runc writes them as well.
                let relative = directory(pid)?.strip_prefix(ROOT).map(Path::to_owned).unwrap_or_default();
                let files = v2::manager::Manager::new(ROOT.into(), relative);
                let files = files.map_err(failed("find the container's cgroup"))?;
                files.apply(&options).map_err(failed("set the container's limits"))?;
            }
        }
        if let Some(filter) = &self.device_filter {
            // A process that has ended meanwhile is where it was, and others are there too.
            let directory = match &self.scope {
                None => Path::new(ROOT).join(self.path.strip_prefix("/").unwrap_or(&self.path)),
                Some(_) => directory(pid)?,
            };
            let attached = attach_device_filter(&directory, filter);
            attached.map_err(TaskError::io("set the container's device rules".to_owned()))?;
        }
        Ok(())
    }

    /// Leaves it: the restore holds.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }

    /// Sends SIGKILL to all that is in it; returns how many there were.
    pub(crate) fn kill(&self) -> usize {
        let pids = self.manager.get_all_pids().unwrap_or_default();
        for pid in pids.iter().filter_map(|pid| Pid::from_raw(pid.as_raw())) {
            // Gone already is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        // A frozen cgroup v1 does not let its tasks die.
        if let Some(freezer) = pids.first().and_then(|pid| Freezer::of_process(pid.as_raw()))
            && let Err(e) = freezer.thaw()
        {
            log::debug!("cannot thaw {}: {e}", freezer.cgroup().display());
        }
        pids.len()
    }

    fn kill_all(&self) {
        let deadline = Instant::now() + self.leave;
        while self.kill() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn remove(&self) -> Result<(), String> {
        let Some(scope) = &self.scope else { return self.manager.remove().map_err(|e| e.to_string()) };
        let client = SystemdClient::new(scope, Vec::new()).map_err(|e| e.to_string())?;
        let deadline = Instant::now() + STOP;
        // A scope in which the kernel has killed for memory stays on as failed until that is reset, which this does.
        while client.exists() && Instant::now() < deadline {
            client.stop().map_err(|e| e.to_string())?;
            std::thread::sleep(Duration::from_millis(10));
        }
        if client.exists() { Err(format!("systemd does not let go of {scope}")) } else { Ok(()) }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.kill_all();
        for directory in &self.others {
            // Not there when the restore failed before it was made.
            let _ = std::fs::remove_dir(directory);
        }
        if let Err(e) = self.remove() {
            log::warn!("cannot remove the cgroup of a failed restore: {e}");
        }
    }
}

/// Takes back a rule for cgroup v1 that the library adds by itself and the OCI runtime does not: the node's console,
/// which only a spec that names it may open.
fn deny_console(pid: i32, resources: &LinuxResources) -> Result<(), TaskError> {
    let is = |number: Option<i64>, wanted: i64| number.is_none_or(|number| number < 0 || number == wanted);
    let named = resources
        .devices()
        .iter()
        .flatten()
        .any(|rule| rule.allow() && is(rule.major(), CONSOLE.0) && is(rule.minor(), CONSOLE.1));
    match paths(pid)?.get("devices") {
        Some(cgroup) if !named => {
            let rule = format!("c {}:{} rwm", CONSOLE.0, CONSOLE.1);
            std::fs::write(cgroup.join("devices.deny"), rule)
                .map_err(TaskError::io("deny the node's console"))
        }
        Some(_) => Ok(()),
        None if unified() => Ok(()),
        None => Err(TaskError::NotFound(format!("cgroup of process {pid}"))),
    }
}

/// The scope that a path of the form `slice:prefix:name` stands for.
///
/// Source: runc `libcontainer/specconv`, CreateCgroupConfig, and opencontainers/cgroups `systemd/common.go`,
/// getUnitName.
fn scope(path: &Path) -> Option<String> {
    let mut parts = path.to_str()?.splitn(3, ':');
    let (_slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!("{prefix}-{name}.scope"))
}

/// Whether this host has cgroup v2 alone.
fn unified() -> bool {
    matches!(get_cgroup_setup(), Ok(CgroupSetup::Unified))
}

/// The cgroup v2 directory that `pid` is in.
fn directory(pid: i32) -> Result<PathBuf, TaskError> {
    paths(pid)?.remove("").ok_or_else(|| TaskError::NotFound(format!("cgroup of process {pid}")))
}

/// Whether a restored container can be put under this host's cgroup driver.
///
/// # Errors
/// Why not, and what to do.
pub(crate) fn can_confine(systemd: bool) -> Result<(), String> {
    if systemd && !unified() {
        return Err("this node has cgroup v1 and its containerd uses the systemd cgroup driver, which a restored \
                    container cannot be put under: boot the node with cgroup v2, set SystemdCgroup = false, or \
                    start the container afresh"
            .into());
    }
    Ok(())
}

/// The path of the cgroup that a spec names.
pub(crate) fn cgroup_path(spec: &Spec) -> Option<PathBuf> {
    spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone())
}

/// The directory of each hierarchy that `pid` is in: v1 by controller (`memory`, `name=systemd`), v2 by `""`. None where
/// it is at the root: a process that has ended is, and what is meant for a container must never be done to the node.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn paths(pid: i32) -> Result<BTreeMap<String, PathBuf>, TaskError> {
    let unreadable = |e: procfs::ProcError| TaskError::Io {
        what: format!("read the cgroups of process {pid}"),
        source: std::io::Error::other(e),
    };
    let memberships = ProcFs::new(pid).and_then(|process| process.cgroups()).map_err(unreadable)?;
    let mounts = ProcFs::myself().and_then(|process| process.mountinfo()).map_err(unreadable)?;
    let mut paths = BTreeMap::new();
    for mount in mounts.0.iter().filter(|mount| mount.fs_type.starts_with("cgroup")) {
        for membership in &memberships.0 {
            let relative = membership.pathname.trim_start_matches('/');
            if relative.is_empty() {
                continue;
            }
            if membership.hierarchy == 0 && mount.fs_type == "cgroup2" {
                paths.entry(String::new()).or_insert_with(|| mount.mount_point.join(relative));
            }
            for controller in membership.controllers.iter().filter(|_| mount.fs_type == "cgroup") {
                if mount.super_options.contains_key(controller) || named(mount, controller) {
                    let path = mount.mount_point.join(relative);
                    paths.entry(controller.clone()).or_insert(path);
                }
            }
        }
    }
    Ok(paths)
}

/// Moves this process to where it is.
///
/// # Errors
/// Where it cannot.
pub(crate) fn stay() -> Result<(), TaskError> {
    let own = paths(std::process::id().cast_signed())?.into_values().next();
    let Some(own) = own else { return Ok(()) };
    std::fs::write(own.join("cgroup.procs"), "0").map_err(TaskError::io(format!("stay in {}", own.display())))
}

/// The processes in the cgroup with these directories; none where it is gone.
pub(crate) fn processes(cgroups: &BTreeMap<String, PathBuf>) -> Vec<i32> {
    let procs = cgroups.get("memory").or_else(|| cgroups.get("")).map(|cgroup| cgroup.join("cgroup.procs"));
    let pids = procs.and_then(|procs| std::fs::read_to_string(procs).ok()).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// The directories of cgroup `path` in hierarchies without controllers, where the OCI runtime puts a container as
/// well: named ones (`name=systemd`), and the v2 one of a hybrid host. Empty on a pure v2 host.
fn without_controllers(path: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let mounts =
        ProcFs::myself().and_then(|process| process.mountinfo()).map_err(failed("read the mounts"))?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let hybrid = mounts.0.iter().any(|mount| mount.fs_type == "cgroup");
    let bare = |mount: &&procfs::process::MountInfo| match mount.fs_type.as_str() {
        "cgroup" => mount.super_options.contains_key("name"),
        other => hybrid && other == "cgroup2",
    };
    Ok(mounts.0.iter().filter(bare).map(|mount| mount.mount_point.join(relative)).collect())
}

/// The cgroup v1 mounts of a container with `spec`: where each hierarchy appears inside, and the container's own
/// directory of it on the host. Empty where the spec mounts none, or on cgroup v2.
///
/// # Errors
/// When `/proc` cannot be read.
pub(crate) fn v1_mounts(spec: &Spec) -> Result<BTreeMap<String, PathBuf>, TaskError> {
    let mounted = spec.mounts().iter().flatten().find(|mount| mount.typ().as_deref() == Some("cgroup"));
    let (Some(mounted), Some(path)) = (mounted, cgroup_path(spec)) else { return Ok(BTreeMap::new()) };
    let mounts =
        ProcFs::myself().and_then(|process| process.mountinfo()).map_err(failed("read the mounts"))?;
    let relative = path.strip_prefix("/").unwrap_or(&path);
    let hierarchies = mounts.0.iter().filter(|mount| mount.fs_type == "cgroup");
    Ok(hierarchies
        .filter_map(|mount| {
            let name = mount.mount_point.file_name()?.to_str()?;
            let inside = mounted.destination().join(name).to_str()?.to_owned();
            Some((inside, mount.mount_point.join(relative)))
        })
        .collect())
}

/// Whether `mount` is the named hierarchy that `/proc/PID/cgroup` calls `name=NAME`.
fn named(mount: &procfs::process::MountInfo, controller: &str) -> bool {
    let Some(name) = controller.strip_prefix("name=") else { return false };
    mount.super_options.get("name").and_then(Option::as_deref) == Some(name)
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> TaskError {
    move |e| TaskError::Io { what: what.to_owned(), source: std::io::Error::other(e.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // it waits for its own child
    fn a_process_that_has_ended_has_no_directory_that_is_the_nodes() {
        let mut child =
            std::process::Command::new("true").stdout(std::process::Stdio::piped()).spawn().unwrap();
        // Its end closes the pipe; it stays a zombie.
        let mut nothing = Vec::new();
        std::io::Read::read_to_end(&mut child.stdout.take().unwrap(), &mut nothing).unwrap();
        while ProcFs::new(child.id().cast_signed()).unwrap().stat().unwrap().state != 'Z' {
            std::thread::yield_now();
        }
        let mounts = ProcFs::myself().unwrap().mountinfo().unwrap();
        for path in paths(child.id().cast_signed()).unwrap().values() {
            assert!(mounts.0.iter().all(|mount| mount.mount_point != *path), "{}", path.display());
        }
        child.wait().unwrap();
    }
}
