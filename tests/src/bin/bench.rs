// SPDX-License-Identifier: Apache-2.0
//! `bench`: measures on a disposable node. `scripts/bench` makes the node and runs this in it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use thaw_tests::bench::{
    self, AllArgs, AppsArgs, CrowdArgs, PageArgs, RestoreArgs, RootfsArgs, Run, ShimArgs,
};

/// Measures on a disposable node; run it with scripts/bench.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Write the results here too.
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// All that follows, in one run.
    All(AllArgs),
    /// From a checkpoint to a running program, by thaw and by what there is without it.
    Restore(RestoreArgs),
    /// Many restores at once.
    Crowd(CrowdArgs),
    /// What a pod's shim costs, beside the one that ships with containerd.
    Shim(ShimArgs),
    /// Real programs, started afresh and restored, until the same useful answer.
    Apps(AppsArgs),
    /// Restores with writable layers of all sizes.
    Rootfs(RootfsArgs),
    /// Measures nothing: makes the page and its plots of kept results.
    Page(PageArgs),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let mut run = Run::default();
    let measured = match cli.what {
        What::Page(args) => return bench::page(&args),
        What::All(args) => {
            bench::all(&mut run, &args).await;
            Ok(())
        }
        What::Restore(args) => bench::restore(&mut run, &args).await,
        What::Crowd(args) => bench::crowd(&mut run, &args).await,
        What::Shim(args) => bench::shim(&mut run, &args).await,
        What::Apps(args) => bench::apps(&mut run, &args).await,
        What::Rootfs(args) => bench::rootfs(&mut run, &args).await,
    };
    // What was measured before a failure is worth seeing, too.
    run.finish(cli.json.as_deref()).and(measured)
}
