// SPDX-License-Identifier: Apache-2.0
//! Containers that start normally in spite of their annotation.

use crate::pod::{Pod, fail_to_create, says, starts_fresh};
use crate::support::checkpoint::Images;
use crate::support::node::Node;
use crate::support::soon;

#[tokio::test]
async fn a_failed_restore_becomes_a_normal_start_where_the_pod_says_so() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nlog Error (criu/x.c:1): no luck\nreply error 5\nexit 1");
    starts_fresh(&pod, pod.container("c1", "latest").annotate("thaw.dev/if-failed", "start")).await;
}

#[tokio::test]
async fn a_failed_restore_on_a_snapshot_without_layers_becomes_a_normal_start() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nreply error 5\nexit 1");
    let mut bundle = pod.container("c1", "latest").annotate("thaw.dev/if-failed", "start");
    bundle.without_layers(&node);
    starts_fresh(&pod, bundle).await;
}

#[tokio::test]
async fn a_restore_that_cannot_hold_becomes_a_normal_start_where_the_pod_says_so() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().with_capabilities(1 << 21).publish(&node);
    starts_fresh(&pod, pod.container("c1", "latest").annotate("thaw.dev/if-failed", "start")).await;
}

#[tokio::test]
async fn a_failed_restore_whose_normal_start_fails_too_is_an_error_and_leaves_nothing() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("exit 1");
    let bundle = pod.container("c1", "latest").annotate("thaw.dev/if-failed", "start");
    let before = pod.shim.traces(&bundle);
    for verb in ["create", "start"] {
        node.runc(&format!("fail {verb} the runtime is out of order"));
        pod.shim.create(&bundle).await.unwrap();
        let fault = pod.shim.start("c1").await.unwrap_err();
        says(&fault, &["the runtime is out of order"]);
        node.runc("");
        soon("deletion", pod.shim.delete("c1", "")).await.unwrap();
        pod.shim.is_as_before(&bundle, &before).await;
    }
}

#[tokio::test]
async fn a_missing_checkpoint_is_a_normal_start_for_latest_and_an_error_for_a_name() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let gone = "20261122T181500.123Z-7f3a";
    starts_fresh(&pod, pod.container("c1", "latest")).await;
    starts_fresh(&pod, pod.container("c2", gone).annotate("thaw.dev/if-missing", "start")).await;
    says(&fail_to_create(&pod, &pod.container("c3", gone)).await, &["main", gone, "thaw.dev/if-missing"]);
    let strict = pod.container("c4", "latest").annotate("thaw.dev/if-missing", "fail");
    says(&fail_to_create(&pod, &strict).await, &["main", "team", "counter"]);
}
