// SPDX-License-Identifier: Apache-2.0
//! Plugins of the runtime: `thaw-nri` itself, and one of the tests' own that gives out devices and stops the world at
//! a hook.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nri_plugin::nri::api::{
    Container, ContainerAdjustment, ContainerUpdate, CreateContainerResponse, Event,
    LinuxContainerAdjustment, LinuxDevice, Mount, PodSandbox,
};
use nri_plugin::nri::{self, Identity, Plugin, Refused, Session};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Semaphore, mpsc};

use super::{HarnessError, process};

/// Which devices a pod is given by [`Injector`]: `/dev/gpu0=1:3`, commas between them.
pub const DEVICES: &str = "test.example/devices";
/// Which files of the node it is given: `/in/the/pod=/on/the/node`, commas between them.
pub const FILES: &str = "test.example/files";
/// Which further interfaces its network gets, before anything runs in it, commas between them.
pub const LINKS: &str = "test.example/links";
/// How long a plugin may take to be known to the runtime, or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// `thaw-nri`; killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    log: PathBuf,
    folder: tempfile::TempDir,
}

impl Program {
    /// Starts it and waits until the runtime has taken it.
    ///
    /// # Errors
    /// When it cannot be run or is not taken.
    pub fn start() -> Result<Self, HarnessError> {
        Self::start_with("")
    }

    /// The same with an administrator's settings.
    ///
    /// # Errors
    /// As [`Program::start`].
    pub fn start_with(settings: &str) -> Result<Self, HarnessError> {
        let folder = tempfile::tempdir_in("/var/tmp")
            .map_err(|source| HarnessError::file("make a folder in", "/var/tmp", source))?;
        let (log, config) = (folder.path().join("log"), folder.path().join("config.toml"));
        let write = |source| HarnessError::file("write", folder.path(), source);
        std::fs::write(&config, settings).map_err(write)?;
        let stderr = File::create(&log).map_err(write)?;
        let mut command = Command::new("thaw-nri");
        command.arg("--config").arg(config).stderr(stderr);
        let child = command.spawn().map_err(|source| HarnessError::file("run", "thaw-nri", source))?;
        let program = Self { child, log, folder };
        program.wait_for("synchronized", 1)?;
        Ok(program)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has logged a text so many times.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_for(&self, text: &str, times: usize) -> Result<(), HarnessError> {
        let began = Instant::now();
        while self.log().matches(text).count() < times {
            if began.elapsed() > LIMIT {
                return Err(HarnessError::answer("thaw-nri", self.log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has gone.
    pub fn signal(&self, signal: Signal) -> Result<(), HarnessError> {
        kill_process(Pid::from_child(&self.child), signal)
            .map_err(|errno| HarnessError::file("signal", "thaw-nri", errno))
    }

    /// Ends it as a service manager does.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<ExitStatus, HarnessError> {
        self.signal(Signal::TERM)?;
        self.ended()
    }

    fn ended(&mut self) -> Result<ExitStatus, HarnessError> {
        let began = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if began.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(10)),
                Ok(None) => return Err(HarnessError::answer("thaw-nri", "it does not end")),
                Err(source) => return Err(HarnessError::file("wait for", "thaw-nri", source)),
            }
        }
    }

    /// Where it may leave files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.ended();
        println!("{}", self.log());
    }
}

/// A plugin that gives each container the devices and files that its pod's annotations name.
#[derive(Debug)]
pub struct Injector {
    stop_at: Mutex<Option<&'static str>>,
    reached: mpsc::UnboundedSender<()>,
    go_on: Arc<Semaphore>,
}

/// An [`Injector`] that the runtime has taken, before `thaw-nri`'s turn.
#[derive(Debug)]
pub struct Injecting {
    _session: Session,
    reached: mpsc::UnboundedReceiver<()>,
    go_on: Arc<Semaphore>,
}

/// Every hook of a pod's life, in order, as [`Injector`] names them.
pub const HOOKS: [&str; 9] =
    ["run-pod", "create", "post-create", "start", "post-start", "stop", "stop-pod", "remove", "remove-pod"];

impl Injector {
    /// Registers it; it stops at the hook `stop_at` of the first pod until it is told to go on.
    ///
    /// # Errors
    /// When the runtime does not take it.
    pub async fn register(stop_at: Option<&'static str>) -> Result<Injecting, HarnessError> {
        let failed =
            |error: &dyn std::error::Error| HarnessError::answer("the runtime", format!("{error:?}"));
        let (sender, reached) = mpsc::unbounded_channel();
        let go_on = Arc::new(Semaphore::new(0));
        let injector = Self { stop_at: Mutex::new(stop_at), reached: sender, go_on: go_on.clone() };
        let trunk = nri::connect(Path::new(nri::SOCKET)).await.map_err(|e| failed(&e))?;
        let identity = Identity::new("injector", "20").map_err(|e| failed(&e))?;
        let session =
            Session::register(trunk, &identity, Arc::new(injector)).await.map_err(|e| failed(&e))?;
        let began = Instant::now();
        while !session.synchronized() {
            if began.elapsed() > LIMIT {
                return Err(HarnessError::answer("the runtime", "it does not synchronize the plugin"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Injecting { _session: session, reached, go_on })
    }

    async fn at(&self, hook: &str) -> Result<(), Refused> {
        let stops = |at: &mut Option<&'static str>| at.take_if(|at| *at == hook).is_some();
        // A poisoned lock only means that another call panicked.
        if stops(&mut self.stop_at.lock().unwrap_or_else(PoisonError::into_inner)) {
            // Nobody waits any more when the test is over.
            let _ = self.reached.send(());
            if let Ok(permit) = self.go_on.acquire().await {
                permit.forget();
            }
        }
        Ok(())
    }
}

impl Injecting {
    /// Waits until a pod has come to the hook.
    ///
    /// # Errors
    /// When none does.
    pub async fn reached(&mut self) -> Result<(), HarnessError> {
        let reached = tokio::time::timeout(LIMIT, self.reached.recv()).await;
        match reached {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => Err(HarnessError::answer("the runtime", "no pod comes to the hook")),
        }
    }

    /// Lets the pod go on.
    pub fn go_on(&self) {
        self.go_on.add_permits(1);
    }
}

#[async_trait]
impl Plugin for Injector {
    fn events(&self) -> &[Event] {
        &nri::ALL
    }
    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        let network = pod.linux.namespaces.iter().find(|namespace| namespace.type_ == "network");
        let names = pod.annotations.get(LINKS).map(|names| names.split(','));
        for (name, network) in names.into_iter().flatten().zip(network.into_iter().cycle()) {
            let script = format!("ip link add {name} type bridge && ip link set {name} up");
            let namespace = format!("--net={}", network.path);
            process::output("nsenter", &[&namespace, "sh", "-c", &script])
                .map_err(|error| Refused(error.to_string()))?;
        }
        self.at("run-pod").await
    }
    async fn stop_pod_sandbox(&self, _: PodSandbox) -> Result<(), Refused> {
        self.at("stop-pod").await
    }
    async fn remove_pod_sandbox(&self, _: PodSandbox) -> Result<(), Refused> {
        self.at("remove-pod").await
    }
    async fn create_container(
        &self,
        pod: PodSandbox,
        _: Container,
    ) -> Result<CreateContainerResponse, Refused> {
        self.at("create").await?;
        let list = |key| pod.annotations.get(key).map(String::as_str).unwrap_or_default().split(',');
        let devices = list(DEVICES).filter_map(device).collect();
        let linux = LinuxContainerAdjustment { devices, ..Default::default() };
        let mounts = list(FILES).filter_map(|pair| pair.split_once('=')).map(|(destination, source)| Mount {
            destination: destination.into(),
            type_: "bind".into(),
            source: source.into(),
            options: vec!["rbind".into(), "ro".into()],
            ..Default::default()
        });
        let adjust =
            ContainerAdjustment { linux: Some(linux).into(), mounts: mounts.collect(), ..Default::default() };
        Ok(CreateContainerResponse { adjust: Some(adjust).into(), ..Default::default() })
    }
    async fn post_create_container(&self, _: PodSandbox, _: Container) -> Result<(), Refused> {
        self.at("post-create").await
    }
    async fn start_container(&self, _: PodSandbox, _: Container) -> Result<(), Refused> {
        self.at("start").await
    }
    async fn post_start_container(&self, _: PodSandbox, _: Container) -> Result<(), Refused> {
        self.at("post-start").await
    }
    async fn stop_container(&self, _: PodSandbox, _: Container) -> Result<Vec<ContainerUpdate>, Refused> {
        self.at("stop").await.map(|()| Vec::new())
    }
    async fn remove_container(&self, _: PodSandbox, _: Container) -> Result<(), Refused> {
        self.at("remove").await
    }
}

fn device(text: &str) -> Option<LinuxDevice> {
    let (path, numbers) = text.split_once('=')?;
    let (major, minor) = numbers.split_once(':')?;
    Some(LinuxDevice {
        path: path.into(),
        type_: "c".into(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..Default::default()
    })
}
