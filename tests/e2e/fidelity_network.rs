// SPDX-License-Identifier: Apache-2.0
//! What becomes of the sockets of a frozen pod in a new one, which has other addresses.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use thaw_tests::harness::checks::{self, Checks};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Need, Node, Tested};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// The node's address on the pods' network. Source: scripts/node.d/cni.conflist.
const NODE: &str = "10.88.0.1";
/// Where the program listens on the pod's own address.
const OWN_ADDRESS_PORT: u16 = 7005;
/// Far longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on the node that greets everybody and then keeps silent.
fn silent_server() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            connection.write_all(b"hello").unwrap();
            open.push(connection);
        }
    });
    port
}

/// A pod that holds sockets of every kind.
fn pod(node: &Node, name: &str, peer: u16) -> Result<Pod, HarnessError> {
    let mut pod = node.workload_pod(name, "sockets.py")?;
    for container in &mut pod.spec.containers {
        container.set_env("PEER_HOST", NODE);
        container.set_env("PEER_PORT", &peer.to_string());
    }
    Ok(pod)
}

/// Asks from outside whether the pod answers on its own address.
fn answers(state: &PodState) {
    let address = SocketAddr::new(state.ip.parse::<IpAddr>().unwrap(), OWN_ADDRESS_PORT);
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

async fn check(node: &Node, state: &PodState, what: &str) -> Result<Checks, HarnessError> {
    checks::ask(node, state, "sockets.py", what).await
}

#[tokio::test]
async fn sockets_move_to_the_new_address_and_connections_inside_the_pod_go_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let peer = silent_server();
    let mut state = node.run_checked(pod(&node, "life-0", peer)?).await?;
    check(&node, &state, "before").await?.assert_ok();
    for (life, what) in [("life-1", "auto"), ("life-2", "auto"), ("life-3", "close")] {
        let imported = node.freeze_into_store(&state).await?;
        if life == "life-1" {
            check(&node, &state, "before").await?.assert_ok();
        }
        node.remove(&state).await?;
        let old = state.ip.clone();
        let again = pod(&node, life, peer)?.annotated(RESTORE, &imported.reference());
        state = node.run(again.annotated("thaw.dev/tcp", what)).await?;
        assert_ne!(state.ip, old);
        check(&node, &state, what).await?.assert_ok();
        answers(&state);
    }
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn connections_to_outside_cannot_be_kept_at_another_address() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let peer = silent_server();
    let old = node.run_checked(pod(&node, "before", peer)?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let again = pod(&node, "after", peer)?.annotated(RESTORE, &imported.reference());
    let error = node.kubelet.run(again.annotated("thaw.dev/tcp", "keep")).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default();
    assert!(message.contains(&old.ip) && message.contains("thaw.dev/address: keep"), "{message}");
    node.remove(&node.kubelet.find(&node.namespace, "after")?).await?;
    node.leave().await
}

#[tokio::test]
async fn without_a_record_of_the_address_it_is_what_the_sockets_were_bound_to() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let peer = silent_server();
    let old = node.run_checked(pod(&node, "before", peer)?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let manifest = imported.dir().join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let known = json["pod"].as_object_mut().unwrap().remove("addresses").unwrap();
    assert!(known.to_string().contains(&old.ip), "{known}");
    std::fs::write(&manifest, json.to_string()).unwrap();

    let new = node.run(pod(&node, "after", peer)?.annotated(RESTORE, &imported.reference())).await?;
    check(&node, &new, "auto").await?.assert_ok();
    answers(&new);
    node.remove(&new).await?;
    node.leave().await
}
