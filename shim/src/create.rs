// SPDX-License-Identifier: Apache-2.0
//! CreateTask: decides where the container comes from and prepares it. An ordinary one is created by the OCI
//! runtime; for one from a checkpoint everything is resolved, checked and mounted, and there is no process yet.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ::checkpoint::annotation::{Otherwise, PodOptions, RESTORE};
use ::checkpoint::plan::{Host, NewContainer, NewNetwork, Refused, plan, resolve_destinations};
use ::checkpoint::record::Verb;
use containerd_shim::asynchronous::io::Stdio;
use containerd_shim::asynchronous::util::read_spec;
use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use log::warn;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags};

use crate::ahead;
use crate::cgroup::cgroup_path;
use crate::container::Container;
use crate::error::{TaskError, full};
use crate::figures;
use crate::hasten::Hastened;
use crate::logging::Log;
use crate::members;
use crate::network::{Interfaces, interfaces};
use crate::oci::Oci;
use crate::oom::Kills;
use crate::options::RuntimeOptions;
use crate::pod::Pod;
use crate::prepared::Prepared;
use crate::process::Process;
use crate::reaper::Exits;
use crate::reopen::reopen;
use crate::restoring::Restoring;
use crate::rootfs::{Layer, Rootfs};
use crate::source::{Source, decide, identity};
use crate::state::State;
use crate::stdio::Wiring;
use crate::stopwatch::Stopwatch;
use crate::volumes::volumes;
use crate::waiting_pager::WaitingPager;

/// Creates a container; returns its pid, 0 when it is to be restored.
///
/// # Errors
/// Why not, with everything undone.
pub(crate) async fn create(pod: &Arc<Pod>, req: CreateTaskRequest) -> Result<i32, TaskError> {
    if pod.container(&req.id).is_ok() {
        return Err(TaskError::AlreadyExists(format!("container {}", req.id)));
    }
    if !req.checkpoint.is_empty() {
        return Err(TaskError::InvalidRequest(
            "containerd asks for a restore from a checkpoint image; under this runtime a pod names a checkpoint \
             with the annotation thaw.dev/restore instead: use the container's own image"
                .into(),
        ));
    }
    let bundle = PathBuf::from(&req.bundle);
    let spec = read_spec(&bundle).await.map_err(|e| TaskError::shim("read config.json", e))?;
    let options = RuntimeOptions::decode(req.options.as_ref())?;
    options.save(&bundle).await?;
    let request = Request { namespace: pod.namespace.clone(), options, bundle, spec, req };
    ahead::begin(pod, &request.spec);
    members::note(&pod.bundle, &request.req.id, cgroup_path(&request.spec).as_deref())?;
    let created = make(pod, &request).await;
    if created.is_err() {
        members::forget(&pod.bundle, &request.req.id);
    }
    created
}

async fn make(pod: &Arc<Pod>, request: &Request) -> Result<i32, TaskError> {
    let (state, prepared, rootfs) = match prepare(pod, request).await? {
        Some((prepared, rootfs)) => (State::CreatedCheckpoint, Some(Arc::new(prepared)), rootfs),
        None => {
            let target = request.bundle.join("rootfs");
            (State::Created, None, Rootfs::mount(&request.req.rootfs, target, None).await?)
        }
    };
    let container = Arc::new(request.container(state, prepared, rootfs)?);
    pod.add(container.clone())?;
    if state == State::Created {
        create_process(pod, &container).await.inspect_err(|_| pod.remove(&container.id))?;
    }
    pod.events.publish(request.event(&container)).await;
    Ok(container.init.pid())
}

/// What containerd asked for, decoded.
struct Request {
    namespace: String,
    options: RuntimeOptions,
    bundle: PathBuf,
    spec: Spec,
    req: CreateTaskRequest,
}

impl Request {
    fn container(
        &self,
        state: State,
        prepared: Option<Arc<Prepared>>,
        rootfs: Rootfs,
    ) -> Result<Container, TaskError> {
        let req = &self.req;
        let stdio = Stdio::new(&req.stdin, &req.stdout, &req.stderr, req.terminal);
        let log = Log::of(&stdio, &req.id, &self.namespace)?;
        Ok(Container {
            id: req.id.clone(),
            bundle: self.bundle.clone(),
            spec: self.spec.clone(),
            oci: Oci::new(&req.id, &self.bundle, &self.namespace, &self.options)?,
            io_owner: self.options.io_owner(),
            snapshot: req.rootfs.clone(),
            init: Process::new("", stdio, log, state),
            verb: tokio::sync::Mutex::default(),
            prepared,
            kills: Kills::default(),
            restoring: Restoring::default(),
            filling: std::sync::Mutex::default(),
            rootfs: std::sync::Mutex::new(Some(rootfs)),
            execs: std::sync::Mutex::default(),
            cgroup: std::sync::Mutex::default(),
            cgroups: std::sync::OnceLock::new(),
        })
    }

    fn event(&self, container: &Container) -> TaskCreate {
        let io = TaskIO {
            stdin: self.req.stdin.clone(),
            stdout: self.req.stdout.clone(),
            stderr: self.req.stderr.clone(),
            terminal: self.req.terminal,
            ..Default::default()
        };
        TaskCreate {
            container_id: container.id.clone(),
            bundle: self.req.bundle.clone(),
            rootfs: self.req.rootfs.clone(),
            io: Some(io).into(),
            checkpoint: container.prepared.as_ref().map(|p| p.source.name()).unwrap_or_default(),
            pid: container.init.pid().cast_unsigned(),
            ..Default::default()
        }
    }
}

/// `runc create` with the container's streams wired; the exit is watched from the first moment.
///
/// # Errors
/// When the runtime fails; it leaves nothing then.
pub(crate) async fn create_process(pod: &Arc<Pod>, container: &Arc<Container>) -> Result<(), TaskError> {
    let exits = Exits::subscribe().await.map_err(|e| TaskError::shim("watch for exits", e))?;
    let wiring = Wiring::new(&container.init, container.io_owner).await?;
    let io = wiring.io();
    let pid = container.oci.create(io, wiring.console_socket()).await?;
    container.init.set_pid(pid);
    if let Err(e) = wiring.attach(&container.init).await {
        if let Err(undo) = container.oci.delete(true).await {
            warn!("cannot delete container {} after a failed create: {undo}", container.id);
        }
        return Err(e);
    }
    crate::start::watch(pod, container, exits, pid);
    Ok(())
}

/// Finds the checkpoint that the pod asks for and proves that its restore can hold; `None` starts the image.
async fn prepare(pod: &Arc<Pod>, request: &Request) -> Result<Option<(Prepared, Rootfs)>, TaskError> {
    let stopwatch = Stopwatch::start("reading the checkpoint");
    let hastened = asks(&request.spec).then(Hastened::begin).flatten();
    let (spec, asker) = (request.spec.clone(), pod.clone());
    let decided = blocking(move || decide(&spec, &asker.bundle, &asker.restored_from())).await;
    // Whatever was decided: nobody else wants it.
    let waiting = name(&request.spec).and_then(|name| pod.waiting_pagers.take(&name));
    let decided = decided.inspect_err(|e| figures::failed(Verb::Restore, &request.spec, e))?;
    let Some(source) = decided else { return Ok(None) };
    let if_failed = source.if_failed;
    let planned = plan_restore(pod, request, source, (waiting, hastened), stopwatch).await;
    match planned.inspect_err(|e| figures::failed(Verb::Restore, &request.spec, e)) {
        Err(e) if if_failed == Otherwise::Start => {
            warn!("the container starts normally, as thaw.dev/if-failed says: {e}");
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// The container's name in its pod.
fn name(spec: &Spec) -> Option<String> {
    spec.annotations().as_ref().and_then(identity).map(|who| who.container.to_owned())
}

/// Whether this may be a container that is to be restored.
fn asks(spec: &Spec) -> bool {
    let mut keys = spec.annotations().iter().flat_map(HashMap::keys);
    keys.any(|key| key.starts_with(RESTORE)) && name(spec).is_some()
}

async fn plan_restore(
    pod: &Arc<Pod>,
    request: &Request,
    source: Source,
    (waiting, hastened): (Option<WaitingPager>, Option<Hastened>),
    stopwatch: Stopwatch,
) -> Result<(Prepared, Rootfs), TaskError> {
    stopwatch.next("mounting the root file system");
    let possible = request.options.can_adopt();
    let possible = possible.and_then(|()| crate::cgroup::can_confine(request.options.systemd_cgroup()));
    possible.map_err(|reasons| TaskError::Refused {
        container: source.container.clone(),
        checkpoint: format!(" from {}", source.name()),
        reasons,
    })?;
    let target = request.bundle.join("rootfs");
    let layer = source.dir.rootfs().map(|path| Layer { path, implied: source.dir.implied_directories() });
    let rootfs = Rootfs::mount(&request.req.rootfs, target, layer).await?;
    stopwatch.next("planning");
    let (spec, at) = (request.spec.clone(), rootfs.path().to_owned());
    let judged = move || {
        let plan = judge(&spec, &at, &source)?;
        let pager = match waiting.filter(|pager| pager.is_of(&source.name())) {
            None if source.fill_threads.is_some() => Some(source.pager()?),
            pager => pager,
        };
        Ok((plan, source, pager))
    };
    let (plan, mut source, pager) = blocking(judged).await?;
    source.images.forget_judged();
    let prepared = Prepared {
        source,
        plan,
        runtime_root: request.options.root(&request.namespace),
        systemd_cgroup: request.options.systemd_cgroup(),
        filled: pod.filled.clone(),
        pager: Mutex::new(pager),
        hastened: Mutex::new(hastened),
        stopwatch,
    };
    prepared.stopwatch.next("containerd: from Create to Start");
    Ok((prepared, rootfs))
}

/// The plan, or every reason against it.
fn judge(spec: &Spec, rootfs: &Path, source: &Source) -> Result<::checkpoint::plan::Plan, TaskError> {
    let refuse = |reasons: String| TaskError::Refused {
        container: source.container.clone(),
        checkpoint: format!(" from {}", source.name()),
        reasons,
    };
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(TaskError::io("open the root file system"))?;
    let annotations: HashMap<String, String> = spec.annotations().clone().unwrap_or_default();
    let new = NewContainer {
        spec,
        image: identity(&annotations).map(|who| who.image).unwrap_or_default(),
        destinations: resolve_destinations(spec, root.as_fd()).map_err(|e| refuse(full(&e)))?,
        cgroups: crate::cgroup::v1_mounts(spec)?,
        network: network(spec, &source.options).map_err(|e| refuse(full(&e)))?,
        volumes: volumes(spec, &source.options).map_err(|e| refuse(full(&e)))?,
        prepared: source.notes.prepared.is_some(),
    };
    let planned = plan(&source.images.frozen, &new, &Host::probe(spec)).map_err(|e| full(&e));
    let planned =
        planned.and_then(|plan| match reopen(&source.images, &plan, spec).map_err(|e| full(&e))? {
            (_, reasons) if reasons.is_empty() => Ok(plan),
            (_, reasons) => Err(full(&Refused(reasons))),
        });
    match (planned, source.notes.refused.clone()) {
        (Ok(plan), None) => Ok(plan),
        (Ok(_), Some(noted)) => Err(refuse(noted)),
        (Err(reasons), noted) => {
            Err(refuse([Some(reasons), noted].into_iter().flatten().collect::<Vec<_>>().join("; ")))
        }
    }
}

/// What the sockets will find in the sandbox.
fn network(spec: &Spec, options: &PodOptions) -> std::io::Result<NewNetwork> {
    let namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_ref()).flatten();
    let mut networks = namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let found = match networks.next().map(|namespace| namespace.path()) {
        // A namespace of its own, in which nothing is yet.
        Some(None) => Interfaces::default(),
        Some(Some(path)) => interfaces(Some(path)).map_err(|e| {
            std::io::Error::other(format!(
                "its network namespace {} cannot be looked into: {e}",
                path.display()
            ))
        })?,
        None => interfaces(None)?,
    };
    Ok(NewNetwork {
        addresses: found.addresses,
        interfaces: found.links.into_values().map(|link| (link.name, link.index)).collect(),
        address: options.address(),
        tcp: options.tcp(),
    })
}

/// Runs what blocks on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| TaskError::Io { what: "run a blocking step".into(), source: e.into() })?
}
