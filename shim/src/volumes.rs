// SPDX-License-Identifier: Apache-2.0
//! The pod's emptyDir volumes and its /dev/shm: where they are, saving what is in them, and filling them again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, BufWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ::checkpoint::annotation::PodOptions;
use ::checkpoint::container_dir::ContainerDir;
use ::checkpoint::layer::{Conflict, empty, fill, write_content};
use ::checkpoint::plan::{Content, NewVolumes, SHM, volume_file};
use log::{info, warn};
use oci_spec::runtime::Spec;
use rustix::fs::{Dir, Mode, OFlags};

use crate::error::full;
use crate::notes::Notes;
use crate::rewrite::open_dir;

/// Which pod a container is of. Source: containerd `internal/cri/annotations/annotations.go`.
pub(crate) const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// Where the kubelet keeps a pod's emptyDir volumes, and binds of parts of volumes, beneath the pod's directory.
/// Source: Kubernetes pkg/volume/emptydir, pkg/volume/util/subpath.
pub(crate) const EMPTY_DIRS: &str = "volumes/kubernetes.io~empty-dir";
pub(crate) const SUB_PATHS: &str = "volume-subpaths";
/// How many names of files a warning has.
const NAMED: usize = 5;

/// The volumes of the pod that a container is of.
///
/// # Errors
/// When the pod's directory cannot be read.
pub(crate) fn volumes(spec: &Spec, options: &PodOptions) -> std::io::Result<NewVolumes> {
    let sources: Vec<(&Path, &Path)> = spec
        .mounts()
        .iter()
        .flatten()
        .filter_map(|mount| Some((mount.destination().as_path(), mount.source().as_deref()?)))
        .collect();
    let uid = spec.annotations().as_ref().and_then(|annotations| annotations.get(SANDBOX_UID));
    let pod = uid.and_then(|uid| sources.iter().find_map(|(_, source)| pod_dir(source, uid)));
    let empty_dirs = pod.as_deref().map(empty_dirs).transpose()?.unwrap_or_default();
    let mounts = |name: &str, dir: &Path| {
        let parts = pod.as_ref().map(|pod| pod.join(SUB_PATHS).join(name));
        let part = |source: &Path| parts.as_ref().is_some_and(|parts| source.starts_with(parts));
        sources.iter().any(|(_, source)| *source == dir || part(source))
    };
    let mounted: BTreeSet<_> =
        empty_dirs.iter().filter(|(name, dir)| mounts(name, dir)).map(|(name, _)| name.clone()).collect();
    let shm = sources.iter().find(|(destination, _)| *destination == Path::new("/dev/shm"));
    let of_pod = |source: &Path| is_sandbox_shm(source) || empty_dirs.values().any(|dir| dir == source);
    let shm = shm.filter(|(_, source)| of_pod(source)).map(|(_, source)| source.to_path_buf());
    Ok(NewVolumes { wanted: options.volumes().clone(), empty_dirs, mounted, shm })
}

/// The pod's directory, where a path of a mount leads into it: `/var/lib/kubelet/pods/UID`. Pure.
pub(crate) fn pod_dir(source: &Path, uid: &str) -> Option<PathBuf> {
    source.ancestors().find(|dir| dir.ends_with(Path::new("pods").join(uid))).map(Path::to_owned)
}

/// Whether it is the one that containerd makes for a sandbox, and not the node's. Pure.
fn is_sandbox_shm(source: &Path) -> bool {
    source.file_name() == Some("shm".as_ref()) && is_of_sandbox(source)
}

/// Whether containerd made it for a sandbox: /dev/shm, /etc/hostname, /etc/resolv.conf. Pure.
pub(crate) fn is_of_sandbox(source: &Path) -> bool {
    let sandboxes = Component::Normal("sandboxes".as_ref());
    source.components().rev().nth(2) == Some(sandboxes)
}

fn empty_dirs(pod: &Path) -> std::io::Result<BTreeMap<String, PathBuf>> {
    let entries = match std::fs::read_dir(pod.join(EMPTY_DIRS)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry?;
        Ok(entry.file_name().to_str().map(|name| (name.to_owned(), entry.path())))
    };
    entries.filter_map(|entry| name(entry).transpose()).collect()
}

/// Which directory of the node was packed into which file: what containers of a pod share is packed once.
pub(crate) type Saved = BTreeMap<PathBuf, PathBuf>;

/// Packs what is in the container's /dev/shm and in the volumes that the annotation names, each into one file among the
/// images. The container must not run meanwhile, nor any one whose volumes are in `saved`.
///
/// # Errors
/// Why not, in words.
pub(crate) fn save(spec: &Spec, images: &Path, saved: &mut Saved) -> Result<(), String> {
    let annotations = spec.annotations().clone().unwrap_or_default();
    // A restored container may have notes of the node's.
    let (_, asked) = Notes::split(&annotations);
    let options = PodOptions::parse(asked).map_err(|e| full(&e))?;
    let volumes = volumes(spec, &options).map_err(|e| full(&e))?;
    if let Some(reason) = volumes.unknown().next() {
        return Err(full(&reason));
    }
    if let Some(shm) = &volumes.shm {
        let dir = open_dir(shm).map_err(|e| full(&e))?;
        if !names(&dir).map_err(|e| full(&e))?.is_empty() {
            pack(shm, &images.join(SHM), saved)?;
        }
    }
    for name in volumes.wanted.intersection(&volumes.mounted) {
        if let Some(dir) = volumes.empty_dirs.get(name) {
            pack(dir, &images.join(volume_file(name)), saved)?;
        }
    }
    Ok(())
}

fn pack(volume: &Path, into: &Path, saved: &mut Saved) -> Result<(), String> {
    let failed = |e| format!("{}: {e}", into.display());
    if let Some(packed) = saved.get(volume) {
        // Some file systems link only within a folder.
        let linked = std::fs::hard_link(packed, into).or_else(|_| std::fs::copy(packed, into).map(drop));
        return linked.map_err(failed);
    }
    let file = std::fs::File::create_new(into).map_err(failed)?;
    let dir = open_dir(volume).map_err(|e| full(&e))?;
    write_content(dir.as_fd(), BufWriter::new(&file)).map_err(|e| full(&e))?;
    saved.insert(volume.to_owned(), into.to_owned());
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    info!(file = into.display().to_string().as_str(), bytes = bytes; "volume saved");
    Ok(())
}

fn names(dir: &OwnedFd) -> std::io::Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.insert(name);
        }
    }
    Ok(names)
}

/// What each directory of this pod was filled with.
pub(crate) type FilledFrom = Arc<Mutex<BTreeMap<PathBuf, Origin>>>;

/// Where the content of a directory came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// `NAMESPACE/LINEAGE/ID`.
    checkpoint: String,
    /// The digest of the file with it: the same for containers that were frozen at one instant.
    sha256: String,
}

/// A directory that was filled; what it was filled with is removed on drop unless kept.
#[derive(Debug)]
pub(crate) struct Filled {
    target: PathBuf,
    dir: OwnedFd,
    made: Vec<PathBuf>,
    record: Option<(FilledFrom, Origin)>,
}

/// Why a directory could not be filled.
#[derive(Debug, thiserror::Error)]
#[error("{file} cannot be unpacked into {target}: {why}", target = target.display())]
pub(crate) struct FillError {
    file: String,
    target: PathBuf,
    why: String,
}

impl Filled {
    /// Unpacks `content` of a checkpoint. Where another container of the pod was restored from the same one before,
    /// what is there already stays: it has gone on since. The very same content is not unpacked again: what is no more
    /// there was removed since.
    ///
    /// # Errors
    /// When the file is damaged, or there is no room.
    pub(crate) fn fill(
        content: &Content,
        container: &ContainerDir,
        checkpoint: &str,
        from: &FilledFrom,
    ) -> Result<Self, FillError> {
        let failed =
            |why: String| FillError { file: content.file.clone(), target: content.target.clone(), why };
        let dir = open_dir(&content.target).map_err(|e| failed(full(&e)))?;
        let recorded = container.record().files.get(&format!("checkpoint/{}", content.file));
        let sha256 = recorded.map(|file| file.sha256.clone()).unwrap_or_default();
        let origin = Origin { checkpoint: checkpoint.to_owned(), sha256 };
        let before = from.lock().unwrap_or_else(PoisonError::into_inner).get(&content.target).cloned();
        if before.as_ref() == Some(&origin) {
            return Ok(Self { target: content.target.clone(), dir, made: Vec::new(), record: None });
        }
        let again = before.is_some_and(|before| before.checkpoint == checkpoint);
        let conflict = if again { Conflict::Keep } else { Conflict::Replace };
        let held = names(&dir).map_err(|e| failed(full(&e)))?;
        if !held.is_empty() && conflict == Conflict::Replace {
            let held = held.iter().take(NAMED).map(|name| String::from_utf8_lossy(name).into_owned());
            let held: Vec<_> = held.collect();
            warn!(
                "{} is not empty ({}): files of the same names are replaced",
                content.target.display(),
                held.join(", ")
            );
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let tar = rustix::fs::openat(container.images_dir(), content.file.as_str(), flags, Mode::empty())
            .map_err(|e| failed(full(&e)))?;
        let tar = BufReader::new(std::fs::File::from(tar));
        let mut filled = Self { target: content.target.clone(), dir, made: Vec::new(), record: None };
        let bytes = fill(filled.dir.as_fd(), tar, conflict, &mut filled.made);
        let bytes = bytes.map_err(|e| failed(full(&e)))?;
        info!(target = content.target.display().to_string().as_str(), bytes = bytes; "volume filled");
        filled.record = Some((from.clone(), origin));
        Ok(filled)
    }

    /// Leaves it as it is.
    pub(crate) fn keep(mut self) {
        self.made.clear();
        if let Some((from, origin)) = self.record.take() {
            from.lock().unwrap_or_else(PoisonError::into_inner).insert(self.target.clone(), origin);
        }
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        empty(self.dir.as_fd(), &self.made);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_directory_is_where_its_uid_is() {
        let source = Path::new("/data/kubelet/pods/a-b/volumes/kubernetes.io~empty-dir/x");
        assert_eq!(pod_dir(source, "a-b"), Some("/data/kubelet/pods/a-b".into()));
        assert_eq!(pod_dir(source, "b"), None);
    }

    #[test]
    fn the_nodes_own_shm_is_no_sandboxs() {
        let base = "/run/containerd/io.containerd.grpc.v1.cri";
        assert!(is_sandbox_shm(format!("{base}/sandboxes/1f/shm").as_ref()));
        assert!(!is_sandbox_shm("/dev/shm".as_ref()));
        assert!(!is_sandbox_shm("/sandboxes/shm".as_ref()));
    }

    #[test]
    fn volumes_are_found_by_their_mounts_and_those_of_parts_of_them() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/u1");
        for name in ["data", "part", "unused", "dshm"] {
            std::fs::create_dir_all(pod.join(EMPTY_DIRS).join(name)).unwrap();
        }
        let mount = |destination: &str, source: PathBuf| serde_json::json!({ "destination": destination, "source": source, "options": ["rbind"] });
        let spec = serde_json::json!({
            "ociVersion": "1.2.0",
            "annotations": { SANDBOX_UID: "u1" },
            "mounts": [
                mount("/data", pod.join(EMPTY_DIRS).join("data")),
                mount("/part", pod.join("volume-subpaths/part/main/0")),
                mount("/dev/shm", pod.join(EMPTY_DIRS).join("dshm")),
            ],
        });
        let found = volumes(&serde_json::from_value(spec).unwrap(), &PodOptions::default()).unwrap();
        assert_eq!(found.mounted.iter().collect::<Vec<_>>(), ["data", "dshm", "part"]);
        assert!(found.empty_dirs.contains_key("unused"));
        assert_eq!(found.shm, Some(pod.join(EMPTY_DIRS).join("dshm")));
    }
}
