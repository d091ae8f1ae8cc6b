// SPDX-License-Identifier: Apache-2.0
//! A registry on the node, for the cases that need one. It is emptied for each repetition: a push is quick where
//! the registry has the data already.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::command;

/// Where it listens. Without TLS, which clients accept from this address.
pub(crate) const ADDRESS: &str = "127.0.0.1:5000";
/// How long it may take to listen.
const START: Duration = Duration::from_secs(30);

/// A running registry; ends on drop.
#[derive(Debug)]
pub(crate) struct Registry {
    dir: PathBuf,
    process: Child,
}

impl Registry {
    /// Starts an empty one with its data in `dir`.
    pub(crate) fn start(dir: PathBuf) -> anyhow::Result<Self> {
        let process = serve(&dir)?;
        Ok(Self { dir, process })
    }

    /// Empties it.
    pub(crate) fn empty(&mut self) -> anyhow::Result<()> {
        self.end();
        self.process = serve(&self.dir)?;
        Ok(())
    }

    fn end(&self) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            command::kill(pid);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(dir: &Path) -> anyhow::Result<Child> {
    if dir.exists() {
        fs::remove_dir_all(dir).context("cannot empty the registry")?;
    }
    fs::create_dir_all(dir).context("cannot make the registry's directory")?;
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: \"{ADDRESS}\"}}\n",
        dir.display()
    );
    fs::write(&config, text).context("cannot write the registry's configuration")?;
    let mut registry = Command::new("docker-registry");
    registry.arg("serve").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = registry.spawn().context("cannot run docker-registry")?;
    let address: SocketAddr = ADDRESS.parse()?;
    let end = Instant::now() + START;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > end {
            bail!("the registry does not listen at {ADDRESS}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}
