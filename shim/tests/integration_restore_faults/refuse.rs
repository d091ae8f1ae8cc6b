// SPDX-License-Identifier: Apache-2.0
//! What is refused at Create, before anything is made.

use crate::pod::{FRESH, Pod, RESTORE, fail_to_create, fail_to_start, name, says, starts_fresh};
use crate::support::bundle::Bundle;
use crate::support::checkpoint::Images;
use crate::support::node::Node;

#[tokio::test]
async fn annotations_that_are_not_understood_are_errors() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    let plain = |id| Bundle::restored(&node, id, "s1", pod.sandbox, &FRESH);
    let unknown = plain("c1").annotate("thaw.dev/restart", "latest");
    says(&fail_to_create(&pod, &unknown).await, &["main", "thaw.dev/restart", "thaw.dev/if-missing"]);
    let value = pod.container("c2", "latest").annotate("thaw.dev/if-failed", "ignore");
    says(&fail_to_create(&pod, &value).await, &["main", "thaw.dev/if-failed", "ignore", "start"]);
    // The sandbox has it as well, so it comes from the pod and not from the node's plugin.
    let sandbox = r#"{"ociVersion": "1.2.0", "annotations": {"thaw.dev/internal.plan": "x"}}"#;
    std::fs::write(node.bundles().join("s1/config.json"), sandbox).unwrap();
    let internal = pod.container("c3", "latest").annotate("thaw.dev/internal.plan", "x");
    says(&fail_to_create(&pod, &internal).await, &["main", "thaw.dev/internal.plan"]);
}

#[tokio::test]
async fn a_path_instead_of_a_name_and_a_checkpoint_of_another_namespace_are_refused() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let id = Images::new().publish(&node);
    let path = node.path("store").join(name(&id)).display().to_string();
    for (number, reference) in
        [path.as_str(), "../team/counter", "counter/../../x", &name(&id)].iter().enumerate()
    {
        let fault = fail_to_create(&pod, &pod.container(&format!("c{number}"), reference)).await;
        says(&fault, &["main", "thaw.dev/restore"]);
    }
    let foreign = pod.container("c9", &format!("counter/{id}"));
    let foreign = foreign.annotate("io.kubernetes.cri.sandbox-namespace", "other");
    says(&fail_to_create(&pod, &foreign).await, &["main", "other"]);
}

#[tokio::test]
async fn a_damaged_checkpoint_is_refused_with_what_is_damaged() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let id = Images::new().publish(&node);
    let images = node.path("store").join(name(&id)).join("main/checkpoint");
    std::fs::write(images.join("pages-1.img"), "short").unwrap();
    let fault = fail_to_create(&pod, &pod.container("c1", "latest")).await;
    says(&fault, &["main", &name(&id), "pages-1.img has 5 bytes"]);

    let mut images = Images::new();
    images.files.insert("checkpoint/pstree.img".into(), b"no image".to_vec());
    let id = images.publish(&node);
    let fault = fail_to_create(&pod, &pod.container("c2", "latest")).await;
    says(&fault, &["main", &name(&id), "pstree.img"]);
}

#[tokio::test]
async fn a_restore_that_cannot_hold_is_refused_with_every_reason() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let id = Images::new().with_capabilities(1 << 21).publish(&node);
    let mut bundle =
        pod.container("c1", "latest").annotate("io.kubernetes.cri.image-name", "docker.io/library/other:1");
    bundle.spec["process"]["user"] = serde_json::json!({ "uid": 1000, "gid": 1000 });
    let fault = fail_to_create(&pod, &bundle).await;
    says(&fault, &["main", &name(&id), "counter:1", "other:1", "CAP_SYS_ADMIN", "1000"]);
}

#[tokio::test]
async fn a_snapshot_without_layers_is_as_it_was_after_a_refusal() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().with_capabilities(1 << 21).publish(&node);
    let mut bundle = pod.container("c1", "latest");
    let snapshot = bundle.without_layers(&node);
    fail_to_create(&pod, &bundle).await;
    assert_eq!(names(&snapshot), ["etc", "from-image", "proc"]);
}

#[tokio::test]
async fn a_snapshot_without_layers_is_as_it_was_after_a_restore_that_failed() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("exit 1");
    let mut bundle = pod.container("c1", "latest");
    let snapshot = bundle.without_layers(&node);
    fail_to_start(&pod, bundle).await;
    assert_eq!(names(&snapshot), ["etc", "from-image", "proc"]);
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_configuration_or_store_that_cannot_be_used_is_named_with_the_reason() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    std::fs::write(node.path("config.toml"), "root = [\"/a\"]").unwrap();
    let fault = fail_to_create(&pod, &pod.container("c1", "latest")).await;
    says(&fault, &["main", "config.toml", "unknown field `root`"]);

    std::fs::write(node.path("config.toml"), format!("roots = [{:?}]", node.path("config.toml"))).unwrap();
    let fault = fail_to_create(&pod, &pod.container("c2", "latest")).await;
    says(&fault, &["main", "config.toml", "Not a directory"]);
}

#[tokio::test]
async fn what_the_checkpoint_does_not_hold_starts_normally_unless_it_is_named() {
    let Some(node) = Node::new().await else { return };
    let sandbox = Bundle::sandbox(&node, "s2").annotate(RESTORE, "latest");
    let other = node.shim(&sandbox).await;
    assert_ne!(other.create(&sandbox).await.unwrap(), 0, "a sandbox is never restored");
    let pod = Pod::new(&node).await;
    let id = Images::new().publish(&node);
    let sidecar = |id, key: &str, reference: &str| {
        let plain = Bundle::restored(&node, id, "s1", pod.sandbox, &FRESH);
        plain.annotate("io.kubernetes.cri.container-name", "sidecar").annotate(key, reference)
    };
    starts_fresh(&pod, sidecar("c1", RESTORE, "latest")).await;
    let named = sidecar("c2", "thaw.dev/restore.sidecar", id.as_str());
    says(&fail_to_create(&pod, &named).await, &["sidecar", &name(&id), "holds main"]);
}
