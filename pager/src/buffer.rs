// SPDX-License-Identifier: Apache-2.0
//! Memory for what a thread reads from the disk around the page cache, aligned as disks want it.

use std::ffi::c_void;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// How much it holds, bytes: large enough that a disk is busy with it, and several threads keep it so. It is also what
/// one page table of the lowest level holds: two threads that copy into the same one wait for each other.
pub(crate) const SIZE: usize = 2 << 20;

/// The memory; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Buffer(*mut c_void);

// SAFETY: nothing else knows the memory, and it belongs to no thread.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(crate) fn new() -> Result<Self, Errno> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        unsafe { mmap_anonymous(ptr::null_mut(), SIZE, access, MapFlags::PRIVATE) }.map(Self)
    }

    /// Its memory, up to `length` bytes of it.
    pub(crate) fn bytes(&mut self, length: usize) -> &mut [u8] {
        // SAFETY: it is mapped, zeroed by the kernel, and borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast(), length.min(SIZE)) }
    }

    /// Where it is in this process.
    pub(crate) fn address(&self) -> u64 {
        self.0.addr() as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and all slices of it are gone.
        let _ = unsafe { munmap(self.0, SIZE) };
    }
}
