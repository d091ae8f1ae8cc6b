// SPDX-License-Identifier: Apache-2.0
//! Why a container may not be restored, in words for the person who wrote the pod.

use std::net::IpAddr;
use std::path::PathBuf;

use super::held::{Held, Who};

/// One reason against a restore. Each prints as one sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Another image.
    #[error("the image was {frozen:?} when frozen and is {new:?} now: use the same image")]
    Image {
        /// The image of the checkpoint.
        frozen: String,
        /// The image of the new container.
        new: String,
    },
    /// The spec describes no process.
    #[error("the new container's spec has no process")]
    NoProcess,
    /// Hooks, which belong to a start.
    #[error(
        "the new container's spec has OCI hooks ({lists}), which a restore cannot run: take away what adds them (a runtime class, a device plugin), or start the container afresh"
    )]
    Hooks {
        /// `prestart, poststop`.
        lists: String,
    },
    /// A terminal on one side only.
    #[error(
        "the container had {} when frozen: set `tty: {frozen}` in the pod", if *frozen { "a terminal" } else { "no terminal" }
    )]
    Terminal {
        /// Whether there was one.
        frozen: bool,
    },
    /// User namespaces cannot be restored.
    #[error("{} user namespace, which cannot be restored: leave out `hostUsers: false`", if *frozen { "the container was frozen in a" } else { "the new container has a" })]
    UserNamespace {
        /// Whether the frozen container had one; otherwise the new one has.
        frozen: bool,
    },
    /// The host's namespace on one side, and one of the pod on the other.
    #[error(
        "the container was frozen in {} {namespace} namespace and the new one has {}: set `{field}` as it was", whose(*frozen_own), whose(!*frozen_own)
    )]
    Namespace {
        /// Which one.
        namespace: &'static str,
        /// Whether the frozen container had one that was not the host's.
        frozen_own: bool,
        /// The field of the pod's spec that decides it.
        field: &'static str,
    },
    /// A namespace that several containers share, on one side only.
    #[error("the {namespace} namespace was {}shared with the pod when frozen: set `{field}` as it was", if *frozen_shared { "" } else { "not " })]
    SharedNamespace {
        /// Which one.
        namespace: &'static str,
        /// Whether it was shared.
        frozen_shared: bool,
        /// The field of the pod's spec that decides it.
        field: &'static str,
    },
    /// A mount that the new container does not have.
    #[error(
        "the container had a mount at {mountpoint:?} when frozen and the new one has none: give the pod the same volumes"
    )]
    MountGone {
        /// Where.
        mountpoint: PathBuf,
    },
    /// A mount that only the new container has.
    #[error(
        "the new container has a mount at {destination:?} that was not there when frozen: take the volume away"
    )]
    MountAdded {
        /// Where.
        destination: PathBuf,
    },
    /// A mount of another kind.
    #[error(
        "the mount at {mountpoint:?} was {frozen} when frozen and is {new} now: give the pod the same volumes"
    )]
    MountKind {
        /// Where.
        mountpoint: PathBuf,
        /// What it was.
        frozen: String,
        /// What it is.
        new: String,
    },
    /// The images mount something of the outside where it does not belong.
    #[error(
        "the images mount {key:?} at {mountpoint:?}: the checkpoint was changed, or comes from an unknown runtime"
    )]
    MountMoved {
        /// What.
        key: String,
        /// Where.
        mountpoint: PathBuf,
    },
    /// Two mounts, of which one covers the other.
    #[error(
        "at {mountpoint:?} one mount covered another when frozen, which cannot be restored: start the container afresh"
    )]
    MountCovered {
        /// Where.
        mountpoint: PathBuf,
    },
    /// A mount from which CRIU would make something else than was there.
    #[error("the mount at {mountpoint:?} {problem}, which cannot be restored: {advice}")]
    MountUnsafe {
        /// Where.
        mountpoint: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// A mount is less restricted than the spec wants it.
    #[error(
        "the mount at {mountpoint:?} must be {missing} in the new container and was not when frozen: mount it as it was"
    )]
    MountFlags {
        /// Where.
        mountpoint: PathBuf,
        /// `ro, nosuid`.
        missing: String,
    },
    /// A mount that passes mounts made inside on to the node.
    #[error(
        "the new container's mount at {mountpoint:?} has mountPropagation Bidirectional, which cannot be restored: use HostToContainer, or start the container afresh"
    )]
    MountShared {
        /// Where.
        mountpoint: PathBuf,
    },
    /// Devices that the new container does not have.
    #[error(
        "the container had {} when frozen and the new one was given no device for {}: request the same resources, or start it afresh", devices(paths), if paths.len() == 1 { "it" } else { "them" }
    )]
    DevicesGone {
        /// Their paths.
        paths: Vec<PathBuf>,
    },
    /// Paths that must lead to devices which the new container has elsewhere.
    #[error(
        "the container knew {}, which must lead to what the new one was given in its place",
        devices(paths)
    )]
    DevicesUnprepared {
        /// The paths.
        paths: Vec<PathBuf>,
    },
    /// A GPU cannot take the place of another one.
    #[error("{problem}")]
    Gpu {
        /// Why.
        problem: String,
    },
    /// What was in the memory of a GPU cannot go to another one.
    #[error(
        "the container had other GPUs when frozen ({moved}), and NVIDIA's driver {version} can only bring back what was on the same ones: use driver {since} or later"
    )]
    GpuMoved {
        /// Which.
        moved: String,
        /// The first number of the node's driver.
        version: u32,
        /// That of the first one that can.
        since: u32,
    },
    /// What is missing is what the plugin provides.
    #[error(
        "thaw-nri is not running on this node: it provides devices, driver files and addresses that a checkpoint knows"
    )]
    NoPlugin,
    /// A cgroup v1 mount for which there is no cgroup.
    #[error(
        "the container had the cgroup mount {mountpoint:?} when frozen, for which this node has no cgroup: use a node with the same cgroup version"
    )]
    CgroupMount {
        /// Where.
        mountpoint: PathBuf,
    },
    /// The spec hides a path that the images show.
    #[error(
        "{} must be hidden in the new container and {} not when frozen: run the pod as privileged as it was, or start it afresh",
        quoted(paths),
        was(paths)
    )]
    Unmasked {
        /// The paths.
        paths: Vec<PathBuf>,
    },
    /// The spec makes paths read-only that the images do not.
    #[error(
        "{} must be read-only in the new container and {} not when frozen: run the pod as privileged as it was, or start it afresh",
        quoted(paths),
        was(paths)
    )]
    Writable {
        /// The paths.
        paths: Vec<PathBuf>,
    },
    /// The security module cannot be applied.
    #[error(
        "the new container must run under the {module} profile {profile:?}, which cannot be given to one that was frozen on a node without {module}"
    )]
    Lsm {
        /// AppArmor or SELinux.
        module: &'static str,
        /// The profile or label.
        profile: String,
    },
    /// A seccomp filter that allows more than the new profile.
    #[error(
        "the container was frozen under a seccomp profile that allows {more}, which the new one does not: set `seccompProfile` as it was, or give the node the profile that it had"
    )]
    Seccomp {
        /// The calls.
        more: String,
    },
    /// Seccomp filters that the programs themselves have set.
    #[error(
        "the container was frozen without a seccomp profile, and the new one has one: set `seccompProfile` as it was"
    )]
    SeccompOwn,
    /// A socket is bound to an address of the old pod, and there is none in its place.
    #[error("a socket was bound to the pod's address {address}, {}", if *keep {
        "which thaw.dev/address: keep wants back and the new pod does not have"
    } else {
        "and the new pod has no address of that family in its place: give it one, or let the program bind to any address"
    })]
    AddressGone {
        /// The old address.
        address: IpAddr,
        /// Whether the pod wants it back.
        keep: bool,
    },
    /// Connections are to be kept, and their address is not.
    #[error(
        "thaw.dev/tcp: keep wants connections to outside back, and they were at {address}, which the new pod does not have: bring it along with thaw.dev/address: keep, or let them be closed with thaw.dev/tcp: auto"
    )]
    ConnectionsMoved {
        /// The old address.
        address: IpAddr,
    },
    /// A socket is bound to an interface that the new pod lacks.
    #[error(
        "a socket was bound to the interface {interface:?}, which the new pod does not have: give it the same networks"
    )]
    InterfaceGone {
        /// Its name.
        interface: String,
    },
    /// A packet socket is bound to an interface of which only the number is known.
    #[error(
        "a packet socket was bound to the interface with the number {number}, and the checkpoint does not say which one that was: freeze the pod again under the runtime class thaw"
    )]
    InterfaceUnknown {
        /// Its number.
        number: u32,
    },
    /// Sockets that the new container may not open.
    #[error(
        "a process had a raw or packet socket, which the new container may not open: give it the capability NET_RAW as it had"
    )]
    RawSocket,
    /// A file in an emptyDir volume that does not belong to the checkpoint.
    #[error(
        "the file {path:?} was open in the emptyDir volume {volume:?}, which is empty in the new pod: set thaw.dev/volumes: {volume} before the pod is frozen, and in the new pod"
    )]
    FileInVolume {
        /// The file, in the container.
        path: PathBuf,
        /// The volume's name.
        volume: String,
    },
    /// A file that is not there any more.
    #[error(
        "the file {path:?} was open when frozen, and the new pod's volume does not have it: put it back, or start the container afresh"
    )]
    FileGone {
        /// The file, in the container.
        path: PathBuf,
    },
    /// A file of another size.
    #[error(
        "the file {path:?} had {was} bytes when it was open and frozen, and has {now} now: put it back as it was, or start the container afresh (only a file that is open for writing at its end may have grown)"
    )]
    FileChanged {
        /// The file, in the container.
        path: PathBuf,
        /// Its size in bytes when frozen.
        was: u64,
        /// Its size in bytes now.
        now: u64,
    },
    /// No such volume in the pod.
    #[error(
        "thaw.dev/volumes names {name:?}, and the pod has no emptyDir volume of that name: it has {}",
        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    )]
    VolumeUnknown {
        /// The name in the annotation.
        name: String,
        /// The emptyDir volumes that there are.
        known: Vec<String>,
    },
    /// No such volume in the checkpoint.
    #[error(
        "thaw.dev/volumes names {name:?}, of which the checkpoint has nothing: the annotation must be there before the pod is frozen"
    )]
    VolumeNotFrozen {
        /// The name in the annotation.
        name: String,
    },
    /// Threads have something that the new container may not have.
    #[error("{who} {held}")]
    Claim {
        /// The threads.
        who: Who,
        /// What they have.
        held: Held,
    },
}

fn quoted(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", ")
}

fn devices(paths: &[PathBuf]) -> String {
    format!("the device{} {}", if paths.len() == 1 { "" } else { "s" }, quoted(paths))
}

fn was(paths: &[PathBuf]) -> &'static str {
    if paths.len() == 1 { "was" } else { "were" }
}

fn whose(own: bool) -> &'static str {
    if own { "its own" } else { "the host's" }
}
