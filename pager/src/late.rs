// SPDX-License-Identifier: Apache-2.0
//! The unmap that follows a move.
//!
//! The kernel tells of a move (REMAP), waits until that is read, and only then tells that nothing is left at the old
//! address (UNMAP). Another thread may have moved something there meanwhile, and what that is owed must not be lost. So
//! the first unmap of just these addresses says nothing new. Source: linux mm/mremap.c, `notify_uffd`.
//!
//! It does not come after `MREMAP_DONTUNMAP`, which nothing tells apart. Then the old mapping stays, registered and
//! owed nothing; whatever comes to be there instead, an unmap that meets these addresses is told first. So whatever
//! meets them ends the waiting, and no unmap is ignored of memory that came later. Pure.

use std::collections::VecDeque;

/// How many are waited for; one for each thread that moves memory just now, and those that never come.
const MOST: usize = 64;

/// Where memory has moved away and the unmap is still to come: first address, address after the last. None overlaps
/// another.
#[derive(Debug, Default)]
pub(crate) struct LateUnmaps(VecDeque<(u64, u64)>);

impl LateUnmaps {
    /// Memory has moved away from `start..end`.
    pub(crate) fn expect(&mut self, start: u64, end: u64) {
        self.forget(start, end);
        // Without the oldest, its unmap is taken at its word.
        self.0.truncate(MOST - 1);
        self.0.push_front((start, end));
    }

    /// Whether the unmap of `start..end` only says that memory has moved away, which is known.
    pub(crate) fn is_late(&mut self, start: u64, end: u64) -> bool {
        let late = self.0.contains(&(start, end));
        self.forget(start, end);
        late
    }

    fn forget(&mut self, start: u64, end: u64) {
        self.0.retain(|other| other.1 <= start || end <= other.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unmap_of_just_what_has_moved_is_late() {
        let mut late = LateUnmaps::default();
        late.expect(10, 14);
        late.expect(20, 24);
        assert!(!late.is_late(14, 20));
        assert!(late.is_late(10, 14) && !late.is_late(10, 14));
        assert!(late.is_late(20, 24));
    }

    #[test]
    fn what_meets_the_old_addresses_ends_the_waiting() {
        let mut late = LateUnmaps::default();
        // Moved without an unmap, twice; then something else is moved onto it, of the same length or shorter.
        late.expect(10, 14);
        late.expect(10, 14);
        assert!(late.is_late(10, 14) && !late.is_late(10, 14));
        late.expect(10, 14);
        assert!(!late.is_late(10, 12) && !late.is_late(10, 14));
        late.expect(10, 14);
        late.expect(12, 16);
        assert!(!late.is_late(10, 12) && late.is_late(12, 16));
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut late = LateUnmaps::default();
        (0..=MOST as u64).for_each(|at| late.expect(at, at + 1));
        assert!(!late.is_late(0, 1) && late.is_late(1, 2) && late.is_late(MOST as u64, MOST as u64 + 1));
    }
}
