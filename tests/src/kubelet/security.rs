// SPDX-License-Identifier: Apache-2.0
//! Security contexts as kubelet hands them to the runtime.
//!
//! Pure, apart from one look at the node's CPUs for paths that are masked.
//! Source: kubelet, `pkg/kubelet/kuberuntime/security_context.go` and `pkg/securitycontext`.

use super::cri::api::security_profile::ProfileType;
use super::cri::api::{
    Capability, IdMapping, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SecurityProfile, UserNamespace,
};
use super::pod_spec::{Container, Pod, SeccompProfile};

/// Paths that no unprivileged container may read.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that no unprivileged container may write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Who the image runs as. Source: CRI `Image.uid` and `Image.username`.
#[derive(Debug, Clone, Default)]
pub struct ImageUser {
    /// The numeric user, where the image names one.
    pub uid: Option<i64>,
    /// The user by name; empty where the image names none.
    pub username: String,
}

/// The context of the pod's sandbox. It always runs under the runtime's seccomp profile.
#[must_use]
pub fn of_sandbox(pod: &Pod) -> LinuxSandboxSecurityContext {
    let context = &pod.spec.security_context;
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        run_as_user: context.run_as_user.map(|value| Int64Value { value }),
        run_as_group: context.run_as_group.map(|value| Int64Value { value }),
        supplemental_groups: groups(pod),
        privileged: pod.all_containers().any(|container| container.security_context.privileged),
        seccomp: Some(profile(ProfileType::RuntimeDefault)),
    }
}

/// The context of a container; what it says itself goes before what the pod says.
#[must_use]
pub fn of_container(
    pod: &Pod,
    container: &Container,
    target_id: Option<&str>,
    image: &ImageUser,
    seccomp_default: bool,
) -> LinuxContainerSecurityContext {
    let (of_pod, own) = (&pod.spec.security_context, &container.security_context);
    let asked = own.run_as_user.or(of_pod.run_as_user);
    let by_name = asked.is_none() && image.uid.is_none() && !image.username.is_empty();
    let uid = asked.or(image.uid).unwrap_or(0);
    let capabilities = own.capabilities.clone().unwrap_or_default();
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.add,
            drop_capabilities: capabilities.drop,
        }),
        privileged: own.privileged,
        namespace_options: Some(namespaces(pod, target_id)),
        run_as_user: (!by_name).then_some(Int64Value { value: uid }),
        run_as_username: if by_name { image.username.clone() } else { String::new() },
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(|value| Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem,
        supplemental_groups: groups(pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: masked_paths(),
        readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
        seccomp: Some(seccomp(pod, container, seccomp_default)),
    }
}

fn seccomp(pod: &Pod, container: &Container, seccomp_default: bool) -> SecurityProfile {
    let own = container.security_context.seccomp_profile.as_ref();
    match own.or(pod.spec.security_context.seccomp_profile.as_ref()) {
        Some(SeccompProfile::RuntimeDefault) => profile(ProfileType::RuntimeDefault),
        Some(SeccompProfile::Unconfined) => profile(ProfileType::Unconfined),
        Some(SeccompProfile::Localhost { localhost_profile }) => SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: format!("/var/lib/kubelet/seccomp/{localhost_profile}"),
        },
        None if seccomp_default => profile(ProfileType::RuntimeDefault),
        None => profile(ProfileType::Unconfined),
    }
}

fn profile(kind: ProfileType) -> SecurityProfile {
    SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() }
}

/// The identities of a pod with users of its own. kubelet gives each such pod a range of 65536; here one is enough.
const USERS: IdMapping = IdMapping { host_id: 65536 * 16, container_id: 0, length: 65536 };

/// `target_id`: the container whose processes an ephemeral one sees.
fn namespaces(pod: &Pod, target_id: Option<&str>) -> NamespaceOption {
    let network = if pod.spec.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = if target_id.is_some() {
        NamespaceMode::Target
    } else if pod.spec.host_pid {
        NamespaceMode::Node
    } else if pod.spec.share_process_namespace {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    let ipc = if pod.spec.host_ipc { NamespaceMode::Node } else { NamespaceMode::Pod };
    let users = if pod.spec.host_users {
        UserNamespace { mode: NamespaceMode::Node.into(), ..UserNamespace::default() }
    } else {
        UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![USERS], gids: vec![USERS] }
    };
    NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        ipc: ipc.into(),
        target_id: target_id.unwrap_or_default().to_owned(),
        userns_options: Some(users),
    }
}

fn groups(pod: &Pod) -> Vec<i64> {
    let context = &pod.spec.security_context;
    context.fs_group.map(i64::from).into_iter().chain(context.supplemental_groups.iter().copied()).collect()
}

/// The fixed paths, and the thermal state of each CPU that has one.
fn masked_paths() -> Vec<String> {
    let thermal = (0..)
        .map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}"))
        .take_while(|cpu| std::path::Path::new(cpu).exists())
        .map(|cpu| cpu + "/thermal_throttle")
        .filter(|path| std::path::Path::new(path).exists());
    MASKED.map(str::to_owned).into_iter().chain(thermal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts(spec: &str, container: &str, image: &ImageUser) -> LinuxContainerSecurityContext {
        let pod = Pod::parse(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {{{spec} \
             containers: [{{name: c, image: i, securityContext: {{{container}}}}}]}}}}"
        ))
        .unwrap();
        of_container(&pod, &pod.spec.containers[0], None, image, false)
    }

    #[test]
    fn the_container_goes_before_the_pod_and_the_pod_before_the_image() {
        let image = ImageUser { uid: Some(7), username: String::new() };
        let user = |spec, own| contexts(spec, own, &image).run_as_user.unwrap().value;
        assert_eq!(user("securityContext: {runAsUser: 8},", "runAsUser: 9"), 9);
        assert_eq!(user("securityContext: {runAsUser: 8},", ""), 8);
        assert_eq!(user("", ""), 7);
    }

    #[test]
    fn an_image_without_a_user_runs_as_root_and_one_with_a_name_by_name() {
        assert_eq!(contexts("", "", &ImageUser::default()).run_as_user.unwrap().value, 0);
        let by_name = contexts("", "", &ImageUser { uid: None, username: "app".to_owned() });
        assert_eq!((by_name.run_as_user, by_name.run_as_username.as_str()), (None, "app"));
    }

    #[test]
    fn only_an_explicit_false_forbids_new_privileges() {
        let forbids = |own| contexts("", own, &ImageUser::default()).no_new_privs;
        assert!(!forbids(""));
        assert!(!forbids("allowPrivilegeEscalation: true"));
        assert!(forbids("allowPrivilegeEscalation: false"));
    }

    #[test]
    fn without_a_profile_seccomp_is_off_as_in_kubelet() {
        let kind = |spec, own| contexts(spec, own, &ImageUser::default()).seccomp.unwrap().profile_type();
        assert_eq!(kind("", ""), ProfileType::Unconfined);
        assert_eq!(
            kind("securityContext: {seccompProfile: {type: RuntimeDefault}},", ""),
            ProfileType::RuntimeDefault
        );
        assert_eq!(
            kind(
                "securityContext: {seccompProfile: {type: RuntimeDefault}},",
                "seccompProfile: {type: Unconfined}"
            ),
            ProfileType::Unconfined
        );
    }
}
