// SPDX-License-Identifier: Apache-2.0
//! Processes come back as they were frozen.
//!
//! One pod runs all rows (`workloads/fidelity/processes.py`) and is frozen and restored twice; the texts of the rows say what
//! each is about, and `docs/fidelity.md` by which mechanism it comes back.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::rows::{Group, no_differences};
use thaw_tests::harness::{HarnessError, Need, Node, Tested, until};
use thaw_tests::kubelet::state::PodState;
use thaw_tests::rows;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

static GROUP: Group = Group::new("processes");

rows!(GROUP; process_tree, threads, zombie, stopped, sessions_and_groups, parent_ended, signals_pending, signals_handled, posix_timers, timerfd, interval_timers, clocks, a_sleep, nice_and_scheduling, resource_limits, umask_directory_and_root, groups, capabilities, secure_bits, no_new_privileges, seccomp_filter, parent_death_signal, child_subreaper, not_dumpable, no_huge_pages, process_name, private_memory, private_file_mapping, shared_memory, system_v_ipc, memfd, pidfd);

#[tokio::test]
async fn proc_shows_every_process_as_it_was() -> Tested {
    no_differences(&GROUP).await
}

/// A pod that runs a Python `program`, which has said that it is ready.
async fn running(node: &Node, program: &str) -> Result<PodState, HarnessError> {
    let pod = node.counter_pod("program", 1)?.with_containers(|container| {
        container.command = ["python3", "-c", program].map(str::to_owned).to_vec();
    });
    let state = node.run(pod).await?;
    until("a word of the program", async || Ok(node.kubelet.logs(&state, "")?.pop())).await?;
    Ok(state)
}

/// Nearly always its child is between vfork and exec.
const VFORK: &str = "import ctypes, os, time\n\
    libc = ctypes.CDLL(None)\n\
    number = 56 if os.uname().machine == 'x86_64' else 220\n\
    print('ready', flush=True)\n\
    while True:\n\
    \x20   child = libc.syscall(number, 0x4000 | 17, 0, 0, 0, 0)\n\
    \x20   if child == 0:\n\
    \x20       time.sleep(0.5)\n\
    \x20       os.execv('/bin/true', ['true'])\n\
    \x20   os.waitpid(child, 0)\n\
    \x20   time.sleep(0.05)";

#[tokio::test]
async fn a_program_between_vfork_and_exec_is_let_go_on_until_it_can_be_frozen() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = running(&node, VFORK).await?;
    for _ in 0..3 {
        for archive in node.freeze(&state).await? {
            std::fs::remove_file(archive).unwrap();
        }
    }
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_child_that_never_calls_exec_is_refused_and_the_pod_goes_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = running(&node, &VFORK.replace("time.sleep(0.5)", "time.sleep(1e6)")).await?;
    let said = format!("{:?}", node.freeze(&state).await.unwrap_err());
    assert!(said.contains("(python3) has waited for 5 s for a child that it started by vfork"), "{said}");
    let command = ["cat", "/proc/1/comm"].map(str::to_owned);
    assert_eq!(node.kubelet.exec(&state, "", &command, 10).await?.stdout, "python3\n");
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn an_io_uring_is_refused_with_what_to_do_and_the_pod_goes_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let ring = "import ctypes, time\n\
                libc = ctypes.CDLL(None, use_errno=True)\n\
                assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0, ctypes.get_errno()\n\
                print('ready', flush=True)\n\
                while True: time.sleep(1)";
    let state = running(&node, ring).await?;
    let said = node.freeze(&state).await.unwrap_err();
    let said = format!("{said:?}");
    assert!(said.contains("uses an io_uring, which cannot be frozen: turn it off"), "{said}");
    let command = ["cat", "/proc/1/comm"].map(str::to_owned);
    assert_eq!(node.kubelet.exec(&state, "", &command, 10).await?.stdout, "python3\n");
    node.remove(&state).await?;
    node.leave().await
}
