// SPDX-License-Identifier: Apache-2.0
//! Which mounts of the images CRIU would make as binds of one another.
//!
//! CRIU takes every two mounts with one device number for two views of one file system: it makes the first and binds
//! the second from it, whatever the second is. The numbers are the images' say-so, so only the relations that
//! runtimes set up are let through. Source: CRIU criu/mount.c, `mounts_sb_equal`, `propagate_mount`; criu/mount-v2.c,
//! `do_bind_mount_v2`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::mounts::{DEVPTS, NULL, PROC, READ_ONLY, SYSFS, TMPFS, only_hides};
use super::{FrozenMount, Reason, hooks};

/// The `MS_*` flags that restrict: read-only, nosuid, nodev, noexec. Source: Linux include/uapi/linux/mount.h.
const RESTRICTED: u32 = 0xf;
const AFRESH: &str = "start the container afresh";

/// Whether the mount says plainly what it shows and where.
pub(super) fn plain(mount: &FrozenMount, terminal: bool) -> Result<(), Reason> {
    let whole = mount.root == "/" || mount.mountpoint == "/" || mount.ext_key.is_some();
    // These are judged with the mount that they are a part of.
    let part = matches!(mount.fstype, PROC | SYSFS)
        || (terminal && is_console(mount))
        || hooks::is_parameters(mount);
    let problem = if !is_clean(&mount.mountpoint) || !is_clean(&mount.root) {
        "has a path that is not plain"
    } else if mount.deleted {
        "showed something deleted when frozen"
    } else if !whole && !part {
        "shows only a part of its file system"
    } else {
        return Ok(());
    };
    Err(unsafe_mount(mount, problem.to_owned(), AFRESH))
}

/// Whether it is the terminal of the container. Source: runc libcontainer/rootfs_linux.go, setupConsole.
pub(super) fn is_console(mount: &FrozenMount) -> bool {
    mount.fstype == DEVPTS && mount.mountpoint == "/dev/console" && mount.ext_key.is_none()
}

/// Adds a reason for every file system whose mounts have no relation that runtimes set up.
pub(super) fn check(mounts: &[FrozenMount], reasons: &mut Vec<Reason>) {
    let mut by_device: BTreeMap<u32, Vec<&FrozenMount>> = BTreeMap::new();
    for mount in mounts {
        by_device.entry(mount.root_dev).or_default().push(mount);
    }
    for group in by_device.values() {
        if let Some((mount, other)) = stranger(group) {
            let problem = format!("has the file system of the one at {:?}", other.mountpoint);
            reasons.push(unsafe_mount(mount, problem, AFRESH));
        }
    }
}

/// A mount that may not have the file system of another one, and that one.
fn stranger<'a>(group: &[&'a FrozenMount]) -> Option<(&'a FrozenMount, &'a FrozenMount)> {
    let internal = |mount: &&&FrozenMount| mount.ext_key.is_none() || mount.mountpoint == "/";
    // The mount that the others may be views of: the one that shows all, or any if none does.
    let bases = group.iter().filter(internal);
    let base = *bases.min_by_key(|mount| (mount.mountpoint != "/", mount.root != "/"))?;
    let mut others = group.iter().filter(|mount| mount.id != base.id);
    others.find(|other| !may_share(base, other)).map(|other| (*other, base))
}

fn may_share(base: &FrozenMount, other: &FrozenMount) -> bool {
    if base.mountpoint == "/" {
        // Where the root file system is no overlay, volumes may lie on the same disk; they are set apart.
        return is_volume(other);
    }
    // What hides a file is the container's own /dev/null.
    if let Some(key) = &other.ext_key {
        return key == NULL;
    }
    match base.fstype {
        fstype if fstype != other.fstype || base.root != "/" => false,
        PROC | SYSFS => {
            let below = Path::new(&other.mountpoint).strip_prefix(&base.mountpoint);
            other.mountpoint != base.mountpoint
                && below.is_ok_and(|below| Path::new("/").join(below) == Path::new(&other.root))
        }
        DEVPTS => is_console(other),
        // runc hides all directories with one empty file system.
        TMPFS => {
            (is_empty_lid(base) && is_empty_lid(other))
                || (hooks::is_scratch(base) && hooks::is_parameters(other))
        }
        _ => false,
    }
}

fn is_empty_lid(mount: &FrozenMount) -> bool {
    mount.root == "/" && mount.flags & READ_ONLY != 0 && only_hides(Path::new(&mount.mountpoint))
}

/// Which mounts are to get a device number that no other one has. Of two equally restricted views of one volume CRIU
/// leaves the second as free as its source: it sets the flags of an external mount only where they differ from those of
/// the mount that it could be bound from. And a volume on the disk of the root file system is no view of that.
pub(super) fn apart(mounts: &[FrozenMount]) -> Vec<u32> {
    let root = mounts.iter().find(|mount| mount.mountpoint == "/").map(|mount| mount.root_dev);
    let mut seen = BTreeSet::new();
    let view = |mount: &&FrozenMount| {
        Some(mount.root_dev) == root || (mount.flags & RESTRICTED != 0 && !seen.insert(mount.root_dev))
    };
    mounts.iter().filter(|mount| is_volume(mount)).filter(view).map(|mount| mount.id).collect()
}

fn is_volume(mount: &FrozenMount) -> bool {
    mount.mountpoint != "/" && mount.ext_key.as_deref().is_some_and(|key| key != NULL)
}

fn unsafe_mount(mount: &FrozenMount, problem: String, advice: &'static str) -> Reason {
    Reason::MountUnsafe { mountpoint: mount.mountpoint.clone().into(), problem, advice }
}

/// Whether the path is absolute and means what it says: no `.`, `..` or empty component.
fn is_clean(path: &str) -> bool {
    let clean = |rest: &str| rest.split('/').all(|component| !matches!(component, "" | "." | ".."));
    path == "/" || path.strip_prefix('/').is_some_and(clean)
}
