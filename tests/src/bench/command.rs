// SPDX-License-Identifier: Apache-2.0
//! Programs that the benchmark runs, and processes that it waits for.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::process::{Pid, WaitOptions};

/// Runs a program to its end and returns what it wrote to stdout.
///
/// # Errors
/// With what it wrote to stderr, when it fails.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> anyhow::Result<String> {
    finish(Command::new(program).args(arguments))
}

/// Like [`run`], for a command that needs more than arguments.
///
/// # Errors
/// As [`run`].
pub(crate) fn finish(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

/// Waits for a child of this process to end.
pub(crate) fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It has been waited for already, or it is no child: there is nothing to wait for.
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}

/// Kills a child of this process and waits for its end.
pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It has ended by itself: as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    reap(pid);
}
