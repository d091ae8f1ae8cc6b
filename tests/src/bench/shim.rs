// SPDX-License-Identifier: Apache-2.0
//! What a pod's shim costs, beside the shim that ships with containerd: the same pods under both runtime handlers, in
//! turns; memory, threads and descriptors of their shims, and how long pods take to start and commands to run in them.

mod report;

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};

pub(crate) use self::report::{is_shim, ratios, rows, table, title};
use super::freeze::{self, freeze};
use super::record::Record;
use super::run::{Run, kubelet, remove_pods};
use crate::harness::pods::RESTORE;
use crate::harness::shim::{footprint, pid};
use crate::kubelet::Kubelet;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// The runtime handlers, theirs and ours.
const HANDLERS: [&str; 2] = ["runc", "thaw"];
/// The programs that serve them.
const PROGRAMS: [(&str, &str); 2] =
    [("runc", "/usr/bin/containerd-shim-runc-v2"), ("thaw", "/usr/local/bin/containerd-shim-thaw-v1")];
/// How long shims are left alone before they are looked at: both give memory back to the kernel some time after
/// they used it.
const SETTLE: Duration = Duration::from_secs(5);
/// How often a command is run in each pod.
const EXECS: u32 = 3;
/// The seconds that it may take.
const EXEC_LIMIT: i64 = 30;
/// About how long one start takes, and one pod more whose memory is measured, seconds.
const START_SECONDS: f64 = 1.5;
const POD_SECONDS: f64 = 1.5;

/// What is measured, and how often.
#[derive(Debug, Args)]
pub struct ShimArgs {
    /// Repetitions of start and exec under each handler.
    #[arg(long, default_value_t = 20)]
    pub(crate) runs: u32,
    /// How many pods run at a time while memory is measured.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    pub(crate) pods: Vec<usize>,
    /// How many restored pods run at a time while their memory is measured; 0 for none.
    #[arg(long, default_value_t = 10)]
    pub(crate) restored: usize,
}

impl ShimArgs {
    /// About how long it takes, seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let pods = 2 * self.pods.iter().sum::<usize>() + self.restored;
        START_SECONDS * 2.0 * f64::from(self.runs) + POD_SECONDS * number(pods)
    }
}

/// Measures shims.
///
/// # Errors
/// When a pod does not start, or its shim cannot be looked at.
pub async fn shim(run: &mut Run, args: &ShimArgs) -> anyhow::Result<()> {
    let kubelet = kubelet().await?;
    let measured = measure(run, &kubelet, args).await;
    remove_pods(&kubelet, "bench-").await?;
    measured
}

async fn measure(bench: &mut Run, kubelet: &Kubelet, args: &ShimArgs) -> anyhow::Result<()> {
    let mut record = Record::default();
    for (handler, program) in PROGRAMS {
        let size = fs::metadata(program).with_context(|| format!("no {program}"))?.len();
        record.bytes(&format!("{handler}.binary"), size);
    }
    bench.add("shim", record);
    for run in 1..=args.runs {
        bench.step(&format!("start and exec: run {run} of {}", args.runs), 2.0 * START_SECONDS);
        for handler in turns(run) {
            let mut record = Record::default();
            start(kubelet, handler, &mut record).await?;
            bench.add("shim", record);
        }
    }
    for &count in &args.pods {
        for handler in HANDLERS {
            let mut record = Record::default();
            bench.step(&format!("{count} pods under {handler}"), POD_SECONDS * number(count));
            crowd(kubelet, handler, count, None, &mut record).await?;
            bench.add(&format!("shim.{count}"), record);
        }
    }
    if args.restored > 0 {
        bench.step(&format!("{} restored pods", args.restored), POD_SECONDS * number(args.restored));
        let state = kubelet.run(pod("bench-frozen", "thaw", None)?).await?;
        let imported = freeze(kubelet, &state, &mut Record::default()).await?;
        kubelet.remove(&state, Some(0)).await?;
        let mut record = Record::default();
        crowd(kubelet, "thaw", args.restored, Some(&imported.reference()), &mut record).await?;
        bench.add(&format!("shim.restored.{}", args.restored), record);
        freeze::remove(&imported)?;
    }
    Ok(())
}

/// Each run begins with another handler, for who comes second finds caches warm.
fn turns(run: u32) -> [&'static str; 2] {
    let [first, second] = HANDLERS;
    if run.is_multiple_of(2) { [second, first] } else { [first, second] }
}

/// Starts a pod and runs a command in it some times, all on the clock; removes it.
async fn start(kubelet: &Kubelet, handler: &str, record: &mut Record) -> anyhow::Result<()> {
    kubelet.cri.take_times();
    let state = kubelet.run(pod(&format!("bench-{handler}"), handler, None)?).await?;
    let times = kubelet.cri.take_times();
    let mut all = 0.0;
    for (step, call) in
        [("sandbox", "RunPodSandbox"), ("create", "CreateContainer"), ("start", "StartContainer")]
    {
        let time = times.iter().find(|time| time.call == call).with_context(|| format!("no {call}"))?;
        record.seconds(&format!("{handler}.{step}"), time.ms / 1e3);
        all += time.ms / 1e3;
    }
    record.seconds(&format!("{handler}.pod"), all);
    for _ in 0..EXECS {
        exec(kubelet, &state, handler, record).await?;
    }
    kubelet.remove(&state, Some(0)).await?;
    Ok(())
}

async fn exec(kubelet: &Kubelet, state: &PodState, handler: &str, record: &mut Record) -> anyhow::Result<()> {
    kubelet.cri.take_times();
    let output = kubelet.exec(state, "", &["true".to_owned()], EXEC_LIMIT).await?;
    if output.exit_code != 0 {
        bail!("a command in a pod under {handler} failed: {}", output.stderr);
    }
    let times = kubelet.cri.take_times();
    let time = times.iter().find(|time| time.call == "ExecSync").context("no command was run")?;
    record.seconds(&format!("{handler}.exec"), time.ms / 1e3);
    Ok(())
}

/// Runs so many pods at a time and looks at their shims, before and after commands were run in them.
async fn crowd(
    kubelet: &Kubelet,
    handler: &str,
    count: usize,
    checkpoint: Option<&str>,
    record: &mut Record,
) -> anyhow::Result<()> {
    let mut pods = Vec::new();
    for number in 1..=count {
        pods.push(kubelet.run(pod(&format!("bench-{handler}-{number}"), handler, checkpoint)?).await?);
    }
    tokio::time::sleep(SETTLE).await;
    look(&pods, handler, "", record)?;
    for state in &pods {
        for _ in 0..EXECS {
            exec(kubelet, state, handler, &mut Record::default()).await?;
        }
    }
    tokio::time::sleep(SETTLE).await;
    look(&pods, handler, ".after_exec", record)?;
    remove_pods(kubelet, "bench-").await
}

fn look(pods: &[PodState], handler: &str, when: &str, record: &mut Record) -> anyhow::Result<()> {
    for state in pods {
        let found = footprint(pid(&state.sandbox_id)?)?;
        record.bytes(&format!("{handler}.rss{when}"), found.rss);
        record.bytes(&format!("{handler}.pss{when}"), found.pss);
        record.bytes(&format!("{handler}.private_dirty{when}"), found.private_dirty);
        record.count(&format!("{handler}.threads{when}"), found.threads);
        record.count(&format!("{handler}.descriptors{when}"), found.descriptors);
    }
    Ok(())
}

/// A pod that does nothing.
fn pod(name: &str, handler: &str, checkpoint: Option<&str>) -> anyhow::Result<Pod> {
    let mut annotations = Map::new();
    annotations.extend(checkpoint.map(|reference| (RESTORE.to_owned(), Value::from(reference))));
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "runtimeClassName": handler,
            "containers": [{
                "name": "main",
                "image": "thaw.local/busybox:1",
                // A bare sleep would end after its restore: the system call is interrupted.
                "command": ["sh", "-c", "while :; do sleep 1000; done"],
            }],
        },
    });
    Ok(Pod::parse(&pod.to_string())?)
}

/// A number of pods.
fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(0.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handlers_take_turns_in_being_first() {
        assert_eq!(turns(1), ["runc", "thaw"]);
        assert_eq!(turns(2), ["thaw", "runc"]);
    }

    #[test]
    fn a_restored_pod_names_the_checkpoint_and_no_other_pod_does() {
        let pod = pod("p", "thaw", Some("line/id")).unwrap();
        assert_eq!(pod.metadata.annotations["thaw.dev/restore"], "line/id");
        assert!(super::pod("p", "runc", None).unwrap().metadata.annotations.is_empty());
    }
}
