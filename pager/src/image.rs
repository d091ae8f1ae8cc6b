// SPDX-License-Identifier: Apache-2.0
//! What the images say about the memory of each process.

use std::collections::HashMap;

use criu_rpc::image::{ImagesDir, LoadError, Mm, Pagemap, Pstree, Vma};

use crate::pages::{Pages, PagesError};
use crate::space::{AddressSpace, LATER, Piece, Source};

/// Why the images are of no use.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// One of them does not read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A pages file is of no use.
    #[error(transparent)]
    Pages(#[from] PagesError),
}

/// All memory that CRIU leaves to the pager.
#[derive(Debug, Default)]
pub struct Images {
    /// What each process is owed, by its pid in the container.
    pub spaces: HashMap<u32, AddressSpace>,
    /// Where it comes from.
    pub pages: Pages,
    /// Where the pages lie that CRIU loads itself, and how many bytes follow each other.
    pub at_once: Vec<(Source, u64)>,
}

impl Images {
    /// Reads the small images in `dir` and maps the pages files.
    ///
    /// # Errors
    /// When one is missing or damaged.
    pub fn read(dir: &ImagesDir) -> Result<Self, ImagesError> {
        let names = dir.names()?;
        let mut images = Self::default();
        for task in dir.load::<Pstree>("pstree.img")?.tasks {
            let (mm, pagemap) = (format!("mm-{}.img", task.pid), format!("pagemap-{}.img", task.pid));
            // A dead process has neither.
            if names.binary_search(&mm).is_ok() {
                let space = images.space(dir, &dir.load::<Mm>(&mm)?.vmas, &dir.load(&pagemap)?)?;
                images.spaces.insert(task.pid, space);
            }
        }
        // Shared memory is never lazy.
        for name in names.iter().filter(|name| name.starts_with("pagemap-shmem-")) {
            images.at_once(dir, &dir.load(name)?)?;
        }
        Ok(images)
    }

    /// Notes what CRIU loads itself.
    fn at_once(&mut self, dir: &ImagesDir, pagemap: &Pagemap) -> Result<(), PagesError> {
        for run in pagemap.runs.iter().filter(|run| !run.lazy) {
            let Some(offset) = run.offset else { continue };
            self.pages.open(dir, pagemap.pages_id)?;
            let source = Source { pages_id: pagemap.pages_id, offset };
            let length = run.end.saturating_sub(run.start);
            self.pages.check(source, length)?;
            self.at_once.push((source, length));
        }
        Ok(())
    }

    fn space(
        &mut self,
        dir: &ImagesDir,
        vmas: &[Vma],
        pagemap: &Pagemap,
    ) -> Result<AddressSpace, ImagesError> {
        let mut space = AddressSpace::default();
        self.at_once(dir, pagemap)?;
        for piece in lazy(vmas, pagemap) {
            self.pages.open(dir, piece.source.pages_id)?;
            self.pages.check(piece.source, piece.len())?;
            space.add(piece);
        }
        Ok(space)
    }
}

/// The lazy pages, cut at the borders of mappings: a copy must stay within one. What follows upon each other in one is one
/// piece: CRIU cuts by the megabyte. Pure.
fn lazy(vmas: &[Vma], pagemap: &Pagemap) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut mapping = None;
    let mut vmas = vmas.iter().peekable();
    for run in pagemap.runs.iter().filter(|run| run.lazy) {
        let Some(offset) = run.offset else { continue };
        // Both go by address; a mapping may hold several runs, and a run several mappings.
        while vmas.next_if(|vma| vma.end <= run.start).is_some() {}
        for vma in vmas.clone().take_while(|vma| vma.start < run.end) {
            let whole = Piece {
                start: run.start,
                end: run.end,
                source: Source { pages_id: pagemap.pages_id, offset },
                rank: rank(vma),
                wipe_on_fork: vma.wipe_on_fork,
            };
            let piece = whole.part(vma.start, vma.end);
            match pieces.last_mut().filter(|last| mapping == Some(vma.start) && last.goes_on_in(&piece)) {
                Some(last) => last.end = piece.end,
                None => pieces.push(piece),
            }
            mapping = Some(vma.start);
        }
    }
    pieces
}

/// Small mappings hold stacks, heaps and data of libraries; large ones hold what a program works through.
fn rank(vma: &Vma) -> u32 {
    LATER + (vma.end - vma.start).ilog2()
}

#[cfg(test)]
mod tests {
    use criu_rpc::image::PageRun;

    use super::*;

    #[test]
    fn runs_are_joined_and_cut_at_the_borders_of_mappings() {
        let vma = |start, end| Vma { start, end, wipe_on_fork: false, segment: None };
        let run = |start, end, offset, lazy| PageRun { start, end, offset, lazy };
        let vmas = [vma(0x1000, 0x3000), vma(0x3000, 0x4000), vma(0x8000, 0xb000)];
        let runs = vec![
            run(0x1000, 0x2000, Some(0), false),
            run(0x2000, 0x5000, Some(0x1000), true),
            run(0x6000, 0x7000, None, true),
            run(0x8000, 0x9000, Some(0x4000), true),
            run(0x9000, 0xa000, Some(0x5000), true),
            run(0xa000, 0xb000, Some(0x9000), true),
        ];
        let pieces = lazy(&vmas, &Pagemap { pages_id: 7, runs });
        let found: Vec<_> = pieces.iter().map(|p| (p.start, p.end, p.source.offset)).collect();
        let wanted = [
            (0x2000, 0x3000, 0x1000),
            (0x3000, 0x4000, 0x2000),
            (0x8000, 0xa000, 0x4000),
            (0xa000, 0xb000, 0x9000),
        ];
        assert_eq!(found, wanted);
        assert!(pieces.iter().all(|piece| piece.source.pages_id == 7));
    }
}
