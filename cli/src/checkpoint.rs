// SPDX-License-Identifier: Apache-2.0
//! `thaw checkpoint`: has the shim of a pod freeze it into the store.
//!
//! The shim does all of it, and undoes all of it when this process is gone before the end: closing the connection is the
//! way to say so.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::checkpoint::ask::{ANSWER, Answer, Ask, EVERY, OPTIONS};
use ::checkpoint::store::ResolveError;
use ::checkpoint::{Lineage, Reference};
use clap::Args;
use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::ttrpc::context::Context;
use containerd_shim_protos::ttrpc::{self, Client};
use indicatif::{ProgressBar, ProgressStyle};
use protobuf::UnknownValueRef;
use protobuf::well_known_types::any::Any;

use crate::bundles::{Ambiguous, PodArguments, Sandbox};
use crate::made::Made;
use crate::store::{StoreArguments, StoreError};

/// The file in a bundle with the address of the shim that serves it.
const ADDRESS: &str = "address";
/// The folder in a sandbox's bundle in which thaw's shim notes the pod's containers.
const MEMBERS: &str = "members";
/// How often the line that shows progress changes.
const TICK: Duration = Duration::from_millis(200);

/// Freeze a running pod of this node into a checkpoint of the store
///
/// All containers of the pod are frozen at one instant, with /dev/shm and the volumes that the annotation thaw.dev/volumes
/// names, and go on when everything is read; their logs are copied. While they stand, their probes fail. When this command
/// is interrupted, the pod goes on and there is no checkpoint.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    pub(crate) pod: PodArguments,
    /// Let the pod go on afterwards; this is the default
    #[arg(long, conflicts_with = "stop")]
    pub(crate) leave_running: bool,
    /// End the pod's processes when the checkpoint exists, without letting them go on in between. The kubelet takes it for
    /// a crash, and starts the containers again where the pod's restartPolicy says so: delete the pod
    #[arg(long)]
    pub(crate) stop: bool,
    /// The lineage it belongs to [default: the pod's annotation thaw.dev/lineage, else its name]
    #[arg(long, value_name = "NAME")]
    pub(crate) lineage: Option<Lineage>,
    /// Print what was made as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) store: StoreArguments,
}

/// There is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("checkpoint must run as root: it asks the shim of the pod")]
    NotRoot,
    #[error("there is no pod {0} on this node: look with `crictl pods` where it runs and how it is called")]
    None(String),
    #[error(transparent)]
    Several(#[from] Ambiguous),
    #[error(
        "pod {0} does not run under thaw's RuntimeClass: set runtimeClassName in the pod and create it again, or freeze it \
         through the kubelet's checkpoint API"
    )]
    OtherRuntime(String),
    #[error("cannot find the shim of pod {pod} in {file}", file = file.display())]
    Address { pod: String, file: PathBuf, source: io::Error },
    #[error("cannot reach the shim of pod {pod}: {said}; look with `crictl pods` whether the pod still runs")]
    Unreachable { pod: String, said: String },
    #[error("cannot freeze pod {pod}; it goes on: {said}")]
    Refused { pod: String, said: String },
    #[error(
        "the shim of pod {pod} has ended, and with it the pod: {said}; `journalctl` has what containerd says of it"
    )]
    Lost { pod: String, said: String },
    #[error("the shim of pod {pod} gave an answer that this release does not understand: {said}")]
    Answer { pod: String, said: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot find the checkpoint that was made")]
    Resolve(#[from] ResolveError),
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

impl Checkpoint {
    /// Freezes, and prints what was made.
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), CheckpointError> {
        self.checkpoint()?.print("frozen", self.json, out).map_err(CheckpointError::Print)
    }

    fn checkpoint(&self) -> Result<Made, CheckpointError> {
        if !rustix::process::geteuid().is_root() {
            return Err(CheckpointError::NotRoot);
        }
        let pod = || self.pod.pod.clone();
        let sandbox = self.pod.sandbox()?.ok_or_else(|| CheckpointError::None(pod()))?;
        let root = self.store.first_root()?;
        let address = self.address(&sandbox)?;
        let client = Client::connect(&address)
            .map_err(|e| CheckpointError::Unreachable { pod: pod(), said: e.to_string() })?;
        let progress = Progress::begin(&self.pod.pod, &root.join(&sandbox.namespace));
        let answer = self.ask(client, &root);
        drop(progress);
        let answer = answer?;
        let store = self.store.open()?;
        let made = store.resolve(&answer.namespace, &answer.lineage, &Reference::Id(answer.id))?;
        Ok(Made::of(made.manifest(), made.path().to_owned()))
    }

    /// The address of the pod's shim.
    fn address(&self, sandbox: &Sandbox) -> Result<String, CheckpointError> {
        if !sandbox.bundle.join(MEMBERS).is_dir() {
            return Err(CheckpointError::OtherRuntime(self.pod.pod.clone()));
        }
        let file = sandbox.bundle.join(ADDRESS);
        let address = std::fs::read_to_string(&file);
        address.map_err(|source| CheckpointError::Address { pod: self.pod.pod.clone(), file, source })
    }

    fn ask(&self, client: Client, root: &Path) -> Result<Answer, CheckpointError> {
        let pod = || self.pod.pod.clone();
        let ask = Ask { lineage: self.lineage.clone(), stop: self.stop };
        let value = serde_json::to_vec(&ask).map_err(|e| CheckpointError::Print(e.into()))?;
        let options = Any { type_url: OPTIONS.to_owned(), value, ..Default::default() };
        let request = CheckpointTaskRequest {
            id: EVERY.to_owned(),
            path: root.display().to_string(),
            options: Some(options).into(),
            ..Default::default()
        };
        // Without a deadline: the shim's own ones bound what may hang.
        let answered = TaskClient::new(client).checkpoint(Context::default(), &request);
        let answered = answered.map_err(|error| {
            if let ttrpc::Error::RpcStatus(status) = error {
                return CheckpointError::Refused { pod: pod(), said: status.message };
            }
            CheckpointError::Lost { pod: pod(), said: error.to_string() }
        })?;
        let Some(UnknownValueRef::LengthDelimited(json)) =
            answered.special_fields.unknown_fields().get(ANSWER)
        else {
            return Err(CheckpointError::Answer { pod: pod(), said: "there is nothing in it".to_owned() });
        };
        serde_json::from_slice(json).map_err(|e| CheckpointError::Answer { pod: pod(), said: e.to_string() })
    }
}

/// A line on standard error that shows how much has been written, where that is a terminal; gone on drop.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `namespace`: where in the store the checkpoint is being written.
    fn begin(pod: &str, namespace: &Path) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} freezing {msg}, {bytes} written, {elapsed}")
        {
            bar.set_style(style);
        }
        bar.set_message(pod.to_owned());
        let (shown, namespace) = (bar.clone(), namespace.to_owned());
        std::thread::spawn(move || {
            let before = unfinished(&namespace);
            while !shown.is_finished() {
                let now = unfinished(&namespace);
                let new = now.iter().filter(|dir| !before.contains(dir));
                shown.set_position(new.map(|dir| size(dir)).fold(0, u64::saturating_add));
                shown.tick();
                std::thread::sleep(TICK);
            }
        });
        Self { bar }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The directories of checkpoints that are being written in a namespace.
fn unfinished(namespace: &Path) -> Vec<PathBuf> {
    let lineages = std::fs::read_dir(namespace).into_iter().flatten().flatten();
    let entries =
        lineages.flat_map(|lineage| std::fs::read_dir(lineage.path()).into_iter().flatten().flatten());
    let unfinished =
        |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(::checkpoint::store::TEMPORARY);
    entries.filter(|entry| unfinished(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// Bytes of all files beneath a directory; what goes away meanwhile has none.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { size(&entry.path()) } else { metadata.len() })
    });
    bytes.fold(0, u64::saturating_add)
}
