// SPDX-License-Identifier: Apache-2.0
//! The pause program of the test node's sandboxes: reaps what is left to it and ends on SIGTERM or SIGINT.
//!
//! It is compiled alone, static and without crates, so the few C functions it needs are declared here.

use std::ffi::c_int;
use std::process::exit;

// Source: asm-generic/signal.h.
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const SIG_IGN: usize = 1;

unsafe extern "C" {
    fn signal(number: c_int, handler: usize) -> usize;
    fn pause() -> c_int;
}

extern "C" fn end(_number: c_int) {
    exit(0);
}

fn main() {
    let end: extern "C" fn(c_int) = end;
    // SAFETY: signal(2) with a handler that only ends the process; nothing else runs that it could disturb.
    unsafe { signal(SIGTERM, end as usize) };
    // SAFETY: as above.
    unsafe { signal(SIGINT, end as usize) };
    // SAFETY: ignoring SIGCHLD is the kernel's own way to reap children without waiting for them (POSIX.1-2001).
    unsafe { signal(SIGCHLD, SIG_IGN) };
    loop {
        // SAFETY: pause(2) takes nothing and only sleeps until a signal.
        unsafe { pause() };
    }
}
