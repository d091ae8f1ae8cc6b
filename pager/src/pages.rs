// SPDX-License-Identifier: Apache-2.0
//! Pages files, mapped so that the kernel can copy out of them. Nothing here reads them: another process may cut
//! them short, and only the kernel can answer that with an error.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use criu_rpc::image::{ImagesDir, LoadError, PAGE};
use rustix::fs::{Advice, Mode, OFlags, fadvise, open};
use rustix::io::{Errno, pread};
use rustix::mm::{Advice as Mapped, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::buffer::Buffer;
use crate::space::Source;

/// The size of a page of the pages file.
const PAGE_BYTES: usize = 4096;

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
    /// The same, read around the page cache; where the file system can.
    direct: Option<OwnedFd>,
    start: *mut std::ffi::c_void,
    length: usize,
    /// Which steps of it have been mapped page by page.
    mapped: Vec<AtomicBool>,
}

// SAFETY: the address is only ever given to the kernel, and `file` is `Send`.
unsafe impl Send for Mapping {}
// SAFETY: likewise; nothing but flags changes after its making.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Whether the page at `offset` is in memory; also where nobody can tell. Overlays know no read that does not wait.
    fn holds(&self, offset: u64) -> bool {
        let Some(offset) = usize::try_from(offset).ok().filter(|offset| *offset < self.length) else {
            return true;
        };
        let (start, mut told) = (self.start.wrapping_byte_add(offset - offset % PAGE_BYTES), 0);
        // SAFETY: it writes one byte, for one page of a mapping that lives as long as `self`.
        let failed = unsafe { libc::mincore(start, PAGE_BYTES, &raw mut told) } != 0;
        failed || told & 1 == 1
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was made by `mmap` with this length, and the address leaves this module as a number only.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

/// How much of a file is known to be mapped, bytes.
const STEP: usize = 2 << 20;
/// How much of a file the kernel maps where one page of it is touched, bytes. Source: linux mm/memory.c,
/// fault_around_bytes.
const FAULT_AROUND: usize = 64 << 10;

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

    /// Whether `length` bytes at `source` are in their file.
    ///
    /// # Errors
    /// [`PagesError::Short`].
    pub fn check(&self, source: Source, length: u64) -> Result<(), PagesError> {
        let Source { pages_id: id, offset } = source;
        let size = self.0.get(&id).map_or(0, |mapping| mapping.length as u64);
        let wanted = offset.saturating_add(length);
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
        if !mapping.holds(source.offset) {
            Self::ask(&mapping.file, source.offset, NonZeroU64::new(length));
        }
    }

    /// Whether a copy of `length` bytes at `source` would wait for no disk, as far as the first page and the last tell.
    pub(crate) fn hold(&self, source: Source, length: u64) -> bool {
        let last = source.offset.saturating_add(length).saturating_sub(1);
        let holds = |mapping: &Mapping| mapping.holds(source.offset) && mapping.holds(last);
        self.0.get(&source.pages_id).is_none_or(holds)
    }

    /// Asks the disk for `length` bytes of a file, or all from `offset` on.
    pub(crate) fn ask(file: &File, offset: u64, length: Option<NonZeroU64>) {
        // A file system that cannot is as slow as it is.
        let _ = fadvise(file, offset, length, Advice::WillNeed);
    }

    /// Reads from `source` on into `buffer`, around the page cache, as far as `length` and the file go; how much, which
    /// may be nothing where there is no such way.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn read_directly(
        &self,
        source: Source,
        length: u64,
        buffer: &mut Buffer,
    ) -> Result<u64, Errno> {
        let Some(mapping) = self.0.get(&source.pages_id) else { return Ok(0) };
        let Some(direct) = &mapping.direct else { return Ok(0) };
        let into = buffer.bytes(usize::try_from(length).unwrap_or(usize::MAX));
        match pread(direct, into, source.offset) {
            Ok(read) => Ok(read as u64 / PAGE * PAGE),
            // It only seemed to know such reads.
            Err(Errno::INVAL | Errno::INTR) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Waits until `length` bytes at `source`, as far as the file goes, are in the page cache.
    ///
    /// # Errors
    /// What the disk says; `EIO` where the file has been cut short since it was mapped.
    pub(crate) fn wait(&self, source: Source, length: u64) -> Result<(), Errno> {
        let Some(mapping) = self.0.get(&source.pages_id) else { return Ok(()) };
        Self::ask(&mapping.file, source.offset, NonZeroU64::new(length));
        let last = source.offset.saturating_add(length).min(mapping.length as u64).saturating_sub(1);
        // Disks are read in order.
        [source.offset, last].into_iter().try_for_each(|at| match pread(&mapping.file, &mut [0; 1], at)? {
            // Whoever waits for it would wait for ever.
            0 => Err(Errno::IO),
            _ => Ok(()),
        })
    }

    /// Maps `length` bytes at `source`, as far as the file goes; waits for the disk. One page is touched of as many as the
    /// kernel maps with it, and none of what has been mapped so before.
    pub fn populate(&self, source: Source, length: u64) {
        let Some(mapping) = self.0.get(&source.pages_id) else { return };
        let Ok(offset) = usize::try_from(source.offset) else { return };
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(mapping.length.saturating_sub(offset));
        let mapped =
            |step: usize| mapping.mapped.get(step).is_some_and(|mapped| mapped.load(Ordering::Relaxed));
        for touched in (offset..offset + length).step_by(FAULT_AROUND).filter(|at| !mapped(at / STEP)) {
            let start = mapping.start.wrapping_byte_add(touched);
            // SAFETY: the advice brings pages of a mapping that lives as long as `self`, and changes none. A kernel before
            // 5.14 does not know it, and a page that cannot be read is met again by its copy.
            let _ = unsafe { madvise(start, PAGE_BYTES, Mapped::LinuxPopulateRead) };
        }
        let whole = mapping.mapped.iter().take((offset + length) / STEP).skip(offset.div_ceil(STEP));
        whole.for_each(|mapped| mapped.store(true, Ordering::Relaxed));
    }
}

fn map(file: File, id: u32) -> Result<Mapping, PagesError> {
    let failed = |source: std::io::Error| PagesError::Map { id, source };
    let size = file.metadata().map_err(failed)?.len();
    let length = usize::try_from(size).map_err(|_| failed(std::io::ErrorKind::FileTooLarge.into()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let direct = open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty()).ok();
    // An empty file cannot be mapped; nothing is in it.
    let mapped = length.max(1);
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let start = unsafe { mmap(ptr::null_mut(), mapped, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) };
    let start = start.map_err(|e| failed(e.into()))?;
    // A copy that meets the disk reads what it needs, and nothing around it.
    // SAFETY: the advice changes no memory.
    let _ = unsafe { madvise(start, mapped, Mapped::Random) };
    let mapped = (0..length.div_ceil(STEP)).map(|_| AtomicBool::new(false)).collect();
    Ok(Mapping { file, direct, start, length, mapped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_memory_is_known_to_be_on_the_disk() {
        let folder = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(folder.parent().unwrap()).unwrap();
        // Source: linux include/uapi/linux/magic.h, TMPFS_MAGIC.
        if rustix::fs::statfs(dir.path()).unwrap().f_type == 0x0102_1994 {
            println!("SKIP the build folder is a tmpfs, from which nothing leaves memory");
            return;
        }
        let path = dir.path().join("pages-1.img");
        std::fs::write(&path, vec![7; 8 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let mapping = map(file, 1).unwrap();
        assert!(!mapping.holds(5 << 20) && mapping.holds(8 << 20));
        pread(&mapping.file, &mut [0; 1], 5 << 20).unwrap();
        assert!(mapping.holds((5 << 20) + 100));
    }

    #[test]
    fn nobody_waits_for_what_has_been_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages-1.img");
        std::fs::write(&path, [7; 4 * PAGE_BYTES]).unwrap();
        let pages = Pages(HashMap::from([(1, map(File::open(&path).unwrap(), 1).unwrap())]));
        let wait = |page: u64| pages.wait(Source { pages_id: 1, offset: page * PAGE }, PAGE);
        assert_eq!(wait(3), Ok(()));
        File::options().write(true).open(&path).unwrap().set_len(2 * PAGE).unwrap();
        assert_eq!((wait(1), wait(2), wait(3)), (Ok(()), Err(Errno::IO), Err(Errno::IO)));
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pages-1.img"), [7; 8192]).unwrap();
        let images = ImagesDir::open(File::open(dir.path()).unwrap().into());
        let mut pages = Pages::default();
        pages.open(&images, 1).unwrap();
        let check = |offset, length| pages.check(Source { pages_id: 1, offset }, length);
        assert!(check(4096, 4096).is_ok());
        assert!(matches!(check(4096, 8192), Err(PagesError::Short { size: 8192, .. })));
        assert!(check(u64::MAX - 4095, 4096).is_err());
        assert!(pages.open(&images, 2).is_err());
        assert_eq!(pages.address(Source { pages_id: 1, offset: 8192 }), 0);
        assert_ne!(pages.address(Source { pages_id: 1, offset: 4096 }), 0);
    }
}
