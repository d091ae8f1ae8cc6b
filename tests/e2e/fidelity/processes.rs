// SPDX-License-Identifier: Apache-2.0
//! Processes come back as they were frozen.
//!
//! One pod runs all rows (`workloads/fidelity/processes.py`) and is frozen and restored twice; the texts of the rows say what
//! each is about, and `docs/fidelity.md` by which mechanism it comes back.

#![allow(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "the whole file is tests")]

use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::rows::{Group, no_differences};
use thaw_tests::harness::{HarnessError, Need, Node, Tested, until};
use thaw_tests::kubelet::state::PodState;
use thaw_tests::rows;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

static GROUP: Group = Group::new("processes");

rows!(GROUP; process_tree, threads, zombie, stopped, sessions_and_groups, parent_ended, signals_pending, signals_handled, posix_timers, timerfd, interval_timers, clocks, a_sleep, nice_and_scheduling, affinity, timer_slack, resource_limits, umask_directory_and_root, groups, capabilities, secure_bits, no_new_privileges, seccomp_filter, parent_death_signal, child_subreaper, not_dumpable, no_huge_pages, process_name, private_memory, private_file_mapping, shared_memory, system_v_ipc, memfd, pidfd);

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

/// Memory in huge pages, private and in a memfd, of which it says every second whether it is as it was.
const HUGE: &str = "import hashlib, mmap, os, time\n\
    HUGE = 0x40000\n\
    private = mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | HUGE)\n\
    file = os.memfd_create('huge', os.MFD_HUGETLB)\n\
    os.ftruncate(file, 4 << 20)\n\
    shared = mmap.mmap(file, 4 << 20)\n\
    for memory in (private, shared): memory.write(os.urandom(4 << 20))\n\
    digest = lambda: [hashlib.sha256(memory).hexdigest() for memory in (private, shared)]\n\
    huge = lambda: sum(line.startswith('VmFlags:') and ' ht' in line for line in open('/proc/self/smaps'))\n\
    before = digest()\n\
    while True:\n\
    \x20   print('same' if digest() == before else 'different', huge(), flush=True)\n\
    \x20   time.sleep(1)";

#[tokio::test]
async fn memory_in_huge_pages_is_as_it_was_and_in_huge_pages() -> Tested {
    let Some(node) = Node::enter(&[NEEDS, &[Need::HugePages]].concat()).await else { return Ok(()) };
    let state = running(&node, HUGE).await?;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    let again = node.counter_pod("again", 1)?.with_containers(|container| {
        container.command = ["python3", "-c", HUGE].map(str::to_owned).to_vec();
    });
    let state = node.run(again.annotated(RESTORE, &imported.reference())).await?;
    let said = until("a word of the program", async || Ok(node.kubelet.logs(&state, "")?.pop())).await?;
    assert_eq!(said.text, "same 2");
    node.remove(&state).await?;
    node.leave().await
}

/// Under a security module: what `/proc/1/attr/current` says of a pod and of the one that it became.
async fn labels(need: Need) -> Result<Option<[String; 2]>, HarnessError> {
    let Some(node) = Node::enter(&[NEEDS, &[need]].concat()).await else { return Ok(None) };
    let pod = |name: &str| node.shell_pod(name, "while :; do sleep 1; done");
    let command = ["cat", "/proc/1/attr/current"].map(str::to_owned);
    let state = node.run(pod("before")?).await?;
    let before = node.kubelet.exec(&state, "", &command, 10).await?.stdout;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    let state = node.run(pod("after")?.annotated(RESTORE, &imported.reference())).await?;
    let after = node.kubelet.exec(&state, "", &command, 10).await?.stdout;
    node.remove(&state).await?;
    node.leave().await?;
    Ok(Some([before, after]))
}

#[tokio::test]
async fn under_apparmor_processes_come_back_under_the_new_pods_profile() -> Tested {
    let Some([before, after]) = labels(Need::AppArmor).await? else { return Ok(()) };
    assert_eq!(before.trim(), "cri-containerd.apparmor.d (enforce)");
    assert_eq!(after, before);
    Ok(())
}

#[tokio::test]
async fn under_selinux_processes_come_back_under_the_new_pods_label() -> Tested {
    let Some([before, after]) = labels(Need::Selinux).await? else { return Ok(()) };
    // Type and categories: each pod has categories of its own.
    let split = |label: &str| {
        label.trim_matches(['\0', '\n']).rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))
    };
    let ((before, old), (after, new)) = (split(&before).unwrap(), split(&after).unwrap());
    assert!(before.contains("container_t"), "{before}");
    assert_eq!(after, before);
    assert_ne!(old, new);
    Ok(())
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
