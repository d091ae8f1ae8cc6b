// SPDX-License-Identifier: Apache-2.0
//! Events to containerd, in the order of the calls, over restarts of containerd.
//!
//! An event that cannot be delivered is logged and dropped: the container must not suffer for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use containerd_shim::event::Event;
use containerd_shim::util::{convert_to_timestamp, timestamp};
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{TaskExit, TaskStart};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::{self, context::with_timeout};
use log::{debug, error};
use protobuf::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::any::{EVENTS, any};
use crate::container::Container;
use crate::process::Process;
use crate::reaper::Exit;

/// How many events may wait: more than a pod makes while containerd restarts.
const QUEUE: usize = 1024;
/// How long one event is tried for. containerd learns the state of all tasks by itself when it is back.
const TRY_FOR: Duration = Duration::from_secs(60);
/// How long to wait between two tries.
const RETRY: Duration = Duration::from_millis(200);
/// How long containerd may take over one event, as its own shims allow.
const ANSWER: Duration = Duration::from_secs(5);

/// Nothing has happened for so long: what the last verb needed can go.
const QUIET: Duration = Duration::from_secs(1);

/// The way to containerd's event service.
pub(crate) struct Events {
    queue: mpsc::Sender<Envelope>,
    namespace: String,
    /// How many are neither delivered nor given up.
    pending: Arc<AtomicUsize>,
}

impl Events {
    /// Events of containerd's `namespace`, to its ttrpc socket at `address`.
    pub(crate) fn new(address: &str, namespace: &str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let pending = Arc::default();
        tokio::spawn(deliver(address.to_owned(), waiting, Arc::clone(&pending)));
        Self { queue, namespace: namespace.to_owned(), pending }
    }

    /// Queues one event.
    pub(crate) async fn publish(&self, event: impl Event + Message) {
        let topic = event.topic();
        let envelope = timestamp().and_then(|now| {
            Ok(Envelope {
                timestamp: Some(now).into(),
                namespace: self.namespace.clone(),
                topic: topic.clone(),
                event: Some(any(EVENTS, &event)?).into(),
                ..Default::default()
            })
        });
        self.pending.fetch_add(1, Ordering::SeqCst);
        let queued = match envelope {
            Ok(envelope) => self.queue.try_send(envelope).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(e) = queued {
            self.pending.fetch_sub(1, Ordering::SeqCst);
            error!("dropped {topic}: {e}");
        }
    }

    /// Waits until all queued events are delivered, but not for long.
    pub(crate) async fn flush(&self) {
        let until = Instant::now() + ANSWER;
        while self.pending.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
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

/// Delivers one event after the other; the next one waits until this one is through or given up.
async fn deliver(address: String, mut waiting: mpsc::Receiver<Envelope>, pending: Arc<AtomicUsize>) {
    // Connected before the first event, which then waits for nothing.
    let mut client = connect(&address).await.ok();
    while let Some(envelope) = next(&mut waiting).await {
        let until = Instant::now() + TRY_FOR;
        while let Err(e) = forward(&address, &mut client, &envelope).await {
            client = None;
            if Instant::now() > until {
                error!("dropped {}: {e}", envelope.topic);
                break;
            }
            debug!("containerd does not take {}: {e}", envelope.topic);
            tokio::time::sleep(RETRY).await;
        }
        pending.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The next event. When none comes for a while, memory is given back before it is waited for.
async fn next(waiting: &mut mpsc::Receiver<Envelope>) -> Option<Envelope> {
    if let Ok(event) = tokio::time::timeout(QUIET, waiting.recv()).await {
        return event;
    }
    crate::memory::give_back();
    waiting.recv().await
}

async fn connect(address: &str) -> ttrpc::Result<EventsClient> {
    Ok(EventsClient::new(Client::connect(&format!("unix://{address}")).await?))
}

/// Delivers one event over the connection there is, or over a new one.
async fn forward(address: &str, client: &mut Option<EventsClient>, envelope: &Envelope) -> ttrpc::Result<()> {
    let events = match client {
        Some(events) => events,
        None => client.insert(connect(address).await?),
    };
    let request = ForwardRequest { envelope: Some(envelope.clone()).into(), ..Default::default() };
    let timeout = i64::try_from(ANSWER.as_nanos()).unwrap_or(i64::MAX);
    events.forward(with_timeout(timeout), &request).await.map(drop)
}
