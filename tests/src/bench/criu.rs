// SPDX-License-Identifier: Apache-2.0
//! The case `criu`: CRIU over RPC, from the images as they are, with nothing around it. Namespaces, mounts,
//! cgroup and stdio are what a pod's container has.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use criu_rpc::{ManageCgroups, Namespace, RestoreOptions, Swrk};
use rustix::fs::{Mode, OFlags, open};
use serde_json::Value;

use super::bundle::Bundle;
use super::frozen::Frozen;
use super::record::Record;
use super::{Bench, command, workload};
use crate::kubelet::cgroup::hierarchies;

/// This only bounds a hang.
const DEADLINE: Duration = Duration::from_secs(120);
/// What runc calls the external network namespace in images. Source: runc, `libcontainer/criu_linux.go`.
const NETWORK_KEY: &str = "extRootNetNS";

/// Restores once.
pub(crate) async fn measure(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    let bundle = Bundle::make(bench, frozen)?;
    let (swrk, options, output) = prepare(&bundle, frozen)?;
    let cgroups = cgroups(&bundle)?;
    let restored = record
        .until_beat("criu.running", &bench.heartbeat, async { restore(swrk, &options, &cgroups) })
        .await;
    let verified = match &restored {
        Ok(_) => workload::verify(&frozen.state.ip, &frozen.checksum).await,
        Err(_) => Ok(()),
    };
    drop(output);
    command::kill(restored?);
    verified
}

/// The measured part; returns the pid of the restored init, a child of this process.
fn restore(swrk: Swrk, options: &RestoreOptions, cgroups: &[OwnedFd]) -> anyhow::Result<i32> {
    let session = swrk.spawn_placed(|pid| {
        for procs in cgroups {
            rustix::io::write(procs, pid.to_string().as_bytes())?;
        }
        Ok(())
    })?;
    let criu = session.pid();
    let restored = session.restore(options, DEADLINE, &mut |_| Ok(()));
    match restored {
        Ok(restored) => {
            command::reap(criu);
            Ok(restored.pid)
        }
        Err(error) => {
            command::kill(criu);
            Err(error.into())
        }
    }
}

/// What CRIU is told, and the other end of the program's stdout and stderr.
fn prepare(bundle: &Bundle, frozen: &Frozen) -> anyhow::Result<(Swrk, RestoreOptions, OwnedFd)> {
    let mut swrk = Swrk::new("criu");
    let mut options = RestoreOptions::new(open_dir(&frozen.images())?, open_dir(&bundle.dir.join("work"))?);
    options.root = Some(bundle.rootfs());
    options.rst_sibling = true;
    options.manage_cgroups = ManageCgroups::Ignore;
    options.evasive_devices = true;
    options.ext_mounts = external_mounts(bundle)?;
    for (kind, namespace) in [("ipc", Namespace::Ipc), ("uts", Namespace::Uts)] {
        options.join_ns.push((namespace, namespace_path(&bundle.spec, kind)?));
    }
    let network = File::open(namespace_path(&bundle.spec, "network")?).context("cannot open the network")?;
    options.inherit_fds.push((NETWORK_KEY.into(), swrk.inherit(network.into())));

    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    swrk.stdio([null, input.try_clone()?, input]);
    let descriptors =
        std::fs::read(frozen.images().join("descriptors.json")).context("no descriptors.json")?;
    let descriptors: Vec<String> = serde_json::from_slice(&descriptors)?;
    for (number, key) in (0..).zip(descriptors).filter(|(_, key)| key.starts_with("pipe:")) {
        options.inherit_fds.push((key.into(), number));
    }
    Ok((swrk, options, output))
}

/// What a process's number is written to, so that it is in the bundle's cgroup.
fn cgroups(bundle: &Bundle) -> anyhow::Result<Vec<OwnedFd>> {
    let procs = hierarchies()?.into_iter().map(|hierarchy| {
        let procs = beneath(&hierarchy, &bundle.cgroup).join("cgroup.procs");
        open(&procs, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("cannot open {}", procs.display()))
    });
    procs.collect()
}

/// Binds by their destination, cgroup v1 hierarchies, and masked files.
fn external_mounts(bundle: &Bundle) -> anyhow::Result<Vec<(OsString, PathBuf)>> {
    let mounts =
        bundle.spec.pointer("/mounts").and_then(Value::as_array).context("the spec has no mounts")?;
    let binds = mounts.iter().filter(|mount| mount.get("type").and_then(Value::as_str) == Some("bind"));
    let text = |mount: &Value, key| mount.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut external: Vec<(OsString, PathBuf)> =
        binds.map(|mount| (text(mount, "destination").into(), text(mount, "source").into())).collect();
    external.push(("/dev/null".into(), "/dev/null".into()));
    for hierarchy in hierarchies()? {
        let name = hierarchy.file_name().unwrap_or_default();
        let inside = Path::new("/sys/fs/cgroup").join(name);
        external.push((inside.into(), beneath(&hierarchy, &bundle.cgroup)));
    }
    Ok(external)
}

fn namespace_path(spec: &Value, kind: &str) -> anyhow::Result<PathBuf> {
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array);
    let mut found = namespaces.into_iter().flatten();
    let of_kind = found.find(|namespace| namespace.get("type").and_then(Value::as_str) == Some(kind));
    let path = of_kind.and_then(|namespace| namespace.get("path")).and_then(Value::as_str);
    Ok(path.with_context(|| format!("the spec names no {kind} namespace"))?.into())
}

fn beneath(hierarchy: &Path, cgroup: &str) -> PathBuf {
    hierarchy.join(cgroup.trim_start_matches('/'))
}

fn open_dir(path: &Path) -> anyhow::Result<OwnedFd> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("cannot open {}", path.display()))
}
