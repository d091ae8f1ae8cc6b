// SPDX-License-Identifier: Apache-2.0
//! containerd's event service: keeps what shims send, in the order in which it came.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit};
use containerd_shim_protos::shim_async::{Events, create_events};
use containerd_shim_protos::ttrpc::r#async::{Server, TtrpcContext, transport::Listener};
use protobuf::{CodedInputStream, Message};
use tokio::sync::oneshot;

/// One event as it came.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) namespace: String,
    pub(crate) topic: String,
    pub(crate) type_url: String,
    value: Vec<u8>,
}

/// All events so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Event>>>);

/// A running service.
pub(crate) struct EventServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for EventServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

#[async_trait]
impl Events for Log {
    async fn forward(
        &self,
        _: &TtrpcContext,
        req: ForwardRequest,
    ) -> containerd_shim_protos::ttrpc::Result<Empty> {
        let envelope = req.envelope.unwrap();
        let event = envelope.event.unwrap();
        self.0.lock().unwrap().push(Event {
            namespace: envelope.namespace,
            topic: envelope.topic,
            type_url: event.type_url,
            value: event.value,
        });
        Ok(Empty::new())
    }
}

impl Log {
    /// Takes events on a socket. When this is dropped it is as if containerd had been killed.
    pub(crate) fn serve(&self, socket: &Path) -> EventServer {
        let (service, listener) =
            (create_events(Arc::new(self.clone())), UnixListener::bind(socket).unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            // A runtime of its own: its end breaks the connections.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = Listener::try_from(listener).unwrap();
                let mut server = Server::new().add_listener(listener).register_service(service);
                server.start().await.unwrap();
                let _ = stopped.await;
            });
        });
        EventServer { stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// The events of one topic.
    pub(crate) fn of<M: Message>(&self, topic: &str) -> Vec<M> {
        let all = self.all().into_iter().filter(|event| event.topic == topic);
        all.map(|event| M::parse_from_bytes(&event.value).unwrap()).collect()
    }

    /// What was told of a container: `create`, `start`, `exec-started E`, `exit 0`, `exit E 0`, `delete`, ...
    pub(crate) fn story(&self, container: &str) -> Vec<String> {
        self.all().iter().filter(|event| event.container() == container).map(Event::tell).collect()
    }
}

impl Event {
    /// Of all task events the first field is the container's id. Source: containerd api/events/task.proto.
    fn container(&self) -> String {
        let mut input = CodedInputStream::from_bytes(&self.value);
        match input.read_raw_tag_or_eof().unwrap() {
            Some(0x0a) => input.read_string().unwrap(),
            other => panic!("{}: begins with {other:?}", self.topic),
        }
    }

    fn tell(&self) -> String {
        let verb = self.topic.strip_prefix("/tasks/").unwrap();
        match verb {
            "exec-added" => format!("{verb} {}", self.parse::<TaskExecAdded>().exec_id),
            "exec-started" => format!("{verb} {}", self.parse::<TaskExecStarted>().exec_id),
            "exit" => {
                let exit: TaskExit = self.parse();
                let whose =
                    if exit.id == exit.container_id { String::new() } else { format!(" {}", exit.id) };
                format!("exit{whose} {}", exit.exit_status)
            }
            _ => verb.to_owned(),
        }
    }

    fn parse<M: Message>(&self) -> M {
        M::parse_from_bytes(&self.value).unwrap()
    }
}
