// SPDX-License-Identifier: Apache-2.0
//! What a frozen pod had in /dev/shm and in its volumes, in a new one.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::time::Duration;

use thaw_tests::harness::checks::{self, Checks};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, archive};
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// How long a program may take to set everything up, and how often to look.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
const VOLUMES: &str = "thaw.dev/volumes";

/// A pod with files in /dev/shm and in these of its two emptyDir volumes: `data` on disk and `mem` in memory.
fn pod(node: &Node, name: &str, used: &str) -> Result<Pod, HarnessError> {
    let mut pod = node.workload_pod(name, "volumes.py")?;
    let volumes = "[{name: data, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory}}]";
    let mounts = "[{name: data, mountPath: /data}, {name: mem, mountPath: /mem, subPath: part}]";
    pod.spec.volumes.extend(node.parsed::<Vec<_>>(volumes)?);
    let container = &mut pod.spec.containers[0];
    container.volume_mounts.extend(node.parsed::<Vec<_>>(mounts)?);
    container.set_env("EMPTY_DIRS", used);
    Ok(pod)
}

async fn check(node: &Node, state: &PodState) -> Result<Checks, HarnessError> {
    checks::ask(node, state, "volumes.py", "all").await
}

/// What the runtime says when it cannot run a pod, which is removed.
async fn refused(node: &Node, pod: Pod) -> Result<String, HarnessError> {
    let name = pod.metadata.name.clone();
    let error = node.kubelet.run(pod).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default().to_owned();
    node.remove(&node.kubelet.find(&node.namespace, &name)?).await?;
    Ok(message)
}

#[tokio::test]
async fn shm_and_named_empty_dirs_come_back_as_they_were() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let named = |name| pod(&node, name, "/data:/mem").map(|pod| pod.annotated(VOLUMES, "data, mem"));
    let mut state = node.run_checked(named("life-0")?).await?;
    for life in ["life-1", "life-2"] {
        let imported = node.freeze_into_store(&state).await?;
        check(&node, &state).await?.assert_ok();
        node.remove(&state).await?;
        state = node.run(named(life)?.annotated(RESTORE, &imported.reference())).await?;
        check(&node, &state).await?.assert_ok();
    }
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn volumes_that_the_pod_or_the_checkpoint_lacks_are_named() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let old = node.run_checked(pod(&node, "before", "")?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let again = pod(&node, "after", "")?.annotated(RESTORE, &imported.reference());
    let message = refused(&node, again.annotated(VOLUMES, "data,scratch")).await?;
    for part in ["\"scratch\"", "data, mem", "\"data\"", "before the pod is frozen"] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    node.leave().await
}

#[tokio::test]
async fn a_failed_restore_leaves_nothing_in_the_volumes() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let named = |name| pod(&node, name, "/data:/mem").map(|pod| pod.annotated(VOLUMES, "data,mem"));
    let old = node.run_checked(named("before")?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    // CRIU finds the damage after the volumes have been filled.
    archive::scramble(&imported.dir().join("program/checkpoint/mm-1.img"))?;
    let fallback = named("after")?.annotated(RESTORE, &imported.reference());
    let new = node.run(fallback.annotated("thaw.dev/if-failed", "start")).await?;
    // It sets everything up anew, which fails where anything of the old one is left.
    let began = std::time::Instant::now();
    let checks = loop {
        match check(&node, &new).await {
            Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
            checked => break checked?,
        }
    };
    checks.assert_ok();
    node.remove(&new).await?;
    node.leave().await
}

/// Runs a command line in a pod; what it says, errors as well.
async fn shell(node: &Node, state: &PodState, script: &str) -> Result<String, HarnessError> {
    let command = ["sh", "-c", script].map(str::to_owned);
    let output = node.kubelet.exec(state, "", &command, 10).await?;
    Ok(format!("{}{}", output.stdout, output.stderr))
}

#[tokio::test]
async fn volumes_that_only_the_new_pod_has_are_there_and_read_only_ones_stay_so() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let host = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::create_dir(host.path().join("sub")).unwrap();
    std::fs::write(host.path().join("sub/file"), "content\n").unwrap();
    let of = |name: &str, mounts: &str| {
        let mut pod = node.shell_pod(name, "while :; do sleep 1; done")?;
        let volumes = format!(
            "[{{name: host, hostPath: {{path: {}, type: Directory}}}}, {{name: scratch, emptyDir: {{}}}}]",
            host.path().display()
        );
        pod.spec.volumes.extend(node.parsed::<Vec<_>>(&volumes)?);
        pod.spec.containers[0].volume_mounts.extend(node.parsed::<Vec<_>>(mounts)?);
        Ok::<_, HarnessError>(pod)
    };
    // One volume three times: twice read-only, once not.
    let views = "{name: host, mountPath: /one, readOnly: true}, {name: host, mountPath: /two, readOnly: true}, \
                 {name: host, mountPath: /part, subPath: sub, readOnly: true}, {name: host, mountPath: /free}";
    let added = "{name: host, mountPath: /added, readOnly: true}, {name: scratch, mountPath: /scratch/deep}";
    let old = node.run(of("before", &format!("[{views}]"))?).await?;
    let imported = node.freeze_into_store(&old).await?;
    node.remove(&old).await?;
    let new = of("after", &format!("[{views}, {added}]"))?.annotated(RESTORE, &imported.reference());
    let new = node.run(new).await?;
    for (folder, file) in
        [("/one", "sub/file"), ("/two", "sub/file"), ("/part", "file"), ("/added", "sub/file")]
    {
        assert_eq!(shell(&node, &new, &format!("cat {folder}/{file}")).await?, "content\n", "{folder}");
        let said = shell(&node, &new, &format!("touch {folder}/new")).await?;
        assert!(said.contains("Read-only file system"), "{folder}: {said}");
    }
    let write = "touch /free/new /scratch/deep/new && ls /one /scratch/deep";
    assert_eq!(shell(&node, &new, write).await?, "/one:\nnew\nsub\n\n/scratch/deep:\nnew\n");
    node.remove(&new).await?;
    drop(host);
    node.leave().await
}
