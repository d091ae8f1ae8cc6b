// SPDX-License-Identifier: Apache-2.0
//! The kernel's userfaultfd: what it tells, and what it can be asked for.
//!
//! No memory of this process is at stake in any of its calls: sources are read by the kernel, which answers a bad
//! address with `EFAULT`, and what is written belongs to the other process.
//!
//! Source: linux `include/uapi/linux/userfaultfd.h`, ioctl_userfaultfd(2).

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use linux_raw_sys::general::{
    UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP,
    uffdio_copy, uffdio_range, uffdio_zeropage,
};
use rustix::io::{Errno, read};
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

/// All ioctls are of this group.
const GROUP: u8 = 0xaa;
const WAKE: Opcode = opcode::read::<uffdio_range>(GROUP, 2);
const COPY: Opcode = opcode::read_write::<uffdio_copy>(GROUP, 3);
const ZEROPAGE: Opcode = opcode::read_write::<uffdio_zeropage>(GROUP, 4);

/// Bytes of one `struct uffd_msg`: the event in the first, its arguments from the eighth on.
const MESSAGE: usize = 32;
/// How many messages one read takes.
const BATCH: usize = 32;

/// What the kernel tells.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// The process has forked; this is the child's.
    Fork(Uffd),
    /// Memory has moved.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes.
        length: u64,
    },
    /// Pages are thrown away (`MADV_DONTNEED`).
    Dropped {
        /// The first address.
        start: u64,
        /// The address after the last.
        end: u64,
    },
    /// Mappings are gone.
    Unmapped {
        /// The first address.
        start: u64,
        /// The address after the last.
        end: u64,
    },
}

/// How far a copy came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copied {
    /// Bytes that are there now.
    pub(crate) bytes: u64,
    /// Why not all; [`Errno::AGAIN`] also stands for an error that the next copy will name.
    pub(crate) stopped: Option<Errno>,
}

/// A process's userfaultfd.
#[derive(Debug)]
pub(crate) struct Uffd(OwnedFd);

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Uffd {
    /// Reads some of what there is to read; nothing: nothing is left. Needs a descriptor that does not block.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn read(&self) -> Result<Vec<Event>, Errno> {
        let mut buffer = [0; MESSAGE * BATCH];
        match read(&self.0, &mut buffer) {
            Ok(length) => Ok(buffer.chunks_exact(MESSAGE).take(length / MESSAGE).filter_map(event).collect()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Puts `length` bytes of this process's memory at `from` to the other's address `to`, and wakes who waits.
    #[must_use]
    pub(crate) fn copy(&self, to: u64, from: u64, length: u64) -> Copied {
        let mut argument = uffdio_copy { dst: to, src: from, len: length, mode: 0, copy: 0 };
        // SAFETY: the number and the structure belong together.
        let updater = unsafe { Updater::<COPY, uffdio_copy>::new(&mut argument) };
        // SAFETY: `COPY` writes the structure only; see the top about the memory that it names.
        let done = unsafe { ioctl(&self.0, updater) };
        let bytes = u64::try_from(argument.copy).unwrap_or(0);
        match done {
            Ok(()) => Copied { bytes: length, stopped: None },
            Err(e) => Copied { bytes: bytes.min(length), stopped: Some(e) },
        }
    }

    /// Puts zeroes there, and wakes who waits.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn zero(&self, start: u64, length: u64) -> Result<(), Errno> {
        let mut argument =
            uffdio_zeropage { range: uffdio_range { start, len: length }, mode: 0, zeropage: 0 };
        // SAFETY: the number and the structure belong together.
        let updater = unsafe { Updater::<ZEROPAGE, uffdio_zeropage>::new(&mut argument) };
        // SAFETY: `ZEROPAGE` writes the structure only.
        unsafe { ioctl(&self.0, updater) }
    }

    /// Has who waits for a page there look again.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn wake(&self, start: u64, length: u64) -> Result<(), Errno> {
        // SAFETY: the number and the structure belong together.
        let setter = unsafe { Setter::<WAKE, uffdio_range>::new(uffdio_range { start, len: length }) };
        // SAFETY: `WAKE` reads the structure only.
        unsafe { ioctl(&self.0, setter) }
    }
}

/// A `struct uffd_msg`; `None` for an event that nobody asked for.
fn event(message: &[u8]) -> Option<Event> {
    let number = |at: usize| {
        let bytes = message.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    match u32::from(*message.first()?) {
        // flags, address
        UFFD_EVENT_PAGEFAULT => Some(Event::Fault(number(16)?)),
        UFFD_EVENT_FORK => {
            let fd = u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?);
            let fd = RawFd::try_from(fd).ok()?;
            // SAFETY: the kernel has just made this descriptor for the reader of the message, who is here alone.
            Some(Event::Fork(Uffd(unsafe { OwnedFd::from_raw_fd(fd) })))
        }
        UFFD_EVENT_REMAP => Some(Event::Remap { from: number(8)?, to: number(16)?, length: number(24)? }),
        UFFD_EVENT_REMOVE => Some(Event::Dropped { start: number(8)?, end: number(16)? }),
        UFFD_EVENT_UNMAP => Some(Event::Unmapped { start: number(8)?, end: number(16)? }),
        _ => None,
    }
}
