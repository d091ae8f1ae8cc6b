// SPDX-License-Identifier: Apache-2.0
//! The library and the program against a runtime that is played by the test.
// This file is all tests, which clippy does not see.
#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod fake_runtime;

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use checkpoint::record::{Record, Verb};
use fake_runtime::{Door, Runtime, soon};
use nri_plugin::nri::api::{
    ConfigureRequest, ConfigureResponse, Container, ContainerAdjustment, ContainerEvent, ContainerUpdate,
    CreateContainerRequest, CreateContainerResponse, Empty, Event, PodEvent, PodSandbox, StateChangeEvent,
    StopContainerRequest, StopContainerResponse, SynchronizeRequest, SynchronizeResponse,
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use nri_plugin::nri::{self, Identity, Plugin, Refused, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// Remembers what it was told; its answers depend on the name of the pod.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn note(&self, what: &str, pod: &PodSandbox, container: &Container) -> Result<(), Refused> {
        self.0.lock().unwrap().push(format!("{what} {} {}", pod.id, container.id));
        if pod.name == "refused" { Err(Refused(format!("{what}: no"))) } else { Ok(()) }
    }

    fn pod(&self, what: &str, pod: &PodSandbox) -> Result<(), Refused> {
        self.note(what, pod, &Container::new())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn update(container: &str) -> ContainerUpdate {
    ContainerUpdate { container_id: container.into(), ..Default::default() }
}

#[async_trait]
impl Plugin for Recorder {
    fn events(&self) -> &[Event] {
        &nri::ALL
    }
    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        all: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refused> {
        self.0.lock().unwrap().push(format!("synchronize {} {}", pods.len(), all.len()));
        Ok(all.first().map(|container| update(&container.id)).into_iter().collect())
    }
    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.pod("run", &pod)
    }
    async fn update_pod_sandbox(&self, request: UpdatePodSandboxRequest) -> Result<(), Refused> {
        self.pod("update-pod", &request.pod)
    }
    async fn post_update_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.pod("post-update-pod", &pod)
    }
    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.pod("stop-pod", &pod)
    }
    async fn remove_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.pod("remove-pod", &pod)
    }
    async fn create_container(
        &self,
        pod: PodSandbox,
        all: Container,
    ) -> Result<CreateContainerResponse, Refused> {
        self.note("create", &pod, &all)?;
        if pod.name == "slow" {
            std::future::pending::<()>().await;
        }
        let adjust = ContainerAdjustment { annotations: all.annotations, ..Default::default() };
        Ok(CreateContainerResponse { adjust: Some(adjust).into(), ..Default::default() })
    }
    async fn post_create_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("post-create", &pod, &container)
    }
    async fn start_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("start", &pod, &container)
    }
    async fn post_start_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("post-start", &pod, &container)
    }
    async fn update_container(
        &self,
        request: UpdateContainerRequest,
    ) -> Result<UpdateContainerResponse, Refused> {
        self.note("update", &request.pod, &request.container)?;
        Ok(UpdateContainerResponse { update: vec![update("u")], ..Default::default() })
    }
    async fn post_update_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("post-update", &pod, &container)
    }
    async fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Vec<ContainerUpdate>, Refused> {
        self.note("stop", &pod, &container).map(|()| vec![update("s")])
    }
    async fn remove_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refused> {
        self.note("remove", &pod, &container)
    }
    async fn validate_container_adjustment(
        &self,
        request: ValidateContainerAdjustmentRequest,
    ) -> Result<(), Refused> {
        self.note("validate", &request.pod, &request.container)
    }
}

/// A registered recorder and its runtime.
async fn session() -> (Runtime, Session, Arc<Recorder>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let runtime = Runtime::over(theirs).await;
    let plugin = Arc::new(Recorder::default());
    let identity = Identity::new("test", "00").unwrap();
    let session = soon(Session::register(ours, &identity, Arc::clone(&plugin))).await.unwrap();
    (runtime, session, plugin)
}

fn pod(name: &str) -> protobuf::MessageField<PodSandbox> {
    Some(PodSandbox { id: "p".into(), name: name.into(), ..Default::default() }).into()
}

fn container() -> protobuf::MessageField<Container> {
    Some(Container { id: "c".into(), ..Default::default() }).into()
}

#[tokio::test]
async fn a_plugin_is_served_before_it_registers_and_gets_the_events_that_the_runtime_has() {
    for (version, nri, events) in [("v2.1.9", "", 0x7FF), ("v2.3.4", "v0.12.0", 0x3FFF)] {
        let (mut runtime, session, _) = session().await;
        assert!(!session.synchronized());
        assert_eq!(runtime.handshake(version, nri).await, events);
        assert!(session.synchronized());
    }
}

#[tokio::test]
async fn both_forms_of_every_event_reach_the_same_method() {
    let events = [
        (Event::RUN_POD_SANDBOX, "RunPodSandbox", "run p "),
        (Event::POST_UPDATE_POD_SANDBOX, "PostUpdatePodSandbox", "post-update-pod p "),
        (Event::STOP_POD_SANDBOX, "StopPodSandbox", "stop-pod p "),
        (Event::REMOVE_POD_SANDBOX, "RemovePodSandbox", "remove-pod p "),
        (Event::POST_CREATE_CONTAINER, "PostCreateContainer", "post-create p c"),
        (Event::START_CONTAINER, "StartContainer", "start p c"),
        (Event::POST_START_CONTAINER, "PostStartContainer", "post-start p c"),
        (Event::POST_UPDATE_CONTAINER, "PostUpdateContainer", "post-update p c"),
        (Event::REMOVE_CONTAINER, "RemoveContainer", "remove p c"),
    ];
    let (runtime, _session, plugin) = session().await;
    for (event, method, seen) in events {
        for name in ["p", "refused"] {
            let old = StateChangeEvent {
                event: event.into(),
                pod: pod(name),
                container: container(),
                ..Default::default()
            };
            let old = runtime.call::<Empty>("StateChange", &old).await;
            let new = if method.ends_with("Sandbox") {
                runtime.call::<Empty>(method, &PodEvent { pod: pod(name), ..Default::default() }).await
            } else {
                let request = ContainerEvent { pod: pod(name), container: container(), ..Default::default() };
                runtime.call::<Empty>(method, &request).await
            };
            assert_eq!(old, new, "{method}");
            assert_eq!(old.is_err(), name == "refused", "{method}");
            assert_eq!(plugin.take(), [seen, seen]);
        }
    }
}

#[tokio::test]
async fn calls_with_answers_of_their_own_bring_them_back() {
    let (runtime, _session, plugin) = session().await;
    let (pod_of, container) = (pod, container());
    let request =
        StopContainerRequest { pod: pod_of("p"), container: container.clone(), ..Default::default() };
    let stopped: StopContainerResponse = runtime.call("StopContainer", &request).await.unwrap();
    assert_eq!(stopped.update, [update("s")]);
    let request =
        UpdateContainerRequest { pod: pod_of("p"), container: container.clone(), ..Default::default() };
    let updated: UpdateContainerResponse = runtime.call("UpdateContainer", &request).await.unwrap();
    assert_eq!(updated.update, [update("u")]);
    let request = UpdatePodSandboxRequest { pod: pod_of("p"), ..Default::default() };
    runtime.call::<Empty>("UpdatePodSandbox", &request).await.unwrap();
    for (name, reject, reason) in [("p", false, ""), ("refused", true, "validate: no")] {
        let request = ValidateContainerAdjustmentRequest {
            pod: pod_of(name),
            container: container.clone(),
            ..Default::default()
        };
        let verdict: ValidateContainerAdjustmentResponse =
            runtime.call("ValidateContainerAdjustment", &request).await.unwrap();
        assert_eq!((verdict.reject, verdict.reason.as_str()), (reject, reason));
    }
    runtime.call::<Empty>("Shutdown", &Empty::new()).await.unwrap();
    assert_eq!(plugin.take(), ["stop p c", "update p c", "update-pod p ", "validate p c", "validate p c"]);
}

#[tokio::test]
async fn an_event_of_a_later_version_is_answered_and_ignored() {
    let (runtime, _session, plugin) = session().await;
    let request = StateChangeEvent { event: protobuf::EnumOrUnknown::from_i32(99), ..Default::default() };
    runtime.call::<Empty>("StateChange", &request).await.unwrap();
    assert!(plugin.take().is_empty());
}

#[tokio::test]
async fn a_synchronisation_in_parts_reaches_the_plugin_whole() {
    let (runtime, session, plugin) = session().await;
    let part = |id: &str, more| SynchronizeRequest {
        pods: vec![PodSandbox::new(); 2],
        containers: vec![Container { id: id.into(), ..Default::default() }],
        more,
        ..Default::default()
    };
    for id in ["first", "second"] {
        let answer: SynchronizeResponse = runtime.call("Synchronize", &part(id, true)).await.unwrap();
        assert_eq!(answer, SynchronizeResponse { more: true, ..Default::default() });
        assert!(plugin.take().is_empty() && !session.synchronized());
    }
    let answer: SynchronizeResponse = runtime.call("Synchronize", &part("last", false)).await.unwrap();
    assert_eq!(answer, SynchronizeResponse { update: vec![update("first")], ..Default::default() });
    assert_eq!(plugin.take(), ["synchronize 6 3"]);
}

#[tokio::test]
async fn long_messages_pass_in_both_directions() {
    let (runtime, _session, _) = session().await;
    let annotations = std::collections::HashMap::from([("k".to_owned(), "v".repeat(900_000))]);
    let request = CreateContainerRequest {
        pod: pod("p"),
        container: Some(Container { annotations: annotations.clone(), ..Default::default() }).into(),
        ..Default::default()
    };
    let created: CreateContainerResponse = runtime.call("CreateContainer", &request).await.unwrap();
    assert_eq!(created.adjust.annotations, annotations);
}

#[tokio::test]
async fn a_refusal_and_a_plugin_that_is_late_are_errors_that_keep_the_connection() {
    let (runtime, _session, _) = session().await;
    let configure = ConfigureRequest { request_timeout: 200, ..Default::default() };
    runtime.call::<ConfigureResponse>("Configure", &configure).await.unwrap();
    for (name, code, text) in [
        ("refused", ttrpc::Code::FAILED_PRECONDITION, "create: no"),
        ("slow", ttrpc::Code::ABORTED, "the plugin did not answer within 150 ms"),
    ] {
        let request = CreateContainerRequest { pod: pod(name), ..Default::default() };
        let status = runtime.call::<CreateContainerResponse>("CreateContainer", &request).await.unwrap_err();
        assert_eq!((status.code(), status.message.as_str()), (code, text));
    }
    let request = CreateContainerRequest { pod: pod("p"), ..Default::default() };
    runtime.call::<CreateContainerResponse>("CreateContainer", &request).await.unwrap();
}

#[tokio::test]
async fn updates_outside_of_events_reach_the_runtime() {
    let (mut runtime, session, _) = session().await;
    runtime.handshake("v2.2.7", "").await;
    let failed =
        session.runtime().update_containers(vec![update("x")], vec![], Duration::from_secs(20)).await;
    assert_eq!(failed.unwrap(), [update("x")]);
}

#[tokio::test]
async fn a_session_ends_when_the_runtime_hangs_up_or_talks_nonsense() {
    let (runtime, mut session, _) = session().await;
    drop(runtime);
    soon(session.closed()).await.unwrap();

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let plugin = Arc::new(Recorder::default());
    let identity = Identity::new("test", "00").unwrap();
    theirs.write_all(&[0xFF; 64]).await.unwrap();
    assert!(soon(Session::register(ours, &identity, plugin)).await.is_err());
}

#[tokio::test]
async fn a_refused_registration_says_why() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let _runtime = Runtime::over(theirs).await;
    let identity = Identity::new("unwanted", "00").unwrap();
    let error = soon(Session::register(ours, &identity, Arc::new(Recorder::default()))).await.unwrap_err();
    assert!(format!("{error:?}").contains("not you"), "{error:?}");
}

// --- the program -----------------------------------------------------------------------------------------------------

/// The program, with no configuration or socket of this machine.
fn thaw_nri(dir: &Path) -> Command {
    let config = dir.join("config.toml");
    let settings =
        format!("roots = [{:?}]\nmetrics = {:?}\n", dir.join("store"), dir.join("run/metrics.sock"));
    std::fs::write(&config, settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_thaw-nri"));
    command.arg("--config").arg(config).arg("--records").arg(dir.join("run/records.sock"));
    command.env_remove("JOURNAL_STREAM").kill_on_drop(true);
    command
}

/// What it answers to a request, as soon as it answers at all.
async fn get(dir: &Path, path: &str) -> String {
    let connected = async {
        loop {
            match UnixStream::connect(dir.join("run/metrics.sock")).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut stream = soon(connected).await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn terminate(mut child: Child) {
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(soon(child.wait()).await.unwrap().success());
}

async fn create(runtime: &Runtime, annotations: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let pod = PodSandbox {
        name: "p".into(),
        annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..Default::default()
    };
    let request = CreateContainerRequest { pod: Some(pod).into(), ..Default::default() };
    match runtime.call::<CreateContainerResponse>("CreateContainer", &request).await {
        Ok(created) => Ok(created.adjust.annotations.keys().cloned().collect()),
        Err(status) => Err(status.message),
    }
}

#[tokio::test]
async fn the_program_follows_its_runtime_over_restarts_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let child = thaw_nri(dir.path()).arg("--socket").arg(dir.path().join("nri.sock")).spawn().unwrap();
    for _ in 0..3 {
        let door = Door::open(dir.path());
        let mut runtime = door.accept().await;
        assert_eq!(runtime.handshake("v2.1.9", "").await, 0b1111);
        assert_eq!(create(&runtime, &[("thaw.dev/restore", "latest")]).await, Ok(vec![]));
        let stripped = create(&runtime, &[("thaw.dev/internal.plan", "x")]).await;
        assert_eq!(stripped, Ok(vec!["-thaw.dev/internal.plan".to_owned()]));
        let refused =
            create(&runtime, &[("thaw.dev/x", ""), ("thaw.dev/if-failed", "no")]).await.unwrap_err();
        assert!(
            refused.starts_with("thaw: ") && refused.contains("thaw.dev/x") && refused.contains("if-failed")
        );
    }
    terminate(child).await;
}

#[tokio::test]
async fn the_program_can_be_started_by_the_runtime_and_ends_with_it() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command = thaw_nri(dir.path());
    command.env_clear().envs([
        ("NRI_PLUGIN_SOCKET", "0"),
        ("NRI_PLUGIN_NAME", "thaw"),
        ("NRI_PLUGIN_IDX", "42"),
    ]);
    let mut child = command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).spawn().unwrap();
    drop(command);
    ours.set_nonblocking(true).unwrap();
    let mut runtime = Runtime::over(UnixStream::from_std(ours).unwrap()).await;
    let registration = runtime.registered().await;
    assert_eq!((registration.plugin_name.as_str(), registration.plugin_idx.as_str()), ("thaw", "42"));
    assert!(create(&runtime, &[("thaw.dev/x", "")]).await.is_err());
    drop(runtime);
    assert!(soon(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn the_program_tells_whether_it_is_taken_and_what_shims_have_done() {
    let dir = tempfile::tempdir().unwrap();
    let door = Door::open(dir.path());
    let child = thaw_nri(dir.path()).arg("--socket").arg(dir.path().join("nri.sock")).spawn().unwrap();
    let waiting = get(dir.path(), "/healthz").await;
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("waiting"), "{waiting}");
    let mut runtime = door.accept().await;
    runtime.handshake("v2.1.9", "").await;
    assert!(get(dir.path(), "/healthz").await.starts_with("HTTP/1.1 200"));

    let records = dir.path().join("run/records.sock");
    Record::done(Verb::Restore, 5, &[("CRIU", Duration::from_secs(1))]).send(&records).unwrap();
    Record::failed(Verb::Restore, "refused").send(&records).unwrap();
    let counted = async {
        loop {
            let text = get(dir.path(), "/metrics").await;
            if text.contains("thaw_failures_total{verb=\"restore\",reason=\"refused\"} 1") {
                break text;
            }
        }
    };
    let text = soon(counted).await;
    assert!(text.contains("openmetrics") && text.contains("thaw_bytes_total{verb=\"restore\"} 5"), "{text}");
    assert!(get(dir.path(), "/other").await.starts_with("HTTP/1.1 404"));

    drop(runtime);
    let gone = async { while get(dir.path(), "/healthz").await.starts_with("HTTP/1.1 200") {} };
    soon(gone).await;
    terminate(child).await;
}

#[tokio::test]
async fn the_program_does_not_start_with_what_cannot_work() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "root = 1\n").unwrap();
    let config = config.to_str().unwrap();
    for (arguments, text) in [
        (["--index", "7"], "\"7\" is not a plugin's index"),
        (["--name", "a b"], "\"a b\" is not a plugin's name"),
        (["--config", config], "not a valid configuration"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thaw-nri"));
        let output = soon(command.args(arguments).kill_on_drop(true).output()).await.unwrap();
        assert!(!output.status.success());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains(text), "{log}");
    }
}
