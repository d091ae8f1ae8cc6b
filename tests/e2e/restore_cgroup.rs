// SPDX-License-Identifier: Apache-2.0
//! What confines a restored container is the new pod's, under each cgroup version and driver, and goes with it.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::path::Path;

use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process};
use thaw_tests::kubelet::cgroup;
use thaw_tests::kubelet::cri::api::{LinuxContainerResources, UpdateContainerResourcesRequest};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

/// A pod with a memory limit whose container can run commands.
fn limited(node: &Node, name: &str, memory: &str) -> Result<Pod, HarnessError> {
    node.pod(&format!(
        "
metadata: {{name: {name}}}
spec:
  containers:
  - name: shell
    image: thaw.local/busybox:1
    command: [/bin/sh, -c, 'while :; do sleep 1; done']
    resources: {{limits: {{cpu: 500m, memory: {memory}}}}}
"
    ))
}

/// Starts a pod, freezes it, removes it, and restores it with another memory limit.
async fn restored(node: &Node, memory: &str) -> Result<PodState, HarnessError> {
    let fresh = node.run(limited(node, "fresh", "64Mi")?).await?;
    let imported = node.freeze_into_store(&fresh).await?;
    node.remove(&fresh).await?;
    node.run(limited(node, "restored", memory)?.annotated(RESTORE, &imported.reference())).await
}

/// What a command line in the container says.
async fn said(node: &Node, state: &PodState, script: &str) -> Result<String, HarnessError> {
    let command = ["sh", "-c", script].map(str::to_owned);
    let output = node.kubelet.exec(state, "", &command, 30).await?;
    Ok(output.stdout + &output.stderr)
}

/// Opens a node for what every container may do, and one that only a rule of the pod's own would open.
const OPEN: &str = "rm -f /tmp/allowed /tmp/denied; mknod /tmp/allowed c 1 5; mknod /tmp/denied c 10 229; \
                    head -c 3 /tmp/allowed | wc -c; dd if=/tmp/denied count=0 2>&1 | tail -n 1";

#[tokio::test]
async fn device_rules_are_in_force_before_and_after_an_update() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    // Who may use all devices opens both, so it is the rules that close the second.
    let open = node.shell_pod("open", "while :; do sleep 1; done")?;
    let open = open.with_containers(|container| container.security_context.privileged = true);
    let open = node.run(open).await?;
    let free = said(&node, &open, OPEN).await?;
    assert!(free.starts_with('3') && !free.contains("not permitted"), "{free}");
    node.remove(&open).await?;

    let state = restored(&node, "96Mi").await?;
    let before = said(&node, &state, OPEN).await?;
    assert!(before.starts_with('3') && before.contains("Operation not permitted"), "{before}");
    let request = UpdateContainerResourcesRequest {
        container_id: state.container("")?.id.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 80 << 20,
            ..LinuxContainerResources::default()
        }),
    };
    node.kubelet.cri.update_container_resources(request).await.unwrap();
    assert_eq!(said(&node, &state, OPEN).await?, before);
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn the_memory_limit_ends_what_takes_more() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = restored(&node, "32Mi").await?;
    // The last line of an endless line is all of it.
    let ended = said(&node, &state, "tail /dev/zero; echo status $?").await?;
    assert!(ended.contains("status 137"), "{ended}");
    assert_eq!(said(&node, &state, "echo goes on").await?, "goes on\n");
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_restore_that_the_memory_limit_ends_leaves_nothing() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let fresh = node.run_counter(node.counter_pod("fresh", 48)?).await?;
    let imported = node.freeze_into_store(&fresh).await?;
    node.remove(&fresh).await?;
    let mut small = node.counter_pod("small", 48)?.annotated(RESTORE, &imported.reference());
    let limits = limited(&node, "other", "16Mi")?.spec.containers.remove(0).resources;
    small = small.with_containers(|container| container.resources = limits.clone());
    let error = node.kubelet.run(small).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default();
    assert!(message.contains(&imported.reference()), "{error:?}");
    node.remove(&node.kubelet.find(&node.namespace, "small")?).await?;
    node.leave().await
}

/// A property of a unit of systemd.
fn property(unit: &str, name: &str) -> Result<String, HarnessError> {
    let value = process::output("systemctl", &["show", "--value", "--property", name, unit])?;
    Ok(value.trim().to_owned())
}

#[tokio::test]
async fn under_systemd_a_restored_container_is_a_scope_in_its_pods_slice_until_it_is_removed() -> Tested {
    let Some(node) = Node::enter(&[NEEDS, &[Need::SystemdDriver]].concat()).await else { return Ok(()) };
    let state = restored(&node, "96Mi").await?;
    let id = state.container("")?.id.clone();
    let scope = format!("cri-containerd-{id}.scope");
    let group = cgroup::of_container(&state.cgroup, &id);
    let slice = state.cgroup.rsplit('/').next().unwrap_or_default();
    let wanted = [
        ("ActiveState", "active"),
        ("Slice", slice),
        ("ControlGroup", group.as_str()),
        ("Delegate", "yes"),
        ("MemoryMax", "100663296"),
        ("CPUQuotaPerSecUSec", "500ms"),
    ];
    for (name, value) in wanted {
        assert_eq!(property(&scope, name)?, value, "{name}");
    }
    let (name, _) = state.named_container("")?;
    let pid = node.kubelet.pids(&state).await?[name];
    assert_eq!(process::cgroups(pid)?, [format!("0::{group}")]);
    node.remove(&state).await?;
    assert_eq!(property(&scope, "LoadState")?, "not-found");
    assert!(!Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/')).exists());
    node.leave().await
}
