// SPDX-License-Identifier: Apache-2.0
//! Gives memory back to the kernel: a shim is idle for nearly all of its life, and a node has one for each pod.

use std::ffi::c_void;

use log::debug;
use rustix::mm::{Advice, madvise};

/// The stack of a thread, bytes. Below 2 MiB, so that no huge page is put under the few kilobytes that are used of it;
/// the default of 2 MiB is just enough for one.
pub(crate) const STACK: usize = 1 << 20;

/// What the C library reads of the heap when the server starts: one heap for all threads, and no free pieces that a
/// thread keeps for itself. Threads that wait to do what blocks would hold on to pages for ever.
///
/// Source: the manual of the GNU C library, "Memory Allocation Tunables".
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0");

/// The environment that the server is started with, besides containerd's; what an administrator has set stays.
pub(crate) fn environment() -> Vec<(&'static str, &'static str)> {
    if std::env::var_os(TUNABLES.0).is_some() { Vec::new() } else { vec![TUNABLES] }
}

/// Takes it out of the environment again, which the programs that the shim starts get. To be called first of all.
pub(crate) fn clear_environment() {
    if std::env::var(TUNABLES.0).is_ok_and(|value| value == TUNABLES.1) {
        // SAFETY: there is no other thread yet that could read the environment.
        unsafe { std::env::remove_var(TUNABLES.0) };
    }
}

/// Gives back the free pages of the heap, and lets go of the program's own pages: those of its start and of the last
/// verb are not needed again for long, and the kernel has them at hand when they are.
pub(crate) fn give_back() {
    // SAFETY: it takes the heap's own locks and moves nothing that is in use.
    unsafe { libc::malloc_trim(0) };
    for mapping in std::fs::read_to_string("/proc/self/maps").unwrap_or_default().lines() {
        let Some((start, length)) = code(mapping) else { continue };
        let start = std::ptr::without_provenance_mut::<c_void>(start);
        // SAFETY: the pages are code, mapped from a file and never written to: the next use finds the same in them.
        if let Err(e) = unsafe { madvise(start, length, Advice::LinuxDontNeed) } {
            debug!("cannot let go of program pages: {e}");
        }
    }
}

/// Start and length of a mapping that holds a file's code and nothing else. Pure.
///
/// Source: proc_pid_maps(5).
fn code(mapping: &str) -> Option<(usize, usize)> {
    let mut fields = mapping.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let path = fields.nth(3)?;
    if permissions != "r-xp" || !path.starts_with('/') {
        return None;
    }
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_from_a_file_is_let_go() {
        let code_of_a_file = "00401000-00403000 r-xp 00001000 fe:00 42   /usr/bin/shim";
        assert_eq!(code(code_of_a_file), Some((0x401000, 0x2000)));
        for other in [
            "00403000-00404000 r--p 00003000 fe:00 42   /usr/bin/shim",
            "00404000-00405000 rwxp 00003000 fe:00 42   /usr/bin/shim",
            "7ffe1000-7ffe3000 r-xp 00000000 00:00 0    [vdso]",
            "7ffe1000-7ffe3000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[test]
    fn the_program_runs_on_after_its_pages_were_given_back() {
        let kept = vec![7u8; 1 << 16];
        give_back();
        assert!(kept.iter().all(|byte| *byte == 7));
    }
}
