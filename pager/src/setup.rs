// SPDX-License-Identifier: Apache-2.0
//! What a pager is given by who starts it, over the socket that is its standard input: first the images, which it gets
//! ready while the restore is only on its way, then what belongs to the restore.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::keeper::{receive, send};

/// What a checkpoint holds of one container.
#[derive(Debug)]
pub struct Saved {
    /// The directory of the images.
    pub images: OwnedFd,
    /// In which order pages were waited for, if that is known.
    pub order: Option<File>,
}

/// What one restore needs.
#[derive(Debug)]
pub struct Setup {
    /// `lazy-pages.socket`, listening.
    pub listener: OwnedFd,
    /// Keeps the checkpoint from being removed.
    pub lock: OwnedFd,
    /// Who started the pager.
    pub keeper: OwnedFd,
    /// How many threads fill.
    pub threads: usize,
    /// Where the order of faults is to be written when all memory is there.
    pub wanted: Option<File>,
}

/// The first byte of each message.
const SAVED: u8 = 1;
const SETUP: u8 = 2;

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Sends the images, and the order of faults where it is known.
///
/// # Errors
/// What the kernel says.
pub fn send_saved(
    socket: impl AsFd,
    images: BorrowedFd<'_>,
    order: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let fds: Vec<_> = [images].into_iter().chain(order).collect();
    send(socket, &[SAVED], &fds)
}

/// Sends a setup, without its keeper.
///
/// # Errors
/// What the kernel says.
pub fn send_setup(
    socket: impl AsFd,
    listener: BorrowedFd<'_>,
    lock: BorrowedFd<'_>,
    threads: usize,
    wanted: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let fds: Vec<_> = [listener, lock].into_iter().chain(wanted).collect();
    let bytes: Vec<u8> = [SETUP].into_iter().chain((threads as u64).to_le_bytes()).collect();
    send(socket, &bytes, &fds)
}

impl Saved {
    /// Receives it from `keeper`.
    ///
    /// # Errors
    /// What the kernel says; `InvalidData` for anything else.
    pub fn receive(keeper: impl AsFd) -> io::Result<Self> {
        let (bytes, fds) = receive(keeper)?;
        let mut fds = fds.into_iter();
        match (bytes.as_slice(), fds.next(), fds.next(), fds.next()) {
            ([SAVED], Some(images), order, None) => Ok(Self { images, order: order.map(File::from) }),
            _ => Err(invalid()),
        }
    }
}

impl Setup {
    /// Receives it from `keeper`.
    ///
    /// # Errors
    /// What the kernel says; `InvalidData` for anything but a setup, and where the keeper has gone.
    pub fn receive(keeper: OwnedFd) -> io::Result<Self> {
        let (bytes, fds) = receive(&keeper)?;
        let [SETUP, threads @ ..] = bytes.as_slice() else { return Err(invalid()) };
        let threads = threads.try_into().map(u64::from_le_bytes).map_err(|_| invalid())?;
        let threads = usize::try_from(threads).map_err(|_| invalid())?;
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next(), fds.next(), fds.next()) {
            (Some(listener), Some(lock), wanted, None) => {
                Ok(Self { listener, lock, keeper, threads, wanted: wanted.map(File::from) })
            }
            _ => Err(invalid()),
        }
    }
}
