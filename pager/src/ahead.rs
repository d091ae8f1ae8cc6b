// SPDX-License-Identifier: Apache-2.0
//! Runs ahead of the copies, in their order: asks a slow disk for everything long before it is needed, then maps what has
//! come.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use criu_rpc::image::ImagesDir;

use crate::image::{Images, ImagesError};
use crate::pages::Pages;
use crate::space::{AddressSpace, LATER, Source};

/// How much the kernel is asked for at once, bytes: several requests of the disk.
const STEP: u64 = 2 << 20;
/// How many steps are asked for before the first of them is waited for: enough for a disk that is far away or made of
/// many, and no more than what is suddenly needed can wait for behind it.
const WINDOW: usize = 4;
/// How much this gives way to others where processors are few: as much as there is a way to say.
const NICE: i32 = 19;
/// The most that is asked for where the kernel does not say how much memory there is, bytes.
const UNKNOWN: u64 = 1 << 30;

/// Asks the disk for the images in `dir`, as long as `wanted` says so: the small ones, what CRIU needs first, and everything
/// else. This process gives way to all others from then on, at the disk too: the sandbox is not to wait.
///
/// # Errors
/// When an image is missing or damaged.
pub fn read_ahead(dir: OwnedFd, wanted: impl Fn() -> bool) -> Result<(), ImagesError> {
    give_way();
    read_last();
    let dir = ImagesDir::open(dir);
    ask_for_small(&dir)?;
    let images = Images::read(&dir)?;
    ahead(&images.pages, &steps(&images.at_once, images.spaces.values()), |step| {
        // What cannot be read is met again by who needs it.
        let _ = images.pages.wait(step.source, STEP);
        wanted()
    });
    Ok(())
}

/// Asks the disk for all images but pages.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn ask_for_small(dir: &ImagesDir) -> Result<(), ImagesError> {
    for name in dir.names()?.iter().filter(|name| !name.starts_with("pages-")) {
        // Links and others are none of the images.
        if let Ok(file) = dir.open_regular(name) {
            Pages::ask(&file, 0, None);
        }
    }
    Ok(())
}

/// Starts the thread that runs ahead of the copies. It ends when it has mapped everything that is in memory or urgent; when
/// `busy` says that the processors have other work, only what is urgent. What is on the disk and not urgent is read by those
/// who copy it.
pub(crate) fn start<'a>(
    pages: Arc<Pages>,
    at_once: &[(Source, u64)],
    spaces: impl Iterator<Item = &'a AddressSpace>,
    busy: impl Fn() -> bool + Send + 'static,
) -> std::io::Result<()> {
    let mut steps = steps(at_once, spaces);
    let thread = std::thread::Builder::new().name("ahead".into());
    let run = move || {
        give_way();
        steps.retain(|step| step.urgent || pages.hold(step.source, STEP));
        ahead(&pages, &steps, |step| {
            let wanted = step.urgent || !busy();
            if wanted {
                pages.populate(step.source, STEP);
            }
            wanted
        });
    };
    thread.spawn(run).map(drop)
}

/// Asks for all `steps`, and calls `next` for each when some more are asked for; until it says no.
fn ahead(pages: &Pages, steps: &[Ahead], mut next: impl FnMut(&Ahead) -> bool) {
    let asked = steps.iter().map(Some).chain([None; WINDOW]);
    let behind = [None; WINDOW].into_iter().chain(steps.iter().map(Some));
    for (asked, behind) in asked.zip(behind) {
        if let Some(step) = asked {
            pages.read_ahead(step.source, STEP);
        }
        if behind.is_some_and(|step| !next(step)) {
            return;
        }
    }
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ahead {
    /// Where it begins.
    source: Source,
    /// Something in it is needed before the program runs, or known to be waited for.
    urgent: bool,
}

/// All steps, as far as there is memory for what they bring.
fn steps<'a>(at_once: &[(Source, u64)], spaces: impl Iterator<Item = &'a AddressSpace>) -> Vec<Ahead> {
    let most = available().unwrap_or(UNKNOWN) / 2 / STEP;
    in_order(at_once, spaces, usize::try_from(most).unwrap_or(usize::MAX))
}

/// The first steps, at most `most`: what CRIU loads itself, then the urgent. Small pieces that lie in a step that is
/// asked for already need none of their own. Pure.
fn in_order<'a>(
    at_once: &[(Source, u64)],
    spaces: impl Iterator<Item = &'a AddressSpace>,
    most: usize,
) -> Vec<Ahead> {
    let mut pieces: Vec<_> = spaces.flat_map(AddressSpace::in_order).collect();
    pieces.sort_by_key(|piece| piece.rank);
    let first = at_once.iter().map(|(source, length)| (*source, *length, true));
    let stretches = first.chain(pieces.iter().map(|piece| (piece.source, piece.len(), piece.rank < LATER)));
    let mut seen = std::collections::HashSet::new();
    let mut steps = Vec::new();
    for (Source { pages_id, offset }, length, urgent) in stretches {
        let last = offset.saturating_add(length.saturating_sub(1)) / STEP;
        let all = (offset / STEP..=last).map(|step| Source { pages_id, offset: step.saturating_mul(STEP) });
        let new = all.filter(|source| seen.insert(*source)).map(|source| Ahead { source, urgent });
        // No more are made than are used: a hole in a file may be of any length.
        steps.extend(new.take(most.saturating_sub(steps.len())));
    }
    steps
}

/// Lets others have the processor first.
fn give_way() {
    // Of this thread only, on Linux; without it, it is as quick as the others.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Has the disk serve this process when nobody else wants anything of it.
fn read_last() {
    // Source: linux include/uapi/linux/ioprio.h: IOPRIO_WHO_PROCESS; IOPRIO_CLASS_IDLE above IOPRIO_CLASS_SHIFT.
    let (process, idle) = (1, 3 << 13);
    // SAFETY: the call takes three numbers, and changes this thread's priority only.
    let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, process, 0, idle) };
}

/// How much memory could be used without anything being swapped, bytes.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
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
        space.add(piece(0x1000_0000, 0, 2 * STEP + 4096, LATER + 20));
        space.add(piece(0x2000_0000, 5 * STEP + 4096, 4096, 3));
        space.add(piece(0x3000_0000, 5 * STEP + 8192, 4096, 4));
        let at_once = [(Source { pages_id: 1, offset: 7 * STEP }, 4096)];
        let steps = in_order(&at_once, [&space].into_iter(), 100);
        let offsets: Vec<_> = steps.iter().map(|step| (step.source.offset / STEP, step.urgent)).collect();
        assert_eq!(offsets, [(7, true), (5, true), (0, false), (1, false), (2, false)]);
        assert_eq!(in_order(&at_once, [&space].into_iter(), 3), steps[..3]);
    }

    #[test]
    fn no_more_steps_are_made_than_there_is_memory_for() {
        let at_once = [1, 2].map(|pages_id| (Source { pages_id, offset: 0 }, 1 << 57));
        let steps = in_order(&at_once, [].into_iter(), 5);
        let offsets: Vec<_> = steps.iter().map(|step| (step.source.pages_id, step.source.offset)).collect();
        assert_eq!(offsets, [0, 1, 2, 3, 4].map(|step| (1, step * STEP)));
    }

    #[test]
    fn the_kernel_says_how_much_memory_there_is() {
        assert!(available().unwrap() > STEP);
    }
}
