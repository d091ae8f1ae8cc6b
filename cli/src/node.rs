// SPDX-License-Identifier: Apache-2.0
//! `thaw node`: makes a node ready for pods of the RuntimeClass `thaw`, and undoes it.
//!
//! ```text
//!  survey: distribution, configuration with its imports, record of what was done
//!     │
//!     ├── install:   check -> place -> diff -> record -> change      (restart only if asked)
//!     ├── status:    check -> compare with the record
//!     └── uninstall: record -> diff -> change back -> forget
//! ```

use std::error::Error;
use std::io::Write;

use clap::{Args, Subcommand};

mod change;
mod check;
mod containerd;
mod distribution;
mod handler;
mod install;
mod place;
mod record;
mod restart;
mod status;
mod survey;
mod tree;
mod uninstall;

/// Make this node ready for pods that resume, or look whether it is
#[derive(Debug, Clone, Args)]
pub(crate) struct Node {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do with the node.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    Install(install::Install),
    Status(status::Status),
    Uninstall(uninstall::Uninstall),
}

impl Node {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
        match &self.verb {
            Verb::Install(install) => install.run(out)?,
            Verb::Status(status) => status.run(out)?,
            Verb::Uninstall(uninstall) => uninstall.run(out)?,
        }
        Ok(())
    }
}
