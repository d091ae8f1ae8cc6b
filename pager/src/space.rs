// SPDX-License-Identifier: Apache-2.0
//! What memory a process is still owed, and where each page of it comes from. Pure: the kernel is asked nowhere.
//!
//! Invariant: pieces never overlap, begin and end at pages, and stay inside one mapping of the image.

use std::collections::{BTreeMap, BTreeSet};

use criu_rpc::image::PAGE;

/// Ranks from here on are of pages of which nobody knows whether they will be waited for.
pub(crate) const LATER: u32 = 1 << 16;
/// The rank of pages that somebody reads from the disk.
pub(crate) const READING: u32 = u32::MAX;

/// Pages that follow each other in memory and in a pages file, all owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Where the first page comes from.
    pub source: Source,
    /// How soon it is likely to be needed; lower is sooner.
    pub rank: u32,
    /// A forked child finds zeroes there.
    pub wipe_on_fork: bool,
}

/// A place in a pages file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Source {
    /// The file is `pages-ID.img`.
    pub pages_id: u32,
    /// Bytes from its beginning.
    pub offset: u64,
}

impl Source {
    /// The place so many bytes further on.
    pub(crate) fn plus(self, bytes: u64) -> Self {
        Self { offset: self.offset.saturating_add(bytes), ..self }
    }
}

impl Piece {
    /// How long it is, bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether nothing is left of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether `next` follows without a gap, here and in the file.
    pub(crate) fn goes_on_in(&self, next: &Self) -> bool {
        self.end == next.start && self.source.plus(self.len()) == next.source
    }

    /// The part from `start` to `end`; empty where they do not meet.
    #[must_use]
    pub fn part(&self, start: u64, end: u64) -> Self {
        let start = start.max(self.start);
        let end = end.min(self.end).max(start);
        Self { start, end, source: self.source.plus(start - self.start), ..*self }
    }
}

/// The memory that one process is still owed.
#[derive(Debug, Clone, Default)]
pub struct AddressSpace {
    pieces: BTreeMap<u64, Piece>,
    /// The same, the most urgent first.
    order: BTreeSet<(u32, u64)>,
}

impl AddressSpace {
    /// Adds what is owed. What overlaps an earlier piece is dropped: an address has one page.
    pub fn add(&mut self, piece: Piece) {
        let mut rest = piece;
        for other in self.within(piece.start, piece.end) {
            self.insert(rest.part(rest.start, other.start));
            rest = rest.part(other.end, rest.end);
        }
        self.insert(rest);
    }

    fn insert(&mut self, piece: Piece) {
        if !piece.is_empty() {
            self.order.insert((piece.rank, piece.start));
            self.pieces.insert(piece.start, piece);
        }
    }

    /// The pieces that share addresses with `start..end`, whole.
    fn within(&self, start: u64, end: u64) -> Vec<Piece> {
        if start >= end {
            return Vec::new();
        }
        let before = self.pieces.range(..start).next_back().filter(|(_, piece)| piece.end > start);
        let from = self.pieces.range(start..end);
        before.into_iter().chain(from).map(|(_, piece)| *piece).collect()
    }

    /// Takes out what is owed in `start..end`: it is the caller's to copy, or gone.
    pub fn take(&mut self, start: u64, end: u64) -> Vec<Piece> {
        let mut taken = Vec::new();
        for piece in self.within(start, end) {
            self.pieces.remove(&piece.start);
            self.order.remove(&(piece.rank, piece.start));
            self.insert(piece.part(piece.start, start));
            self.insert(piece.part(end, piece.end));
            taken.push(piece.part(start, end));
        }
        taken
    }

    /// Takes out the page at `address` and what follows it in its piece, up to `limit` bytes; `None`: not owed.
    pub fn take_at(&mut self, address: u64, limit: u64) -> Option<Piece> {
        let start = address - address % PAGE;
        let (_, piece) = self.pieces.range(..=start).next_back().filter(|(_, piece)| piece.end > start)?;
        let end = piece.end.min(start.saturating_add(limit));
        self.take(start, end).pop()
    }

    /// Where the page at `address` comes from; `None`: not owed.
    pub(crate) fn source_at(&self, address: u64) -> Option<Source> {
        let (_, piece) =
            self.pieces.range(..=address).next_back().filter(|(_, piece)| piece.end > address)?;
        Some(piece.part(address, piece.end).source)
    }

    /// The rank of the most urgent piece.
    pub(crate) fn first_rank(&self) -> Option<u32> {
        self.order.first().map(|(rank, _)| *rank)
    }

    /// What is owed from the page at `start` on, in memory and in its file without a gap, up to `limit` bytes. It stays
    /// owed, with the rank [`READING`]: whoever else looks for work finds other first.
    pub(crate) fn claim(&mut self, start: u64, limit: u64) -> Option<Piece> {
        let mut stretch = *self.pieces.get(&start)?;
        let end = start.saturating_add(limit);
        while let Some(next) = self.pieces.get(&stretch.end)
            && next.start < end
            && stretch.goes_on_in(next)
        {
            stretch.end = next.end;
        }
        let stretch = stretch.part(start, end);
        for piece in self.take(stretch.start, stretch.end) {
            self.insert(Piece { rank: READING, ..piece });
        }
        Some(stretch)
    }

    /// Takes out up to `limit` bytes of the most urgent piece.
    pub fn take_next(&mut self, limit: u64) -> Option<Piece> {
        let (_, start) = self.order.first()?;
        self.take_at(*start, limit)
    }

    /// Gives `rank` to the page at `address` and what follows it in its piece, up to `limit` bytes, unless it has one
    /// below [`LATER`] already.
    pub(crate) fn hasten(&mut self, address: u64, limit: u64, rank: u32) {
        let before = self.pieces.range(..=address).next_back();
        if before.is_none_or(|(_, piece)| piece.end <= address || piece.rank < LATER) {
            return;
        }
        if let Some(piece) = self.take_at(address, limit) {
            self.insert(Piece { rank, ..piece });
        }
    }

    /// The process has moved `length` bytes from `from` to `to`; what was at `to` is gone.
    pub fn remap(&mut self, from: u64, to: u64, length: u64) {
        let moved = self.take(from, from.saturating_add(length));
        self.take(to, to.saturating_add(length));
        for piece in moved {
            let start = to.saturating_add(piece.start - from);
            self.insert(Piece { start, end: start.saturating_add(piece.len()), ..piece });
        }
    }

    /// What a child is owed that was forked off now.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut child = Self::default();
        self.pieces.values().filter(|piece| !piece.wipe_on_fork).for_each(|piece| child.insert(*piece));
        child
    }

    /// All that is owed, the most urgent first.
    pub fn in_order(&self) -> impl Iterator<Item = &Piece> {
        self.order.iter().filter_map(|(_, start)| self.pieces.get(start))
    }

    /// Whether nothing is owed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// How much is owed, bytes.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.pieces.values().map(Piece::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// The same with a map from each page.
    #[derive(Debug, Clone, Default)]
    struct Naive(HashMap<u64, (Source, bool)>);

    impl Naive {
        fn of(space: &AddressSpace) -> Self {
            let mut pages = HashMap::new();
            for piece in space.pieces.values() {
                assert!(piece.start < piece.end && piece.start % PAGE == 0 && piece.end % PAGE == 0);
                assert!(space.order.contains(&(piece.rank, piece.start)));
                for page in (piece.start..piece.end).step_by(4096) {
                    let source = piece.part(page, page + PAGE).source;
                    assert!(pages.insert(page, (source, piece.wipe_on_fork)).is_none());
                }
            }
            assert_eq!(space.order.len(), space.pieces.len());
            assert_eq!(space.owed(), pages.len() as u64 * PAGE);
            Self(pages)
        }

        fn take(&mut self, start: u64, end: u64) -> usize {
            let before = self.0.len();
            self.0.retain(|page, _| *page < start || *page >= end);
            before - self.0.len()
        }

        fn remap(&mut self, from: u64, to: u64, length: u64) {
            let inside = |page: u64| page >= from && page < from + length;
            let moved: Vec<_> =
                self.0.iter().filter(|(page, _)| inside(**page)).map(|(p, s)| (*p, *s)).collect();
            self.take(from, from + length);
            self.take(to, to + length);
            self.0.extend(moved.into_iter().map(|(page, source)| (page - from + to, source)));
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add { start: u64, pages: u64, offset: u64, rank: u32, wipe: bool },
        Take { start: u64, pages: u64 },
        TakeAt { address: u64, pages: u64 },
        TakeNext { pages: u64 },
        Remap { from: u64, to: u64, pages: u64 },
        Fork,
    }

    fn step() -> impl Strategy<Value = Step> {
        let page = || 0..48u64;
        let pages = || 1..12u64;
        prop_oneof![
            (page(), pages(), 0..1000u64, 0..4u32, any::<bool>()).prop_map(
                |(start, pages, offset, rank, wipe)| Step::Add { start, pages, offset, rank, wipe }
            ),
            (page(), pages()).prop_map(|(start, pages)| Step::Take { start, pages }),
            (0..48 * PAGE, pages()).prop_map(|(address, pages)| Step::TakeAt { address, pages }),
            pages().prop_map(|pages| Step::TakeNext { pages }),
            (page(), page(), pages()).prop_map(|(from, to, pages)| Step::Remap { from, to, pages }),
            Just(Step::Fork),
        ]
    }

    fn apply(space: &mut AddressSpace, naive: &mut Naive, step: &Step) {
        match *step {
            Step::Add { start, pages, offset, rank, wipe } => {
                let source = |page| Source { pages_id: 1, offset: (offset + page) * PAGE };
                let (at, end) = (start * PAGE, (start + pages) * PAGE);
                space.add(Piece { start: at, end, source: source(0), rank, wipe_on_fork: wipe });
                for page in 0..pages {
                    naive.0.entry(at + page * PAGE).or_insert_with(|| (source(page), wipe));
                }
            }
            Step::Take { start, pages } => {
                let (start, end) = (start * PAGE, (start + pages) * PAGE);
                let taken: u64 = space.take(start, end).iter().map(Piece::len).sum();
                assert_eq!(taken, naive.take(start, end) as u64 * PAGE);
            }
            Step::TakeAt { address, pages } => match space.take_at(address, pages * PAGE) {
                None => assert!(!naive.0.contains_key(&(address / PAGE * PAGE))),
                Some(piece) => {
                    assert_eq!(piece.start, address / PAGE * PAGE);
                    assert!(piece.len() <= pages * PAGE);
                    assert_eq!(naive.0[&piece.start].0, piece.source);
                    assert_eq!(naive.take(piece.start, piece.end) as u64 * PAGE, piece.len());
                }
            },
            Step::TakeNext { pages } => {
                let first = space.order.first().copied();
                let piece = space.take_next(pages * PAGE);
                assert_eq!(piece.map(|piece| (piece.rank, piece.start)), first);
                if let Some(piece) = piece {
                    assert_eq!(naive.take(piece.start, piece.end) as u64 * PAGE, piece.len());
                }
            }
            Step::Remap { from, to, pages } => {
                // The kernel refuses to move memory onto itself.
                if from + pages <= to || to + pages <= from {
                    space.remap(from * PAGE, to * PAGE, pages * PAGE);
                    naive.remap(from * PAGE, to * PAGE, pages * PAGE);
                }
            }
            Step::Fork => {
                naive.0.retain(|_, (_, wipe)| !*wipe);
                *space = space.fork();
            }
        }
    }

    #[test]
    fn what_is_claimed_has_no_gap_and_comes_last() {
        let mut space = AddressSpace::default();
        let piece = |start: u64, pages: u64, offset: u64, rank| Piece {
            start: start * PAGE,
            end: (start + pages) * PAGE,
            source: Source { pages_id: 1, offset: offset * PAGE },
            rank,
            wipe_on_fork: false,
        };
        // The third follows in memory and not in the file.
        for piece in [piece(10, 4, 0, 1), piece(14, 4, 4, 2), piece(18, 4, 20, 3), piece(40, 4, 30, 9)] {
            space.add(piece);
        }
        let claimed = space.claim(10 * PAGE, 100 * PAGE).unwrap();
        assert_eq!((claimed.start / PAGE, claimed.end / PAGE), (10, 18));
        assert_eq!(space.owed(), 16 * PAGE);
        let order: Vec<_> = space.in_order().map(|piece| (piece.start / PAGE, piece.rank)).collect();
        assert_eq!(order, [(18, 3), (40, 9), (10, READING), (14, READING)]);
        assert_eq!(space.claim(18 * PAGE, 2 * PAGE).unwrap().len(), 2 * PAGE);
        assert!(space.claim(30 * PAGE, PAGE).is_none());
    }

    proptest! {
        #[test]
        fn it_is_the_same_as_a_map_of_single_pages(steps in prop::collection::vec(step(), 1..60)) {
            let (mut space, mut naive) = (AddressSpace::default(), Naive::default());
            for step in &steps {
                apply(&mut space, &mut naive, step);
                prop_assert_eq!(&Naive::of(&space).0, &naive.0);
                prop_assert_eq!(space.is_empty(), naive.0.is_empty());
            }
        }
    }
}
