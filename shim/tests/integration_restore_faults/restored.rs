// SPDX-License-Identifier: Apache-2.0
//! Restores that succeed.

use containerd_shim_protos::api::Status;
use containerd_shim_protos::events::task::TaskCreate;

use crate::pod::{FRESH, GOOD, Pod, name, starts_fresh};
use crate::support::bundle::Bundle;
use crate::support::checkpoint::{Images, remove};
use crate::support::node::Node;

#[tokio::test]
async fn a_restored_container_answers_to_everything() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let (shim, id) = (&pod.shim, Images::new().publish(&node));
    let mut bundle = pod.container("c1", "latest");
    let (stdin, (mut stdout, _stderr)) = (bundle.with_input(), bundle.with_output());
    node.criu(GOOD);
    let before = shim.traces(&bundle);
    assert_eq!(shim.create(&bundle).await.unwrap(), 0);
    assert_eq!((shim.status("c1").await, shim.task_pid("c1").await), (Status::CREATED, 0));
    assert!(bundle.read("from-image").is_some() && bundle.read("from-checkpoint").is_some());
    remove(&node, &id).unwrap_err();

    let pid = shim.start("c1").await.unwrap();
    assert_eq!((shim.status("c1").await, shim.task_pid("c1").await), (Status::RUNNING, pid));
    stdout.expect("restored\n").await;
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let others = cgroup.lines().filter(|line| !line.ends_with(&format!("{}/c1", node.cgroup())));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0], "it is in the new cgroup of every hierarchy");
    assert!(shim.pids("c1").await.unwrap().contains(&pid));
    assert!(shim.stats("c1").await.is_ok());
    shim.pause("c1").await.unwrap();
    shim.resume("c1").await.unwrap();
    shim.exec("c1", "e1", &["true"]).await.unwrap();
    shim.start_exec("c1", "e1").await.unwrap();
    assert_eq!(shim.wait("c1", "e1").await.unwrap(), 0);
    shim.delete("c1", "e1").await.unwrap();

    stdin.write("hello\n").await;
    stdout.expect("got hello\n").await;
    assert_eq!(shim.wait("c1", "").await.unwrap(), 4, "the program's own exit code");
    assert_eq!(shim.delete("c1", "").await.unwrap().pid, pid);
    let story = shim.story("c1", "delete").await;
    assert_eq!(story[..2], ["create", "start"]);
    assert_eq!(story[story.len() - 2..], ["exit 4", "delete"]);
    let created =
        node.events.of::<TaskCreate>("/tasks/create").into_iter().find(|told| told.container_id == "c1");
    assert_eq!(created.unwrap().checkpoint, name(&id));
    std::fs::remove_dir_all(bundle.restore_dir()).unwrap(); // with the bundle, by containerd
    shim.is_as_before(&bundle, &before).await;
    remove(&node, &id).unwrap();
}

#[tokio::test]
async fn onto_a_snapshot_without_layers_the_checkpoints_files_are_laid() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nnotify post-restore\nreply ok");
    let mut bundle = pod.container("c1", "latest");
    let snapshot = bundle.without_layers(&node);
    pod.shim.run(&bundle).await;
    assert!(bundle.read("from-image").is_some() && bundle.read("from-checkpoint").is_some());
    assert!(!snapshot.join(".thaw-aside").exists());
    pod.shim.kill("c1", "", 9).await.unwrap();
    pod.shim.wait("c1", "").await.unwrap();
    pod.shim.delete("c1", "").await.unwrap();
    assert!(snapshot.join("from-checkpoint").exists(), "the snapshot is containerd's to remove");
}

#[tokio::test]
async fn the_old_log_goes_in_front_where_the_pod_says_so() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let mut images = Images::new();
    let log = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr F err\n2026-01-01T00:00:03Z stdout P tw\n\
               no log line\n2026-01-01T00:00:09Z stdout F after the freeze\n";
    images.files.insert("container.log".into(), log.into());
    images.files.insert(
        "checkpoint/thaw-state.json".into(),
        br#"{"frozen": "2026-01-01T00:00:05Z", "threads": {}}"#.to_vec(),
    );
    node.criu("init echo o; exec sleep 1000\nnotify post-restore\nreply ok");
    for (id, value, expected) in [("c1", "continue", "one\ntwo\n"), ("c2", "new", "o\n")] {
        // The same one would not be restored twice into one pod.
        images.clone().publish(&node);
        let mut bundle = pod.container(id, "latest").annotate("thaw.dev/log", value);
        let (_stdin, (mut stdout, mut stderr)) = (bundle.with_input(), bundle.with_output());
        pod.shim.run(&bundle).await;
        stdout.expect(expected).await;
        if value == "continue" {
            stderr.expect("err\n").await;
        }
        pod.shim.kill(id, "", 9).await.unwrap();
        pod.shim.wait(id, "").await.unwrap();
        pod.shim.delete(id, "").await.unwrap();
    }
}

#[tokio::test]
async fn a_restored_process_that_dies_at_once_is_started_before_it_exits() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    Images::new().publish(&node);
    node.criu("init exit 6\nnotify post-restore\nsleep 50\nreply ok");
    pod.shim.run(&pod.container("c1", "latest")).await;
    assert_eq!(pod.shim.story("c1", "exit").await, ["create", "start", "exit 6"]);
    assert_eq!(pod.shim.wait("c1", "").await.unwrap(), 6);
}

#[tokio::test]
async fn a_checkpoint_is_not_replayed_in_the_same_pod_unless_there_is_a_newer_one() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    let shim = &pod.shim;
    Images::new().publish(&node);
    node.criu("init sleep 1000\nnotify post-restore\nreply ok");
    for (number, expected) in [(0, "restored"), (1, "fresh"), (2, "restored")] {
        let bundle = pod.container(&format!("c{number}"), "latest");
        if number == 2 {
            Images::new().publish(&node);
        }
        let pid = shim.create(&bundle).await.unwrap();
        assert_eq!(if pid == 0 { "restored" } else { "fresh" }, expected, "{number}");
        shim.start(&bundle.id).await.unwrap();
        shim.kill(&bundle.id, "", 9).await.unwrap();
        shim.wait(&bundle.id, "").await.unwrap();
        shim.delete(&bundle.id, "").await.unwrap();
    }
}

#[tokio::test]
async fn a_pod_without_annotations_asks_neither_store_nor_criu() {
    let Some(node) = Node::new().await else { return };
    let pod = Pod::new(&node).await;
    std::fs::write(node.path("config.toml"), "not a configuration").unwrap();
    std::fs::remove_file(node.path("bin/criu")).unwrap();
    starts_fresh(&pod, Bundle::restored(&node, "c1", "s1", pod.sandbox, &FRESH)).await;
}
