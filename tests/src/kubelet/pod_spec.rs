// SPDX-License-Identifier: Apache-2.0
//! The part of a v1 Pod that the kubelet of the tests understands.
//!
//! A field that it does not understand is an error that names the field; nothing is ignored in silence, except
//! where the field's own line says that it changes nothing here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::quantity::Quantity;

/// A v1 Pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Pod {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub spec: PodSpec,
}

/// `metadata`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Metadata {
    pub name: String,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Random when left out, as from the API server.
    pub uid: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// `spec`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct PodSpec {
    pub runtime_class_name: Option<String>,
    #[serde(default)]
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Accepted, and shown; there is no control loop here that would act on it.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    #[serde(default = "default_grace_period")]
    pub termination_grace_period_seconds: i64,
    pub hostname: Option<String>,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default, rename = "hostPID")]
    pub host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    pub host_ipc: bool,
    #[serde(default = "yes")]
    pub host_users: bool,
    #[serde(default)]
    pub share_process_namespace: bool,
    #[serde(default)]
    pub dns_policy: DnsPolicy,
    #[serde(default = "yes")]
    pub automount_service_account_token: bool,
    #[serde(default)]
    pub security_context: PodSecurityContext,
}

/// One of `spec.containers` or `spec.initContainers`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Container {
    pub name: String,
    pub image: String,
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub working_dir: String,
    #[serde(default)]
    pub env: Vec<EnvVar>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
    #[serde(default)]
    pub ports: Vec<Port>,
    #[serde(default)]
    pub security_context: ContainerSecurityContext,
    pub liveness_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    #[serde(default = "default_termination_path")]
    pub termination_message_path: String,
    #[serde(default)]
    pub termination_message_policy: TerminationMessagePolicy,
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub stdin_once: bool,
    #[serde(default)]
    pub tty: bool,
    /// `Always` on an init container makes it a sidecar.
    pub restart_policy: Option<RestartPolicy>,
    /// Of an ephemeral container: whose processes it sees.
    pub target_container_name: Option<String>,
}

/// `env[]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct EnvVar {
    pub name: String,
    pub value: Option<String>,
    pub value_from: Option<EnvVarSource>,
}

/// `env[].valueFrom`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct EnvVarSource {
    pub field_ref: FieldRef,
}

/// `env[].valueFrom.fieldRef`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct FieldRef {
    /// Changes nothing here: there is only v1.
    #[serde(default)]
    pub api_version: String,
    pub field_path: String,
}

/// `resources`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Resources {
    #[serde(default)]
    pub limits: ResourceList,
    #[serde(default)]
    pub requests: ResourceList,
}

/// `resources.limits` and `resources.requests`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct ResourceList {
    pub cpu: Option<Quantity>,
    pub memory: Option<Quantity>,
}

/// `volumeMounts[]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub sub_path: String,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub mount_propagation: MountPropagation,
}

/// `ports[]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Port {
    pub container_port: u16,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub protocol: PortProtocol,
}

/// A container's `securityContext`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct ContainerSecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub capabilities: Option<Capabilities>,
    #[serde(default)]
    pub privileged: bool,
    pub allow_privilege_escalation: Option<bool>,
    #[serde(default)]
    pub read_only_root_filesystem: bool,
    pub seccomp_profile: Option<SeccompProfile>,
}

/// `capabilities`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Capabilities {
    #[serde(default)]
    pub add: Vec<String>,
    #[serde(default)]
    pub drop: Vec<String>,
}

/// `seccompProfile`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
#[allow(missing_docs, reason = "the variants are those of the Kubernetes API")]
pub enum SeccompProfile {
    RuntimeDefault,
    Unconfined,
    #[serde(rename_all = "camelCase")]
    Localhost {
        localhost_profile: String,
    },
}

/// The pod's `securityContext`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct PodSecurityContext {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub fs_group: Option<u32>,
    #[serde(default)]
    pub supplemental_groups: Vec<i64>,
    #[serde(default)]
    pub sysctls: Vec<Sysctl>,
    pub seccomp_profile: Option<SeccompProfile>,
}

/// `sysctls[]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Sysctl {
    pub name: String,
    pub value: String,
}

/// `livenessProbe` and `readinessProbe`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Probe {
    pub exec: Option<ExecAction>,
    pub http_get: Option<HttpGetAction>,
    #[serde(default)]
    pub initial_delay_seconds: u32,
    #[serde(default = "default_period")]
    pub period_seconds: u32,
    #[serde(default = "one")]
    pub timeout_seconds: u32,
    #[serde(default = "one")]
    pub success_threshold: u32,
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

/// `exec` of a probe.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct ExecAction {
    pub command: Vec<String>,
}

/// `httpGet` of a probe.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct HttpGetAction {
    #[serde(default = "root_path")]
    pub path: String,
    pub port: ProbePort,
}

/// A port by number, or by its name in `ports`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProbePort {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

/// `volumes[]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Volume {
    pub name: String,
    pub empty_dir: Option<EmptyDir>,
    pub host_path: Option<HostPath>,
    pub config_map: Option<ConfigMap>,
    pub secret: Option<Secret>,
}

/// `emptyDir`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct EmptyDir {
    #[serde(default)]
    pub medium: Medium,
    /// The size of the tmpfs with `medium: Memory`; otherwise it changes nothing here: nothing is evicted.
    pub size_limit: Option<Quantity>,
}

/// `hostPath`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct HostPath {
    pub path: String,
    #[serde(default, rename = "type")]
    pub kind: HostPathType,
}

/// `configMap`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct ConfigMap {
    pub name: String,
}

/// `secret`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are those of the Kubernetes API")]
pub struct Secret {
    pub secret_name: String,
}

/// An enumeration of the API whose first value is its default.
macro_rules! api_enum {
    ($(#[$meta:meta])* $name:ident: $(#[$zero:meta])* $first:ident $(, $rest:ident)*) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the variants are those of the Kubernetes API")]
        pub enum $name {
            #[default]
            $(#[$zero])*
            $first,
            $($rest,)*
        }
    };
}

api_enum!(
    /// `restartPolicy`.
    RestartPolicy: Always, OnFailure, Never
);
api_enum!(
    /// `dnsPolicy`.
    DnsPolicy: ClusterFirst, Default
);
api_enum!(
    /// `volumeMounts[].mountPropagation`.
    MountPropagation: None, HostToContainer, Bidirectional
);
api_enum!(
    /// `imagePullPolicy`; nothing is ever pulled here, so `Always` is not supported.
    ImagePullPolicy: IfNotPresent, Never
);
api_enum!(
    /// `ports[].protocol`.
    PortProtocol: TCP, UDP, SCTP
);
api_enum!(
    /// `terminationMessagePolicy`.
    TerminationMessagePolicy: File, FallbackToLogsOnError
);
api_enum!(
    /// `hostPath.type`.
    HostPathType: #[serde(rename = "")] Unchecked, Directory, DirectoryOrCreate, File
);
api_enum!(
    /// `emptyDir.medium`.
    Medium: #[serde(rename = "")] Disk, Memory
);

fn default_namespace() -> String {
    "default".to_owned()
}

fn default_grace_period() -> i64 {
    30
}

fn default_termination_path() -> String {
    "/dev/termination-log".to_owned()
}

fn root_path() -> String {
    "/".to_owned()
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

fn default_period() -> u32 {
    10
}
