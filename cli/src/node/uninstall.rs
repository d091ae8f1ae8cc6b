// SPDX-License-Identifier: Apache-2.0
//! `thaw node uninstall`: leaves the node's files as they were before `thaw node install`.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;

use super::change::{self, Change, ChangeError};
use super::place::CONF_D;
use super::record::{Record, Recorded};
use super::restart::{RestartError, restart};
use super::survey::{NodeArguments, SurveyError};
use super::tree::{Tree, TreeError};

/// Undo what `thaw node install` did, to the byte
///
/// Pods that run go on running. New pods of the RuntimeClass `thaw` cannot start here once containerd has been restarted.
#[derive(Debug, Clone, Args)]
pub(crate) struct Uninstall {
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Restart containerd afterwards (RKE2 and k3s: their service), so that the change takes effect
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) node: NodeArguments,
}

/// What was installed is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UninstallError {
    #[error(transparent)]
    Survey(#[from] SurveyError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("cannot undo what was installed")]
    Make(#[from] TreeError),
    #[error(transparent)]
    Restart(#[from] RestartError),
    #[error("cannot print what changes")]
    Print(#[from] io::Error),
}

impl Uninstall {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), UninstallError> {
        let tree = self.node.tree().map_err(SurveyError::from)?;
        let record = Record::load(&tree).map_err(SurveyError::from)?;
        let others = others(&tree, &record)?;
        let (stays, goes): (Vec<&Recorded>, Vec<_>) =
            record.files.iter().rev().partition(|file| !others.is_empty() && file.is_import());
        for file in stays {
            if !tree.read(&file.path)?.is_some_and(|text| text.contains(CONF_D)) {
                continue;
            }
            let (path, others) = (file.path.display(), others.join(", "));
            writeln!(out, "{path} goes on importing {CONF_D}: {others} is read through it")?;
        }
        let undone = goes.into_iter().map(|file| change::undo(&tree, file));
        let mut changes = undone.collect::<Result<Vec<Change>, _>>()?;
        changes.retain(|change| !change.is_none());
        for change in &changes {
            change.show(out)?;
        }
        if self.dry_run {
            return Ok(writeln!(out, "dry run: nothing was changed")?);
        }
        change::make_all(&tree, &changes)?;
        forget(&tree, &record)?;
        writeln!(out, "{}", if changes.is_empty() { "nothing was installed" } else { "uninstalled" })?;
        if changes.is_empty() {
            return Ok(());
        }
        // The distribution may be gone by now; then there is nothing to restart.
        match self.node.survey(&tree) {
            Ok(survey) => Ok(restart(&tree, &survey, self.restart, true, out)?),
            Err(_) => Ok(()),
        }
    }
}

/// What others have put into the directory that is imported since.
fn others(tree: &Tree, record: &Record) -> Result<Vec<String>, TreeError> {
    let folder = Path::new(CONF_D).parent().unwrap_or_else(|| Path::new(CONF_D));
    let ours = |name: &str| record.files.iter().any(|file| file.path == folder.join(name));
    let names = tree.names(folder)?.into_iter();
    Ok(names.filter(|name| name.ends_with(".toml") && !ours(name)).collect())
}

/// Removes the record, and of the directories that were made those that are empty.
fn forget(tree: &Tree, record: &Record) -> Result<(), TreeError> {
    Record::default().save(tree)?;
    for folder in record.folders.iter().rev() {
        tree.remove_folder(folder)?;
    }
    Ok(())
}
