// SPDX-License-Identifier: Apache-2.0
//! Which store a verb works on: the node's, or the one that the command line names.

use std::path::{Path, PathBuf};

use checkpoint::config::{Config, ConfigError};
use checkpoint::store::{OpenStoreError, Store};
use clap::Args;

/// Where checkpoints are kept.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct StoreArguments {
    /// Use the checkpoints in this directory, and not those of /etc/thaw/config.toml
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
}

/// There is no store to work on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("the store cannot be used")]
    Open(#[from] OpenStoreError),
    #[error("the directory {path} cannot be used", path = path.display())]
    Root { path: PathBuf, source: std::io::Error },
}

impl StoreArguments {
    /// Opens the store to look at it.
    pub(crate) fn open(&self) -> Result<Store, StoreError> {
        Ok(Store::open(&self.config()?)?)
    }

    /// Opens the store to write to it, and makes it first if need be.
    pub(crate) fn create(&self) -> Result<Store, StoreError> {
        Ok(Store::create(&self.config()?)?)
    }

    /// Where new checkpoints go.
    pub(crate) fn first_root(&self) -> Result<PathBuf, StoreError> {
        // A configuration has one at least.
        Ok(self.config()?.roots.into_iter().next().unwrap_or_default())
    }

    /// Whoever works on the store names namespaces outright: none is searched in place of another.
    fn config(&self) -> Result<Config, StoreError> {
        let config = match &self.root {
            None => Config::load(Path::new(Config::PATH))?,
            Some(root) => {
                let root = std::path::absolute(root)
                    .map_err(|source| StoreError::Root { path: root.clone(), source })?;
                Config { roots: vec![root], ..Config::default() }
            }
        };
        Ok(Config { shared_namespaces: Vec::new(), ..config })
    }
}
