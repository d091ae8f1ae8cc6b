// SPDX-License-Identifier: Apache-2.0
//! `thaw-nri` beside a plugin that gives out devices, under a real runtime: what a restored container needs is there
//! before it runs, and every way in which the plugin may be missing.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::time::{Duration, Instant};

use thaw_tests::harness::nri::{DEVICES, FILES, Injector, Program};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::Imported;
use thaw_tests::harness::{HarnessError, Need, Node, Tested};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// Numbers of stand-ins: /dev/null, and /dev/kmsg, which no container may open unless it is given.
const NULL: &str = "1:3";
const KMSG: &str = "1:11";

/// A program that holds a device open and opens it again whenever it is asked to.
const HOLDER: &str = "exec 3>/dev/gpu0; while :; do sleep 0.2; \
    [ -e /tmp/ask ] && rm /tmp/ask && (: >/dev/gpu0) && echo opened >/tmp/answer; done";

fn holder(node: &Node, name: &str, devices: &str) -> Result<Pod, HarnessError> {
    Ok(node.shell_pod(name, HOLDER)?.annotated(DEVICES, devices))
}

async fn shell(node: &Node, state: &PodState, script: &str) -> Result<String, HarnessError> {
    let command = ["sh", "-c", script].map(str::to_owned);
    Ok(node.kubelet.exec(state, "", &command, 10).await?.stdout)
}

/// What the program, and no new process, says when it opens its device again.
async fn opens_again(node: &Node, state: &PodState) -> Result<String, HarnessError> {
    shell(node, state, "rm -f /tmp/answer; touch /tmp/ask").await?;
    let began = Instant::now();
    loop {
        let said = shell(node, state, "cat /tmp/answer 2>/dev/null; true").await?;
        if !said.is_empty() || began.elapsed() > Duration::from_secs(20) {
            return Ok(said);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a program's descriptor 3 is, and the numbers of what is at `path`.
async fn looks(node: &Node, state: &PodState, path: &str) -> Result<String, HarnessError> {
    let script = format!("stat -Lc %t:%T /proc/1/fd/3; stat -c %t:%T {path}");
    Ok(shell(node, state, &script).await?.replace('\n', " "))
}

async fn checkpoint(node: &Node, pod: Pod) -> Result<Imported, HarnessError> {
    let state = node.run(pod).await?;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    Ok(imported)
}

/// What the runtime says when it refuses a pod, which is removed.
async fn refused(node: &Node, pod: Pod) -> Result<String, HarnessError> {
    let name = pod.metadata.name.clone();
    let Some(error) = node.kubelet.run(pod).await.err() else { panic!("{name} started") };
    let message = error.cri_message().unwrap_or_default().to_owned();
    node.remove(&node.kubelet.find(&node.namespace, &name)?).await?;
    println!("{message}");
    Ok(message)
}

#[tokio::test]
async fn a_program_goes_on_with_another_device_under_the_old_path_and_the_new_one() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let program = Program::start()?;
    let imported = checkpoint(&node, holder(&node, "before", &format!("/dev/gpu0={NULL}"))?).await?;

    let after =
        holder(&node, "after", &format!("/dev/gpu3={KMSG}"))?.annotated(RESTORE, &imported.reference());
    let after = node.run(after).await?;
    assert_eq!(looks(&node, &after, "/dev/gpu3").await?, "1:b 1:b ");
    assert_eq!(looks(&node, &after, "/dev/gpu0").await?, "1:b 1:b ");
    assert_eq!(opens_again(&node, &after).await?, "opened\n");
    program.wait_for("prepared", 1)?;
    node.remove(&after).await?;
    drop((program, injecting));
    node.leave().await
}

#[tokio::test]
async fn a_device_that_the_new_pod_was_not_given_is_not_there_and_cannot_be_opened() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let program = Program::start()?;
    let pod = node
        .shell_pod("before", "while :; do sleep 1; done")?
        .annotated(DEVICES, "/dev/gpu0=1:11,/dev/x=1:3");
    let imported = checkpoint(&node, pod).await?;

    let none = node.shell_pod("none", "while :; do sleep 1; done")?.annotated(RESTORE, &imported.reference());
    let message = refused(&node, none.clone()).await?;
    assert!(
        message.contains("\\\"/dev/x\\\", \\\"/dev/gpu0\\\"")
            || message.contains("\"/dev/x\", \"/dev/gpu0\""),
        "{message}"
    );

    // Given as the same numbers under another family: still no /dev/gpu0, and nothing of it that opens.
    let other = node.shell_pod("other", "while :; do sleep 1; done")?;
    let other =
        other.annotated(DEVICES, "/dev/gpu0=1:3,/dev/x=1:3").annotated(RESTORE, &imported.reference());
    let other = node.run(other).await?;
    let said =
        shell(&node, &other, "stat -c %t:%T /dev/gpu0; mknod /dev/k c 1 11; (: >/dev/k) 2>&1; true").await?;
    assert!(said.starts_with("1:3\n") && said.contains("not permitted"), "{said}");
    node.remove(&other).await?;
    drop((program, injecting));
    node.leave().await
}

#[tokio::test]
async fn driver_files_that_the_checkpoint_knows_are_mounted_where_the_administrator_allows_it() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let drivers = tempfile::tempdir_in("/var/tmp").unwrap();
    for file in ["driver.so", "secret"] {
        std::fs::write(drivers.path().join(file), "from the node").unwrap();
    }
    let source = |file: &str| drivers.path().join(file).display().to_string();
    let sleeper = |name| node.shell_pod(name, "while :; do sleep 1; done");
    let files = |list: &[&str]| {
        let pairs = list.iter().map(|file| format!("/lib/{file}={}", source(file)));
        pairs.collect::<Vec<_>>().join(",")
    };
    let with_both =
        checkpoint(&node, sleeper("both")?.annotated(FILES, &files(&["driver.so", "secret"]))).await?;
    let with_one = checkpoint(&node, sleeper("one")?.annotated(FILES, &files(&["driver.so"]))).await?;

    let program = Program::start_with(&format!("driver_files = [{:?}]", source("driver.so")))?;
    let message = refused(&node, sleeper("a")?.annotated(RESTORE, &with_both.reference())).await?;
    assert!(message.contains("/lib/secret") && !message.contains("/lib/driver.so"), "{message}");
    assert!(!message.contains("thaw-nri is not running"), "{message}");
    let state = node.run(sleeper("b")?.annotated(RESTORE, &with_one.reference())).await?;
    let said = shell(&node, &state, "cat /lib/driver.so; touch /lib/driver.so 2>&1; true").await?;
    assert!(said.starts_with("from the node") && said.contains("Read-only"), "{said}");
    node.remove(&state).await?;

    drop(program);
    let message = refused(&node, sleeper("c")?.annotated(RESTORE, &with_both.reference())).await?;
    for word in ["/lib/secret", "/lib/driver.so", "thaw-nri is not running on this node"] {
        assert!(message.contains(word), "{message}");
    }
    drop((injecting, drivers));
    node.leave().await
}

#[tokio::test]
async fn without_the_plugin_a_restore_that_needs_it_says_so_and_one_that_does_not_works() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let imported = checkpoint(&node, holder(&node, "before", &format!("/dev/gpu0={NULL}"))?).await?;
    let moved =
        holder(&node, "moved", &format!("/dev/gpu3={KMSG}"))?.annotated(RESTORE, &imported.reference());
    let message = refused(&node, moved).await?;
    assert!(message.contains("thaw-nri is not running on this node"), "{message}");
    assert!(message.contains("/dev/gpu0"), "{message}");

    let same = holder(&node, "same", &format!("/dev/gpu0={KMSG}"))?.annotated(RESTORE, &imported.reference());
    let same = node.run(same).await?;
    assert_eq!(looks(&node, &same, "/dev/gpu0").await?, "1:b 1:b ");
    assert_eq!(opens_again(&node, &same).await?, "opened\n");
    node.remove(&same).await?;
    drop(injecting);
    node.leave().await
}

#[tokio::test]
async fn a_pod_that_forges_notes_of_the_node_gets_nothing_from_them() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let injecting = Injector::register(None).await?;
    let imported = checkpoint(&node, holder(&node, "before", &format!("/dev/gpu0={NULL}"))?).await?;
    let forged = |name: &str, devices: &str| {
        let pod = holder(&node, name, devices)?.annotated(RESTORE, &imported.reference());
        let pod = pod.annotated("thaw.dev/internal.prepared", "another/checkpoint/x");
        Ok::<_, HarnessError>(pod.annotated("thaw.dev/internal.gpu-map", "a=b"))
    };
    // Without the plugin nobody strips them, and the shim refuses the pod that set them.
    let message = refused(&node, forged("alone", &format!("/dev/gpu0={NULL}"))?).await?;
    assert!(message.contains("thaw.dev/internal.prepared") && message.contains("reserved"), "{message}");

    // With it they are its own, or gone; a device that was not given stays away.
    let program = Program::start()?;
    let message = refused(&node, forged("without", "")?).await?;
    assert!(message.contains("/dev/gpu0"), "{message}");
    program.wait_for("removed annotations", 1)?;
    drop((program, injecting));
    node.leave().await
}
