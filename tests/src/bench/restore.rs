// SPDX-License-Identifier: Apache-2.0
//! Restores of one program, by thaw and by all other ways, in turns.
//!
//! Every one ends with a comparison of all the program's memory with what it was when it was frozen: a repetition that
//! does not hold is an error, not a number.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::copies::Copies;
use super::frozen::Frozen;
use super::heartbeat::Heartbeat;
use super::podman::Podman;
use super::record::Record;
use super::registry::{self, Registry};
use super::run::{Run, kubelet, remove_pods};
use super::{archive, cold, command, copies, criu, fresh, image, lazy, limits, runc, thaw};
use crate::kubelet::Kubelet;
use crate::kubelet::cri::api::{ImageSpec, PullImageRequest};

/// The program's image on a fresh node.
pub(crate) const LOCAL_IMAGE: &str = "thaw.local/python:1";
/// On the node's disk.
const WORK: &str = "/var/tmp/thaw-bench";
/// On a tmpfs.
const STATE: &str = "/run/thaw-bench";
/// From this size on the image path is repeated less: it takes minutes.
const LARGE_MB: u64 = 1024;

/// From this size on only thaw, starts of `sleep` and the machine are measured: the other ways need a multiple of it on disk,
/// and minutes.
const HUGE_MB: u64 = 4096;

/// The program of the case `small`, MB.
const SMALL_MB: u64 = 64;
const NO_LARGE: &str = "it needs a program of 4096 MB or more beside it";

/// What is restored, and how often.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Repetitions of each case.
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: u32,
    /// Repetitions of the image path from 1024 MB on, where one takes minutes.
    #[arg(long, default_value_t = 3)]
    pub(crate) large_image_runs: u32,
    /// Repetitions from 4096 MB on.
    #[arg(long, default_value_t = 7)]
    pub(crate) huge_runs: u32,
    /// Memory of the program, MB, multiples of 16.
    #[arg(long, value_delimiter = ',', default_value = "64,512,2048", value_parser = parse_size)]
    pub(crate) sizes: Vec<u64>,
    /// What is measured.
    #[arg(long, value_delimiter = ',', default_values_t = Case::value_variants().to_vec(), value_enum)]
    pub(crate) cases: Vec<Case>,
    /// The runtime handler that runs and freezes the program.
    #[arg(long, default_value = "runc")]
    pub(crate) frozen_by: String,
}

impl RestoreArgs {
    /// How often a case is measured with this size.
    fn runs(&self, case: Case, megabytes: u64) -> u32 {
        let alone = matches!(case, Case::Thaw | Case::Lazy | Case::Small | Case::Fresh | Case::Limits);
        match megabytes {
            HUGE_MB.. if alone => self.huge_runs,
            HUGE_MB.. => 0,
            _ if case == Case::Small => 0,
            LARGE_MB.. if case == Case::Image => self.large_image_runs.min(self.runs),
            _ => self.runs,
        }
    }

    /// About how long it takes, seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let of_size = |megabytes: &u64| {
            let runs = self
                .cases
                .iter()
                .map(|case| f64::from(self.runs(*case, *megabytes)) * case.seconds(*megabytes));
            freeze_seconds(*megabytes) + runs.sum::<f64>()
        };
        self.sizes.iter().map(of_size).sum()
    }
}

/// A way to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// A pod with thaw.dev/restore.
    Thaw,
    /// The same with thaw.dev/memory: lazy.
    Lazy,
    /// The same of a program of 64 MB, in turns with one of 4096 MB or more: both find the same machine.
    Small,
    /// Lazily, with nothing of the checkpoint in the page cache.
    Cold,
    /// The same from a slow disk, for the first time.
    SlowFirst,
    /// And again: what the first one waited for is known.
    Slow,
    /// The start of `sleep` under the handler runc.
    Fresh,
    /// CRIU over RPC, bare.
    Criu,
    /// The same, with CRIU's own page daemon.
    CriuLazy,
    /// `runc restore`.
    Runc,
    /// Podman, from the directory of its own checkpoint.
    Podman,
    /// containerd's own restore from a local archive.
    Archive,
    /// buildah, registry, pull, containerd's own restore.
    Image,
    /// No restore: what the machine can do at best.
    Limits,
}

impl Case {
    /// As people give it.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// About how long one repetition takes, with all that is around it, seconds.
    fn seconds(self, megabytes: u64) -> f64 {
        let (fixed, each_gigabyte) = match self {
            Self::Fresh => (1.5, 0.0),
            Self::Small => (2.5, 0.5),
            Self::Limits => (0.5, 3.0),
            Self::Archive => (4.0, 4.0),
            Self::Image => (6.0, 30.0),
            Self::SlowFirst | Self::Slow => (3.0, 8.0),
            Self::Cold
            | Self::Thaw
            | Self::Lazy
            | Self::Criu
            | Self::CriuLazy
            | Self::Runc
            | Self::Podman => (2.5, 3.0),
        };
        fixed + each_gigabyte * gigabytes(megabytes)
    }
}

/// About how long it takes until a program is frozen, seconds.
fn freeze_seconds(megabytes: u64) -> f64 {
    5.0 + 15.0 * gigabytes(megabytes)
}

fn gigabytes(megabytes: u64) -> f64 {
    u32::try_from(megabytes).map_or(0.0, f64::from) / 1024.0
}

/// A multiple of 16 MB, as the program holds.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(size) if size > 0 && size % 16 == 0 => Ok(size),
        _ => Err("a positive multiple of 16 is wanted".to_owned()),
    }
}

/// What all repetitions need.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) kubelet: Kubelet,
    pub(crate) heartbeat: Heartbeat,
    /// The program's image.
    pub(crate) image: String,
    /// A directory on the disk.
    pub(crate) work: PathBuf,
}

/// Measures restores.
///
/// # Errors
/// When something cannot be set up; a repetition that fails is noted and passed over.
pub async fn restore(run: &mut Run, args: &RestoreArgs) -> anyhow::Result<()> {
    let mut bench = Bench::new().await?;
    let mut registry = None;
    if args.cases.iter().any(|case| matches!(case, Case::Archive | Case::Image)) {
        registry = Some(Registry::start(bench.work.join("registry"))?);
        bench.image = format!("{}/thaw/python:1", registry::ADDRESS);
        command::run("ctr", &["-n", "k8s.io", "images", "tag", LOCAL_IMAGE, &bench.image])?;
        bench.push_base_image()?;
        let image = Some(ImageSpec { image: bench.image.clone(), ..ImageSpec::default() });
        bench.kubelet.cri.pull_image(PullImageRequest { image }).await?;
    }
    if args.sizes.iter().all(|megabytes| *megabytes < HUGE_MB) && args.cases.contains(&Case::Small) {
        run.skip("restore.small", NO_LARGE);
    }
    for megabytes in &args.sizes {
        let case = format!("restore.{megabytes}");
        if let Err(error) = bench.size(run, args, *megabytes, registry.as_mut()).await {
            run.fail(&case, &error);
            remove_pods(&bench.kubelet, "").await?;
        }
    }
    Ok(())
}

/// Has the host give as much free memory as the program will need. A page that it has taken back costs as much as several
/// that are there, and the cases would find more or less of them by chance.
fn touch_free_memory(megabytes: u64) {
    let bytes = usize::try_from(megabytes << 20).unwrap_or_default();
    drop(std::hint::black_box(vec![1_u8; bytes]));
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

impl Drop for Bench {
    fn drop(&mut self) {
        // What is still in use goes with the node.
        for dir in [WORK, STATE] {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

impl Bench {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let work = PathBuf::from(WORK);
        fs::create_dir_all(&work).with_context(|| format!("cannot make {WORK}"))?;
        let heartbeat = Heartbeat::new(Path::new(STATE).join("heartbeat"))?;
        Ok(Self { kubelet: kubelet().await?, heartbeat, image: LOCAL_IMAGE.to_owned(), work })
    }

    /// All cases with one size of memory, in turns.
    async fn size(
        &self,
        bench: &mut Run,
        args: &RestoreArgs,
        megabytes: u64,
        mut registry: Option<&mut Registry>,
    ) -> anyhow::Result<()> {
        let name = format!("restore.{megabytes}");
        bench.step(&format!("{name}: freezing the program"), freeze_seconds(megabytes));
        let mut record = Record::default();
        let frozen = Frozen::make(self, &args.frozen_by, megabytes, &mut record).await?;
        bench.add(&name, record);
        let small = match args.cases.contains(&Case::Small) && args.runs(Case::Small, megabytes) > 0 {
            true => Some(Frozen::make(self, &args.frozen_by, SMALL_MB, &mut Record::default()).await?),
            false => None,
        };
        let copies = Copies::of(&frozen.dir)?;
        let mut podman = Podman::new(self, megabytes);
        for run in 1..=args.runs.max(args.huge_runs) {
            for case in turns(&args.cases, run) {
                if run > args.runs(case, megabytes) {
                    continue;
                }
                if let (Case::Image, Some(registry)) = (case, &mut registry) {
                    registry.empty()?;
                    self.push_base_image()?;
                }
                let what = format!("{name}.{}", case.name());
                bench.step(&format!("{what}: run {run}"), case.seconds(megabytes));
                let mut record = Record::default();
                match self.once(case, (&frozen, small.as_ref()), &copies, &mut podman, &mut record).await {
                    Ok(Some(reason)) => bench.skip(&what, &reason),
                    Ok(None) => bench.add(&name, record),
                    Err(error) => bench.fail(&what, &error),
                }
                remove_pods(&self.kubelet, "bench-").await?;
            }
        }
        if let Some(small) = small {
            small.remove(self).await?;
        }
        frozen.remove(self).await
    }

    /// One repetition; the reason where this machine has no such case.
    async fn once(
        &self,
        case: Case,
        (frozen, small): (&Frozen, Option<&Frozen>),
        copies: &Copies,
        podman: &mut Podman<'_>,
        record: &mut Record,
    ) -> anyhow::Result<Option<String>> {
        // What a case before left in the page cache must not matter, nor what the host of a virtual machine has taken back of
        // its free memory.
        touch_free_memory(frozen.megabytes);
        match case {
            Case::Thaw
            | Case::Lazy
            | Case::Small
            | Case::Criu
            | Case::CriuLazy
            | Case::Runc
            | Case::Limits => {
                copies::warm(&frozen.dir)?;
            }
            Case::Archive | Case::Image => copies::warm(&frozen.archive)?,
            Case::Cold | Case::SlowFirst | Case::Slow | Case::Fresh | Case::Podman => {}
        }
        match case {
            Case::Thaw => thaw::measure(self, frozen, copies, record).await,
            Case::Lazy => lazy::measure(self, frozen, record).await,
            Case::Small => match small {
                Some(small) => lazy::measure_as("small", self, small, record).await,
                None => return Ok(Some(NO_LARGE.to_owned())),
            },
            Case::Cold => cold::measure(self, frozen, record).await,
            Case::SlowFirst => return cold::measure_slow_first(self, frozen, record).await,
            Case::Slow => return cold::measure_slow(self, frozen, record).await,
            Case::Fresh => fresh::measure(self, record).await,
            Case::Criu => criu::measure(self, frozen, record).await,
            Case::CriuLazy => criu::measure_lazy(self, frozen, record).await,
            Case::Runc => runc::measure(self, frozen, record).await,
            Case::Podman => return podman.measure(record).await,
            Case::Archive => archive::measure(self, frozen, record).await,
            Case::Image => image::measure(self, frozen, record).await,
            Case::Limits => limits::measure(frozen, record),
        }?;
        Ok(None)
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
