// SPDX-License-Identifier: Apache-2.0
//! The case `archive`: containerd's own restore, which takes a local archive in the place of an image.

use super::Bench;
use super::frozen::Frozen;
use super::record::Record;
use super::steps::Steps;

/// Restores once. containerd asks a registry for the base image even when it has it.
pub(crate) async fn measure(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    let pod = frozen.pod(bench, "archive", "runc", &bench.image)?;
    let steps = Steps::sandbox(bench, "archive", pod, record).await?;
    steps.restore(&frozen.archive.to_string_lossy(), &frozen.checksum, record).await?;
    Ok(())
}
