// SPDX-License-Identifier: Apache-2.0
//! Deaths: of containerd, of the shim, of CRIU, and of the machine's memory.

#![allow(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the whole file is tests"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use thaw_tests::harness::parity::{Case, EVERY, FOREVER, Kind, alive, hold, kill};
use thaw_tests::harness::pods::RESTORE;
use thaw_tests::harness::{HarnessError, Tested, containerd, counter, process};
use thaw_tests::kubelet::cri::api::ContainerState;
use thaw_tests::kubelet::state::PodState;

/// Counts aloud, and stops for as long as there is a file.
const COUNT: &str = "i=0; while :; do if [ -e /hold ]; then echo $i > /held; else i=$((i+1)); echo line $i; fi; \
                     sleep 0.02; done";
/// What there is no other runtime to compare with.
const OURS: &[Kind] = &[Kind::Thaw, Kind::Restored];

/// The numbers in a container's log, one after the other without a gap.
fn counted(case: &Case<'_>, state: &PodState) -> Result<Vec<u64>, HarnessError> {
    let lines = case.node.kubelet.logs(state, "")?;
    let numbers = lines.iter().filter_map(|line| line.text.strip_prefix("line ")?.parse().ok());
    let numbers: Vec<u64> = numbers.collect();
    let gaps: Vec<_> = numbers.windows(2).filter(|pair| pair[0] + 1 != pair[1]).collect();
    assert!(gaps.is_empty(), "{gaps:?}");
    Ok(numbers)
}

/// Has the program of [`COUNT`] stop, and returns the last number that it said.
async fn held(case: &Case<'_>, root: &Path) -> Result<u64, HarnessError> {
    std::fs::write(root.join("hold"), "").unwrap();
    let said = async || {
        let text = std::fs::read_to_string(root.join("held")).unwrap_or_default();
        Ok(text.strip_suffix('\n').and_then(|number| number.parse().ok()))
    };
    case.until("a program that holds", said).await
}

/// Waits until a container's log ends with this number.
async fn logged_to(case: &Case<'_>, state: &PodState, number: u64) -> Tested {
    let all = async || Ok((counted(case, state)?.last() == Some(&number)).then_some(()));
    case.until(&format!("line {number}"), all).await
}

#[tokio::test]
async fn it_runs_on_while_containerd_is_dead_and_all_that_it_says_is_logged() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell(COUNT).await?;
        let pid = case.pid(&state, "").await?;
        let root = Path::new("/proc").join(pid.to_string()).join("root");
        case.logged(&state, "", "line ").await?;
        // What containerd has read and not yet written is lost with it under any shim: nothing is on its way now.
        let before = held(&case, &root).await?;
        logged_to(&case, &state, before).await?;
        let dead = containerd::kill().await?;
        for file in ["hold", "held"] {
            std::fs::remove_file(root.join(file)).unwrap();
        }
        let goes_on = async || {
            let now = held(&case, &root).await?;
            for file in ["hold", "held"] {
                std::fs::remove_file(root.join(file)).unwrap();
            }
            Ok((now > before + 3).then_some(()))
        };
        case.until("more numbers", goes_on).await?;
        let meanwhile = held(&case, &root).await?;
        dead.start(&case.node.kubelet).await?;
        let status = case.node.kubelet.container_status(&state.container("")?.id).await?;
        assert_eq!((status.state(), case.pid(&state, "").await?), (ContainerState::ContainerRunning, pid));
        logged_to(&case, &state, meanwhile).await?;
        let said = case.sh(&state, "rm /hold; echo still here").await?;
        let more = async || Ok(counted(&case, &state)?.last().is_some_and(|n| *n > meanwhile).then_some(()));
        case.until("more of its log", more).await?;
        let output = case.exec(&state, "", "exit 5").await?;
        kill(pid, "KILL")?;
        Ok((said, output.exit_code, case.ended(&state, "").await?))
    })
    .await
}

#[tokio::test]
async fn an_end_while_containerd_is_dead_is_known_when_it_is_back() -> Tested {
    hold(EVERY, async |case| {
        let state = case.shell("while [ ! -e /now ]; do sleep 0.1; done; exit 9").await?;
        let pid = case.pid(&state, "").await?;
        let dead = containerd::kill().await?;
        std::fs::write(format!("/proc/{pid}/root/now"), "").unwrap();
        case.until("its end", async || Ok((!alive(pid)).then_some(()))).await?;
        dead.start(&case.node.kubelet).await?;
        let end = case.ended(&state, "").await?;
        Ok(end)
    })
    .await
}

#[tokio::test]
async fn a_pod_whose_shim_is_killed_has_ended_and_can_be_removed() -> Tested {
    // The end of runc's shim leaves the processes of its containers behind.
    hold(OURS, async |case| {
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
        let (pids, shims) = (case.node.kubelet.pids(&state).await?, case.shims(&state));
        let dead = containerd::kill().await?;
        for pid in shims.into_iter().chain(pids.into_values()) {
            kill(pid, "KILL")?;
            case.until("its end", async || Ok((!alive(pid)).then_some(()))).await?;
        }
        let wipe = "for under in /run/containerd /run/netns; do \
                    grep -o \" $under/[^ ]*\" /proc/mounts | sort -r | xargs -r umount -l; rm -rf $under/*; done";
        process::output("sh", &["-c", wipe])?;
        dead.start(&case.node.kubelet).await?;
        let end = case.ended(&state, "").await?;
        case.node.remove(&state).await?;
        // The folders of tasks that it does not know are removed by containerd when it starts the next time.
        for id in [&state.sandbox_id, &state.container("")?.id] {
            let folder = format!("/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io/{id}");
            process::output("rm", &["-rf", &folder])?;
        }
        Ok(end)
    })
    .await
}

/// A CRIU that is to be killed as soon as it has come far enough.
struct Hunt {
    over: Arc<AtomicBool>,
    hunter: JoinHandle<bool>,
}

impl Hunt {
    fn begin(far_enough: fn(u32) -> bool) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        // It changes its command line.
        let is_criu = |pid: &u32| process::read(*pid, "comm").is_ok_and(|comm| comm == "criu\n");
        let hunter = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let found = process::all().into_iter().filter(is_criu).find(|pid| far_enough(*pid));
                if let Some(pid) = found {
                    return kill(pid, "KILL").is_ok();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            false
        });
        Self { over, hunter }
    }

    /// Ends the hunt; whether CRIU was killed.
    fn end(self) -> bool {
        self.over.store(true, Ordering::SeqCst);
        self.hunter.join().unwrap()
    }
}

/// Whether CRIU has written some megabytes of memory, of many.
fn writes_memory(criu: u32) -> bool {
    let files = std::fs::read_dir(format!("/proc/{criu}/fd")).into_iter().flatten().flatten();
    files.map(|file| file.path()).any(|file| {
        std::fs::read_link(&file).is_ok_and(|to| to.to_string_lossy().contains("/pages-"))
            && std::fs::metadata(&file).is_ok_and(|found| found.len() > 4 << 20)
    })
}

/// Whether CRIU has made a process that is to become the program.
fn has_a_child(criu: u32) -> bool {
    let children = process::read(criu, &format!("task/{criu}/children"));
    children.is_ok_and(|children| !children.trim().is_empty())
}

#[tokio::test]
async fn a_program_whose_freezing_criu_is_killed_goes_on_and_can_be_frozen() -> Tested {
    hold(OURS, async |case| {
        let pod = case.node.counter_pod("row", 128)?;
        let state = run_counter(&case, pod).await?;
        let before = counter::verify(&state, counter::PORT).await?;
        let hunt = Hunt::begin(writes_memory);
        let frozen = case.node.freeze(&state).await;
        assert!(hunt.end(), "CRIU was too quick: {frozen:?}");
        let said = frozen.unwrap_err().to_string();
        let after = counter::verify(&state, counter::PORT).await?;
        assert!(after.started == before.started && after.crc_ok, "{after:?}");
        let imported = case.node.freeze_into_store(&state).await?;
        case.node.remove(&state).await?;
        let again = case.node.counter_pod("again", 128)?.annotated(RESTORE, &imported.reference());
        let again = case.node.run(again).await?;
        assert_eq!(counter::verify(&again, counter::PORT).await?.started, before.started);
        Ok(said.is_empty())
    })
    .await
}

/// As [`Case::run`], for the counting program, which says nothing in its log.
async fn run_counter(
    case: &Case<'_>,
    pod: thaw_tests::kubelet::pod_spec::Pod,
) -> Result<PodState, HarnessError> {
    let state = case.node.run_counter(pod.clone()).await?;
    if case.kind != Kind::Restored {
        return Ok(state);
    }
    let imported = case.node.freeze_into_store(&state).await?;
    case.node.remove(&state).await?;
    case.node.run(pod.annotated(RESTORE, &imported.reference())).await
}

#[tokio::test]
async fn a_restore_whose_criu_is_killed_fails_with_the_reason_and_leaves_nothing() -> Tested {
    hold(OURS, async |case| {
        let state = run_counter(&case, case.node.counter_pod("row", 128)?).await?;
        let imported = case.node.freeze_into_store(&state).await?;
        let before = counter::state(&state, counter::PORT).await?;
        case.node.remove(&state).await?;
        let pod = |name| {
            Ok::<_, HarnessError>(case.node.counter_pod(name, 128)?.annotated(RESTORE, &imported.reference()))
        };
        let hunt = Hunt::begin(has_a_child);
        let said = case.refusal(pod("killed")?).await?;
        assert!(hunt.end(), "CRIU was too quick: {said}");
        assert!(said.contains("CRIU ended during restore"), "{said}");
        case.node.remove(&case.node.kubelet.find(&case.node.namespace, "killed")?).await?;
        let again = case.node.run(pod("again")?).await?;
        assert_eq!(counter::verify(&again, counter::PORT).await?.started, before.started);
        Ok(())
    })
    .await
}
