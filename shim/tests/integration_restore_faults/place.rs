// SPDX-License-Identifier: Apache-2.0
//! Where a restored process is.

use std::path::PathBuf;

use crate::pod::Pod;
use crate::support::checkpoint::Images;
use crate::support::node::Node;

fn cgroup_namespace(pid: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap()
}

/// Restores a container with or without a cgroup namespace in its spec.
async fn restored(own: bool) {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nnotify post-restore\nreply ok");
    let mut bundle = pod.container("c1", "latest");
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| own || namespace["type"] != "cgroup");
    shim.create(&bundle).await.unwrap();
    let pid = shim.start("c1").await.unwrap().to_string();
    assert_eq!(cgroup_namespace(&pid) != cgroup_namespace("self"), own);
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroups.lines().all(|line| line.ends_with("/c1")), "{cgroups}");
    shim.kill("c1", "", 9).await.unwrap();
    shim.wait("c1", "").await.unwrap();
    shim.delete("c1", "").await.unwrap();
}

/// CRIU up to 4.2 restores none when it is told to leave cgroups alone: the shim makes it before CRIU runs.
#[tokio::test]
async fn a_process_gets_a_cgroup_namespace_of_its_own_where_the_spec_has_one() {
    restored(true).await;
}

#[tokio::test]
async fn a_process_shares_the_cgroup_namespace_of_the_host_where_the_spec_has_none() {
    restored(false).await;
}
