// SPDX-License-Identifier: Apache-2.0
//! `thaw node status`: whether pods can run and resume on this node, and what is missing.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::change;
use super::check::{self, Check, State};
use super::distribution::Distribution;
use super::place::{CONF_D, Place};
use super::record::{Kept, PATH, Record};
use super::survey::{NodeArguments, Survey, SurveyError};
use super::tree::Tree;

/// Show whether this node is ready for pods of the RuntimeClass `thaw`
///
/// Ends with status 1 where it is not; then each line that is not `ok` says what to do.
#[derive(Debug, Clone, Args)]
pub(crate) struct Status {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) node: NodeArguments,
}

/// The node is not ready, or cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    #[error(transparent)]
    Survey(#[from] SurveyError),
    #[error("this node is not ready: {names} (see above)")]
    NotReady { names: String },
    #[error("cannot print the status")]
    Print(#[from] io::Error),
}

/// Everything, as JSON has it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ready: bool,
    #[serde(flatten)]
    distribution: &'a Distribution,
    service: &'static str,
    configuration: PathBuf,
    /// Files that were installed.
    files: Vec<PathBuf>,
    checks: &'a [Check],
}

impl Status {
    pub(crate) fn run(&self, out: &mut dyn Write) -> Result<(), StatusError> {
        let tree = self.node.tree().map_err(SurveyError::from)?;
        let survey = self.node.survey(&tree)?;
        let mut checks = check::all(&tree, &survey);
        checks.push(handler(&tree, &survey));
        if tree.is_this_machine() {
            checks.push(check::running(&survey, newest(&tree, &survey.record)));
            checks.extend(check::plugin());
        }
        let failed = checks.iter().filter(|check| matches!(check.state, State::Unready | State::Fail));
        let failed = failed.map(|check| check.name);
        let failed: Vec<&str> = failed.collect();
        if self.json {
            report(&survey, &checks, failed.is_empty(), out)?;
        } else {
            table(&survey, &checks, out)?;
        }
        out.flush()?;
        if failed.is_empty() { Ok(()) } else { Err(StatusError::NotReady { names: failed.join(", ") }) }
    }
}

fn report(survey: &Survey, checks: &[Check], ready: bool, out: &mut dyn Write) -> io::Result<()> {
    let report = Report {
        ready,
        distribution: &survey.distribution,
        service: survey.distribution.service(),
        configuration: survey.configuration.path.clone(),
        files: survey.record.files.iter().map(|file| file.path.clone()).collect(),
        checks,
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn table(survey: &Survey, checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} with {}", survey.distribution.name(), survey.configuration.path.display())?;
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Warn => "warning",
            State::Unready | State::Fail => "FAIL",
        };
        writeln!(out, "{state:8} {:13} {}", check.name, check.found)?;
        if let Some(cure) = &check.cure {
            writeln!(out, "{:22} -> {cure}", "")?;
        }
    }
    Ok(())
}

/// Whether what `thaw node install` wrote is in place and as it would write it now.
fn handler(tree: &Tree, survey: &Survey) -> Check {
    let (state, found, cure) = if let Some(path) = &survey.by_hand {
        (State::Ok, format!("written by hand, in {}", path.display()), None)
    } else if survey.record.files.is_empty() {
        (State::Fail, "not installed".to_owned(), Some("run `thaw node install`".to_owned()))
    } else {
        match missing(tree, survey) {
            Some(problem) => (State::Fail, problem, Some("run `thaw node install`".to_owned())),
            None => (State::Ok, format!("installed ({PATH} says how)"), None),
        }
    };
    Check { name: "handler", state, found, cure }
}

fn missing(tree: &Tree, survey: &Survey) -> Option<String> {
    for file in &survey.record.files {
        match change::undo(tree, file) {
            Err(error) => return Some(error.to_string()),
            Ok(undo) if undo.before.is_none() => return Some(format!("{} is gone", file.path.display())),
            Ok(_) => {}
        }
    }
    let place = survey.place(tree).map_err(|error| error.to_string());
    let place = match place {
        Ok(place) => place,
        Err(error) => return Some(error),
    };
    if let Place::Import { .. } = place {
        let configuration = survey.configuration.path.display();
        return Some(format!("{configuration} no longer imports {CONF_D}"));
    }
    let text = survey.file(&place);
    let same = survey.record.files.iter().any(|file| file.change == Kept::Created(text.clone()));
    (!same).then(|| "the node has changed since it was installed".to_owned())
}

/// When the last of our files was written.
fn newest(tree: &Tree, record: &Record) -> Option<SystemTime> {
    let times =
        record.files.iter().filter_map(|file| std::fs::metadata(tree.real(&file.path)).ok()?.modified().ok());
    times.max()
}
