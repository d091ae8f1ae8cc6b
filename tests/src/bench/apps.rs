// SPDX-License-Identifier: Apache-2.0
//! Real programs: how long from nothing to the first useful answer, started afresh and restored, in turns.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::machine::Machine;
use super::record::{Record, Results, timed};
use super::report;
use crate::harness::apps::{ALL, App};
use crate::harness::pods::RESTORE;
use crate::harness::thaw;
use crate::kubelet::Kubelet;
use crate::kubelet::settings::Settings;
use crate::kubelet::state::PodState;

/// Which programs, and how often.
#[derive(Debug, Args)]
pub struct AppsArgs {
    /// Repetitions of each.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// The programs.
    #[arg(long, value_delimiter = ',', default_values_t = ALL.map(|app| app.name.to_owned()))]
    apps: Vec<String>,
    /// Write the results here too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures programs.
///
/// # Errors
/// When one does not start, or is not as it was after a restore.
pub async fn apps(args: AppsArgs) -> anyhow::Result<()> {
    let machine = Machine::look();
    let kubelet = Kubelet::connect(Settings::from_env()).await?;
    let (mut results, mut failures) = (Results::default(), 0);
    for name in &args.apps {
        let app = App::named(name).with_context(|| format!("no program is called {name}"))?;
        if let Err(error) = measure(&kubelet, app, args.runs, &mut results).await {
            failures += 1;
            eprintln!("FAILED: {name}: {error:#}");
        }
        for left in kubelet.list()? {
            kubelet.remove(&left, Some(0)).await?;
        }
    }
    print!("{}", report::table(&machine, &results));
    let ratios = ratios(&results);
    for (name, ratio) in &ratios {
        println!("  {name:<36} {ratio:>7.3}");
    }
    if let Some(file) = &args.json {
        fs::write(file, format!("{:#}\n", report::json(&machine, &results, ratios)))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if failures > 0 {
        bail!("{failures} programs failed");
    }
    Ok(())
}

/// The restore over the fresh start.
fn ratios(results: &Results) -> Vec<(String, f64)> {
    let apps = ALL.iter().map(|app| format!("apps.{}", app.name));
    let ratio =
        |case: String| Some((format!("{case}.restore_vs_fresh"), results.ratio(&case, "restore", "fresh")?));
    apps.filter_map(ratio).collect()
}

async fn measure(kubelet: &Kubelet, app: App, runs: u32, results: &mut Results) -> anyhow::Result<()> {
    let case = format!("apps.{}", app.name);
    let mut record = Record::default();
    // What it reads is in the page cache for all runs.
    let frozen = fresh(kubelet, app, &mut Record::default()).await?;
    let archive = PathBuf::from("/var/tmp").join(format!("{case}.tar"));
    record
        .step(
            "checkpoint",
            timed(async { Ok(kubelet.checkpoint(&frozen, "program", Some(&archive)).await?) }),
        )
        .await?;
    let imported =
        record.step("import", timed(async { Ok(thaw::import(std::slice::from_ref(&archive))?) })).await?;
    fs::remove_file(&archive)?;
    record.bytes("images_bytes", size(&imported.dir()));
    kubelet.remove(&frozen, Some(0)).await?;
    results.add(&case, record);
    for run in 1..=runs {
        eprintln!("{case}: run {run} of {runs}");
        let mut record = Record::default();
        kubelet.remove(&fresh(kubelet, app, &mut record).await?, Some(0)).await?;
        let pod = app.pod("bench-app")?.annotated(RESTORE, &imported.reference());
        let again = record.step(
            "restore",
            timed(async {
                let state = kubelet.run(pod).await?;
                app.goes_on(&state).await?;
                Ok(state)
            }),
        );
        let again = again.await?;
        app.serves_others(&again)?;
        kubelet.remove(&again, Some(0)).await?;
        results.add(&case, record);
    }
    Ok(fs::remove_dir_all(imported.dir())?)
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

/// Bytes of all files below a directory.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}
