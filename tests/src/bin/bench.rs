// SPDX-License-Identifier: Apache-2.0
//! `bench`: measures on a disposable node. `scripts/bench` makes the node and runs this in it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use thaw_tests::bench::{self, AppsArgs, RestoreArgs, RootfsArgs, ShimArgs};

/// Measures on a disposable node; run it with scripts/bench.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From a checkpoint to a running program, by thaw and by what there is without it.
    Restore(RestoreArgs),
    /// What a pod's shim costs, beside the one that ships with containerd.
    Shim(ShimArgs),
    /// Real programs, started afresh and restored, until the same useful answer.
    Apps(AppsArgs),
    /// Restores with writable layers of all sizes.
    Rootfs(RootfsArgs),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let measured = match Cli::parse().what {
        What::Restore(args) => bench::restore(args).await,
        What::Shim(args) => bench::shim(args).await,
        What::Apps(args) => bench::apps(args).await,
        What::Rootfs(args) => bench::rootfs(args).await,
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
