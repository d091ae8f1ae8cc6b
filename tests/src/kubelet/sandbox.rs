// SPDX-License-Identifier: Apache-2.0
//! A pod's sandbox as kubelet describes it to the runtime. Pure.
//!
//! Source: kubelet, `pkg/kubelet/kuberuntime/kuberuntime_sandbox.go` and `labels.go`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::cri::api::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, Protocol,
};
use super::pod_dir;
use super::pod_spec::{DnsPolicy, Pod, PortProtocol};
use super::resources::Amounts;
use super::security;
use super::settings::Settings;

/// The description of the sandbox; the runtime gets it again with each container.
#[must_use]
pub fn config(
    pod: &Pod,
    uid: &str,
    cgroup: &str,
    amounts: &Amounts,
    settings: &Settings,
) -> PodSandboxConfig {
    let metadata = &pod.metadata;
    let own_network = !pod.spec.host_network;
    let sysctls = &pod.spec.security_context.sysctls;
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: metadata.name.clone(),
            uid: uid.to_owned(),
            namespace: metadata.namespace.clone(),
            attempt: 0,
        }),
        hostname: if own_network { pod.hostname() } else { String::new() },
        log_directory: log_directory(pod, uid, &settings.pod_logs_dir),
        dns_config: (own_network && pod.spec.dns_policy == DnsPolicy::ClusterFirst)
            .then(|| cluster_dns(&metadata.namespace, &settings.cluster_dns)),
        port_mappings: port_mappings(pod),
        labels: labels(pod, uid).into_iter().collect(),
        annotations: annotations(&metadata.annotations),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.to_owned(),
            security_context: Some(security::of_sandbox(pod)),
            sysctls: sysctls.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
            overhead: Some(LinuxContainerResources::default()),
            resources: Some(amounts.to_linux(0)),
        }),
    }
}

/// The pod's own labels, and the three by which kubelet knows its sandboxes again.
fn labels(pod: &Pod, uid: &str) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone();
    labels.extend(identity_labels(pod, uid));
    labels
}

/// The labels that stand on sandboxes and containers alike.
#[must_use]
pub fn identity_labels(pod: &Pod, uid: &str) -> [(String, String); 3] {
    [
        ("io.kubernetes.pod.name".to_owned(), pod.metadata.name.clone()),
        ("io.kubernetes.pod.namespace".to_owned(), pod.metadata.namespace.clone()),
        ("io.kubernetes.pod.uid".to_owned(), uid.to_owned()),
    ]
}

/// All of the pod's annotations, and where kubelet has the pod from.
fn annotations(own: &BTreeMap<String, String>) -> HashMap<String, String> {
    let source = ("kubernetes.io/config.source".to_owned(), "api".to_owned());
    own.clone().into_iter().chain([source]).collect()
}

fn log_directory(pod: &Pod, uid: &str, pod_logs_dir: &Path) -> String {
    let metadata = &pod.metadata;
    pod_dir::logs(pod_logs_dir, &metadata.namespace, &metadata.name, uid).to_string_lossy().into_owned()
}

fn cluster_dns(namespace: &str, server: &str) -> DnsConfig {
    DnsConfig {
        servers: vec![server.to_owned()],
        searches: vec![
            format!("{namespace}.svc.cluster.local"),
            "svc.cluster.local".to_owned(),
            "cluster.local".to_owned(),
        ],
        options: vec!["ndots:5".to_owned()],
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    ports
        .map(|port| {
            let protocol = match port.protocol {
                PortProtocol::TCP => Protocol::Tcp,
                PortProtocol::UDP => Protocol::Udp,
                PortProtocol::SCTP => Protocol::Sctp,
            };
            PortMapping { protocol: protocol.into(), container_port: i32::from(port.container_port) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: &str) -> PodSandboxConfig {
        let pod = Pod::parse(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: n, labels: {{a: b}}, \
             annotations: {{thaw.dev/restore: latest}}}}, spec: {{{spec} containers: [{{name: c, image: i}}]}}}}"
        ))
        .unwrap();
        config(&pod, "u", "/kubepods/besteffort/podu", &Amounts::default(), &Settings::default())
    }

    #[test]
    fn all_annotations_of_the_pod_reach_the_sandbox() {
        assert_eq!(of("").annotations["thaw.dev/restore"], "latest");
    }

    #[test]
    fn labels_are_the_pods_and_kubelets() {
        let labels = of("").labels;
        assert_eq!((labels["a"].as_str(), labels["io.kubernetes.pod.uid"].as_str()), ("b", "u"));
    }

    #[test]
    fn the_log_directory_has_namespace_name_and_uid() {
        assert_eq!(of("").log_directory, "/var/log/pods/n_p_u");
    }

    #[test]
    fn on_the_nodes_network_host_name_and_name_server_are_the_nodes() {
        let config = of("hostNetwork: true,");
        assert_eq!((config.hostname.as_str(), config.dns_config), ("", None));
        assert_eq!(of("").hostname, "p");
    }
}
