// SPDX-License-Identifier: Apache-2.0
//! The case `lazy`: a new pod under the handler `thaw` whose memory follows. Besides the first beat, the moment when
//! all memory is there is measured; and what this machine could do at best.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::frozen::Frozen;
use super::record::Record;
use super::steps::Steps;
use super::{Bench, uffd_limit, workload};
use crate::harness::process;

/// How often it is looked whether the pager has ended.
const POLL: Duration = Duration::from_millis(2);
/// How long the memory may take to be there.
const LIMIT: Duration = Duration::from_secs(120);
/// How many threads copy at the machine's limit, as the pager has by default on two processors.
const THREADS: u32 = 2;

/// Restores once.
pub(crate) async fn measure(
    bench: &Bench,
    frozen: &Frozen,
    megabytes: u64,
    record: &mut Record,
) -> anyhow::Result<()> {
    let reference = Some(frozen.reference());
    let pod = workload::pod("bench-lazy", "thaw", &bench.image, megabytes, bench.heartbeat.dir(), reference)?;
    let pod = pod.annotated("thaw.dev/memory", "lazy");
    let steps = Steps::sandbox(bench, "lazy", pod, record).await?;
    let id = steps.create(&bench.image, record).await?;
    let began = Cell::new(Instant::now());
    steps.start(&id, &began, record).await?;
    while pager_lives() {
        if began.get().elapsed() > LIMIT {
            bail!("the memory did not arrive within {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
    record.seconds("lazy.filled", began.get().elapsed().as_secs_f64());
    steps.verify(&frozen.checksum).await?;
    let limit = uffd_limit::copy(&pages(frozen)?, THREADS).context("cannot copy at the machine's limit")?;
    record.seconds("limit.uffd_copy", limit.as_secs_f64());
    Ok(())
}

fn pager_lives() -> bool {
    let is_pager = |pid| process::read(pid, "cmdline").is_ok_and(|line| line.starts_with("thaw-pager"));
    process::all().into_iter().any(is_pager)
}

/// The largest pages file.
fn pages(frozen: &Frozen) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(frozen.images()).context("cannot list the images")?.flatten();
    let pages = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"));
    let largest = pages.max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()));
    Ok(largest.context("there is no pages file")?.path())
}
