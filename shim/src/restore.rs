// SPDX-License-Identifier: Apache-2.0
//! A restore, step by step. Each step that leaves something behind is a guard that undoes it; at the end all
//! are told to keep what they made.
//!
//! ```text
//! CRIU spawned → into the new cgroup                               ┐
//! rewritten images → the pager, where memory follows               ├▶ RESTORE request → known to runc
//!                  → mount points → volumes filled                 ┘                  → CRIU has exited
//! ```
//!
//! CRIU clones the init as its sibling, so the restored init is this process's own child.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ::checkpoint::container_log::Written;
use ::checkpoint::plan::Plan;
use ::checkpoint::record::Verb;
use criu_rpc::{Event, ManageCgroups, Namespace, RequestError, RestoreOptions, Swrk, Tcp};
use log::{info, warn};
use rustix::fs::{Mode, OFlags};
use tokio::runtime::Handle;

use crate::cgroup::{Cgroup, cgroup_path};
use crate::container::Container;
use crate::error::TaskError;
use crate::filling::Started;
use crate::freezer::Freezer;
use crate::old_log::old_log;
use crate::pod::Pod;
use crate::prepared::Prepared;
use crate::reaper::Exits;
use crate::reopen::reopen;
use crate::rewrite::{Changed, Workspace, rewrite};
use crate::sandbox::hostname;
use crate::stdio::{RestoredStdio, attach_terminal};
use crate::together::Together;
use crate::volumes::Filled;
use crate::{
    adopt, cgroup2, cuda, figures, last_pid, limits, mountpoints, nodes, oom, stand_in, sysv_ipc, threads,
    untar,
};

/// How long CRIU may take. This only bounds a hang: loading 100 GB from a slow disk takes a quarter of an hour.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Restores the container's processes; returns the pid of the init, whose exits the caller has subscribed to before.
///
/// # Errors
/// [`TaskError::Restore`]; nothing is left then.
pub(crate) async fn restore(
    pod: &Pod,
    container: &Arc<Container>,
    prepared: &Arc<Prepared>,
) -> Result<i32, TaskError> {
    prepared.stopwatch.next("making pipes");
    let (stdio, theirs) = RestoredStdio::new(&container.init, container.io_owner)?;
    let criu_exits = Exits::subscribe().await.map_err(|e| TaskError::shim("watch for exits", e))?;
    let job = {
        let (container, prepared) = (container.clone(), prepared.clone());
        let others = pod.running_beside(&container.id);
        tokio::task::spawn_blocking(move || {
            run(&container, &others, &prepared, theirs)
                .inspect_err(|e| figures::failed(Verb::Restore, &container.spec, e))
        })
    };
    let done = job.await;
    container.restoring.end();
    let Resumed { pid, criu, terminal, written } =
        done.map_err(|e| TaskError::Io { what: "run the restore".into(), source: e.into() })??;
    prepared.stopwatch.next("CRIU: leaving");
    // CRIU shares the container's cgroup until it has gone.
    criu_exits.of(criu).await;
    prepared.stopwatch.next("connecting the streams");
    let attached = match terminal {
        Some(master) => attach_terminal(master, &container.init, written.stdout).await,
        None => stdio.attach(&container.init, written),
    };
    if let Err(e) = attached {
        // It runs and is known to runc, which undoes it as a whole.
        if let Err(undo) = container.oci.delete(true).await {
            warn!("cannot undo the restore of container {}: {undo}", container.id);
        }
        return Err(e);
    }
    Ok(pid)
}

/// The new pod has less memory than the checkpoint needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel killed processes of the restore for memory: the limit is below what the checkpoint holds, raise \
     `resources.limits.memory`"
)]
struct ShortOfMemory(#[source] RequestError);

/// What came out of CRIU's work.
struct Resumed {
    /// The init.
    pid: i32,
    /// CRIU itself, which is about to exit.
    criu: i32,
    /// The master of the container's terminal.
    terminal: Option<OwnedFd>,
    /// What the new log begins with.
    written: Written,
}

/// The blocking part.
fn run(
    container: &Arc<Container>,
    others: &[Arc<Container>],
    prepared: &Prepared,
    stdio: [OwnedFd; 3],
) -> Result<Resumed, TaskError> {
    let started = Instant::now();
    let Prepared { source, plan, stopwatch, .. } = prepared;
    let _options = cgroup2::Options::keep();
    let _hastened = prepared.hastened.lock().unwrap_or_else(PoisonError::into_inner).take();
    let noted = source.dir.state().map_err(prepared.failed("reading what was noted of its processes"))?;
    let written = old_log(source, noted.frozen).map_err(prepared.failed("reading its log"))?;
    stopwatch.next("starting CRIU, and preparing images, mount points, volumes and the pager beside it");
    let descriptors = stdio.each_ref().map(describe);
    let rootfs = container.bundle.join("rootfs");
    // These go after the cgroup, in which nobody is left then.
    let workspace = Workspace::create(&container.bundle)?;
    let (filled, mut pager);
    let mut swrk = Swrk::new(&source.criu);
    let (joined, inherited) =
        join_namespaces(plan, &mut swrk).map_err(prepared.failed("opening the sandbox's namespaces"))?;
    swrk.stdio(stdio);
    stand_in(plan, &mut swrk, workspace.path()).map_err(prepared.failed("standing in for programs"))?;
    let cgroup = cgroup(container, prepared).map_err(prepared.failed("finding the cgroup"))?;
    swrk.unshare_cgroup_namespace(plan.cgroup_namespace);
    let spawn = || {
        swrk.spawn_placed(|criu| {
            container.restoring.begin(criu)?;
            cgroup.place(criu)?;
            // CRIU would never leave a frozen one.
            Freezer::of_process(criu).map_or(Ok(()), |freezer| Ok(freezer.wait_thawed()?))
        })
    };
    let (session, beside) = both(spawn, || beside(container, others, prepared, &workspace))?;
    let (images, standing);
    Beside { images, standing, filled, pager } = beside?;
    let session = session.map_err(prepared.blame(pager.as_ref(), "starting CRIU in the cgroup"))?;
    let mut options = RestoreOptions::new(images, workspace.open()?);
    options.lazy_pages = pager.is_some();
    (options.join_ns, options.inherit_fds) = (joined, inherited);
    fill(plan, &rootfs, container.init.stdio.terminal, &mut options);
    let criu = session.pid();
    let cgroups =
        crate::cgroup::paths(criu).map_err(prepared.blame(pager.as_ref(), "starting CRIU in the cgroup"))?;
    let prepared_in = started.elapsed();
    stopwatch.next("CRIU: reading the images");

    let (mut terminal, mut init) = (None, None);
    let restored = session
        .restore(&options, DEADLINE, &mut |event: Event| {
            log::debug!("CRIU: {}", event.script());
            if let Some(step) = step_after(&event) {
                stopwatch.next(step);
            }
            if let Event::PostRestore { pid } = event {
                init = Some(pid);
            }
            if matches!(event, Event::PreResume) {
                // All tasks are there and none has run yet.
                limits::apply(&container.spec, &cgroups, init, criu);
                threads::apply(&noted.threads, &cgroups);
            }
            if let Event::OrphanPtsMaster(master) = event {
                terminal = Some(master);
            }
            Ok(())
        })
        .map_err(|e| match oom::has_killed(&cgroups) {
            true => prepared.failed("CRIU")(ShortOfMemory(e)),
            false => prepared.blame(pager.as_ref(), "CRIU")(e),
        })?;
    drop(standing);
    stopwatch.next("making it known to the OCI runtime");
    make_known(container, prepared, restored.pid, &cgroups, &descriptors, &mut pager)?;
    cgroup.keep();
    workspace.keep();
    container.keep_layer();
    filled.into_iter().for_each(Filled::keep);
    let in_criu = started.elapsed().saturating_sub(prepared_in);
    let steps = [("preparing", prepared_in), ("CRIU", in_criu)];
    let text = format!("resumed from checkpoint {}", source.name());
    figures::done(Verb::Restore, &container.spec, &text, source.dir.record().bytes(), &steps);
    info!(
        container = container.id.as_str(), checkpoint = source.name().as_str(), pid = restored.pid,
        prepare_ms = millis(prepared_in), criu_ms = millis(in_criu);
        "restored"
    );
    Ok(Resumed { pid: restored.pid, criu, terminal, written })
}

/// What is there when CRIU is.
struct Beside {
    /// CRIU's images directory.
    images: OwnedFd,
    /// Containers that must not run before it is restored.
    standing: Option<Together>,
    filled: Vec<Filled>,
    pager: Option<Started>,
}

/// What CRIU needs and its process does not. The kernel takes some 10 ms to put a process into a cgroup, in which nobody
/// works.
fn beside(
    container: &Arc<Container>,
    others: &[Arc<Container>],
    prepared: &Prepared,
    workspace: &Workspace,
) -> Result<Beside, TaskError> {
    let Prepared { source, plan, .. } = prepared;
    let (images, standing) = private_images(container, others, prepared, workspace)?;
    let pager = start_pager(container, prepared, workspace)?;
    let rootfs = container.bundle.join("rootfs");
    mountpoints::create(&rootfs, &plan.mountpoints).map_err(prepared.failed("preparing the mount points"))?;
    nodes::create(&rootfs, &plan.devices).map_err(prepared.failed("making the device nodes"))?;
    let filled = fill_volumes(prepared)?;
    if let Some((_, namespace)) = &plan.pid {
        last_pid::keep_free(&source.checkpoint, namespace);
    }
    Ok(Beside { images, standing, filled, pager })
}

/// Does both at once; `here` on this thread, which stays: CRIU's parent must.
fn both<A, B: Send>(here: impl FnOnce() -> A, other: impl FnOnce() -> B + Send) -> Result<(A, B), TaskError> {
    let runtime = Handle::current();
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().name("beside".into()).spawn_scoped(scope, move || {
            let _runtime = runtime.enter();
            other()
        });
        let other = other.map_err(TaskError::io("start a thread"))?;
        let here = here();
        let panicked = |_| TaskError::Io {
            what: "prepare the restore".into(),
            source: std::io::Error::other("the thread panicked"),
        };
        Ok((here, other.join().map_err(panicked)?))
    })
}

/// What runs is a container of the OCI runtime from here on, with the pager that brings its memory.
fn make_known(
    container: &Arc<Container>,
    prepared: &Prepared,
    pid: i32,
    cgroups: &BTreeMap<String, PathBuf>,
    descriptors: &[String; 3],
    pager: &mut Option<Started>,
) -> Result<(), TaskError> {
    let adopted = adopt::Adopted {
        id: &container.id,
        bundle: &container.bundle,
        spec: &container.spec,
        pid,
        cgroups,
        systemd: prepared.systemd_cgroup,
        descriptors,
    };
    if let Err(e) = adopt::adopt(&prepared.runtime_root, &adopted) {
        adopt::forget(&prepared.runtime_root, &container.id);
        return Err(prepared.failed("making the container known to runc")(e));
    }
    if let Some(pager) = pager.take()
        && let Err(e) = pager.keep(container)
    {
        adopt::forget(&prepared.runtime_root, &container.id);
        return Err(prepared.failed("bringing its memory")(e));
    }
    Ok(())
}

/// What CRIU does from this point on.
fn step_after(event: &Event) -> Option<&'static str> {
    match event {
        Event::SetupNamespaces { .. } => Some("CRIU: mounts"),
        Event::PostSetupNamespaces => Some("CRIU: processes, memory and files"),
        Event::PostRestore { .. } => Some("CRIU: timers, locks, network"),
        Event::PreResume => Some("CRIU: letting processes go"),
        Event::PostResume => Some("CRIU: answering"),
        Event::PreDump
        | Event::QueryExtFiles
        | Event::NetworkLock
        | Event::PostDump
        | Event::NetworkUnlock
        | Event::StatusReady
        | Event::PreStream
        | Event::PreRestore
        | Event::OrphanPtsMaster(_)
        | Event::Unknown(_) => None,
    }
}

/// The pager, where memory is to follow.
fn start_pager(
    container: &Arc<Container>,
    prepared: &Prepared,
    workspace: &Workspace,
) -> Result<Option<Started>, TaskError> {
    let waiting = prepared.pager.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((waiting, threads)) = waiting.zip(prepared.source.fill_threads) else { return Ok(None) };
    Started::start(container, &prepared.source, waiting, &workspace.open()?, threads).map(Some)
}

/// The images as they must be in the new pod.
fn private_images(
    container: &Container,
    others: &[Arc<Container>],
    prepared: &Prepared,
    workspace: &Workspace,
) -> Result<(OwnedFd, Option<Together>), TaskError> {
    let Prepared { source, plan, .. } = prepared;
    let hostname =
        plan.uts.as_deref().map(hostname).transpose().map_err(prepared.failed("reading the hostname"))?;
    let (reopened, _) = reopen(&source.images, plan, &container.spec)
        .map_err(prepared.failed("looking at the files in volumes"))?;
    let ipc = plan.ipc.as_deref().map(|namespace| sysv_ipc::bring(&source.images.dir, namespace, others));
    let (ipc, standing) =
        ipc.transpose().map_err(prepared.failed("bringing System V objects"))?.unwrap_or_default();
    let lazy = source.fill_threads.is_some();
    let changed = Changed { reopened: &reopened, hostname: hostname.as_ref(), ipc, lazy };
    let images = rewrite(&source.dir, &source.images, plan, changed, &workspace.images());
    Ok((images.map_err(prepared.failed("preparing the images"))?, standing))
}

/// What the processes had in volumes that belong to the checkpoint.
fn fill_volumes(prepared: &Prepared) -> Result<Vec<Filled>, TaskError> {
    let Prepared { source, plan, filled, .. } = prepared;
    let unpack = |content| Filled::fill(content, &source.dir, &source.name(), filled);
    let filled = plan.contents.iter().map(unpack).collect::<Result<_, _>>();
    filled.map_err(prepared.failed("filling the volumes"))
}

/// What CRIU and its plugins run out of this program.
fn stand_in(plan: &Plan, swrk: &mut Swrk, workspace: &Path) -> std::io::Result<()> {
    if plan.gpu_map.is_empty() {
        return stand_in::install(swrk, &[untar::PROGRAM], workspace);
    }
    cuda::remap(swrk, &plan.gpu_map);
    stand_in::install(swrk, &[untar::PROGRAM, cuda::PROGRAM], workspace)
}

/// The cgroup of the new spec, to get the limits of the new spec.
fn cgroup(container: &Container, prepared: &Prepared) -> Result<Cgroup, TaskError> {
    let path = cgroup_path(&container.spec).ok_or_else(|| {
        TaskError::InvalidRequest("the spec names no cgroup, and a restored container needs one".into())
    })?;
    Cgroup::new(&container.id, path, Some(&container.spec), prepared.systemd_cgroup)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Namespaces that CRIU joins, and descriptors that it inherits.
type Joined = (Vec<(Namespace, PathBuf)>, Vec<(OsString, i32)>);

/// Namespaces of the sandbox: network and a shared pid namespace by descriptor, IPC and UTS by path.
fn join_namespaces(plan: &Plan, swrk: &mut Swrk) -> std::io::Result<Joined> {
    let (mut joined, mut inherited) = (Vec::new(), Vec::new());
    for (key, path) in [&plan.network, &plan.pid].into_iter().flatten() {
        let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        inherited.push((key.into(), swrk.inherit(namespace)));
    }
    for (kind, path) in [(Namespace::Ipc, &plan.ipc), (Namespace::Uts, &plan.uts)] {
        joined.extend(path.clone().map(|path| (kind, path)));
    }
    Ok((joined, inherited))
}

/// What CRIU is told beside namespaces. Connections that are not to go on are none any more in the images.
fn fill(plan: &Plan, rootfs: &Path, terminal: bool, options: &mut RestoreOptions) {
    options.root = Some(rootfs.to_owned());
    options.rst_sibling = true;
    options.manage_cgroups = ManageCgroups::Ignore;
    options.tcp = Tcp::Established;
    options.file_locks = true;
    options.ext_unix_sk = true;
    options.evasive_devices = true;
    options.orphan_pts_master = true;
    options.shell_job = terminal;
    options.lsm_profile = plan.lsm_profile.clone();
    options.lsm_mount_context = plan.lsm_mount_context.clone();
    options.ext_mounts =
        plan.external_mounts.iter().map(|(key, source)| (key.into(), source.clone())).collect();
    for (descriptor, key) in (0i32..).zip(&plan.stdio) {
        if let Some(key) = key {
            options.inherit_fds.push((key.into(), descriptor));
        }
    }
}

/// What `/proc/PID/fd/N` will call this descriptor.
fn describe(descriptor: &OwnedFd) -> String {
    match rustix::fs::fstat(descriptor.as_fd()) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo => {
            format!("pipe:[{}]", stat.st_ino)
        }
        Ok(_) | Err(_) => "/dev/null".to_owned(),
    }
}
