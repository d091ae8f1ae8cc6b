// SPDX-License-Identifier: Apache-2.0
//! How containerd gets a shim, asks what it is, and cleans up after it: the real program, both of the ways in which
//! containerd 2.0 to 2.3 talk to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::tests_outside_test_module
)]

mod support;

use std::process::{Command, Output};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;
use serde_json::Value;

use support::bundle::Bundle;
use support::node::{Node, Protocol, feed, field};
use support::traces;

const SLEEP: [&str; 2] = ["sleep", "1000"];

/// The address in a reply of containerd 2.0 to 2.2; nothing else may be in it.
#[track_caller]
fn json_address(output: &Output) -> String {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&reply["version"], &reply["protocol"]), (&3.into(), &"ttrpc".into()), "{reply}");
    assert_eq!(reply.as_object().unwrap().len(), 3, "{reply}");
    reply["address"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn containerd_before_2_3_sends_options_and_gets_json() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let address = json_address(&node.start(&bundle, Protocol::Options));
    assert!(address.starts_with("unix:///run/containerd/s/"), "{address}");
    assert_eq!(std::fs::read_to_string(bundle.dir.join("address")).unwrap(), address);
    let shim = node.connect(&address).await;
    shim.run(&bundle).await;
    assert_eq!(shim.story("c1", "start").await, ["create", "start"]);
}

#[tokio::test]
async fn containerd_2_3_sends_parameters_and_gets_a_bootstrap_result() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let output = node.start(&bundle, Protocol::Bootstrap);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let address = std::fs::read_to_string(bundle.dir.join("address")).unwrap();
    assert!(address.starts_with(&format!("unix://{}/", node.path("s").display())), "{address}");
    // Version 3 (1, a varint), address (2), protocol (3).
    let golden = [vec![0x08, 3], field(2, address.as_bytes()), field(3, b"ttrpc")].concat();
    assert_eq!(output.stdout, golden);
    let shim = node.connect(&address).await;
    shim.run(&bundle).await;
    assert_eq!(shim.story("c1", "start").await, ["create", "start"]);
}

#[tokio::test]
async fn parameters_for_another_container_are_refused() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    bundle.write();
    let output = feed(node.command("c1", "start"), &node.start_input("c2", Protocol::Bootstrap));
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("c2"), "{output:?}");
}

#[tokio::test]
async fn a_start_without_an_address_for_events_fails_and_says_so() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    bundle.write();
    let output = feed(node.command("c1", "start"), &[]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("TTRPC_ADDRESS"), "{output:?}");
}

#[tokio::test]
async fn all_containers_of_a_sandbox_share_its_shim() {
    let Some(node) = Node::new().await else { return };
    let group = "io.kubernetes.cri.sandbox-id";
    let [sandbox, one, other] = [("s1", "s1"), ("c1", "s1"), ("c2", "s2")]
        .map(|(id, pod)| Bundle::new(&node, id, &SLEEP).annotate(group, pod));
    let address = json_address(&node.start(&sandbox, Protocol::Options));
    let shim = node.connect(&address).await;
    assert_eq!(json_address(&node.start(&one, Protocol::Options)), address);
    assert_eq!(std::fs::read_to_string(one.dir.join("address")).unwrap(), address);
    assert_eq!(node.connect(&address).await.pid, shim.pid, "one process");
    let elsewhere = json_address(&node.start(&other, Protocol::Options));
    assert_ne!(elsewhere, address);
    assert_ne!(node.connect(&elsewhere).await.pid, shim.pid);
}

#[tokio::test]
async fn the_socket_of_a_dead_shim_does_not_keep_the_next_from_starting() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let dead = node.shim(&bundle).await;
    dead.die().await;
    let next = node.shim(&bundle).await;
    assert_eq!(next.address, dead.address);
    assert_ne!(next.pid, dead.pid);
}

#[tokio::test]
async fn the_shim_ends_with_its_last_container_and_removes_its_socket() {
    let Some(node) = Node::new().await else { return };
    let [one, two] = ["c1", "c2"].map(|id| Bundle::new(&node, id, &["true"]));
    let shim = node.shim(&one).await;
    for bundle in [&one, &two] {
        shim.run(bundle).await;
        shim.wait(&bundle.id, "").await.unwrap();
    }
    shim.delete("c1", "").await.unwrap();
    shim.shutdown().await.unwrap();
    assert_eq!(shim.wait("c2", "").await.unwrap(), 0, "it is still there for the other");
    shim.delete("c2", "").await.unwrap();
    shim.shutdown().await.unwrap();
    shim.is_gone().await;
    assert_eq!(node.events.story("c2").last().map(String::as_str), Some("delete"), "all events were sent");
    let socket = shim.address.strip_prefix("unix://").unwrap();
    support::eventually("the socket's end", || (!std::path::Path::new(socket).exists()).then_some(())).await;
}

#[tokio::test]
async fn info_tells_the_version_and_what_the_oci_runtime_can_do() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let mut info = Command::new(node.command(&bundle.id, "").get_program());
    info.arg("-info").env_clear();
    let output = feed(info, &node.options().write_to_bytes().unwrap());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.thaw.v1");
    assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
    let features: Value = serde_json::from_slice(&info.features.value).unwrap();
    assert_eq!(features["ociVersionMax"], "1.2.0");
    assert_eq!(info.features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
}

/// The answer of `delete`, and nothing else on stdout.
#[track_caller]
fn deleted(output: &Output) -> DeleteResponse {
    assert!(output.status.success(), "{output:?}");
    let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(response.exit_status, 137);
    response
}

#[tokio::test]
async fn delete_of_a_bundle_with_nothing_in_it_succeeds() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    std::fs::remove_dir(bundle.dir.join("rootfs")).unwrap();
    assert_eq!(deleted(&node.delete("c1")).pid, 0);
}

#[tokio::test]
async fn delete_ends_what_a_killed_shim_has_left() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    let pid = shim.run(&bundle).await;
    shim.exec("c1", "e1", &SLEEP).await.unwrap();
    let exec = shim.start_exec("c1", "e1").await.unwrap();
    shim.die().await;
    assert!(traces::alive(pid) && traces::alive(exec), "only the shim is dead");
    assert_eq!(deleted(&node.delete("c1")).pid, pid);
    assert!(!traces::alive(pid) && !traces::alive(exec));
    let left: Vec<_> = shim.traces(&bundle).difference(&before).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn delete_of_a_sandbox_ends_all_containers_of_its_killed_shim() {
    let Some(node) = Node::new().await else { return };
    let group = "io.kubernetes.cri.sandbox-id";
    let [sandbox, one, other] = [("s1", "s1"), ("c1", "s1"), ("c2", "s2")]
        .map(|(id, pod)| Bundle::new(&node, id, &SLEEP).annotate(group, pod));
    let (shim, bystander) = (node.shim(&sandbox).await, node.shim(&other).await);
    let (pause, pid, spared) = (shim.run(&sandbox).await, shim.run(&one).await, bystander.run(&other).await);
    shim.die().await;
    deleted(&node.delete("s1"));
    assert!(!traces::alive(pause) && !traces::alive(pid));
    assert!(traces::alive(spared), "the container of another pod");
    assert_eq!((sandbox.read("from-image"), one.read("from-image")), (None, None), "unmounted");
    assert_eq!(other.read("from-image").as_deref(), Some("c2"));
}
