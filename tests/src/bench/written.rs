// SPDX-License-Identifier: Apache-2.0
//! Bytes written: on disks, as the kernel accounts them to processes, and on the node's tmpfs.
//!
//! A process that ended is counted with whoever waited for it, so the sum over all processes of the node loses
//! nothing: it counts each page that was made dirty on a disk file system, also of files removed since.
//! Source: proc_pid_io(5), `write_bytes`; kernel/exit.c, `wait_task_zombie`.

use std::fs;

use anyhow::Context;

/// The node's tmpfs: they are where runtimes have their state.
const MEMORY: [&str; 2] = ["/run", "/tmp"];

/// What was written until now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Bytes on disks.
    disk: u64,
    /// Bytes in use on the node's tmpfs.
    memory: u64,
}

impl Written {
    /// What all processes of this node have written until now.
    pub(crate) fn now() -> anyhow::Result<Self> {
        let mut written = Self::default();
        for entry in fs::read_dir("/proc").context("cannot list the processes")?.flatten() {
            if entry.file_name().to_string_lossy().parse::<u32>().is_ok() {
                // A process may end while it is looked at; then its parent has its bytes.
                let io = fs::read_to_string(entry.path().join("io")).unwrap_or_default();
                written.disk += write_bytes(&io);
            }
        }
        for path in MEMORY {
            let stat = rustix::fs::statvfs(path).with_context(|| format!("cannot look at {path}"))?;
            written.memory += stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_frsize;
        }
        Ok(written)
    }

    /// Bytes that were written to disks between `earlier` and this.
    pub(crate) fn disk_since(self, earlier: Self) -> u64 {
        self.disk.saturating_sub(earlier.disk)
    }

    /// Bytes by which the node's tmpfs grew between `earlier` and this.
    pub(crate) fn memory_since(self, earlier: Self) -> u64 {
        self.memory.saturating_sub(earlier.memory)
    }
}

fn write_bytes(io: &str) -> u64 {
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_bytes_are_not_taken_for_written_ones() {
        assert_eq!(write_bytes("wchar: 9\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n"), 4096);
    }
}
