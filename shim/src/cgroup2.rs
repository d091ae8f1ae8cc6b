// SPDX-License-Identifier: Apache-2.0
//! The options of cgroup2, which CRIU's work takes from the node: it mounts cgroup2 to look into it, and mounts it in a
//! container that has no cgroup namespace of its own, each time without options. The kernel takes that for all of
//! cgroup2: delegation (`nsdelegate`) and the protection of memory (`memory_recursiveprot`) would be off from then on.
//!
//! Source: linux `kernel/cgroup/cgroup.c`, `cgroup_get_tree`, `apply_cgroup_root_flags`; CRIU 4.2 criu/cgroup.c,
//! `collect_cgroups`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use log::warn;
use procfs::process::{MountInfo, Process as ProcFs};
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};

/// What the node has had since its boot: while one CRIU is at work another may already have found nothing.
const NOTE: &str = "/run/thaw-cgroup2-options";

/// What cgroup2 has; put back on drop.
#[derive(Debug)]
pub(crate) struct Options(BTreeSet<String>);

impl Options {
    /// Notes them. There are none where there is no cgroup2, or it has none.
    pub(crate) fn keep() -> Self {
        Self::keep_in(Path::new(NOTE), mounted().map(|(_, options)| options).unwrap_or_default())
    }

    fn keep_in(note: &Path, now: BTreeSet<String>) -> Self {
        let noted = std::fs::read_to_string(note).unwrap_or_default();
        let all: BTreeSet<String> = noted.lines().map(str::to_owned).chain(now).collect();
        let text: String = all.iter().map(|option| format!("{option}\n")).collect();
        if text != noted
            && let Err(e) = std::fs::write(note, text)
        {
            warn!("cannot note the options of cgroup2 in {}: {e}", note.display());
        }
        Self(all)
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        let Some((path, now)) = mounted() else { return };
        if !self.0.is_subset(&now)
            && let Err(e) = put_back(&path, &self.0)
        {
            let lost: Vec<_> = self.0.difference(&now).map(String::as_str).collect();
            warn!(
                "{} has lost its options {} and does not get them back: {e}",
                path.display(),
                lost.join(", ")
            );
        }
    }
}

/// Where cgroup2 is mounted, and its options.
fn mounted() -> Option<(PathBuf, BTreeSet<String>)> {
    let mounts = ProcFs::myself().and_then(|process| process.mountinfo()).ok()?;
    let mount = mounts.0.into_iter().find(|mount| mount.fs_type == "cgroup2" && mount.root == "/")?;
    let options = options(&mount);
    Some((mount.mount_point, options))
}

/// Those of cgroup2 itself: all are words without a value.
fn options(mount: &MountInfo) -> BTreeSet<String> {
    let words = mount.super_options.iter().filter(|(_, value)| value.is_none()).map(|(word, _)| word.clone());
    words.filter(|word| !matches!(word.as_str(), "rw" | "ro" | "seclabel")).collect()
}

fn put_back(path: &Path, options: &BTreeSet<String>) -> io::Result<()> {
    let cgroup2 = fspick(rustix::fs::CWD, path, FsPickFlags::FSPICK_CLOEXEC)?;
    for option in options {
        fsconfig_set_flag(&cgroup2, option.as_str())?;
    }
    Ok(fsconfig_reconfigure(&cgroup2)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_has_taken_meanwhile_is_known_from_before() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("options");
        let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
        let both = set(&["memory_recursiveprot", "nsdelegate"]);
        let first = Options::keep_in(&note, both.clone());
        let second = Options::keep_in(&note, set(&[]));
        assert_eq!((&first.0, &second.0), (&both, &both));
        // They are of no real mount.
        std::mem::forget((first, second));
    }

    #[test]
    fn only_the_options_of_cgroup2_itself_are_kept() {
        let line = "35 24 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,seclabel,nsdelegate,memory_recursiveprot";
        let mount = MountInfo::from_line(line).unwrap();
        let words: Vec<_> = options(&mount).into_iter().collect();
        assert_eq!(words, ["memory_recursiveprot", "nsdelegate"]);
    }
}
