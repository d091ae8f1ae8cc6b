// SPDX-License-Identifier: Apache-2.0
//! containerd's task service: decode, look up, delegate, encode. No logic of its own.

use std::sync::Arc;

use ::checkpoint::ask;
use async_trait::async_trait;
use containerd_shim::TtrpcResult;
use containerd_shim::asynchronous::ExitSignal;
use containerd_shim::util::convert_to_timestamp;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use log::{debug, info};

use crate::asker::{Asker, Waiting};
use crate::error::TaskError;
use crate::pod::Pod;
use crate::process::Process;
use crate::state::State;
use crate::{checkpoint, checkpoint_pod, create, delete, exec, kill, start, stats};

/// The ttrpc service of one pod.
pub(crate) struct TaskService {
    pod: Arc<Pod>,
    exit: Arc<ExitSignal>,
}

impl TaskService {
    /// The service over `pod`; `exit` ends the shim.
    pub(crate) fn new(pod: Arc<Pod>, exit: Arc<ExitSignal>) -> Self {
        Self { pod, exit }
    }
}

/// Runs a verb to its end: ttrpc drops the request's own future when its deadline has passed or containerd has gone,
/// and a verb cut in two would leave a process that nobody knows.
async fn detached<T: Send + 'static>(
    verb: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> Result<T, TaskError> {
    let done = tokio::spawn(verb).await;
    done.map_err(|e| TaskError::Io { what: "run the verb".into(), source: e.into() })?
}

fn status(process: &Process) -> Status {
    match process.state() {
        State::Created | State::CreatedCheckpoint => Status::CREATED,
        State::Running => Status::RUNNING,
        State::Paused => Status::PAUSED,
        State::Stopped => Status::STOPPED,
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, req: StateRequest) -> TtrpcResult<StateResponse> {
        let container = self.pod.container(&req.id)?;
        let process = container.process(&req.exec_id)?;
        let mut resp = StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: process.pid().cast_unsigned(),
            status: status(&process).into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exec_id: req.exec_id,
            ..Default::default()
        };
        if let Some(exit) = process.exit() {
            resp.exit_status = exit.code;
            resp.exited_at = Some(convert_to_timestamp(Some(exit.at))).into();
        }
        Ok(resp)
    }

    async fn create(&self, _: &TtrpcContext, req: CreateTaskRequest) -> TtrpcResult<CreateTaskResponse> {
        let pod = self.pod.clone();
        let pid = detached(async move { create::create(&pod, req).await }).await?;
        Ok(CreateTaskResponse { pid: pid.cast_unsigned(), ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, req: StartRequest) -> TtrpcResult<StartResponse> {
        let container = self.pod.container(&req.id)?;
        let pod = self.pod.clone();
        let pid = detached(async move {
            if req.exec_id.is_empty() {
                start::start(&pod, &container).await
            } else {
                exec::start(&pod, &container, &req.exec_id).await
            }
        })
        .await?;
        Ok(StartResponse { pid: pid.cast_unsigned(), ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, req: DeleteRequest) -> TtrpcResult<DeleteResponse> {
        let container = self.pod.container(&req.id)?;
        let pod = self.pod.clone();
        let deleted = detached(async move { delete::delete(&pod, &container, &req.exec_id).await });
        let (pid, exit) = deleted.await?;
        Ok(DeleteResponse {
            pid: pid.cast_unsigned(),
            exit_status: exit.code,
            exited_at: Some(convert_to_timestamp(Some(exit.at))).into(),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, req: PidsRequest) -> TtrpcResult<PidsResponse> {
        let container = self.pod.container(&req.id)?;
        let processes = container
            .oci
            .pids()
            .await?
            .into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .map(|pid| ProcessInfo { pid, ..Default::default() })
            .collect();
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, req: PauseRequest) -> TtrpcResult<Empty> {
        let container = self.pod.container(&req.id)?;
        detached(async move { kill::pause(&container).await }).await?;
        self.pod.events.publish(TaskPaused { container_id: req.id, ..Default::default() }).await;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, req: ResumeRequest) -> TtrpcResult<Empty> {
        let container = self.pod.container(&req.id)?;
        detached(async move { kill::resume(&container).await }).await?;
        self.pod.events.publish(TaskResumed { container_id: req.id, ..Default::default() }).await;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, req: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        if req.id == ask::EVERY {
            let (pod, waiting) = (self.pod.clone(), Waiting::default());
            let gone = waiting.gone();
            let answer = detached(async move { checkpoint_pod::checkpoint(&pod, &req, gone).await }).await?;
            return Ok(answer);
        }
        let container = self.pod.container(&req.id)?;
        let pod = self.pod.clone();
        let asker = Asker::new(&pod, &container);
        let done = detached(async move {
            checkpoint::checkpoint(&pod, &container, &req.path, req.options.as_ref()).await
        });
        let done = done.await;
        asker.answered();
        done?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, req: KillRequest) -> TtrpcResult<Empty> {
        let container = self.pod.container(&req.id)?;
        detached(async move { kill::kill(&container, &req.exec_id, req.signal, req.all).await }).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, req: ExecProcessRequest) -> TtrpcResult<Empty> {
        let container = self.pod.container(&req.id)?;
        exec::add(&self.pod, &container, &req).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, req: ResizePtyRequest) -> TtrpcResult<Empty> {
        let process = self.pod.container(&req.id)?.process(&req.exec_id)?;
        let characters = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        process
            .resize(characters(req.width), characters(req.height))
            .map_err(TaskError::io("resize the terminal"))?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, req: CloseIORequest) -> TtrpcResult<Empty> {
        let process = self.pod.container(&req.id)?.process(&req.exec_id)?;
        if req.stdin {
            process.io().close_input();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, req: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let container = self.pod.container(&req.id)?;
        let resources = serde_json::from_slice(&req.resources.value)
            .map_err(|e| TaskError::InvalidRequest(format!("resources do not decode: {e}")))?;
        detached(async move {
            let _verb = container.verb.lock().await;
            container.oci.update(&resources).await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, req: WaitRequest) -> TtrpcResult<WaitResponse> {
        let process = self.pod.container(&req.id)?.process(&req.exec_id)?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: Some(convert_to_timestamp(Some(exit.at))).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, req: StatsRequest) -> TtrpcResult<StatsResponse> {
        let container = self.pod.container(&req.id)?;
        let metrics = stats::stats(&container)?;
        Ok(StatsResponse { stats: Some(metrics).into(), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, req: ConnectRequest) -> TtrpcResult<ConnectResponse> {
        // containerd asks this of containers that it has forgotten, too: never an error.
        let task_pid = self.pod.container(&req.id).map_or(0, |c| c.init.pid().cast_unsigned());
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> TtrpcResult<Empty> {
        // containerd asks after every delete; only the last container ends the shim.
        if self.pod.is_empty() {
            info!("the last container is gone, the shim ends");
            self.pod.events.flush().await;
            // containerd removes the bundle, where the socket's name is kept, as soon as this is answered.
            self.pod.remove_socket().await;
            let (pod, exit) = (self.pod.clone(), self.exit.clone());
            tokio::spawn(async move {
                drop(pod.recording.write().await);
                exit.signal();
            });
        } else {
            debug!("shutdown asked while containers are left");
        }
        Ok(Empty::new())
    }
}
