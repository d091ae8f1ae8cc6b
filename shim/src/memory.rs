// SPDX-License-Identifier: Apache-2.0
//! Gives memory back to the kernel: a shim is idle for nearly all of its life, and a node has one for each pod.

use std::ffi::c_void;

use log::debug;
use rustix::mm::{Advice, madvise};

/// The stack of a thread, bytes. Below 2 MiB, so that no huge page is put under the few kilobytes that are used of it;
/// the default of 2 MiB is just enough for one.
pub(crate) const STACK: usize = 1 << 20;

/// Makes all threads share one heap: what one of them frees, another can use.
pub(crate) fn share_heap() {
    // SAFETY: it only sets a number, before there is another thread.
    let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    if set != 1 {
        debug!("every thread will have a heap of its own");
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
