// SPDX-License-Identifier: Apache-2.0
//! Checkpoints of ordinary containers.

use std::time::Duration;

use containerd_shim_protos::api::Status;

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::node::Node;
use crate::support::traces;

#[tokio::test]
async fn a_container_is_checkpointed_and_goes_on() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    let pid = shim.run(&bundle).await;
    let before = shim.traces(&bundle);
    let images = node.path("images");
    std::fs::create_dir(&images).unwrap();
    node.criu("notify pre-dump\nimage inventory.img x\nnotify post-dump\nreply ok");
    shim.checkpoint("c1", &images).await.unwrap();
    assert_eq!(shim.story("c1", "checkpointed").await, ["create", "start", "checkpointed"]);
    assert!(images.join("inventory.img").exists());
    let descriptors = std::fs::read_to_string(images.join("descriptors.json")).unwrap();
    let descriptors: Vec<String> = serde_json::from_str(&descriptors).unwrap();
    assert_eq!(descriptors.len(), 3);
    assert!(traces::alive(pid));
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn a_checkpoint_that_criu_refuses_says_why_and_the_container_goes_on() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    let pid = shim.run(&bundle).await;
    let before = shim.traces(&bundle);
    let images = node.path("images");
    std::fs::create_dir(&images).unwrap();
    node.criu("log Error (criu/files.c:1): io_uring is not supported\nreply error 95\nexit 1");
    let refused = shim.checkpoint("c1", &images).await.unwrap_err();
    for part in ["c1", "CRIU", "io_uring is not supported"] {
        assert!(refused.text.contains(part), "{}", refused.text);
    }
    assert!(traces::alive(pid));
    assert_eq!(shim.status("c1").await, Status::RUNNING);
    assert_eq!(node.events.story("c1"), ["create", "start"]);
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn the_configured_criu_makes_checkpoints_too() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    for directory in ["elsewhere", "images"] {
        std::fs::create_dir(node.path(directory)).unwrap();
    }
    std::fs::rename(node.path("bin/criu"), node.path("elsewhere/criu")).unwrap();
    std::fs::write(node.path("elsewhere/criu.script"), "notify pre-dump\nreply ok").unwrap();
    node.use_criu("elsewhere/criu");
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    shim.checkpoint("c1", &node.path("images")).await.unwrap();
}

#[tokio::test]
async fn a_frozen_container_goes_on_when_nobody_waits_for_its_checkpoint_any_more() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    let images = node.path("images");
    std::fs::create_dir(&images).unwrap();
    // CRIU takes longer than whoever asked waits, however late it starts.
    node.criu("notify pre-dump\nsleep 1000\nnotify post-dump\nreply ok");
    shim.pause("c1").await.unwrap();
    assert!(shim.checkpoint_is_late("c1", &images, Duration::from_millis(200)).await);
    let story = shim.story("c1", "resumed").await;
    assert_eq!(story, ["create", "start", "paused", "checkpointed", "resumed"]);
    assert_eq!(shim.status("c1").await, Status::RUNNING);
}
