// SPDX-License-Identifier: Apache-2.0
//! Signals, and the exits that they cause.

use containerd_shim_protos::api::Status;
use containerd_shim_protos::ttrpc::Code;

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::node::Node;

#[tokio::test]
async fn a_process_handles_the_signals_that_it_is_sent() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(
        &node,
        "c1",
        &["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"],
    );
    let (mut stdout, _stderr) = bundle.with_output();
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    stdout.expect("ready").await;
    shim.kill("c1", "", 15).await.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 7);
}

/// The stop signal of images that run systemd is SIGRTMIN+3.
#[tokio::test]
async fn a_real_time_signal_can_be_sent_and_an_exit_by_one_is_seen() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    shim.kill("c1", "", 37).await.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 128 + 37);
}

#[tokio::test]
async fn an_exit_by_a_real_time_signal_is_not_lost() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &["sh", "-c", "kill -40 $$"]);
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    assert_eq!(shim.wait("c1", "").await.unwrap(), 128 + 40);
}

#[tokio::test]
async fn a_container_is_paused_and_goes_on_and_dies_while_paused() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.create(&bundle).await.unwrap();
    assert_eq!(shim.pause("c1").await.unwrap_err().code, Code::FAILED_PRECONDITION);
    shim.start("c1").await.unwrap();
    assert_eq!(shim.resume("c1").await.unwrap_err().code, Code::FAILED_PRECONDITION);
    shim.pause("c1").await.unwrap();
    assert_eq!(shim.status("c1").await, Status::PAUSED);
    shim.resume("c1").await.unwrap();
    assert_eq!(shim.status("c1").await, Status::RUNNING);
    shim.pause("c1").await.unwrap();
    shim.kill("c1", "", 9).await.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 137);
    let story = shim.story("c1", "exit").await;
    assert_eq!(story, ["create", "start", "paused", "resumed", "paused", "exit 137"]);
    assert!(node.runc_calls().iter().rev().any(|call| call == "resume c1"), "a frozen task cannot die");
}
