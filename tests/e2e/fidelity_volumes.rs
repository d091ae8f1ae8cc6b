// SPDX-License-Identifier: Apache-2.0
//! What a frozen pod had in /dev/shm and in its volumes, in a new one.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::time::Duration;

use thaw_tests::harness::checks::{self, Checks};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Need, Node, Tested};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// How long a program may take to set everything up, and how often to look.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
const VOLUMES: &str = "thaw.dev/volumes";

/// A pod with files in /dev/shm and in these of its two emptyDir volumes: `data` on disk and `mem` in memory.
fn pod(node: &Node, name: &str, used: &str) -> Result<Pod, HarnessError> {
    let mut pod = node.workload_pod(name, "volumes.py")?;
    let volumes = "[{name: data, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory}}]";
    let mounts = "[{name: data, mountPath: /data}, {name: mem, mountPath: /mem, subPath: part}]";
    pod.spec.volumes.extend(node.parsed::<Vec<_>>(volumes)?);
    let container = &mut pod.spec.containers[0];
    container.volume_mounts.extend(node.parsed::<Vec<_>>(mounts)?);
    container.set_env("EMPTY_DIRS", used);
    Ok(pod)
}

async fn check(node: &Node, state: &PodState) -> Result<Checks, HarnessError> {
    checks::ask(node, state, "volumes.py", "all").await
}

/// What the runtime says when it cannot run a pod, which is removed.
async fn refused(node: &Node, pod: Pod) -> Result<String, HarnessError> {
    let name = pod.metadata.name.clone();
    let error = node.kubelet.run(pod).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default().to_owned();
    node.remove(&node.kubelet.find(&node.namespace, &name)?).await?;
    Ok(message)
}

#[tokio::test]
async fn shm_and_named_empty_dirs_come_back_as_they_were() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let named = |name| pod(&node, name, "/data:/mem").map(|pod| pod.annotated(VOLUMES, "data, mem"));
    let mut state = node.run_checked(named("life-0")?).await?;
    for life in ["life-1", "life-2"] {
        let imported = node.freeze_into_store(&state).await?;
        check(&node, &state).await?.assert_ok();
        node.remove(&state).await?;
        state = node.run(named(life)?.annotated(RESTORE, &imported.reference())).await?;
        check(&node, &state).await?.assert_ok();
    }
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn volumes_that_the_pod_or_the_checkpoint_lacks_are_named() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let old = node.run_checked(pod(&node, "before", "")?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let again = pod(&node, "after", "")?.annotated(RESTORE, &imported.reference());
    let message = refused(&node, again.annotated(VOLUMES, "data,scratch")).await?;
    for part in ["\"scratch\"", "data, mem", "\"data\"", "before the pod is frozen"] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    node.leave().await
}

#[tokio::test]
async fn a_failed_restore_leaves_nothing_in_the_volumes() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let named = |name| pod(&node, name, "/data:/mem").map(|pod| pod.annotated(VOLUMES, "data,mem"));
    let old = node.run_checked(named("before")?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    // CRIU finds the damage after the volumes have been filled.
    let image = imported.dir().join("program/checkpoint/mm-1.img");
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xff);
    std::fs::write(&image, bytes).unwrap();
    let fallback = named("after")?.annotated(RESTORE, &imported.reference());
    let new = node.run(fallback.annotated("thaw.dev/if-failed", "start")).await?;
    // It sets everything up anew, which fails where anything of the old one is left.
    let began = std::time::Instant::now();
    let checks = loop {
        match check(&node, &new).await {
            Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            checked => break checked?,
        }
    };
    checks.assert_ok();
    node.remove(&new).await?;
    node.leave().await
}
