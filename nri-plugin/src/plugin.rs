// SPDX-License-Identifier: Apache-2.0
//! What `thaw-nri` does when the runtime calls: gathers facts, lets `decide` decide, and logs.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use checkpoint::Config;
use checkpoint::record::{Record, Subject, Verb};
use log::{info, warn};
use nri_plugin::nri::api::{
    ConfigureRequest, Container, ContainerAdjustment, ContainerUpdate, CreateContainerResponse, Event,
    PodSandbox,
};
use nri_plugin::nri::{Plugin, Refused};

use crate::address::{self, Owners};
use crate::decide::Asked;
use crate::events::Reporter;
use crate::facts::{self, Held, Here};
use crate::metrics::Metrics;

/// One per node. What it knows of pods the runtime tells again whenever it has been away.
#[derive(Debug)]
pub(crate) struct NodePlugin {
    config: Arc<Config>,
    /// Where the node's file system is.
    root: PathBuf,
    owners: Owners,
    metrics: Arc<Metrics>,
    reporter: Reporter,
}

impl NodePlugin {
    pub(crate) fn new(config: Arc<Config>, root: PathBuf, metrics: Arc<Metrics>, reporter: Reporter) -> Self {
        Self { config, root, owners: Owners::default(), metrics, reporter }
    }

    /// What the checkpoint held and what the node has; `None` where nothing is restored.
    async fn facts(&self, asked: &Asked, pod: &PodSandbox, container: &Container) -> Option<(Held, Here)> {
        let (request, lineage) = asked.restore.clone()?;
        let (config, root, namespace) = (self.config.clone(), self.root.clone(), pod.namespace.clone());
        let (container, keep) = (container.clone(), asked.keep_addresses);
        let gather = move || {
            let held = facts::held(&config, &namespace, &container.name, &lineage, &request, keep)?;
            Ok(held.map(|held| {
                let here = facts::here(&config, &root, &container, &held);
                (held, here)
            }))
        };
        let gathered = tokio::task::spawn_blocking(gather).await;
        gathered.unwrap_or_else(|e| Err(e.to_string())).unwrap_or_else(|reason: String| {
            warn!(pod:% = name(pod); "the checkpoint cannot be used, which the shim reports: {reason}");
            None
        })
    }

    async fn adjust(&self, asked: &Asked, pod: &PodSandbox, container: &Container) -> ContainerAdjustment {
        let Some((held, here)) = self.facts(asked, pod, container).await else { return asked.strip() };
        let addresses = if asked.keep_addresses {
            address::keep(&self.owners, pod, &held.network).await
        } else {
            Ok(Vec::new())
        };
        let adjust = asked.prepare(container, &held, &here, &addresses);
        let (pod, to) = (name(pod), container.name.as_str());
        info!(
            pod:%, container = to, checkpoint = held.name, devices = adjust.linux.devices.len(),
            mounts = adjust.mounts.len();
            "prepared"
        );
        if let Err(reason) = addresses {
            warn!(pod:%, container = to, checkpoint = held.name; "against the restore: {reason}");
        }
        adjust
    }
}

fn name(pod: &PodSandbox) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn subject(pod: &PodSandbox, container: &Container) -> Subject {
    Subject {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        container: container.name.clone(),
    }
}

#[async_trait]
impl Plugin for NodePlugin {
    fn events(&self) -> &[Event] {
        &[Event::RUN_POD_SANDBOX, Event::STOP_POD_SANDBOX, Event::REMOVE_POD_SANDBOX, Event::CREATE_CONTAINER]
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
        self.owners.reset(&pods, &containers);
        self.metrics.set_registered(true);
        info!(pods = pods.len(), containers = containers.len(); "synchronized");
        Ok(Vec::new())
    }

    async fn shutdown(&self) {
        info!("the runtime goes down");
    }

    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.owners.note(&pod).map_err(|reason| {
            warn!(pod:% = name(&pod); "refused: {reason}");
            Refused(format!("thaw: {reason}"))
        })
    }

    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.owners.forget(&pod.id);
        Ok(())
    }

    async fn remove_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refused> {
        self.owners.forget(&pod.id);
        Ok(())
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<CreateContainerResponse, Refused> {
        let asked = Asked::of(&pod, &container).map_err(|errors| {
            warn!(pod:% = name(&pod), container = container.name; "refused: {errors}");
            let record = Record::failed(Verb::Restore, "refused");
            self.reporter.tell(record.about(Some(subject(&pod, &container)), &errors.to_string()));
            Refused(format!("thaw: {errors}"))
        })?;
        if !asked.forged().is_empty() {
            let keys = asked.forged();
            warn!(pod:% = name(&pod), container = container.name; "removed annotations that only the node may set: {keys:?}");
        }
        let adjust = self.adjust(&asked, &pod, &container).await;
        Ok(CreateContainerResponse { adjust: Some(adjust).into(), ..Default::default() })
    }
}
