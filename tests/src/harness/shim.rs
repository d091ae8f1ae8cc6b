// SPDX-License-Identifier: Apache-2.0
//! What the shim process of a pod holds: memory, threads, descriptors.

use std::fs;

use super::{HarnessError, process};

/// What one process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Pages in memory, bytes.
    pub rss: u64,
    /// The same, where each page that others have mapped too counts only its share.
    pub pss: u64,
    /// Pages that are its own and hold more than what is in a file, bytes: what one more of it costs.
    pub private_dirty: u64,
    /// Threads.
    pub threads: usize,
    /// Open descriptors.
    pub descriptors: usize,
}

/// The process id of the shim that containerd started for a sandbox.
///
/// # Errors
/// When there is none, or more than one.
pub fn pid(sandbox_id: &str) -> Result<u32, HarnessError> {
    let found: Vec<_> = process::all().into_iter().filter(|pid| serves(*pid, sandbox_id)).collect();
    match found.as_slice() {
        [pid] => Ok(*pid),
        _ => Err(HarnessError::answer("/proc", format!("shims {found:?} of sandbox {sandbox_id}"))),
    }
}

/// Source: containerd, `pkg/shim`: a shim's server has `-id` and the sandbox among its arguments; it has no action
/// (`start`, `delete`), with which containerd runs the same program for a moment.
fn serves(pid: u32, sandbox_id: &str) -> bool {
    let line = process::read(pid, "cmdline").unwrap_or_default();
    let arguments: Vec<_> = line.split_terminator('\0').collect();
    arguments.first().is_some_and(|program| program.contains("containerd-shim-"))
        && arguments.windows(2).any(|pair| pair == ["-id", sandbox_id])
        && !arguments.iter().any(|argument| ["start", "delete"].contains(argument))
}

/// What a process holds now.
///
/// # Errors
/// When there is no such process.
pub fn footprint(pid: u32) -> Result<Footprint, HarnessError> {
    let rollup = process::read(pid, "smaps_rollup")?;
    let size = |name| {
        kilobytes(&rollup, name).ok_or_else(|| HarnessError::answer("smaps_rollup", format!("no {name}")))
    };
    let count = |folder: &str| {
        let folder = format!("/proc/{pid}/{folder}");
        fs::read_dir(&folder)
            .map(Iterator::count)
            .map_err(|source| HarnessError::file("list", &folder, source))
    };
    Ok(Footprint {
        rss: size("Rss")?,
        pss: size("Pss")?,
        private_dirty: size("Private_Dirty")?,
        threads: count("task")?,
        descriptors: count("fd")?,
    })
}

/// The value of `name`, in bytes. Source: proc_pid_smaps(5).
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_found_by_its_whole_name() {
        let text = "55d0-7ffc ---p 00000000 00:00 0  [rollup]\nPss_Dirty:  9 kB\nPss:      12 kB\n";
        assert_eq!(kilobytes(text, "Pss"), Some(12 * 1024));
        assert_eq!(kilobytes(text, "Rss"), None);
    }

    #[test]
    fn a_process_holds_memory_and_at_least_one_thread() {
        let own = footprint(std::process::id()).unwrap();
        assert!(own.rss >= own.pss && own.pss >= own.private_dirty && own.private_dirty > 0, "{own:?}");
        assert!(own.threads >= 1 && own.descriptors >= 3, "{own:?}");
    }

    #[test]
    fn a_program_of_another_name_is_no_shim() {
        assert!(!serves(std::process::id(), ""));
        assert!(pid("no such sandbox").is_err());
    }
}
