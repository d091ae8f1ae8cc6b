// SPDX-License-Identifier: Apache-2.0
//! Everything that can go wrong with CRIU itself, or around it, once the restore has begun.

use crate::pod::{GOOD, Pod, fail_to_create, fail_to_start, fails_for_good, name, says};
use crate::support::checkpoint::Images;
use crate::support::node::Node;

#[tokio::test]
async fn an_error_of_criu_is_told_with_the_last_lines_of_its_log() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let id = Images::new().publish(&node);
    node.criu(
        "notify pre-restore\nlog Error (criu/files-reg.c:1): File bin/counter has bad size\n\
         reply error 2\nexit 1",
    );
    let fault = fail_to_start(&pod, pod.container("c1", "latest")).await;
    says(&fault, &["main", &name(&id), "CRIU", "File bin/counter has bad size"]);
}

#[tokio::test]
async fn an_error_after_processes_have_been_made_ends_them() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu(
        "init sleep 1000\nnotify setup-namespaces\nlog Error (criu/cr-restore.c:1): Can't attach to init\n\
         reply error 3\nexit 1",
    );
    let fault = fail_to_start(&pod, pod.container("c1", "latest")).await;
    says(&fault, &["Can't attach to init"]);
}

#[tokio::test]
async fn a_criu_that_crashes_is_an_error() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("log Error (criu/x.c:1): about to crash\nexit 11");
    let fault = fail_to_start(&pod, pod.container("c1", "latest")).await;
    says(&fault, &["main", "CRIU", "about to crash"]);
}

/// The processes that CRIU makes have its connection too, until shortly before they go on, so that its end is not to
/// be seen there. Source: CRIU 4.2 criu/cr-restore.c, `sigreturn_restore`, which closes `RPC_SK_OFF`.
#[tokio::test]
async fn a_criu_that_crashes_after_it_has_made_processes_is_an_error_and_ends_them() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nnotify setup-namespaces\nexit 11");
    says(&fail_to_start(&pod, pod.container("c1", "latest")).await, &["main", "CRIU"]);
}

#[tokio::test]
async fn an_answer_that_is_no_message_is_an_error() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    for (number, fault) in ["garbage", "truncate", "oversize"].into_iter().enumerate() {
        // It does not go away by itself either.
        node.criu(&format!("init sleep 1000\n{fault}\nsleep 1000000"));
        let fault = fail_to_start(&pod, pod.container(&format!("c{number}"), "latest")).await;
        says(&fault, &["main", "CRIU"]);
    }
}

#[tokio::test]
async fn a_success_without_a_process_is_an_error() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("notify pre-restore\nreply ok");
    says(&fail_to_start(&pod, pod.container("c1", "latest")).await, &["main", "CRIU"]);
}

#[tokio::test]
async fn a_criu_that_is_not_there_is_named_with_the_reason() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.use_criu("no-such-criu");
    let fault = fail_to_start(&pod, pod.container("c1", "latest")).await;
    says(&fault, &["main", "CRIU", "No such file or directory"]);
}

#[tokio::test]
async fn a_namespace_that_has_gone_is_named_with_the_reason() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu(GOOD);
    let gone = |id, namespace: usize| {
        let mut bundle = pod.container(id, "latest");
        bundle.spec["linux"]["namespaces"][namespace]["path"] =
            node.path("gone").display().to_string().into();
        bundle
    };
    let network = fail_to_create(&pod, &gone("c1", 3)).await;
    says(&network, &["main", "network namespace", "gone", "No such file or directory"]);
    says(&fail_to_start(&pod, gone("c2", 5)).await, &["main", "hostname", "No such file or directory"]);
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_ends_the_restored_process() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nnotify post-restore\nreply ok");
    let bundle = pod.container("c1", "latest");
    std::fs::write(node.runc_root().join("c1"), "in the way").unwrap();
    let before = pod.shim.traces(&bundle);
    pod.shim.create(&bundle).await.unwrap();
    let fault = pod.shim.start("c1").await.unwrap_err();
    says(&fault, &["main", "runc"]);
    fails_for_good(&pod, &bundle).await;
    pod.shim.is_as_before(&bundle, &before).await;
}
