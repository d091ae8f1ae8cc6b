// SPDX-License-Identifier: Apache-2.0
//! Resources: what a container uses, what it may use, and what happens when it uses more.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use thaw_tests::harness::parity::{Case, EVERY, FOREVER, NEEDS, alive, hold, hold_with, kill};
use thaw_tests::harness::{HarnessError, Need, Tested, process};
use thaw_tests::kubelet::cgroup;
use thaw_tests::kubelet::cri::api::{
    ContainerState, ContainerStats, ContainerStatsFilter, ContainerStatsRequest, LinuxContainerResources,
    ListContainerStatsRequest, UpdateContainerResourcesRequest,
};
use thaw_tests::kubelet::state::PodState;

const LIMITED: &str = "resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m, memory: 32Mi}}";

/// What the container's cgroups say, by the name of the file; counters and what is in use are left out.
fn settings(state: &PodState) -> Result<BTreeMap<String, String>, HarnessError> {
    let id = &state.container("")?.id;
    let mut found = BTreeMap::new();
    for hierarchy in cgroup::hierarchies()? {
        let dir = hierarchy.join(cgroup::of_container(&state.cgroup, id).trim_start_matches('/'));
        for name in [
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.oom_control",
            "memory.swappiness",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpu.shares",
            "cpuset.cpus",
            "cpuset.mems",
            "pids.max",
            "devices.list",
            "freezer.state",
            "memory.max",
            "memory.oom.group",
            "cpu.max",
            "cpu.weight",
            "memory.swap.max",
        ] {
            if let Ok(text) = std::fs::read_to_string(dir.join(name)) {
                let mut lines: Vec<_> = text.lines().collect();
                lines.sort_unstable();
                let whose = hierarchy.file_name().unwrap_or_default().to_string_lossy();
                found.insert(format!("{whose}/{name}"), lines.join("; "));
            }
        }
    }
    Ok(found)
}

async fn stats(case: &Case<'_>, state: &PodState) -> Result<ContainerStats, HarnessError> {
    let container_id = state.container("")?.id.clone();
    let answer = case.node.kubelet.cri.container_stats(ContainerStatsRequest { container_id }).await?;
    answer.stats.ok_or_else(|| HarnessError::Leaks(vec!["no stats".into()]))
}

async fn update(case: &Case<'_>, state: &PodState, linux: LinuxContainerResources) -> Result<(), String> {
    let container_id = state.container("").map_err(|e| e.to_string())?.id.clone();
    let request = UpdateContainerResourcesRequest { container_id, linux: Some(linux) };
    let answer = case.node.kubelet.cri.update_container_resources(request).await;
    // The runtime's own words, without what is in use just now and the line break that the Go shim leaves at the end.
    let own = |said: &str| {
        said.split("failed: ")
            .last()?
            .split("status 1: ")
            .last()?
            .split(" (current")
            .next()
            .map(|own| own.trim_end().to_owned())
    };
    answer.map(drop).map_err(|error| own(&case.nameless(error.message(), state)).unwrap_or_default())
}

#[tokio::test]
async fn the_limits_are_those_of_the_pod() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", LIMITED).await?;
        let found = settings(&state)?;
        assert!(found.values().any(|value| value == &(64u32 << 20).to_string()), "{found:?}");
        Ok(found)
    })
    .await
}

#[tokio::test]
async fn without_limits_the_cgroups_are_the_same() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", "").await?;
        Ok((settings(&state)?, process::cgroups(case.pid(&state, "").await?)?.len()))
    })
    .await
}

#[tokio::test]
async fn limits_can_be_changed_while_it_runs() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", LIMITED).await?;
        let more = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 40_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 96 << 20,
            ..LinuxContainerResources::default()
        };
        let grown = update(&case, &state, more).await;
        let now = settings(&state)?;
        let less =
            LinuxContainerResources { memory_limit_in_bytes: 4096, ..LinuxContainerResources::default() };
        let too_small = update(&case, &state, less).await;
        Ok((grown, now, too_small, settings(&state)?))
    })
    .await
}

#[tokio::test]
async fn what_it_uses_is_told_alone_and_in_the_list() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", "").await?;
        let id = state.container("")?.id.clone();
        let one = stats(&case, &state).await?;
        let used = |stats: &ContainerStats| {
            stats.cpu.as_ref().unwrap().usage_core_nano_seconds.as_ref().unwrap().value
        };
        case.sh(&state, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done").await?;
        let later = stats(&case, &state).await?;
        assert!(used(&later) > used(&one) && used(&one) > 0, "{one:?} {later:?}");
        let memory = later.memory.as_ref().unwrap();
        let values = [&memory.working_set_bytes, &memory.usage_bytes, &memory.rss_bytes];
        let told = values.map(|value| value.as_ref().is_some_and(|value| value.value > 0));
        let filter =
            Some(ContainerStatsFilter { id: String::new(), pod_sandbox_id: state.sandbox_id.clone() });
        let all =
            case.node.kubelet.cri.list_container_stats(ListContainerStatsRequest { filter }).await?.stats;
        let listed =
            all.iter().filter(|stats| stats.attributes.as_ref().is_some_and(|of| of.id == id)).count();
        assert_eq!(listed, 1);
        // The measures of the cgroup, by their names.
        let metrics = case.ctr(&["task", "metrics", "--format", "json", &id])?;
        // What is 0 just now is left out of it.
        let names = names(&serde_json::from_str(&metrics).unwrap());
        let never_zero = [
            // cgroup v1.
            "cpu.usage.total",
            "cpu.usage.user",
            "cpu.usage.per_cpu",
            "memory.rss",
            "memory.total_rss",
            "memory.pg_fault",
            "memory.hierarchical_memory_limit",
            "memory.usage.usage",
            "memory.usage.limit",
            "memory.usage.max",
            "memory.swap.limit",
            "memory.kernel.limit",
            "pids.current",
            // cgroup v2.
            "cpu.usage_usec",
            "cpu.user_usec",
            "memory.anon",
            "memory.kernel_stack",
            "memory.pgfault",
            "memory.slab",
            "memory.usage",
            "memory.usage_limit",
        ];
        assert!(
            never_zero.iter().filter(|name| names.iter().any(|told| told == *name)).count() > 6,
            "{names:?}"
        );
        Ok((told, never_zero.map(|name| (name, names.iter().any(|told| told == name)))))
    })
    .await
}

/// Waits until the runtime has told kubelet that the kernel killed in the container for memory, which it may do after
/// the end.
async fn told_of_memory(case: &Case<'_>, state: &PodState) -> Tested {
    let id = &state.container("shell")?.id;
    let told = async || {
        let status = case.node.kubelet.container_status(id).await?;
        Ok((status.reason == "OOMKilled").then_some(()))
    };
    case.until("OOMKilled", told).await
}

/// The names in a JSON value, without its values.
fn names(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::Object(object) => object
            .iter()
            .flat_map(|(name, value)| {
                let inner = names(value);
                if inner.is_empty() {
                    vec![name.clone()]
                } else {
                    inner.iter().map(|n| format!("{name}.{n}")).collect()
                }
            })
            .collect(),
        serde_json::Value::Array(list) => {
            let all: std::collections::BTreeSet<_> = list.iter().flat_map(names).collect();
            all.into_iter().collect()
        }
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => Vec::new(),
    }
}

#[tokio::test]
async fn of_what_has_ended_nothing_more_is_told_than_under_runc() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell("while [ ! -e /now ]; do sleep 0.1; done").await?;
        case.sh(&state, "touch /now").await?;
        case.ended(&state, "").await?;
        let told = stats(&case, &state).await.map(|stats| (stats.cpu.is_some(), stats.memory.is_some()));
        Ok(told.map_err(|error| case.nameless(&error.to_string(), &state)))
    })
    .await
}

#[tokio::test]
async fn its_processes_are_told_by_their_ids() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(&format!("({FOREVER}) & {FOREVER}")).await?;
        let id = state.container("")?.id.clone();
        let init = case.pid(&state, "").await?;
        let of = process::cgroups(init)?;
        // The child may not be there yet, and the commands that both run end again and again.
        let told = async || {
            let table = case.ctr(&["task", "ps", &id])?;
            let pids = table.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
            let pids: Vec<u32> = pids.collect();
            Ok((pids.contains(&init) && pids.len() >= 2).then_some((table, pids)))
        };
        let (table, pids) = case.until("two processes", told).await?;
        let same = pids.iter().filter_map(|pid| process::cgroups(*pid).ok()).all(|cgroups| cgroups == of);
        let unknown = case.ctr(&["task", "ps", "nobody"]).is_err();
        Ok((same, unknown, table.lines().next().map(str::to_owned)))
    })
    .await
}

#[tokio::test]
async fn it_can_be_paused_and_goes_on() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell("i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done").await?;
        let (id, pid) = (state.container("")?.id.clone(), case.pid(&state, "").await?);
        let count = || process::read(pid, "root/count");
        case.ctr(&["task", "pause", &id])?;
        let status = |case: &Case<'_>| {
            let list = case.ctr(&["task", "ls"])?;
            let line = list.lines().find(|line| line.starts_with(&id)).unwrap_or_default().to_owned();
            Ok::<_, HarnessError>(line.split_whitespace().last().unwrap_or_default().to_owned())
        };
        let before = count()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(count()?, before);
        let paused = status(&case)?;
        let twice = case.ctr(&["task", "pause", &id]).is_err();
        let command = ["true".to_owned()];
        let exec = case.node.kubelet.exec(&state, "", &command, 5).await.is_err();
        case.ctr(&["task", "resume", &id])?;
        case.until("it counts", async || Ok((count()? != before).then_some(()))).await?;
        let resumed = status(&case)?;
        Ok((paused, twice, exec, resumed, case.ctr(&["task", "resume", &id]).is_err()))
    })
    .await
}

#[tokio::test]
async fn a_paused_one_can_be_killed() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let id = state.container("")?.id.clone();
        case.ctr(&["task", "pause", &id])?;
        case.ctr(&["task", "kill", "--signal", "SIGKILL", &id])?;
        case.ended(&state, "").await
    })
    .await
}

#[tokio::test]
async fn a_program_that_the_kernel_kills_for_memory_is_told_as_that() -> Tested {
    hold(EVERY, async |case| {
        let script = "while [ ! -e /now ]; do sleep 0.1; done; x=x; while :; do x=$x$x; done";
        let limited = |pod: thaw_tests::kubelet::pod_spec::Pod| {
            let limits =
                serde_json::from_str(r#"{"limits": {"memory": "24Mi"}, "requests": {"memory": "24Mi"}}"#);
            let limits: thaw_tests::kubelet::pod_spec::Resources = limits.unwrap();
            pod.with_containers(|container| container.resources = limits.clone())
        };
        let state = case.shell_with(script, limited).await?;
        case.sh(&state, "touch /now").await?;
        case.ended(&state, "").await?;
        told_of_memory(&case, &state).await?;
        let end = case.ended(&state, "").await?;
        assert_eq!(end.exit_code, 137);
        Ok(end)
    })
    .await
}

#[tokio::test]
async fn a_program_that_the_kernel_kills_for_the_pods_memory_is_told_as_that() -> Tested {
    hold(EVERY, async |case| {
        let script = "while [ ! -e /now ]; do sleep 0.1; done; x=x; while :; do x=$x$x; done";
        let mut pod = case.node.shell_pod("row", &format!("echo ready; {script}"))?;
        let mut other = pod.spec.containers[0].clone();
        other.name = "other".to_owned();
        other.args = vec![format!("echo ready; {FOREVER}")];
        pod.spec.containers.push(other);
        let state = case.run(pod).await?;
        limit_pod(&state, 24 << 20)?;
        case.exec(&state, "shell", "touch /now").await?;
        case.ended(&state, "shell").await?;
        told_of_memory(&case, &state).await?;
        let end = case.ended(&state, "shell").await?;
        let other = case.node.kubelet.container_status(&state.container("other")?.id).await?;
        assert_eq!((end.exit_code, other.state()), (137, ContainerState::ContainerRunning));
        Ok(end)
    })
    .await
}

/// Gives all containers of a pod together so many bytes, as kubelet's limit of the pod does.
fn limit_pod(state: &PodState, bytes: u64) -> Tested {
    for hierarchy in cgroup::hierarchies()? {
        let group = hierarchy.join(state.cgroup.trim_start_matches('/'));
        for name in ["memory.limit_in_bytes", "memory.max"] {
            if group.join(name).exists() {
                std::fs::write(group.join(name), bytes.to_string()).unwrap();
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_child_that_the_kernel_kills_for_memory_leaves_the_container_running() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", "resources: {limits: {memory: 24Mi}}").await?;
        let output = case.exec(&state, "", "x=x; while :; do x=$x$x; done").await?;
        told_of_memory(&case, &state).await?;
        let status = case.node.kubelet.container_status(&state.container("")?.id).await?;
        assert_eq!((output.exit_code, status.state()), (137, ContainerState::ContainerRunning));
        kill(case.pid(&state, "").await?, "KILL")?;
        case.ended(&state, "").await
    })
    .await
}

#[tokio::test]
async fn its_cgroups_are_gone_when_it_is_removed() -> Tested {
    hold(EVERY, async |case| {
        let state = case.spec("", LIMITED).await?;
        let (id, pid) = (state.container("")?.id.clone(), case.pid(&state, "").await?);
        let dirs: Vec<_> = cgroup::hierarchies()?
            .into_iter()
            .map(|hierarchy| hierarchy.join(cgroup::of_container(&state.cgroup, &id).trim_start_matches('/')))
            .filter(|dir| dir.exists())
            .collect();
        assert!(!dirs.is_empty());
        case.node.remove(&state).await?;
        assert!(!alive(pid) && !dirs.iter().any(|dir| Path::new(dir).exists()));
        Ok(dirs.len())
    })
    .await
}

#[tokio::test]
async fn with_cgroup_v2_it_is_in_its_own_cgroup_and_sees_that_as_the_root() -> Tested {
    hold_with(&[NEEDS, &[Need::CgroupV2]].concat(), EVERY, async |case| {
        let state = case.spec("", LIMITED).await?;
        let pid = case.pid(&state, "").await?;
        let own = cgroup::of_container(&state.cgroup, &state.container("")?.id);
        assert_eq!(process::cgroups(pid)?, [format!("0::{own}")]);
        let namespace = process::namespace(pid, "cgroup")?;
        assert_ne!(namespace, process::namespace(std::process::id(), "cgroup")?);
        assert_ne!(namespace, process::namespace(case.node.kubelet.pids(&state).await?["sandbox"], "cgroup")?);
        let script = "cat /proc/self/cgroup /proc/1/cgroup; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; \
                      grep -c . /sys/fs/cgroup/cgroup.procs; ls /sys/fs/cgroup | sort; mkdir /sys/fs/cgroup/x; \
                      grep ' /sys/fs/cgroup ' /proc/self/mountinfo | cut -d ' ' -f 4-6,8-";
        let seen = case.sh(&state, script).await?;
        assert!(seen.starts_with("0::/\n0::/\n67108864\n50000 100000\n"), "{seen}");
        Ok(seen)
    })
    .await
}

#[tokio::test]
async fn with_systemd_it_is_a_scope_whose_rules_for_devices_outlive_a_reload() -> Tested {
    hold_with(&[NEEDS, &[Need::SystemdDriver]].concat(), EVERY, async |case| {
        let state = case.spec("", LIMITED).await?;
        // runc has systemd hold rules for devices as well as its own program; a restored container has the program alone.
        // Nodes for what every container may use, and for what none may.
        case.sh(&state, "mknod /tmp/null c 1 3; mknod /tmp/fuse c 10 229; mknod /tmp/loop b 7 0").await?;
        let open = "echo x > /tmp/null && echo fine; head -c 1 /tmp/fuse; head -c 1 /tmp/loop; \
                    mknod /tmp/later c 1 11 && echo made; rm -f /tmp/later";
        let before = case.sh(&state, open).await?;
        assert_eq!(before.matches("Operation not permitted").count(), 2, "{before}");
        process::output("systemctl", &["daemon-reload"])?;
        assert_eq!(case.sh(&state, open).await?, before);
        let more = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
        update(&case, &state, more).await.map_err(|said| HarnessError::answer("the runtime", said))?;
        process::output("systemctl", &["daemon-reload"])?;
        assert_eq!(case.sh(&state, open).await?, before);
        let scope = format!("cri-containerd-{}.scope", state.container("")?.id);
        let names = "Slice,Delegate,MemoryMax,CPUQuotaPerSecUSec,CPUWeight,TasksMax,ActiveState";
        let unit = process::output("systemctl", &["show", "--property", names, &scope])?;
        let mut unit: Vec<_> =
            unit.lines().map(|line| case.nameless(line, &state).replace(&state.cgroup, "POD")).collect();
        unit.sort();
        let (_, slice) = state.cgroup.rsplit_once('/').unwrap_or_default();
        Ok((before, unit.into_iter().map(|line| line.replace(slice, "SLICE")).collect::<Vec<_>>()))
    })
    .await
}
