// SPDX-License-Identifier: Apache-2.0
//! The case `thaw`: a new pod under the handler `thaw` whose annotation names the checkpoint.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;

use super::Bench;
use super::copies::Copies;
use super::frozen::{BUNDLES, Frozen};
use super::record::Record;
use super::steps::Steps;
use super::written::Written;

/// The shim's private working directory in the bundle, which holds links and the few rewritten images.
const PRIVATE: &str = "restore";
/// What an ordinary start writes too: containerd's data base and the disk's own structures, a few times over.
/// Whatever is above it would be a copy that was removed again.
const METADATA_BYTES: u64 = 4 << 20;

/// Restores once.
pub(crate) async fn measure(
    bench: &Bench,
    frozen: &Frozen,
    copies: &Copies,
    record: &mut Record,
) -> anyhow::Result<()> {
    let steps = Steps::sandbox(bench, "thaw", frozen.resumed(bench, "thaw")?, record).await?;
    let (began, before) = (SystemTime::now(), Written::now()?);
    let id = steps.restore(&bench.image, &frozen.checksum, record).await?;
    let now = Written::now()?;

    let private = Path::new(BUNDLES).join(&id).join(PRIVATE);
    let (disk, memory) = (now.disk_since(before), now.memory_since(before));
    let temporary = if disk + memory > METADATA_BYTES { disk + memory } else { 0 };
    let copied = copies.found_since(began, &private).context("cannot look for copies")?;
    record.bytes("thaw.private_directory_bytes", super::copies::size(&private));
    record.bytes("thaw.state_bytes", memory);
    record.bytes("checkpoint_bytes_written", copied.max(temporary));
    Ok(())
}
