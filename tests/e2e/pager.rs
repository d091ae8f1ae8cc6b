// SPDX-License-Identifier: Apache-2.0
//! Containers that run while their memory arrives. The program does all that can be done with memory, in several
//! processes and threads, from its first instruction on, and compares every byte.

#![allow(
    clippy::tests_outside_test_module,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::Imported;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, archive, checks, process, until};
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
const PROGRAM: &str = "memory.py";
const MEMORY: &str = "thaw.dev/memory";
/// Where containerd has the bundles of CRI's containers.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
/// Where the order is kept in which pages were waited for.
const FAULT_ORDERS: &str = "/var/cache/thaw/fault-orders";
const CONFIG: &str = "/etc/thaw/config.toml";

/// Freezes the program when it has lived for a while.
async fn frozen(node: &Node, megabytes: u32) -> Result<Imported, HarnessError> {
    let pod = node.workload_pod("before", PROGRAM)?;
    let pod = pod.with_containers(|container| container.set_env("MB", &megabytes.to_string()));
    let state = node.run_checked(pod).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let imported = freeze(node, &state).await?;
    node.remove(&state).await?;
    Ok(imported)
}

/// Freezes the program. On a busy machine runc sometimes does not manage to stop several processes that fork.
async fn freeze(node: &Node, state: &PodState) -> Result<Imported, HarnessError> {
    for _ in 0..3 {
        match node.freeze_into_store(state).await {
            Err(error) if format!("{error:?}").contains("unable to freeze") => {}
            frozen => return frozen,
        }
    }
    node.freeze_into_store(state).await
}

async fn restored(node: &Node, name: &str, from: &Imported, memory: &str) -> Result<PodState, HarnessError> {
    let pod = node.workload_pod(name, PROGRAM)?.annotated(RESTORE, &from.reference());
    node.run(pod.annotated(MEMORY, memory)).await
}

async fn assert_right(node: &Node, state: &PodState) -> Result<(), HarnessError> {
    let checks = checks::ask(node, state, PROGRAM, "all").await?;
    checks.assert_ok();
    assert_eq!(checks.0.len(), 9, "three of three processes");
    Ok(())
}

fn pagers() -> Vec<u32> {
    let is_pager =
        |pid: &u32| process::read(*pid, "cmdline").is_ok_and(|line| line.starts_with("thaw-pager"));
    process::all().into_iter().filter(is_pager).collect()
}

/// Whether CRIU was given a pager, which leaves its socket behind.
fn was_lazy(state: &PodState) -> Result<bool, HarnessError> {
    let bundle = Path::new(BUNDLES).join(&state.container("")?.id);
    Ok(bundle.join("restore/lazy-pages.socket").exists())
}

/// Waits until no pager is left: all memory is there.
async fn filled() {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !pagers().is_empty() {
        assert!(Instant::now() < deadline, "the memory does not arrive");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn all_memory_is_right_while_it_arrives_and_afterwards() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 200).await?;
    let state = restored(&node, "lazy", &from, "lazy").await?;
    assert_right(&node, &state).await?;
    filled().await;
    assert_right(&node, &state).await?;
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_freeze_waits_for_the_memory_and_what_it_freezes_is_whole() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let first = frozen(&node, 200).await?;
    let state = restored(&node, "lazy", &first, "lazy").await?;
    let second = freeze(&node, &state).await?;
    assert!(pagers().is_empty());
    assert_right(&node, &state).await?;
    node.remove(&state).await?;
    for memory in ["eager", "lazy"] {
        let state = restored(&node, memory, &second, memory).await?;
        assert_right(&node, &state).await?;
        node.remove(&state).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn a_pager_that_is_killed_takes_its_container_along_and_the_log_says_why() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 600).await?;
    let mut state = restored(&node, "lazy", &from, "lazy").await?;
    for _ in 0..5 {
        if !pagers().is_empty() {
            break;
        }
        // The memory was there before it could be looked at.
        node.remove(&state).await?;
        state = restored(&node, "lazy", &from, "lazy").await?;
    }
    let pager = *pagers().first().expect("a pager that is still at work");
    process::output("kill", &["-9", &pager.to_string()])?;
    assert_eq!(node.exit_code(&state, "").await?, 137);
    let lines = node.kubelet.logs(&state, "")?;
    let said = lines.iter().find(|line| line.text.starts_with("thaw: the pager"));
    assert!(said.is_some_and(|line| line.text.contains("killed")), "{lines:?}");
    node.remove(&state).await?;
    node.leave().await
}

/// Waits until there is one pager, and returns its pid; or until there is none.
async fn waiting(wanted: bool) -> Result<Option<u32>, HarnessError> {
    until("a pager that waits, or its end", async || {
        let pagers = pagers();
        Ok((pagers.is_empty() != wanted).then(|| pagers.first().copied()))
    })
    .await
}

#[tokio::test]
async fn a_pager_that_is_killed_before_its_container_is_made_is_replaced() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 50).await?;
    let mut pod = node.workload_pod("later", PROGRAM)?.annotated(RESTORE, &from.reference());
    // The program's container is made when this one has ended.
    let mut first = pod.spec.containers.first().expect("the program's container").clone();
    (first.name, first.command, first.args) = ("first".into(), vec!["sleep".into(), "5".into()], vec![]);
    pod.spec.init_containers.push(first);
    let killed = async {
        let early = waiting(true).await?.expect("a pager");
        process::output("kill", &["-9", &early.to_string()])?;
        waiting(false).await
    };
    let (state, killed) = tokio::join!(node.kubelet.run(pod.annotated(MEMORY, "lazy")), killed);
    let (state, _) = (state?, killed?);
    assert!(was_lazy(&state)?);
    assert_right(&node, &state).await?;
    filled().await;
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_pager_whose_container_is_never_made_goes_with_its_pod() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 50).await?;
    let mut pod = node.workload_pod("never", PROGRAM)?.annotated(RESTORE, &from.reference());
    pod.spec.containers.clear();
    let state = node.kubelet.run(pod.annotated(MEMORY, "lazy")).await?;
    assert!(waiting(true).await?.is_some());
    node.remove(&state).await?;
    assert!(waiting(false).await?.is_none());
    node.leave().await
}

#[tokio::test]
async fn a_pager_that_gives_up_during_the_restore_leaves_the_normal_start_alone() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 64).await?;
    archive::scramble(&from.dir().join("program/checkpoint/mm-1.img"))?;
    let again = node.workload_pod("again", PROGRAM)?.annotated(RESTORE, &from.reference());
    let again = again.annotated(MEMORY, "lazy");
    let said = node.kubelet.run(again.clone()).await.unwrap_err();
    let said = said.cri_message().unwrap_or_default();
    assert!(said.contains("the images cannot be read: image mm-1.img is damaged"), "{said}");
    node.remove(&node.kubelet.find(&node.namespace, "again")?).await?;
    let state = node.run_checked(again.annotated("thaw.dev/if-failed", "start")).await?;
    assert!(!was_lazy(&state)? && pagers().is_empty());
    assert_right(&node, &state).await?;
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn two_restores_of_one_checkpoint_fill_at_once_and_one_removed_takes_its_pager_along() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 400).await?;
    let one = restored(&node, "one", &from, "lazy").await?;
    let two = restored(&node, "two", &from, "lazy").await?;
    node.remove(&one).await?;
    assert!(pagers().len() <= 1, "the pager of a removed pod is gone");
    assert_right(&node, &two).await?;
    node.remove(&two).await?;
    assert!(pagers().is_empty());
    node.leave().await
}

#[tokio::test]
async fn the_node_may_make_it_the_default_and_a_pod_may_differ() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 64).await?;
    let before = std::fs::read(CONFIG).ok();
    std::fs::create_dir_all("/etc/thaw").unwrap();
    std::fs::write(CONFIG, "memory = \"lazy\"\nfill_threads = 1\n").unwrap();
    let pod = node.workload_pod("default", PROGRAM)?.annotated(RESTORE, &from.reference());
    let default = node.run(pod).await?;
    let eager = restored(&node, "eager", &from, "eager").await?;
    assert!(was_lazy(&default)? && !was_lazy(&eager)?);
    match before {
        Some(text) => std::fs::write(CONFIG, text).unwrap(),
        None => std::fs::remove_file(CONFIG).unwrap(),
    }
    for state in [default, eager] {
        assert_right(&node, &state).await?;
        node.remove(&state).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn the_second_restore_knows_what_the_first_one_waited_for_until_the_checkpoint_is_removed() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 200).await?;
    let name = format!("{}+{}+{}+", from.namespace, from.lineage, from.id);
    let orders = || -> Vec<String> {
        let entries = std::fs::read_dir(FAULT_ORDERS).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    for _ in 0..2 {
        let state = restored(&node, "lazy", &from, "lazy").await?;
        filled().await;
        assert_right(&node, &state).await?;
        node.remove(&state).await?;
        let known = orders();
        assert_eq!(known.iter().filter(|order| order.starts_with(&name)).count(), 1, "{known:?}");
        assert!(known.iter().all(|order| !order.starts_with('.')), "{known:?}");
    }
    // One that is no order of faults changes nothing.
    let order = orders().into_iter().find(|order| order.starts_with(&name)).unwrap();
    std::fs::write(Path::new(FAULT_ORDERS).join(&order), [0x74; 100_000]).unwrap();
    let state = restored(&node, "lazy", &from, "lazy").await?;
    assert_right(&node, &state).await?;
    node.remove(&state).await?;
    process::output("thaw", &["rm", &format!("{}/{}/{}", from.namespace, from.lineage, from.id)])?;
    assert!(!orders().contains(&order));
    node.leave().await
}

#[tokio::test]
async fn a_container_that_has_no_room_for_its_memory_is_killed_for_it_and_does_not_hang() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let from = frozen(&node, 400).await?;
    let pod = node.workload_pod("narrow", PROGRAM)?.annotated(RESTORE, &from.reference());
    // Less than its first process needs alone, for the kernel may kill the others first.
    let pod = pod.annotated(MEMORY, "lazy").with_containers(|container| {
        container.resources.limits.memory = serde_json::from_str("\"80Mi\"").ok();
    });
    let state = node.kubelet.run(pod.clone()).await?;
    assert_eq!(node.exit_code(&state, "").await?, 137);
    filled().await;
    node.remove(&state).await?;
    // The same before it runs: the reason is not that CRIU has ended.
    let error = node.run(pod.annotated(MEMORY, "eager")).await.unwrap_err().to_string();
    assert!(error.contains("raise `resources.limits.memory`"), "{error}");
    node.remove(&node.kubelet.find(&node.namespace, "narrow")?).await?;
    node.leave().await
}
