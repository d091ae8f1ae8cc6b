// SPDX-License-Identifier: Apache-2.0
//! containerd's side of one shim: its Task calls, in short.

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, CreateTaskRequest, DeleteRequest, DeleteResponse,
    ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StateRequest, StateResponse, StatsRequest, Status, UpdateTaskRequest,
    WaitRequest,
};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::context::Context;
use containerd_shim_protos::ttrpc::{self, Code};
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

use super::bundle::Bundle;
use super::node::Node;
use super::traces::{self, Traces};
use super::{eventually, soon};

/// A shim's refusal.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) text: String,
}

pub(crate) type Answer<T> = Result<T, Fault>;

/// A running shim.
pub(crate) struct Shim<'n> {
    pub(crate) node: &'n Node,
    pub(crate) pid: u32,
    pub(crate) address: String,
    client: TaskClient,
}

async fn answer<T>(what: &str, call: impl Future<Output = ttrpc::Result<T>>) -> Answer<T> {
    soon(what, call).await.map_err(|error| {
        let ttrpc::Error::RpcStatus(status) = error else { panic!("{what}: {error}") };
        Fault { code: status.code(), text: status.message }
    })
}

impl<'n> Shim<'n> {
    pub(crate) async fn connect(node: &'n Node, address: &str) -> Self {
        let client = TaskClient::new(Client::connect(address).await.unwrap());
        let request = ConnectRequest { id: "nobody".into(), ..Default::default() };
        let connected = client.connect(Context::default(), &request).await.unwrap();
        assert_eq!(connected.task_pid, 0);
        Self { node, pid: connected.shim_pid, address: address.to_owned(), client }
    }

    /// The pid that the shim tells of a container; 0 when it knows none.
    pub(crate) async fn task_pid(&self, id: &str) -> u32 {
        let request = ConnectRequest { id: id.into(), ..Default::default() };
        answer("connect", self.client.connect(Context::default(), &request)).await.unwrap().task_pid
    }

    pub(crate) async fn create(&self, bundle: &Bundle) -> Answer<u32> {
        bundle.write();
        let request = CreateTaskRequest {
            id: bundle.id.clone(),
            bundle: bundle.dir.display().to_string(),
            rootfs: bundle.mounts.clone(),
            terminal: bundle.terminal,
            stdin: bundle.stdin.clone(),
            stdout: bundle.stdout.clone(),
            stderr: bundle.stderr.clone(),
            options: Some(bundle.options.clone()).into(),
            ..Default::default()
        };
        self.create_as(&request).await
    }

    pub(crate) async fn create_as(&self, request: &CreateTaskRequest) -> Answer<u32> {
        Ok(answer("create", self.client.create(Context::default(), request)).await?.pid)
    }

    pub(crate) async fn start(&self, id: &str) -> Answer<u32> {
        self.start_exec(id, "").await
    }

    /// Creates and starts; returns the pid.
    pub(crate) async fn run(&self, bundle: &Bundle) -> u32 {
        self.create(bundle).await.unwrap();
        self.start(&bundle.id).await.unwrap()
    }

    pub(crate) async fn start_exec(&self, id: &str, exec: &str) -> Answer<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(answer("start", self.client.start(Context::default(), &request)).await?.pid)
    }

    pub(crate) async fn exec(&self, id: &str, exec: &str, args: &[&str]) -> Answer<()> {
        self.exec_as(id, exec, args, |_| {}).await
    }

    pub(crate) async fn exec_as(
        &self,
        id: &str,
        exec: &str,
        args: &[&str],
        change: impl FnOnce(&mut ExecProcessRequest),
    ) -> Answer<()> {
        let process = json!({ "cwd": "/", "args": args, "user": { "uid": 0, "gid": 0 } });
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        };
        let mut request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        change(&mut request);
        answer("exec", self.client.exec(Context::default(), &request)).await.map(drop)
    }

    pub(crate) async fn kill(&self, id: &str, exec: &str, signal: u32) -> Answer<()> {
        let request = KillRequest { id: id.into(), exec_id: exec.into(), signal, ..Default::default() };
        answer("kill", self.client.kill(Context::default(), &request)).await.map(drop)
    }

    /// The exit code, when it has come.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Answer<u32> {
        let request = WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        let waited = answer("wait", self.client.wait(Context::default(), &request)).await?;
        assert!(waited.exited_at.seconds > 1_700_000_000, "{:?}", waited.exited_at);
        Ok(waited.exit_status)
    }

    pub(crate) async fn delete(&self, id: &str, exec: &str) -> Answer<DeleteResponse> {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        answer("delete", self.client.delete(Context::default(), &request)).await
    }

    pub(crate) async fn state(&self, id: &str, exec: &str) -> Answer<StateResponse> {
        let request = StateRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        answer("state", self.client.state(Context::default(), &request)).await
    }

    pub(crate) async fn status(&self, id: &str) -> Status {
        self.state(id, "").await.unwrap().status.unwrap()
    }

    pub(crate) async fn pids(&self, id: &str) -> Answer<Vec<u32>> {
        let request = PidsRequest { id: id.into(), ..Default::default() };
        let listed = answer("pids", self.client.pids(Context::default(), &request)).await?;
        Ok(listed.processes.iter().map(|process| process.pid).collect())
    }

    pub(crate) async fn pause(&self, id: &str) -> Answer<()> {
        let request = PauseRequest { id: id.into(), ..Default::default() };
        answer("pause", self.client.pause(Context::default(), &request)).await.map(drop)
    }

    pub(crate) async fn resume(&self, id: &str) -> Answer<()> {
        let request = ResumeRequest { id: id.into(), ..Default::default() };
        answer("resume", self.client.resume(Context::default(), &request)).await.map(drop)
    }

    pub(crate) async fn resize(&self, id: &str, width: u32, height: u32) -> Answer<()> {
        let request = ResizePtyRequest { id: id.into(), width, height, ..Default::default() };
        answer("resize", self.client.resize_pty(Context::default(), &request)).await.map(drop)
    }

    pub(crate) async fn close_stdin(&self, id: &str) -> Answer<()> {
        let request = CloseIORequest { id: id.into(), stdin: true, ..Default::default() };
        answer("close", self.client.close_io(Context::default(), &request)).await.map(drop)
    }

    pub(crate) async fn update(&self, id: &str, resources: &Value) -> Answer<()> {
        let resources = Any { value: resources.to_string().into_bytes(), ..Default::default() };
        let request =
            UpdateTaskRequest { id: id.into(), resources: Some(resources).into(), ..Default::default() };
        answer("update", self.client.update(Context::default(), &request)).await.map(drop)
    }

    /// The type of what it answers.
    pub(crate) async fn stats(&self, id: &str) -> Answer<String> {
        let request = StatsRequest { id: id.into(), ..Default::default() };
        let stats = answer("stats", self.client.stats(Context::default(), &request)).await?;
        Ok(stats.stats.type_url.clone())
    }

    /// As containerd's CRI asks for a checkpoint: without options.
    pub(crate) async fn checkpoint(&self, id: &str, path: &std::path::Path) -> Answer<()> {
        let request =
            CheckpointTaskRequest { id: id.into(), path: path.display().to_string(), ..Default::default() };
        answer("checkpoint", self.client.checkpoint(Context::default(), &request)).await.map(drop)
    }

    /// The same by somebody who waits no longer than `limit`; whether that was too short.
    pub(crate) async fn checkpoint_is_late(
        &self,
        id: &str,
        path: &std::path::Path,
        limit: std::time::Duration,
    ) -> bool {
        let request =
            CheckpointTaskRequest { id: id.into(), path: path.display().to_string(), ..Default::default() };
        self.client.checkpoint(ttrpc::context::with_duration(limit), &request).await.is_err()
    }

    pub(crate) async fn shutdown(&self) -> Answer<()> {
        let request = ShutdownRequest { id: "any".into(), ..Default::default() };
        answer("shutdown", self.client.shutdown(Context::default(), &request)).await.map(drop)
    }

    /// What was told of a container once `last` has been.
    pub(crate) async fn story(&self, id: &str, last: &str) -> Vec<String> {
        let events = &self.node.events;
        eventually(&format!("event {last} of {id}, after {:?}", events.story(id)), || {
            let story = events.story(id);
            story.iter().any(|told| told.starts_with(last)).then_some(story)
        })
        .await
    }

    /// What there is on the node of this shim and of `bundle`'s container.
    pub(crate) fn traces(&self, bundle: &Bundle) -> Traces {
        traces::of(self, bundle)
    }

    /// Waits until there is no more than `before`: exits are seen a moment later. Descriptors that the shim had open just
    /// then may be closed.
    pub(crate) async fn is_as_before(&self, bundle: &Bundle, before: &Traces) {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
        loop {
            let now = self.traces(bundle);
            let left: Vec<_> = now.difference(before).collect();
            let lost = before.difference(&now).filter(|trace| !trace.starts_with("descriptor "));
            let lost: Vec<_> = lost.collect();
            if left.is_empty() && lost.is_empty() {
                return;
            }
            if tokio::time::Instant::now() > deadline {
                panic!("left behind: {left:#?}\ngone: {lost:#?}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Ends the shim as the kernel's out-of-memory killer does.
    pub(crate) async fn die(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        self.is_gone().await;
    }

    /// Waits for the shim's end.
    pub(crate) async fn is_gone(&self) {
        let pid = self.pid;
        eventually("the shim's end", || (!traces::alive(pid)).then_some(())).await;
    }
}
