// SPDX-License-Identifier: Apache-2.0
//! What a container uses, and what it may.

use containerd_shim_protos::ttrpc::Code;
use serde_json::json;

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::node::Node;

#[tokio::test]
async fn stats_answer_from_start_to_delete() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.create(&bundle).await.unwrap();
    assert_eq!(shim.stats("c1").await.unwrap_err().code, Code::NOT_FOUND);
    shim.start("c1").await.unwrap();
    let metrics = ["io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"];
    let kind = shim.stats("c1").await.unwrap();
    assert!(metrics.contains(&kind.as_str()), "{kind}");
    shim.kill("c1", "", 9).await.unwrap();
    shim.wait("c1", "").await.unwrap();
    // CRI looks for the out-of-memory killer's work then.
    assert_eq!(shim.stats("c1").await.unwrap(), kind);
}

#[tokio::test]
async fn new_limits_reach_the_runtime() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    shim.update("c1", &json!({ "memory": { "limit": 67_108_864 } })).await.unwrap();
    let got = std::fs::read(node.runc_root().join("c1/resources.json")).unwrap();
    let got: serde_json::Value = serde_json::from_slice(&got).unwrap();
    assert_eq!(got["memory"]["limit"], 67_108_864);
    assert_eq!(shim.update("c1", &json!("all")).await.unwrap_err().code, Code::INVALID_ARGUMENT);
}
