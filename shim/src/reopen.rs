// SPDX-License-Identifier: Apache-2.0
//! Files that the processes had open in volumes, and what they find there now.
//!
//! CRIU opens each by its path and refuses it when its size or mode is another one. In a volume whose content the
//! kubelet writes anew for each pod (ConfigMap, Secret, token, /etc/hosts) that is no damage: the program is to see the
//! new content, so the images get the new path, size and mode. Elsewhere a file must be as it was; only one that is
//! written at its end may have grown.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use ::checkpoint::plan::{FrozenMount, Plan, Reason};
use criu_rpc::image::{Files, LoadError, RegFile, Remaps};
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2, readlinkat};

use crate::frozen::{FILES, Images};
use crate::volumes::{EMPTY_DIRS, SANDBOX_UID, SUB_PATHS, is_of_sandbox, pod_dir};

/// The image of files without a name.
pub(crate) const REMAPS: &str = "remap-fpath.img";
/// `O_APPEND`. Source: Linux include/uapi/asm-generic/fcntl.h.
const APPEND: u32 = 0o2000;
/// Where the kubelet's atomic writer has the current content. Source: Kubernetes pkg/volume/util/atomic_writer.go.
const CURRENT: &str = "..data";
/// The volumes whose content the kubelet writes. Source: Kubernetes pkg/volume.
const WRITTEN: [&str; 4] = [
    "volumes/kubernetes.io~configmap",
    "volumes/kubernetes.io~secret",
    "volumes/kubernetes.io~projected",
    "volumes/kubernetes.io~downward-api",
];

/// The open files whose entries must change, or every reason why they cannot be opened again.
///
/// # Errors
/// When an image cannot be read.
pub(crate) fn reopen(
    images: &Images,
    plan: &Plan,
    spec: &Spec,
) -> Result<(Vec<RegFile>, Vec<Reason>), LoadError> {
    let files: Files = images.dir.load(FILES)?;
    let has_remaps = images.dir.names()?.iter().any(|name| name == REMAPS);
    let remaps = if has_remaps { images.dir.load::<Remaps>(REMAPS)? } else { Remaps::default() };
    let sources: BTreeMap<&str, &Path> =
        plan.external_mounts.iter().map(|(key, source)| (key.as_str(), source.as_path())).collect();
    let pod = Pod::of(spec, plan);
    let (mut changed, mut reasons) = (Vec::new(), Vec::new());
    for file in files.reg_files().iter().filter(|file| !remaps.ids.contains(&file.id)) {
        let mount = images.frozen.mounts.iter().find(|mount| i64::from(mount.id) == i64::from(file.mnt_id));
        let Some((mount, source)) = mount.and_then(|mount| {
            Some((mount, *sources.get(mount.ext_key.as_deref()?)?))
                .filter(|(_, source)| *source != Path::new("/dev/null"))
        }) else {
            continue;
        };
        match judge(file, mount, source, &pod) {
            Ok(new) => changed.extend(new),
            Err(reason) => reasons.push(reason),
        }
    }
    reasons.dedup();
    Ok((changed, reasons))
}

/// Where things of the pod are on the host.
struct Pod<'a> {
    dir: Option<PathBuf>,
    filled: Vec<&'a Path>,
}

impl<'a> Pod<'a> {
    fn of(spec: &Spec, plan: &'a Plan) -> Self {
        let uid = spec.annotations().as_ref().and_then(|annotations| annotations.get(SANDBOX_UID));
        let mut sources = spec.mounts().iter().flatten().filter_map(|mount| mount.source().as_deref());
        let dir = uid.and_then(|uid| sources.find_map(|source| pod_dir(source, uid)));
        Self { dir, filled: plan.contents.iter().map(|content| content.target.as_path()).collect() }
    }

    /// The name of the volume that a mount shows a part of.
    fn volume_of_part<'b>(&self, source: &'b Path) -> Option<&'b OsStr> {
        let rest = source.strip_prefix(self.dir.as_ref()?.join(SUB_PATHS)).ok()?;
        rest.iter().next()
    }

    /// Whether the content is the new pod's own, made for it.
    fn is_fresh(&self, source: &Path) -> bool {
        let Some(dir) = &self.dir else { return is_of_sandbox(source) };
        let written = |volume: &OsStr| WRITTEN.iter().any(|plugin| dir.join(plugin).join(volume).is_dir());
        // /etc/hosts and the termination log.
        let own = [dir.join("etc-hosts"), dir.join("containers")];
        WRITTEN.iter().any(|plugin| source.starts_with(dir.join(plugin)))
            || own.iter().any(|own| source.starts_with(own))
            || self.volume_of_part(source).is_some_and(written)
            || is_of_sandbox(source)
    }

    /// The emptyDir volume that it is in, and whether it is filled from the checkpoint.
    fn empty_dir(&self, source: &Path) -> Option<(String, bool)> {
        let all = self.dir.as_ref()?.join(EMPTY_DIRS);
        let whole = source.strip_prefix(&all).ok().and_then(|rest| rest.iter().next());
        let name = whole.or_else(|| self.volume_of_part(source).filter(|name| all.join(name).is_dir()))?;
        let filled = self.filled.iter().any(|target| *target == all.join(name));
        Some((name.to_string_lossy().into_owned(), filled))
    }
}

/// The file's new entry, if it needs one.
fn judge(
    file: &RegFile,
    mount: &FrozenMount,
    source: &Path,
    pod: &Pod<'_>,
) -> Result<Option<RegFile>, Reason> {
    let Ok(path) = file.name.strip_prefix(&mount.mountpoint) else { return Ok(None) };
    let fresh = pod.is_fresh(source);
    let empty_dir = pod.empty_dir(source);
    if pod.filled.contains(&source) || empty_dir.as_ref().is_some_and(|(_, filled)| *filled) {
        return Ok(None);
    }
    let current = if fresh { current(source, path) } else { path.to_owned() };
    let name = || file.name.clone();
    let found = match look(source, &current) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            return Err(match empty_dir {
                Some((volume, _)) => Reason::FileInVolume { path: name(), volume },
                None => Reason::FileGone { path: name() },
            });
        }
        // CRIU will find out, and say what it is.
        Err(_) => return Ok(None),
    };
    let size = u64::try_from(found.st_size).unwrap_or(0);
    let grown = |was: u64| file.flags & APPEND != 0 && size >= was;
    match file.size {
        Some(was) if !fresh && was != size && !grown(was) => {
            return Err(Reason::FileChanged { path: name(), was, now: size });
        }
        Some(_) | None => {}
    }
    let new = RegFile {
        name: if path == current { file.name.clone() } else { Path::new(&mount.mountpoint).join(&current) },
        size: file.size.map(|_| size),
        mode: if fresh { file.mode.map(|_| found.st_mode) } else { file.mode },
        ..file.clone()
    };
    Ok((new != *file).then_some(new))
}

/// Where the content of `path` is now: in a volume of the atomic writer it is in a directory with the time in its name.
fn current(source: &Path, path: &Path) -> PathBuf {
    let mut parts = path.components();
    let first = parts.next();
    let dated = matches!(first, Some(Component::Normal(name)) if name.as_bytes().starts_with(b"..") && name != CURRENT);
    let now = readlinkat(CWD, source.join(CURRENT), Vec::new()).ok();
    let now = now.filter(|_| dated).map(|link| PathBuf::from(OsStr::from_bytes(link.to_bytes())));
    match now {
        Some(now) if now.components().count() == 1 => now.join(parts.as_path()),
        _ => path.to_owned(),
    }
}

/// What is at `path` beneath the source of a mount; no link is followed.
fn look(source: &Path, path: &Path) -> rustix::io::Result<Stat> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top: OwnedFd = open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if path.as_os_str().is_empty() {
        return fstat(top);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    fstat(openat2(top.as_fd(), path, flags, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(mountpoint: &str) -> FrozenMount {
        FrozenMount {
            id: 9,
            parent: 1,
            mountpoint: mountpoint.into(),
            root: "/".into(),
            fstype: 0,
            flags: 0,
            root_dev: 1,
            deleted: false,
            ext_key: Some(mountpoint.into()),
        }
    }

    fn file(name: &str, flags: u32, size: u64) -> RegFile {
        RegFile { id: 1, flags, name: name.into(), mnt_id: 9, size: Some(size), mode: Some(0o100_600) }
    }

    fn pod(dir: &Path) -> Pod<'static> {
        Pod { dir: Some(dir.to_owned()), filled: Vec::new() }
    }

    #[test]
    fn a_file_of_a_config_map_is_opened_in_the_current_directory_whatever_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join(WRITTEN[0]).join("conf");
        std::fs::create_dir_all(source.join("..2026_new")).unwrap();
        std::fs::write(source.join("..2026_new/key"), "new value").unwrap();
        std::os::unix::fs::symlink("..2026_new", source.join(CURRENT)).unwrap();
        let new = judge(&file("/conf/..2025_old/key", 0, 3), &mount("/conf"), &source, &pod(dir.path()));
        let new = new.unwrap().unwrap();
        assert_eq!((new.name, new.size), ("/conf/..2026_new/key".into(), Some(9)));
        assert_ne!(new.mode, Some(0o100_600));
        let gone = judge(&file("/conf/..2025_old/none", 0, 3), &mount("/conf"), &source, &pod(dir.path()));
        assert!(gone.unwrap_err().to_string().contains("/conf/..2025_old/none"));
    }

    #[test]
    fn a_file_of_a_volume_must_be_as_it_was_unless_it_is_written_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("log"), "12345").unwrap();
        let run = |flags, size| {
            judge(&file("/v/log", flags, size), &mount("/v"), dir.path(), &pod("/none".as_ref()))
        };
        assert_eq!(run(0, 5), Ok(None));
        assert_eq!(run(APPEND, 3).unwrap().unwrap().size, Some(5));
        for (flags, size) in [(0, 3), (APPEND, 9)] {
            let reason = run(flags, size).unwrap_err().to_string();
            assert!(reason.contains("/v/log") && reason.contains('5'), "{reason}");
        }
    }

    #[test]
    fn a_file_of_an_empty_dir_that_is_not_named_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join(EMPTY_DIRS).join("data");
        std::fs::create_dir_all(&source).unwrap();
        let reason = judge(&file("/data/x", 0, 3), &mount("/data"), &source, &pod(dir.path())).unwrap_err();
        assert!(reason.to_string().contains("thaw.dev/volumes") && reason.to_string().contains("\"data\""));
        let filled = Pod { dir: Some(dir.path().to_owned()), filled: vec![&source] };
        assert_eq!(judge(&file("/data/x", 0, 3), &mount("/data"), &source, &filled), Ok(None));
    }
}
