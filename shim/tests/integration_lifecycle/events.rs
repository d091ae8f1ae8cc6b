// SPDX-License-Identifier: Apache-2.0
//! What containerd is told without asking.

use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskStart};

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::eventually;
use crate::support::node::Node;

#[tokio::test]
async fn events_say_what_containerd_needs_to_know() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(&node, "c1", &SLEEP);
    let _streams = bundle.with_output();
    let shim = node.shim(&bundle).await;
    let pid = shim.run(&bundle).await;
    shim.kill("c1", "", 15).await.unwrap();
    shim.wait("c1", "").await.unwrap();
    shim.delete("c1", "").await.unwrap();
    shim.story("c1", "delete").await;
    let create: TaskCreate = node.events.of("/tasks/create").remove(0);
    assert_eq!((create.pid, create.bundle), (pid, bundle.dir.display().to_string()));
    assert_eq!((create.rootfs, &create.io.stdout), (bundle.mounts.clone(), &bundle.stdout));
    assert_eq!(create.checkpoint, "");
    assert_eq!(node.events.of::<TaskStart>("/tasks/start")[0].pid, pid);
    let exit: TaskExit = node.events.of("/tasks/exit").remove(0);
    assert_eq!((exit.id.as_str(), exit.pid, exit.exit_status), ("c1", pid, 143));
    let delete: TaskDelete = node.events.of("/tasks/delete").remove(0);
    assert_eq!((delete.pid, delete.exit_status, delete.id.as_str()), (pid, 143, ""));
    assert_eq!(exit.exited_at, delete.exited_at);
    for event in node.events.all() {
        assert_eq!(event.namespace, node.namespace);
        assert!(event.type_url.starts_with("containerd.events.Task"), "{}", event.type_url);
    }
}

#[tokio::test]
async fn events_keep_their_order_over_a_restart_of_containerd() {
    let Some(mut node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &["sh", "-c", "sleep 0.3"]);
    let address = {
        let shim = node.shim(&bundle).await;
        shim.create(&bundle).await.unwrap();
        shim.story("c1", "create").await;
        shim.address.clone()
    };
    node.stop_containerd();
    node.start_containerd();
    let shim = node.connect(&address).await;
    shim.start("c1").await.unwrap();
    shim.wait("c1", "").await.unwrap();
    shim.delete("c1", "").await.unwrap();
    let all = ["create", "start", "exit 0", "delete"];
    let story = eventually("all four events", || {
        let story = node.events.story("c1");
        (story.len() == all.len()).then_some(story)
    });
    assert_eq!(story.await, all);
}
