// SPDX-License-Identifier: Apache-2.0
//! The case `runc`: `runc restore` of the same images.

use std::process::{Command, Stdio};

use super::bundle::Bundle;
use super::frozen::Frozen;
use super::record::Record;
use super::{Bench, command, workload};

/// The container's id in runc.
const ID: &str = "bare";
/// Where runc has its state.
const STATE: &str = "/run/thaw-bench/runc";

/// Restores once.
pub(crate) async fn measure(bench: &Bench, frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    let bundle = Bundle::make(bench, frozen)?;
    let work = bundle.dir.join("work");
    // The program gets runc's own stdio, where it had pipes.
    let (output, input) = std::io::pipe()?;
    let mut restore = Command::new("runc");
    restore
        .args(["--root", STATE, "restore", "--detach", "--manage-cgroups-mode", "ignore", "--bundle"])
        .arg(&bundle.dir)
        .arg("--image-path")
        .arg(frozen.images())
        .arg("--work-path")
        .arg(&work)
        .arg(ID)
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input);
    let restored = record.until_beat("runc.running", &bench.heartbeat, async { run(&mut restore) }).await;
    // Its ends of the pipe: without them the other end shows what it said.
    drop(restore);
    let verified = match restored {
        Ok(()) => workload::verify(&frozen.state.ip, &frozen.checksum).await,
        Err(error) => Err(error.context(said(output))),
    };
    let removed = command::run("runc", &["--root", STATE, "delete", "--force", ID]);
    verified?;
    removed.map(drop)
}

fn run(restore: &mut Command) -> anyhow::Result<()> {
    let status = restore.status()?;
    anyhow::ensure!(status.success(), "runc restore failed ({status})");
    Ok(())
}

/// What runc wrote, when no program holds the pipe any more.
fn said(mut output: std::io::PipeReader) -> String {
    let mut text = String::new();
    // What cannot be read is not shown.
    let _ = std::io::Read::read_to_string(&mut output, &mut text);
    text
}
