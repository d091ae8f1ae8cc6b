// SPDX-License-Identifier: Apache-2.0
//! Restarts containerd, or says how: only what is asked for is restarted.

use std::io::{self, Write};
use std::process::Command;

use super::survey::Survey;
use super::tree::Tree;

/// containerd was not restarted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestartError {
    #[error("--restart works on this machine only, not on a tree below --root")]
    Tree,
    #[error(
        "cannot restart {service}: `systemctl restart {service}` {problem}; what was changed stays changed"
    )]
    Failed { service: &'static str, problem: String },
    #[error("cannot print what is done")]
    Print(#[from] io::Error),
}

/// Restarts the service that containerd runs in if `asked`; else says how, if anything has changed.
pub(crate) fn restart(
    tree: &Tree,
    survey: &Survey,
    asked: bool,
    changed: bool,
    out: &mut dyn Write,
) -> Result<(), RestartError> {
    let service = survey.distribution.service();
    if !asked {
        if changed {
            writeln!(
                out,
                "it takes effect when containerd restarts; pods go on running: systemctl restart {service}"
            )?;
        }
        return Ok(());
    }
    if !tree.is_this_machine() {
        return Err(RestartError::Tree);
    }
    writeln!(out, "restarting {service}")?;
    out.flush()?;
    match Command::new("systemctl").args(["restart", service]).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(RestartError::Failed { service, problem: format!("ended with {status}") }),
        Err(error) => Err(RestartError::Failed { service, problem: format!("cannot run: {error}") }),
    }
}
