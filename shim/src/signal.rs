// SPDX-License-Identifier: Apache-2.0
//! Signal numbers as containerd sends them, real-time ones included.

use rustix::process::Signal;

/// The real-time signals that a program may use; those before belong to the C library.
///
/// Source: signal(7) and nptl(7); the same with both C libraries of Linux.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The signal with this number, if a program can have it.
pub(crate) fn signal(number: u32) -> Option<Signal> {
    let number = i32::try_from(number).ok()?;
    if REAL_TIME.contains(&number) {
        // SAFETY: the number is that of a real-time signal which the C library does not keep for itself, and it
        // is only sent to other processes.
        return Some(unsafe { Signal::from_raw_unchecked(number) });
    }
    Signal::from_named_raw(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_and_real_time_signals_are_known_and_no_others() {
        assert_eq!(signal(15), Some(Signal::TERM));
        assert_eq!(signal(37).map(Signal::as_raw), Some(37));
        for number in [0, 32, 33, 65, u32::MAX] {
            assert_eq!(signal(number), None, "{number}");
        }
    }
}
