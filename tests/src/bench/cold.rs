// SPDX-License-Identifier: Apache-2.0
//! The cases `cold`, `slow-first` and `slow`: as `lazy`, from a disk. When the sandbox is asked for, nothing of the
//! checkpoint is in the page cache; for the slow ones the kernel also lets containerd and all that it starts read no more
//! than so much a second (cgroup v1: blkio). The first one is the first restore that a node sees of the checkpoint.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::frozen::Frozen;
use super::record::Record;
use super::restore::Bench;
use super::{copies, lazy};
use crate::harness::containerd;

/// What a slow disk reads, bytes a second.
const SLOW: u64 = 200 << 20;
/// Where rules for disks are. Source: Linux Documentation/admin-guide/cgroup-v1/blkio-controller.rst.
const HIERARCHY: &str = "/sys/fs/cgroup/blkio";
const RULE: &str = "blkio.throttle.read_bps_device";
/// Where the node keeps what restores have waited for.
const FAULT_ORDERS: &str = "/var/cache/thaw/fault-orders";

/// Restores once from a disk that is as fast as it is.
pub(crate) async fn measure(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    copies::forget(&frozen.dir)?;
    lazy::measure_as("cold", bench, frozen, record).await
}

/// Restores once from a slow disk, as if never before; the reason where the kernel cannot make it one.
pub(crate) async fn measure_slow_first(
    bench: &Bench,
    frozen: &Frozen,
    record: &mut Record,
) -> anyhow::Result<Option<String>> {
    // There may be none.
    let _ = fs::remove_dir_all(FAULT_ORDERS);
    from_slow_disk("slow_first", bench, frozen, record).await
}

/// Restores once from a slow disk; the reason where the kernel cannot make it one.
pub(crate) async fn measure_slow(
    bench: &Bench,
    frozen: &Frozen,
    record: &mut Record,
) -> anyhow::Result<Option<String>> {
    from_slow_disk("slow", bench, frozen, record).await
}

async fn from_slow_disk(
    case: &'static str,
    bench: &Bench,
    frozen: &Frozen,
    record: &mut Record,
) -> anyhow::Result<Option<String>> {
    if !Path::new(HIERARCHY).join(RULE).exists() {
        return Ok(Some("the kernel has no blkio of cgroup v1".to_owned()));
    }
    let _slow = SlowDisk::of(&frozen.dir)?;
    copies::forget(&frozen.dir)?;
    lazy::measure_as(case, bench, frozen, record).await.map(|()| None)
}

/// A rule for containerd and all that it starts; gone on drop.
struct SlowDisk(PathBuf);

impl SlowDisk {
    /// For the disk that `dir` is on.
    fn of(dir: &Path) -> anyhow::Result<Self> {
        let group = Self(Path::new(HIERARCHY).join("thaw-bench-slow"));
        fs::create_dir_all(&group.0).context("cannot make a cgroup")?;
        let device = fs::metadata(dir)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        fs::write(group.0.join(RULE), format!("{major}:{minor} {SLOW}"))
            .context("cannot slow the disk down")?;
        let containerd = containerd::pid().context("containerd does not run")?;
        fs::write(group.0.join("cgroup.procs"), containerd.to_string())
            .context("cannot slow containerd down")?;
        Ok(group)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            // One that has ended is out of it.
            let _ = fs::write(Path::new(HIERARCHY).join("cgroup.procs"), pid);
        }
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}
