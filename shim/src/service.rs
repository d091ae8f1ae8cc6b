// SPDX-License-Identifier: Apache-2.0
//! The shim's process life: `start`, `delete` and `-info` as containerd runs them, and the task service.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim::asynchronous::util::{read_spec, write_str_to_file};
use containerd_shim::asynchronous::{ExitSignal, Shim, spawn};
use containerd_shim::publisher::RemotePublisher;
use containerd_shim::util::convert_to_timestamp;
use containerd_shim::{Config, Error, Flags, StartOpts};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::well_known_types::any::Any;

use crate::events::Events;
use crate::pod::Pod;
use crate::reaper::Exit;
use crate::task::TaskService;

/// Annotations that put several containers into one shim, in the order in which they are looked at.
///
/// Source: containerd's `cmd/containerd-shim-runc-v2/manager/manager_linux.go`, groupLabels.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// One shim process.
#[derive(Clone)]
pub(crate) struct Service {
    exit: Arc<ExitSignal>,
    id: String,
    namespace: String,
}

#[async_trait]
impl Shim for Service {
    type T = TaskService;

    async fn new(_runtime_id: &str, args: &Flags, _config: &mut Config) -> Self {
        if let Err(e) = crate::reaper::run() {
            // The server would never see an end of anything; containerd reports what is written here.
            eprintln!("cannot watch for exits: {e}");
            std::process::exit(1);
        }
        Self { exit: Arc::default(), id: args.id.clone(), namespace: args.namespace.clone() }
    }

    async fn start_shim(&mut self, opts: StartOpts) -> Result<String, Error> {
        let spec = read_spec("").await?;
        let annotations = spec.annotations().clone().unwrap_or_default();
        let group = GROUPS.iter().find_map(|key| annotations.get(*key)).unwrap_or(&opts.id).clone();
        let address = spawn(opts, &group, crate::memory::environment()).await?;
        write_str_to_file("address", &address).await?;
        Ok(address)
    }

    async fn delete_shim(&mut self) -> Result<DeleteResponse, Error> {
        let bundle = std::env::current_dir()
            .map_err(|err| Error::IoError { context: "find the bundle".into(), err })?;
        let pid = crate::delete::after_death(&self.namespace, &self.id, &bundle).await;
        let exit = Exit::killed();
        Ok(DeleteResponse {
            pid: pid.cast_unsigned(),
            exit_status: exit.code,
            exited_at: Some(convert_to_timestamp(Some(exit.at))).into(),
            ..Default::default()
        })
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
    }

    async fn create_task_service(&self, _: RemotePublisher) -> Self::T {
        // containerd starts a shim in the sandbox's bundle; without it there is nowhere to keep anything.
        let bundle = std::env::current_dir().unwrap_or_default();
        // The crate's own publisher, which is not used here, has found it there.
        let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
        let pod = Pod::new(&self.namespace, bundle, Events::new(&address, &self.namespace));
        TaskService::new(Arc::new(pod), self.exit.clone())
    }

    fn runtime_info(runtime_id: &str, options: Option<&Any>) -> Result<RuntimeInfo, Error> {
        crate::oci::info(runtime_id, options)
    }
}
