// SPDX-License-Identifier: Apache-2.0
//! A restored program lives in the new pod's place: its names, its cgroups, its rights, its mounts, its limits.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use thaw_tests::harness::counter::{self, PORT};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Need, Node, Tested, process, until};
use thaw_tests::kubelet::cgroup;
use thaw_tests::kubelet::cri::api::{LinuxContainerResources, UpdateContainerResourcesRequest};
use thaw_tests::kubelet::logs::LogLine;
use thaw_tests::kubelet::mountinfo;
use thaw_tests::kubelet::pod_spec::Pod;
use thaw_tests::kubelet::state::PodState;

const NEEDS: &[Need] = &[Need::Criu, Need::Thaw, Need::Shim];

/// A pod that was started, and one that was restored from it.
struct Pair {
    fresh: PodState,
    restored: PodState,
}

/// Starts a pod, freezes it, and restores it beside the first one, which runs on.
async fn pair(node: &Node, pod: impl Fn(&str) -> Result<Pod, HarnessError>) -> Result<Pair, HarnessError> {
    let fresh = node.run(pod("fresh")?).await?;
    let imported = node.freeze_into_store(&fresh).await?;
    let restored = node.run(pod("restored")?.annotated(RESTORE, &imported.reference())).await?;
    Ok(Pair { fresh, restored })
}

impl Pair {
    async fn remove(self, node: &Node) -> Tested {
        node.remove(&self.fresh).await?;
        node.remove(&self.restored).await
    }
}

/// The process id of the only container.
async fn pid(node: &Node, state: &PodState) -> Result<u32, HarnessError> {
    let (name, _) = state.named_container("")?;
    Ok(node.kubelet.pids(state).await?[name])
}

/// A text about a pod in which its own names are replaced, so that two pods can be compared.
fn nameless(text: &str, state: &PodState) -> String {
    let id = state.container("").map(|container| container.id.clone()).unwrap_or_default();
    state.without_uid(&text.replace(&id, "ID")).replace(&state.sandbox_id, "SANDBOX")
}

#[tokio::test]
async fn the_host_name_is_the_new_pods_for_the_whole_sandbox() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pair = pair(&node, |name| node.counter_pod(name, 1)).await?;
    let pids = node.kubelet.pids(&pair.restored).await?;
    assert_eq!(process::hostname(pids["sandbox"])?, "restored");
    assert_eq!(process::hostname(pids["counter"])?, "restored");
    assert_eq!(counter::state(&pair.restored, PORT).await?.hostname, "restored");
    for kind in ["uts", "ipc", "net"] {
        let of = |name| process::namespace(pids[name], kind);
        assert_eq!(of("counter")?, of("sandbox")?, "{kind}");
    }
    pair.remove(&node).await?;
    node.leave().await
}

#[tokio::test]
async fn every_process_is_in_the_new_pods_cgroups_and_none_in_the_old_ones() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    // A sleep that is frozen ends early, so each is one of many.
    let shell = "(while :; do sleep 1; done) & (while :; do sleep 1; done) & while :; do sleep 1; done";
    let pair = pair(&node, |name| node.shell_pod(name, shell)).await?;
    let wanted = process::cgroups(pid(&node, &pair.fresh).await?)?.join("\n");
    let processes = process::processes_with(pid(&node, &pair.restored).await?)?;
    assert!(processes.len() >= 3, "three shells, and what they run: {processes:?}");
    for process in processes {
        let Ok(found) = process::cgroups(process) else { continue };
        // What has just ended is in the root of each hierarchy until it is reaped.
        if process::read(process, "stat").map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
        {
            continue;
        }
        let found = found.join("\n");
        assert_eq!(pair.fresh.without_uid(&found), found, "the old pod's");
        assert_eq!(nameless(&found, &pair.restored), nameless(&wanted, &pair.fresh));
    }
    pair.remove(&node).await?;
    node.leave().await
}

#[tokio::test]
async fn the_cgroup_namespace_is_as_a_started_containers() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pair = pair(&node, |name| node.counter_pod(name, 1)).await?;
    let own = process::namespace(std::process::id(), "cgroup")?;
    let (fresh, restored) = (pid(&node, &pair.fresh).await?, pid(&node, &pair.restored).await?);
    let (fresh, restored) = (process::namespace(fresh, "cgroup")?, process::namespace(restored, "cgroup")?);
    assert_eq!(fresh == own, restored == own, "{own:?} {fresh:?} {restored:?}");
    pair.remove(&node).await?;
    node.leave().await
}

#[tokio::test]
async fn with_cgroup_v2_a_restored_program_sees_its_own_cgroup_as_the_root() -> Tested {
    let Some(node) = Node::enter(&[NEEDS, &[Need::CgroupV2]].concat()).await else { return Ok(()) };
    let pair = pair(&node, |name| node.counter_pod(name, 1)).await?;
    let command = ["cat", "/proc/1/cgroup"].map(str::to_owned);
    assert_eq!(node.kubelet.exec(&pair.restored, "", &command, 10).await?.stdout, "0::/\n");
    pair.remove(&node).await?;
    node.leave().await
}

#[tokio::test]
async fn with_cgroup_v2_the_node_keeps_the_options_of_its_cgroups() -> Tested {
    let Some(node) = Node::enter(&[NEEDS, &[Need::CgroupV2]].concat()).await else { return Ok(()) };
    // Whoever froze a pod under runc before has taken them from the node.
    let mount =
        std::process::Command::new("mount").args(["-o", "remount,nsdelegate", "/sys/fs/cgroup"]).status();
    assert!(mount.unwrap().success());
    let pair = pair(&node, |name| node.counter_pod(name, 1)).await?;
    assert!(mountinfo::mounts().unwrap().iter().any(delegates));
    pair.remove(&node).await?;
    node.leave().await
}

fn delegates(mount: &mountinfo::Mount) -> bool {
    mount.fs_type == "cgroup2" && mount.super_options.split(',').any(|option| option == "nsdelegate")
}

#[tokio::test]
async fn no_firewall_program_is_run_to_unlock_a_network_that_nobody_locked() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    // Stock runc lets CRIU lock the network, and the images say so.
    let fresh = node.run_counter(node.counter_pod("fresh", 1)?.under("runc")).await?;
    let imported = node.freeze_into_store(&fresh).await?;

    // Found before the real ones, because containerd's PATH begins with /usr/local/sbin.
    let programs = ["iptables", "ip6tables", "iptables-restore", "ip6tables-restore", "nft"];
    let calls = Path::new("/usr/local/sbin/firewall-calls");
    for program in programs {
        let path = Path::new("/usr/local/sbin").join(program);
        let script =
            format!("#!/bin/sh\necho \"$0 $*\" >> {0}\nexec /usr/sbin/{program} \"$@\"\n", calls.display());
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let restored =
        node.run_counter(node.counter_pod("restored", 1)?.annotated(RESTORE, &imported.reference())).await;
    for program in programs {
        std::fs::remove_file(Path::new("/usr/local/sbin").join(program)).unwrap();
    }
    let called = std::fs::read_to_string(calls).unwrap_or_default();
    let _ = std::fs::remove_file(calls);
    let pair = Pair { fresh, restored: restored? };
    assert_eq!(called, "");
    pair.remove(&node).await?;
    node.leave().await
}

/// A pod with every restriction that a pod can have, apart from its user.
fn restricted(node: &Node, name: &str, user: &str) -> Result<Pod, HarnessError> {
    node.pod(&format!(
        "
metadata: {{name: {name}}}
spec:
  securityContext: {{{user}, supplementalGroups: [1002], seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: shell
    image: thaw.local/busybox:1
    command: [/bin/sh, -c, 'while :; do sleep 1; done']
    securityContext:
      allowPrivilegeEscalation: false
      capabilities: {{drop: [ALL]}}
"
    ))
}

/// Freezes and restores a pod, and compares what both may do.
async fn rights_are_equal(node: &Node, pod: impl Fn(&str) -> Result<Pod, HarnessError>) -> Tested {
    let pair = pair(node, pod).await?;
    let fresh = process::credentials(pid(node, &pair.fresh).await?)?;
    let restored = process::credentials(pid(node, &pair.restored).await?)?;
    assert_eq!(restored, fresh);
    pair.remove(node).await
}

#[tokio::test]
async fn a_restricted_program_has_the_rights_of_a_started_one_and_no_more() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pod = |name: &str| restricted(&node, name, "runAsUser: 0");
    let fresh = node.run(pod("check")?).await?;
    let rights = process::credentials(pid(&node, &fresh).await?)?;
    assert_eq!((rights["Seccomp"].as_str(), rights["NoNewPrivs"].as_str()), ("2", "1"));
    assert_eq!((rights["CapBnd"].as_str(), rights["Groups"].as_str()), ("0000000000000000", "0 1002"));
    node.remove(&fresh).await?;
    rights_are_equal(&node, pod).await?;
    node.leave().await
}

#[tokio::test]
async fn a_program_of_another_user_has_the_rights_of_a_started_one_and_no_more() -> Tested {
    let Some(node) = Node::enter(&[NEEDS, &[Need::SysResource]].concat()).await else { return Ok(()) };
    rights_are_equal(&node, |name| restricted(&node, name, "runAsUser: 1000")).await?;
    node.leave().await
}

#[tokio::test]
async fn an_ordinary_program_has_the_rights_of_a_started_one() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    rights_are_equal(&node, |name| node.counter_pod(name, 1)).await?;
    node.leave().await
}

#[tokio::test]
async fn the_files_that_kubelet_mounts_are_the_new_pods() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let pair = pair(&node, |name| node.shell_pod(name, "while :; do sleep 1; done")).await?;
    let script = "tail -n 1 /etc/hosts; cat /etc/hostname /var/run/secrets/kubernetes.io/serviceaccount/token; \
                  echo done > /dev/termination-log";
    let command = ["sh", "-c", script].map(str::to_owned);
    let said = node.kubelet.exec(&pair.restored, "", &command, 10).await?.stdout;
    let token = pair.restored.volumes.values().map(|volume| volume.join("token")).find(|path| path.exists());
    let token = std::fs::read_to_string(token.unwrap()).unwrap();
    assert_eq!(said, format!("{}\trestored\nrestored\n{token}", pair.restored.ip));
    let message = std::fs::read_to_string(&pair.restored.container("")?.termination_log).unwrap();
    assert_eq!(message, "done\n");
    pair.remove(&node).await?;
    node.leave().await
}

#[tokio::test]
async fn limits_are_the_new_pods_and_can_be_changed() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let limited = |name: &str, memory: &str| {
        node.pod(&format!(
            "
metadata: {{name: {name}}}
spec:
  containers:
  - name: shell
    image: thaw.local/busybox:1
    command: [/bin/sh, -c, 'while :; do sleep 1; done']
    resources: {{limits: {{cpu: 500m, memory: {memory}}}}}
"
        ))
    };
    let fresh = node.run(limited("fresh", "64Mi")?).await?;
    let imported = node.freeze_into_store(&fresh).await?;
    let restored = node.run(limited("restored", "96Mi")?.annotated(RESTORE, &imported.reference())).await?;
    assert_eq!(memory_limit(&restored)?, 96 << 20);

    let request = UpdateContainerResourcesRequest {
        container_id: restored.container("")?.id.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 80 << 20,
            ..LinuxContainerResources::default()
        }),
    };
    node.kubelet.cri.update_container_resources(request).await.unwrap();
    assert_eq!(memory_limit(&restored)?, 80 << 20);
    Pair { fresh, restored }.remove(&node).await?;
    node.leave().await
}

/// The memory limit of the only container's cgroup, on either version.
fn memory_limit(state: &PodState) -> Result<u64, HarnessError> {
    let group = cgroup::of_container(&state.cgroup, &state.container("")?.id);
    let v1 = format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes");
    let v2 = format!("/sys/fs/cgroup{group}/memory.max");
    let text = std::fs::read_to_string(v1).or_else(|_| std::fs::read_to_string(v2)).unwrap();
    Ok(text.trim().parse().unwrap())
}

#[tokio::test]
async fn a_pod_without_annotations_gets_what_runc_gives() -> Tested {
    let Some(node) = Node::enter(&[Need::Shim]).await else { return Ok(()) };
    let stock = node.run_counter(node.counter_pod("stock", 1)?.under("runc")).await?;
    let ours = node.run_counter(node.counter_pod("ours", 1)?).await?;
    let mut seen = Vec::new();
    for state in [&stock, &ours] {
        let pid = pid(&node, state).await?;
        let script = "mount | sed 's/snapshots.*//'; env | grep -v HOSTNAME; ulimit -a; ls -l /dev";
        let command = ["sh", "-c", script].map(str::to_owned);
        let inside = node.kubelet.exec(state, "", &command, 10).await?.stdout;
        let cgroups = process::cgroups(pid)?.join("\n");
        let of_node = process::namespace(std::process::id(), "cgroup")? == process::namespace(pid, "cgroup")?;
        let oom = process::read(pid, "oom_score_adj")?;
        let all = format!("{inside}\n{cgroups}\n{of_node}\n{oom}{:?}", process::credentials(pid)?);
        seen.push(nameless(&all.replace(&state.pod.metadata.name, "POD"), state));
    }
    assert_eq!(seen[0], seen[1]);
    node.remove(&stock).await?;
    node.remove(&ours).await?;
    node.leave().await
}

#[tokio::test]
async fn a_program_with_a_terminal_goes_on() -> Tested {
    let Some(node) = Node::enter(NEEDS).await else { return Ok(()) };
    let terminal = |name: &str| {
        let script = "i=0; while :; do i=$((i+1)); echo count $i; sleep 0.1; done";
        node.shell_pod(name, script).map(|pod| pod.with_containers(|container| container.tty = true))
    };
    let pair = pair(&node, terminal).await?;
    let counted = |line: &LogLine| line.text.starts_with("count ");
    let lines = until("a count in the log", async || {
        let lines = node.kubelet.logs(&pair.restored, "")?;
        Ok(lines.iter().any(counted).then_some(lines))
    })
    .await?;
    assert!(lines.iter().all(|line| line.text.trim_end() != "count 1"), "it began again: {lines:?}");
    pair.remove(&node).await?;
    node.leave().await
}
