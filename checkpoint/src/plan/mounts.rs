// SPDX-License-Identifier: Apache-2.0
//! Every mount of the images against the mounts of the new spec, by destination.
//!
//! CRIU mounts what the images say, with the flags they say; only the sources of external mounts come from outside.
//! So each mount must have its counterpart in the spec, of the same kind and at least as restricted, or be one that
//! merely hides or protects something in /proc or /sys. No mount may cover another one: what is hidden could be the
//! very mount that hides something. What CRIU may bind from what is the matter of [`binds`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::{
    AddedMount, Frozen, FrozenMount, Host, Mountpoint, NewContainer, Plan, Reason, binds, hooks, normal,
};

/// What hides a file. Source: runc libcontainer/rootfs_linux.go, maskPath.
pub(super) const NULL: &str = "/dev/null";
/// Mount options that restrict, with their `MS_*` flag. Source: Linux include/uapi/linux/mount.h.
const RESTRICTIONS: [(&str, u32); 4] = [("ro", READ_ONLY), ("nosuid", 2), ("nodev", 4), ("noexec", 8)];
/// `MS_RDONLY`.
pub(super) const READ_ONLY: u32 = 1;

/// File systems that a container's own mounts have. Source: CRIU images/mnt.proto, `fstype`.
pub(super) const PROC: u32 = 1;
pub(super) const SYSFS: u32 = 2;
pub(super) const TMPFS: u32 = 5;
pub(super) const DEVPTS: u32 = 6;
const CGROUP: u32 = 12;
const MQUEUE: u32 = 14;
const CGROUP2: u32 = 23;

/// Whether mounts made inside are to appear on the node. CRIU makes a mount from outside anew, in a peer group of
/// its own.
fn is_shared(mount: &Mount) -> bool {
    mount.options().iter().flatten().any(|option| option == "shared" || option == "rshared")
}

/// Fills in the plan's mounts, or adds what is against them.
pub(super) fn plan(
    frozen: &Frozen,
    new: &NewContainer<'_>,
    host: &Host,
    plan: &mut Plan,
    reasons: &mut Vec<Reason>,
) {
    let wanted = Wanted::of(new, frozen.terminal);
    let at: BTreeMap<PathBuf, &FrozenMount> =
        frozen.mounts.iter().map(|mount| (normal(&mount.mountpoint), mount)).collect();
    for mount in &frozen.mounts {
        let judged = binds::plain(mount, frozen.terminal)
            .and_then(|()| uncovered(mount, &at))
            .and_then(|()| wanted.judge(mount, new, plan));
        reasons.extend(judged.err());
    }
    binds::check(&frozen.mounts, reasons);
    plan.apart = binds::apart(&frozen.mounts);
    for (destination, mount) in wanted.mounts.iter().filter(|(destination, _)| !at.contains_key(*destination))
    {
        match mount.source().clone().filter(|_| is_bind(mount) && may_add(destination, &at)) {
            Some(source) => {
                plan.external_mounts.push((destination.to_string_lossy().into_owned(), source));
                plan.added.push(AddedMount { destination: destination.clone(), flags: restrictions(mount) });
            }
            None => reasons.push(Reason::MountAdded { destination: mount.destination().clone() }),
        }
    }
    hidden(new.spec, host, &at, reasons);
    plan.external_mounts.sort();
    plan.external_mounts.dedup();
    plan.mountpoints = mountpoints(new.spec);
}

/// The spec's mounts, by where they really are; of several at one place the last, which covers the others.
struct Wanted<'a> {
    mounts: BTreeMap<PathBuf, &'a Mount>,
    root_read_only: bool,
    masked: Vec<PathBuf>,
    terminal: bool,
    hides_parameters: bool,
}

impl<'a> Wanted<'a> {
    fn of(new: &NewContainer<'a>, terminal: bool) -> Self {
        let real = |mount: &Mount| {
            let destination = mount.destination();
            normal(new.destinations.get(destination).unwrap_or(destination))
        };
        let mounts = new.spec.mounts().iter().flatten().map(|mount| (real(mount), mount)).collect();
        let root_read_only = new.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let masked = new.spec.linux().iter().filter_map(|linux| linux.masked_paths().as_ref());
        let masked = masked.flatten().map(normal).collect();
        Self { mounts, root_read_only, masked, terminal, hides_parameters: hooks::hides_parameters(new.spec) }
    }

    /// Whether the mount may be restored; adds its source to the plan if it is external.
    fn judge(&self, mount: &FrozenMount, new: &NewContainer<'_>, plan: &mut Plan) -> Result<(), Reason> {
        let mountpoint = normal(&mount.mountpoint);
        if mountpoint == Path::new("/") {
            let wanted = if self.root_read_only { READ_ONLY } else { 0 };
            return restricted(mount, wanted, mountpoint);
        }
        match &mount.ext_key {
            Some(key) if key == NULL && only_hides(&mountpoint) => {
                plan.external_mounts.push((key.clone(), NULL.into()));
                Ok(())
            }
            Some(key) => self.external(key, mount, mountpoint, new, plan),
            None => self.internal(mount, mountpoint),
        }
    }

    fn external(
        &self,
        key: &str,
        mount: &FrozenMount,
        mountpoint: PathBuf,
        new: &NewContainer<'_>,
        plan: &mut Plan,
    ) -> Result<(), Reason> {
        let place =
            normal(new.destinations.get(Path::new(key)).map_or_else(|| Path::new(key), PathBuf::as_path));
        if place != mountpoint {
            return Err(Reason::MountMoved { key: key.to_owned(), mountpoint });
        }
        let source = match self.mounts.get(&mountpoint) {
            Some(wanted) if is_bind(wanted) => {
                if is_shared(wanted) {
                    return Err(Reason::MountShared { mountpoint });
                }
                restricted(mount, restrictions(wanted), mountpoint)?;
                wanted.source().clone().unwrap_or_default()
            }
            Some(wanted) => {
                return Err(Reason::MountKind {
                    mountpoint,
                    frozen: "a volume".into(),
                    new: wanted.typ().clone().unwrap_or_default(),
                });
            }
            None => match self.above(&mountpoint) {
                Some(wanted) if is_cgroup(wanted) => {
                    let source = new.cgroups.get(key).cloned();
                    let source =
                        source.ok_or_else(|| Reason::CgroupMount { mountpoint: mountpoint.clone() })?;
                    restricted(mount, restrictions(wanted), mountpoint)?;
                    source
                }
                _ => return Err(Reason::MountGone { mountpoint }),
            },
        };
        plan.external_mounts.push((key.to_owned(), source));
        Ok(())
    }

    fn internal(&self, mount: &FrozenMount, mountpoint: PathBuf) -> Result<(), Reason> {
        let below = |destination: &Path| {
            normal(Path::new("/").join(mountpoint.strip_prefix(destination).unwrap_or(&mountpoint)))
        };
        let found = self.mounts.get_key_value(&mountpoint);
        match found {
            Some((destination, wanted)) => {
                let same = kinds(wanted).contains(&mount.fstype) && !is_bind(wanted);
                // A /proc that shows another part of itself than it should would show what is hidden.
                let whole =
                    !matches!(mount.fstype, PROC | SYSFS) || normal(&mount.root) == below(destination);
                if !same || !whole {
                    let new = if is_bind(wanted) {
                        "a volume".into()
                    } else {
                        wanted.typ().clone().unwrap_or_default()
                    };
                    return Err(Reason::MountKind { mountpoint, frozen: kind_name(mount.fstype), new });
                }
                // runc leaves the tmpfs that holds the cgroup v1 hierarchies writable; they themselves are not.
                let holds_cgroups = is_cgroup(wanted) && mount.fstype == TMPFS;
                let except = if holds_cgroups { READ_ONLY } else { 0 };
                restricted(mount, restrictions(wanted) & !except, mountpoint)
            }
            None => {
                let wanted = self.above(&mountpoint).filter(|wanted| kinds(wanted).contains(&mount.fstype));
                let protects = mount.flags & READ_ONLY != 0 && only_hides(&mountpoint);
                match wanted {
                    Some(wanted) if is_cgroup(wanted) => restricted(mount, restrictions(wanted), mountpoint),
                    Some(wanted) if protects && self.shows_nothing_masked(&mountpoint) => {
                        let same = normal(&mount.root) == below(&normal(wanted.destination()));
                        if same { Ok(()) } else { Err(Reason::MountGone { mountpoint }) }
                    }
                    _ if self.terminal && binds::is_console(mount) => Ok(()),
                    _ if self.hides_parameters
                        && (hooks::is_scratch(mount) || hooks::is_parameters(mount)) =>
                    {
                        Ok(())
                    }
                    _ if protects && mount.fstype == TMPFS => Ok(()),
                    _ => Err(Reason::MountGone { mountpoint }),
                }
            }
        }
    }

    /// Whether a part of /proc mounted on itself here shows nothing that the spec hides.
    fn shows_nothing_masked(&self, mountpoint: &Path) -> bool {
        !self.masked.iter().any(|masked| mountpoint.starts_with(masked) || masked.starts_with(mountpoint))
    }

    /// The spec's mount that holds this path.
    fn above(&self, path: &Path) -> Option<&Mount> {
        path.ancestors().skip(1).find_map(|path| self.mounts.get(path)).copied()
    }
}

/// Whether the mount lies on the one that holds its mountpoint, and nothing lies on it at the same place.
fn uncovered(mount: &FrozenMount, at: &BTreeMap<PathBuf, &FrozenMount>) -> Result<(), Reason> {
    let mountpoint = normal(&mount.mountpoint);
    let alone = at.get(&mountpoint).is_none_or(|other| other.id == mount.id);
    let holder = mountpoint.ancestors().skip(1).find_map(|path| at.get(path));
    let on_holder = holder.is_none_or(|holder| holder.id == mount.parent);
    if alone && on_holder { Ok(()) } else { Err(Reason::MountCovered { mountpoint }) }
}

/// Whether a volume can be mounted here that was not there when frozen: its place must be in a file system that is
/// prepared before CRIU mounts, and it must cover no other mount.
fn may_add(destination: &Path, at: &BTreeMap<PathBuf, &FrozenMount>) -> bool {
    let holder = destination.ancestors().skip(1).find_map(|path| at.get(path));
    let prepared = |mount: &&FrozenMount| {
        mount.mountpoint == "/" || mount.ext_key.as_deref().is_some_and(|key| key != NULL)
    };
    holder.is_some_and(prepared) && !at.keys().any(|other| other.starts_with(destination))
}

/// Whether a mount here can only take something away from the container.
pub(super) fn only_hides(mountpoint: &Path) -> bool {
    let below = |top: &str| mountpoint.starts_with(top) && mountpoint != Path::new(top);
    below("/proc") || below("/sys")
}

fn is_bind(mount: &Mount) -> bool {
    let bind = |option: &String| option == "bind" || option == "rbind";
    mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(bind)
}

fn is_cgroup(mount: &Mount) -> bool {
    matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
}

/// The file systems that a mount of the spec becomes.
fn kinds(mount: &Mount) -> &'static [u32] {
    match mount.typ().as_deref() {
        Some("proc") => &[PROC],
        Some("sysfs") => &[SYSFS],
        Some("tmpfs") => &[TMPFS],
        Some("devpts") => &[DEVPTS],
        Some("mqueue") => &[MQUEUE],
        // On cgroup v1 it is a tmpfs with one mount for each controller.
        Some("cgroup" | "cgroup2") => &[CGROUP, CGROUP2, TMPFS],
        _ => &[],
    }
}

fn kind_name(fstype: u32) -> String {
    match fstype {
        PROC => "proc".into(),
        SYSFS => "sysfs".into(),
        TMPFS => "tmpfs".into(),
        DEVPTS => "devpts".into(),
        MQUEUE => "mqueue".into(),
        CGROUP | CGROUP2 => "cgroup".into(),
        other => format!("a file system of CRIU's type {other}"),
    }
}

fn restrictions(mount: &Mount) -> u32 {
    let options = || mount.options().iter().flatten();
    let flag =
        |option: &str| RESTRICTIONS.iter().find(|(name, _)| *name == option).map_or(0, |(_, flag)| *flag);
    // `rro` and its like hold for the mounts below as well, and the runtime sets them last.
    let recursive =
        options().filter_map(|option| option.strip_prefix('r')).fold(0, |flags, option| flags | flag(option));
    // A later option undoes an earlier one.
    let own = options().fold(0, |flags, option| {
        let unset = match option.as_str() {
            "rw" => READ_ONLY,
            "suid" => 2,
            "dev" => 4,
            "exec" => 8,
            _ => 0,
        };
        (flags | flag(option)) & !unset
    });
    own | recursive
}

fn restricted(mount: &FrozenMount, wanted: u32, mountpoint: PathBuf) -> Result<(), Reason> {
    let missing = wanted & !mount.flags;
    if missing == 0 {
        return Ok(());
    }
    let names = RESTRICTIONS.iter().filter(|(_, flag)| missing & flag != 0).map(|(name, _)| *name);
    Err(Reason::MountFlags { mountpoint, missing: names.collect::<Vec<_>>().join(", ") })
}

/// What the spec hides or protects must be so in the images.
fn hidden(spec: &Spec, host: &Host, at: &BTreeMap<PathBuf, &FrozenMount>, reasons: &mut Vec<Reason>) {
    let linux = spec.linux().as_ref();
    let paths = |paths: Option<&Vec<String>>| {
        let paths = paths.into_iter().flatten().map(normal);
        paths.filter(|path| host.existing.contains(path)).collect::<Vec<_>>()
    };
    let covered = |path: &Path| {
        let mounts = path.ancestors().filter_map(|path| at.get(path));
        mounts.into_iter().any(|mount| mount.ext_key.as_deref() == Some(NULL) || hides(mount))
    };
    let protected = |path: &Path| {
        let mut mounts = path.ancestors().take_while(|path| only_hides(path)).filter_map(|path| at.get(path));
        mounts.any(|mount| mount.flags & READ_ONLY != 0)
    };
    let masked = paths(linux.and_then(|linux| linux.masked_paths().as_ref()));
    let readonly = paths(linux.and_then(|linux| linux.readonly_paths().as_ref()));
    let unmasked: Vec<_> = masked.into_iter().filter(|path| !covered(path)).collect();
    if !unmasked.is_empty() {
        reasons.push(Reason::Unmasked { paths: unmasked });
    }
    let writable: Vec<_> = readonly.into_iter().filter(|path| !covered(path) && !protected(path)).collect();
    if !writable.is_empty() {
        reasons.push(Reason::Writable { paths: writable });
    }
}

/// Whether the mount is the empty directory that hides one of /proc or /sys.
fn hides(mount: &FrozenMount) -> bool {
    mount.fstype == TMPFS && mount.ext_key.is_none() && only_hides(&normal(&mount.mountpoint))
}

fn mountpoints(spec: &Spec) -> Vec<Mountpoint> {
    let mounts = spec.mounts().iter().flatten();
    let mut mountpoints: Vec<_> = mounts
        .map(|mount| Mountpoint {
            destination: mount.destination().clone(),
            like: if is_bind(mount) { mount.source().clone() } else { None },
        })
        .collect();
    mountpoints.sort_by_key(|mountpoint| mountpoint.destination.components().count());
    mountpoints
}
