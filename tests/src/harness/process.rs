// SPDX-License-Identifier: Apache-2.0
//! Programs that a test runs, and processes that it looks at.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::HarnessError;

/// The lines of `/proc/<pid>/status` that say what a process may do. Source: proc_pid_status(5).
const CREDENTIALS: [&str; 11] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
];

/// Overrides limits. Source: capabilities(7), linux/capability.h.
pub const CAP_SYS_RESOURCE: u32 = 24;

/// Whether this process has a capability.
#[must_use]
pub fn may_use(capability: u32) -> bool {
    let own = credentials(std::process::id()).unwrap_or_default();
    let effective = own.get("CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    effective.is_some_and(|mask| mask >> capability & 1 == 1)
}

/// Runs a program to its end and returns what it wrote to stdout.
///
/// # Errors
/// When it cannot be run or ends in failure.
pub fn output(program: &str, arguments: &[&str]) -> Result<String, HarnessError> {
    let made = Command::new(program).args(arguments).output();
    let made = made.map_err(|source| HarnessError::file("run", program, source))?;
    if made.status.success() {
        return Ok(String::from_utf8_lossy(&made.stdout).into_owned());
    }
    Err(HarnessError::Command {
        command: format!("{program} {}", arguments.join(" ")),
        status: made.status,
        stderr: String::from_utf8_lossy(&made.stderr).trim().to_owned(),
    })
}

/// What a process may do: user, groups, capabilities, seccomp.
///
/// # Errors
/// When there is no such process.
pub fn credentials(pid: u32) -> Result<BTreeMap<String, String>, HarnessError> {
    let lines = read(pid, "status")?;
    let fields = lines.lines().filter_map(|line| line.split_once(':'));
    Ok(fields
        .filter(|(name, _)| CREDENTIALS.contains(name))
        .map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect())
}

/// The cgroups of a process, one line for each hierarchy.
///
/// # Errors
/// When there is no such process.
pub fn cgroups(pid: u32) -> Result<Vec<String>, HarnessError> {
    Ok(read(pid, "cgroup")?.lines().map(str::to_owned).collect())
}

/// A namespace of a process, as the kernel names it.
///
/// # Errors
/// When there is no such process.
pub fn namespace(pid: u32, kind: &str) -> Result<PathBuf, HarnessError> {
    let link = format!("/proc/{pid}/ns/{kind}");
    fs::read_link(&link).map_err(|source| HarnessError::file("read", &link, source))
}

/// All processes in the PID namespace of `pid`.
///
/// # Errors
/// When there is no such process.
pub fn processes_with(pid: u32) -> Result<Vec<u32>, HarnessError> {
    let wanted = namespace(pid, "pid")?;
    Ok(all()
        .into_iter()
        .filter(|other| namespace(*other, "pid").is_ok_and(|found| found == wanted))
        .collect())
}

/// The host name that a process sees.
///
/// # Errors
/// When there is no such process.
pub fn hostname(pid: u32) -> Result<String, HarnessError> {
    let name = output("nsenter", &["--target", &pid.to_string(), "--uts", "hostname"])?;
    Ok(name.trim().to_owned())
}

/// All processes of this PID namespace.
#[must_use]
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The text of a file in `/proc/<pid>`.
///
/// # Errors
/// When there is no such process.
pub fn read(pid: u32, file: &str) -> Result<String, HarnessError> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).map_err(|source| HarnessError::file("read", &path, source))
}
