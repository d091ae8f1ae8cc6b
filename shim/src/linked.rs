// SPDX-License-Identifier: Apache-2.0
//! Open files of the container's root file system that have lost the name under which they were opened, and have other
//! ones (hard links).
//!
//! CRIU gives each a name for the time of the dump. The writable layer is saved when that name has gone again, so no
//! restore would find it: the dump is refused instead.

use std::path::Path;

use criu_rpc::image::{Files, ImagesDir, Mountpoints, Remaps};

use crate::frozen::FILES;
use crate::reopen::REMAPS;
use crate::rewrite::open_dir;

/// Refuses images with such files. Returns whether there are some on other mounts, where CRIU has given them a name for
/// now.
///
/// # Errors
/// With all of them, or when an image cannot be read.
pub(crate) fn refuse(images: &Path) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let dir = ImagesDir::open(open_dir(images)?);
    let names = dir.names()?;
    if !names.iter().any(|name| name == REMAPS) {
        return Ok(false);
    }
    let remaps: Remaps = dir.load(REMAPS)?;
    let mut roots = Vec::new();
    for name in names.iter().filter(|name| name.starts_with("mountpoints-")) {
        let mounts: Mountpoints = dir.load(name)?;
        let root = mounts.mounts().iter().filter(|mount| mount.mountpoint == Path::new("/"));
        roots.extend(root.map(|mount| i64::from(mount.mnt_id)));
    }
    let files: Files = dir.load(FILES)?;
    let lost = files
        .reg_files()
        .iter()
        .filter(|file| remaps.linked.contains(&file.id) && roots.contains(&i64::from(file.mnt_id)));
    let lost: Vec<_> = lost.map(|file| format!("{:?}", file.name)).collect();
    if lost.is_empty() {
        return Ok(!remaps.linked.is_empty());
    }
    let lost = lost.join(", ");
    Err(format!(
        "open files have lost this name and have other ones, by which they would not be found again: {lost}; delete the \
         other names (hard links) too, or close the files"
    )
    .into())
}
