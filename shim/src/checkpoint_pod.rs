// SPDX-License-Identifier: Apache-2.0
//! A checkpoint of the whole pod, straight into the store: all containers are frozen at one instant, dumped one after the
//! other, and go on together.
//!
//! containerd is not asked and must not be confused: to it the containers run all the time, and its own verbs for one of
//! them wait until they go on. What is done from then on needs the store alone, and holds up nobody. Whatever fails, and when whoever asked is gone, the containers go on and nothing is
//! left in the store; when this process dies, the next one that writes there cleans it up.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::checkpoint::annotation::PodOptions;
use ::checkpoint::ask::{ANSWER, Answer, Ask, OPTIONS};
use ::checkpoint::config::Config;
use ::checkpoint::container_log;
use ::checkpoint::dump::{self, ConfigDump};
use ::checkpoint::layer::{Stack, copy};
use ::checkpoint::manifest::{self, Image, Manifest, Producer, Rootfs};
use ::checkpoint::record::Verb;
use ::checkpoint::store::{ContainerWriter, Store};
use ::checkpoint::{CheckpointId, Lineage};
use containerd_shim_protos::api::{CheckpointTaskRequest, Empty};
use containerd_shim_protos::events::task::TaskCheckpointed;
use log::{info, warn};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;

use crate::asker::Gone;
use crate::checkpoint::{Dump, failed};
use crate::container::Container;
use crate::create::blocking;
use crate::error::{TaskError, full};
use crate::figures;
use crate::network::interfaces;
use crate::notes::Notes;
use crate::pod::Pod;
use crate::reaper::Exits;
use crate::rewrite::open_dir;
use crate::running_log;
use crate::source::{Identity, identity, log_directory};
use crate::state::State;
use crate::together::Together;
use crate::volumes::Saved;

/// How often to look whether anybody still waits.
const LOOK: Duration = Duration::from_millis(200);

/// Freezes the pod into a checkpoint of the store that the request's path names.
///
/// # Errors
/// Why not; the containers go on, and the store is as before.
pub(crate) async fn checkpoint(
    pod: &Pod,
    request: &CheckpointTaskRequest,
    gone: Gone,
) -> Result<Empty, TaskError> {
    let ask = decode(request)?;
    let _recording = pod.recording.read().await;
    let containers = of_kubernetes(pod);
    for container in &containers {
        // From a slow disk that takes minutes, in which others may want something of the containers.
        filled(container, &gone).await?;
    }
    let mut verbs = Vec::new();
    for container in &containers {
        // All take them in the same order.
        verbs.push(container.verb.lock().await);
    }
    let running = running(&containers)?;
    for container in &running {
        filled(container, &gone).await?;
    }
    let mut exits = Vec::new();
    for _ in &running {
        exits.push(Exits::subscribe().await.map_err(|e| TaskError::shim("watch for exits", e))?);
    }
    let root = Path::new(&request.path).to_owned();
    let (frozen, logs) = (running.clone(), logs(pod));
    let (goes_on, going_on) = oneshot::channel();
    let taking = blocking(move || Taking { containers: &frozen, logs, ask, gone }.take(&root, goes_on));
    tokio::pin!(taking);
    let taken = tokio::select! {
        taken = &mut taking => taken,
        // What is left to do is long, and touches the store alone.
        Ok(()) = going_on => {
            verbs.clear();
            taking.await
        }
    };
    let taken = taken.inspect_err(|e| {
        for container in &running {
            figures::failed(Verb::Checkpoint, &container.spec, e);
        }
    })?;
    for (exits, criu) in exits.into_iter().zip(taken.crius) {
        exits.of(criu).await;
    }
    for container in &running {
        let (container_id, checkpoint) = (container.id.clone(), taken.path.clone());
        pod.events.publish(TaskCheckpointed { container_id, checkpoint, ..Default::default() }).await;
    }
    drop(verbs);
    let json = serde_json::to_vec(&taken.answer)
        .map_err(|e| TaskError::Io { what: "answer".into(), source: e.into() })?;
    let mut answer = Empty::new();
    answer.special_fields.mut_unknown_fields().add_length_delimited(ANSWER, json);
    Ok(answer)
}

/// Waits until all memory of a lazily restored container is there, as CRIU dumps what is there.
async fn filled(container: &Container, gone: &Gone) -> Result<(), TaskError> {
    let Some(filling) = container.filling() else { return Ok(()) };
    loop {
        if gone.is_gone() {
            return Err(nobody_waits(container));
        }
        if let Ok(filled) = tokio::time::timeout(LOOK, filling.filled()).await {
            return filled.map_err(|e| failed(container, "waiting for its memory")(full(&e)));
        }
    }
}

fn nobody_waits(container: &Container) -> TaskError {
    failed(container, "looking who waits")("nobody waits for the checkpoint any more".into())
}

fn decode(request: &CheckpointTaskRequest) -> Result<Ask, TaskError> {
    let asked = request.options.as_ref().filter(|any| any.type_url == OPTIONS);
    let ask = asked.map(|any| serde_json::from_slice(&any.value));
    match ask {
        Some(Ok(ask)) if Path::new(&request.path).is_absolute() => Ok(ask),
        Some(Err(e)) => Err(TaskError::InvalidRequest(format!(
            "this pod's shim does not understand what is asked ({e}): it is of another release than `thaw`, and stays so \
             until the pod is made anew"
        ))),
        Some(Ok(_)) | None => {
            Err(TaskError::InvalidRequest("a whole pod is frozen by `thaw checkpoint`".into()))
        }
    }
}

/// The containers of the pod but for its sandbox, by their names.
fn of_kubernetes(pod: &Pod) -> Vec<Arc<Container>> {
    let mut containers = pod.all();
    containers.retain(|container| who(container).is_some());
    containers.sort_by_cached_key(|container| {
        (who(container).map(|who| who.container.to_owned()), container.id.clone())
    });
    containers
}

/// Where their logs are.
fn logs(pod: &Pod) -> Option<PathBuf> {
    let of = |container: &Arc<Container>| {
        container.spec.annotations().as_ref().and_then(log_directory).map(Path::to_owned)
    };
    pod.all().iter().find_map(of)
}

fn who(container: &Container) -> Option<Identity<'_>> {
    container.spec.annotations().as_ref().and_then(identity)
}

/// Those that have not ended; all of these must run.
fn running(containers: &[Arc<Container>]) -> Result<Vec<Arc<Container>>, TaskError> {
    let alive = containers.iter().filter(|container| container.init.state() != State::Stopped);
    let alive: Vec<_> = alive.cloned().collect();
    for container in &alive {
        let why = match container.init.state() {
            State::Running => continue,
            State::Paused => {
                "it is frozen by somebody else, such as the kubelet's checkpoint API: try again later"
            }
            State::Created | State::CreatedCheckpoint | State::Stopped => {
                "it has not started yet: try again when all containers of the pod run"
            }
        };
        return Err(failed(container, "looking at its state")(why.to_owned()));
    }
    if alive.is_empty() {
        return Err(TaskError::InvalidRequest(
            "no container of the pod runs: there is nothing to freeze".into(),
        ));
    }
    Ok(alive)
}

/// What is asked for, of these containers.
struct Taking<'a> {
    containers: &'a [Arc<Container>],
    /// Where their logs are.
    logs: Option<PathBuf>,
    ask: Ask,
    gone: Gone,
}

/// A checkpoint that was made.
struct Taken {
    answer: Answer,
    /// Where it is.
    path: String,
    /// The pids of all that dumped, whose exits are to be awaited.
    crius: Vec<i32>,
}

/// One container on its way into the store.
struct Part<'a> {
    container: &'a Container,
    who: Identity<'a>,
    writer: ContainerWriter,
    rootfs: Option<Rootfs>,
}

impl Taking<'_> {
    /// Blocks. Says when the containers go on, and nothing is needed of them any more.
    fn take(&self, root: &Path, goes_on: oneshot::Sender<()>) -> Result<Taken, TaskError> {
        let store = |e: &dyn std::error::Error| cannot_write(e);
        let config = Config { roots: vec![root.to_owned()], ..Config::default() };
        let stored = Store::create(&config).map_err(|e| store(&e))?;
        stored.clean().map_err(|e| store(&e))?;
        let pod = self.pod()?;
        let id = CheckpointId::unique(OffsetDateTime::now_utc()).map_err(|e| store(&e))?;
        let writer = stored.begin(&pod.namespace, &pod.lineage, id.clone()).map_err(|e| store(&e))?;
        let mut parts = Vec::new();
        for container in self.containers {
            let Some(who) = who(container) else { continue };
            let writer = writer.container(who.container).map_err(|e| store(&e))?;
            parts.push(Part { container, who, writer, rootfs: None });
        }

        let began = Instant::now();
        let together = Together::freeze(self.containers)?;
        let at = OffsetDateTime::now_utc();
        let crius = self.dump(&together, &mut parts)?;
        // Who is to end must not do anything more that the checkpoint does not know of.
        let together = self.ask.stop.then_some(together);
        let frozen = began.elapsed();
        for part in &mut parts {
            part.describe(at, self.logs.as_deref())?;
        }
        if together.is_none() {
            // Whoever has gone does not wait for this either.
            let _ = goes_on.send(());
        }

        let mut known = HashMap::new();
        let mut containers = BTreeMap::new();
        for part in parts {
            self.is_awaited(part.container)?;
            containers.insert(part.who.container.to_owned(), part.record(at, &mut known)?);
        }
        let answer =
            Answer { namespace: pod.namespace.clone(), lineage: pod.lineage.clone(), id: id.clone() };
        let created = OffsetDateTime::now_utc();
        let manifest = Manifest { version: manifest::VERSION, id, created, pod, containers, host: None };
        for container in self.containers {
            self.is_awaited(container)?;
        }
        let path = writer.publish(&manifest).map_err(|e| store(&e))?;
        // Who has gone by now may believe that there is no checkpoint: then the pod goes on as well.
        if let Some(together) = together.filter(|_| !self.gone.is_gone()) {
            together.kill();
        }
        let steps = [("freezing", frozen), ("writing", began.elapsed().saturating_sub(frozen))];
        for container in self.containers {
            let bytes = who(container).and_then(|who| manifest.containers.get(who.container));
            let bytes = bytes.map_or(0, manifest::Container::bytes);
            figures::done(Verb::Checkpoint, &container.spec, "frozen into a checkpoint", bytes, &steps);
        }
        let ms = u64::try_from(frozen.as_millis()).unwrap_or(u64::MAX);
        info!(checkpoint = path.display().to_string().as_str(), frozen_ms = ms; "pod checkpointed");
        Ok(Taken { answer, path: path.display().to_string(), crius })
    }

    /// Writes into the store what may not change meanwhile.
    fn dump(&self, together: &Together, parts: &mut [Part<'_>]) -> Result<Vec<i32>, TaskError> {
        // One alone may run on while it is dumped: nobody else sees it.
        let settled = parts.len() > 1;
        if settled {
            together.settle()?;
        }
        let (mut crius, mut saved) = (Vec::new(), Saved::default());
        for part in &*parts {
            self.is_awaited(part.container)?;
            let (images, work) = (part.writer.images_path(), part.writer.path());
            let container = part.container;
            let criu = Dump { container, images: &images, work, exit: false, settled }.run(&mut saved);
            crius.push(criu.inspect_err(|_| crate::abandoned::put_right(container.init.pid(), false))?);
        }
        for part in parts {
            self.is_awaited(part.container)?;
            part.save_layers()?;
        }
        Ok(crius)
    }

    fn is_awaited(&self, container: &Container) -> Result<(), TaskError> {
        if self.gone.is_gone() {
            return Err(nobody_waits(container));
        }
        Ok(())
    }

    /// What the manifest says of the pod.
    fn pod(&self) -> Result<manifest::Pod, TaskError> {
        let first = self.containers.first().and_then(|container| Some((container, who(container)?)));
        let Some((container, who)) = first else {
            return Err(TaskError::NotFound("a container of the pod".into()));
        };
        let failed = |e: &dyn std::error::Error| failed(container, "reading its annotations")(full(e));
        let annotations = container.spec.annotations().clone().unwrap_or_default();
        // A restored container may have notes of the node's.
        let (_, asked) = Notes::split(&annotations);
        let lineage: Lineage = match &self.ask.lineage {
            Some(lineage) => lineage.clone(),
            None => {
                PodOptions::parse(asked).map_err(|e| failed(&e))?.lineage(who.pod).map_err(|e| failed(&e))?
            }
        };
        let network = format!("/proc/{}/ns/net", container.init.pid());
        let addresses = interfaces(Some(Path::new(&network))).map_err(|e| failed(&e))?.addresses;
        let subject = who.subject();
        let uid = Some(subject.uid).filter(|uid| !uid.is_empty());
        Ok(manifest::Pod { namespace: subject.namespace, name: subject.pod, uid, lineage, addresses })
    }
}

impl Part<'_> {
    /// Copies the writable layer: what the container came with, where it was restored, and what it wrote since.
    fn save_layers(&mut self) -> Result<(), TaskError> {
        let failed = |e: &dyn std::error::Error| failed(self.container, "saving the writable layer")(full(e));
        let upper =
            crate::rootfs::upper_directory(&self.container.bundle.join("rootfs")).map_err(|e| failed(&e))?;
        let restored = self.container.restored();
        let inherited = restored.and_then(|prepared| prepared.source.dir.rootfs());
        let rootfs = self.writer.rootfs().map_err(|e| failed(&e))?;
        let mut stack = Stack::new(rootfs.as_fd());
        for layer in inherited.into_iter().chain([upper.as_path()]) {
            copy(open_dir(layer)?.as_fd(), &mut stack).map_err(|e| failed(&e))?;
        }
        self.rootfs = Some(stack.finish());
        Ok(())
    }

    /// Copies what it has logged, where there is a log. A restore knows by the times what came after the freeze.
    fn add_log(&mut self, logs: Option<&Path>) -> Result<(), TaskError> {
        let Some(logs) = logs else { return Ok(()) };
        let log = running_log::open(logs, self.who.container);
        match log.and_then(|log| log.map(container_log::end).transpose()) {
            Ok(Some((mut log, _))) => self.writer.add(dump::LOG, &mut log).map_err(|e| cannot_write(&e))?,
            Ok(None) => {}
            // What the program knows is worth more than what it has said.
            Err(e) => warn!("the log of {} is not in its checkpoint: {}", self.who.container, full(&e)),
        }
        Ok(())
    }

    /// Writes the small files: what the bundle and the log have of it.
    fn describe(&mut self, frozen: OffsetDateTime, logs: Option<&Path>) -> Result<(), TaskError> {
        let failed = |e: &dyn std::error::Error| cannot_write(e);
        let config = ConfigDump {
            id: self.container.id.clone(),
            name: self.who.container.to_owned(),
            rootfs_image_name: Some(self.who.image.to_owned()),
            checkpointed_time: frozen.format(&Rfc3339).ok(),
            ..ConfigDump::default()
        };
        let config = serde_json::to_vec(&config).map_err(|e| failed(&e))?;
        self.writer.add(dump::CONFIG, &mut config.as_slice()).map_err(|e| failed(&e))?;
        let spec = self.container.bundle.join("config.json");
        let mut spec =
            std::fs::File::open(&spec).map_err(TaskError::io(format!("open {}", spec.display())))?;
        self.writer.add(dump::SPEC, &mut spec).map_err(|e| failed(&e))?;
        self.add_log(logs)
    }

    /// What the manifest says of the container: reads all that was written of it.
    fn record(
        mut self,
        frozen: OffsetDateTime,
        known: &mut HashMap<(u64, u64), manifest::File>,
    ) -> Result<manifest::Container, TaskError> {
        self.writer.take_in(known).map_err(|e| cannot_write(&e))?;
        Ok(manifest::Container {
            image: Image { name: self.who.image.to_owned(), reference: None },
            runtime: None,
            producer: Producer::Thaw,
            frozen: Some(frozen),
            rootfs: self.rootfs,
            files: self.writer.into_files(),
        })
    }
}

fn cannot_write(e: &dyn std::error::Error) -> TaskError {
    TaskError::Io { what: "write the checkpoint".into(), source: std::io::Error::other(full(e)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::well_known_types::any::Any;

    fn request(type_url: &str, json: &str, path: &str) -> CheckpointTaskRequest {
        let value = json.as_bytes().to_vec();
        let options = Any { type_url: type_url.into(), value, ..Default::default() };
        CheckpointTaskRequest { path: path.into(), options: Some(options).into(), ..Default::default() }
    }

    #[test]
    fn only_what_thaw_asks_is_understood_and_all_of_it() {
        let ask = decode(&request(OPTIONS, r#"{"lineage": "a", "stop": true}"#, "/store")).unwrap();
        assert_eq!(ask, Ask { lineage: Some("a".parse().unwrap()), stop: true });
        let said = |request| decode(&request).unwrap_err().to_string();
        assert!(
            said(request(OPTIONS, r#"{"later": 1, "stop": true}"#, "/store")).contains("another release")
        );
        for other in [
            request("containerd.runc.v1.CheckpointOptions", "", "/store"),
            request(OPTIONS, r#"{"stop": false}"#, "store"),
            CheckpointTaskRequest::default(),
        ] {
            assert!(said(other).contains("thaw checkpoint"));
        }
    }
}
