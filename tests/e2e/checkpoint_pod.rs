// SPDX-License-Identifier: Apache-2.0
//! `thaw checkpoint`: a whole pod is frozen at one instant, straight into the store, and goes on; whatever dies meanwhile.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::zombie_processes,
    reason = "the whole file is tests"
)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use thaw_tests::harness::counter::{self, PORT};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::{self, STORE};
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process, shim, until};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// Enough memory that a dump takes longer than it takes to kill somebody.
const MEGABYTES: u32 = 128;
/// Bytes whose digest takes much longer than a command in a container.
const LONG: u64 = 6 << 30;
/// Says that it cannot be frozen, and is not.
const SEMAPHORE: &str =
    "import os, time; held = os.eventfd(0, os.EFD_SEMAPHORE); print('held', flush=True); time.sleep(10**6)";

/// A pod with these two containers beside each other, each a program of the tests.
fn two(node: &Node, name: &str, arguments: [(&str, &[&str]); 2]) -> Result<Pod, HarnessError> {
    let mut pod = node.workload_pod(name, "pair.py")?;
    pod.spec.volumes.extend(node.parsed::<Vec<_>>("[{name: data, emptyDir: {}}]")?);
    let mut container = pod.spec.containers.remove(0);
    container.volume_mounts.extend(node.parsed::<Vec<_>>("[{name: data, mountPath: /data}]")?);
    for (name, command) in arguments {
        let mut container = container.clone();
        name.clone_into(&mut container.name);
        container.command = command.iter().map(|word| (*word).to_owned()).collect();
        pod.spec.containers.push(container);
    }
    Ok(pod.annotated("thaw.dev/volumes", "data").annotated("thaw.dev/lineage", "pair"))
}

const LEFT: (&str, &[&str]) = ("left", &["python3", "-u", "/workloads/pair.py", "left"]);
const RIGHT: (&str, &[&str]) = ("right", &["python3", "-u", "/workloads/pair.py", "right"]);

/// What the log of a container says: whether its program started here, and the last number.
fn said(node: &Node, state: &PodState, container: &str) -> Result<(bool, Option<u64>), HarnessError> {
    let lines: Vec<String> = node.kubelet.logs(state, container)?.into_iter().map(|line| line.text).collect();
    assert!(
        !lines.iter().any(|line| line.contains("broken") || line.contains("Error")),
        "{container}: {lines:?}"
    );
    let last = lines.iter().rev().find_map(|line| line.strip_prefix("at ")?.parse().ok());
    Ok((lines.iter().any(|line| line == "started"), last))
}

/// Waits until both have counted further than `above`, and returns how far the left one is.
async fn counted(node: &Node, state: &PodState, above: u64, started: bool) -> Result<u64, HarnessError> {
    let further = async || {
        let (left, right) = (said(node, state, "left")?, said(node, state, "right")?);
        let further = left.1.filter(|left| *left > above && right.1.is_some_and(|right| right > above));
        assert!(further.is_none() || (left.0, right.0) == (started, started), "{left:?} {right:?}");
        Ok(further)
    };
    until(&format!("numbers above {above}"), further).await
}

/// Everything that belongs to the test's namespace in the store: finished checkpoints, and others.
fn stored(node: &Node) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let dir = Path::new(STORE).join(&node.namespace);
    let lineages = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let all = lineages.flat_map(|lineage| std::fs::read_dir(lineage.path()).into_iter().flatten().flatten());
    all.map(|entry| entry.path())
        .partition(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'))
}

/// Runs the command until it has begun to write memory.
async fn begun(node: &Node, state: &PodState) -> Result<Child, HarnessError> {
    let name = format!("{}/{}", node.namespace, state.pod.metadata.name);
    let child = Command::new("thaw").args(["checkpoint", &name]).stderr(Stdio::piped()).spawn().unwrap();
    let writes = async || {
        let dirs =
            stored(node).1.into_iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
        let images =
            dirs.flat_map(|dir| std::fs::read_dir(dir.path().join("checkpoint")).into_iter().flatten());
        Ok(images.flatten().any(|image| image.file_name() == "pages-1.img").then_some(()))
    };
    until("images of memory", writes).await?;
    Ok(child)
}

#[tokio::test]
async fn containers_that_share_memory_and_a_volume_are_frozen_at_one_instant_and_go_on_twice() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pod = |name| two(&node, name, [LEFT, RIGHT]);
    let mut state = node.run(pod("life-0")?).await?;
    let mut at = counted(&node, &state, 0, true).await?;
    for (life, arguments) in [("life-1", [].as_slice()), ("life-2", ["--stop"].as_slice())] {
        let made = thaw::checkpoint(&state, arguments)?;
        assert_eq!((&made.namespace, made.lineage.as_str()), (&node.namespace, "pair"));
        assert!(stored(&node).0.contains(&made.dir()) && stored(&node).1.is_empty(), "{:?}", stored(&node));
        let number = |container: &str, file: &str| {
            std::fs::metadata(made.dir().join(container).join("checkpoint").join(file)).unwrap().ino()
        };
        for file in ["thaw-shm.tar", "thaw-volume-data.tar"] {
            assert_eq!(number("left", file), number("right", file), "{file} is there once");
        }
        if arguments.is_empty() {
            let now = said(&node, &state, "left")?.1.unwrap_or(0);
            counted(&node, &state, now, true).await?;
        } else {
            for container in ["left", "right"] {
                assert_eq!(node.exit_code(&state, container).await?, 137);
            }
        }
        node.remove(&state).await?;
        state = node.run(pod(life)?.annotated(RESTORE, "latest")).await?;
        at = counted(&node, &state, at, false).await?;
    }
    node.remove(&state).await?;
    node.leave().await
}

/// Containers of programs that share System V objects; those named attach the shared memory.
fn sysv(node: &Node, name: &str, attached: &[&str]) -> Result<Pod, HarnessError> {
    let with = |name: &str| {
        let side = if name == "left" { "first" } else { "second" };
        let attach = if attached.contains(&name) { "attach" } else { "look" };
        ["python3", "-u", "/workloads/sysv.py", side, attach]
    };
    two(node, name, [("left", &with("left")), ("right", &with("right"))])
}

#[tokio::test]
async fn containers_that_share_system_v_objects_go_on_twice_whichever_has_attached_the_memory() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    for attached in ["left", "right"] {
        let pod = |life: u32| sysv(&node, &format!("{attached}-{life}"), &[attached]);
        let mut state = node.run(pod(0)?).await?;
        let mut at = counted(&node, &state, 0, true).await?;
        for life in [1, 2] {
            thaw::checkpoint(&state, &["--stop"])?;
            node.remove(&state).await?;
            state = node.run(pod(life)?.annotated(RESTORE, "latest")).await?;
            at = counted(&node, &state, at, false).await?;
        }
        node.remove(&state).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn shared_memory_that_two_containers_have_attached_is_refused_in_words() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pod = |name| sysv(&node, name, &["left", "right"]);
    let state = node.run(pod("life-0")?).await?;
    counted(&node, &state, 0, true).await?;
    thaw::checkpoint(&state, &["--stop"])?;
    node.remove(&state).await?;
    let refused = node.run(pod("life-1")?.annotated(RESTORE, "latest")).await.unwrap_err().to_string();
    node.remove(&node.kubelet.find(&node.namespace, "life-1")?).await?;
    for part in
        ["bringing System V objects", "System V shared memory segment", "(key 0x7b01) is attached in another"]
    {
        assert!(refused.contains(part), "{part:?} is not in {refused}");
    }
    node.leave().await
}

#[tokio::test]
async fn a_pod_goes_on_and_nothing_is_left_when_the_command_is_killed() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = node.run_counter(node.counter_pod("counter", MEGABYTES)?).await?;
    let before = counter::state(&state, PORT).await?;
    let mut child = begun(&node, &state).await?;
    child.kill().unwrap();
    child.wait().unwrap();
    until("an empty store", async || Ok(stored(&node).1.is_empty().then_some(()))).await?;
    assert!(stored(&node).0.is_empty(), "{:?}", stored(&node));
    let after = counter::verify(&state, PORT).await?;
    assert!(after.started == before.started && after.crc_ok, "{after:?}");
    // It can be frozen, by the kubelet as well meanwhile: one waits for the other, or says that it is there.
    let mut child = begun(&node, &state).await?;
    let archive = node.kubelet.checkpoint(&state, "", None).await?;
    std::fs::remove_file(archive).unwrap();
    assert!(child.wait().unwrap().success());
    let made = stored(&node).0;
    assert_eq!(made.len(), 1);
    let lost = counter::verify(&state, PORT).await?;
    assert_eq!(lost.started, before.started);
    node.remove(&state).await?;
    let again = node.counter_pod("counter", MEGABYTES)?.annotated(RESTORE, "latest");
    let again = node.run(again).await?;
    let restored = counter::verify(&again, PORT).await?;
    assert!(restored.started == before.started && restored.crc_ok, "{restored:?}");
    node.remove(&again).await?;
    node.leave().await
}

#[tokio::test]
async fn while_it_is_read_for_its_digests_the_pod_is_served_and_may_even_go() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = node.run_counter(node.counter_pod("counter", MEGABYTES)?).await?;
    let mut child = begun(&node, &state).await?;
    // Something that takes seconds to read, and nothing to write.
    let folder = stored(&node).1.remove(0).join("counter");
    std::fs::File::create(folder.join("checkpoint/long.img")).unwrap().set_len(LONG).unwrap();
    // The last of what the containers are asked for.
    until("its description", async || Ok(folder.join("spec.dump").exists().then_some(()))).await?;
    assert_eq!(node.kubelet.exec(&state, "", &["true".to_owned()], 20).await?.exit_code, 0);
    assert!(child.try_wait().unwrap().is_none(), "it has waited for the checkpoint");
    node.remove(&state).await?;
    assert!(child.wait().unwrap().success());
    assert_eq!((stored(&node).0.len(), stored(&node).1.len()), (1, 0));
    let again = node.run(node.counter_pod("counter", MEGABYTES)?.annotated(RESTORE, "latest")).await?;
    assert!(counter::verify(&again, PORT).await?.crc_ok);
    node.remove(&again).await?;
    node.leave().await
}

#[tokio::test]
async fn what_a_killed_shim_has_begun_is_no_checkpoint_and_the_next_one_cleans_it() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let state = node.run_counter(node.counter_pod("counter", MEGABYTES)?).await?;
    let child = begun(&node, &state).await?;
    process::output("kill", &["-KILL", &shim::pid(&state.sandbox_id)?.to_string()])?;
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("the shim of pod"), "{text}");
    assert!(stored(&node).0.is_empty() && stored(&node).1.len() == 1, "{:?}", stored(&node));
    let ends = async || Ok(node.exit_code(&state, "").await.ok());
    until("the end of the container", ends).await?;
    node.remove(&state).await?;
    let other = node.run(node.shell_pod("other", "while :; do sleep 1; done")?).await?;
    let made = thaw::checkpoint(&other, &[])?;
    assert_eq!(stored(&node), (vec![made.dir()], Vec::new()));
    node.remove(&other).await?;
    node.leave().await
}

#[tokio::test]
async fn where_one_container_cannot_be_frozen_none_is_dumped_and_all_go_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let holds: (&str, &[&str]) = ("holds", &["python3", "-u", "-c", SEMAPHORE]);
    let counts: (&str, &[&str]) =
        ("counts", &["sh", "-c", "i=0; while :; do i=$((i+1)); echo at $i; sleep 0.05; done"]);
    let state = node.run(two(&node, "pod", [counts, holds])?).await?;
    let held = async || {
        let lines = node.kubelet.logs(&state, "holds")?;
        Ok(lines.iter().any(|line| line.text == "held").then_some(()))
    };
    until("a descriptor that cannot be frozen", held).await?;
    let refused = thaw::checkpoint(&state, &[]).unwrap_err().to_string();
    for part in
        ["cannot freeze pod", "it goes on", "container holds", "EFD_SEMAPHORE, which cannot be frozen"]
    {
        assert!(refused.contains(part), "{part:?} is not in {refused}");
    }
    assert_eq!(stored(&node), (Vec::new(), Vec::new()));
    let last = || said(&node, &state, "counts").map(|(_, last)| last.unwrap_or(0));
    let now = last()?;
    until("more numbers", async || Ok((last()? > now).then_some(()))).await?;
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_pod_that_is_not_there_or_that_another_runtime_runs_is_said_to_be_so() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let ask = |pod: &str| process::output("thaw", &["checkpoint", pod]).unwrap_err().to_string();
    let nowhere = ask("nobody/nowhere");
    assert!(nowhere.contains("there is no pod nobody/nowhere on this node"), "{nowhere}");
    let other = node.run(node.shell_pod("other", "sleep 1000")?.under("runc")).await?;
    let said = ask(&format!("{}/other", node.namespace));
    assert!(said.contains("does not run under thaw's RuntimeClass"), "{said}");
    assert_eq!(stored(&node), (Vec::new(), Vec::new()));
    node.remove(&other).await?;
    node.leave().await
}
