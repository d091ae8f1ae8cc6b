// SPDX-License-Identifier: Apache-2.0
//! The small kubelet against the stock runtime: what the other tests stand on.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use thaw_tests::harness::{Need, Node, Tested, counter};
use thaw_tests::kubelet::error::KubeletError;

const RUNC: &str = "runc";

#[tokio::test]
async fn every_kind_of_volume_is_mounted_and_nothing_of_it_is_left() -> Tested {
    let Some(node) = Node::enter(&[]).await else { return Ok(()) };
    let pod = node.pod(
        "
metadata: {name: volumes}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 2000}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: host, hostPath: {path: /etc, type: Directory}}
  initContainers:
  - name: first
    image: thaw.local/busybox:1
    command: [sh, -c, 'echo one > /disk/file']
    volumeMounts: [{name: disk, mountPath: /disk}]
  containers:
  - name: shell
    image: thaw.local/busybox:1
    command: [sleep, '1000']
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: disk, mountPath: /part, subPath: a/b}
    - {name: memory, mountPath: /memory}
    - {name: host, mountPath: /host, readOnly: true}
",
    )?;
    let state = node.run(pod.under(RUNC)).await?;
    let script = "cat /disk/file; stat -f -c %T /memory; ls -d /part; touch /host/thaw-test 2>/dev/null || echo read-only; \
                  stat -c %g /disk; cat /var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let command = ["sh", "-c", script].map(str::to_owned);
    let output = node.kubelet.exec(&state, "", &command, 10).await?;
    let expected = format!("one\ntmpfs\n/part\nread-only\n2000\n{}", node.namespace);
    assert_eq!((output.exit_code, output.stdout.as_str()), (0, expected.as_str()), "{}", output.stderr);
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_restarted_container_is_a_new_attempt_in_the_same_sandbox() -> Tested {
    let Some(node) = Node::enter(&[]).await else { return Ok(()) };
    let mut state = node.run_counter(node.counter_pod("restarted", 1)?.probed()?.under(RUNC)).await?;
    let before = counter::state(&state, counter::PORT).await?;
    let old = state.container("")?.clone();
    node.kubelet.restart_container(&mut state, "counter").await?;
    let (after, new) = (counter::state(&state, counter::PORT).await?, state.container("")?.clone());
    assert_ne!(before.started, after.started);
    assert_ne!((&old.id, &old.termination_log), (&new.id, &new.termination_log));
    assert_eq!((new.attempt, new.log.file_name().and_then(|name| name.to_str())), (1, Some("1.log")));
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_container_that_cannot_start_is_reported_in_the_runtimes_words_and_the_pod_can_be_removed() -> Tested
{
    let Some(node) = Node::enter(&[]).await else { return Ok(()) };
    let pod = node.shell_pod("broken", "")?.under(RUNC);
    let pod = pod.with_containers(|container| container.command = vec!["/no/such/program".to_owned()]);
    let error = node.kubelet.run(pod).await.err();
    let message = error.as_ref().and_then(KubeletError::cri_message).unwrap_or_default();
    assert!(message.contains("/no/such/program"), "{error:?}");
    node.remove(&node.kubelet.find(&node.namespace, "broken")?).await?;
    node.leave().await
}

#[tokio::test]
async fn a_pod_stops_within_its_grace_period_and_a_deaf_one_after_it() -> Tested {
    let Some(node) = Node::enter(&[]).await else { return Ok(()) };
    let polite = node.run_counter(node.counter_pod("polite", 1)?.under(RUNC)).await?;
    let deaf =
        node.run(node.shell_pod("deaf", "trap '' TERM; while :; do sleep 1; done")?.under(RUNC)).await?;
    for (state, code) in [(&polite, 0), (&deaf, 137)] {
        node.kubelet.stop(state, Some(2)).await?;
        assert_eq!(node.exit_code(state, "").await?, code);
    }
    node.remove(&polite).await?;
    node.remove(&deaf).await?;
    node.leave().await
}

#[tokio::test]
async fn a_frozen_container_runs_on_and_its_archive_is_where_kubelet_puts_it() -> Tested {
    let Some(node) = Node::enter(&[Need::Criu]).await else { return Ok(()) };
    let state = node.run_counter(node.counter_pod("frozen", 1)?.under(RUNC)).await?;
    let before = counter::state(&state, counter::PORT).await?;
    let archive = node.kubelet.checkpoint(&state, "", None).await?;
    let after = counter::verify(&state, counter::PORT).await?;
    let name = archive.to_string_lossy().into_owned();
    let start = format!("/var/lib/kubelet/checkpoints/checkpoint-frozen_{}-counter-2", node.namespace);
    assert!(name.starts_with(&start) && name.ends_with("Z.tar"), "{name}");
    assert!(after.crc_ok && after.count > before.count && after.started == before.started);
    std::fs::remove_file(&archive).unwrap();
    node.remove(&state).await?;
    node.leave().await
}
