// SPDX-License-Identifier: Apache-2.0
//! One process whose memory is served: its userfaultfd, and what it is still owed.
//!
//! The kernel makes a process wait that forks, moves or drops memory until that is read here, and refuses copies
//! meanwhile (`EAGAIN`). So what is owed is known exactly as long as nobody copies between the moment an event is
//! read and the moment it is accounted for. The gate sees to that: copies of fill threads hold it shared, each for one
//! segment; whoever reads events holds it alone. A fault waits for the segments under way, some 30 µs,
//! and four times as long where nobody has waited lately.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use criu_rpc::image::PAGE;
use rustix::io::Errno;

use crate::buffer::{self, Buffer};
use crate::late::LateUnmaps;
use crate::pages::Pages;
use crate::space::{AddressSpace, LATER, Piece, READING, Source};
use crate::uffd::{Event, Uffd};

/// How much a fault brings along, bytes: what follows is likely to be needed, and a fault costs as much as 16 pages.
pub(crate) const FAULT: u64 = 64 << 10;

/// What one copy moves where nobody has waited lately, bytes: larger ones are no faster.
const QUIET: u64 = 256 << 10;

/// A process.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) uffd: Uffd,
    /// In it what only the reader of events needs.
    gate: RwLock<LateUnmaps>,
    space: Mutex<AddressSpace>,
    /// All its mappings are registered, so an address that the kernel does not know is one that is gone.
    registered: AtomicBool,
    pub(crate) faults: AtomicU64,
}

/// Why a copy did not come to its end.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// The process changes its mappings: its events must be read first.
    Busy,
    /// The container is at its memory limit.
    Starved,
    /// The process has ended.
    Ended,
    /// It cannot be done.
    Failed(CopyError),
}

/// A page cannot be put where it belongs.
#[derive(Debug, thiserror::Error)]
#[error("cannot put page {:#x} of pages-{}.img to {address:#x}", .from.offset, .from.pages_id)]
pub struct CopyError {
    /// Where it belongs.
    pub address: u64,
    /// Where it comes from.
    pub from: Source,
    /// Why.
    pub source: std::io::Error,
}

/// What a fill thread achieved.
#[derive(Debug)]
pub(crate) enum Step {
    /// A segment, or nothing that was left to it.
    Filled,
    /// Nothing is owed.
    Complete,
    /// See [`Stopped`].
    Stopped(Stopped),
}

/// What came of reading a task's events.
#[derive(Debug, Default)]
pub(crate) struct Served {
    /// Faults that must be tried again.
    pub(crate) again: Vec<u64>,
    /// Pages that were waited for, in order.
    pub(crate) needed: Vec<Source>,
}

impl Task {
    pub(crate) fn new(uffd: Uffd, space: AddressSpace) -> Self {
        Self {
            uffd,
            gate: RwLock::default(),
            space: Mutex::new(space),
            registered: AtomicBool::new(false),
            faults: AtomicU64::new(0),
        }
    }

    // A panic ends the process, and with it all use of what is guarded.
    fn space(&self) -> MutexGuard<'_, AddressSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// CRIU has told that all mappings are registered.
    pub(crate) fn set_registered(&self) {
        self.registered.store(true, Ordering::Release);
    }

    /// Whether something is owed that is known to be waited for.
    pub(crate) fn owes_known(&self) -> bool {
        self.space().first_rank().is_some_and(|rank| rank < LATER)
    }

    /// Whether nothing is owed and no copy is under way.
    pub(crate) fn is_complete(&self) -> bool {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.space().is_empty()
    }

    /// Copies what is most urgent: one segment of at most `limit` bytes where somebody is known to wait for it, else a
    /// stretch of as much as `buffer` holds, segment by segment.
    pub(crate) fn fill(&self, pages: &Pages, buffer: &mut Buffer, limit: u64) -> Step {
        let shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let Some(piece) = self.space().take_next(limit) else {
            drop(shared);
            return if self.is_complete() { Step::Complete } else { Step::Filled };
        };
        let held = pages.hold(piece.source, piece.len());
        if held && (piece.rank < LATER || piece.rank == READING) {
            return self.settle(self.copy(pages.address(piece.source), piece));
        }
        let mut space = self.space();
        space.add(piece);
        let claimed = match piece.rank {
            // Nothing else is left to do: whoever reads it may be about to, or it has moved meanwhile.
            READING => None,
            // To the end of the page table.
            _ => space.claim(piece.start, buffer::SIZE as u64 - piece.start % buffer::SIZE as u64),
        };
        // Nobody who waits for a page is to wait for what follows.
        drop((space, shared));
        let Some(stretch) = claimed else { return waited(pages, piece) };
        if held && pages.hold(stretch.source, stretch.len()) {
            // A copy out of pages that are not mapped costs a fifth more.
            pages.populate(stretch.source, stretch.len());
            return self.fill_stretch(pages.address(stretch.source), stretch, limit);
        }
        // The way through the page cache would cost several times as much.
        match pages.read_directly(stretch.source, stretch.len(), buffer) {
            Ok(0) => waited(pages, stretch.part(stretch.start, stretch.start.saturating_add(limit))),
            Ok(read) => {
                let read = stretch.part(stretch.start, stretch.start.saturating_add(read));
                self.fill_stretch(buffer.address(), read, limit)
            }
            Err(error) => Step::Stopped(failed(stretch.start, stretch.source, error)),
        }
    }

    /// Copies what of `stretch`, which lies at `from` in this process, is still owed.
    fn fill_stretch(&self, from: u64, stretch: Piece, limit: u64) -> Step {
        let faults = || self.faults.load(Ordering::Relaxed);
        let (before, mut start) = (faults(), stretch.start);
        while start < stretch.end {
            let limit = if faults() == before { QUIET } else { limit };
            let end = start.saturating_add(limit).min(stretch.end);
            let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let taken = self.space().take(start, end);
            let mut stopped = None;
            for piece in taken {
                // Since then something else may have moved here.
                if stopped.is_some() || piece.source != stretch.part(piece.start, piece.end).source {
                    self.space().add(piece);
                    continue;
                }
                let from = from.saturating_add(piece.start - stretch.start);
                if let Step::Stopped(why) = self.settle(self.copy(from, piece)) {
                    stopped = Some(why);
                }
            }
            if let Some(stopped) = stopped {
                return Step::Stopped(stopped);
            }
            start = end;
        }
        Step::Filled
    }

    /// What could not be copied is owed again.
    fn settle(&self, copied: Result<(), (Piece, Stopped)>) -> Step {
        match copied {
            Ok(()) => Step::Filled,
            Err((rest, stopped)) => {
                self.space().add(rest);
                Step::Stopped(stopped)
            }
        }
    }

    /// Reads all events and serves all faults, and those of `again` from before. `adopt` gets each process that has
    /// been forked, before any fault is served: whatever becomes of those, nobody else knows of the child.
    pub(crate) fn serve(
        &self,
        pages: &Pages,
        again: Vec<u64>,
        adopt: impl FnMut(Task),
    ) -> Result<Served, Stopped> {
        let mut alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut faults = again;
        self.read_events(&mut alone, &mut faults, adopt)?;
        let mut served = Served::default();
        self.faults.fetch_add(faults.len() as u64, Ordering::Relaxed);
        // A slow disk is asked for all of them at once.
        let sources: Vec<_> = faults.iter().filter_map(|at| self.space().source_at(*at)).collect();
        sources.into_iter().for_each(|source| pages.read_ahead(source, FAULT));
        for address in faults {
            match self.answer(pages, address) {
                Ok(Some(source)) => served.needed.push(source),
                Ok(None) => {}
                Err(Stopped::Busy | Stopped::Starved) => served.again.push(address),
                Err(other) => return Err(other),
            }
        }
        Ok(served)
    }

    /// Reads all events and accounts for them; faults are added to `faults`.
    fn read_events(
        &self,
        late: &mut LateUnmaps,
        faults: &mut Vec<u64>,
        mut adopt: impl FnMut(Task),
    ) -> Result<(), Stopped> {
        loop {
            let events = self.uffd.read().map_err(|e| failed(0, Source::default(), e))?;
            if events.is_empty() {
                return Ok(());
            }
            for event in events {
                match event {
                    Event::Fault(address) => faults.push(address - address % PAGE),
                    Event::Fork(uffd) => adopt(self.forked(uffd)),
                    Event::Remap { from, to, length } => {
                        self.space().remap(from, to, length);
                        late.expect(from, from.saturating_add(length));
                    }
                    Event::Unmapped { start, end } if late.is_late(start, end) => {}
                    Event::Unmapped { start, end } | Event::Dropped { start, end } => {
                        self.space().take(start, end);
                    }
                }
            }
        }
    }

    fn forked(&self, uffd: Uffd) -> Task {
        let child = Task::new(uffd, self.space().fork());
        // It has its parent's mappings.
        child.registered.store(self.registered.load(Ordering::Acquire), Ordering::Release);
        child
    }

    /// Brings the page at `address` and some that follow; returns where it came from.
    fn answer(&self, pages: &Pages, address: u64) -> Result<Option<Source>, Stopped> {
        let taken = self.space().take_at(address, FAULT);
        let Some(piece) = taken else { return self.absent(address).map(|()| None) };
        self.copy(pages.address(piece.source), piece).map(|()| Some(piece.source)).map_err(
            |(rest, stopped)| {
                self.space().add(rest);
                stopped
            },
        )
    }

    /// A page that is not owed: it is there already, or was never written to, or thrown away.
    fn absent(&self, address: u64) -> Result<(), Stopped> {
        match self.uffd.zero(address, PAGE) {
            Ok(()) => Ok(()),
            // There already; or no mapping of ours any more: the process finds out by itself.
            Err(Errno::EXIST | Errno::NOENT) => self.wake(address),
            Err(e) => Err(stopped(address, Source::default(), e)),
        }
    }

    fn wake(&self, address: u64) -> Result<(), Stopped> {
        match self.uffd.wake(address, PAGE) {
            Ok(()) => Ok(()),
            Err(e) => Err(stopped(address, Source::default(), e)),
        }
    }

    /// Copies `piece` out of this process's memory at `from`; what could not be is in the error.
    fn copy(&self, from: u64, piece: Piece) -> Result<(), (Piece, Stopped)> {
        let mut rest = piece;
        // A mapping may have been split since: a copy must stay within one.
        let mut length = rest.len();
        // The page for which the kernel has just found no mapping.
        let mut missed = None;
        while !rest.is_empty() {
            length = length.min(rest.len());
            let from = if from == 0 { 0 } else { from.saturating_add(rest.start - piece.start) };
            let copied = self.uffd.copy(rest.start, from, length);
            rest = rest.part(rest.start.saturating_add(copied.bytes), rest.end);
            let Some(error) = copied.stopped else {
                length = rest.len();
                continue;
            };
            match error {
                // The next copy names what stopped this one.
                Errno::AGAIN if copied.bytes > 0 => {}
                Errno::EXIST => {
                    // Who waits for it may have come before the page.
                    if let Err(stopped) = self.wake(rest.start) {
                        return Err((rest, stopped));
                    }
                    rest = rest.part(rest.start.saturating_add(PAGE), rest.end);
                }
                Errno::NOENT if length > PAGE => length = length / PAGE / 2 * PAGE,
                Errno::NOENT if !self.registered.load(Ordering::Acquire) => {
                    return Err((rest, Stopped::Busy));
                }
                // Kernels from 6.9 on look for the mapping before they look again whether mappings change. One that
                // has just moved says so now (`EAGAIN`): nobody reads its event while a copy is under way.
                Errno::NOENT if missed != Some(rest.start) => missed = Some(rest.start),
                Errno::NOENT => {
                    if let Err(stopped) = self.wake(rest.start) {
                        return Err((rest, stopped));
                    }
                    rest = rest.part(rest.start.saturating_add(PAGE), rest.end);
                    length = rest.len();
                }
                error => return Err((rest, stopped(rest.start, rest.source, error))),
            }
        }
        Ok(())
    }
}

/// Waits until `piece` is in the page cache.
fn waited(pages: &Pages, piece: Piece) -> Step {
    match pages.wait(piece.source, piece.len()) {
        Ok(()) | Err(Errno::INTR) => Step::Filled,
        Err(error) => Step::Stopped(failed(piece.start, piece.source, error)),
    }
}

/// What an error of the kernel means.
fn stopped(address: u64, from: Source, error: Errno) -> Stopped {
    match error {
        Errno::AGAIN => Stopped::Busy,
        Errno::NOMEM => Stopped::Starved,
        // The second is what kernels before 5.x say.
        Errno::SRCH | Errno::NOSPC => Stopped::Ended,
        error => failed(address, from, error),
    }
}

fn failed(address: u64, from: Source, error: Errno) -> Stopped {
    Stopped::Failed(CopyError { address, from, source: error.into() })
}
