// SPDX-License-Identifier: Apache-2.0
//! The library and the program against a real containerd, on the disposable node of `scripts/node`.
//!
//! They restart containerd, so they run nowhere else.
// This file is all tests, which clippy does not see.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nri_plugin::nri::api::{
    Container, ContainerAdjustment, ContainerUpdate, CreateContainerResponse, Event, KeyValue, LinuxCPU,
    LinuxContainerUpdate, LinuxResources, OptionalUInt64, PodSandbox,
};
use nri_plugin::nri::{self, Identity, Plugin, Refused, Session};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

const CONFIG: &str = "/etc/containerd/config.toml";
const LOG: &str = "/var/log/containerd.log";
/// Nothing here takes nearly as long.
const LIMIT: Duration = Duration::from_secs(30);

/// The tests share one containerd.
static NODE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Whether this is the disposable node; says why not.
fn on_node() -> bool {
    let here = Path::new(nri::SOCKET).exists() && std::env::var_os("THAW_CGROUP_PARENT").is_some();
    if !here {
        println!("SKIP needs the disposable node with containerd: scripts/node run");
    }
    here
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn containerd() -> Option<Pid> {
    let mut processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let pid = processes
        .find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "containerd\n"));
    pid.and_then(|pid| Pid::from_raw(pid.parse().ok()?))
}

/// Puts another containerd in the place of the one that runs.
fn restart_containerd(config: &Path) {
    let boots = || fs::read_to_string(LOG).unwrap_or_default().matches("successfully booted").count();
    let before = boots();
    kill_process(containerd().expect("no containerd runs"), Signal::TERM).unwrap();
    wait_until("containerd has ended", || containerd().is_none());
    let log = OpenOptions::new().append(true).create(true).open(LOG).unwrap();
    // A fork, so that the node's init is its parent, and not a test that may end first.
    let mut command = Command::new("setsid");
    command
        .args(["--fork", "containerd", "--config"])
        .arg(config)
        .env("TMPDIR", "/var/tmp")
        .stdin(Stdio::null());
    assert!(command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap().success());
    wait_until("containerd answers", || boots() > before);
}

/// containerd with a handler that passes pods' annotations on, and without other plugins; the node's own is back
/// when this is dropped.
struct OwnContainerd {
    dir: TempDir,
}

impl OwnContainerd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("plugins")).unwrap();
        let handler = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.annotated";
        let plugins = dir.path().join("plugins");
        let config = format!(
            "version = 3\nimports = ['{CONFIG}']\n[{handler}]\nruntime_type = 'io.containerd.runc.v2'\n\
             pod_annotations = ['thaw.dev/*']\n[plugins.'io.containerd.nri.v1.nri']\nplugin_path = '{}'\n",
            plugins.display()
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let own = Self { dir };
        own.restart();
        own
    }

    fn restart(&self) {
        restart_containerd(&self.dir.path().join("config.toml"));
    }

    fn plugins(&self) -> PathBuf {
        self.dir.path().join("plugins")
    }
}

impl Drop for OwnContainerd {
    fn drop(&mut self) {
        restart_containerd(Path::new(CONFIG));
    }
}

/// A pod of this node; removed when this is dropped.
struct TestPod(&'static str);

impl TestPod {
    /// Runs it, or says what went wrong.
    fn run(name: &'static str, annotations: &[(&str, &str)]) -> Result<Self, String> {
        let pod = Self(name);
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "runtimeClassName": "annotated", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "thaw.local/busybox:1", "command": ["sleep", "1000"]}],
            },
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), manifest.to_string()).unwrap();
        let output = Command::new("pod").arg("run").arg(file.path()).output().unwrap();
        if output.status.success() { Ok(pod) } else { Err(String::from_utf8(output.stderr).unwrap()) }
    }

    /// What the runtime got to run its container.
    fn spec(&self) -> Value {
        let output = Command::new("pod").args(["inspect", self.0]).output().unwrap();
        let pod: Value = serde_json::from_slice(&output.stdout).unwrap();
        let id = pod["containers"]["main"]["id"].as_str().unwrap();
        let bundle = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json");
        serde_json::from_slice(&fs::read(bundle).unwrap()).unwrap()
    }
}

impl Drop for TestPod {
    fn drop(&mut self) {
        Command::new("pod").args(["rm", self.0]).output().unwrap();
    }
}

/// The program; killed when this is dropped.
struct Program {
    child: Child,
    log: PathBuf,
    _dir: TempDir,
}

impl Program {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let child =
            Command::new(env!("CARGO_BIN_EXE_thaw-nri")).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Self { child, log, _dir: dir }
    }

    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("thaw-nri has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn wait_for(&self, text: &str, times: usize) {
        wait_until(&format!("thaw-nri logs {text:?}, for the {times}. time"), || {
            fs::read_to_string(&self.log).unwrap().matches(text).count() >= times
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.ended();
        println!("{}", fs::read_to_string(&self.log).unwrap_or_default());
    }
}

const FORGED: &str = "thaw.dev/internal.plan";

fn forged(pod: &TestPod) -> bool {
    let annotations = &pod.spec()["annotations"];
    assert_eq!(annotations["thaw.dev/if-failed"], "start", "{annotations}");
    annotations.get(FORGED).is_some()
}

#[tokio::test]
async fn forged_annotations_do_not_reach_the_runtime_and_bad_ones_fail_the_pod() {
    if !on_node() {
        return;
    }
    let _node = NODE.lock().await;
    let containerd = OwnContainerd::start();
    let annotations = [(FORGED, "x"), ("thaw.dev/if-failed", "start")];
    let without = TestPod::run("nri-without", &annotations).unwrap();
    assert!(forged(&without), "without the plugin they arrive; else this test shows nothing");

    let mut program = Program::start();
    program.wait_for("synchronized pods=1 containers=1", 1);
    let with = TestPod::run("nri-with", &annotations).unwrap();
    assert!(!forged(&with));

    let message = TestPod::run("nri-bad", &[("thaw.dev/restor", "latest"), ("thaw.dev/if-missing", "no")])
        .err()
        .unwrap();
    println!("{message}");
    assert!(
        message.contains("\"thaw.dev/restor\\\"") || message.contains("\"thaw.dev/restor\""),
        "{message}"
    );
    assert!(message.contains("thaw.dev/if-missing"), "{message}");

    containerd.restart();
    program.wait_for("synchronized pods=2 containers=2", 1);
    let after = TestPod::run("nri-after", &annotations).unwrap();
    assert!(!forged(&after));

    kill_process(Pid::from_child(&program.child), Signal::TERM).unwrap();
    assert!(program.ended().success());
}

#[tokio::test]
async fn containerd_can_start_the_program_itself() {
    if !on_node() {
        return;
    }
    let _node = NODE.lock().await;
    let containerd = OwnContainerd::start();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_thaw-nri"), containerd.plugins().join("20-thaw")).unwrap();
    containerd.restart();
    let pod = TestPod::run("nri-launched", &[(FORGED, "x"), ("thaw.dev/if-failed", "start")]).unwrap();
    assert!(!forged(&pod));
}

/// Remembers all events, and gives each container a variable that does not fit into one frame.
#[derive(Default)]
struct Watcher(Mutex<Vec<String>>);

impl Watcher {
    fn note(&self, what: &str, pod: &PodSandbox, container: &Container) -> Result<(), Refused> {
        self.0.lock().unwrap().push(format!("{what} {} {}", pod.name, container.name));
        Ok(())
    }
}

#[async_trait]
impl Plugin for Watcher {
    fn events(&self) -> &[Event] {
        &nri::ALL
    }
    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        let network = pod.linux.namespaces.iter().any(|ns| ns.type_ == "network" && !ns.path.is_empty());
        if pod.ips.is_empty() || !network || pod.uid.is_empty() {
            return Err(Refused(format!("the pod has no address or no network namespace: {pod:?}")));
        }
        self.note("run", &pod, &Container::new())
    }
    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.note("stop-pod", &pod, &Container::new())
    }
    async fn remove_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.note("remove-pod", &pod, &Container::new())
    }
    async fn create_container(
        &self,
        pod: PodSandbox,
        all: Container,
    ) -> Result<CreateContainerResponse, Refused> {
        if !all.mounts.iter().any(|mount| mount.destination == "/etc/hosts") || all.args != ["sleep", "1000"]
        {
            return Err(Refused(format!("the container has no mounts or arguments: {all:?}")));
        }
        self.note("create", &pod, &all)?;
        if pod.name == "nri-slow" {
            std::future::pending::<()>().await;
        }
        let env = vec![KeyValue { key: "LONG".into(), value: "x".repeat(100_000), ..Default::default() }];
        let adjust = ContainerAdjustment { env, ..Default::default() };
        Ok(CreateContainerResponse { adjust: Some(adjust).into(), ..Default::default() })
    }
    async fn post_create_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("post-create", &pod, &container)
    }
    async fn start_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("start", &pod, &container)
    }
    async fn post_start_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note(&format!("post-start {}", container.id), &pod, &container)
    }
    async fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Vec<ContainerUpdate>, Refused> {
        self.note("stop", &pod, &container).map(|()| Vec::new())
    }
    async fn remove_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("remove", &pod, &container)
    }
}

/// A watcher that containerd has taken. It answers on the test's thread, so that nothing else may block that.
async fn watch() -> (Session, Arc<Watcher>) {
    let trunk = nri::connect(Path::new(nri::SOCKET)).await.unwrap();
    let watcher = Arc::new(Watcher::default());
    let identity = Identity::new("watcher", "90").unwrap();
    let session = Session::register(trunk, &identity, Arc::clone(&watcher)).await.unwrap();
    let synchronized = async {
        while !session.synchronized() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, synchronized).await.expect("the plugin is not synchronized");
    (session, watcher)
}

#[tokio::test]
async fn a_plugin_that_does_not_answer_fails_the_container_and_stays() {
    if !on_node() {
        return;
    }
    let _node = NODE.lock().await;
    let _containerd = OwnContainerd::start();
    let (_session, watcher) = watch().await;
    let message = spawn_blocking(|| TestPod::run("nri-slow", &[]).err().unwrap()).await.unwrap();
    assert!(message.contains("the plugin did not answer within 1500 ms"), "{message}");
    watcher.0.lock().unwrap().clear();
    spawn_blocking(|| drop(TestPod::run("nri-next", &[]).unwrap())).await.unwrap();
    assert!(watcher.0.lock().unwrap().contains(&"create nri-next main".to_owned()));
}

#[tokio::test]
async fn every_event_of_a_pods_life_reaches_a_plugin_and_its_changes_reach_containerd() {
    if !on_node() {
        return;
    }
    let _node = NODE.lock().await;
    let _containerd = OwnContainerd::start();
    let (session, watcher) = watch().await;

    let pod = spawn_blocking(|| TestPod::run("nri-events", &[]).unwrap()).await.unwrap();
    let (spec, pod) = spawn_blocking(|| (pod.spec(), pod)).await.unwrap();
    let env = spec["process"]["env"].to_string();
    assert!(env.contains(&format!("\"LONG={}\"", "x".repeat(100_000))));
    let id = {
        let events = watcher.0.lock().unwrap();
        events
            .iter()
            .find_map(|event| event.strip_prefix("post-start "))
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    };

    let shares = Some(OptionalUInt64 { value: 333, ..Default::default() }).into();
    let cpu = Some(LinuxCPU { shares, ..Default::default() }).into();
    let resources = Some(LinuxResources { cpu, ..Default::default() }).into();
    let linux = Some(LinuxContainerUpdate { resources, ..Default::default() }).into();
    let update = ContainerUpdate { container_id: id.clone(), linux, ..Default::default() };
    let failed = session.runtime().update_containers(vec![update], vec![], LIMIT).await.unwrap();
    assert!(failed.is_empty(), "{failed:?}");

    spawn_blocking(|| drop(pod)).await.unwrap();
    let events = watcher.0.lock().unwrap().clone();
    let events: Vec<_> = events.iter().map(|event| event.replace(&format!(" {id}"), "")).collect();
    assert_eq!(
        events,
        [
            "run nri-events ",
            "create nri-events main",
            "post-create nri-events main",
            "start nri-events main",
            "post-start nri-events main",
            "stop nri-events main",
            "stop-pod nri-events ",
            "remove nri-events main",
            "remove-pod nri-events ",
        ]
    );
}
