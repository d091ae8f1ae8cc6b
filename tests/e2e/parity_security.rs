// SPDX-License-Identifier: Apache-2.0
//! Security: what a program may do, and what it sees of the node.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::collections::BTreeMap;
use std::path::Path;

use thaw_tests::harness::parity::{
    Case, EVERY, FOREVER, Kind, NEEDS, RESTORED, STARTED, hold, hold_with, refused, scratch,
};
use thaw_tests::harness::{HarnessError, Need, Tested, process};
use thaw_tests::kubelet::state::PodState;

/// What a program may do, by the kernel's account of the init and of an exec.
type Rights = (BTreeMap<String, String>, BTreeMap<String, String>);

/// The rights of the init and of an exec.
async fn rights(case: &Case<'_>, state: &PodState) -> Result<Rights, HarnessError> {
    let init = process::credentials(case.pid(state, "").await?)?;
    let text = case.sh(state, "cat /proc/self/status").await?;
    let exec = text.lines().filter_map(|line| line.split_once(':'));
    let exec: BTreeMap<_, _> = exec
        .filter(|(name, _)| init.contains_key(*name))
        .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    Ok((init, exec))
}

/// Runs a pod with these fields and compares rights and what `script` says.
async fn same_rights(kinds: &[Kind], of_pod: &str, of_container: &str, script: &str) -> Tested {
    hold(kinds, async |case| {
        let state = case.spec(of_pod, of_container).await?;
        Ok((rights(&case, &state).await?, case.nameless(&case.sh(&state, script).await?, &state)))
    })
    .await
}

#[tokio::test]
async fn without_a_security_context_rights_limits_and_surroundings_are_the_same() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", "").await?;
        // A masked file is a bind of the node's /dev/null after a restore, and of the container's own before; a
        // checkpoint's files are one more layer.
        let script = "mount | sed 's/lowerdir=.*//; s# on \\(/proc/[^ ]*\\) type \\(dev\\)*tmpfs .*#\\1 masked#; s/^[a-z]*//' | sort; env | sort; ls -la /dev | sed 's/ [A-Z][a-z][a-z] .*:.. / /'; umask; pwd; \
                      cat /proc/self/attr/current 2>&1; cat /proc/1/cmdline; cat /proc/sys/kernel/hostname";
        let pid = case.pid(&state, "").await?;
        let outside = (process::read(pid, "limits")?, process::read(pid, "oom_score_adj")?);
        let inside = case.nameless(&case.sh(&state, script).await?, &state);
        let inside: Vec<_> = inside.lines().map(str::to_owned).collect();
        Ok((rights(&case, &state).await?, outside, inside))
    })
    .await
}

#[tokio::test]
async fn limits_of_processes_are_those_of_the_handlers_base_specification() -> Tested {
    hold(EVERY, async |case| {
        let case = Case { variant: "limits", ..case };
        let state = case.spec("", "").await?;
        let outside = process::read(case.pid(&state, "").await?, "limits")?;
        let files = outside.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1234", "4321"], "{files}");
        Ok((outside, case.sh(&state, "ulimit -a; ulimit -Ha").await?))
    })
    .await
}

#[tokio::test]
async fn a_read_only_root_file_system_cannot_be_written() -> Tested {
    let script =
        "touch /file; touch /tmp/file; touch /dev/shm/file && echo shm; echo done > /dev/termination-log";
    same_rights(EVERY, "", "securityContext: {readOnlyRootFilesystem: true}", script).await
}

#[tokio::test]
async fn a_privileged_program_has_all_rights_and_sees_the_nodes_devices() -> Tested {
    let script = "ls /dev | wc -l; mount | grep -c cgroup; mount | grep sysfs; test -w /proc/sys/kernel/sysrq && echo may; \
                  cat /proc/kcore 2>&1 | head -c 4 | wc -c";
    same_rights(EVERY, "", "securityContext: {privileged: true}", script).await
}

const USER: &str =
    "securityContext: {runAsUser: 1000, runAsGroup: 1001, supplementalGroups: [1002], fsGroup: 1003}";

#[tokio::test]
async fn user_group_and_further_groups_are_the_pods() -> Tested {
    same_rights(STARTED, USER, "", "id; touch /root/file").await
}

#[tokio::test]
async fn user_group_and_further_groups_are_the_pods_after_a_restore() -> Tested {
    hold_with(&[NEEDS, &[Need::SysResource]].concat(), RESTORED, async |case| {
        let state = case.spec(USER, "").await?;
        Ok((rights(&case, &state).await?, case.sh(&state, "id; touch /root/file").await?))
    })
    .await
}

#[tokio::test]
async fn further_groups_of_root_are_the_pods() -> Tested {
    let root = "securityContext: {runAsUser: 0, supplementalGroups: [1002]}";
    same_rights(EVERY, root, "", "id").await
}

#[tokio::test]
async fn capabilities_that_are_added_are_there() -> Tested {
    let added = "securityContext: {capabilities: {add: [NET_ADMIN, SYS_TIME]}}";
    same_rights(EVERY, "", added, "ip link add d0 type dummy && ip link del d0 && echo made").await
}

#[tokio::test]
async fn capabilities_that_are_dropped_are_gone() -> Tested {
    let dropped = "securityContext: {capabilities: {drop: [CHOWN, NET_RAW]}}";
    same_rights(EVERY, "", dropped, "touch /file; chown 1:1 /file; ping -c 1 127.0.0.1 2>&1 | tail -n 1")
        .await
}

#[tokio::test]
async fn without_any_capability_but_one_only_that_one_is_there() -> Tested {
    let one = "securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}";
    same_rights(EVERY, "", one, "touch /file; chown 1:1 /file; chroot / true").await
}

#[tokio::test]
async fn a_program_that_may_not_gain_rights_cannot() -> Tested {
    let closed = "securityContext: {allowPrivilegeEscalation: false}";
    same_rights(EVERY, "", closed, "grep NoNewPrivs /proc/self/status /proc/1/status").await
}

#[tokio::test]
async fn under_the_runtimes_seccomp_profile_calls_are_refused() -> Tested {
    let filtered = "securityContext: {seccompProfile: {type: RuntimeDefault}}";
    same_rights(
        EVERY,
        filtered,
        "",
        "unshare -U true; unshare -m true; mount -t tmpfs t /tmp; echo rest works",
    )
    .await
}

#[tokio::test]
async fn under_a_seccomp_profile_of_the_node_calls_are_refused() -> Tested {
    const PROFILE: &str = "/var/lib/kubelet/seccomp/parity.json";
    std::fs::create_dir_all("/var/lib/kubelet/seccomp").unwrap();
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
                   "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    std::fs::write(PROFILE, text).unwrap();
    let local = "securityContext: {seccompProfile: {type: Localhost, localhostProfile: parity.json}}";
    let held = same_rights(EVERY, local, "", "mkdir /made; touch /file && echo rest works").await;
    std::fs::remove_file(PROFILE).unwrap();
    held
}

#[tokio::test]
async fn masked_paths_are_empty_and_read_only_paths_cannot_be_written() -> Tested {
    let script = "cat /proc/kcore | wc -c; cat /proc/timer_list | wc -c; ls /sys/firmware /proc/acpi /proc/scsi; \
                  echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger; touch /proc/bus/x; \
                  mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x";
    same_rights(EVERY, "", "", script).await
}

#[tokio::test]
async fn system_settings_are_the_pods() -> Tested {
    let settings = "securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '77'}, \
                    {name: kernel.shm_rmid_forced, value: '1'}, {name: net.ipv4.ping_group_range, value: '0 9'}]}";
    let script = "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced net/ipv4/ping_group_range; \
                  cat kernel/msgmax kernel/shmmni net/core/somaxconn";
    same_rights(EVERY, settings, "", script).await
}

#[tokio::test]
async fn devices_that_are_not_the_containers_cannot_be_opened() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", "").await?;
        let script = "mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg 2>&1; mknod /tmp/null c 1 3; echo x > /tmp/null && echo fine; \
                      mknod /tmp/loop b 7 0; head -c 1 /tmp/loop 2>&1";
        let rules = format!("/sys/fs/cgroup/devices{}/{}/devices.list", state.cgroup, state.container("")?.id);
        let mut rules: Vec<_> =
            std::fs::read_to_string(rules).unwrap_or_default().lines().map(str::to_owned).collect();
        rules.sort();
        Ok((case.sh(&state, script).await?, rules))
    })
    .await
}

#[tokio::test]
async fn with_the_nodes_ipc_namespace_it_is_in_it() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("hostIPC: true", "").await?;
        let pid = case.pid(&state, "").await?;
        assert_eq!(process::namespace(pid, "ipc")?, process::namespace(std::process::id(), "ipc")?);
        case.sh(&state, "df /dev/shm | tail -n 1 | cut -c 1-10").await
    })
    .await
}

/// A pod with a folder of the node mounted in one of the ways, mounts made on both sides, and whether they crossed.
async fn crossing(
    case: &Case<'_>,
    propagation: &str,
    privileged: bool,
) -> Result<(String, bool), HarnessError> {
    let folder = scratch()?;
    for name in ["late", "inside"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let (of_pod, of_container) = mounted(folder.path(), propagation, privileged);
    let state = case.spec(&of_pod, &of_container).await?;
    let (late, inside) = (folder.path().join("late"), folder.path().join("inside"));
    process::output("mount", &["-t", "tmpfs", "late", late.to_str().unwrap()])?;
    let inward = case.sh(&state, "mount | grep -c /host/late").await;
    let outward = case.sh(&state, "mount -t tmpfs inside /host/inside").await;
    let mounts = process::read(std::process::id(), "mountinfo")?;
    let outward = outward.map(|_| mounts.contains(inside.to_str().unwrap()));
    let _ = process::output("umount", &[inside.to_str().unwrap()]);
    process::output("umount", &[late.to_str().unwrap()])?;
    case.node.remove(&state).await?;
    Ok((inward?, outward?))
}

/// Fields of a pod and of its container.
fn mounted(folder: &Path, propagation: &str, privileged: bool) -> (String, String) {
    let of_pod =
        format!("volumes: [{{name: host, hostPath: {{path: {}, type: Directory}}}}]", folder.display());
    let of_container = format!(
        "securityContext: {{privileged: {privileged}}}
    volumeMounts: [{{name: host, mountPath: /host, mountPropagation: {propagation}}}]"
    );
    (of_pod, of_container)
}

#[tokio::test]
async fn mounts_of_the_node_appear_inside_where_the_pod_asks_for_it() -> Tested {
    hold(EVERY, async |case| {
        let none = crossing(&case, "None", false).await?;
        let inward = crossing(&case, "HostToContainer", false).await?;
        assert_eq!((none.0.as_str(), inward.0.as_str()), ("0\n", "1\n"));
        Ok((none, inward))
    })
    .await
}

#[tokio::test]
async fn mounts_made_inside_appear_on_the_node_where_the_pod_asks_for_it() -> Tested {
    hold(STARTED, async |case| {
        let both = crossing(&case, "Bidirectional", true).await?;
        assert_eq!(both, ("1\n".to_owned(), true));
        Ok(both)
    })
    .await
}

#[tokio::test]
async fn restored_a_pod_that_mounts_into_the_node_is_refused() -> Tested {
    refused("Bidirectional", async |case| {
        let (of_pod, of_container) = mounted(Path::new("/var/tmp"), "Bidirectional", true);
        case.spec_pod(&of_pod, &of_container)
    })
    .await
}

#[tokio::test]
async fn a_volume_that_is_read_only_cannot_be_written() -> Tested {
    hold(EVERY, async |case| {
        let folder = scratch()?;
        let state = case
            .spec(
                &format!(
                    "volumes: [{{name: v, hostPath: {{path: {}, type: Directory}}}}]",
                    folder.path().display()
                ),
                "volumeMounts: [{name: v, mountPath: /ro, readOnly: true}, {name: v, mountPath: /rw}]",
            )
            .await?;
        case.sh(&state, "touch /ro/file; touch /rw/file && ls /ro").await
    })
    .await
}

#[tokio::test]
async fn a_pod_may_have_users_of_its_own() -> Tested {
    hold(STARTED, async |case| {
        let state = case.spec("hostUsers: false", "").await?;
        let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; stat -c %u:%g /bin/busybox /root; \
                      touch /file; stat -c %u /file; rm /etc/group; ls /etc";
        let seen = case.sh(&state, script).await?;
        assert!(seen.starts_with("0\n 0 1048576 65536\n 0 1048576 65536\n0:0\n0:0\n0\n"), "{seen}");
        Ok((seen, rights(&case, &state).await?))
    })
    .await
}

#[tokio::test]
async fn restored_a_pod_with_users_of_its_own_is_refused() -> Tested {
    refused("user namespace", async |case| case.spec_pod("hostUsers: false", "")).await
}

#[tokio::test]
async fn a_program_is_as_ready_to_be_killed_for_memory_as_its_class_says() -> Tested {
    hold(EVERY, async |case| {
        let mut scores = Vec::new();
        for resources in ["{}", "{requests: {memory: 1Gi}}"] {
            let state = case.spec("", &format!("resources: {resources}")).await?;
            let init = process::read(case.pid(&state, "").await?, "oom_score_adj")?;
            scores.push((init, case.sh(&state, "cat /proc/self/oom_score_adj /proc/1/oom_score_adj").await?));
            case.node.remove(&state).await?;
        }
        assert!(scores[0].0.starts_with("1000") && scores[0] != scores[1], "{scores:?}");
        Ok(scores)
    })
    .await
}

#[tokio::test]
async fn an_ephemeral_container_that_is_added_later_sees_the_others_processes() -> Tested {
    hold(EVERY, async |case| {
        let mut state = case.shell(FOREVER).await?;
        let mut debugger = state.pod.spec.containers[0].clone();
        debugger.name = "debugger".to_owned();
        debugger.target_container_name = Some("shell".to_owned());
        case.node.kubelet.start_container(&mut state, &debugger, 0).await?;
        case.logged(&state, "debugger", "ready").await?;
        let (own, other) = (case.pid(&state, "debugger").await?, case.pid(&state, "shell").await?);
        assert_eq!(process::namespace(own, "pid")?, process::namespace(other, "pid")?);
        let script = "cat /proc/1/cmdline | tr '\\0' ' '; echo; touch /only-here; ls /proc/1/root/only-here";
        let output = case.exec(&state, "debugger", script).await?;
        Ok((output.exit_code, output.stdout, output.stderr))
    })
    .await
}
