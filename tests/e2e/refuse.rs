// SPDX-License-Identifier: Apache-2.0
//! What cannot be restored is refused at Create: the error names the container, the checkpoint and the reason,
//! nothing is left behind, and the next pod starts as if nothing had been.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::os::unix::fs::symlink;

use thaw_tests::harness::counter::{self, PORT};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::thaw::{Imported, STORE};
use thaw_tests::harness::{HarnessError, Need, Node, Tested, archive, until};
use thaw_tests::kubelet::pod_spec::Pod;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];
/// An id of the right form that no checkpoint has.
const NO_ID: &str = "20200101T000000.000Z-0000";

/// Runs a pod that must be refused, checks that the error has every one of `words`, removes the pod, and checks
/// that an ordinary pod then starts.
async fn refused(node: &Node, pod: Pod, words: &[&str]) -> Tested {
    let name = pod.metadata.name.clone();
    let message = error_at_create(node, pod).await;
    for word in words {
        assert!(message.contains(word), "{word:?} is not in what the runtime said: {message}");
    }
    let state = node.kubelet.find(&node.namespace, &name)?;
    assert!(state.containers.is_empty(), "the container is gone");
    node.remove(&state).await?;

    let next = node.run_counter(node.counter_pod("next", 1)?).await?;
    counter::state(&next, PORT).await?;
    node.remove(&next).await
}

/// What the runtime says when it refuses a pod's container; it must do so at Create.
async fn error_at_create(node: &Node, pod: Pod) -> String {
    let asked = format!("{:?} {:?}", pod.metadata.annotations, pod.spec.containers[0].security_context);
    let Some(error) = node.kubelet.run(pod).await.err() else { panic!("the pod started with {asked}") };
    let message = error.cri_message().unwrap_or_default();
    assert!(message.contains("failed to create containerd task"), "not refused at Create: {error:?}");
    message.to_owned()
}

/// A checkpoint of a pod that counts, whose container is `counter`.
async fn counter_checkpoint(node: &Node) -> Result<Imported, HarnessError> {
    let state = node.run_counter(node.counter_pod("before", 4)?).await?;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    Ok(imported)
}

#[tokio::test]
async fn a_missing_checkpoint_is_refused() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let reference = format!("none/{NO_ID}");
    let pod = node.counter_pod("after", 1)?.annotated(RESTORE, &reference);
    refused(&node, pod, &["counter", &reference]).await?;
    node.leave().await
}

#[tokio::test]
async fn nothing_to_restore_is_refused_where_the_pod_says_so() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pod =
        node.counter_pod("after", 1)?.annotated(RESTORE, "latest").annotated("thaw.dev/if-missing", "fail");
    refused(&node, pod, &["counter", "latest"]).await?;
    node.leave().await
}

#[tokio::test]
async fn a_missing_checkpoint_starts_afresh_where_the_pod_says_so() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pod =
        node.counter_pod("after", 1)?.annotated(RESTORE, NO_ID).annotated("thaw.dev/if-missing", "start");
    let state = node.run(pod).await?;
    counter::state(&state, PORT).await?;
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_truncated_image_is_refused_and_named() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    for image in ["pages-1.img", "core-1.img", "mountpoints-*.img"] {
        let imported = counter_checkpoint(&node).await?;
        let dir = imported.dir().join("counter/checkpoint");
        let file = match image.split_once('*') {
            None => dir.join(image),
            Some((start, _)) => file_that_begins(&dir, start),
        };
        archive::halve(&file)?;
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
        refused(&node, pod, &["counter", &imported.id, &name]).await?;
    }
    node.leave().await
}

fn file_that_begins(dir: &std::path::Path, start: &str) -> std::path::PathBuf {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    found.next().unwrap().path()
}

#[tokio::test]
async fn a_missing_image_file_is_refused_and_named() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    std::fs::remove_file(imported.dir().join("counter/checkpoint/core-1.img")).unwrap();
    let pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
    refused(&node, pod, &["counter", &imported.id, "core-1.img"]).await?;
    node.leave().await
}

#[tokio::test]
async fn a_broken_checkpoint_starts_afresh_where_the_pod_says_so() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    archive::halve(&imported.dir().join("counter/checkpoint/pages-1.img"))?;
    let pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
    let state = node.run(pod.annotated("thaw.dev/if-failed", "start")).await?;
    assert!(counter::verify(&state, PORT).await?.crc_ok);
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn when_criu_fails_nothing_is_left_and_its_own_words_are_told() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    archive::scramble(&imported.dir().join("counter/checkpoint/mm-1.img"))?;
    let pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
    let error = node.kubelet.run(pod).await.unwrap_err();
    let message = error.cri_message().unwrap_or_default();
    for word in ["counter", &imported.id, "Error (criu/"] {
        assert!(message.contains(word), "{word:?} is not in what the runtime said: {error:?}");
    }
    node.remove(&node.kubelet.find(&node.namespace, "after")?).await?;
    let next = node.run_counter(node.counter_pod("next", 1)?).await?;
    node.remove(&next).await?;
    node.leave().await
}

#[tokio::test]
async fn when_criu_fails_the_container_starts_afresh_where_the_pod_says_so() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    archive::scramble(&imported.dir().join("counter/checkpoint/mm-1.img"))?;
    let pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
    let state = node.run(pod.annotated("thaw.dev/if-failed", "start")).await?;
    assert!(counter::verify(&state, PORT).await?.crc_ok);
    until("what the fresh program writes in the log", async || Ok(node.kubelet.logs(&state, "")?.pop()))
        .await?;
    node.remove(&state).await?;
    node.leave().await
}

#[tokio::test]
async fn a_checkpoint_without_a_manifest_does_not_exist() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    std::fs::remove_file(imported.dir().join("manifest.json")).unwrap();
    let pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
    refused(&node, pod, &["counter", &imported.id]).await?;
    node.leave().await
}

#[tokio::test]
async fn another_image_is_refused_and_both_are_named() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    let pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
    let pod = pod.with_containers(|container| {
        container.image = "thaw.local/busybox:1".to_owned();
    });
    refused(&node, pod, &["counter", &imported.id, "thaw.local/python:1", "thaw.local/busybox:1"]).await?;
    node.leave().await
}

#[tokio::test]
async fn a_path_instead_of_a_name_is_refused() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    let absolute = imported.dir().to_string_lossy().into_owned();
    let upwards = format!("../{}/{}", imported.namespace, imported.id);
    for path in [absolute.as_str(), &upwards, "..", "./latest"] {
        let pod = node.counter_pod("after", 4)?.annotated(RESTORE, path);
        refused(&node, pod, &[RESTORE, path]).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn a_checkpoint_of_another_namespace_is_refused() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    let other = format!("{}-other", node.namespace);
    let full = format!("{}/{}", imported.namespace, imported.reference());
    for reference in [imported.reference(), full] {
        let mut pod = node.counter_pod("after", 4)?.annotated(RESTORE, &reference);
        pod.metadata.namespace.clone_from(&other);
        let message = error_at_create(&node, pod).await;
        assert!(message.contains(&reference), "{message}");
        node.remove(&node.kubelet.find(&other, "after")?).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn a_link_in_the_store_is_not_followed() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let imported = counter_checkpoint(&node).await?;
    let other = format!("{}-other", node.namespace);
    let store = std::path::Path::new(STORE);
    symlink(store.join(&imported.namespace), store.join(&other)).unwrap();
    let mut pod = node.counter_pod("after", 4)?.annotated(RESTORE, &imported.reference());
    pod.metadata.namespace.clone_from(&other);
    let message = error_at_create(&node, pod).await;
    std::fs::remove_file(store.join(&other)).unwrap();
    assert!(message.contains(&imported.id), "{message}");
    node.remove(&node.kubelet.find(&other, "after")?).await?;
    node.leave().await
}

#[tokio::test]
async fn an_unknown_key_is_refused_and_the_known_ones_are_listed() -> Tested {
    let Some(node) = Node::enter(&[Need::Shim]).await else { return Ok(()) };
    let pod = node.counter_pod("after", 1)?.annotated("thaw.dev/restor", "latest");
    refused(&node, pod, &["thaw.dev/restor", "thaw.dev/restore", "thaw.dev/lineage", "thaw.dev/if-missing"])
        .await?;
    node.leave().await
}

#[tokio::test]
async fn a_bad_value_is_refused_and_what_is_allowed_is_said() -> Tested {
    let Some(node) = Node::enter(&[Need::Shim]).await else { return Ok(()) };
    for (key, value, allowed) in [
        ("thaw.dev/if-missing", "maybe", "start"),
        ("thaw.dev/if-failed", "", "fail"),
        ("thaw.dev/lineage", "Not_A_Label", "DNS label"),
        (RESTORE, "yesterday", "latest"),
    ] {
        let pod = node.counter_pod("after", 1)?.annotated(RESTORE, "latest").annotated(key, value);
        refused(&node, pod, &[key, value, allowed]).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn every_bad_annotation_is_reported_at_once() -> Tested {
    let Some(node) = Node::enter(&[Need::Shim]).await else { return Ok(()) };
    let pod =
        node.counter_pod("after", 1)?.annotated("thaw.dev/none", "x").annotated("thaw.dev/if-failed", "y");
    refused(&node, pod.annotated(RESTORE, "latest"), &["thaw.dev/none", "thaw.dev/if-failed"]).await?;
    node.leave().await
}

#[tokio::test]
async fn what_a_privileged_program_holds_is_refused_to_a_restricted_pod_claim_by_claim() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let with = |name: &str, context: &str| {
        node.pod(&format!(
            "
metadata: {{name: {name}}}
spec:
  containers:
  - name: shell
    image: thaw.local/busybox:1
    command: [/bin/sh, -c, 'while :; do sleep 1; done']
    securityContext: {{{context}}}
"
        ))
    };
    let privileged = node.run(with("privileged", "privileged: true")?).await?;
    let imported = node.freeze_into_store(&privileged).await?;
    node.remove(&privileged).await?;
    let context = "runAsUser: 1000, runAsGroup: 1000, allowPrivilegeEscalation: false, \
                   capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}";
    let pod = with("restricted", context)?.annotated(RESTORE, &imported.reference());
    let claims = ["shell", &imported.id, "CAP_SYS_ADMIN", "1000", "no_new_privs", "seccomp"];
    refused(&node, pod, &claims).await?;
    node.leave().await
}

#[tokio::test]
async fn each_claim_is_refused_by_itself() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let with = |name: &str, context: &str| {
        let pod = node.shell_pod(name, "while :; do sleep 1; done")?;
        let context = security_context(context);
        Ok::<_, HarnessError>(
            pod.with_containers(move |container| container.security_context = context.clone()),
        )
    };
    for (old, new, claim) in [
        ("capabilities: {add: [SYS_PTRACE]}", "", "CAP_SYS_PTRACE"),
        ("", "runAsUser: 1000", "1000"),
        ("", "seccompProfile: {type: RuntimeDefault}", "seccomp"),
        ("", "allowPrivilegeEscalation: false", "no_new_privs"),
    ] {
        let state = node.run(with("before", old)?).await?;
        let imported = node.freeze_into_store(&state).await?;
        node.remove(&state).await?;
        let pod = with("after", new)?.annotated(RESTORE, &imported.reference());
        refused(&node, pod, &["shell", &imported.id, claim]).await?;
    }
    node.leave().await
}

#[tokio::test]
async fn a_seccomp_filter_may_allow_no_more_than_the_new_pods_profile() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let folder = std::path::Path::new("/var/lib/kubelet/seccomp");
    std::fs::create_dir_all(folder).unwrap();
    let file = folder.join("refuse.json");
    let denied = |names: &str| {
        let profile = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{{"names": [{names}], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}}]}}"#
        );
        std::fs::write(&file, profile).unwrap();
    };
    let with = |name: &str, context: &str| {
        let context = security_context(context);
        let pod = node.shell_pod(name, "while :; do sleep 1; done")?;
        Ok::<_, HarnessError>(
            pod.with_containers(move |container| container.security_context = context.clone()),
        )
    };
    let local = "seccompProfile: {type: Localhost, localhostProfile: refuse.json}";
    denied(r#""mkdir", "mkdirat""#);
    let state = node.run(with("before", local)?).await?;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;

    denied(r#""mkdir", "mkdirat", "unlink", "unlinkat""#);
    let pod = with("after", local)?.annotated(RESTORE, &imported.reference());
    refused(&node, pod, &["shell", &imported.id, "allows unlink, unlinkat, which"]).await?;
    let pod = with("default", "seccompProfile: {type: RuntimeDefault}")?;
    let pod = pod.annotated(RESTORE, &imported.reference());
    refused(&node, pod, &["shell", &imported.id, "calls that it does not name"]).await?;

    // What allows more fits, and what runs keeps the filter that it had.
    denied(r#""mkdir""#);
    let state = node.run(with("wider", local)?.annotated(RESTORE, &imported.reference())).await?;
    node.remove(&state).await?;
    std::fs::remove_file(&file).unwrap();
    node.leave().await
}

fn security_context(context: &str) -> thaw_tests::kubelet::pod_spec::ContainerSecurityContext {
    serde_yaml_ng::from_str(&format!("{{{context}}}")).unwrap()
}

#[tokio::test]
async fn a_group_that_the_new_pod_does_not_have_is_refused() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    // With CAP_SETGID a program may take any group itself.
    let shell = |name: &str| {
        let pod = node.shell_pod(name, "while :; do sleep 1; done")?;
        let context = security_context("capabilities: {drop: [SETGID]}");
        Ok::<_, HarnessError>(
            pod.with_containers(move |container| container.security_context = context.clone()),
        )
    };
    let mut pod = shell("before")?;
    pod.spec.security_context.supplemental_groups = vec![1002];
    let state = node.run(pod).await?;
    let imported = node.freeze_into_store(&state).await?;
    node.remove(&state).await?;
    let pod = shell("after")?.annotated(RESTORE, &imported.reference());
    refused(&node, pod, &["shell", &imported.id, "1002"]).await?;
    node.leave().await
}
