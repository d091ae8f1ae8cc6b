// SPDX-License-Identifier: Apache-2.0
//! What `thaw-nri` does when the runtime calls. It logs; `decide` decides.

use async_trait::async_trait;
use log::{info, warn};
use nri_plugin::nri::api::{
    ConfigureRequest, Container, ContainerUpdate, CreateContainerResponse, Event, PodSandbox,
};
use nri_plugin::nri::{Plugin, Refused};

use crate::decide;

/// One per node. It keeps nothing about pods, so there is nothing to lose when a runtime restarts.
#[derive(Debug)]
pub(crate) struct NodePlugin;

#[async_trait]
impl Plugin for NodePlugin {
    fn events(&self) -> &[Event] {
        &[Event::CREATE_CONTAINER]
    }

    async fn configure(&self, runtime: &ConfigureRequest) -> Result<(), Refused> {
        let ConfigureRequest { runtime_name, runtime_version, config, .. } = runtime;
        info!(runtime = runtime_name, version = runtime_version; "configured");
        if !config.trim().is_empty() {
            warn!("the runtime passed a configuration (/etc/nri/conf.d); it is not used, see --config");
        }
        Ok(())
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refused> {
        info!(pods = pods.len(), containers = containers.len(); "synchronized");
        Ok(Vec::new())
    }

    async fn shutdown(&self) {
        info!("the runtime goes down");
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<CreateContainerResponse, Refused> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let adjust = decide::create_container(&pod, &container).map_err(|errors| {
            warn!(pod = name, container = container.name; "refused: {errors}");
            Refused(format!("thaw: {errors}"))
        })?;
        if !adjust.annotations.is_empty() {
            let mut keys: Vec<_> = adjust.annotations.keys().map(|key| key.trim_start_matches('-')).collect();
            keys.sort_unstable();
            warn!(pod = name, container = container.name; "removed annotations that only the node may set: {keys:?}");
        }
        Ok(CreateContainerResponse { adjust: Some(adjust).into(), ..Default::default() })
    }
}
