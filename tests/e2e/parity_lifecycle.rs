// SPDX-License-Identifier: Apache-2.0
//! Lifecycle: how containers start, end, start again, and live beside others.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use thaw_tests::harness::parity::{EVERY, FOREVER, Kind, STARTED, alive, hold, kill};
use thaw_tests::harness::{Tested, process};
use thaw_tests::kubelet::cri::api::{
    ContainerState, ContainerStatusRequest, RemoveContainerRequest, StartContainerRequest,
    StopContainerRequest,
};

/// Waits for a file, then goes on: the file is the test's word for "now".
const WHEN_TOLD: &str = "while [ ! -e /now ]; do sleep 0.1; done";

#[tokio::test]
async fn the_exit_code_is_the_programs_own() -> Tested {
    hold(EVERY, async |case| {
        let mut ends = Vec::new();
        for code in [0, 7, 255] {
            let state = case.shell(&format!("{WHEN_TOLD}; exit {code}")).await?;
            case.sh(&state, "touch /now").await?;
            let end = case.ended(&state, "").await?;
            assert_eq!(end.exit_code, code);
            ends.push(end);
            case.node.remove(&state).await?;
        }
        Ok(ends)
    })
    .await
}

#[tokio::test]
async fn a_program_that_is_killed_from_outside_ends_with_137() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        kill(case.pid(&state, "").await?, "KILL")?;
        let end = case.ended(&state, "").await?;
        assert_eq!(end.exit_code, 137);
        Ok(end)
    })
    .await
}

#[tokio::test]
async fn a_program_that_crashes_ends_with_128_and_the_signal() -> Tested {
    hold(EVERY, async |case| {
        let mut ends = Vec::new();
        for (signal, code) in [("ABRT", 134), ("SEGV", 139), ("USR1", 138), ("37", 165)] {
            // The shell's own id, which kubelet would take for a variable. Not process 1 of its namespace, which the kernel protects from its own signals.
            let script = format!("{WHEN_TOLD}; kill -{signal} $$$$; {FOREVER}");
            let shared = |mut pod: thaw_tests::kubelet::pod_spec::Pod| {
                pod.spec.share_process_namespace = true;
                pod
            };
            let state = case.shell_with(&script, shared).await?;
            case.sh(&state, "touch /now").await?;
            let end = case.ended(&state, "").await?;
            assert_eq!(end.exit_code, code, "{signal}");
            ends.push(end);
            case.node.remove(&state).await?;
        }
        Ok(ends)
    })
    .await
}

#[tokio::test]
async fn a_stop_is_a_sigterm_that_the_program_may_answer_with_its_own_exit_code() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(&format!("trap 'echo bye; exit 3' TERM; {FOREVER}")).await?;
        case.node.kubelet.stop(&state, Some(30)).await?;
        case.logged(&state, "", "bye").await?;
        case.ended(&state, "").await
    })
    .await
}

#[tokio::test]
async fn a_program_that_does_not_listen_is_killed_after_the_grace_period() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(&format!("trap '' TERM; {FOREVER}")).await?;
        case.node.kubelet.stop(&state, Some(1)).await?;
        let end = case.ended(&state, "").await?;
        assert_eq!(end.exit_code, 137);
        Ok(end)
    })
    .await
}

#[tokio::test]
async fn stop_and_remove_may_be_said_twice_and_of_what_has_ended() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(&format!("{WHEN_TOLD}; exit 5")).await?;
        let (cri, container_id) = (&case.node.kubelet.cri, state.container("")?.id.clone());
        case.sh(&state, "touch /now").await?;
        case.ended(&state, "").await?;
        let stop = StopContainerRequest { container_id: container_id.clone(), timeout: 1 };
        let remove = RemoveContainerRequest { container_id: container_id.clone() };
        for _ in 0..2 {
            cri.stop_container(stop.clone()).await.unwrap();
        }
        let end = case.ended(&state, "").await?;
        for _ in 0..2 {
            cri.remove_container(remove.clone()).await.unwrap();
        }
        let gone = cri.stop_container(stop).await.map(drop).map_err(|error| error.is_not_found());
        let asked = ContainerStatusRequest { container_id, verbose: false };
        let unknown = cri.container_status(asked).await.map(drop).map_err(|error| error.is_not_found());
        case.node.kubelet.stop(&state, Some(0)).await?;
        case.node.kubelet.stop(&state, Some(0)).await?;
        Ok((end, gone, unknown))
    })
    .await
}

#[tokio::test]
async fn a_running_container_can_be_removed_at_once() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let (pid, container_id) = (case.pid(&state, "").await?, state.container("")?.id.clone());
        case.node.kubelet.cri.remove_container(RemoveContainerRequest { container_id }).await.unwrap();
        assert!(!alive(pid));
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_container_is_created_running_and_exited_in_turn_and_its_times_are_in_order() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(&format!("{WHEN_TOLD}; exit 0")).await?;
        let id = &state.container("")?.id;
        let running = case.node.kubelet.container_status(id).await?;
        case.sh(&state, "touch /now").await?;
        case.ended(&state, "").await?;
        let exited = case.node.kubelet.container_status(id).await?;
        assert!(running.created_at > 0 && running.created_at < running.started_at, "{running:?}");
        assert!(
            exited.started_at == running.started_at && exited.started_at < exited.finished_at,
            "{exited:?}"
        );
        assert_eq!(running.finished_at, 0);
        Ok((
            running.state(),
            running.reason,
            exited.state(),
            exited.reason,
            exited.image_ref,
            exited.mounts.len(),
        ))
    })
    .await
}

#[tokio::test]
async fn a_container_that_kubelet_starts_again_is_a_new_one_in_the_same_pod() -> Tested {
    hold(EVERY, async |case| {
        let script = format!("test ! -e /tmp/life || echo again; touch /tmp/life; {WHEN_TOLD}; exit 4");
        let mut state = case.shell(&script).await?;
        let (shims, old) = (case.shims(&state), state.container("")?.clone());
        case.sh(&state, "touch /now").await?;
        let end = case.ended(&state, "").await?;
        case.node.kubelet.restart_container(&mut state, "shell").await?;
        let new = state.container("")?.clone();
        case.logged(&state, "", "ready").await?;
        let lines = case.node.kubelet.logs(&state, "")?;
        assert!(lines.iter().all(|line| line.text != "again"), "it has the files of the first life");
        assert_ne!(old.id, new.id);
        assert_eq!(case.shims(&state), shims, "the pod keeps its shim");
        Ok((end, new.attempt))
    })
    .await
}

#[tokio::test]
async fn several_containers_of_a_pod_share_one_shim_and_live_and_die_alone() -> Tested {
    hold(EVERY, async |case| {
        let mut pod = case.node.shell_pod("row", &format!("echo ready; {FOREVER}"))?;
        for name in ["second", "third"] {
            let mut container = pod.spec.containers[0].clone();
            container.name = name.to_owned();
            pod.spec.containers.push(container);
        }
        let state = case.run(pod).await?;
        assert_eq!(case.shims(&state).len(), 1);
        let pids = case.node.kubelet.pids(&state).await?;
        kill(pids["second"], "KILL")?;
        let end = case.ended(&state, "second").await?;
        assert!(alive(pids["shell"]) && alive(pids["third"]));
        let shared: Vec<_> = ["net", "ipc", "uts", "pid", "mnt"]
            .map(|kind| {
                Ok((
                    kind,
                    process::namespace(pids["shell"], kind)? == process::namespace(pids["third"], kind)?,
                ))
            })
            .into_iter()
            .collect::<Result<_, thaw_tests::harness::HarnessError>>()?;
        Ok((end, shared))
    })
    .await
}

#[tokio::test]
async fn init_containers_end_one_after_the_other_before_the_others_start() -> Tested {
    hold(EVERY, async |case| {
        let pod = case.node.pod(&format!(
            "
metadata: {{name: row}}
spec:
  volumes: [{{name: shared, hostPath: {{path: /var/tmp, type: Directory}}}}]
  initContainers:
  - {{name: one, image: thaw.local/busybox:1, command: [sh, -c, echo one]}}
  - {{name: two, image: thaw.local/busybox:1, command: [sh, -c, echo two]}}
  containers:
  - {{name: shell, image: thaw.local/busybox:1, command: [sh, -c, 'echo ready; {FOREVER}']}}
"
        ))?;
        let state = case.run(pod).await?;
        let mut told = Vec::new();
        for name in ["one", "two"] {
            let lines = case.node.kubelet.logs(&state, name)?;
            told.push((
                lines.into_iter().map(|line| line.text).collect::<Vec<_>>(),
                case.ended(&state, name).await?,
            ));
        }
        Ok(told)
    })
    .await
}

#[tokio::test]
async fn a_sidecar_starts_before_the_others_and_lives_and_is_started_again_beside_them() -> Tested {
    hold(EVERY, async |case| {
        let pod = case.node.pod(&format!(
            "
metadata: {{name: row}}
spec:
  initContainers:
  - name: sidecar
    image: thaw.local/busybox:1
    restartPolicy: Always
    command: [sh, -c, 'echo beside; {FOREVER}']
  containers:
  - {{name: shell, image: thaw.local/busybox:1, command: [sh, -c, 'echo ready; {FOREVER}']}}
"
        ))?;
        let mut state = case.run(pod).await?;
        case.logged(&state, "sidecar", "beside").await?;
        let pids = case.node.kubelet.pids(&state).await?;
        assert_eq!(process::namespace(pids["sidecar"], "net")?, process::namespace(pids["shell"], "net")?);
        let created = async |name: &str| {
            let status = case.node.kubelet.container_status(&state.container(name)?.id).await?;
            Ok::<_, thaw_tests::harness::HarnessError>(status.created_at)
        };
        assert!(created("sidecar").await? < created("shell").await?);
        kill(pids["sidecar"], "KILL")?;
        let end = case.ended(&state, "sidecar").await?;
        case.node.kubelet.restart_container(&mut state, "sidecar").await?;
        case.logged(&state, "sidecar", "beside").await?;
        assert!(alive(pids["shell"]));
        Ok((end, case.exec(&state, "sidecar", "echo there").await?.stdout))
    })
    .await
}

#[tokio::test]
async fn a_program_that_is_not_there_or_may_not_be_run_is_told_in_the_same_words() -> Tested {
    hold(STARTED, async |case| {
        let mut told = Vec::new();
        for (name, command) in [("missing", "/no/such/program"), ("plain", "/etc/passwd"), ("folder", "/etc")]
        {
            let pod = case.node.shell_pod(name, "")?;
            let pod = pod.with_containers(|container| container.command = vec![command.to_owned()]);
            told.push(case.refusal(pod).await?);
        }
        assert!(told[0].contains("/no/such/program"), "{told:?}");
        Ok(told)
    })
    .await
}

#[tokio::test]
async fn a_container_that_was_created_and_never_started_can_be_removed() -> Tested {
    hold(STARTED, async |case| {
        let state = case.shell(FOREVER).await?;
        let kubelet = &case.node.kubelet;
        let id = kubelet.create_container(&state, &state.pod.spec.containers[0], 1).await?.id;
        let status = kubelet.container_status(&id).await?;
        assert_eq!(status.state(), ContainerState::ContainerCreated);
        let remove = RemoveContainerRequest { container_id: id.clone() };
        kubelet.cri.remove_container(remove).await.unwrap();
        let start = kubelet.cri.start_container(StartContainerRequest { container_id: id }).await;
        Ok(start.map(drop).map_err(|error| error.is_not_found()))
    })
    .await
}

#[tokio::test]
async fn with_a_shared_process_namespace_all_see_each_other_and_an_end_takes_its_children_along() -> Tested {
    hold(EVERY, async |case| {
        let mut pod = case.node.shell_pod("row", &format!("({FOREVER}) & echo ready; {FOREVER}"))?;
        pod.spec.share_process_namespace = true;
        let mut second = pod.spec.containers[0].clone();
        second.name = "second".to_owned();
        second.args = vec![format!("echo ready; {FOREVER}")];
        pod.spec.containers.push(second);
        let state = case.run(pod).await?;
        let pids = case.node.kubelet.pids(&state).await?;
        let namespace = |name: &str| process::namespace(pids[name], "pid");
        assert_eq!(namespace("shell")?, namespace("sandbox")?);
        assert_eq!(namespace("second")?, namespace("sandbox")?);
        let first = case.exec(&state, "second", "cat /proc/1/comm").await?.stdout;
        let of_shell = process::cgroups(pids["shell"])?;
        let in_it = |pid: &u32| alive(*pid) && process::cgroups(*pid).is_ok_and(|found| found == of_shell);
        assert!(process::all().iter().filter(|pid| in_it(pid)).count() >= 2);
        kill(pids["shell"], "KILL")?;
        let end = case.ended(&state, "shell").await?;
        // Those that the kernel ends with the first process are gone a moment later.
        let gone = async || Ok((!process::all().iter().any(in_it)).then_some(()));
        case.until("the end of its children", gone).await?;
        assert!(alive(pids["second"]));
        Ok((first, end))
    })
    .await
}

#[tokio::test]
async fn with_the_nodes_network_it_is_in_the_nodes_network() -> Tested {
    hold(EVERY, async |case| {
        let state = case
            .shell_with(FOREVER, |mut pod| {
                pod.spec.host_network = true;
                pod
            })
            .await?;
        let pid = case.pid(&state, "").await?;
        assert_eq!(process::namespace(pid, "net")?, process::namespace(std::process::id(), "net")?);
        assert_eq!(process::hostname(pid)?, process::hostname(std::process::id())?);
        case.sh(&state, "hostname; cat /etc/hosts; ls /sys/class/net").await
    })
    .await
}

#[tokio::test]
async fn with_the_nodes_processes_it_sees_them() -> Tested {
    hold(STARTED, async |case| {
        let state = case
            .shell_with(FOREVER, |mut pod| {
                pod.spec.host_pid = true;
                pod
            })
            .await?;
        let pid = case.pid(&state, "").await?;
        assert_eq!(process::namespace(pid, "pid")?, process::namespace(std::process::id(), "pid")?);
        let seen = case.sh(&state, "cat /proc/1/comm").await?;
        kill(pid, "KILL")?;
        assert_ne!(case.kind, Kind::Restored);
        Ok((seen, case.ended(&state, "").await?))
    })
    .await
}
