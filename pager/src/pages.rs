// SPDX-License-Identifier: Apache-2.0
//! Pages files, mapped so that the kernel can copy out of them. Nothing here reads them: another process may cut
//! them short, and only the kernel can answer that with an error.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::num::NonZeroU64;
use std::ptr;

use criu_rpc::image::{ImagesDir, LoadError};
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::space::{Piece, Source};

/// Why the pages are not there.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] LoadError),
    /// It cannot be mapped.
    #[error("cannot map pages-{id}.img")]
    Map {
        /// Its number.
        id: u32,
        /// Why.
        source: std::io::Error,
    },
    /// It ends before a page that the images say is in it.
    #[error(
        "pages-{id}.img has {size} bytes, and a page map says {wanted}; the checkpoint is damaged: make it again"
    )]
    Short {
        /// Its number.
        id: u32,
        /// How long it is.
        size: u64,
        /// How long it should be at least.
        wanted: u64,
    },
}

/// All pages files of a checkpoint that hold lazy pages.
#[derive(Debug, Default)]
pub struct Pages(HashMap<u32, Mapping>);

/// A mapped file; unmapped on drop.
#[derive(Debug)]
struct Mapping {
    file: File,
    start: *mut std::ffi::c_void,
    length: usize,
}

// SAFETY: the address is only ever given to the kernel, and `file` is `Send`.
unsafe impl Send for Mapping {}
// SAFETY: likewise; nothing changes after its making.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was made by `mmap` with this length, and the address leaves this module as a number only.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

impl Pages {
    /// Opens and maps `pages-ID.img`, once.
    ///
    /// # Errors
    /// [`PagesError`], except `Short`.
    pub fn open(&mut self, dir: &ImagesDir, id: u32) -> Result<(), PagesError> {
        if let Entry::Vacant(vacant) = self.0.entry(id) {
            vacant.insert(map(dir.open_regular(&format!("pages-{id}.img"))?, id)?);
        }
        Ok(())
    }

    /// Whether `piece` is in its file.
    ///
    /// # Errors
    /// [`PagesError::Short`].
    pub fn check(&self, piece: &Piece) -> Result<(), PagesError> {
        let Source { pages_id: id, offset } = piece.source;
        let size = self.0.get(&id).map_or(0, |mapping| mapping.length as u64);
        let wanted = offset.saturating_add(piece.len());
        if wanted <= size { Ok(()) } else { Err(PagesError::Short { id, size, wanted }) }
    }

    /// Where `source` is in this process; 0, which the kernel refuses, for what is in no file.
    #[must_use]
    pub fn address(&self, source: Source) -> u64 {
        let Some(mapping) = self.0.get(&source.pages_id) else { return 0 };
        let offset = Some(source.offset).filter(|offset| *offset < mapping.length as u64);
        offset.map_or(0, |offset| mapping.start.addr() as u64 + offset)
    }

    /// Has the kernel read `length` bytes at `source` from the disk, unless their beginning is in memory already.
    pub fn read_ahead(&self, source: Source, length: u64) {
        let Some(mapping) = self.0.get(&source.pages_id) else { return };
        let mut byte = [0; 1];
        let into = &mut [std::io::IoSliceMut::new(&mut byte)];
        if preadv2(&mapping.file, into, source.offset, ReadWriteFlags::NOWAIT).is_ok() {
            return;
        }
        // A file system that cannot is as slow as it is.
        let _ = fadvise(&mapping.file, source.offset, NonZeroU64::new(length), Advice::WillNeed);
    }
}

fn map(file: File, id: u32) -> Result<Mapping, PagesError> {
    let failed = |source: std::io::Error| PagesError::Map { id, source };
    let size = file.metadata().map_err(failed)?.len();
    let length = usize::try_from(size).map_err(|_| failed(std::io::ErrorKind::FileTooLarge.into()))?;
    // An empty file cannot be mapped; nothing is in it.
    let mapped = length.max(1);
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let start = unsafe { mmap(ptr::null_mut(), mapped, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) };
    let start = start.map_err(|e| failed(e.into()))?;
    Ok(Mapping { file, start, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pages-1.img"), [7; 8192]).unwrap();
        let images = ImagesDir::open(File::open(dir.path()).unwrap().into());
        let mut pages = Pages::default();
        pages.open(&images, 1).unwrap();
        let piece = |offset: u64, length: u64| Piece {
            start: 0x1000,
            end: 0x1000 + length,
            source: Source { pages_id: 1, offset },
            rank: 0,
            wipe_on_fork: false,
        };
        assert!(pages.check(&piece(4096, 4096)).is_ok());
        assert!(matches!(pages.check(&piece(4096, 8192)), Err(PagesError::Short { size: 8192, .. })));
        assert!(pages.check(&piece(u64::MAX - 4095, 4096)).is_err());
        assert!(pages.open(&images, 2).is_err());
        assert_eq!(pages.address(Source { pages_id: 1, offset: 8192 }), 0);
        assert_ne!(pages.address(Source { pages_id: 1, offset: 4096 }), 0);
    }
}
