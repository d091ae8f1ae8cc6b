// SPDX-License-Identifier: Apache-2.0
//! The machine's limit: UFFDIO_COPY of a whole file out of the page cache into fresh memory, by some threads, with
//! nothing around it.
//!
//! Source: linux `include/uapi/linux/userfaultfd.h`, ioctl_userfaultfd(2).

use std::fs::File;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use linux_raw_sys::general::{
    UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_copy, uffdio_range, uffdio_register,
};
use rustix::fd::OwnedFd;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap, mmap_anonymous, munmap, userfaultfd};

/// All ioctls are of this group.
const GROUP: u8 = 0xaa;
const API: Opcode = opcode::read_write::<uffdio_api>(GROUP, 0x3f);
const REGISTER: Opcode = opcode::read_write::<uffdio_register>(GROUP, 0);
const COPY: Opcode = opcode::read_write::<uffdio_copy>(GROUP, 3);
/// What one copy moves, bytes: as the prototype did, which set the mark.
const SEGMENT: u64 = 4 << 20;

/// How long it takes to copy the file at `path` with so many threads.
pub(crate) fn copy(path: &Path, threads: u32) -> anyhow::Result<Duration> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata()?.len();
    let length = usize::try_from(size)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let from = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) }?;
    let writable = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: likewise.
    let to = unsafe { mmap_anonymous(ptr::null_mut(), length, writable, MapFlags::PRIVATE) }?;
    let range = uffdio_range { start: to.addr() as u64, len: size.next_multiple_of(4096) };
    let took = register(range).and_then(|uffd| run(&uffd, from.addr() as u64, range, threads));
    for mapping in [from, to] {
        // SAFETY: it was made above with this length, and nothing refers to it any more.
        unsafe { munmap(mapping, length) }?;
    }
    took
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

fn run(uffd: &OwnedFd, from: u64, to: uffdio_range, threads: u32) -> anyhow::Result<Duration> {
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let copied = std::thread::scope(|scope| {
        let copy = || {
            loop {
                let at = next.fetch_add(SEGMENT, Ordering::Relaxed);
                if at >= to.len {
                    return Ok(());
                }
                segment(uffd, from + at, to.start + at, SEGMENT.min(to.len - at))?;
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(copy)).collect();
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
