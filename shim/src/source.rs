// SPDX-License-Identifier: Apache-2.0
//! Where a container comes from: from its image, or from a checkpoint that the pod's annotations name.
//!
//! The shim resolves and authorises by itself: whatever told the pod what to do, this is what enforces.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ::checkpoint::annotation::{Memory, Otherwise, PodOptions, RestoreRequest, Scope};
use ::checkpoint::config::{Config, ConfigError};
use ::checkpoint::container_dir::{ContainerDir, ContainerDirError};
use ::checkpoint::record::Subject;
use ::checkpoint::reference::{Lineage, Reference};
use ::checkpoint::store::{CheckpointDir, Store};
use log::{info, warn};
use oci_spec::runtime::Spec;

use crate::error::{TaskError, full};
use crate::frozen::Images;
use crate::notes::Notes;
use crate::waiting_pager::WaitingPager;

/// Annotations that containerd's CRI writes into each spec; pods cannot forge them.
///
/// Source: containerd `internal/cri/annotations/annotations.go`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
const SANDBOX_LOG_DIRECTORY: &str = "io.kubernetes.cri.sandbox-log-directory";
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// A checkpoint that a container is restored from. Holds the checkpoint's shared lock, so that it cannot be
/// removed while the container lives on its files.
#[derive(Debug)]
pub(crate) struct Source {
    /// Container name in the pod.
    pub(crate) container: String,
    /// What to do when the restore fails.
    pub(crate) if_failed: Otherwise,
    /// The CRIU program.
    pub(crate) criu: PathBuf,
    /// The checkpoint.
    pub(crate) checkpoint: CheckpointDir,
    /// This container's part of it.
    pub(crate) dir: ContainerDir,
    /// What its images say.
    pub(crate) images: Images,
    /// How many threads bring its memory while it runs; `None`: all of it comes before.
    pub(crate) fill_threads: Option<usize>,
    /// Everything that the pod asks for.
    pub(crate) options: PodOptions,
    /// What the node's plugin noted.
    pub(crate) notes: Notes,
}

impl Source {
    /// `NAMESPACE/LINEAGE/ID`.
    pub(crate) fn name(&self) -> String {
        self.checkpoint.name()
    }

    /// A pager for it.
    ///
    /// # Errors
    /// When its process cannot be made.
    pub(crate) fn pager(&self) -> Result<WaitingPager, TaskError> {
        WaitingPager::start(&self.checkpoint, &self.container, &self.dir)
    }
}

/// The new pod's side of a restore.
pub(crate) struct Identity<'a> {
    /// Its name in the pod.
    pub(crate) container: &'a str,
    /// Kubernetes namespace.
    pub(crate) namespace: &'a str,
    /// The pod's name.
    pub(crate) pod: &'a str,
    uid: &'a str,
    /// The image that the new spec names.
    pub(crate) image: &'a str,
}

impl Identity<'_> {
    /// As the node's plugin is told.
    pub(crate) fn subject(&self) -> Subject {
        let Self { container, namespace, pod, uid, .. } = *self;
        let [container, namespace, pod, uid] = [container, namespace, pod, uid].map(str::to_owned);
        Subject { namespace, pod, uid, container }
    }
}

/// Who this container is, when it is one of a Kubernetes pod (not the sandbox).
pub(crate) fn identity(annotations: &HashMap<String, String>) -> Option<Identity<'_>> {
    let get = |key: &str| annotations.get(key).map(String::as_str);
    (get(CONTAINER_TYPE)? == "container").then_some(())?;
    Some(Identity {
        container: get(CONTAINER_NAME)?,
        namespace: get(SANDBOX_NAMESPACE)?,
        pod: get(SANDBOX_NAME)?,
        uid: get(SANDBOX_UID).unwrap_or_default(),
        image: get(IMAGE_NAME).unwrap_or_default(),
    })
}

/// Namespace and name of the pod whose sandbox this is; `None`: it is none.
pub(crate) fn sandbox(annotations: &HashMap<String, String>) -> Option<(&str, &str)> {
    let get = |key: &str| annotations.get(key).map(String::as_str);
    (get(CONTAINER_TYPE)? == "sandbox").then_some(())?;
    Some((get(SANDBOX_NAMESPACE)?, get(SANDBOX_NAME)?))
}

/// Where the logs of the containers are whose pod's sandbox this is; `None`: nobody asked for logs, or it is no sandbox.
pub(crate) fn log_directory(annotations: &HashMap<String, String>) -> Option<&Path> {
    sandbox(annotations)?;
    let directory = annotations.get(SANDBOX_LOG_DIRECTORY)?;
    Some(Path::new(directory)).filter(|directory| directory.is_absolute())
}

/// Decides where the container of `spec` comes from; `None` is its image. Reads the store, so it blocks.
///
/// `sandbox` is the bundle of the pod's sandbox. `restored` says which checkpoint each of its containers was already
/// restored from: the same is not used twice, or a crash loop would replay it for ever.
///
/// # Errors
/// [`TaskError::Refused`] with every reason.
pub(crate) fn decide(
    spec: &Spec,
    sandbox: &Path,
    restored: &HashMap<String, String>,
) -> Result<Option<Source>, TaskError> {
    let Some(annotations) = spec.annotations() else { return Ok(None) };
    let Some(who) = identity(annotations) else { return Ok(None) };
    let refuse = |checkpoint: String, reasons: String| TaskError::Refused {
        container: who.container.to_owned(),
        checkpoint,
        reasons,
    };
    let (notes, asked) = Notes::split(annotations);
    let options = PodOptions::parse(asked).map_err(|e| refuse(String::new(), full(&e)))?;
    notes.are_not_the_pods(sandbox).map_err(|e| refuse(String::new(), full(&e)))?;
    let Some(request) = options.for_container(who.container) else { return Ok(None) };
    let asked = format!(" from {}", request.reference);
    let lineage = options.lineage(who.pod).map_err(|e| refuse(asked.clone(), full(&e)))?;

    match open(&who, &request, &lineage, &options, restored) {
        Ok(source) => Ok(source.map(|source| Source { notes, ..source })),
        Err(Obstacle::Missing(why)) if request.if_missing == Otherwise::Start => {
            warn!("container {} starts normally: {why}", who.container);
            Ok(None)
        }
        Err(Obstacle::Missing(why)) => {
            let cure = "set thaw.dev/if-missing: start to start without it";
            Err(refuse(asked, format!("{why}; {cure}")))
        }
        Err(Obstacle::Broken(checkpoint, why)) if request.if_failed == Otherwise::Start => {
            let checkpoint = checkpoint.unwrap_or(asked);
            warn!("container {} starts normally and not{checkpoint}: {why}", who.container);
            Ok(None)
        }
        Err(Obstacle::Broken(checkpoint, why)) => Err(refuse(checkpoint.unwrap_or(asked), why)),
    }
}

/// What keeps a checkpoint from being restored, in words.
enum Obstacle {
    /// There is none: `thaw.dev/if-missing` decides.
    Missing(String),
    /// It cannot be used, or the store cannot: `thaw.dev/if-failed` decides. With ` from NAME` where it is known.
    Broken(Option<String>, String),
}

/// Opens the checkpoint that is asked for. `None` where the container is to start normally all the same.
fn open(
    who: &Identity<'_>,
    request: &RestoreRequest,
    lineage: &Lineage,
    options: &PodOptions,
    restored: &HashMap<String, String>,
) -> Result<Option<Source>, Obstacle> {
    let broken = |e: &dyn std::error::Error| Obstacle::Broken(None, full(e));
    let config = config().map_err(|e| broken(&e))?;
    let store = Store::open(&config).map_err(|e| broken(&e))?;
    let checkpoint = store
        .resolve(who.namespace, lineage, &meant(who.container, request, lineage, restored))
        .map_err(|e| if e.is_missing() { Obstacle::Missing(full(&e)) } else { broken(&e) })?;
    let name = checkpoint.name();
    if restored.get(who.container) == Some(&name) {
        info!("container {} was restored from {name} before and starts afresh", who.container);
        return Ok(None);
    }
    let damaged = |e: &dyn std::error::Error| Obstacle::Broken(Some(format!(" from {name}")), full(e));
    let dir = match checkpoint.container(who.container) {
        Ok(dir) => dir,
        Err(ContainerDirError::NotHeld { .. }) if request.scope == Scope::Pod => return Ok(None),
        Err(e @ ContainerDirError::NotHeld { .. }) => return Err(Obstacle::Missing(full(&e))),
        Err(e) => return Err(damaged(&e)),
    };
    let addresses = &checkpoint.manifest().pod.addresses;
    let images = Images::read(&dir, addresses).map_err(|e| damaged(&e))?;
    Ok(Some(Source {
        container: who.container.to_owned(),
        if_failed: request.if_failed,
        fill_threads: fill_threads(&config, options),
        criu: program(config),
        checkpoint,
        dir,
        images,
        options: options.clone(),
        notes: Notes::default(),
    }))
}

/// The containers of a pod come from one checkpoint: `latest` is the one that another of them was restored from, though
/// there may be a newer one by now. A container that was itself restored before is started again alone.
fn meant(
    container: &str,
    request: &RestoreRequest,
    lineage: &Lineage,
    restored: &HashMap<String, String>,
) -> Reference {
    let alone = restored.contains_key(container) || request.scope != Scope::Pod;
    if alone || request.reference != Reference::Latest {
        return request.reference.clone();
    }
    let of_lineage = |name: &String| {
        let reference = name.split_once('/')?.1.parse().ok()?;
        matches!(&reference, Reference::Of { lineage: its, .. } if its == lineage).then_some(reference)
    };
    restored.values().find_map(of_lineage).unwrap_or(Reference::Latest)
}

/// How many threads fill, where memory is to follow: by default as many as there are processors, up to the number
/// from which on the kernel's memory management lets them wait for each other.
fn fill_threads(config: &Config, options: &PodOptions) -> Option<usize> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(4);
    match options.memory().unwrap_or(config.memory) {
        Memory::Eager => None,
        Memory::Lazy => Some(config.fill_threads.map_or(processors, usize::from)),
    }
}

/// The CRIU program that the administrator has set, or the one on PATH.
///
/// # Errors
/// When the configuration cannot be read.
pub(crate) fn criu() -> Result<PathBuf, ConfigError> {
    Ok(program(config()?))
}

pub(crate) fn program(config: Config) -> PathBuf {
    config.criu.unwrap_or_else(|| "criu".into())
}

/// What the administrator has set.
///
/// # Errors
/// When the configuration cannot be read.
pub(crate) fn config() -> Result<Config, ConfigError> {
    Config::load(&config_path())
}

/// The administrator's file. The environment that containerd gives its shims may name another, for tests and for
/// unusual installations.
fn config_path() -> PathBuf {
    std::env::var_os("THAW_CONFIG").map_or_else(|| Config::PATH.into(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant_by(container: &str, asked: &str, restored: &[(&str, &str)]) -> String {
        let request =
            PodOptions::parse([("thaw.dev/restore", asked)]).unwrap().for_container(container).unwrap();
        let restored = restored.iter().map(|(name, from)| ((*name).to_owned(), (*from).to_owned())).collect();
        meant(container, &request, &"pair".parse().unwrap(), &restored).to_string()
    }

    #[test]
    fn containers_that_start_together_come_from_one_checkpoint() {
        let first = "20261127T040000.000Z-7f3a";
        let restored = [("a", format!("team/pair/{first}"))];
        let restored: Vec<_> = restored.iter().map(|(name, from)| (*name, from.as_str())).collect();
        assert_eq!(meant_by("b", "latest", &[]), "latest");
        assert_eq!(meant_by("b", "latest", &restored), format!("pair/{first}"));
        assert_eq!(meant_by("a", "latest", &restored), "latest");
        let other = format!("team/other/{first}");
        assert_eq!(meant_by("b", "latest", &[("a", &other)]), "latest");
    }
}
