// SPDX-License-Identifier: Apache-2.0
//! `thaw completions`: lets a shell complete the command line.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print completions for a shell
#[derive(Debug, Clone, Args)]
pub(crate) struct Completions {
    /// For which shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self, out: &mut dyn Write) -> io::Result<()> {
        // The generator panics when it cannot write, so it writes to memory.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Command::command(), "thaw", &mut script);
        out.write_all(&script)
    }
}
