// SPDX-License-Identifier: Apache-2.0
//! Restores that are ended: by a kill, by a delete, by the death of the shim.

use containerd_shim_protos::api::Status;
use containerd_shim_protos::ttrpc::Code;

use crate::pod::{GOOD, Pod, says};
use crate::support::bundle::Bundle;
use crate::support::checkpoint::{Images, remove};
use crate::support::node::Node;
use crate::support::shim::Shim;
use crate::support::{eventually, traces};

/// A restore hangs, is seen and killed.
async fn hang(script: &str) {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    Images::new().publish(&node);
    node.criu(script);
    let bundle = pod.container("c1", "latest");
    let before = shim.traces(&bundle);
    shim.create(&bundle).await.unwrap();
    let created = shim.traces(&bundle);
    let (started, waited, ()) = tokio::join!(shim.start("c1"), shim.wait("c1", ""), async {
        hangs(shim, &bundle).await;
        assert_eq!(shim.status("c1").await, Status::CREATED, "still restoring");
        pod.goes_on().await;
        shim.kill("c1", "", 15).await.unwrap();
    });
    says(&started.unwrap_err(), &["main", "CRIU"]);
    assert_eq!(waited.unwrap(), 137);
    shim.is_as_before(&bundle, &created).await;
    shim.delete("c1", "").await.unwrap();
    shim.is_as_before(&bundle, &before).await;
}

/// Waits until CRIU is at work.
async fn hangs(shim: &Shim<'_>, bundle: &Bundle) {
    let log = bundle.restore_dir().join("restore.log");
    eventually("CRIU", || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("waiting")).then_some(())
    })
    .await;
    assert!(shim.traces(bundle).iter().any(|line| line.starts_with("process in cgroup")));
}

#[tokio::test]
async fn a_restore_that_hangs_can_be_seen_and_killed() {
    hang("notify pre-restore\nlog waiting\nsleep 1000000").await;
}

/// See [`a_criu_that_crashes_after_it_has_made_processes_is_an_error_and_ends_them`].
#[tokio::test]
async fn a_restore_that_hangs_with_processes_can_be_seen_and_killed() {
    hang("init sleep 1000\nnotify setup-namespaces\nlog waiting\nsleep 1000000").await;
}

#[tokio::test]
async fn a_restore_that_hangs_holds_up_no_other_of_the_same_checkpoint() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    Images::new().publish(&node);
    let [one, two, three] = ["c1", "c2", "c3"].map(|id| pod.container(id, "latest"));
    for bundle in [&one, &two, &three] {
        shim.create(bundle).await.unwrap();
    }
    node.criu("notify pre-restore\nlog waiting\nsleep 1000000");
    let (hung, ()) = tokio::join!(shim.start("c1"), async {
        hangs(shim, &one).await;
        node.criu("init sleep 1000\nnotify post-restore\nreply ok");
        let (second, third) = (shim.start("c2").await.unwrap(), shim.start("c3").await.unwrap());
        assert!(traces::alive(second) && traces::alive(third));
        shim.kill("c1", "", 9).await.unwrap();
    });
    hung.unwrap_err();
}

#[tokio::test]
async fn a_kill_of_a_restore_holds_for_the_normal_start_that_follows() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    Images::new().publish(&node);
    node.criu("notify pre-restore\nlog waiting\nsleep 1000000");
    let bundle = pod.container("c1", "latest").annotate("thaw.dev/if-failed", "start");
    let before = shim.traces(&bundle);
    shim.create(&bundle).await.unwrap();
    let (_, killed) = tokio::join!(shim.start("c1"), async {
        hangs(shim, &bundle).await;
        shim.kill("c1", "", 9).await
    });
    killed.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 137);
    shim.delete("c1", "").await.unwrap();
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn a_container_that_is_killed_before_its_restore_is_not_restored() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    Images::new().publish(&node);
    node.criu(GOOD);
    let bundle = pod.container("c1", "latest");
    let before = shim.traces(&bundle);
    shim.create(&bundle).await.unwrap();
    shim.kill("c1", "", 9).await.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 137);
    assert_eq!(shim.start("c1").await.unwrap_err().code, Code::FAILED_PRECONDITION);
    shim.delete("c1", "").await.unwrap();
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn a_container_that_was_to_be_restored_can_be_deleted_without() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let id = Images::new().publish(&node);
    let bundle = pod.container("c1", "latest");
    let before = pod.shim.traces(&bundle);
    pod.shim.create(&bundle).await.unwrap();
    pod.shim.delete("c1", "").await.unwrap();
    assert_eq!(pod.shim.story("c1", "delete").await, ["create", "delete"]);
    pod.shim.is_as_before(&bundle, &before).await;
    remove(&node, &id).unwrap();
}

#[tokio::test]
async fn delete_ends_a_restore_whose_shim_was_killed() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nnotify setup-namespaces\nsleep 1000000");
    let bundle = pod.container("c1", "latest");
    shim.create(&bundle).await.unwrap();
    let family = tokio::select! {
        _ = shim.start("c1") => panic!("it hangs"),
        family = eventually("the init", || {
            let processes: Vec<_> = shim.traces(&bundle).into_iter().filter(|line| line.starts_with("process")).collect();
            (processes.len() >= 2).then_some(processes)
        }) => family,
    };
    shim.die().await;
    let output = node.delete("s1");
    assert!(output.status.success(), "{output:?}");
    let left = shim.traces(&bundle);
    let alive: Vec<_> =
        left.iter().filter(|line| line.starts_with("process") || line.starts_with("cgroup")).collect();
    assert!(alive.is_empty(), "{family:?} were there, and still are: {alive:?}");
    assert!(!traces::alive(pod.sandbox));
    assert_eq!(bundle.read("from-image"), None, "unmounted");
}

#[tokio::test]
async fn delete_ends_a_restored_container_whose_shim_was_killed() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    let id = Images::new().publish(&node);
    node.criu("init sleep 1000\nnotify post-restore\nreply ok");
    let bundle = pod.container("c1", "latest");
    let pid = shim.run(&bundle).await;
    shim.die().await;
    assert!(traces::alive(pid));
    assert!(node.delete("s1").status.success());
    assert!(!traces::alive(pid) && !traces::alive(pod.sandbox));
    let left = shim.traces(&bundle);
    assert!(!left.iter().any(|line| line.starts_with("cgroup") || line.starts_with("mount")), "{left:?}");
    remove(&node, &id).unwrap();
}
