// SPDX-License-Identifier: Apache-2.0
//! What an installation may touch: every file and link there, by its kind, mode and content.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders whose files are compared by what is in them.
const READ: [&str; 4] = [
    "/etc",
    "/var/lib/thaw",
    "/var/lib/systemd/deb-systemd-helper-enabled",
    "/var/lib/rancher/rke2/agent/etc",
];
/// Folders with too much in them for that: files are compared by their size and the time of their last change.
const LISTED: [&str; 3] = ["/usr", "/opt", "/root"];

pub(crate) type Files = BTreeMap<PathBuf, String>;

/// Everything that is there now. Directories count by their name and mode.
pub(crate) fn all() -> Files {
    let mut files = Files::new();
    READ.iter().for_each(|folder| look(Path::new(folder), &mut files, &content));
    LISTED.iter().for_each(|folder| look(Path::new(folder), &mut files, &size));
    files
}

/// What is not in both, or not the same in both.
pub(crate) fn difference(before: &Files, after: &Files) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let shown = |file: Option<&String>| {
        file.map_or_else(|| "not there".to_owned(), |text| text.escape_debug().to_string())
    };
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| format!("{}: {} -> {}", name.display(), shown(before.get(name)), shown(after.get(name))))
        .collect()
}

fn content(path: &Path, _: &std::fs::Metadata) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

fn size(_: &Path, metadata: &std::fs::Metadata) -> String {
    format!("{} bytes, changed at {}.{:09}", metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

fn look(folder: &Path, files: &mut Files, describe: &impl Fn(&Path, &std::fs::Metadata) -> String) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let what = if metadata.is_symlink() {
            format!("-> {}", std::fs::read_link(&path).unwrap().display())
        } else if metadata.is_dir() {
            look(&path, files, describe);
            "folder".to_owned()
        } else {
            describe(&path, &metadata)
        };
        files.insert(path, format!("{:o} {what}", metadata.mode()));
    }
}
