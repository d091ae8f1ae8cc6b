// SPDX-License-Identifier: Apache-2.0
//! `thaw-nri`: one process per node, an NRI plugin of containerd.
//!
//! When a container is created it refuses a pod whose `thaw.dev/` annotations are wrong, before anything is set up for
//! it, and takes out annotations that only the node may set. The shim enforces both again.
#![forbid(unsafe_code)]

mod decide;
mod logger;
mod plugin;
mod reconnect;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use checkpoint::Config;
use clap::Parser;
use log::{error, info};
use nri_plugin::nri::{self, Identity, Session};
use tokio::signal::unix::{SignalKind, signal};

use crate::plugin::NodePlugin;

/// thaw's plugin for containerd: checks the thaw.dev/ annotations of pods when their containers are created.
///
/// Runs as a service of its own, and connects again when containerd restarts. containerd may also start it, from
/// /opt/nri/plugins; then it takes socket, name and index from there and ends with containerd.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Where containerd listens for plugins.
    #[arg(long, value_name = "FILE", default_value = nri::SOCKET)]
    socket: PathBuf,
    /// The plugin's name in containerd's log and in `required_plugins`.
    #[arg(long, default_value = "thaw")]
    name: String,
    /// Two digits: plugins are called in ascending order.
    #[arg(long, value_name = "NN", default_value = "10")]
    index: String,
    /// The node's configuration. It is checked at the start; a missing file means the defaults.
    #[arg(long, value_name = "FILE", default_value = Config::PATH)]
    config: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    logger::init();
    match run(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{}", logger::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<(), Box<dyn Error>> {
    let config = Config::load(&cli.config)?;
    info!(roots:? = config.roots, shared_namespaces:? = config.shared_namespaces; "configuration is valid");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let plugin = Arc::new(NodePlugin);

    let serve = async {
        match nri::launched()? {
            Some((trunk, identity)) => {
                let mut session = Session::register(trunk, &identity, plugin).await?;
                info!(plugin:% = identity; "registered");
                session.closed().await?;
                info!("the runtime hung up");
            }
            None => reconnect::serve(&cli.socket, &Identity::new(&cli.name, &cli.index)?, &plugin).await,
        }
        Ok(())
    };
    tokio::select! {
        ended = serve => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ends: it was told to");
    Ok(())
}
