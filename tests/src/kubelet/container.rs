// SPDX-License-Identifier: Apache-2.0
//! A container as kubelet describes it to the runtime. Pure.
//!
//! Source: kubelet, `pkg/kubelet/kuberuntime/kuberuntime_container.go` and `labels.go`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::cri::api::{
    CdiDevice, ContainerConfig, ContainerMetadata, Image, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, Mount,
};
use super::env;
use super::pod_spec::{Container, Pod, PortProtocol, TerminationMessagePolicy};
use super::sandbox::identity_labels;
use super::security::{self, ImageUser};

/// The annotation of a pod that plays a device plugin: which CDI devices kubelet passes on, commas between them.
pub const CDI: &str = "test.example/cdi";

/// One instance of a container, and what its description is made from.
#[derive(Debug)]
pub struct Instance<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The pod's uid.
    pub uid: &'a str,
    /// The container.
    pub container: &'a Container,
    /// How often it was made before.
    pub attempt: u32,
    /// The id of the container whose processes it sees.
    pub target_id: Option<&'a str>,
    /// Its image on the node.
    pub image: &'a Image,
    /// Its environment.
    pub env: Vec<KeyValue>,
    /// Its volumes, `/etc/hosts` and the termination log.
    pub mounts: Vec<Mount>,
    /// Its limits.
    pub resources: LinuxContainerResources,
    /// Whether a container without a seccomp profile gets the runtime's.
    pub seccomp_default: bool,
}

impl Instance<'_> {
    /// The description for the runtime.
    #[must_use]
    pub fn config(self) -> ContainerConfig {
        let Self { pod, container, image, .. } = self;
        let user = ImageUser { uid: image.uid.map(|uid| uid.value), username: image.username.clone() };
        let known: BTreeMap<String, String> =
            self.env.iter().map(|variable| (variable.key.clone(), variable.value.clone())).collect();
        let expand = |words: &[String]| words.iter().map(|word| env::expand(word, &known)).collect();
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: self.attempt }),
            image: Some(ImageSpec {
                image: image.id.clone(),
                user_specified_image: container.image.clone(),
                runtime_handler: String::new(),
            }),
            command: expand(&container.command),
            args: expand(&container.args),
            working_dir: container.working_dir.clone(),
            envs: self.env,
            mounts: self.mounts,
            labels: labels(pod, self.uid, container),
            annotations: annotations(pod, container, self.attempt),
            cdi_devices: cdi_devices(pod),
            log_path: log_path(container, self.attempt).to_string_lossy().into_owned(),
            stdin: container.stdin,
            stdin_once: container.stdin_once,
            tty: container.tty,
            linux: Some(LinuxContainerConfig {
                resources: Some(self.resources),
                security_context: Some(security::of_container(
                    pod,
                    container,
                    self.target_id,
                    &user,
                    self.seccomp_default,
                )),
            }),
        }
    }
}

/// The container's log beneath the pod's log directory.
#[must_use]
pub fn log_path(container: &Container, attempt: u32) -> PathBuf {
    Path::new(&container.name).join(format!("{attempt}.log"))
}

/// A mount of a file or directory of the node.
#[must_use]
pub fn mount(container_path: &str, host_path: &Path, readonly: bool) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        readonly,
        ..Mount::default()
    }
}

fn labels(pod: &Pod, uid: &str, container: &Container) -> HashMap<String, String> {
    let name = ("io.kubernetes.container.name".to_owned(), container.name.clone());
    identity_labels(pod, uid).into_iter().chain([name]).collect()
}

fn cdi_devices(pod: &Pod) -> Vec<CdiDevice> {
    let names = pod.metadata.annotations.get(CDI).map(|names| names.split(','));
    names.into_iter().flatten().map(|name| CdiDevice { name: name.to_owned() }).collect()
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let policy = match container.termination_message_policy {
        TerminationMessagePolicy::File => "File",
        TerminationMessagePolicy::FallbackToLogsOnError => "FallbackToLogsOnError",
    };
    let mut annotations = vec![
        ("io.kubernetes.container.hash", format!("{:x}", hash(container))),
        ("io.kubernetes.container.restartCount", attempt.to_string()),
        ("io.kubernetes.container.terminationMessagePath", container.termination_message_path.clone()),
        ("io.kubernetes.container.terminationMessagePolicy", policy.to_owned()),
        ("io.kubernetes.pod.terminationGracePeriod", pod.spec.termination_grace_period_seconds.to_string()),
    ];
    if !container.ports.is_empty() {
        annotations.push(("io.kubernetes.container.ports", ports(container)));
    }
    annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn ports(container: &Container) -> String {
    let ports = container.ports.iter().map(|port| {
        let protocol = match port.protocol {
            PortProtocol::TCP => "TCP",
            PortProtocol::UDP => "UDP",
            PortProtocol::SCTP => "SCTP",
        };
        serde_json::json!({"name": port.name, "containerPort": port.container_port, "protocol": protocol})
    });
    serde_json::Value::Array(ports.collect()).to_string()
}

/// A number that changes when the container's description does: FNV-1a over its JSON. kubelet hashes another
/// text, but nothing outside it reads the number.
fn hash(container: &Container) -> u32 {
    let text = serde_json::to_vec(container).unwrap_or_default();
    text.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(container: &str, attempt: u32) -> ContainerConfig {
        let pod = Pod::parse(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, \
             spec: {{containers: [{{name: c, image: busybox:local, {container}}}]}}}}"
        ))
        .unwrap();
        Instance {
            pod: &pod,
            uid: "u",
            container: &pod.spec.containers[0],
            attempt,
            target_id: None,
            image: &Image { id: "sha256:1".into(), ..Image::default() },
            env: vec![KeyValue { key: "A".into(), value: "x".into() }],
            mounts: Vec::new(),
            resources: LinuxContainerResources::default(),
            seccomp_default: false,
        }
        .config()
    }

    #[test]
    fn the_image_goes_by_its_id_and_the_given_name_beside_it() {
        let image = of("", 0).image.unwrap();
        assert_eq!(
            (image.image.as_str(), image.user_specified_image.as_str()),
            ("sha256:1", "busybox:local")
        );
    }

    #[test]
    fn the_restart_count_stands_in_annotation_metadata_and_log_path() {
        let config = of("", 2);
        assert_eq!(config.annotations["io.kubernetes.container.restartCount"], "2");
        assert_eq!(config.metadata.unwrap().attempt, 2);
        assert_eq!(config.log_path, "c/2.log");
    }

    #[test]
    fn command_and_arguments_see_the_environment() {
        let config = of("command: [echo, $(A)], args: [$(B)]", 0);
        assert_eq!((config.command, config.args), (vec!["echo".into(), "x".into()], vec!["$(B)".to_owned()]));
    }

    #[test]
    fn the_hash_changes_with_the_container() {
        let hash = |container| of(container, 0).annotations["io.kubernetes.container.hash"].clone();
        assert_eq!(hash(""), hash(""));
        assert_ne!(hash(""), hash("tty: true"));
    }
}
