// SPDX-License-Identifier: Apache-2.0
//! What a process reads and writes.

use containerd_shim_protos::api::ExecProcessRequest;

use crate::SLEEP;
use crate::support::bundle::Bundle;
use crate::support::node::Node;
use crate::support::stdio::Fifo;

#[tokio::test]
async fn output_reaches_containerd_and_ends_with_the_container() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(&node, "c1", &["sh", "-c", "echo out; echo err >&2"]);
    let (mut stdout, mut stderr) = bundle.with_output();
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    shim.run(&bundle).await;
    shim.wait("c1", "").await.unwrap();
    shim.delete("c1", "").await.unwrap();
    assert_eq!((stdout.end().await.as_str(), stderr.end().await.as_str()), ("out\n", "err\n"));
    shim.is_as_before(&bundle, &before).await;
}

#[tokio::test]
async fn a_process_may_have_only_one_of_its_streams() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(&node, "c1", &["sh", "-c", "echo out; echo err >&2; cat"]);
    let (mut stdout, _) = bundle.with_output();
    bundle.stderr = String::new();
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    assert_eq!(shim.wait("c1", "").await.unwrap(), 0);
    shim.delete("c1", "").await.unwrap();
    assert_eq!(stdout.end().await, "out\n");
}

#[tokio::test]
async fn input_reaches_the_process_and_close_ends_it() {
    let Some(node) = Node::new().await else { return };
    let mut bundle = Bundle::new(&node, "c1", &["cat"]);
    let (stdin, (mut stdout, _stderr)) = (bundle.with_input(), bundle.with_output());
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    for line in ["one\n", "two\n"] {
        stdin.write(line).await;
        stdout.expect(line).await;
    }
    shim.close_stdin("c1").await.unwrap();
    assert_eq!(shim.wait("c1", "").await.unwrap(), 0);
}

#[tokio::test]
async fn an_exec_has_streams_of_its_own() {
    let Some(node) = Node::new().await else { return };
    let bundle = Bundle::new(&node, "c1", &SLEEP);
    let [mut stdout, stderr] = ["exec-out", "exec-err"].map(|name| Fifo::output(&bundle.dir, name));
    let shim = node.shim(&bundle).await;
    shim.run(&bundle).await;
    let streams = |request: &mut ExecProcessRequest| {
        (request.stdout, request.stderr) = (stdout.name(), stderr.name());
    };
    shim.exec_as("c1", "e1", &["echo", "from exec"], streams).await.unwrap();
    shim.start_exec("c1", "e1").await.unwrap();
    shim.wait("c1", "e1").await.unwrap();
    let deleted = shim.delete("c1", "e1").await.unwrap();
    assert_eq!(deleted.exit_status, 0);
    assert_eq!(stdout.end().await, "from exec\n");
}

#[tokio::test]
async fn a_terminal_is_handed_over_and_takes_the_size_that_it_is_given() {
    let Some(node) = Node::new().await else { return };
    let script = "echo ready; read -r line; stty size; echo \"got $line\"; exit 9";
    let mut bundle = Bundle::new(&node, "c1", &["sh", "-c", script]);
    bundle.spec["process"]["terminal"] = true.into();
    let (stdin, (mut stdout, _)) = (bundle.with_input(), bundle.with_output());
    // A terminal has no stderr of its own.
    (bundle.stderr, bundle.terminal) = (String::new(), true);
    let shim = node.shim(&bundle).await;
    let before = shim.traces(&bundle);
    shim.run(&bundle).await;
    stdout.expect("ready").await;
    shim.resize("c1", 132, 43).await.unwrap();
    stdin.write("hello\n").await;
    stdout.expect("43 132").await;
    stdout.expect("got hello").await;
    assert_eq!(shim.wait("c1", "").await.unwrap(), 9);
    shim.delete("c1", "").await.unwrap();
    shim.is_as_before(&bundle, &before).await;
}
