// SPDX-License-Identifier: Apache-2.0
//! The Plugin service: what the runtime calls, in the forms of every version, brought to one [`Plugin`].
//!
//! Invariant: every call of every version is answered. The generated default (NOT_FOUND) would fail the pod, and
//! UNIMPLEMENTED makes a runtime of 0.12 try again in the older form.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use ttrpc::r#async::TtrpcContext;
use ttrpc::{Code, Error, get_status};

use super::api::{
    ConfigureRequest, ConfigureResponse, Container, ContainerEvent, CreateContainerRequest,
    CreateContainerResponse, Empty, Event, PodEvent, PodSandbox, StateChangeEvent, StopContainerRequest,
    StopContainerResponse, SynchronizeRequest, SynchronizeResponse, UpdateContainerRequest,
    UpdateContainerResponse, UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest,
    ValidateContainerAdjustmentResponse,
};
use super::events;
use super::generated::nri_ttrpc;
use super::plugin::{Plugin, Refused};

/// What the runtime waits for an answer unless it says otherwise, in milliseconds.
/// Source: containerd/nri pkg/api/timeouts.go.
const REQUEST_TIMEOUT_MS: u64 = 2000;

/// What of a session outlives a call.
#[derive(Debug)]
pub(super) struct State {
    /// The runtime's deadline for an answer, in milliseconds.
    request_timeout_ms: AtomicU64,
    /// Pods and containers of a synchronisation that comes in several parts.
    parts: Mutex<SynchronizeRequest>,
    /// Whether the runtime has told everything that it has.
    pub(super) synchronized: AtomicBool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            request_timeout_ms: AtomicU64::new(REQUEST_TIMEOUT_MS),
            parts: Mutex::default(),
            synchronized: AtomicBool::new(false),
        }
    }
}

#[derive(Debug)]
pub(super) struct Service<P> {
    pub(super) plugin: Arc<P>,
    pub(super) state: Arc<State>,
}

impl<P: Plugin> Service<P> {
    /// Answers in time in any case: a runtime that has waited in vain goes on without the plugin.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Refused>> + Send) -> ttrpc::Result<T> {
        let limit_ms = self.state.request_timeout_ms.load(Ordering::Relaxed) / 4 * 3;
        match timeout(Duration::from_millis(limit_ms), work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Refused(reason))) => Err(Error::RpcStatus(get_status(Code::FAILED_PRECONDITION, reason))),
            Err(_) => {
                let reason = format!("the plugin did not answer within {limit_ms} ms");
                Err(Error::RpcStatus(get_status(Code::ABORTED, reason)))
            }
        }
    }

    /// An event to which the only answer is yes or no.
    async fn event(&self, event: Event, pod: PodSandbox, container: Container) -> ttrpc::Result<Empty> {
        let plugin = &self.plugin;
        self.in_time(async {
            match event {
                Event::RUN_POD_SANDBOX => plugin.run_pod_sandbox(pod).await,
                Event::POST_UPDATE_POD_SANDBOX => plugin.post_update_pod_sandbox(pod).await,
                Event::STOP_POD_SANDBOX => plugin.stop_pod_sandbox(pod).await,
                Event::REMOVE_POD_SANDBOX => plugin.remove_pod_sandbox(pod).await,
                Event::POST_CREATE_CONTAINER => plugin.post_create_container(pod, container).await,
                Event::START_CONTAINER => plugin.start_container(pod, container).await,
                Event::POST_START_CONTAINER => plugin.post_start_container(pod, container).await,
                Event::POST_UPDATE_CONTAINER => plugin.post_update_container(pod, container).await,
                Event::REMOVE_CONTAINER => plugin.remove_container(pod, container).await,
                // These have had calls of their own from the first version on.
                Event::UNKNOWN
                | Event::CREATE_CONTAINER
                | Event::UPDATE_CONTAINER
                | Event::STOP_CONTAINER
                | Event::UPDATE_POD_SANDBOX
                | Event::VALIDATE_CONTAINER_ADJUSTMENT => Ok(()),
            }
        })
        .await
        .map(|()| Empty::new())
    }

    async fn pod_event(&self, event: Event, request: PodEvent) -> ttrpc::Result<Empty> {
        self.event(event, request.pod.unwrap_or_default(), Container::new()).await
    }

    async fn container_event(&self, event: Event, request: ContainerEvent) -> ttrpc::Result<Empty> {
        self.event(event, request.pod.unwrap_or_default(), request.container.unwrap_or_default()).await
    }

    /// Keeps a part, and takes out everything when it was the last.
    fn collect(&self, mut part: SynchronizeRequest) -> Option<SynchronizeRequest> {
        // A poisoned lock only means that another call panicked; the parts are whole.
        let mut parts = self.state.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.pods.append(&mut part.pods);
        parts.containers.append(&mut part.containers);
        (!part.more).then(|| std::mem::take(&mut *parts))
    }
}

#[async_trait]
impl<P: Plugin> nri_ttrpc::Plugin for Service<P> {
    async fn configure(
        &self,
        _: &TtrpcContext,
        request: ConfigureRequest,
    ) -> ttrpc::Result<ConfigureResponse> {
        if let Ok(milliseconds @ 1..) = u64::try_from(request.request_timeout) {
            self.state.request_timeout_ms.store(milliseconds, Ordering::Relaxed);
        }
        self.in_time(self.plugin.configure(&request)).await?;
        let events = events::mask(self.plugin.events(), &request);
        Ok(ConfigureResponse { events, ..Default::default() })
    }

    async fn synchronize(
        &self,
        _: &TtrpcContext,
        request: SynchronizeRequest,
    ) -> ttrpc::Result<SynchronizeResponse> {
        // To a part, the runtime wants `more` back, and no updates.
        let Some(all) = self.collect(request) else {
            return Ok(SynchronizeResponse { more: true, ..Default::default() });
        };
        let update = self.in_time(self.plugin.synchronize(all.pods, all.containers)).await?;
        self.state.synchronized.store(true, Ordering::Relaxed);
        Ok(SynchronizeResponse { update, ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.in_time(async {
            self.plugin.shutdown().await;
            Ok(Empty::new())
        })
        .await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let (pod, container) = (request.pod.unwrap_or_default(), request.container.unwrap_or_default());
        self.in_time(self.plugin.create_container(pod, container)).await
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        self.in_time(self.plugin.update_container(request)).await
    }

    async fn stop_container(
        &self,
        _: &TtrpcContext,
        request: StopContainerRequest,
    ) -> ttrpc::Result<StopContainerResponse> {
        let (pod, container) = (request.pod.unwrap_or_default(), request.container.unwrap_or_default());
        let update = self.in_time(self.plugin.stop_container(pod, container)).await?;
        Ok(StopContainerResponse { update, ..Default::default() })
    }

    async fn update_pod_sandbox(
        &self,
        _: &TtrpcContext,
        request: UpdatePodSandboxRequest,
    ) -> ttrpc::Result<Empty> {
        self.in_time(self.plugin.update_pod_sandbox(request)).await.map(|()| Empty::new())
    }

    async fn validate_container_adjustment(
        &self,
        _: &TtrpcContext,
        request: ValidateContainerAdjustmentRequest,
    ) -> ttrpc::Result<ValidateContainerAdjustmentResponse> {
        let verdict =
            self.in_time(async { Ok(self.plugin.validate_container_adjustment(request).await) }).await?;
        let reason = verdict.err().map(|Refused(reason)| reason);
        Ok(ValidateContainerAdjustmentResponse {
            reject: reason.is_some(),
            reason: reason.unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn state_change(&self, _: &TtrpcContext, request: StateChangeEvent) -> ttrpc::Result<Empty> {
        let event = request.event.enum_value_or(Event::UNKNOWN);
        self.event(event, request.pod.unwrap_or_default(), request.container.unwrap_or_default()).await
    }

    async fn run_pod_sandbox(&self, _: &TtrpcContext, request: PodEvent) -> ttrpc::Result<Empty> {
        self.pod_event(Event::RUN_POD_SANDBOX, request).await
    }

    async fn post_update_pod_sandbox(&self, _: &TtrpcContext, request: PodEvent) -> ttrpc::Result<Empty> {
        self.pod_event(Event::POST_UPDATE_POD_SANDBOX, request).await
    }

    async fn stop_pod_sandbox(&self, _: &TtrpcContext, request: PodEvent) -> ttrpc::Result<Empty> {
        self.pod_event(Event::STOP_POD_SANDBOX, request).await
    }

    async fn remove_pod_sandbox(&self, _: &TtrpcContext, request: PodEvent) -> ttrpc::Result<Empty> {
        self.pod_event(Event::REMOVE_POD_SANDBOX, request).await
    }

    async fn post_create_container(&self, _: &TtrpcContext, request: ContainerEvent) -> ttrpc::Result<Empty> {
        self.container_event(Event::POST_CREATE_CONTAINER, request).await
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerEvent) -> ttrpc::Result<Empty> {
        self.container_event(Event::START_CONTAINER, request).await
    }

    async fn post_start_container(&self, _: &TtrpcContext, request: ContainerEvent) -> ttrpc::Result<Empty> {
        self.container_event(Event::POST_START_CONTAINER, request).await
    }

    async fn post_update_container(&self, _: &TtrpcContext, request: ContainerEvent) -> ttrpc::Result<Empty> {
        self.container_event(Event::POST_UPDATE_CONTAINER, request).await
    }

    async fn remove_container(&self, _: &TtrpcContext, request: ContainerEvent) -> ttrpc::Result<Empty> {
        self.container_event(Event::REMOVE_CONTAINER, request).await
    }
}
