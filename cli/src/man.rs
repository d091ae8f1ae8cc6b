// SPDX-License-Identifier: Apache-2.0
//! `thaw man`: writes the manual pages.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, CommandFactory};

/// Write the manual pages of thaw and of each verb into a directory
#[derive(Debug, Clone, Args)]
pub(crate) struct Man {
    /// Where to; it must exist
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// There are no manual pages.
#[derive(Debug, thiserror::Error)]
#[error("cannot write manual pages to {dir} (it must be a directory that exists)", dir = dir.display())]
pub(crate) struct ManError {
    dir: PathBuf,
    source: io::Error,
}

impl Man {
    pub(crate) fn run(&self, _out: &mut dyn Write) -> Result<(), ManError> {
        clap_mangen::generate_to(crate::Command::command(), &self.dir)
            .map_err(|source| ManError { dir: self.dir.clone(), source })
    }
}
