// SPDX-License-Identifier: Apache-2.0
//! `thaw`, the command that people type: looks after the checkpoints that pods resume from.
//!
//! One module for each verb. It works on the store and on the node's configuration; what runs is the business of the shim,
//! which `checkpoint` asks.
//! Exit status: 0 done, 1 failed (the reason is on standard error), 2 the command line makes no sense.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod archive;
mod bundles;
mod checkpoint;
mod completions;
mod compression;
#[cfg(test)]
mod fixture;
mod identity;
mod import;
mod inspect;
mod list;
mod made;
mod man;
mod memory;
mod name;
mod node;
mod processes;
mod rm;
mod store;
mod trace;

/// Resume Kubernetes pods from where they were frozen.
///
/// A pod that runs under the RuntimeClass `thaw` and has the annotation `thaw.dev/restore` goes on from a checkpoint
/// in this node's store. This command freezes pods into the store, brings archives into it, shows checkpoints, and takes
/// them away.
#[derive(Debug, Parser)]
#[command(name = "thaw", version, propagate_version = true)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Checkpoint(checkpoint::Checkpoint),
    Import(import::Import),
    List(list::List),
    Inspect(inspect::Inspect),
    Rm(rm::Rm),
    Trace(trace::Trace),
    Node(node::Node),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Verb {
    /// Whether nothing is done but to print.
    fn only_prints(&self) -> bool {
        match self {
            Self::List(_) | Self::Inspect(_) | Self::Trace(_) | Self::Completions(_) | Self::Man(_) => true,
            Self::Checkpoint(_) | Self::Import(_) | Self::Rm(_) | Self::Node(_) => false,
        }
    }
}

fn main() -> ExitCode {
    let verb = Command::parse().verb;
    match run(&verb) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough. A command that does something has not done it.
        Err(error) if verb.only_prints() && is_io(error.as_ref(), io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => report(error.as_ref()),
    }
}

/// The error with everything that led to it.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

fn is_io(error: &(dyn Error + 'static), kind: io::ErrorKind) -> bool {
    chain(error).any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == kind))
}

fn run(verb: &Verb) -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    match verb {
        Verb::Checkpoint(checkpoint) => checkpoint.run(&mut out)?,
        Verb::Import(import) => import.run(&mut out)?,
        Verb::List(list) => list.run(&mut out)?,
        Verb::Inspect(inspect) => inspect.run(&mut out)?,
        Verb::Rm(rm) => rm.run(&mut out)?,
        Verb::Trace(trace) => trace.run(&mut out)?,
        Verb::Node(node) => node.run(&mut out)?,
        Verb::Completions(completions) => completions.run(&mut out)?,
        Verb::Man(man) => man.run(&mut out)?,
    }
    Ok(out.flush()?)
}

/// Prints the error with everything that led to it, and what may help.
fn report(error: &(dyn Error + 'static)) -> ExitCode {
    let text = chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
    // Some of it may be a stranger's words, and must not reach the terminal as commands.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let hint = if is_io(error, io::ErrorKind::PermissionDenied) && !rustix::process::geteuid().is_root() {
        "; run it as root"
    } else if is_io(error, io::ErrorKind::StorageFull) {
        "; make room on the file system of the store, `thaw rm` takes old checkpoints away"
    } else {
        ""
    };
    // There is nobody left to tell if this fails.
    let _ = writeln!(io::stderr(), "thaw: {text}{hint}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }
}
