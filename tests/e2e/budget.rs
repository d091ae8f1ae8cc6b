// SPDX-License-Identifier: Apache-2.0
//! What a pod's shim may cost: threads and descriptors, and memory beside the shim that ships with containerd.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::time::Duration;

use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::shim::{Footprint, footprint, pid};
use thaw_tests::harness::{HarnessError, Need, Node, Tested};
use thaw_tests::kubelet::cri::api::ContainerStatsRequest;
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// The handler of containerd's own shim.
const RUNC: &str = "runc";
/// What a program does that must not end; a bare sleep would after its restore.
const WAIT: &str = "while :; do sleep 1000; done";
/// The threads of a shim with nothing to do: the one that runs everything, and those that wait to do what blocks.
const THREADS: usize = 5;
/// How many pods run at a time while memory is measured: what they share counts for each with its share.
const PODS: usize = 10;
/// How long shims are left alone before they are looked at.
const SETTLE: Duration = Duration::from_secs(3);

/// What a shim may take of what containerd's own takes.
const RSS: f64 = 0.25;
const PSS: f64 = 0.2;
const PRIVATE_DIRTY: f64 = 0.15;

fn shim(state: &PodState) -> Result<Footprint, HarnessError> {
    footprint(pid(&state.sandbox_id)?)
}

/// Uses a pod as kubelet does with its probes and its metrics.
async fn use_it(node: &Node, state: &PodState, times: usize) -> Tested {
    for _ in 0..times {
        let output = node.kubelet.exec(state, "", &["true".to_owned()], 30).await?;
        assert_eq!(output.exit_code, 0, "{}", output.stderr);
        let container_id = state.container("")?.id.clone();
        node.kubelet.cri.container_stats(ContainerStatsRequest { container_id }).await.unwrap();
    }
    Ok(())
}

/// The median of each thing over the shims of these pods, one of which is used.
async fn crowd(
    node: &Node,
    pod: impl Fn(&str) -> Result<Pod, HarnessError>,
) -> Result<Footprint, HarnessError> {
    let mut states = Vec::new();
    for number in 1..=PODS {
        let state = node.run(pod(&format!("pod-{number}"))?).await?;
        use_it(node, &state, 3).await?;
        states.push(state);
    }
    tokio::time::sleep(SETTLE).await;
    let shims: Vec<_> = states.iter().map(shim).collect::<Result<_, _>>()?;
    for state in &states {
        node.remove(state).await?;
    }
    let median = |of: fn(&Footprint) -> u64| {
        let mut all: Vec<_> = shims.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    Ok(Footprint {
        rss: median(|shim| shim.rss),
        pss: median(|shim| shim.pss),
        private_dirty: median(|shim| shim.private_dirty),
        threads: shims[0].threads,
        descriptors: shims[0].descriptors,
    })
}

#[allow(clippy::cast_precision_loss, reason = "no process has 2^53 bytes")]
fn within(what: &str, ours: u64, theirs: u64, limit: f64) {
    let ratio = ours as f64 / theirs as f64;
    println!("{what}: {} KiB of {} KiB, {ratio:.3}", ours >> 10, theirs >> 10);
    assert!(ratio <= limit, "{what} of a shim is {ratio:.3} of that of containerd's own, more than {limit}");
}

#[tokio::test]
async fn a_shim_has_few_threads_and_no_more_descriptors_after_use() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = node.run(node.shell_pod("used", WAIT)?).await?;
    use_it(&node, &state, 1).await?;
    tokio::time::sleep(SETTLE).await;
    let before = shim(&state)?;
    use_it(&node, &state, 20).await?;
    tokio::time::sleep(SETTLE).await;
    let after = shim(&state)?;
    assert!(after.threads <= THREADS, "{after:?}");
    assert_eq!(after.descriptors, before.descriptors, "{before:?} {after:?}");
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn the_shim_of_a_restored_pod_has_as_few() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let old = node.run(node.shell_pod("before", WAIT)?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let new = node.run(node.shell_pod("after", WAIT)?.annotated(RESTORE, &imported.reference())).await?;
    use_it(&node, &new, 1).await?;
    tokio::time::sleep(SETTLE).await;
    let before = shim(&new)?;
    use_it(&node, &new, 10).await?;
    tokio::time::sleep(SETTLE).await;
    let after = shim(&new)?;
    assert!(after.threads <= THREADS, "{after:?}");
    assert_eq!(after.descriptors, before.descriptors, "{before:?} {after:?}");
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn a_shim_takes_a_fraction_of_the_memory_of_containerds_own() -> Tested {
    let Some(node) = Node::enter(&[&[Need::ReleaseBuild], NEEDS].concat()).await else { return Ok(()) };
    let pod = |name: &str| node.shell_pod(name, WAIT);
    let theirs = crowd(&node, |name| Ok(pod(name)?.under(RUNC))).await?;
    let ours = crowd(&node, pod).await?;
    within("rss", ours.rss, theirs.rss, RSS);
    within("pss", ours.pss, theirs.pss, PSS);
    within("private dirty", ours.private_dirty, theirs.private_dirty, PRIVATE_DIRTY);

    let old = node.run(pod("before")?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let restored = crowd(&node, |name| Ok(pod(name)?.annotated(RESTORE, &imported.reference()))).await?;
    within("rss after a restore", restored.rss, theirs.rss, RSS);
    within("pss after a restore", restored.pss, theirs.pss, PSS);
    within("private dirty after a restore", restored.private_dirty, theirs.private_dirty, PRIVATE_DIRTY);
    node.leave().await
}
