// SPDX-License-Identifier: Apache-2.0
//! The cases `criu` and `criu-lazy`: CRIU over RPC, from the images as they are, with nothing around it. Namespaces,
//! mounts, cgroup and stdio are what a pod's container has. Lazily, the memory comes from CRIU's own page daemon.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
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
/// How often it is looked at the page daemon.
const POLL: Duration = Duration::from_millis(1);
/// What runc calls the external network namespace in images. Source: runc, `libcontainer/criu_linux.go`.
const NETWORK_KEY: &str = "extRootNetNS";

/// Restores once, with all memory before the program runs.
pub(crate) async fn measure(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    let bundle = Bundle::make(bench, frozen)?;
    let prepared = prepare(&bundle, frozen)?;
    let restore = async { prepared.restore() };
    let _restored = record.until_beat("criu.running", &bench.heartbeat, restore).await?;
    workload::verify(&frozen.state.ip, &frozen.checksum).await
}

/// Restores once; `criu lazy-pages` brings the memory, and its start is part of the time.
pub(crate) async fn measure_lazy(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    let bundle = Bundle::make(bench, frozen)?;
    let mut prepared = prepare(&bundle, frozen)?;
    prepared.options.lazy_pages = true;
    let began = Cell::new(Instant::now());
    let restore = async {
        began.set(Instant::now());
        let daemon = Daemon::start(&frozen.images(), &bundle.work())?;
        anyhow::Ok((prepared.restore()?, daemon))
    };
    let (_restored, mut daemon) = record.until_beat("criu_lazy.running", &bench.heartbeat, restore).await?;
    daemon.ended()?;
    record.seconds("criu_lazy.filled", began.get().elapsed().as_secs_f64());
    workload::verify(&frozen.state.ip, &frozen.checksum).await
}

/// CRIU's page daemon; it ends by itself when all memory is there, and on drop.
struct Daemon(Child);

impl Daemon {
    /// Source: criu(8), `lazy-pages`; CRIU 4.2 criu/uffd.c: it listens in its work directory.
    fn start(images: &Path, work: &Path) -> anyhow::Result<Self> {
        let mut criu = Command::new("criu");
        criu.arg("lazy-pages").arg("--images-dir").arg(images).arg("--work-dir").arg(work);
        criu.args(["--log-file", "lazy.log"]).stdin(Stdio::null()).stdout(Stdio::null());
        let daemon = Self(criu.spawn().context("cannot run criu lazy-pages")?);
        let (socket, end) = (work.join("lazy-pages.socket"), Instant::now() + DEADLINE);
        while !socket.exists() {
            ensure!(Instant::now() < end, "criu lazy-pages does not listen");
            std::thread::sleep(POLL);
        }
        Ok(daemon)
    }

    /// Waits until it has ended.
    fn ended(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "criu lazy-pages failed ({status})");
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        bail!("the memory did not arrive within {} s", DEADLINE.as_secs())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing to do where it has ended.
        let _ = self.0.kill();
        let _ = self.0.try_wait();
    }
}

/// A restore to be.
struct Prepared {
    swrk: Swrk,
    options: RestoreOptions,
    cgroups: Vec<OwnedFd>,
    /// The other end of the program's stdout and stderr.
    output: OwnedFd,
}

impl Prepared {
    /// The measured part; returns the pid of the restored init, a child of this process, and what it writes to.
    fn restore(self) -> anyhow::Result<Restored> {
        let session = self.swrk.spawn_placed(|pid| {
            for procs in &self.cgroups {
                rustix::io::write(procs, pid.to_string().as_bytes())?;
            }
            Ok(())
        })?;
        let criu = session.pid();
        match session.restore(&self.options, DEADLINE, &mut |_| Ok(())) {
            Ok(restored) => {
                command::reap(criu);
                Ok(Restored { pid: restored.pid, _output: self.output })
            }
            Err(error) => {
                command::kill(criu);
                Err(error.into())
            }
        }
    }
}

fn prepare(bundle: &Bundle, frozen: &Frozen) -> anyhow::Result<Prepared> {
    let mut swrk = Swrk::new("criu");
    let mut options = RestoreOptions::new(open_dir(&frozen.images())?, open_dir(&bundle.work())?);
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
    Ok(Prepared { swrk, options, cgroups: cgroups(bundle)?, output })
}

/// A restored program; killed on drop.
struct Restored {
    pid: i32,
    _output: OwnedFd,
}

impl Drop for Restored {
    fn drop(&mut self) {
        command::kill(self.pid);
    }
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
