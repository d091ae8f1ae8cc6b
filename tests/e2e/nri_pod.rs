// SPDX-License-Identifier: Apache-2.0
//! What `thaw-nri` and the shim do about devices of NVIDIA's toolkit, about sockets that are bound to interfaces, and
//! about events of pods: with a real runtime, CDI and CRIU, and with stand-ins for GPUs and for the API server.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use thaw_tests::harness::api_server::ApiServer;
use thaw_tests::harness::checks;
use thaw_tests::harness::nri::{Injector, LINKS, Program};
use thaw_tests::harness::nvidia::Nvidia;
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Need, Node, Tested};
use thaw_tests::kubelet::container::CDI;
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
const SLEEPER: &str = "while :; do sleep 1; done";

async fn shell(node: &Node, state: &PodState, script: &str) -> Result<String, HarnessError> {
    let command = ["sh", "-c", script].map(str::to_owned);
    Ok(node.kubelet.exec(state, "", &command, 10).await?.stdout)
}

#[tokio::test]
async fn a_pod_with_gpus_of_nvidias_toolkit_goes_on_with_another_one_and_runs_no_hook_again() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let nvidia = Nvidia::new().unwrap();
    let program = Program::start()?;
    let holder = "exec 3<>/dev/nvidia0; while :; do sleep 1; done";
    let looks = "stat -Lc %t:%T /proc/1/fd/3; stat -c %t:%T /dev/nvidia0; cat /lib/libcuda.so; ls /dev";
    let before = node.run(node.shell_pod("before", holder)?.annotated(CDI, "nvidia.com/gpu=0")).await?;
    let seen = shell(&node, &before, looks).await?;
    assert!(seen.starts_with("1:3\n1:3\nthe driver's") && nvidia.runs() == 2, "{seen}");
    let imported = node.freeze_into_store(&before).await?;
    node.remove(&before).await?;

    let after = node.shell_pod("after", holder)?.annotated(CDI, "nvidia.com/gpu=1");
    let after = node.run(after.annotated(RESTORE, &imported.reference())).await?;
    let seen = shell(&node, &after, looks).await?;
    assert!(seen.starts_with("1:5\n1:5\nthe driver's"), "{seen}");
    assert!(seen.contains("nvidia1") && seen.contains("nvidiactl"), "{seen}");
    assert_eq!(nvidia.runs(), 2, "what the hooks do has been done");
    node.remove(&after).await?;
    drop((program, nvidia));
    node.leave().await
}

fn links(node: &Node, name: &str, links: &str) -> Result<Pod, HarnessError> {
    Ok(node.workload_pod(name, "links.py")?.annotated(LINKS, links))
}

#[tokio::test]
async fn sockets_that_are_bound_to_an_interface_find_the_one_of_the_same_name() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let before = node.run_checked(links(&node, "before", "net1")?).await?;
    checks::ask(&node, &before, "links.py", "before").await?.assert_ok();
    let number = "cat /sys/class/net/net1/ifindex";
    let old = shell(&node, &before, number).await?;
    let imported = node.freeze_into_store(&before).await?;
    node.remove(&before).await?;

    let restored = |name: &str, names: &str| {
        Ok::<_, HarnessError>(links(&node, name, names)?.annotated(RESTORE, &imported.reference()))
    };
    let after = node.run(restored("after", "other,net1")?).await?;
    assert_ne!(shell(&node, &after, number).await?, old, "else this shows nothing");
    checks::ask(&node, &after, "links.py", "after").await?.assert_ok();
    node.remove(&after).await?;

    // Without the interface, and without the right to have such sockets.
    let mut refused = restored("refused", "other")?;
    for container in &mut refused.spec.containers {
        container.security_context = node.parsed("{capabilities: {drop: [NET_RAW]}}")?;
    }
    let error = node.kubelet.run(refused).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default().to_owned();
    assert!(message.contains("net1") && message.contains("NET_RAW"), "{message}");
    node.remove(&node.kubelet.find(&node.namespace, "refused")?).await?;
    drop(injecting);
    node.leave().await
}

#[tokio::test]
async fn a_kept_address_brings_the_card_s_along_where_a_packet_socket_is_bound_to_it() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let program = Program::start()?;
    let card = "cat /sys/class/net/eth0/address";
    let kept =
        |pod: Pod, reference: &str| pod.annotated(RESTORE, reference).annotated("thaw.dev/address", "keep");

    let before = node.run_checked(links(&node, "before", "net1")?).await?;
    let old = shell(&node, &before, card).await?;
    let imported = node.freeze_into_store(&before).await?;
    node.remove(&before).await?;
    let after = node.run(kept(links(&node, "after", "net1")?, &imported.reference())).await?;
    assert_eq!(shell(&node, &after, card).await?, old);
    checks::ask(&node, &after, "links.py", "after").await?.assert_ok();
    for address in [&before.ip, &after.ip] {
        // Nobody listens there, which only the pod itself can say.
        let at = SocketAddr::new(address.parse().unwrap(), 9);
        let error = TcpStream::connect_timeout(&at, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}: {error}");
    }
    node.remove(&after).await?;

    let plain = node.run(node.shell_pod("plain", SLEEPER)?).await?;
    let old = shell(&node, &plain, card).await?;
    let imported = node.freeze_into_store(&plain).await?;
    node.remove(&plain).await?;
    let again = node.run(kept(node.shell_pod("again", SLEEPER)?, &imported.reference())).await?;
    assert_ne!(shell(&node, &again, card).await?, old, "no socket needs it");
    node.remove(&again).await?;
    drop((program, injecting));
    node.leave().await
}

#[tokio::test]
async fn what_becomes_of_a_pod_reaches_its_events_and_what_happens_again_counts_up() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let server = ApiServer::start().unwrap();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    server.write_kubeconfig(&kubeconfig)?;
    let program = Program::start_with(&format!("events = {kubeconfig:?}"))?;

    let before = node.run(node.shell_pod("before", SLEEPER)?).await?;
    let imported = node.freeze_into_store(&before).await?;
    let frozen = server.wait_for("before", "Frozen")?;
    assert_eq!(
        (&frozen["type"], &frozen["involvedObject"]["uid"]),
        (&"Normal".into(), &before.uid.clone().into())
    );
    node.remove(&before).await?;
    let after = node.run(node.shell_pod("after", SLEEPER)?.annotated(RESTORE, &imported.reference())).await?;
    let resumed = server.wait_for("after", "Resumed")?;
    assert!(resumed["message"].as_str().unwrap().contains(&imported.id), "{resumed}");
    assert_eq!(resumed["involvedObject"]["fieldPath"], "spec.containers{shell}");
    node.remove(&after).await?;

    // The shim's refusal, one that a pod does not feel, and the plugin's own.
    let mut other = node.shell_pod("other", SLEEPER)?.annotated(RESTORE, &imported.reference());
    other.spec.containers[0].tty = true;
    assert!(node.kubelet.run(other.clone()).await.is_err());
    let failed = server.wait_for("other", "ResumeFailed")?;
    assert!(failed["message"].as_str().unwrap().contains("tty: false"), "{failed}");
    assert_eq!(failed["type"], "Warning");
    node.remove(&node.kubelet.find(&node.namespace, "other")?).await?;
    let afresh = node.run(other.annotated("thaw.dev/if-failed", "start")).await?;
    server.wait_until(|event| {
        event["involvedObject"]["uid"] == afresh.uid && event["reason"] == "ResumeFailed"
    })?;
    node.remove(&afresh).await?;
    for name in ["wrong", "forbidden"] {
        let wrong = node.shell_pod(name, SLEEPER)?.annotated("thaw.dev/restor", "latest");
        assert!(node.kubelet.run(wrong).await.is_err());
        node.remove(&node.kubelet.find(&node.namespace, name)?).await?;
    }
    server.wait_for("wrong", "ResumeFailed")?;
    program.wait_for("does not take an event", 1)?;

    // The same twice of one pod.
    let again = node.run(node.shell_pod("twice", SLEEPER)?).await?;
    for _ in 0..2 {
        for archive in node.freeze(&again).await? {
            std::fs::remove_file(archive).unwrap();
        }
    }
    server.wait_until(|event| event["involvedObject"]["name"] == "twice" && event["count"] == 2)?;
    node.remove(&again).await?;
    drop((program, folder));
    node.leave().await
}
