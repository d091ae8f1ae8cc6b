// SPDX-License-Identifier: Apache-2.0
//! How much memory a container had, and how much of it its processes wait for even where the rest follows.

use checkpoint::ContainerDir;
use criu_rpc::image::{ImagesDir, LoadError, PageRun, Pagemap};
use serde::Serialize;

/// Page maps of memory that processes share: CRIU loads all of it itself.
const SHARED: &str = "pagemap-shmem-";
/// Those of a process.
const OWN: &str = "pagemap-";

/// Bytes of memory in the images of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) bytes: u64,
    /// What is there before the first instruction under `thaw.dev/memory: lazy` too.
    pub(crate) at_once: u64,
    /// What of that is shared memory.
    pub(crate) shared: u64,
}

impl Memory {
    /// Reads the page maps of a container.
    pub(crate) fn of(container: &ContainerDir, dir: &ImagesDir) -> Result<Self, LoadError> {
        let mut memory = Self::default();
        for image in container.images().iter().filter(|image| image.name.starts_with(OWN)) {
            memory.add(&dir.load::<Pagemap>(&image.name)?.runs, image.name.starts_with(SHARED));
        }
        Ok(memory)
    }

    /// Adds the pages of one page map. Pure.
    fn add(&mut self, runs: &[PageRun], shared: bool) {
        for run in runs.iter().filter(|run| run.offset.is_some()) {
            let bytes = run.end.saturating_sub(run.start);
            self.bytes = self.bytes.saturating_add(bytes);
            if shared || !run.lazy {
                self.at_once = self.at_once.saturating_add(bytes);
            }
            if shared {
                self.shared = self.shared.saturating_add(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_and_pages_that_are_not_lazy_are_waited_for() {
        let run = |pages: u64, offset, lazy| PageRun { start: 0, end: pages * 4096, offset, lazy };
        let runs = [run(8, Some(0), true), run(2, Some(8 * 4096), false), run(100, None, false)];
        let mut memory = Memory::default();
        memory.add(&runs, false);
        assert_eq!(memory, Memory { bytes: 10 * 4096, at_once: 2 * 4096, shared: 0 });
        memory.add(&runs, true);
        assert_eq!(memory, Memory { bytes: 20 * 4096, at_once: 12 * 4096, shared: 10 * 4096 });
    }
}
