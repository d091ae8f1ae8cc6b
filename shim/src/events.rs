// SPDX-License-Identifier: Apache-2.0
//! Events to containerd, in the order of the calls: the publisher's queue keeps it.
//!
//! An event that cannot be sent is logged and dropped: the container must not suffer for it.

use containerd_shim::Context;
use containerd_shim::event::Event;
use containerd_shim::publisher::RemotePublisher;
use containerd_shim::util::convert_to_timestamp;
use containerd_shim_protos::events::task::{TaskExit, TaskStart};
use log::error;

use crate::container::Container;
use crate::process::Process;
use crate::reaper::Exit;

/// The way to containerd's event service.
pub(crate) struct Events {
    publisher: RemotePublisher,
    namespace: String,
}

impl Events {
    /// Events of containerd's `namespace`.
    pub(crate) fn new(publisher: RemotePublisher, namespace: &str) -> Self {
        Self { publisher, namespace: namespace.to_owned() }
    }

    /// Queues one event.
    pub(crate) async fn publish(&self, event: impl Event + 'static) {
        let topic = event.topic();
        let sent = self.publisher.publish(Context::default(), &topic, &self.namespace, Box::new(event)).await;
        if let Err(e) = sent {
            error!("cannot publish {topic}: {e}");
        }
    }

    /// `/tasks/start`.
    pub(crate) async fn started(&self, container: &Container) {
        self.publish(TaskStart {
            container_id: container.id.clone(),
            pid: container.init.pid().cast_unsigned(),
            ..Default::default()
        })
        .await;
    }

    /// `/tasks/exit` of the init or of an exec; the id of an init is the container's.
    pub(crate) async fn exited(&self, container: &Container, process: &Process, exit: Exit) {
        let id = if process.exec_id.is_empty() { &container.id } else { &process.exec_id };
        self.publish(TaskExit {
            container_id: container.id.clone(),
            id: id.clone(),
            pid: process.pid().cast_unsigned(),
            exit_status: exit.code,
            exited_at: Some(convert_to_timestamp(Some(exit.at))).into(),
            ..Default::default()
        })
        .await;
    }
}
