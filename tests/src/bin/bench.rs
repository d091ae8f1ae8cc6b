// SPDX-License-Identifier: Apache-2.0
//! `bench`: measures on a disposable node. `scripts/bench` makes the node and runs this in it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use thaw_tests::bench::{self, RestoreArgs};

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
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let What::Restore(args) = Cli::parse().what;
    match bench::restore(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
