// SPDX-License-Identifier: Apache-2.0
//! From create to delete: states, exits, and who is told.

use containerd_shim_protos::api::Status;
use containerd_shim_protos::ttrpc::Code;

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::eventually;
use crate::support::node::Node;

#[tokio::test]
async fn a_container_lives_from_create_to_delete_and_its_exit_code_is_real() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &["sh", "-c", "exit 3"]);
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    let pid = shim.create(&bundle).await.unwrap();
    assert_eq!((shim.status("c1").await, shim.task_pid("c1").await), (Status::CREATED, pid));
    assert_eq!(bundle.read("from-image").as_deref(), Some("c1"), "the snapshot is mounted");
    assert_eq!(shim.start("c1").await.unwrap(), pid);
    assert_eq!(shim.wait("c1", "").await.unwrap(), 3);
    let state = shim.state("c1", "").await.unwrap();
    assert_eq!((state.status.unwrap(), state.pid, state.exit_status), (Status::STOPPED, pid, 3));
    let deleted = shim.delete("c1", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 3));
    assert_eq!(shim.story("c1", "delete").await, ["create", "start", "exit 3", "delete"]);
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn a_process_that_dies_at_once_is_started_before_it_exits() {
    let Some(node) = Node::new().await else { return };
    let first = Bundle::new(&node, "c0", &["true"]);
    let shim = node.shim(&first).await;
    // The second half is dead long before the runtime's `start` comes back.
    for number in 0..10 {
        node.runc(if number < 5 { "" } else { "slow start 50" });
        let bundle = Bundle::new(&node, &format!("c{number}"), &["true"]);
        shim.run(&bundle).await;
        let story = shim.story(&bundle.id, "exit").await;
        assert_eq!(story, ["create", "start", "exit 0"], "{number}");
        assert_eq!(shim.wait(&bundle.id, "").await.unwrap(), 0);
    }
}

#[tokio::test]
async fn all_who_wait_are_told_before_and_after_the_exit() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.create(&bundle).await.unwrap();
    let (created, also, ()) = tokio::join!(shim.wait("c1", ""), shim.wait("c1", ""), async {
        shim.start("c1").await.unwrap();
        shim.kill("c1", "", 9).await.unwrap();
    });
    assert_eq!((created.unwrap(), also.unwrap()), (137, 137));
    assert_eq!(shim.wait("c1", "").await.unwrap(), 137);
}

#[tokio::test]
async fn verbs_that_do_not_fit_are_refused_with_the_code_that_containerd_expects() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    // What containerd calls after a failed create.
    assert_eq!(shim.delete("c1", "").await.unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.pids("c1").await.unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.state("c1", "").await.unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.wait("c1", "").await.unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.task_pid("c1").await, 0, "connect never fails");

    let pid = shim.run(&bundle).await;
    assert_eq!(shim.create(&bundle).await.unwrap_err().code, Code::ALREADY_EXISTS);
    assert_eq!(shim.start("c1").await.unwrap_err().code, Code::FAILED_PRECONDITION);
    let running = shim.delete("c1", "").await.unwrap_err();
    assert_eq!(running.code, Code::FAILED_PRECONDITION);
    assert!(running.text.contains("running"), "{}", running.text);
    assert_eq!(shim.start_exec("c1", "e1").await.unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.kill("c1", "e1", 9).await.unwrap_err().code, Code::NOT_FOUND);
    assert_eq!(shim.pids("c1").await.unwrap(), [pid]);
    shim.shutdown().await.unwrap();
    assert_eq!(shim.status("c1").await, Status::RUNNING, "shutdown waits for the last container");

    shim.kill("c1", "", 9).await.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 137);
    let exited = shim.kill("c1", "", 9).await.unwrap_err();
    assert_eq!(exited.code, Code::NOT_FOUND);
    assert_eq!(shim.start("c1").await.unwrap_err().code, Code::FAILED_PRECONDITION);
    shim.delete("c1", "").await.unwrap();
    assert_eq!(shim.kill("c1", "", 9).await.unwrap_err().code, Code::NOT_FOUND);
}

#[tokio::test]
async fn a_container_that_was_never_started_can_be_killed_and_deleted() {
    let Some(node) = Node::new().await else { return };
    let [one, two] = ["c1", "c2"].map(|id| Bundle::new(&node, id, &SLEEP));
    let shim = node.shim(&one).await;
    let before = shim.traces(&one);
    shim.create(&one).await.unwrap();
    shim.delete("c1", "").await.unwrap();
    shim.is_as_before(&one, &before).await;
    shim.create(&two).await.unwrap();
    shim.kill("c2", "", 9).await.unwrap();
    assert_eq!(shim.wait("c2", "").await.unwrap(), 137);
    shim.delete("c2", "").await.unwrap();
    shim.story("c2", "delete").await;
    let story = node.events.story("c1");
    assert_eq!(story.first().map(String::as_str), Some("create"), "{story:?}");
    assert_eq!(story.last().map(String::as_str), Some("delete"), "nothing follows it: {story:?}");
}

#[tokio::test]
async fn a_slow_verb_of_one_container_does_not_hold_up_the_others() {
    let Some(node) = Node::new().await else { return };
    let [one, two] = ["c1", "c2"].map(|id| Bundle::new(&node, id, &SLEEP));
    let shim = node.shim(&one).await;
    shim.create(&one).await.unwrap();
    shim.run(&two).await;
    let go = node.path("go");
    node.runc(&format!("hold start {}", go.display()));
    let (started, ()) = tokio::join!(shim.start("c1"), async {
        let begun = || node.runc_calls().iter().any(|call| call == "start c1").then_some(());
        eventually("the start", begun).await;
        shim.kill("c2", "", 9).await.unwrap();
        shim.wait("c2", "").await.unwrap();
        shim.delete("c2", "").await.unwrap();
        assert_eq!(shim.status("c1").await, Status::CREATED, "it still starts");
        std::fs::write(&go, "").unwrap();
    });
    started.unwrap();
}
