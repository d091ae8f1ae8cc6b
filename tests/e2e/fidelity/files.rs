// SPDX-License-Identifier: Apache-2.0
//! Open files come back as they were frozen.
//!
//! One pod runs all rows (`workloads/fidelity/files.py`) and is frozen and restored twice; the texts of the rows say what
//! each is about, and `docs/fidelity.md` by which mechanism it comes back.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::Tested;
use thaw_tests::harness::rows::{Group, no_differences};
use thaw_tests::rows;

static GROUP: Group = Group::new("files");

rows!(GROUP; read_on_the_writable_layer, read_on_a_volume, read_on_the_containers_tmpfs, append_on_the_writable_layer, append_on_a_volume, flags_and_owner, many_files, large_position, directory_and_path, devices, proc_files, locks, deleted_file, deleted_file_of_16_mb, deleted_file_on_the_containers_tmpfs, deleted_file_on_a_volume, deleted_directory, replaced_file, renamed_file, file_without_a_name, shared_file_mapping, pipes, fifo, unix_pairs, unix_listening, unix_abstract, unix_not_accepted, passed_descriptor, epoll, eventfds, inotify, terminal, controlling_terminal, signalfd);

#[tokio::test]
async fn proc_shows_every_descriptor_as_it_was() -> Tested {
    no_differences(&GROUP).await
}
