// SPDX-License-Identifier: Apache-2.0
//! A bundle for those who restore without containerd: the frozen program's configuration, a root file system of
//! its layers that is mounted before the clock starts, and a cgroup.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::Value;

use super::Bench;
use super::frozen::Frozen;
use crate::kubelet::cgroup;
use crate::kubelet::resources::Amounts;

/// A bundle; its files, mount and cgroup go with it.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// With `config.json`, `rootfs`, and `work` for CRIU's log.
    pub(crate) dir: PathBuf,
    /// The configuration as it stands in `config.json`.
    pub(crate) spec: Value,
    /// The cgroup, relative to each hierarchy.
    pub(crate) cgroup: String,
    /// Upper and work directory of the overlay, on disk.
    upper: PathBuf,
}

impl Bundle {
    /// Makes it, mounted.
    pub(crate) fn make(bench: &Bench, frozen: &Frozen) -> anyhow::Result<Self> {
        let dir = Path::new("/run/thaw-bench/bundle").to_owned();
        let upper = bench.work.join("upper");
        let cgroup = format!("{}/bare", frozen.state.cgroup);
        let mut spec = frozen.spec.clone();
        let rootfs = dir.join("rootfs");
        set(&mut spec, "/root/path", &rootfs.to_string_lossy())?;
        set(&mut spec, "/linux/cgroupsPath", &cgroup)?;
        // From here on it undoes itself.
        let bundle = Self { dir, spec, cgroup, upper };
        for dir in [&rootfs, &bundle.work(), &bundle.upper.join("fs"), &bundle.upper.join("work")] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(bundle.dir.join("config.json"), bundle.spec.to_string())
            .context("cannot write config.json")?;
        let layers: Vec<_> = frozen.layers.iter().map(|layer| layer.to_string_lossy()).collect();
        let upper = bundle.upper.display();
        let options = format!("lowerdir={},upperdir={upper}/fs,workdir={upper}/work", layers.join(":"));
        mount("overlay", &rootfs, "overlay", MountFlags::empty(), Some(CString::new(options)?.as_c_str()))
            .context("cannot mount the root file system")?;
        mount_change(&rootfs, MountPropagationFlags::PRIVATE).context("cannot make the mount private")?;
        cgroup::make_pod_group(&bundle.cgroup, &Amounts::default())?;
        Ok(bundle)
    }

    /// Where CRIU has its log and its socket.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The root file system.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Best effort: the node goes when the benchmark has ended.
        let _ = unmount(self.rootfs(), UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_dir_all(&self.upper);
        let _ = cgroup::remove_pod_group(&self.cgroup);
    }
}

fn set(spec: &mut Value, pointer: &str, value: &str) -> anyhow::Result<()> {
    *spec.pointer_mut(pointer).with_context(|| format!("the OCI spec has no {pointer}"))? =
        Value::from(value);
    Ok(())
}
