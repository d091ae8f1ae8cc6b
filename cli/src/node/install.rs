// SPDX-License-Identifier: Apache-2.0
//! `thaw node install`: makes containerd know the runtime handler `thaw`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::change::{self, Change, ChangeError};
use super::check::{self, State};
use super::place::{Place, PlaceError};
use super::record::{Kept, PATH, Record, Recorded};
use super::restart::{RestartError, restart};
use super::survey::{NodeArguments, Survey, SurveyError};
use super::tree::{Tree, TreeError};

/// Make containerd on this node run pods of the RuntimeClass `thaw`
///
/// Finds RKE2, k3s or a containerd of its own, and adds one file where its configuration is extended. Files that are
/// generated, and files of yours, stay as they are. Shows the change before it is made; may be run again at any time.
#[derive(Debug, Clone, Args)]
pub(crate) struct Install {
    /// Show what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Restart containerd afterwards (RKE2 and k3s: their service), so that the change takes effect
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(flatten)]
    pub(crate) node: NodeArguments,
}

/// Nothing was installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error(transparent)]
    Survey(#[from] SurveyError),
    #[error("this node is not fit for thaw: {}", faults.join("; "))]
    Unfit { faults: Vec<String> },
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("nothing was changed")]
    Make { source: TreeError },
    #[error(transparent)]
    Restart(#[from] RestartError),
    #[error("cannot print what changes")]
    Print(#[from] io::Error),
}

impl Install {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), InstallError> {
        let tree = self.node.tree().map_err(SurveyError::from)?;
        let survey = self.node.survey(&tree)?;
        writeln!(out, "{} with {}", survey.distribution.name(), survey.configuration.path.display())?;
        fit(&tree, &survey, out)?;
        if let Some(path) = &survey.by_hand {
            return Ok(writeln!(out, "nothing to do: the handler is in {} already", path.display())?);
        }
        let (changes, record) = plan(&tree, &survey).or_else(|error| advise(error, &survey, out))?;
        for change in &changes {
            change.show(out)?;
        }
        if changes.is_empty() {
            writeln!(out, "nothing to change")?;
        } else if self.dry_run {
            return Ok(writeln!(out, "dry run: nothing was changed")?);
        } else {
            make(&tree, &survey.record, &changes, &record).map_err(|source| InstallError::Make { source })?;
            writeln!(out, "installed; `thaw node uninstall` undoes it ({PATH} says how)")?;
        }
        Ok(restart(&tree, &survey, self.restart && !self.dry_run, !changes.is_empty(), out)?)
    }
}

/// Where an administrator has to write the handler's tables, prints them.
fn advise<T>(error: InstallError, survey: &Survey, out: &mut dyn Write) -> Result<T, InstallError> {
    if let InstallError::Place(PlaceError::Template { .. }) = error {
        writeln!(out, "{}", survey.tables(false).trim())?;
    }
    Err(error)
}

/// Prints what is not as it should be; refuses a node where nothing would run.
fn fit(tree: &Tree, survey: &Survey, out: &mut dyn Write) -> Result<(), InstallError> {
    let mut faults = Vec::new();
    for check in check::all(tree, survey) {
        let line = format!("{}: {}: {}", check.name, check.found, check.cure.unwrap_or_default());
        match check.state {
            State::Ok => {}
            State::Warn | State::Unready => writeln!(out, "warning: {line}")?,
            State::Fail => faults.push(line),
        }
    }
    // Told together with the rest, so that one run shows all that is to be done.
    if let (false, Err(error)) = (faults.is_empty(), survey.place(tree)) {
        faults.push(error.to_string());
    }
    if faults.is_empty() { Ok(()) } else { Err(InstallError::Unfit { faults }) }
}

/// The changes, and the record once they are made.
fn plan(tree: &Tree, survey: &Survey) -> Result<(Vec<Change>, Record), InstallError> {
    let place = survey.place(tree)?;
    let text = survey.file(&place);
    let (Place::DropIn { path } | Place::Import { path, .. } | Place::Template { path }) = &place;
    let mut planned = vec![(own_file(tree, &survey.record, path, text.clone())?, Kept::Created(text))];
    if let Place::Import { at, text, .. } = place {
        let path = survey.configuration.path.clone();
        let before = tree.read(&path).map_err(ChangeError::from)?;
        let mut after = before.clone().unwrap_or_default();
        after.insert_str(at, &text);
        let kept = if before.is_some() { Kept::Inserted(text) } else { Kept::Created(after.clone()) };
        planned.push((Change { path, before, after: Some(after) }, kept));
    }
    planned.retain(|(change, _)| !change.is_none());
    let mut record = survey.record.clone();
    for (change, kept) in &planned {
        record.files.retain(|file| file.path != change.path);
        record.files.push(Recorded { path: change.path.clone(), change: kept.clone() });
    }
    for path in planned.iter().map(|(change, _)| change.path.as_path()).chain([Path::new(PATH)]) {
        let missing = tree.missing_folders(path);
        let new: Vec<PathBuf> =
            missing.into_iter().filter(|folder| !record.folders.contains(folder)).collect();
        record.folders.extend(new);
    }
    Ok((planned.into_iter().map(|(change, _)| change).collect(), record))
}

/// The change that makes `path` ours. It must not be there, or be as we left it.
fn own_file(tree: &Tree, record: &Record, path: &Path, text: String) -> Result<Change, ChangeError> {
    let before = tree.read(path)?;
    let left = record.files.iter().find(|file| file.path == path).map(|file| &file.change);
    match (&before, left) {
        (None, _) => {}
        (Some(now), _) if *now == text => {}
        (Some(now), Some(Kept::Created(left))) if now == left => {}
        (Some(_), Some(_)) => return Err(ChangeError::Changed { path: path.to_owned() }),
        (Some(_), None) => return Err(ChangeError::Foreign { path: path.to_owned() }),
    }
    Ok(Change { path: path.to_owned(), before, after: Some(text) })
}

/// Writes the record, then makes the changes; if one fails, everything is as before.
fn make(tree: &Tree, old: &Record, changes: &[Change], record: &Record) -> Result<(), TreeError> {
    record.save(tree)?;
    let folders = || {
        let mut missing = record.folders.iter().filter(|folder| !tree.exists(folder));
        missing.try_for_each(|folder| tree.make_folder(folder))
    };
    folders().and_then(|()| change::make_all(tree, changes)).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = old.save(tree);
        for folder in record.folders.iter().rev().filter(|folder| !old.folders.contains(folder)) {
            let _ = tree.remove_folder(folder);
        }
    })
}
