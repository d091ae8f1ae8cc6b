// SPDX-License-Identifier: Apache-2.0
//! Liveness and readiness probes, by exec and HTTP, and waiting until a pod is ready.
//!
//! Source: kubelet, `pkg/kubelet/prober` and `pkg/probe`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Kubelet;
use super::cri::api::ContainerState as CriState;
use super::error::KubeletError;
use super::http;
use super::patience::patient;
use super::pod_spec::{Container, HttpGetAction, Probe, ProbePort};
use super::start::is_running;
use super::state::PodState;

/// How often a container without a probe is looked at.
const POLL: Duration = Duration::from_millis(100);

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The container answered as it should.
    Healthy,
    /// It did not, and what it did instead.
    Unhealthy(String),
}

impl Kubelet {
    /// Probes a container once.
    ///
    /// # Errors
    /// [`KubeletError::NoContainer`] when the container is not there to be probed.
    pub async fn probe(
        &self,
        state: &PodState,
        container: &Container,
        probe: &Probe,
    ) -> Result<Health, KubeletError> {
        let limit = u64::from(probe.timeout_seconds.max(1));
        if let Some(get) = &probe.http_get {
            return Ok(http_health(state, container, get, patient(Duration::from_secs(limit))).await);
        }
        let command = probe.exec.as_ref().map(|exec| exec.command.clone()).unwrap_or_default();
        let limit = i64::from(probe.timeout_seconds.max(1));
        match self.exec(state, &container.name, &command, limit).await {
            Ok(output) if output.exit_code == 0 => Ok(Health::Healthy),
            Ok(output) => {
                let said = format!("{}{}", output.stdout, output.stderr);
                Ok(Health::Unhealthy(format!("exit code {}: {}", output.exit_code, said.trim())))
            }
            Err(KubeletError::Cri(error)) => Ok(Health::Unhealthy(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Waits until every container runs and its readiness probe passes as often as it must.
    ///
    /// # Errors
    /// [`KubeletError::NotReady`] when `limit` is over, or when a container ended.
    pub async fn wait_ready(&self, state: &PodState, limit: Duration) -> Result<(), KubeletError> {
        let end = Instant::now() + limit;
        for container in &state.pod.spec.containers {
            self.wait_running(state, container, end).await?;
            if let Some(probe) = &container.readiness_probe {
                self.wait_healthy(state, container, probe, end).await?;
            }
        }
        Ok(())
    }

    async fn wait_running(
        &self,
        state: &PodState,
        container: &Container,
        end: Instant,
    ) -> Result<(), KubeletError> {
        loop {
            let status = self.container_status(&state.container(&container.name)?.id).await?;
            if is_running(&status) {
                return Ok(());
            }
            if status.state() == CriState::ContainerExited || Instant::now() >= end {
                let reason =
                    format!("{:?}, exit code {}, {}", status.state(), status.exit_code, status.reason);
                return Err(KubeletError::NotReady { container: container.name.clone(), reason });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn wait_healthy(
        &self,
        state: &PodState,
        container: &Container,
        probe: &Probe,
        end: Instant,
    ) -> Result<(), KubeletError> {
        tokio::time::sleep(Duration::from_secs(probe.initial_delay_seconds.into())).await;
        let mut passed = 0;
        loop {
            let answer = self.probe(state, container, probe).await?;
            passed = if answer == Health::Healthy { passed + 1 } else { 0 };
            if passed >= probe.success_threshold.max(1) {
                return Ok(());
            }
            if let Health::Unhealthy(reason) = answer {
                let running =
                    is_running(&self.container_status(&state.container(&container.name)?.id).await?);
                if !running || Instant::now() >= end {
                    return Err(KubeletError::NotReady { container: container.name.clone(), reason });
                }
            }
            tokio::time::sleep(Duration::from_secs(probe.period_seconds.max(1).into())).await;
        }
    }
}

/// 200 to 399 is health. Source: kubelet, `pkg/probe/http`.
async fn http_health(
    state: &PodState,
    container: &Container,
    get: &HttpGetAction,
    limit: Duration,
) -> Health {
    let Some(port) = port_number(container, &get.port) else {
        return Health::Unhealthy(format!("the container has no port {:?}", get.port));
    };
    let Some(ip) = pod_ip(state) else {
        return Health::Unhealthy(format!("the pod's address {:?} is none", state.ip));
    };
    match http::get(SocketAddr::new(ip, port), &get.path, limit).await {
        Ok(answer) if (200..400).contains(&answer.status) => Health::Healthy,
        Ok(answer) => Health::Unhealthy(format!("HTTP status {}", answer.status)),
        Err(error) => Health::Unhealthy(error.to_string()),
    }
}

/// On the node's network the pod answers on the node's own addresses.
fn pod_ip(state: &PodState) -> Option<IpAddr> {
    if state.pod.spec.host_network { Some([127, 0, 0, 1].into()) } else { state.ip.parse().ok() }
}

fn port_number(container: &Container, port: &ProbePort) -> Option<u16> {
    match port {
        ProbePort::Number(number) => Some(*number),
        ProbePort::Name(name) => {
            container.ports.iter().find(|port| port.name == *name).map(|port| port.container_port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubelet::pod_spec::Pod;

    #[test]
    fn a_port_goes_by_its_number_or_by_its_name() {
        let pod = Pod::parse(
            "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i, \
             ports: [{name: web, containerPort: 8080}]}]}}",
        )
        .unwrap();
        let container = &pod.spec.containers[0];
        assert_eq!(port_number(container, &ProbePort::Number(1)), Some(1));
        assert_eq!(port_number(container, &ProbePort::Name("web".into())), Some(8080));
        assert_eq!(port_number(container, &ProbePort::Name("none".into())), None);
    }
}
