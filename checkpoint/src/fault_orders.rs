// SPDX-License-Identifier: Apache-2.0
//! Where a node keeps in which order restored programs first waited for their pages, for the next restore of the same
//! checkpoint: a file for each container of a checkpoint, in a directory of root's alone. They are hints, and may go at
//! any time.
//!
//! Invariant: there are never more than [`MOST`] files; those that were not used for longest go first.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

/// The most files that are kept.
const MOST: usize = 1000;
/// Files that are not complete have names that begin so.
const TEMPORARY: &str = ".tmp-";

/// The directory.
#[derive(Debug, Clone)]
pub struct FaultOrders(PathBuf);

impl Default for FaultOrders {
    fn default() -> Self {
        Self(Self::PATH.into())
    }
}

impl FaultOrders {
    /// Where it is on a node.
    pub const PATH: &str = "/var/cache/thaw/fault-orders";

    /// One in another directory.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The one of `container` of the checkpoint called `NAMESPACE/LINEAGE/ID`, if there is one; it counts as used.
    #[must_use]
    pub fn find(&self, checkpoint: &str, container: &str) -> Option<File> {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
        let path = self.0.join(name(checkpoint, container));
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
        // Only its age suffers.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Keeps one, which is found from now on. Older ones make room.
    ///
    /// # Errors
    /// When it cannot be written, or others not be removed.
    pub fn keep(&self, checkpoint: &str, container: &str, order: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.0.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(order))
            .and_then(|()| std::fs::rename(&temporary, self.0.join(name(checkpoint, container))));
        if written.is_err() {
            // What stays is the first to make room.
            let _ = std::fs::remove_file(&temporary);
        }
        written?;
        let mut files = files(&self.0)?;
        files.sort();
        let surplus = files.len().saturating_sub(MOST);
        files.iter().take(surplus).try_for_each(|(_, path)| remove(path))
    }

    /// Removes all of a checkpoint's.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file not removed.
    pub fn remove(&self, checkpoint: &str) -> io::Result<()> {
        let stem = name(checkpoint, "");
        let of_it = |(_, path): &(SystemTime, PathBuf)| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&stem))
        };
        files(&self.0)?.iter().filter(|file| of_it(file)).try_for_each(|(_, path)| remove(path))
    }
}

/// No part of either can hold a `+`.
fn name(checkpoint: &str, container: &str) -> String {
    format!("{}+{container}", checkpoint.replace('/', "+"))
}

/// All files, with the time of their last use.
fn files(dir: &Path) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        // One that has gone meanwhile is as good.
        let used = entry.metadata().and_then(|metadata| metadata.modified());
        files.extend(used.ok().map(|used| (used, entry.path())));
    }
    Ok(files)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::*;

    fn keep(orders: &FaultOrders, checkpoint: &str, container: &str) {
        orders.keep(checkpoint, container, container.as_bytes()).unwrap();
    }

    #[test]
    fn one_is_found_until_it_goes_with_its_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let orders = FaultOrders::at(dir.path().join("a/b"));
        assert!(orders.find("n/l/1", "main").is_none());
        orders.remove("n/l/1").unwrap();
        for (checkpoint, container) in [("n/l/1", "main"), ("n/l/1", "side"), ("n/l/10", "main")] {
            keep(&orders, checkpoint, container);
        }
        let mut text = String::new();
        orders.find("n/l/1", "side").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "side");
        orders.remove("n/l/1").unwrap();
        assert!(orders.find("n/l/1", "main").is_none() && orders.find("n/l/1", "side").is_none());
        assert!(orders.find("n/l/10", "main").is_some());
    }

    #[test]
    fn those_not_used_for_longest_make_room_and_what_a_dead_writer_left_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let orders = FaultOrders::at(dir.path());
        for number in 0..MOST {
            let name = if number == 0 { ".tmp-1-1".to_owned() } else { name(&format!("n/l/{number}"), "c") };
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64)).unwrap();
        }
        assert!(orders.find("n/l/1", "c").is_some());
        keep(&orders, "n/l/new", "c");
        keep(&orders, "n/l/newer", "c");
        assert_eq!(files(dir.path()).unwrap().len(), MOST);
        assert!(orders.find("n/l/1", "c").is_some() && orders.find("n/l/2", "c").is_none());
        assert!(orders.find("n/l/3", "c").is_some() && !dir.path().join(".tmp-1-1").exists());
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(name("n/l/1", "c"))).unwrap();
        assert!(FaultOrders::at(dir.path()).find("n/l/1", "c").is_none());
    }
}
