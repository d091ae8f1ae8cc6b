// SPDX-License-Identifier: Apache-2.0
//! Looks for copies of a checkpoint's data: files that changed during a restore, anywhere on the node, whose
//! blocks are the checkpoint's.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rustix::fs::{Advice, fadvise};

/// A page of memory, and a block of most file systems.
const BLOCK: usize = 4096;
/// The kernel takes file times from a clock that ticks this slowly at most (CONFIG_HZ=100).
const TICK: Duration = Duration::from_millis(10);
/// Where the node can be written to: its disk and its tmpfs.
const WRITABLE: [&str; 7] =
    ["/run", "/tmp", "/var/tmp", "/var/log", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/thaw"];

/// The blocks of a checkpoint.
#[derive(Debug)]
pub(crate) struct Copies {
    blocks: HashSet<u64>,
}

impl Copies {
    /// Reads the checkpoint in `dir`: images and writable layer.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        let mut blocks = HashSet::new();
        walk(dir, &mut |path, _| {
            each_block(path, |block| {
                blocks.insert(block);
            })
        })?;
        Ok(Self { blocks })
    }

    /// The bytes of the checkpoint's blocks in files that changed since `began`, but not those in `private`.
    pub(crate) fn found_since(&self, began: SystemTime, private: &Path) -> anyhow::Result<u64> {
        let since = began.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(TICK);
        let mut found = 0;
        for dir in WRITABLE {
            walk(Path::new(dir), &mut |path, metadata| {
                if changed(metadata) < since || path.starts_with(private) {
                    return Ok(());
                }
                each_block(path, |block| found += u64::from(self.blocks.contains(&block)))
            })?;
        }
        Ok(found * BLOCK as u64)
    }
}

/// Reads a file, or all files of a directory, so that they are in the page cache.
pub(crate) fn warm(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        return walk(path, &mut |file, _| warm(file));
    }
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let read = std::io::copy(&mut file, &mut std::io::sink());
    read.map(drop).with_context(|| format!("cannot read {}", path.display()))
}

/// Takes all files of a directory out of the page cache.
pub(crate) fn forget(dir: &Path) -> anyhow::Result<()> {
    // What is still to be written cannot be forgotten.
    rustix::fs::sync();
    walk(dir, &mut |path, _| {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        fadvise(&file, 0, None, Advice::DontNeed).with_context(|| format!("cannot forget {}", path.display()))
    })
}

/// The bytes of all files in a directory, 0 where there is none.
pub(crate) fn size(dir: &Path) -> u64 {
    let mut size = 0;
    // What cannot be listed has gone.
    let _ = walk(dir, &mut |_, metadata| {
        size += metadata.size();
        Ok(())
    });
    size
}

fn changed(metadata: &Metadata) -> Duration {
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    Duration::from_secs(part(metadata.ctime())) + Duration::from_nanos(part(metadata.ctime_nsec()))
}

/// Calls `each` for every regular file beneath `dir` on the same file system.
fn walk(dir: &Path, each: &mut dyn FnMut(&Path, &Metadata) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let device = fs::symlink_metadata(dir).with_context(|| format!("no {}", dir.display()))?.dev();
    // Files of a running node come and go: what is not there any more holds no copy.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            walk(&entry.path(), each)?;
        } else if metadata.is_file() {
            each(&entry.path(), &metadata)?;
        }
    }
    Ok(())
}

/// Calls `each` with a hash of every full block that is not all zero.
fn each_block(path: &Path, mut each: impl FnMut(u64)) -> anyhow::Result<()> {
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    let mut buffer = vec![0; BLOCK * 256];
    loop {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).with_context(|| format!("cannot read {}", path.display()))? {
                0 => break,
                read => filled += read,
            }
        }
        let (blocks, _) = buffer.get(..filled).unwrap_or_default().as_chunks::<BLOCK>();
        for block in blocks.iter().filter(|block| block.iter().any(|byte| *byte != 0)) {
            let mut hasher = DefaultHasher::new();
            block.hash(&mut hasher);
            each(hasher.finish());
        }
        if filled < buffer.len() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(blocks: u8) -> Vec<u8> {
        (1..=blocks).flat_map(|block| [block; BLOCK]).collect()
    }

    #[test]
    fn whole_blocks_count_and_zeroes_and_tails_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, [random(3), vec![0; BLOCK], vec![7; 100]].concat()).unwrap();
        fs::write(&two, [random(2), vec![9; BLOCK]].concat()).unwrap();
        let copies = Copies::of(dir.path()).unwrap();
        assert_eq!(copies.blocks.len(), 4);

        let mut found = 0;
        each_block(&two, |block| found += usize::from(copies.blocks.contains(&block))).unwrap();
        assert_eq!(found, 3);
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_size() {
        assert_eq!(size(Path::new("/no/such/directory")), 0);
    }
}
