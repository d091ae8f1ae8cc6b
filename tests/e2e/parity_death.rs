// SPDX-License-Identifier: Apache-2.0
//! Deaths: containerd, the shim, and all that was in memory.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use thaw_tests::harness::parity::{EVERY, FOREVER, alive, hold, kill};
use thaw_tests::harness::{Tested, containerd, process};
use thaw_tests::kubelet::cri::api::ContainerState;

/// Counts aloud.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done";
/// Waits for the test's word, then ends.
const WHEN_TOLD: &str = "while [ ! -e /now ]; do sleep 0.1; done; exit 9";

#[tokio::test]
async fn it_runs_on_while_containerd_is_dead_and_nothing_of_its_log_is_missing() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(COUNT).await?;
        let pid = case.pid(&state, "").await?;
        case.logged(&state, "", "line ").await?;
        containerd::kill().await?;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert!(alive(pid));
        containerd::start(&case.node.kubelet).await?;
        let status = case.node.kubelet.container_status(&state.container("")?.id).await?;
        assert_eq!((status.state(), case.pid(&state, "").await?), (ContainerState::ContainerRunning, pid));
        let last = case.node.kubelet.logs(&state, "")?.len();
        let grown = async || Ok((case.node.kubelet.logs(&state, "")?.len() > last + 50).then_some(()));
        case.until("more of its log", grown).await?;
        let lines = case.node.kubelet.logs(&state, "")?;
        let numbers: Vec<u64> =
            lines.iter().filter_map(|line| line.text.strip_prefix("line ")?.parse().ok()).collect();
        let gaps: Vec<_> = numbers.windows(2).filter(|pair| pair[0] + 1 != pair[1]).collect();
        assert!(gaps.is_empty(), "{gaps:?}");
        let said = case.sh(&state, "echo still here").await?;
        case.node.kubelet.stop(&state, Some(0)).await?;
        Ok((said, case.ended(&state, "").await?))
    })
    .await
}

#[tokio::test]
async fn an_end_while_containerd_is_dead_is_known_when_it_is_back() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(WHEN_TOLD).await?;
        let pid = case.pid(&state, "").await?;
        containerd::kill().await?;
        process::output("touch", &[&format!("/proc/{pid}/root/now")])?;
        case.until("its end", async || Ok((!alive(pid)).then_some(()))).await?;
        containerd::start(&case.node.kubelet).await?;
        let end = case.ended(&state, "").await?;
        assert_eq!(end.exit_code, 9);
        Ok(end)
    })
    .await
}

#[tokio::test]
async fn when_its_shim_is_killed_it_ends_and_the_pod_can_be_removed() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let pids = case.node.kubelet.pids(&state).await?;
        for shim in case.shims(&state) {
            kill(shim, "KILL")?;
        }
        let end = case.ended(&state, "").await?;
        for pid in pids.values().copied() {
            case.until("the end of its processes", async || Ok((!alive(pid)).then_some(()))).await?;
        }
        case.node.remove(&state).await?;
        Ok(end)
    })
    .await
}

#[tokio::test]
async fn after_the_loss_of_all_that_was_in_memory_it_has_ended_and_can_be_removed() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(FOREVER).await?;
        let pids = case.node.kubelet.pids(&state).await?;
        let shims = case.shims(&state);
        containerd::kill().await?;
        for pid in shims.into_iter().chain(pids.into_values()) {
            let _ = kill(pid, "KILL");
        }
        let wipe = "grep -o ' /run/containerd/[^ ]*' /proc/mounts | sort -r | xargs -r umount -l; \
                    grep -o ' /run/netns/[^ ]*' /proc/mounts | sort -r | xargs -r umount -l; \
                    rm -rf /run/containerd/* /run/netns/*";
        process::output("sh", &["-c", wipe])?;
        containerd::start(&case.node.kubelet).await?;
        let end = case.ended(&state, "").await?;
        case.node.remove(&state).await?;
        Ok(end)
    })
    .await
}
