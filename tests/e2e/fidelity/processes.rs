// SPDX-License-Identifier: Apache-2.0
//! Processes come back as they were frozen.
//!
//! One pod runs all rows (`workloads/fidelity/processes.py`) and is frozen and restored twice; the texts of the rows say what
//! each is about, and `docs/fidelity.md` by which mechanism it comes back.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::rows::{Group, no_differences};
use thaw_tests::harness::{Need, Node, Tested};
use thaw_tests::rows;

static GROUP: Group = Group::new("processes");

rows!(GROUP; process_tree, threads, zombie, stopped, sessions_and_groups, parent_ended, signals_pending, signals_handled, posix_timers, timerfd, interval_timers, clocks, a_sleep, nice_and_scheduling, resource_limits, umask_directory_and_root, groups, capabilities, secure_bits, no_new_privileges, seccomp_filter, parent_death_signal, child_subreaper, not_dumpable, no_huge_pages, process_name, private_memory, private_file_mapping, shared_memory, memfd, pidfd);

#[tokio::test]
async fn proc_shows_every_process_as_it_was() -> Tested {
    no_differences(&GROUP).await
}

#[tokio::test]
async fn an_io_uring_is_refused_with_what_to_do_and_the_pod_goes_on() -> Tested {
    let Some(node) = Node::enter(&[Need::Criu, Need::Thaw, Need::Shim]).await else { return Ok(()) };
    let ring = "import ctypes, time\n\
                libc = ctypes.CDLL(None, use_errno=True)\n\
                assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0, ctypes.get_errno()\n\
                print('ready', flush=True)\n\
                while True: time.sleep(1)";
    let pod = node.counter_pod("ring", 1)?.with_containers(|container| {
        container.command = ["python3", "-c", ring].map(str::to_owned).to_vec();
    });
    let state = node.run(pod).await?;
    let began = std::time::Instant::now();
    while node.kubelet.logs(&state, "")?.is_empty() && began.elapsed().as_secs() < 30 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let said = node.freeze(&state).await.unwrap_err();
    let said = format!("{said:?}");
    assert!(said.contains("uses an io_uring, which cannot be frozen: turn it off"), "{said}");
    let command = ["cat", "/proc/1/comm"].map(str::to_owned);
    assert_eq!(node.kubelet.exec(&state, "", &command, 10).await?.stdout, "python3\n");
    node.remove(&state).await?;
    node.leave().await
}
