// SPDX-License-Identifier: Apache-2.0
//! `thaw-nri`: one process per node, an NRI plugin of containerd.
//!
//! When a container is created it refuses a pod whose `thaw.dev/` annotations are wrong, and prepares one that is to be
//! restored: what the checkpoint knows by path and the new pod has elsewhere, or not yet, is there before anything runs.
//! The shim resolves and authorises again, and enforces.

mod address;
mod cdi;
mod decide;
mod events;
mod facts;
mod logger;
mod metrics;
mod plugin;
mod reconnect;
mod serve;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use checkpoint::{Config, record};
use clap::Parser;
use log::{error, info};
use nri_plugin::nri::{self, Identity, Session};
use tokio::signal::unix::{SignalKind, signal};

use crate::metrics::Metrics;
use crate::plugin::NodePlugin;

/// thaw's plugin for containerd: prepares new containers for the checkpoints that they are restored from.
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
    /// Two digits: plugins are called in ascending order, and this one must come after those that give out devices.
    #[arg(long, value_name = "NN", default_value = "90")]
    index: String,
    /// The node's configuration. It is checked at the start; a missing file means the defaults.
    #[arg(long, value_name = "FILE", default_value = Config::PATH)]
    config: PathBuf,
    /// Where the file system of the node is; in a container, where it is mounted.
    #[arg(long, value_name = "DIR", default_value = "/")]
    host_root: PathBuf,
    /// Where shims tell how restores and checkpoints went.
    #[arg(long, value_name = "FILE", default_value = record::SOCKET)]
    records: PathBuf,
}

/// How many calls may wait for the store at a time: one that hangs must not fill the node with threads.
const BLOCKING: usize = 32;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logger::init();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING).build();
    let ended = runtime.map_err(Box::from).and_then(|runtime| {
        let ended = runtime.block_on(run(&cli));
        // Nor keep it from ending.
        runtime.shutdown_background();
        ended
    });
    match ended {
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
    let config = Arc::new(config);
    let metrics = Arc::new(Metrics::new(config.clone()));
    let (reporter, told) = events::queue(config.events.clone());
    let plugin = NodePlugin::new(config.clone(), cli.host_root.clone(), metrics.clone(), reporter.clone());
    let plugin = Arc::new(plugin);

    let serve = async {
        match nri::launched()? {
            Some((trunk, identity)) => {
                let mut session = Session::register(trunk, &identity, plugin).await?;
                info!(plugin:% = identity; "registered");
                session.closed().await?;
                info!("the runtime hung up");
            }
            None => {
                let identity = Identity::new(&cli.name, &cli.index)?;
                reconnect::serve(&cli.socket, &identity, &plugin, || metrics.set_registered(false)).await;
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = serve => return ended,
        () = metrics::listen(&cli.records, &metrics, &reporter) => {}
        () = events::report(told) => {}
        () = serve::serve(&config.metrics, &metrics) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("ends: it was told to");
    Ok(())
}
