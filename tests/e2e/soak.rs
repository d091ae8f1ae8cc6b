// SPDX-License-Identifier: Apache-2.0
//! Nothing grows: a thousand pods come and go, and in one pod a container is started and stopped a thousand times;
//! processes, mounts, cgroups, sockets, descriptors, files and memory are as before.
//!
//! `scripts/test soak` runs this; it takes the better part of an hour. THAW_SOAK_CYCLES is another number than 1000.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::time::Duration;

use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::shim::{Footprint, footprint, pid};
use thaw_tests::harness::thaw::remove_namespace;
use thaw_tests::harness::{Need, Node, Tested, process};
use thaw_tests::kubelet::cri::api::RemoveContainerRequest;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// What a program does that must not end; it ends at once when it is asked.
const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
/// Caches are full and pools have their size after so many cycles: growth is counted from then on.
const WARM_UP: u32 = 50;
/// One cycle of so many freezes its pod, and restores it as another.
const RESTORES: u32 = 20;
/// How long what is ending may take to be gone.
const SETTLE: Duration = Duration::from_secs(5);
/// What a shim's own memory may change by in a thousand cycles, bytes: the allocator's pages are never quite the same.
const SHIM_GROWTH: u64 = 128 << 10;
/// The threads that it may have more: when more verbs block at the same time than ever before, each takes one.
const SHIM_THREADS: usize = 2;
/// What may change in containerd, whose garbage collector takes its time.
const CONTAINERD_GROWTH: u64 = 48 << 20;
/// The descriptors that containerd may have open for a moment.
const CONTAINERD_DESCRIPTORS: usize = 8;

fn cycles() -> u32 {
    std::env::var("THAW_SOAK_CYCLES").ok().and_then(|number| number.parse().ok()).unwrap_or(1000)
}

fn containerd() -> Footprint {
    let is_it = |pid: &u32| process::read(*pid, "comm").is_ok_and(|name| name.trim() == "containerd");
    footprint(process::all().into_iter().find(is_it).unwrap()).unwrap()
}

fn assert_no_growth(what: &str, before: Footprint, after: Footprint, memory: u64, descriptors: usize) {
    println!("{what}: {before:?} became {after:?}");
    assert!(after.private_dirty <= before.private_dirty + memory, "{what}: memory {before:?} {after:?}");
    assert!(after.descriptors <= before.descriptors + descriptors, "{what}: {before:?} {after:?}");
}

async fn once(node: &Node, cycle: u32) -> Tested {
    let state = node.run(node.shell_pod(&format!("soak-{cycle}"), WAIT)?).await?;
    let output = node.kubelet.exec(&state, "", &["true".to_owned()], 30).await?;
    assert_eq!(output.exit_code, 0, "{}", output.stderr);
    if cycle.is_multiple_of(RESTORES) {
        let imported = node.freeze_into_store(&state).await?;
        let again =
            node.shell_pod(&format!("again-{cycle}"), WAIT)?.annotated(RESTORE, &imported.reference());
        let restored = node.run(again).await?;
        let output = node.kubelet.exec(&restored, "", &["true".to_owned()], 30).await?;
        assert_eq!(output.exit_code, 0, "{}", output.stderr);
        node.remove(&restored).await?;
        remove_namespace(&node.namespace)?;
    }
    // Some are asked to end and do, some are killed.
    node.kubelet.remove(&state, Some(if cycle.is_multiple_of(2) { 0 } else { 10 })).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "takes the better part of an hour; run it with scripts/test soak"]
async fn a_thousand_pods_come_and_go_and_leave_nothing() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let (cycles, mut before) = (cycles(), containerd());
    for cycle in 1..=cycles {
        if cycle == WARM_UP.min(cycles) {
            before = containerd();
        }
        once(&node, cycle).await?;
        if cycle.is_multiple_of(100) {
            println!("after {cycle} pods containerd has {:?}", containerd());
        }
    }
    tokio::time::sleep(SETTLE).await;
    assert_no_growth("containerd", before, containerd(), CONTAINERD_GROWTH, CONTAINERD_DESCRIPTORS);
    node.leave().await
}

#[tokio::test]
#[ignore = "takes the better part of an hour; run it with scripts/test soak"]
async fn a_thousand_containers_in_one_pod_leave_nothing_in_its_shim() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let mut state = node.run(node.shell_pod("resident", WAIT)?).await?;
    let shim = pid(&state.sandbox_id)?;
    let (cycles, mut before) = (cycles(), footprint(shim)?);
    for cycle in 1..=cycles {
        if cycle == WARM_UP.min(cycles) {
            tokio::time::sleep(SETTLE).await;
            before = footprint(shim)?;
        }
        let old = state.container("")?.id.clone();
        let output = node.kubelet.exec(&state, "", &["true".to_owned()], 30).await?;
        assert_eq!(output.exit_code, 0, "{}", output.stderr);
        node.kubelet.restart_container(&mut state, "").await?;
        node.kubelet.cri.remove_container(RemoveContainerRequest { container_id: old }).await.unwrap();
        if cycle.is_multiple_of(100) {
            println!("after {cycle} containers the shim has {:?}", footprint(shim)?);
        }
    }
    tokio::time::sleep(SETTLE).await;
    let after = footprint(shim)?;
    assert_no_growth("the shim", before, after, SHIM_GROWTH, 0);
    assert!(after.threads <= before.threads + SHIM_THREADS, "{before:?} {after:?}");
    node.remove(&state).await?;
    node.leave().await
}
