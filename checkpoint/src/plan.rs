// SPDX-License-Identifier: Apache-2.0
//! Whether a frozen container may go on as a new one, and how: checkpoint x new spec x host -> plan, or reasons.
//!
//! CRIU restores what the images say and never looks at the spec. So this module does: everything that the images
//! claim is compared with what the new spec allows, and whatever would give the container more is a reason to refuse.
//! What lies outside the processes (mount sources, namespaces, cgroups) is taken from the new spec alone.
//!
//! Pure: no system call but in [`Host::probe`] and [`resolve_destinations`], which gather facts. All reasons come at
//! once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxSeccomp, Spec};

use crate::devices::{self, Device};
use crate::gpu::Gpu;

mod binds;
mod capability;
mod claims;
mod destination;
mod gpus;
mod held;
mod hooks;
mod host;
mod mounts;
mod namespaces;
mod network;
mod reason;
mod seccomp;
mod volumes;

pub use capability::{Capabilities, capability_names};
pub use claims::Claims;
pub use destination::resolve_destinations;
pub use held::{Held, Who};
pub use host::{Host, Lsm};
pub use network::{FrozenNetwork, NewNetwork, PacketSocket, Socket, Sockets};
pub use reason::Reason;
pub use volumes::{Content, FrozenVolumes, NewVolumes, SHM, volume_file, volume_of};

/// What the images of one container say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// The name of its image, from the manifest.
    pub image: String,
    /// Its mounts, `mountpoints-N.img`.
    pub mounts: Vec<FrozenMount>,
    /// The devices that its spec gave it, `spec.dump`.
    pub devices: Vec<Device>,
    /// Those of them that are GPUs, `thaw-gpus.json`.
    pub gpus: Vec<Gpu>,
    /// Whether its images hold what processes had in the memory of NVIDIA's GPUs, `inventory.img`.
    pub cuda: bool,
    /// The key by which its network namespace is external, `netns-N.img`.
    pub network_key: Option<String>,
    /// The key by which its PID namespace is external (a pod that shares one), `pidns-N.img`.
    pub pid_key: Option<String>,
    /// Which namespaces it did not share with the host.
    pub own: OwnNamespaces,
    /// The seccomp profile of its spec, `spec.dump`.
    pub seccomp: Option<LinuxSeccomp>,
    /// Every live thread of every process.
    pub threads: Vec<Claims>,
    /// What descriptors 0, 1 and 2 were, `descriptors.json`.
    pub stdio: [Option<String>; 3],
    /// Whether it had a terminal.
    pub terminal: bool,
    /// The security module of the host it was frozen on, `inventory.img`.
    pub lsm: Lsm,
    /// Its sockets, and the addresses that its pod had.
    pub network: FrozenNetwork,
    /// What there is of its /dev/shm and its volumes.
    pub volumes: FrozenVolumes,
}

/// One mount of the frozen container. Source: CRIU images/mnt.proto.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrozenMount {
    /// `mnt_id`.
    pub id: u32,
    /// `parent_mnt_id`.
    pub parent: u32,
    /// Where it is in the container, absolute.
    pub mountpoint: String,
    /// Which part of its file system it shows.
    pub root: String,
    /// The kind of file system, by CRIU's own numbers.
    pub fstype: u32,
    /// `MS_*` flags of the mount.
    pub flags: u32,
    /// The device number of its file system; CRIU binds mounts that have the same one from each other.
    pub root_dev: u32,
    /// Whether what was mounted had been deleted; CRIU makes it anew, and deletes it afterwards.
    pub deleted: bool,
    /// The key by which it is external: its content comes from the outside.
    pub ext_key: Option<String>,
}

/// For each namespace whether the container had one that was not the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnNamespaces {
    /// Network.
    pub network: bool,
    /// Process ids.
    pub pid: bool,
    /// System V IPC and message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// User ids.
    pub user: bool,
}

/// The container that it shall become.
#[derive(Debug, Clone)]
pub struct NewContainer<'a> {
    /// Its OCI spec.
    pub spec: &'a Spec,
    /// The name of its image (annotation `io.kubernetes.cri.image-name`).
    pub image: &'a str,
    /// Mount destinations of the spec that lead through links of the root file system, and where they really are;
    /// [`resolve_destinations`] makes it.
    pub destinations: BTreeMap<PathBuf, PathBuf>,
    /// On cgroup v1, what is mounted in the container (`/sys/fs/cgroup/memory`) and the new cgroup's directory on the
    /// host for it.
    pub cgroups: BTreeMap<String, PathBuf>,
    /// What its sockets find, and what the pod wants of them.
    pub network: NewNetwork,
    /// Its pod's volumes, and what the pod wants of them.
    pub volumes: NewVolumes,
    /// Whether the node's plugin has prepared the container for this restore.
    pub prepared: bool,
}

/// How the container is restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// CRIU's `ext_mnt`: key and path on the host.
    pub external_mounts: Vec<(String, PathBuf)>,
    /// CRIU's `inherit_fd`: key, and path of the network namespace.
    pub network: Option<(String, PathBuf)>,
    /// CRIU's `inherit_fd`: key, and path of the PID namespace.
    pub pid: Option<(String, PathBuf)>,
    /// CRIU's `join_ns` for IPC.
    pub ipc: Option<PathBuf>,
    /// CRIU's `join_ns` for UTS.
    pub uts: Option<PathBuf>,
    /// Whether the container has a cgroup namespace; CRIU does not make one, so who starts CRIU must.
    pub cgroup_namespace: bool,
    /// CRIU's `lsm_profile`.
    pub lsm_profile: Option<String>,
    /// CRIU's `lsm_mount_context`.
    pub lsm_mount_context: Option<String>,
    /// The `inherit_fd` keys of descriptors 0, 1 and 2, where they were pipes.
    pub stdio: [Option<String>; 3],
    /// The device nodes of the new spec, which take the place of all that the images hold.
    pub devices: Vec<Device>,
    /// What `cuda-checkpoint` is to be told: each old GPU and the one in its place, by UUID. Empty where all are the same.
    pub gpu_map: Vec<(String, String)>,
    /// What must exist in the root file system, parents first.
    pub mountpoints: Vec<Mountpoint>,
    /// Mounts of the images, by number, that need a device number of their own.
    pub apart: Vec<u32>,
    /// Volumes that the images do not have, parents first; their sources are among the external mounts.
    pub added: Vec<AddedMount>,
    /// What becomes of its sockets.
    pub sockets: Sockets,
    /// What is unpacked before the processes come back.
    pub contents: Vec<Content>,
}

/// A volume of the new container that was not there when frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedMount {
    /// Where, absolute, without links; its key as an external mount as well.
    pub destination: PathBuf,
    /// The `MS_*` flags that restrict it.
    pub flags: u32,
}

/// A place in the root file system on which something is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mountpoint {
    /// Where, absolute, as the spec has it; links in it are to be resolved within the root file system.
    pub destination: PathBuf,
    /// A file if this (on the host) is one, a directory otherwise; `None`: a directory.
    pub like: Option<PathBuf>,
}

/// Why the container may not be restored: every reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Vec<Reason>);

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::faults::join(f, &self.0)
    }
}

/// Decides whether `frozen` may go on as `new` on `host`, and how.
///
/// # Errors
/// Every [`Reason`] against it.
pub fn plan(frozen: &Frozen, new: &NewContainer<'_>, host: &Host) -> Result<Plan, Refused> {
    let (mut plan, mut reasons) = (Plan::default(), Vec::new());
    if frozen.image != new.image {
        reasons.push(Reason::Image { frozen: frozen.image.clone(), new: new.image.to_owned() });
    }
    let Some(process) = new.spec.process() else { return Err(Refused(vec![Reason::NoProcess])) };
    if frozen.terminal != process.terminal().unwrap_or(false) {
        reasons.push(Reason::Terminal { frozen: frozen.terminal });
    }
    reasons.extend(hooks::check(new.spec));
    let lsm_profile = lsm_profile(frozen.lsm, process, host.lsm);
    // CRIU leaves a thread that has no profile in the images without one, whatever is supplied. Source: CRIU
    // criu/cr-restore.c.
    let confined = matches!(&lsm_profile, Ok(Some(_)));
    // What the processes hold comes first: it weighs most, and a pod's event shows 1024 bytes of the text.
    claims::check(&frozen.threads, new.spec, process, confined, &mut reasons);
    let seccomp = new.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    seccomp::check(frozen.seccomp.as_ref(), seccomp, &frozen.threads, &mut reasons);
    namespaces::plan(frozen, new.spec, host, &mut plan, &mut reasons);
    mounts::plan(frozen, new, host, &mut plan, &mut reasons);
    let may_raw = claims::bounding(process) & capability::NET_RAW != 0;
    plan.sockets = network::plan(&frozen.network, &new.network, may_raw, &mut reasons);
    plan.contents = volumes::plan(&frozen.volumes, &new.volumes, &mut reasons);
    device_nodes(frozen, new, &mut plan, &mut reasons);
    gpus::plan(frozen, new.spec, host, &mut plan, &mut reasons);
    match lsm_profile {
        Ok(profile) => plan.lsm_profile = profile,
        Err(reason) => reasons.push(reason),
    }
    if host.lsm == Lsm::Selinux {
        plan.lsm_mount_context = new.spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    }
    plan.stdio = frozen.stdio.clone().map(|name| name.filter(|name| name.starts_with("pipe:")));
    let lacks = |reason: &Reason| {
        matches!(
            reason,
            Reason::MountGone { .. }
                | Reason::DevicesUnprepared { .. }
                | Reason::AddressGone { keep: true, .. }
        )
    };
    if !new.prepared && reasons.iter().any(lacks) {
        reasons.push(Reason::NoPlugin);
    }
    if reasons.is_empty() { Ok(plan) } else { Err(Refused(reasons)) }
}

/// Every path by which the processes know a device must lead to a device of the new container.
fn device_nodes(frozen: &Frozen, new: &NewContainer<'_>, plan: &mut Plan, reasons: &mut Vec<Reason>) {
    plan.devices = devices::of_spec(new.spec);
    if devices::allows_all(new.spec) {
        return;
    }
    let devices::Fit { aliases, missing, .. } = devices::fit(&frozen.devices, &plan.devices);
    if !missing.is_empty() {
        reasons.push(Reason::DevicesGone { paths: missing });
    }
    if !aliases.is_empty() {
        reasons
            .push(Reason::DevicesUnprepared { paths: aliases.into_iter().map(|alias| alias.path).collect() });
    }
}

/// CRIU sets the profile only where images and host have the same module. Source: CRIU criu/lsm.c.
fn lsm_profile(
    frozen: Lsm,
    process: &oci_spec::runtime::Process,
    host: Lsm,
) -> Result<Option<String>, Reason> {
    let (module, profile) = match host {
        Lsm::Apparmor => ("apparmor", process.apparmor_profile()),
        Lsm::Selinux => ("selinux", process.selinux_label()),
        Lsm::None => return Ok(None),
    };
    match profile.as_deref().filter(|profile| !profile.is_empty()) {
        None => Ok(None),
        Some(profile) if frozen == host => Ok(Some(format!("{module}:{profile}"))),
        Some(profile) => Err(Reason::Lsm { module, profile: profile.to_owned() }),
    }
}

/// A path as comparisons need it: no `.`, no doubled or trailing slash.
fn normal(path: impl AsRef<Path>) -> PathBuf {
    path.as_ref().components().collect()
}

#[cfg(test)]
mod tests;
