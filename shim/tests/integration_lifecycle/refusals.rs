// SPDX-License-Identifier: Apache-2.0
//! What cannot be done: the error says why, and nothing is left.

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::ttrpc::Code;
use protobuf::well_known_types::any::Any;

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::node::{Node, field};

#[tokio::test]
async fn a_create_that_the_runtime_refuses_says_why_and_leaves_nothing() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    node.runc("fail create exec: \"nonsense\": executable file not found in $PATH");
    let refused = shim.create(&bundle).await.unwrap_err();
    assert_eq!(refused.code, Code::UNKNOWN);
    for part in ["OCI runtime create failed", "\"nonsense\": executable file not found"] {
        assert!(refused.text.contains(part), "{}", refused.text);
    }
    shim.is_as_before(&bundle, &before).await;
    assert_eq!(node.events.all().len(), 0);
    assert_eq!(shim.delete("c1", "").await.unwrap_err().code, Code::NOT_FOUND);
    node.runc("");
    shim.run(&bundle).await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_mounted_is_refused_and_leaves_nothing() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(&node, "c1", &SLEEP);
    let mut missing = bundle.mounts[0].clone();
    missing.options = vec!["lowerdir=/nonexistent/a:/nonexistent/b".into()];
    bundle.mounts.push(missing);
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    let refused = shim.create(&bundle).await.unwrap_err();
    assert!(refused.text.contains("mount the root file system"), "{}", refused.text);
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn a_start_that_the_runtime_refuses_says_why_and_the_container_can_be_deleted() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    shim.create(&bundle).await.unwrap();
    node.runc("fail start cannot start a container that has stopped");
    let refused = shim.start("c1").await.unwrap_err();
    assert!(refused.text.contains("cannot start a container that has stopped"), "{}", refused.text);
    shim.delete("c1", "").await.unwrap();
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    let request = CreateTaskRequest {
        id: "c1".into(),
        bundle: bundle.dir.display().to_string(),
        checkpoint: "/some/where".into(),
        options: Some(node.options()).into(),
        ..Default::default()
    };
    let image = shim.create_as(&request).await.unwrap_err();
    assert_eq!(image.code, Code::INVALID_ARGUMENT);
    assert!(image.text.contains("thaw.dev/restore"), "{}", image.text);

    bundle.options = Any { type_url: "runtimeoptions.v1.Options".into(), ..Default::default() };
    let options = shim.create(&bundle).await.unwrap_err();
    assert_eq!(options.code, Code::INVALID_ARGUMENT);
    assert!(options.text.contains("io.containerd.runc.v2"), "{}", options.text);

    std::fs::write(bundle.dir.join("config.json"), "{").unwrap();
    assert!(shim.create_as(&CreateTaskRequest { checkpoint: String::new(), ..request }).await.is_err());
}

/// Probes that fail write a line each, for months.
#[tokio::test]
async fn the_last_line_of_a_long_log_is_the_one_that_is_told() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    let old = "{\"level\":\"error\",\"msg\":\"an old failure\",\"time\":\"2026-11-22T18:15:00Z\"}\n";
    std::fs::write(bundle.dir.join("log.json"), old.repeat(2000)).unwrap();
    shim.exec("c1", "e1", &["/no/such/program"]).await.unwrap();
    let refused = shim.start_exec("c1", "e1").await.unwrap_err();
    assert!(refused.text.contains("/no/such/program"), "{}", refused.text);
}

#[tokio::test]
async fn an_old_failure_is_not_told_for_a_new_one() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    shim.exec("c1", "e1", &["/no/such/program"]).await.unwrap();
    shim.start_exec("c1", "e1").await.unwrap_err();
    node.runc("mute pause");
    let refused = shim.pause("c1").await.unwrap_err();
    assert!(!refused.text.contains("/no/such/program"), "{}", refused.text);
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_named() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    bundle.options.value = field(6, node.path("no-such-runc").display().to_string().as_bytes());
    let refused = shim.create(&bundle).await.unwrap_err();
    assert!(refused.text.contains("no-such-runc"), "{}", refused.text);
    shim.is_as_before(&bundle, &before).await;
}
