// SPDX-License-Identifier: Apache-2.0
//! The only caller of the OCI runtime (runc): it makes ordinary containers, and runs exec, pause, update, ps
//! and delete for restored ones too, which [`crate::adopt`] makes known to it.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process as OciProcess};
use runc::options::{CreateOpts, DeleteOpts, ExecOpts, GlobalOpts, KillOpts};
use runc::{Command, Io, Runc, Spawner};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;

use crate::error::TaskError;
use crate::options::RuntimeOptions;
use crate::reaper::Exits;

/// How much of the runtime's output is kept for an error text, in bytes.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// How containerd names runc's features document.
///
/// Source: containerd `core/runtime/v2`, type URL of `features.Features`.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// A client of the OCI runtime for one container.
#[derive(Debug, Clone)]
pub(crate) struct Oci {
    runc: Runc,
    id: String,
    bundle: PathBuf,
    root: PathBuf,
    no_pivot_root: bool,
    no_new_keyring: bool,
}

impl Oci {
    /// A client for container `id` whose bundle is `bundle`, in containerd's `namespace`.
    ///
    /// # Errors
    /// When the runtime's name or root is no usable path.
    pub(crate) fn new(
        id: &str,
        bundle: &Path,
        namespace: &str,
        options: &RuntimeOptions,
    ) -> Result<Self, TaskError> {
        let mut global = GlobalOpts::new()
            .command(options.binary())
            .root(options.root(namespace))
            .log(bundle.join("log.json"))
            .log_json()
            .systemd_cgroup(options.systemd_cgroup());
        global.custom_spawner(Arc::new(Reaped));
        let runc = global
            .build()
            .map_err(|e| TaskError::InvalidRequest(format!("OCI runtime {}: {e}", options.binary())))?;
        Ok(Self {
            runc,
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            root: options.root(namespace),
            no_pivot_root: options.no_pivot_root(),
            no_new_keyring: options.no_new_keyring(),
        })
    }

    /// The runtime's own record of the container.
    pub(crate) fn state_file(&self) -> PathBuf {
        self.root.join(&self.id).join("state.json")
    }

    /// `runc create`; returns the pid of the init.
    pub(crate) async fn create(
        &self,
        io: Option<Arc<dyn Io>>,
        console_socket: Option<&Path>,
    ) -> Result<i32, TaskError> {
        let pid_file = self.bundle.join("init.pid");
        let mut opts = CreateOpts::new()
            .pid_file(&pid_file)
            .no_pivot(self.no_pivot_root)
            .no_new_keyring(self.no_new_keyring);
        if let Some(socket) = console_socket {
            opts = opts.console_socket(socket);
        }
        if let Some(io) = io {
            opts = opts.io(io);
        }
        self.explain("create", self.runc.create(&self.id, &self.bundle, Some(&opts))).await?;
        read_pid(&pid_file).await
    }

    /// `runc start`.
    pub(crate) async fn start(&self) -> Result<(), TaskError> {
        self.explain("start", self.runc.start(&self.id)).await.map(drop)
    }

    /// `runc exec --detach`; returns the pid of the process.
    pub(crate) async fn exec(
        &self,
        exec_id: &str,
        process: &OciProcess,
        io: Option<Arc<dyn Io>>,
        console_socket: Option<&Path>,
    ) -> Result<i32, TaskError> {
        let pid_file = self.bundle.join(format!("{exec_id}.pid"));
        let mut opts = ExecOpts::new().pid_file(&pid_file).detach(true);
        if let Some(socket) = console_socket {
            opts = opts.console_socket(socket);
        }
        if let Some(io) = io {
            opts = opts.io(io);
        }
        self.explain("exec", self.runc.exec(&self.id, process, Some(&opts))).await?;
        read_pid(&pid_file).await
    }

    /// `runc kill --all`: a signal to every process of the container.
    pub(crate) async fn kill_all(&self, signal: u32) -> Result<(), TaskError> {
        self.explain("kill", self.runc.kill(&self.id, signal, Some(&KillOpts::new().all(true)))).await
    }

    /// `runc delete`; `force` kills what is alive and does not mind a container that is not there.
    pub(crate) async fn delete(&self, force: bool) -> Result<(), TaskError> {
        self.explain("delete", self.runc.delete(&self.id, Some(&DeleteOpts::new().force(force)))).await
    }

    /// `runc pause`.
    pub(crate) async fn pause(&self) -> Result<(), TaskError> {
        self.explain("pause", self.runc.pause(&self.id)).await
    }

    /// `runc resume`.
    pub(crate) async fn resume(&self) -> Result<(), TaskError> {
        self.explain("resume", self.runc.resume(&self.id)).await
    }

    /// `runc update`.
    pub(crate) async fn update(&self, resources: &LinuxResources) -> Result<(), TaskError> {
        self.explain("update", self.runc.update(&self.id, resources)).await
    }

    /// `runc ps`: the pids of the container.
    pub(crate) async fn pids(&self) -> Result<Vec<usize>, TaskError> {
        self.explain("ps", self.runc.ps(&self.id)).await
    }

    /// Puts the runtime's own last log line into the error: its exit status alone says nothing. Lines of earlier
    /// commands are not looked at.
    async fn explain<T>(
        &self,
        verb: &'static str,
        command: impl Future<Output = runc::Result<T>>,
    ) -> Result<T, TaskError> {
        let log = self.bundle.join("log.json");
        let logged = tokio::fs::metadata(&log).await.map_or(0, |log| log.len());
        match command.await {
            Ok(value) => Ok(value),
            Err(source) => Err(TaskError::Runtime {
                verb,
                said: last_error(&log, logged).await.unwrap_or_else(|| source.to_string()),
            }),
        }
    }
}

/// Runs the runtime's commands without waiting for them itself: the shim's one reaper does.
#[derive(Debug)]
struct Reaped;

#[async_trait]
impl Spawner for Reaped {
    async fn execute(&self, mut cmd: Command) -> runc::Result<(ExitStatus, u32, String, String)> {
        let exits = Exits::subscribe().await.map_err(|e| runc::error::Error::Other(Box::new(e)))?;
        let mut child = cmd.spawn().map_err(runc::error::Error::ProcessSpawnFailed)?;
        // The command holds the container's ends of the pipes until it is dropped.
        drop(cmd);
        let pid = child.id().unwrap_or_default();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (exit, stdout, stderr) =
            tokio::join!(exits.of(pid.cast_signed()), read_bounded(stdout), read_bounded(stderr));
        // Wait status as the kernel encodes it: the exit code is the second byte.
        let status = std::os::unix::process::ExitStatusExt::from_raw(exit.code.cast_signed() << 8);
        Ok((status, pid, stdout, stderr))
    }
}

async fn read_bounded<R: tokio::io::AsyncRead + Unpin>(from: Option<R>) -> String {
    let mut out = Vec::new();
    if let Some(mut from) = from {
        // What was read before an error is still worth showing.
        let _ = (&mut from).take(OUTPUT_LIMIT).read_to_end(&mut out).await;
        // Who writes more must not wait for ever.
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads a pid file that the runtime wrote.
async fn read_pid(path: &Path) -> Result<i32, TaskError> {
    containerd_shim::asynchronous::util::read_pid_from_file(path)
        .await
        .map_err(|e| TaskError::shim("read the pid that the OCI runtime wrote", e))
}

/// The message of the last error in runc's JSON log after its first `logged` bytes.
async fn last_error(log: &Path, logged: u64) -> Option<String> {
    let mut file = tokio::fs::File::open(log).await.ok()?;
    let end = file.metadata().await.ok()?.len();
    let from = logged.max(end.saturating_sub(OUTPUT_LIMIT));
    file.seek(SeekFrom::Start(from)).await.ok()?;
    let text = read_bounded(Some(file)).await;
    let message = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        (entry.get("level")?.as_str()? == "error").then(|| Some(entry.get("msg")?.as_str()?.to_owned()))?
    };
    text.lines().rev().find_map(message)
}

/// What `-info` answers: this runtime's version, and the OCI runtime's own `features`, without which containerd
/// refuses `hostUsers: false` and recursive read-only mounts on this handler.
///
/// # Errors
/// When the options do not decode; a runtime without `features` is answered without.
pub(crate) fn info(runtime_id: &str, options: Option<&Any>) -> containerd_shim::Result<RuntimeInfo> {
    let options = RuntimeOptions::decode(options)
        .map_err(|e| containerd_shim::Error::InvalidArgument(e.to_string()))?;
    let features = std::process::Command::new(options.binary()).arg("features").output();
    let features = features.ok().filter(|output| output.status.success()).map(|output| Any {
        type_url: FEATURES_TYPE.into(),
        value: output.stdout,
        ..Default::default()
    });
    Ok(RuntimeInfo {
        name: runtime_id.to_owned(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() })
            .into(),
        features: features.into(),
        ..Default::default()
    })
}
