// SPDX-License-Identifier: Apache-2.0
//! One plugin at one runtime, from the registration until the socket is closed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::net::UnixStream;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};
use ttrpc::context;

use super::api::{
    ContainerEviction, ContainerUpdate, RegisterPluginRequest, UpdateContainersRequest,
    UpdateContainersResponse,
};
use super::connection::Identity;
use super::generated::nri_ttrpc::{RuntimeClient, create_plugin};
use super::mux::{FrameError, Mux, PLUGIN_SERVICE, RUNTIME_SERVICE};
use super::plugin::Plugin;
use super::service::{Service, State};

/// The version of NRI that this module was written from; runtimes only log it.
const NRI_VERSION: &str = "v0.12.2";
/// How long the runtime may take to accept a registration. It gives one plugin 5 s (containerd/nri
/// pkg/api/timeouts.go) and takes one at a time.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(10);

/// The runtime did not take the plugin.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The plugin's service could not be started.
    #[error("cannot serve on the connection")]
    Serve(#[source] ttrpc::Error),
    /// The runtime refused, was too slow, or hung up.
    #[error("cannot register with the runtime")]
    Register(#[source] ttrpc::Error),
}

/// What a plugin can ask of the runtime.
#[derive(Clone)]
pub struct Runtime(RuntimeClient);

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Runtime")
    }
}

impl Runtime {
    /// Changes the resources of running containers and evicts others, outside of any event.
    /// Returns the updates that failed. Must not be called from within a [`Plugin`]'s method.
    ///
    /// # Errors
    /// The runtime refused, did not answer in time, or is gone.
    pub async fn update_containers(
        &self,
        update: Vec<ContainerUpdate>,
        evict: Vec<ContainerEviction>,
        within: Duration,
    ) -> Result<Vec<ContainerUpdate>, ttrpc::Error> {
        let request = UpdateContainersRequest { update, evict, ..Default::default() };
        let UpdateContainersResponse { failed, .. } =
            self.0.update_containers(context::with_duration(within), &request).await?;
        Ok(failed)
    }
}

/// A registered plugin. Dropping it hangs up.
pub struct Session {
    runtime: Runtime,
    state: Arc<State>,
    mux: Mux,
    /// Serves until it is dropped.
    _server: Server,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Session {
    /// Serves the plugin on the socket, then registers it. Configuration and synchronisation follow as calls.
    ///
    /// # Errors
    /// The runtime refuses the plugin, does not answer, or hangs up.
    pub async fn register<P: Plugin>(
        trunk: UnixStream,
        identity: &Identity,
        plugin: Arc<P>,
    ) -> Result<Self, RegisterError> {
        let (mux, [plugin_stream, runtime_stream]) = Mux::start(trunk, [PLUGIN_SERVICE, RUNTIME_SERVICE]);
        let state = Arc::<State>::default();

        // There is one connection and never another.
        let listener = Listener::new(stream::iter([Ok(plugin_stream)]).chain(stream::pending()));
        let service = Service { plugin, state: Arc::clone(&state) };
        let mut server =
            Server::new().add_listener(listener).register_service(create_plugin(Arc::new(service)));
        server.start().await.map_err(RegisterError::Serve)?;

        let runtime = Runtime(RuntimeClient::new(Client::new(Socket::new(runtime_stream))));
        let request = RegisterPluginRequest {
            plugin_name: identity.name().to_owned(),
            plugin_idx: identity.index().to_owned(),
            nri_version: NRI_VERSION.to_owned(),
            ..Default::default()
        };
        let within = context::with_duration(REGISTRATION_TIMEOUT);
        runtime.0.register_plugin(within, &request).await.map_err(RegisterError::Register)?;
        Ok(Self { runtime, state, mux, _server: server })
    }

    /// What the plugin can ask of this runtime.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        self.runtime.clone()
    }

    /// Whether the runtime has configured the plugin and told it everything that exists.
    #[must_use]
    pub fn synchronized(&self) -> bool {
        self.state.synchronized.load(Ordering::Relaxed)
    }

    /// Waits until the runtime has hung up. Must not be called again afterwards.
    ///
    /// # Errors
    /// The socket failed, or what came out of it was not the protocol.
    pub async fn closed(&mut self) -> Result<(), FrameError> {
        self.mux.closed().await
    }
}
