// SPDX-License-Identifier: Apache-2.0
//! Real programs: how long from nothing to the first useful answer, started afresh and restored, in turns; and how much of
//! their memory CRIU loads before they run even where it follows.

use anyhow::Context;
use clap::Args;

use super::copies::size;
use super::freeze::{self, freeze};
use super::lazy::MEMORY;
use super::measured::Measured;
use super::record::{Record, timed};
use super::run::{Run, kubelet, remove_pods};
use crate::harness::apps::{ALL, App};
use crate::harness::pods::RESTORE;
use crate::harness::process;
use crate::harness::thaw::Imported;
use crate::kubelet::Kubelet;
use crate::kubelet::pod_spec::Pod;
use crate::kubelet::state::PodState;

/// About how long a fresh start with the two restores after it takes, seconds.
const RUN_SECONDS: f64 = 10.0;

/// Which programs, and how often.
#[derive(Debug, Args)]
pub struct AppsArgs {
    /// Repetitions of each.
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: u32,
    /// The programs.
    #[arg(long, value_delimiter = ',', default_values_t = ALL.map(|app| app.name.to_owned()))]
    pub(crate) apps: Vec<String>,
}

impl AppsArgs {
    /// About how long it takes, seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let apps = u32::try_from(self.apps.len()).unwrap_or(0);
        RUN_SECONDS * f64::from(apps) * f64::from(self.runs + 1)
    }
}

/// Measures programs.
///
/// # Errors
/// When there is no such program; one that fails is noted and passed over.
pub async fn apps(run: &mut Run, args: &AppsArgs) -> anyhow::Result<()> {
    let kubelet = kubelet().await?;
    for name in &args.apps {
        let app = App::named(name).with_context(|| format!("no program is called {name}"))?;
        let case = format!("apps.{name}");
        if let Err(error) = measure(run, &kubelet, app, &case, args.runs).await {
            run.fail(&case, &error);
        }
        remove_pods(&kubelet, "bench-").await?;
    }
    Ok(())
}

/// The restore over the fresh start.
pub(crate) fn ratios(measured: &Measured) -> Vec<(String, f64)> {
    let apps = ALL.iter().map(|app| format!("apps.{}", app.name));
    let ratio =
        |case: String| Some((format!("{case}.restore_vs_fresh"), measured.ratio(&case, "restore", "fresh")?));
    apps.filter_map(ratio).collect()
}

async fn measure(bench: &mut Run, kubelet: &Kubelet, app: App, case: &str, runs: u32) -> anyhow::Result<()> {
    let mut record = Record::default();
    bench.step(&format!("{case}: freezing it"), RUN_SECONDS);
    // What it reads is in the page cache for all runs.
    let frozen = fresh(kubelet, app, &mut Record::default()).await?;
    let imported = freeze(kubelet, &frozen, &mut record).await?;
    record.bytes("images_bytes", size(&imported.dir()));
    memory(&imported, &mut record)?;
    kubelet.remove(&frozen, Some(0)).await?;
    bench.add(case, record);
    for run in 1..=runs {
        bench.step(&format!("{case}: run {run} of {runs}"), RUN_SECONDS);
        let mut record = Record::default();
        kubelet.remove(&fresh(kubelet, app, &mut record).await?, Some(0)).await?;
        for (metric, memory) in [("restore", "eager"), ("lazy", "lazy")] {
            let pod = app.pod("bench-app")?.annotated(RESTORE, &imported.reference());
            let again = restored(kubelet, app, pod.annotated(MEMORY, memory), metric, &mut record).await?;
            kubelet.remove(&again, Some(0)).await?;
        }
        bench.add(case, record);
    }
    freeze::remove(&imported)
}

/// How much memory it has, and how much of that is loaded before it runs, whatever the pod asks for.
fn memory(imported: &Imported, record: &mut Record) -> anyhow::Result<()> {
    let shown = process::output(
        "thaw",
        &["inspect", "--json", &format!("{}/{}", imported.namespace, imported.reference())],
    )?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let containers = shown.get("containers").and_then(|shown| shown.as_object());
    let containers = containers.context("thaw inspect shows no container")?;
    for (metric, key) in [("memory_bytes", "bytes"), ("at_once_bytes", "at_once")] {
        let of = |container: &serde_json::Value| container.get("memory")?.get(key)?.as_u64();
        let bytes: Option<Vec<u64>> = containers.values().map(of).collect();
        record.bytes(metric, bytes.context("thaw inspect says nothing of memory")?.iter().sum());
    }
    Ok(())
}

/// Restores it until it goes on, which is the step `metric`.
async fn restored(
    kubelet: &Kubelet,
    app: App,
    pod: Pod,
    metric: &str,
    record: &mut Record,
) -> anyhow::Result<PodState> {
    let restore = timed(async {
        let state = kubelet.run(pod).await?;
        app.goes_on(&state).await?;
        Ok(state)
    });
    let again = record.step(metric, restore).await?;
    app.serves_others(&again)?;
    Ok(again)
}

/// Starts a program until its first useful answer, and lets it make its state.
async fn fresh(kubelet: &Kubelet, app: App, record: &mut Record) -> anyhow::Result<PodState> {
    let pod = app.pod("bench-app")?;
    let started = record.step(
        "fresh",
        timed(async {
            let state = kubelet.run(pod).await?;
            app.started(&state).await?;
            Ok(state)
        }),
    );
    let state = started.await?;
    app.goes_on(&state).await?;
    Ok(state)
}
