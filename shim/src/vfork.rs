// SPDX-License-Identifier: Apache-2.0
//! Who waits for the child of its vfork to call exec. The kernel does not let a tracer interrupt that wait: CRIU, which
//! has stopped the child by then, would wait for the parent for ever.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use procfs::process::{Process, Syscall, Task};

/// The number of clone3, the same everywhere. Source: Linux `include/uapi/asm-generic/unistd.h`.
const CLONE3: i64 = 435;
/// clone, whose first argument are the flags; vfork, where there is such a call.
/// Source: Linux `arch/x86/entry/syscalls/syscall_64.tbl`, `include/uapi/asm-generic/unistd.h`.
#[cfg(target_arch = "x86_64")]
const CLONE_AND_VFORK: (i64, Option<i64>) = (56, Some(58));
#[cfg(not(target_arch = "x86_64"))]
const CLONE_AND_VFORK: (i64, Option<i64>) = (220, None);
/// The flag of clone and clone3. Source: Linux `include/uapi/linux/sched.h`.
const CLONE_VFORK: u64 = 0x4000;

/// A process that waits for its child.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) pid: i32,
    pub(crate) comm: String,
}

/// The first process of `cgroup` with a thread that waits, if there is one.
///
/// # Errors
/// The cgroup cannot be read. A process that ends meanwhile waits for nobody.
pub(crate) fn find(cgroup: &Path) -> io::Result<Option<Waiting>> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
    Ok(pids.lines().filter_map(|pid| pid.parse().ok()).find_map(of_process))
}

fn of_process(pid: i32) -> Option<Waiting> {
    let process = Process::new(pid).ok()?;
    let waits = process.tasks().ok()?.flatten().any(|task| waits(&task));
    waits.then(|| Waiting { pid, comm: process.stat().map(|stat| stat.comm).unwrap_or_default() })
}

fn waits(task: &Task) -> bool {
    // A thread that runs shows no call; one that waits in vfork is blocked in it, frozen or not.
    let Ok(Syscall::Blocked { syscall_number, argument_registers: [first, ..], .. }) = task.syscall() else {
        return false;
    };
    is_vfork(syscall_number, first, |address| flags_at(task.pid, address).unwrap_or(0))
}

/// Whether a call with this number and first argument is one; `read` gives a word of the caller's memory.
fn is_vfork(number: i64, first: u64, read: impl FnOnce(u64) -> u64) -> bool {
    let (clone, vfork) = CLONE_AND_VFORK;
    let flags = match number {
        CLONE3 => read(first),
        _ if number == clone => first,
        _ if Some(number) == vfork => CLONE_VFORK,
        _ => 0,
    };
    flags & CLONE_VFORK != 0
}

/// The flags of `struct clone_args`, its first field.
fn flags_at(pid: i32, address: u64) -> io::Result<u64> {
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    memory.seek(SeekFrom::Start(address))?;
    let mut flags = [0; 8];
    memory.read_exact(&mut flags)?;
    Ok(u64::from_ne_bytes(flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_that_makes_a_process_is_known_with_and_without_the_flag() {
        let (clone, vfork) = CLONE_AND_VFORK;
        let memory = |address| if address == 0x7000 { CLONE_VFORK | 0x100 } else { 0x100 };
        assert!(is_vfork(clone, CLONE_VFORK | 17, memory));
        assert!(!is_vfork(clone, 17, memory));
        assert!(is_vfork(CLONE3, 0x7000, memory));
        assert!(!is_vfork(CLONE3, 0x8000, memory));
        assert!(vfork.is_none_or(|vfork| is_vfork(vfork, 0, memory)));
        assert!(!is_vfork(0, CLONE_VFORK, memory));
        assert!(!is_vfork(-1, CLONE_VFORK, memory));
    }

    #[test]
    fn one_that_waits_for_nobody_is_not_found() {
        let cgroup = tempfile::tempdir().unwrap();
        std::fs::write(cgroup.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(find(cgroup.path()).unwrap(), None);
    }
}
