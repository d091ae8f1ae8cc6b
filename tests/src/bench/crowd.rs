// SPDX-License-Identifier: Apache-2.0
//! Many at once: so many pods of one checkpoint, eager and lazy, beside as many that start `sleep` under runc.
//!
//! Sandboxes and containers are there before. The clock begins when all StartContainer calls are sent together, and ends
//! when every call has been answered and every restored program's heart beats.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use futures_util::future::join_all;

use super::freeze::{self, freeze};
use super::heartbeat::Heartbeat;
use super::lazy::MEMORY;
use super::measured::Measured;
use super::record::Record;
use super::restore::{LOCAL_IMAGE, parse_size};
use super::run::{Run, remove_pods};
use super::steps::Steps;
use super::{Bench, copies, fresh, workload};
use crate::harness::pods::RESTORE;
use crate::harness::thaw::Imported;
use crate::kubelet::cri::api::StartContainerRequest;
use crate::kubelet::pod_spec::Pod;

/// What starts at once.
const CASES: [&str; 3] = ["lazy", "thaw", "fresh"];
/// The heartbeats, on a tmpfs: a folder for each pod.
const HEARTBEATS: &str = "/run/thaw-bench/crowd";
/// How often it is looked whether all hearts beat, and for how long.
const POLL: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(300);
/// About how long one pod takes, seconds, and the freezing.
const POD_SECONDS: f64 = 0.8;
const FREEZE_SECONDS: f64 = 6.0;

/// How many, and how often.
#[derive(Debug, Args)]
pub struct CrowdArgs {
    /// Repetitions of each.
    #[arg(long, default_value_t = 3)]
    pub(crate) runs: u32,
    /// How many pods at once.
    #[arg(long, value_delimiter = ',', default_value = "1,2,5,10,20,50")]
    pub(crate) pods: Vec<u32>,
    /// Memory of each restored program, MB, a multiple of 16.
    #[arg(long, default_value = "64", value_parser = parse_size)]
    pub(crate) size: u64,
}

impl CrowdArgs {
    /// About how long it takes, seconds.
    pub(crate) fn seconds(&self) -> f64 {
        FREEZE_SECONDS + self.pods.iter().map(|pods| self.pods_seconds(*pods)).sum::<f64>()
    }

    fn pods_seconds(&self, pods: u32) -> f64 {
        f64::from(self.runs) * f64::from(pods + 1) * POD_SECONDS * 3.0
    }
}

/// Measures restores at once.
///
/// # Errors
/// When the program cannot be frozen; what fails later is noted and passed over.
pub async fn crowd(run: &mut Run, args: &CrowdArgs) -> anyhow::Result<()> {
    let bench = Bench::new().await?;
    let measured = measure(run, &bench, args).await;
    remove_pods(&bench.kubelet, "bench-").await?;
    measured
}

async fn measure(run: &mut Run, bench: &Bench, args: &CrowdArgs) -> anyhow::Result<()> {
    let kubelet = &bench.kubelet;
    run.step("crowd: freezing the program", FREEZE_SECONDS);
    let heartbeat = Heartbeat::new(PathBuf::from(HEARTBEATS).join("frozen"))?;
    let pod = workload::pod("bench-frozen", "thaw", LOCAL_IMAGE, args.size, heartbeat.dir())?;
    let watch = heartbeat.watch()?;
    let state = kubelet.run(pod).await?;
    watch.beat()?;
    let checksum = workload::checksum(&state.ip).await?;
    let imported = freeze(kubelet, &state, &mut Record::default()).await?;
    kubelet.remove(&state, Some(0)).await?;
    for &pods in &args.pods {
        let case = format!("crowd.{pods}");
        run.step(&format!("{case}: {} runs", args.runs), args.pods_seconds(pods));
        for number in 0..args.runs {
            // Each run begins with another one.
            let shift = usize::try_from(number).unwrap_or_default() % CASES.len();
            for what in CASES.iter().cycle().skip(shift).take(CASES.len()) {
                let mut record = Record::default();
                let crowd = Crowd { bench, pods, size: args.size, checksum: &checksum };
                match crowd.measure(what, &imported, &mut record).await {
                    Ok(()) => run.add(&case, record),
                    Err(error) => run.fail(&format!("{case}.{what}"), &error),
                }
                remove_pods(kubelet, "bench-").await?;
            }
        }
    }
    freeze::remove(&imported)
}

/// The restores over as many starts of `sleep`.
pub(crate) fn ratios(measured: &Measured) -> Vec<(String, f64)> {
    let cases = measured.numbers("crowd").into_iter().map(|pods| format!("crowd.{pods}"));
    let ratio = |case: String| {
        let ratio = measured.ratio(&case, "lazy.running", "fresh.running")?;
        Some((format!("{case}.vs_fresh_sleep"), ratio))
    };
    cases.filter_map(ratio).collect()
}

struct Crowd<'a> {
    bench: &'a Bench,
    pods: u32,
    size: u64,
    checksum: &'a str,
}

impl Crowd<'_> {
    async fn measure(&self, what: &str, imported: &Imported, record: &mut Record) -> anyhow::Result<()> {
        copies::warm(&imported.dir())?;
        let (mut pods, mut ids, mut hearts) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..self.pods {
            let heart = Heartbeat::new(PathBuf::from(HEARTBEATS).join(number.to_string()))?;
            let (pod, mut before) = (self.pod(what, number, imported, &heart)?, Record::default());
            let steps = Steps::sandbox(self.bench, "crowd", pod, &mut before).await?;
            ids.push(steps.create(LOCAL_IMAGE, &mut before).await?);
            pods.push(steps);
            hearts.extend((what != "fresh").then_some(heart));
        }
        record.step(&format!("{what}.running"), self.start(ids, &hearts)).await?;
        for steps in pods.iter().filter(|_| what != "fresh") {
            steps.verify(self.checksum).await.context(steps.state.full_name())?;
        }
        Ok(())
    }

    fn pod(&self, what: &str, number: u32, imported: &Imported, heart: &Heartbeat) -> anyhow::Result<Pod> {
        let name = format!("bench-{number}");
        if what == "fresh" {
            return fresh::pod(&name, LOCAL_IMAGE);
        }
        let pod = workload::pod(&name, "thaw", LOCAL_IMAGE, self.size, heart.dir())?;
        let memory = if what == "lazy" { "lazy" } else { "eager" };
        Ok(pod.annotated(RESTORE, &imported.reference()).annotated(MEMORY, memory))
    }

    /// The measured part.
    async fn start(&self, ids: Vec<String>, hearts: &[Heartbeat]) -> anyhow::Result<((), Duration)> {
        let began = Instant::now();
        let starts = ids.into_iter().map(|container_id| {
            self.bench.kubelet.cri.start_container(StartContainerRequest { container_id })
        });
        for started in join_all(starts).await {
            started?;
        }
        for heart in hearts {
            while !heart.beats()? {
                ensure!(began.elapsed() < LIMIT, "a program did not run within {} s", LIMIT.as_secs());
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(((), began.elapsed()))
    }
}
