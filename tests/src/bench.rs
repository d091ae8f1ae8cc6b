// SPDX-License-Identifier: Apache-2.0
//! Benchmarks on a real node, in one run and in turns, so that all cases meet the same machine.
//!
//! Here is that of restores. Every one ends with a comparison of all the program's memory with what it was when it was
//! frozen: a repetition that does not hold is an error, not a number. What a pod's shim costs is in [`shim`].

mod apps;
mod archive;
mod bundle;
mod command;
mod copies;
mod criu;
mod fresh;
mod frozen;
mod heartbeat;
mod image;
mod lazy;
mod machine;
mod record;
mod registry;
mod report;
mod rootfs;
mod runc;
mod shim;
mod steps;
mod thaw;
#[allow(unsafe_code)] // userfaultfd
mod uffd_limit;
mod workload;
mod written;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

pub use self::apps::{AppsArgs, apps};
use self::copies::Copies;
use self::frozen::Frozen;
use self::heartbeat::Heartbeat;
use self::machine::Machine;
use self::record::{Record, Results};
use self::registry::Registry;
pub use self::rootfs::{RootfsArgs, rootfs};
pub use self::shim::{ShimArgs, shim};
use crate::kubelet::Kubelet;
use crate::kubelet::cri::api::{ImageSpec, PullImageRequest};
use crate::kubelet::settings::Settings;

/// The program's image on a fresh node.
const LOCAL_IMAGE: &str = "thaw.local/python:1";
/// On the node's disk.
const WORK: &str = "/var/tmp/thaw-bench";
/// From this size on the image path is repeated less: it takes minutes.
const LARGE_MB: u64 = 1024;

/// From this size on only thaw is measured: the other ways need a multiple of it on disk, and minutes.
const HUGE_MB: u64 = 4096;

/// What is restored, and how often.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Repetitions of each case.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Repetitions of the image path from 1024 MB on, where one takes minutes.
    #[arg(long, default_value_t = 3)]
    large_image_runs: u32,
    /// Memory of the program, MB, multiples of 16.
    #[arg(long, value_delimiter = ',', default_value = "64,512,2048", value_parser = parse_size)]
    sizes: Vec<u64>,
    /// What is measured.
    #[arg(long, value_delimiter = ',', default_values_t = Case::value_variants().to_vec(), value_enum)]
    cases: Vec<Case>,
    /// The runtime handler that runs and freezes the program.
    #[arg(long, default_value = "runc")]
    frozen_by: String,
    /// Write the results here too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A way to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// A pod with thaw.dev/restore.
    Thaw,
    /// The same with thaw.dev/memory: lazy.
    Lazy,
    /// The start of `sleep` under the handler runc.
    Fresh,
    /// CRIU over RPC, bare.
    Criu,
    /// `runc restore`.
    Runc,
    /// containerd's own restore from a local archive.
    Archive,
    /// buildah, registry, pull, containerd's own restore.
    Image,
}

fn parse_size(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(size) if size > 0 && size % 16 == 0 => Ok(size),
        _ => Err("a positive multiple of 16 is wanted".to_owned()),
    }
}

/// What all repetitions need.
#[derive(Debug)]
struct Bench {
    kubelet: Kubelet,
    heartbeat: Heartbeat,
    /// The program's image.
    image: String,
    /// A directory on the disk.
    work: PathBuf,
}

/// Measures restores.
///
/// # Errors
/// When something cannot be set up, or when a repetition failed: then what was measured is shown all the same.
pub async fn restore(args: RestoreArgs) -> anyhow::Result<()> {
    let machine = Machine::look();
    let work = PathBuf::from(WORK);
    fs::create_dir_all(&work).with_context(|| format!("cannot make {WORK}"))?;
    let kubelet = Kubelet::connect(Settings::from_env()).await?;
    let heartbeat = Heartbeat::new(PathBuf::from("/run/thaw-bench/heartbeat"))?;
    let mut bench = Bench { kubelet, heartbeat, image: LOCAL_IMAGE.to_owned(), work };
    let mut registry = None;
    if args.cases.iter().any(|case| matches!(case, Case::Archive | Case::Image)) {
        registry = Some(Registry::start(bench.work.join("registry"))?);
        bench.image = format!("{}/thaw/python:1", registry::ADDRESS);
        command::run("ctr", &["-n", "k8s.io", "images", "tag", LOCAL_IMAGE, &bench.image])?;
        bench.push_base_image()?;
        let image = Some(ImageSpec { image: bench.image.clone(), ..ImageSpec::default() });
        bench.kubelet.cri.pull_image(PullImageRequest { image }).await?;
    }

    let mut results = Results::default();
    let mut failures = 0;
    for megabytes in &args.sizes {
        failures += bench.size(&args, *megabytes, registry.as_mut(), &mut results).await?;
    }
    print!("{}", report::table(&machine, &results));
    if let Some(file) = &args.json {
        fs::write(file, format!("{:#}\n", report::json(&machine, &results, report::ratios(&results))))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if failures > 0 {
        bail!("{failures} repetitions failed");
    }
    Ok(())
}

/// The order of the cases in a run: each run begins with another one, for who comes first has a disturbed machine;
/// the image path, which disturbs it most, is the last.
fn turns(cases: &[Case], run: u32) -> Vec<Case> {
    let (mut turns, last): (Vec<_>, Vec<_>) = cases.iter().partition(|case| **case != Case::Image);
    let shift = usize::try_from(run).unwrap_or_default() % turns.len().max(1);
    turns.rotate_left(shift);
    turns.extend(last);
    turns
}

impl Bench {
    /// All cases with one size of memory, in turns. Returns how many repetitions failed.
    async fn size(
        &self,
        args: &RestoreArgs,
        megabytes: u64,
        mut registry: Option<&mut Registry>,
        results: &mut Results,
    ) -> anyhow::Result<u32> {
        let name = format!("restore.{megabytes}");
        eprintln!("{megabytes} MB: freezing the program");
        let mut record = Record::default();
        let frozen = Frozen::make(self, &args.frozen_by, megabytes, &mut record).await?;
        results.add(&name, record);
        let copies = Copies::of(&frozen.dir)?;
        let mut failures = 0;
        for run in 1..=args.runs {
            for case in &turns(&args.cases, run) {
                if megabytes >= HUGE_MB && !matches!(case, Case::Thaw | Case::Lazy) {
                    continue;
                }
                if *case == Case::Image && megabytes >= LARGE_MB && run > args.large_image_runs {
                    continue;
                }
                if let (Case::Image, Some(registry)) = (case, &mut registry) {
                    registry.empty()?;
                    self.push_base_image()?;
                }
                let mut record = Record::default();
                eprintln!("{megabytes} MB: run {run} of {}, {case:?}", args.runs);
                match self.once(*case, &frozen, &copies, megabytes, &mut record).await {
                    Ok(()) => results.add(&name, record),
                    Err(error) => {
                        failures += 1;
                        eprintln!("FAILED: {error:#}");
                    }
                }
                self.remove_pods().await?;
            }
        }
        frozen.remove(self).await?;
        Ok(failures)
    }

    async fn once(
        &self,
        case: Case,
        frozen: &Frozen,
        copies: &Copies,
        megabytes: u64,
        record: &mut Record,
    ) -> anyhow::Result<()> {
        // What a case before left in the page cache must not matter.
        match case {
            Case::Thaw | Case::Lazy | Case::Criu | Case::Runc => copies::warm(&frozen.dir)?,
            Case::Archive | Case::Image => copies::warm(&frozen.archive)?,
            Case::Fresh => {}
        }
        match case {
            Case::Thaw => thaw::measure(self, frozen, copies, megabytes, record).await,
            Case::Lazy => lazy::measure(self, frozen, megabytes, record).await,
            Case::Fresh => fresh::measure(self, record).await,
            Case::Criu => criu::measure(self, frozen, record).await,
            Case::Runc => runc::measure(self, frozen, record).await,
            Case::Archive => archive::measure(self, frozen, megabytes, record).await,
            Case::Image => image::measure(self, frozen, megabytes, record).await,
        }
    }

    /// Removes every pod of a repetition, whatever became of it.
    async fn remove_pods(&self) -> anyhow::Result<()> {
        for state in self.kubelet.list()? {
            if state.pod.metadata.name.starts_with("bench-") {
                self.kubelet.remove(&state, Some(0)).await?;
            }
        }
        Ok(())
    }

    fn push_base_image(&self) -> anyhow::Result<()> {
        let arguments = ["-n", "k8s.io", "images", "push", "--plain-http", &self.image];
        command::run("ctr", &arguments).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_begins_with_another_case_and_ends_with_the_image_path() {
        let cases = [Case::Thaw, Case::Image, Case::Criu, Case::Runc];
        assert_eq!(turns(&cases, 1), [Case::Criu, Case::Runc, Case::Thaw, Case::Image]);
        assert_eq!(turns(&cases, 2), [Case::Runc, Case::Thaw, Case::Criu, Case::Image]);
        assert_eq!(turns(&cases, 3), [Case::Thaw, Case::Criu, Case::Runc, Case::Image]);
        assert_eq!(turns(&[Case::Image], 1), [Case::Image]);
    }
}
