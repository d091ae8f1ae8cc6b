// SPDX-License-Identifier: Apache-2.0
//! The machine's limits, with nothing around them: how long it takes to get a pages file into memory, by each of the ways
//! that a restore could take at best.
//!
//! Source: linux `include/uapi/linux/userfaultfd.h`, ioctl_userfaultfd(2).

use std::ffi::c_void;
use std::fs::File;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use linux_raw_sys::general::{
    UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_copy, uffdio_range, uffdio_register,
};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::pread;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap, mmap_anonymous, munmap, userfaultfd};

use super::frozen::Frozen;
use super::record::Record;

/// All ioctls are of this group.
const GROUP: u8 = 0xaa;
const API: Opcode = opcode::read_write::<uffdio_api>(GROUP, 0x3f);
const REGISTER: Opcode = opcode::read_write::<uffdio_register>(GROUP, 0);
const COPY: Opcode = opcode::read_write::<uffdio_copy>(GROUP, 3);
/// What one copy moves, and one read from the disk, bytes: as the prototype did, which set the mark.
const SEGMENT: usize = 4 << 20;
/// How many threads UFFDIO_COPY has, as the pager has by default on two processors. The others have one, as CRIU has.
const THREADS: u32 = 2;
/// What memory is copied out of and into, bytes: more than caches hold.
const WINDOW: usize = 128 << 20;

/// Measures all of them once, with the program's largest pages file.
pub(crate) fn measure(frozen: &Frozen, record: &mut Record) -> anyhow::Result<()> {
    let path = frozen.pages()?;
    let size = usize::try_from(path.metadata()?.len())?;
    record.bytes("limit.bytes", path.metadata()?.len());
    record.seconds("limit.memcpy", copy_memory(size).as_secs_f64());
    record.seconds("limit.pread", read_into_fresh_memory(&path, size)?.as_secs_f64());
    record.seconds("limit.uffd_copy", uffd_copy(&path, size)?.as_secs_f64());
    record.seconds("limit.disk", read_from_disk(&path, size)?.as_secs_f64());
    Ok(())
}

/// So many bytes from memory to memory, where all pages are there.
fn copy_memory(size: usize) -> Duration {
    let window = WINDOW.min(size);
    // Not zero: that would be memory that is not there yet.
    let (from, mut to) = (vec![1_u8; window], vec![2_u8; window]);
    let began = Instant::now();
    for _ in 0..size.div_ceil(window.max(1)) {
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
    }
    began.elapsed()
}

/// The file out of the page cache into memory that nobody has touched.
fn read_into_fresh_memory(path: &Path, size: usize) -> anyhow::Result<Duration> {
    let file = File::open(path).context("cannot open the pages file")?;
    let mut fresh = Mapping::fresh(size)?;
    let began = Instant::now();
    let mut rest = fresh.bytes();
    while !rest.is_empty() {
        let at = u64::try_from(size - rest.len())?;
        let read = pread(&file, &mut *rest, at).context("cannot read the pages file")?;
        ensure!(read > 0, "the pages file became shorter");
        rest = rest.split_at_mut(read).1;
    }
    Ok(began.elapsed())
}

/// The file from the disk, whatever is in the page cache.
fn read_from_disk(path: &Path, size: usize) -> anyhow::Result<Duration> {
    let file = open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open the pages file past the page cache")?;
    let mut buffer = Mapping::fresh(SEGMENT)?;
    // Its pages are there before the clock starts.
    buffer.bytes().fill(1);
    let began = Instant::now();
    let mut done = 0;
    while done < size {
        let read = pread(&file, buffer.bytes(), u64::try_from(done)?).context("cannot read from the disk")?;
        ensure!(read > 0, "the pages file became shorter");
        done += read;
    }
    Ok(began.elapsed())
}

/// The file out of the page cache into fresh memory by UFFDIO_COPY.
fn uffd_copy(path: &Path, size: usize) -> anyhow::Result<Duration> {
    let file = File::open(path).context("cannot open the pages file")?;
    let from = Mapping::of_file(&file, size)?;
    let to = Mapping::fresh(size)?;
    let range = uffdio_range { start: to.at.addr() as u64, len: u64::try_from(size)?.next_multiple_of(4096) };
    run(&register(range)?, from.at.addr() as u64, range)
}

/// A part of this process's memory; goes with it.
struct Mapping {
    at: *mut c_void,
    length: usize,
}

impl Mapping {
    /// Memory without any page yet.
    fn fresh(length: usize) -> anyhow::Result<Self> {
        let writable = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let at = unsafe { mmap_anonymous(ptr::null_mut(), length, writable, MapFlags::PRIVATE) }?;
        Ok(Self { at, length })
    }

    fn of_file(file: &File, length: usize) -> anyhow::Result<Self> {
        // SAFETY: likewise.
        let at = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }?;
        Ok(Self { at, length })
    }

    /// The bytes of memory that was made by [`Mapping::fresh`].
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: it is mapped, writable and all zero at first, and only `self` refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was made with this length, and nothing refers to it any more.
        // What cannot be unmapped goes with the process.
        let _ = unsafe { munmap(self.at, self.length) };
    }
}

fn register(range: uffdio_range) -> anyhow::Result<OwnedFd> {
    // SAFETY: it only makes a descriptor; memory is affected once it is registered.
    let uffd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?;
    let mut api = uffdio_api { api: 0xaa, features: 0, ioctls: 0 };
    // SAFETY: the number and the structure belong together.
    let updater = unsafe { Updater::<API, uffdio_api>::new(&mut api) };
    // SAFETY: it writes the structure only.
    unsafe { ioctl(&uffd, updater) }?;
    let mut register = uffdio_register { range, mode: UFFDIO_REGISTER_MODE_MISSING.into(), ioctls: 0 };
    // SAFETY: the number and the structure belong together.
    let updater = unsafe { Updater::<REGISTER, uffdio_register>::new(&mut register) };
    // SAFETY: the memory is ours, and nobody touches it but through the copies.
    unsafe { ioctl(&uffd, updater) }?;
    Ok(uffd)
}

fn run(uffd: &OwnedFd, from: u64, to: uffdio_range) -> anyhow::Result<Duration> {
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let copied = std::thread::scope(|scope| {
        let copy = || {
            loop {
                let at = next.fetch_add(SEGMENT as u64, Ordering::Relaxed);
                if at >= to.len {
                    return Ok(());
                }
                segment(uffd, from + at, to.start + at, (SEGMENT as u64).min(to.len - at))?;
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(copy)).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect::<Option<Result<Vec<()>, _>>>()
    });
    match copied {
        Some(Ok(_)) => Ok(began.elapsed()),
        Some(Err(error)) => Err(error),
        None => bail!("a thread that copies has panicked"),
    }
}

fn segment(uffd: &OwnedFd, from: u64, to: u64, length: u64) -> anyhow::Result<()> {
    let mut done = 0;
    while done < length {
        let mut copy = uffdio_copy { dst: to + done, src: from + done, len: length - done, mode: 0, copy: 0 };
        // SAFETY: the number and the structure belong together.
        let updater = unsafe { Updater::<COPY, uffdio_copy>::new(&mut copy) };
        // SAFETY: what it writes is the memory that was mapped for it.
        let copied = unsafe { ioctl(uffd, updater) };
        // A part may have been copied.
        done += u64::try_from(copy.copy).unwrap_or(0);
        if copied.is_err_and(|error| error != rustix::io::Errno::AGAIN) {
            copied.context("UFFDIO_COPY fails")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_gets_into_memory_by_each_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pages");
        let size = SEGMENT + 4096;
        std::fs::write(&path, vec![7; size]).unwrap();
        assert!(!copy_memory(size).is_zero());
        assert!(!read_into_fresh_memory(&path, size).unwrap().is_zero());
        // More than there is.
        assert!(read_into_fresh_memory(&path, size + 4096).is_err());
    }
}
