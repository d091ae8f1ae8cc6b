// SPDX-License-Identifier: Apache-2.0
//! The case `lazy`: a new pod under the handler `thaw` whose memory follows. Besides the first beat, the moment when
//! all memory is there is measured.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::Bench;
use super::frozen::Frozen;
use super::record::Record;
use super::steps::Steps;
use crate::harness::process;

/// The annotation.
pub(crate) const MEMORY: &str = "thaw.dev/memory";
/// How often it is looked whether the pager has ended; the least that tokio can.
const POLL: Duration = Duration::from_millis(1);
/// How long the memory may take to be there.
const LIMIT: Duration = Duration::from_secs(120);

/// Restores once.
pub(crate) async fn measure(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    measure_as("lazy", bench, frozen, record).await
}

/// The same as the case `case`.
pub(crate) async fn measure_as(
    case: &'static str,
    bench: &Bench,
    frozen: &Frozen,
    record: &mut Record,
) -> anyhow::Result<()> {
    let pod = frozen.resumed(bench, &case.replace('_', "-"))?.annotated(MEMORY, "lazy");
    let steps = Steps::sandbox(bench, case, pod, record).await?;
    let id = steps.create(&bench.image, record).await?;
    let began = Cell::new(Instant::now());
    steps.start(&id, &began, record).await?;
    // Looking at all processes would cost as much as a fill thread does.
    let pagers: Vec<u32> = process::all().into_iter().filter(|pid| is_pager(*pid)).collect();
    while pagers.iter().any(|pid| is_pager(*pid)) {
        if began.get().elapsed() > LIMIT {
            bail!("the memory did not arrive within {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    record.seconds(&format!("{case}.filled"), began.get().elapsed().as_secs_f64());
    steps.verify(&frozen.checksum).await
}

fn is_pager(pid: u32) -> bool {
    process::read(pid, "cmdline").is_ok_and(|line| line.starts_with("thaw-pager"))
}
