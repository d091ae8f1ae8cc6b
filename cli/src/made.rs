// SPDX-License-Identifier: Apache-2.0
//! A checkpoint that a verb has put into the store, as it is printed.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use checkpoint::Manifest;
use indicatif::HumanBytes;
use serde::Serialize;

/// The checkpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Made {
    pub(crate) namespace: String,
    pub(crate) lineage: String,
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) containers: Vec<String>,
}

impl Made {
    /// What a manifest says.
    pub(crate) fn of(manifest: &Manifest, path: PathBuf) -> Self {
        Self {
            namespace: manifest.pod.namespace.clone(),
            lineage: manifest.pod.lineage.to_string(),
            id: manifest.id.to_string(),
            path,
            bytes: manifest.bytes(),
            containers: manifest.containers.keys().cloned().collect(),
        }
    }

    /// Prints its name, or all of it as JSON; on a terminal also what was done, for people.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub(crate) fn print(&self, done: &str, json: bool, out: &mut dyn Write) -> io::Result<()> {
        let Self { namespace, lineage, id, bytes, containers, .. } = self;
        if json {
            return writeln!(out, "{}", serde_json::to_string(self)?);
        }
        let printed = writeln!(out, "{namespace}/{lineage}/{id}").and_then(|()| out.flush());
        if io::stderr().is_terminal() {
            // A comment for people; scripts take the line above.
            let _ = writeln!(io::stderr(), "{done} {} ({})", containers.join(", "), HumanBytes(*bytes));
        }
        printed
    }
}
