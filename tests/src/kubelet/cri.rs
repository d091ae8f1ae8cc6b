// SPDX-License-Identifier: Apache-2.0
//! CRI calls over the runtime's unix socket, each under a deadline and with its duration on record.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use self::api::image_service_client::ImageServiceClient;
use self::api::runtime_service_client::RuntimeServiceClient;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::doc_markdown,
    clippy::missing_errors_doc,
    reason = "generated from proto/cri.proto"
)]
pub mod api {
    //! The messages of CRI. Source: `proto/cri.proto`.
    tonic::include_proto!("runtime.v1");
}

/// The largest answer that is taken. Source: kubelet, `maxMsgSize` of `pkg/kubelet/cri/remote`.
const MAX_MESSAGE: usize = 16 << 20;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nothing answers at the socket.
    #[error("no container runtime answers at {}; is containerd running?", .socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The runtime refused, or the call did not end in time.
    #[error("{call} failed ({code:?}): {message}")]
    Call {
        /// The call's name in CRI.
        call: &'static str,
        /// Its gRPC code.
        code: Code,
        /// The runtime's own words, whole.
        message: String,
    },
    /// The runtime's answer lacks what CRI promises.
    #[error("the answer to {call} has no {field}")]
    Incomplete {
        /// The call's name in CRI.
        call: &'static str,
        /// The missing field.
        field: &'static str,
    },
}

impl CriError {
    /// The runtime's own words; empty where the runtime said nothing.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Call { message, .. } => message,
            Self::Connect { .. } | Self::Incomplete { .. } => "",
        }
    }

    /// Whether the runtime does not know the thing that was named.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { code: Code::NotFound, .. })
    }
}

/// How long one call took.
#[derive(Debug, Clone, Serialize)]
pub struct CallTime {
    /// The call's name in CRI.
    pub call: &'static str,
    /// When it was sent, milliseconds since 1970.
    pub began_unix_ms: f64,
    /// Until the answer was there, milliseconds.
    pub ms: f64,
}

/// A connection to one container runtime.
#[derive(Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    deadline: Duration,
    times: Mutex<Vec<CallTime>>,
}

impl Cri {
    /// Connects; `deadline` bounds each call that has no time of its own.
    ///
    /// # Errors
    /// [`CriError::Connect`] when nothing answers.
    pub async fn connect(socket: &Path, deadline: Duration) -> Result<Self, CriError> {
        let path = socket.to_owned();
        // The URI is never dialled: the connector below always goes to the socket.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|source| CriError::Connect { socket: socket.to_owned(), source })?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            deadline,
            times: Mutex::new(Vec::new()),
        })
    }

    /// The calls made since the last time this was asked, oldest first.
    pub fn take_times(&self) -> Vec<CallTime> {
        std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends one call and records how long it took. kubelet too gives the runtime its deadline with the call.
    async fn call<M, R, F>(
        &self,
        call: &'static str,
        deadline: Duration,
        message: M,
        send: impl FnOnce(Request<M>) -> F,
    ) -> Result<R, CriError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        let began_unix_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3;
        let began = Instant::now();
        let answer = send(request).await;
        let ms = began.elapsed().as_secs_f64() * 1e3;
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.push(CallTime { call, began_unix_ms, ms });
        answer.map(Response::into_inner).map_err(|status| CriError::Call {
            call,
            code: status.code(),
            message: status.message().to_owned(),
        })
    }
}

/// One method for each call: its name here, its name in CRI, its messages, and where the call goes.
macro_rules! calls {
    ($($(#[$doc:meta])* $method:ident $call:literal $via:ident ($request:ident) -> $answer:ident;)*) => {
        impl Cri {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`CriError::Call`] with the runtime's own words.
                pub async fn $method(&self, message: api::$request) -> Result<api::$answer, CriError> {
                    let mut client = self.$via.clone();
                    let deadline = message.deadline(self.deadline);
                    self.call($call, deadline, message, |request| async move { client.$method(request).await })
                        .await
                }
            )*
        }
    };
}

calls! {
    /// Asks what the runtime is.
    version "Version" runtime (VersionRequest) -> VersionResponse;
    /// Makes a pod's sandbox and starts it.
    run_pod_sandbox "RunPodSandbox" runtime (RunPodSandboxRequest) -> RunPodSandboxResponse;
    /// Stops a sandbox and gives its address back.
    stop_pod_sandbox "StopPodSandbox" runtime (StopPodSandboxRequest) -> StopPodSandboxResponse;
    /// Removes a sandbox with its containers.
    remove_pod_sandbox "RemovePodSandbox" runtime (RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    /// Asks for a sandbox's state and address.
    pod_sandbox_status "PodSandboxStatus" runtime (PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    /// Lists sandboxes.
    list_pod_sandbox "ListPodSandbox" runtime (ListPodSandboxRequest) -> ListPodSandboxResponse;
    /// Makes a container in a sandbox.
    create_container "CreateContainer" runtime (CreateContainerRequest) -> CreateContainerResponse;
    /// Starts a container.
    start_container "StartContainer" runtime (StartContainerRequest) -> StartContainerResponse;
    /// Stops a container with a grace period.
    stop_container "StopContainer" runtime (StopContainerRequest) -> StopContainerResponse;
    /// Removes a container.
    remove_container "RemoveContainer" runtime (RemoveContainerRequest) -> RemoveContainerResponse;
    /// Asks for a container's state.
    container_status "ContainerStatus" runtime (ContainerStatusRequest) -> ContainerStatusResponse;
    /// Lists containers.
    list_containers "ListContainers" runtime (ListContainersRequest) -> ListContainersResponse;
    /// Changes the limits of a running container.
    update_container_resources "UpdateContainerResources" runtime
        (UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    /// Makes the runtime open a container's log again, after it was rotated.
    reopen_container_log "ReopenContainerLog" runtime (ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    /// Runs a command in a container and waits for it.
    exec_sync "ExecSync" runtime (ExecSyncRequest) -> ExecSyncResponse;
    /// Asks where a command can be run with streams.
    exec "Exec" runtime (ExecRequest) -> ExecResponse;
    /// Asks where a container's streams can be had.
    attach "Attach" runtime (AttachRequest) -> AttachResponse;
    /// Asks where a pod's ports can be reached.
    port_forward "PortForward" runtime (PortForwardRequest) -> PortForwardResponse;
    /// Asks what all containers use.
    list_container_stats "ListContainerStats" runtime (ListContainerStatsRequest) -> ListContainerStatsResponse;
    /// Asks what a container uses.
    container_stats "ContainerStats" runtime (ContainerStatsRequest) -> ContainerStatsResponse;
    /// Writes a container's checkpoint to an archive.
    checkpoint_container "CheckpointContainer" runtime (CheckpointContainerRequest) -> CheckpointContainerResponse;
    /// Lists the images on the node.
    list_images "ListImages" images (ListImagesRequest) -> ListImagesResponse;
    /// Asks whether an image is on the node.
    image_status "ImageStatus" images (ImageStatusRequest) -> ImageStatusResponse;
    /// Gets an image from its registry.
    pull_image "PullImage" images (PullImageRequest) -> PullImageResponse;
    /// Removes an image under all its names.
    remove_image "RemoveImage" images (RemoveImageRequest) -> RemoveImageResponse;
}

/// How long a call may take, given what a call takes in general.
trait Deadline {
    fn deadline(&self, general: Duration) -> Duration {
        general
    }
}

macro_rules! general_deadline {
    ($($message:ident)*) => { $(impl Deadline for api::$message {})* };
}

general_deadline! {
    VersionRequest StopPodSandboxRequest RemovePodSandboxRequest PodSandboxStatusRequest ListPodSandboxRequest
    CreateContainerRequest StartContainerRequest RemoveContainerRequest ContainerStatusRequest
    ListContainersRequest UpdateContainerResourcesRequest ReopenContainerLogRequest ContainerStatsRequest
    ExecRequest AttachRequest PortForwardRequest ListContainerStatsRequest
    CheckpointContainerRequest ListImagesRequest ImageStatusRequest PullImageRequest RemoveImageRequest
}

impl Deadline for api::RunPodSandboxRequest {
    fn deadline(&self, general: Duration) -> Duration {
        general * 2
    }
}

impl Deadline for api::StopContainerRequest {
    fn deadline(&self, general: Duration) -> Duration {
        general + Duration::from_secs(u64::try_from(self.timeout).unwrap_or(0))
    }
}

impl Deadline for api::ExecSyncRequest {
    fn deadline(&self, general: Duration) -> Duration {
        general + Duration::from_secs(u64::try_from(self.timeout).unwrap_or(0))
    }
}
