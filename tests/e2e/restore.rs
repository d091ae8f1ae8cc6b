// SPDX-License-Identifier: Apache-2.0
//! A frozen pod goes on as a new pod: its memory, its files, its streams, its end.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use thaw_tests::harness::counter::{self, PORT};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::Imported;
use thaw_tests::harness::{Need, Node, Tested, archive, process, until};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::probe::Health;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

/// Runs a pod that counts, freezes it into the store, and removes it.
async fn frozen(node: &Node, pod: Pod) -> Result<Imported, thaw_tests::harness::HarnessError> {
    let state = node.run_counter(pod).await?;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    Ok(imported)
}

/// The last number in a container's log.
fn last_logged_count(node: &Node, state: &PodState) -> Result<u64, thaw_tests::harness::HarnessError> {
    let lines = node.kubelet.logs(state, "")?;
    let mut counts = lines.iter().filter_map(|line| line.text.rsplit(' ').next()?.parse().ok());
    Ok(counts.next_back().unwrap_or(0))
}

async fn shell(
    node: &Node,
    state: &PodState,
    script: &str,
) -> Result<String, thaw_tests::harness::HarnessError> {
    let command = ["sh", "-c", script].map(str::to_owned);
    let output = node.kubelet.exec(state, "", &command, 10).await?;
    Ok(format!("{}{}", output.stdout, output.stderr))
}

#[tokio::test]
async fn a_pod_goes_on_where_it_was_frozen() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let old = node.run_counter(node.counter_pod("before", 64)?.probed()?).await?;
    let then = counter::verify(&old, PORT).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;

    let again = node.counter_pod("after", 64)?.probed()?.annotated(RESTORE, &imported.reference());
    let new = node.run(again).await?;
    let now = counter::verify(&new, PORT).await?;
    assert_ne!((&new.uid, &new.ip), (&old.uid, &old.ip));
    assert_eq!((&now.started, now.mb, now.pid), (&then.started, 64, then.pid), "it is the same program");
    assert!(now.crc_ok, "its memory is intact");
    assert!(now.count > then.count, "it goes on counting: {} after {}", now.count, then.count);
    assert_eq!(now.hostname, "after", "it sees the new pod's name");
    let container = &new.pod.spec.containers[0];
    let alive = node.kubelet.probe(&new, container, container.liveness_probe.as_ref().unwrap()).await?;
    assert_eq!(alive, Health::Healthy);
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn what_it_writes_reaches_the_new_pods_log() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let old = node.run_counter(node.counter_pod("before", 1)?).await?;
    let imported = node.freeze_into_store(&old).await?;
    let count = last_logged_count(&node, &old)?;
    node.remove(&old).await?;

    let new =
        node.run_counter(node.counter_pod("after", 1)?.annotated(RESTORE, &imported.reference())).await?;
    until("a higher count in the log", async || Ok((last_logged_count(&node, &new)? > count).then_some(())))
        .await?;
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn a_command_can_be_run_in_it_and_its_use_is_counted() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = frozen(&node, node.counter_pod("before", 64)?).await?;
    let new =
        node.run_counter(node.counter_pod("after", 64)?.annotated(RESTORE, &imported.reference())).await?;
    let said = shell(&node, &new, "cat /proc/1/comm; id -u; hostname; ls /workloads/counter.py").await?;
    assert_eq!(said, "python3\n0\nafter\n/workloads/counter.py\n");

    let container_id = new.container("")?.id.clone();
    let request = thaw_tests::kubelet::cri::api::ContainerStatsRequest { container_id };
    let stats = node.kubelet.cri.container_stats(request).await.unwrap().stats.unwrap();
    let memory = stats.memory.unwrap().working_set_bytes.unwrap().value;
    assert!(memory > 64 << 20, "the restored memory is charged to the new container: {memory} bytes");
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn every_moment_of_its_restore_is_in_its_trace() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = frozen(&node, node.counter_pod("before", 64)?).await?;
    let none = process::output("thaw", &["trace", "before"]).unwrap_err();
    assert!(format!("{none:?}").contains("no container of pod before on this node was restored"), "{none:?}");
    let new =
        node.run_counter(node.counter_pod("after", 64)?.annotated(RESTORE, &imported.reference())).await?;
    let json = process::output("thaw", &["trace", "--json", "after"])?;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json[0]["namespace"], &json[0]["container"]),
        (&node.namespace.clone().into(), &"counter".into())
    );
    let steps = json[0]["steps"].as_array().unwrap();
    let number = |step: &serde_json::Value, key: &str| step[key].as_u64().unwrap();
    for pair in steps.windows(2) {
        let end = number(&pair[0], "begin_us") + number(&pair[0], "took_us");
        assert!(number(&pair[1], "begin_us").abs_diff(end) <= 1, "time is missing: {pair:?}");
    }
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert_eq!(names.first(), Some(&"reading the checkpoint"));
    assert!(names.contains(&"CRIU: processes, memory and files"), "{names:?}");
    assert_eq!(names.last(), Some(&"taking over"));
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn in_a_shared_pid_namespace_no_container_takes_the_numbers_of_those_still_to_be_restored() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    // The first begins late to start programs that stay, and goes on with it when it is restored.
    let first = "sleep 2; echo begun; i=0; while [ $i -lt 300 ]; do sleep 1000 & i=$((i+1)); sleep 0.005; done; \
                 while :; do sleep 1; done";
    let second =
        "for n in 1 2 3 4 5 6 7 8; do (while :; do sleep 0.2; done) & done; while :; do sleep 1; done";
    let pod = |name: &str| {
        let mut pod = node.shell_pod(name, first)?;
        pod.spec.share_process_namespace = true;
        let mut other = pod.spec.containers[0].clone();
        other.name = "second".to_owned();
        other.args = vec![second.to_owned()];
        pod.spec.containers.push(other);
        Ok::<_, thaw_tests::harness::HarnessError>(pod)
    };
    let old = node.run(pod("before")?).await?;
    until("the first line", async || Ok(node.kubelet.logs(&old, "shell")?.pop())).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let new = node.run(pod("after")?.annotated(RESTORE, &imported.reference())).await?;
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn it_stops_when_asked_and_its_exit_code_is_its_own() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = frozen(&node, node.counter_pod("before", 1)?).await?;
    let again = |name| node.counter_pod(name, 1).map(|pod| pod.annotated(RESTORE, &imported.reference()));

    let asked = node.run(again("asked")?).await?;
    node.kubelet.stop(&asked, Some(20)).await?;
    assert_eq!(node.exit_code(&asked, "").await?, 0);
    let lines = node.kubelet.logs(&asked, "")?;
    assert!(lines.iter().any(|line| line.text.starts_with("stopped at ")), "{lines:?}");

    let ended = node.run(again("ended")?).await?;
    counter::exit(&ended, PORT, 7).await?;
    assert_eq!(node.exit_code(&ended, "").await?, 7);
    node.remove(&asked).await?;
    node.remove(&ended).await?;
    node.leave().await
}

#[tokio::test]
async fn files_that_were_changed_or_deleted_are_so_again_and_the_checkpoint_is_never_written_to() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let old = node.run(node.shell_pod("before", "while :; do sleep 1; done")?).await?;
    let change = "mkdir /made && echo new > /made/file && chmod 640 /made/file && ln -s file /made/link && \
                  rm /bin/wget && echo changed > /etc/passwd";
    assert_eq!(shell(&node, &old, change).await?, "");
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let before = archive::fingerprint(&imported.dir())?;

    let again = node.shell_pod("after", "exit 9")?.annotated(RESTORE, &imported.reference());
    let new = node.run(again).await?;
    let look = "cat /made/file /etc/passwd; stat -c %a /made/file; readlink /made/link; ls /bin/wget 2>&1 | wc -l; \
                test -e /bin/wget || echo gone";
    assert_eq!(shell(&node, &new, look).await?, "new\nchanged\n640\nfile\n1\ngone\n");
    assert_eq!(
        shell(&node, &new, "echo more >> /made/file && rm /made/link && cat /made/file").await?,
        "new\nmore\n"
    );
    node.remove(&new).await?;
    assert_eq!(archive::fingerprint(&imported.dir())?, before);
    node.leave().await
}

#[tokio::test]
async fn one_checkpoint_is_restored_twice_at_the_same_time() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = frozen(&node, node.counter_pod("before", 64)?).await?;
    let again = |name| node.counter_pod(name, 64).map(|pod| pod.annotated(RESTORE, &imported.reference()));
    let (one, two) = tokio::join!(node.run(again("one")?), node.run(again("two")?));
    let (one, two) = (one?, two?);
    let (first, second) = (counter::verify(&one, PORT).await?, counter::verify(&two, PORT).await?);
    assert_eq!(first.started, second.started, "both are the program that was frozen");
    assert!(first.crc_ok && second.crc_ok);
    assert_eq!((first.hostname.as_str(), second.hostname.as_str()), ("one", "two"));

    node.remove(&one).await?;
    let later = counter::verify(&two, PORT).await?;
    assert!(later.crc_ok && later.count > second.count, "the end of one does not touch the other");
    node.remove(&two).await?;
    node.leave().await
}

#[tokio::test]
async fn a_restored_pod_is_frozen_and_restored_again() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let mut imported = frozen(&node, node.counter_pod("life-0", 16)?).await?;
    let mut last = counter::State { started: String::new(), ..unborn() };
    for life in ["life-1", "life-2", "life-3"] {
        let state =
            node.run_counter(node.counter_pod(life, 16)?.annotated(RESTORE, &imported.reference())).await?;
        let now = counter::verify(&state, PORT).await?;
        assert!(now.crc_ok && now.count > last.count, "{life}: {now:?} after {last:?}");
        assert!(last.started.is_empty() || now.started == last.started, "{life}: {now:?} after {last:?}");
        assert_eq!(now.hostname, life);
        imported = node.freeze_into_store(&state).await?;
        last = counter::state(&state, PORT).await?;
        last.count = now.count;
        node.remove(&state).await?;
    }
    node.leave().await
}

fn unborn() -> counter::State {
    counter::State { count: 0, mb: 0, crc_ok: true, hostname: String::new(), pid: 1, started: String::new() }
}

#[tokio::test]
async fn both_containers_of_a_pod_go_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pair = |name| {
        node.counter_pod(name, 4).map(|mut pod| {
            let mut second = pod.spec.containers[0].clone();
            second.name = "second".to_owned();
            second.set_env("PORT", "8081");
            pod.spec.containers.push(second);
            pod
        })
    };
    let old = node.run(pair("before")?).await?;
    let then = (counter::state(&old, 8080).await?, counter::state(&old, 8081).await?);
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;

    let new = node.run(pair("after")?.annotated(RESTORE, &imported.reference())).await?;
    let now = (counter::verify(&new, 8080).await?, counter::verify(&new, 8081).await?);
    assert_eq!((&now.0.started, &now.1.started), (&then.0.started, &then.1.started));
    assert!(now.0.crc_ok && now.1.crc_ok && now.0.count > then.0.count && now.1.count > then.1.count);
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn only_the_container_that_is_named_goes_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = frozen(&node, node.counter_pod("before", 1)?).await?;
    let mut pod = node.counter_pod("after", 1)?;
    let mut fresh = pod.spec.containers[0].clone();
    fresh.name = "fresh".to_owned();
    fresh.set_env("PORT", "8081");
    pod.spec.containers.push(fresh);
    let new = node.run(pod.annotated("thaw.dev/restore.counter", &imported.reference())).await?;
    let (gone_on, fresh) = (counter::state(&new, 8080).await?, counter::state(&new, 8081).await?);
    assert!(gone_on.started < fresh.started, "{gone_on:?} {fresh:?}");
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn latest_is_the_newest_checkpoint_of_the_lineage() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let old = node.run_counter(node.counter_pod("job", 1)?).await?;
    node.freeze_into_store(&old).await?;
    let between = counter::state(&old, PORT).await?;
    let newest = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;

    let again = node.counter_pod("job-again", 1)?.annotated(RESTORE, "latest");
    let new = node.run(again.annotated("thaw.dev/lineage", &newest.lineage)).await?;
    let now = counter::state(&new, PORT).await?;
    assert!(now.started == between.started && now.count > between.count, "{now:?} after {between:?}");
    node.remove(&new).await?;
    node.leave().await
}

#[tokio::test]
async fn with_nothing_to_restore_latest_starts_afresh() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = node.run_counter(node.counter_pod("first", 1)?.annotated(RESTORE, "latest")).await?;
    assert_eq!(counter::state(&state, PORT).await?.hostname, "first");
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_restarted_container_does_not_replay_its_checkpoint() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = frozen(&node, node.counter_pod("job", 1)?).await?;
    let again = node.counter_pod("job-again", 1)?.annotated(RESTORE, "latest");
    let mut state = node.run(again.annotated("thaw.dev/lineage", &imported.lineage)).await?;
    let restored = counter::state(&state, PORT).await?;
    counter::exit(&state, PORT, 1).await?;
    node.kubelet.restart_container(&mut state, "").await?;
    let restarted = counter::state(&state, PORT).await?;
    assert!(restarted.started > restored.started, "{restarted:?} after {restored:?}");
    node.remove(&state).await?;
    node.leave().await
}
