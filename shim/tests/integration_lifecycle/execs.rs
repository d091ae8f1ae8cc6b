// SPDX-License-Identifier: Apache-2.0
//! Further processes of a container.

use containerd_shim_protos::api::Status;
use containerd_shim_protos::ttrpc::Code;

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::node::Node;

#[tokio::test]
async fn an_exec_is_added_started_and_ended_before_the_init() {
    let Some(node) = Node::new().await else { return };
    // Without a pid namespace of its own the runtime kills what is left; with one the kernel does, a bit later.
    for pid_namespace in [false, true] {
        let mut bundle = Bundle::new(&node, &format!("c-{pid_namespace}"), &SLEEP);
        if pid_namespace {
            bundle = bundle.with_pid_namespace();
        }
        let (id, shim) = (bundle.id.as_str(), node.shim(&bundle).await);
        let before = shim.traces(&bundle);
        let init = shim.run(&bundle).await;
        shim.exec(id, "e1", &["sh", "-c", "exit 5"]).await.unwrap();
        shim.start_exec(id, "e1").await.unwrap();
        assert_eq!(shim.wait(id, "e1").await.unwrap(), 5);
        let orphan = format!("while [ -d /proc/{init} ]; do sleep 0.01; done; sleep 0.1; exit 6");
        shim.exec(id, "e2", &["sh", "-c", &orphan]).await.unwrap();
        let pid = shim.start_exec(id, "e2").await.unwrap();
        assert_eq!(shim.state(id, "e2").await.unwrap().pid, pid);
        shim.kill(id, "", 9).await.unwrap();
        let last = if pid_namespace { 6 } else { 137 };
        assert_eq!(
            shim.story(id, "exit 137").await,
            [
                "create",
                "start",
                "exec-added e1",
                "exec-started e1",
                "exit e1 5",
                "exec-added e2",
                "exec-started e2",
                &format!("exit e2 {last}"),
                "exit 137",
            ]
        );
        for exec in ["e1", "e2", ""] {
            shim.delete(id, exec).await.unwrap();
        }
        shim.is_as_before(&bundle, &before).await;
    }
}

#[tokio::test]
async fn an_exec_that_outlives_the_init_does_not_hold_its_exit_for_ever() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP).with_pid_namespace();
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    shim.exec("c1", "e1", &SLEEP).await.unwrap();
    shim.start_exec("c1", "e1").await.unwrap();
    shim.kill("c1", "", 9).await.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 137);
}

#[tokio::test]
async fn an_exec_that_the_runtime_refuses_is_ended_and_the_container_goes_on() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    let before = shim.traces(&bundle);
    shim.exec("c1", "e1", &["/no/such/program"]).await.unwrap();
    let refused = shim.start_exec("c1", "e1").await.unwrap_err();
    assert!(refused.text.contains("/no/such/program"), "{}", refused.text);
    assert_eq!(shim.state("c1", "e1").await.unwrap().status.unwrap(), Status::STOPPED);
    assert!(shim.wait("c1", "e1").await.is_ok());
    assert_eq!(shim.exec("c1", "e1", &["true"]).await.unwrap_err().code, Code::ALREADY_EXISTS);
    shim.delete("c1", "e1").await.unwrap();
    assert_eq!(shim.status("c1").await, Status::RUNNING);
    shim.is_as_before(&bundle, &before).await;
}
