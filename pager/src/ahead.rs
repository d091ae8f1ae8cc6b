// SPDX-License-Identifier: Apache-2.0
//! Reads from a slow disk what will be copied, in the order in which it will be: from the moment the pager knows the
//! images, long before CRIU is ready. What is in memory already costs one call for each step.

use std::sync::Arc;

use crate::pages::Pages;
use crate::space::{AddressSpace, Source};

/// How much the kernel is asked for at once, bytes: several requests of the disk.
const STEP: u64 = 4 << 20;

/// Starts the thread that reads ahead; it ends when it has asked for everything.
pub(crate) fn start<'a>(
    pages: Arc<Pages>,
    spaces: impl Iterator<Item = &'a AddressSpace>,
) -> std::io::Result<()> {
    let wanted = steps(spaces);
    let thread = std::thread::Builder::new().name("ahead".into());
    thread.spawn(move || wanted.into_iter().for_each(|source| pages.read_ahead(source, STEP))).map(drop)
}

/// Where each step begins. Small pieces that lie in a step that is asked for already need none of their own. Pure.
fn steps<'a>(spaces: impl Iterator<Item = &'a AddressSpace>) -> Vec<Source> {
    let mut pieces: Vec<_> = spaces.flat_map(AddressSpace::in_order).collect();
    pieces.sort_by_key(|piece| piece.rank);
    let mut seen = std::collections::HashSet::new();
    let mut steps = Vec::new();
    for piece in pieces {
        let Source { pages_id, offset } = piece.source;
        let last = offset.saturating_add(piece.len().saturating_sub(1)) / STEP;
        let wanted =
            (offset / STEP..=last).map(|step| Source { pages_id, offset: step.saturating_mul(STEP) });
        steps.extend(wanted.filter(|source| seen.insert(*source)));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Piece;

    #[test]
    fn each_step_is_asked_for_once_and_the_urgent_first() {
        let mut space = AddressSpace::default();
        let piece = |start, offset, length, rank| Piece {
            start,
            end: start + length,
            source: Source { pages_id: 1, offset },
            rank,
            wipe_on_fork: false,
        };
        space.add(piece(0x1000_0000, 0, 2 * STEP + 4096, 20));
        space.add(piece(0x2000_0000, 5 * STEP + 4096, 4096, 3));
        space.add(piece(0x3000_0000, 5 * STEP + 8192, 4096, 4));
        let offsets: Vec<_> = steps([&space].into_iter()).iter().map(|source| source.offset / STEP).collect();
        assert_eq!(offsets, [5, 0, 1, 2]);
    }
}
