// SPDX-License-Identifier: Apache-2.0
//! What a restored program sees of the pod that it is in now, by name and in the files that it had open.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::path::Path;

use thaw_tests::harness::checks::{self, Checks};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, until};
use thaw_tests::kubelet::logs::LogLine;
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A pod that keeps these files open, and one of a ConfigMap mounted as a whole and by `subPath`; `host` is a folder of
/// the node.
fn pod(node: &Node, name: &str, host: &Path, files: &[&str]) -> Result<Pod, HarnessError> {
    let mut pod = node.workload_pod(name, "identity.py")?;
    let volumes = format!(
        "[{{name: conf, configMap: {{name: app}}}}, {{name: data, emptyDir: {{}}}}, \
          {{name: host, hostPath: {{path: {}, type: Directory}}}}]",
        host.display()
    );
    let mounts = "[{name: conf, mountPath: /conf}, {name: conf, mountPath: /part/key, subPath: key}, \
                   {name: host, mountPath: /host}, {name: data, mountPath: /data}]";
    pod.spec.volumes.extend(node.parsed::<Vec<_>>(&volumes)?);
    let container = &mut pod.spec.containers[0];
    container.volume_mounts.extend(node.parsed::<Vec<_>>(mounts)?);
    container.set_env("FILES", &files.join(":"));
    Ok(pod)
}

/// What the program in a pod sees.
async fn sees(node: &Node, state: &PodState) -> Result<Checks, HarnessError> {
    checks::ask(node, state, "identity.py", "all").await
}

/// A ConfigMap `app` with this value of `key`.
fn config_map(node: &mut Node, folder: &Path, value: &str) {
    let app = folder.join("configmap/app");
    std::fs::create_dir_all(&app).unwrap();
    std::fs::write(app.join("key"), value).unwrap();
    node.kubelet.settings.config_dir = Some(folder.to_owned());
}

#[tokio::test]
async fn a_restored_program_finds_what_is_the_new_pods() -> Tested {
    let Some(mut node) = Node::enter(NEEDS).await else { return Ok(()) };
    let (config, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/var/tmp").unwrap());
    config_map(&mut node, config.path(), "old");
    let files = [
        TOKEN,
        "/conf/key",
        "/part/key",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/dev/termination-log",
    ];
    let of = |node: &Node, name: &str| {
        let pod = pod(node, name, host.path(), &files)?;
        Ok::<_, HarnessError>(pod.with_containers(|container| container.set_env("LOG", "/host/log")))
    };
    let old = node.run_checked(of(&node, "before")?).await?;
    let imported = node.freeze_into_store(&old).await?;
    // It goes on, and its log grows.
    let then = sees(&node, &old).await?.0;
    assert_eq!((then["/conf/key"].as_str(), then["hostname"].as_str()), ("old", "before"));
    node.remove(&old).await?;

    config_map(&mut node, config.path(), "a new and longer value");
    let new = node.run(of(&node, "after")?.annotated(RESTORE, &imported.reference())).await?;
    let now = sees(&node, &new).await?.0;
    for key in ["/conf/key", "/part/key"] {
        assert_eq!(now[key], "a new and longer value", "{key}");
    }
    assert_eq!(now["hostname"], "after");
    assert!(now[TOKEN].len() > 1000 && now[TOKEN] != then[TOKEN], "{now:?}");
    for file in ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"] {
        assert_eq!(now[file], now[&format!("by name {file}")], "the open {file} is the pod's");
    }
    assert!(now["/etc/hosts"].contains(&new.ip) && !now["/etc/hosts"].contains(&old.ip), "{now:?}");
    assert!(now["/etc/hostname"].contains("after"), "{now:?}");
    let log = std::fs::read_to_string(host.path().join("log")).unwrap();
    assert_eq!(log, "first\nmore\nmore\n", "the log goes on at its end");
    node.remove(&new).await?;
    drop((config, host));
    node.leave().await
}

#[tokio::test]
async fn open_files_that_are_not_as_they_were_are_named_all_at_once() -> Tested {
    let Some(mut node) = Node::enter(NEEDS).await else { return Ok(()) };
    let (config, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/var/tmp").unwrap());
    config_map(&mut node, config.path(), "value");
    for name in ["changed", "gone", "same"] {
        std::fs::write(host.path().join(name), "content").unwrap();
    }
    let files = ["/host/changed", "/host/gone", "/host/same"];
    let of = |node: &Node, name: &str| {
        let pod = pod(node, name, host.path(), &files)?;
        Ok::<_, HarnessError>(pod.with_containers(|container| container.set_env("LOG", "/data/log")))
    };
    let old = node.run_checked(of(&node, "before")?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    std::fs::write(host.path().join("changed"), "other content").unwrap();
    std::fs::remove_file(host.path().join("gone")).unwrap();

    let error =
        node.kubelet.run(of(&node, "after")?.annotated(RESTORE, &imported.reference())).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default();
    for part in [
        "\"/host/changed\" had 7 bytes",
        "has 13 now",
        "\"/host/gone\"",
        "\"/data/log\"",
        "thaw.dev/volumes: data",
    ] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    assert!(!message.contains("same"), "{message}");
    node.remove(&node.kubelet.find(&node.namespace, "after")?).await?;
    drop((config, host));
    node.leave().await
}

/// Numbers on both streams, each line the next one.
const NUMBERS: &str = "import sys, time\n\
    number = 0\n\
    while True:\n\
    \x20   print(number, flush=True)\n\
    \x20   print(number, file=sys.stderr, flush=True)\n\
    \x20   number += 1\n\
    \x20   time.sleep(0.005)";

/// The numbers of a stream, which must follow each other from 0 on; how many there are. A terminal makes one stream of
/// both.
fn follow(lines: &[LogLine], stream: &str, tty: bool) -> usize {
    let numbers = lines.iter().filter(|line| line.stream == stream);
    let number = |line: &LogLine| {
        line.text
            .trim_end_matches('\r')
            .parse()
            .unwrap_or_else(|_| panic!("{line:?} is no number in {lines:#?}"))
    };
    let numbers: Vec<usize> = numbers.map(number).collect();
    let each = if tty { 2 } else { 1 };
    assert_eq!(numbers, (0..numbers.len()).map(|line| line / each).collect::<Vec<_>>(), "{stream}");
    numbers.len()
}

/// A pod that is frozen and restored twice, once by the kubelet and once by `thaw checkpoint`.
async fn log_goes_on(node: &Node, tty: bool) -> Tested {
    let pod = |name: &str| {
        let pod = node.counter_pod(name, 1)?.with_containers(|container| {
            container.command = ["python3", "-c", NUMBERS].map(str::to_owned).to_vec();
            container.tty = tty;
        });
        Ok::<_, HarnessError>(pod)
    };
    let more_than = async |state: &PodState, number: usize| {
        let enough = async || {
            let lines = node.kubelet.logs(state, "")?;
            Ok((lines.len() > number).then_some(lines))
        };
        until("lines in its log", enough).await
    };
    let mut state = node.run(pod("life-0")?).await?;
    let mut lines = more_than(&state, 200).await?;
    for life in 1..=2 {
        let imported =
            if life == 1 { node.freeze_into_store(&state).await? } else { thaw::checkpoint(&state, &[])? };
        // It goes on, and what it says then is not part of the checkpoint.
        let then = node.kubelet.logs(&state, "")?.len();
        more_than(&state, then + 100).await?;
        node.remove(&state).await?;
        let again = pod(&format!("life-{life}"))?.annotated(RESTORE, &imported.reference());
        state = node.run(again.annotated("thaw.dev/log", "continue")).await?;
        let restored = more_than(&state, lines.len() + 200).await?;
        assert!(follow(&restored, "stdout", tty) > 100);
        assert_eq!(follow(&restored, "stderr", tty) > 100, !tty);
        lines = restored;
        if life == 2 {
            let new = pod("without")?.annotated(RESTORE, &imported.reference());
            let new = node.run(new).await?;
            let first = more_than(&new, 1).await?;
            assert_ne!(first[0].text.trim_end(), "0", "without the annotation the log begins anew");
            node.remove(&new).await?;
        }
    }
    node.remove(&state).await?;
    Ok(())
}

#[tokio::test]
async fn the_log_of_the_old_pod_goes_on_in_the_new_one_where_it_says_so() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    log_goes_on(&node, false).await?;
    node.leave().await
}

#[tokio::test]
async fn the_log_of_a_program_on_a_terminal_goes_on_too() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    log_goes_on(&node, true).await?;
    node.leave().await
}
