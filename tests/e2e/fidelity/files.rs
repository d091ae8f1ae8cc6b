// SPDX-License-Identifier: Apache-2.0
//! Open files come back as they were frozen.
//!
//! One pod runs all rows (`workloads/fidelity/files.py`) and is frozen and restored twice; the texts of the rows say what
//! each is about, and `docs/fidelity.md` by which mechanism it comes back.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::rows::{Group, no_differences};
use thaw_tests::harness::{Need, Node, Tested};
use thaw_tests::rows;

static GROUP: Group = Group::new("files");

rows!(GROUP; read_on_the_writable_layer, read_on_a_volume, read_on_the_containers_tmpfs, append_on_the_writable_layer, append_on_a_volume, flags_and_owner, many_files, large_position, directory_and_path, devices, proc_files, locks, deleted_file, deleted_file_of_16_mb, deleted_file_on_the_containers_tmpfs, deleted_file_on_a_volume, deleted_directory, replaced_file, renamed_file, file_without_a_name, shared_file_mapping, pipes, fifo, unix_pairs, unix_listening, unix_abstract, unix_not_accepted, passed_descriptor, epoll, eventfds, inotify, terminal, controlling_terminal, signalfd);

#[tokio::test]
async fn proc_shows_every_descriptor_as_it_was() -> Tested {
    no_differences(&GROUP).await
}

#[tokio::test]
async fn a_file_that_lost_one_of_its_names_is_refused_when_frozen_and_the_pod_goes_on() -> Tested {
    let Some(node) = Node::enter(&[Need::Criu, Need::Thaw, Need::Shim]).await else { return Ok(()) };
    let program = "import os, time\n\
                   file = open('/var/tmp/first', 'w')\n\
                   os.link('/var/tmp/first', '/var/tmp/second')\n\
                   os.unlink('/var/tmp/first')\n\
                   print('ready', flush=True)\n\
                   while True: time.sleep(1)";
    let pod = node.counter_pod("links", 1)?.with_containers(|container| {
        container.command = ["python3", "-c", program].map(str::to_owned).to_vec();
    });
    let state = node.run_checked(pod).await?;
    let said = format!("{:?}", node.freeze(&state).await.unwrap_err());
    for part in ["/var/tmp/first", "lost this name", "hard links"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    let command = ["sh", "-c", "cat /proc/1/comm && rm /var/tmp/second"].map(str::to_owned);
    assert_eq!(node.kubelet.exec(&state, "", &command, 10).await?.stdout, "python3\n");
    // Without any name it comes back.
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    let again = node.counter_pod("again", 1)?.with_containers(|container| {
        container.command = ["python3", "-c", program].map(str::to_owned).to_vec();
    });
    let state = node.run(again.annotated(RESTORE, &imported.reference())).await?;
    node.remove(&state).await?;
    node.leave().await
}
