// SPDX-License-Identifier: Apache-2.0
//! A runtime that speaks NRI as containerd does, so far as a plugin can tell: its multiplexer, its calls by name.
//!
//! It shares no code with the library but the messages; ttrpc is the crate's.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use nri_plugin::nri::api::{
    ConfigureRequest, ConfigureResponse, ContainerUpdate, Empty, RegisterPluginRequest, SynchronizeRequest,
    SynchronizeResponse, UpdateContainersRequest, UpdateContainersResponse,
};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, split};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, MethodHandler, Server, Service, TtrpcContext};
use ttrpc::{Code, Request, Response, get_status};

/// What Go's ttrpc reads through; its multiplexer breaks the connection at a longer frame.
const GO_BUFFER: u32 = 4096;

/// Waits, but not for ever.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("nothing happened for 20 s")
}

/// A socket that plugins connect to.
pub(crate) struct Door(UnixListener);

impl Door {
    /// As containerd at its start: what was there before is removed.
    pub(crate) fn open(dir: &Path) -> Self {
        let socket = dir.join("nri.sock");
        std::fs::remove_file(&socket).ok();
        Self(UnixListener::bind(socket).unwrap())
    }

    pub(crate) async fn accept(&self) -> Runtime {
        Runtime::over(soon(self.0.accept()).await.unwrap().0).await
    }
}

/// One plugin's runtime. Dropping it hangs up.
pub(crate) struct Runtime {
    plugin: Client,
    registrations: mpsc::UnboundedReceiver<RegisterPluginRequest>,
    _server: Server,
    _mux: JoinSet<()>,
}

impl Runtime {
    pub(crate) async fn over(trunk: UnixStream) -> Self {
        let (mut mux, [plugin, runtime]) = multiplex(trunk);
        let (registered, registrations) = mpsc::unbounded_channel();
        let methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = HashMap::from([
            ("RegisterPlugin".to_owned(), Box::new(RegisterPlugin(registered)) as _),
            ("UpdateContainers".to_owned(), Box::new(UpdateContainers) as _),
        ]);
        let service = Service { methods, streams: HashMap::new() };
        let listener = Listener::new(stream::iter([Ok(runtime)]).chain(stream::pending()));
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(HashMap::from([("nri.pkg.api.v1alpha1.Runtime".to_owned(), service)]));
        server.start().await.unwrap();
        mux.spawn(std::future::pending());
        Self { plugin: Client::new(Socket::new(plugin)), registrations, _server: server, _mux: mux }
    }

    pub(crate) async fn registered(&mut self) -> RegisterPluginRequest {
        soon(self.registrations.recv()).await.expect("the plugin hung up")
    }

    /// Calls the plugin.
    pub(crate) async fn call<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, ttrpc::Status> {
        let request = Request {
            service: "nri.pkg.api.v1alpha1.Plugin".into(),
            method: method.into(),
            payload: request.write_to_bytes().unwrap(),
            ..Default::default()
        };
        match soon(self.plugin.request(request)).await {
            Ok(response) => Ok(A::parse_from_bytes(&response.payload).unwrap()),
            Err(ttrpc::Error::RpcStatus(status)) => Err(status),
            Err(error) => panic!("{method}: {error}"),
        }
    }

    /// Takes the plugin's registration, configures it and tells it that nothing runs. Returns the events it wants.
    pub(crate) async fn handshake(&mut self, version: &str, nri_version: &str) -> i32 {
        self.registered().await;
        let configure = ConfigureRequest {
            runtime_name: "containerd".into(),
            runtime_version: version.into(),
            request_timeout: 2000,
            nri_version: nri_version.into(),
            ..Default::default()
        };
        let configured: ConfigureResponse = self.call("Configure", &configure).await.unwrap();
        let synchronized: SynchronizeResponse =
            self.call("Synchronize", &SynchronizeRequest::new()).await.unwrap();
        assert_eq!(synchronized, SynchronizeResponse::new());
        configured.events
    }
}

/// As Go's multiplexer: each write is one frame, however long; a frame that is too long for the reader is fatal.
fn multiplex(trunk: UnixStream) -> (JoinSet<()>, [DuplexStream; 2]) {
    let (mut from_trunk, to_trunk) = trunk.into_split();
    let to_trunk = Arc::new(Mutex::new(to_trunk));
    let mut tasks = JoinSet::new();
    let mut inboxes = Vec::new();
    let streams = [1_u32, 2].map(|number| {
        let (near, far) = tokio::io::duplex(8 << 20);
        let (mut outbox, inbox) = split(far);
        inboxes.push(inbox);
        let to_trunk = Arc::clone(&to_trunk);
        tasks.spawn(async move {
            let mut payload = vec![0; 8 << 20];
            while let Ok(length @ 1..) = outbox.read(&mut payload).await {
                let header = [number.to_be_bytes(), u32::try_from(length).unwrap().to_be_bytes()].concat();
                let mut trunk = to_trunk.lock().await;
                trunk.write_all(&header).await.ok();
                trunk.write_all(&payload[..length]).await.ok();
            }
        });
        near
    });
    tasks.spawn(async move {
        while let Ok(number) = from_trunk.read_u32().await {
            let length = from_trunk.read_u32().await.unwrap();
            if length > GO_BUFFER {
                break; // ENOMEM
            }
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            from_trunk.read_exact(&mut payload).await.unwrap();
            inboxes[usize::try_from(number).unwrap() - 1].write_all(&payload).await.ok();
        }
        for inbox in &mut inboxes {
            inbox.shutdown().await.ok();
        }
    });
    (tasks, streams)
}

fn answer(message: &impl Message) -> ttrpc::Result<Response> {
    Ok(Response { payload: message.write_to_bytes().unwrap(), ..Default::default() })
}

struct RegisterPlugin(mpsc::UnboundedSender<RegisterPluginRequest>);

#[async_trait]
impl MethodHandler for RegisterPlugin {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let request = RegisterPluginRequest::parse_from_bytes(&request.payload).unwrap();
        if request.plugin_name == "unwanted" {
            return Err(ttrpc::Error::RpcStatus(get_status(Code::UNKNOWN, "not you")));
        }
        self.0.send(request).ok();
        answer(&Empty::new())
    }
}

/// Fails every update.
struct UpdateContainers;

#[async_trait]
impl MethodHandler for UpdateContainers {
    async fn handler(&self, _: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let request = UpdateContainersRequest::parse_from_bytes(&request.payload).unwrap();
        let failed: Vec<ContainerUpdate> = request.update;
        answer(&UpdateContainersResponse { failed, ..Default::default() })
    }
}
