// SPDX-License-Identifier: Apache-2.0
//! Which contents of /dev/shm and of emptyDir volumes go back where.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::Reason;

/// What was in the sandbox's /dev/shm, among the CRIU images.
pub const SHM: &str = "thaw-shm.tar";
const VOLUME: (&str, &str) = ("thaw-volume-", ".tar");

/// The file, among the CRIU images, with what was in an emptyDir volume.
#[must_use]
pub fn volume_file(name: &str) -> String {
    format!("{}{name}{}", VOLUME.0, VOLUME.1)
}

/// The volume whose content a file of the CRIU images has.
#[must_use]
pub fn volume_of(file: &str) -> Option<&str> {
    file.strip_prefix(VOLUME.0)?.strip_suffix(VOLUME.1)
}

/// What a checkpoint has of /dev/shm and of volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrozenVolumes {
    /// Whether there was anything in /dev/shm.
    pub shm: bool,
    /// The emptyDir volumes whose content it has.
    pub volumes: BTreeSet<String>,
}

/// The volumes of the new pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolumes {
    /// `thaw.dev/volumes`.
    pub wanted: BTreeSet<String>,
    /// The pod's emptyDir volumes and where they are on the host.
    pub empty_dirs: BTreeMap<String, PathBuf>,
    /// Those that this container mounts.
    pub mounted: BTreeSet<String>,
    /// Where the container's /dev/shm is on the host, if it lives no longer than the pod.
    pub shm: Option<PathBuf>,
}

/// Something to unpack before the processes come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The file with it, among the CRIU images.
    pub file: String,
    /// Where it goes on the host.
    pub target: PathBuf,
}

impl NewVolumes {
    /// The volumes that the annotation names and the pod does not have.
    pub fn unknown(&self) -> impl Iterator<Item = Reason> {
        let unknown = self.wanted.iter().filter(|name| !self.empty_dirs.contains_key(*name));
        let known: Vec<_> = self.empty_dirs.keys().cloned().collect();
        unknown.map(move |name| Reason::VolumeUnknown { name: name.clone(), known: known.clone() })
    }
}

pub(super) fn plan(frozen: &FrozenVolumes, new: &NewVolumes, reasons: &mut Vec<Reason>) -> Vec<Content> {
    let shm = new.shm.as_ref().filter(|_| frozen.shm);
    let mut contents: Vec<_> =
        shm.map(|target| Content { file: SHM.to_owned(), target: target.clone() }).into_iter().collect();
    reasons.extend(new.unknown());
    for name in new.wanted.intersection(&new.mounted) {
        match new.empty_dirs.get(name) {
            Some(target) if frozen.volumes.contains(name) => {
                contents.push(Content { file: volume_file(name), target: target.clone() });
            }
            Some(_) => reasons.push(Reason::VolumeNotFrozen { name: name.clone() }),
            None => {}
        }
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn run(frozen: &[&str], wanted: &[&str]) -> (Vec<String>, Vec<String>) {
        let frozen = FrozenVolumes { shm: true, volumes: names(frozen) };
        let new = NewVolumes {
            wanted: names(wanted),
            empty_dirs: ["data", "cache", "other"].map(|name| (name.to_owned(), "/v".into())).into(),
            mounted: names(&["data", "cache"]),
            shm: Some("/shm".into()),
        };
        let mut reasons = Vec::new();
        let contents = plan(&frozen, &new, &mut reasons);
        (
            contents.into_iter().map(|content| content.file).collect(),
            reasons.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn shm_goes_back_always_and_volumes_where_they_are_named_and_mounted() {
        let (contents, reasons) = run(&["data", "cache"], &["data", "other"]);
        assert!(reasons.is_empty(), "{reasons:?}");
        assert_eq!(contents, ["thaw-shm.tar", "thaw-volume-data.tar"]);
        assert_eq!(volume_of(&contents[1]), Some("data"));
        assert_eq!(volume_of("pages-1.img"), None);
    }

    #[test]
    fn volumes_that_the_pod_or_the_checkpoint_lacks_are_named_with_those_there_are() {
        let (_, reasons) = run(&[], &["nothing", "data"]);
        assert!(reasons[0].contains("nothing") && reasons[0].contains("cache, data, other"), "{reasons:?}");
        assert!(reasons[1].contains("data") && reasons[1].contains("before"), "{reasons:?}");
    }
}
