// SPDX-License-Identifier: Apache-2.0
//! What a pager is given by who starts it, over the socket that is its standard input.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::keeper::{receive, send};

/// What one restore needs.
#[derive(Debug)]
pub struct Setup {
    /// The directory of the images.
    pub images: OwnedFd,
    /// `lazy-pages.socket`, listening.
    pub listener: OwnedFd,
    /// Keeps the checkpoint from being removed.
    pub lock: OwnedFd,
    /// Who started the pager.
    pub keeper: OwnedFd,
    /// How many threads fill.
    pub threads: usize,
    /// What is known of the order in which pages will be waited for.
    pub faults: Faults<File>,
}

/// The order in which pages are waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Faults<F> {
    /// Nobody wants to know.
    #[default]
    Unknown,
    /// It will be as in this file.
    Known(F),
    /// It is to be written into this file when all memory is there.
    Wanted(F),
}

/// Faults as one byte.
const UNKNOWN: u8 = 0;
const KNOWN: u8 = 1;
const WANTED: u8 = 2;

/// Sends a setup, without its keeper.
///
/// # Errors
/// What the kernel says.
pub fn send_setup(
    socket: impl AsFd,
    images: impl AsFd,
    listener: impl AsFd,
    lock: impl AsFd,
    threads: usize,
    faults: Faults<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut fds = vec![images.as_fd(), listener.as_fd(), lock.as_fd()];
    let (kind, file) = match faults {
        Faults::Unknown => (UNKNOWN, None),
        Faults::Known(file) => (KNOWN, Some(file)),
        Faults::Wanted(file) => (WANTED, Some(file)),
    };
    fds.extend(file);
    let bytes: Vec<u8> = (threads as u64).to_le_bytes().into_iter().chain([kind]).collect();
    send(socket, &bytes, &fds)
}

impl Setup {
    /// Receives it from `keeper`.
    ///
    /// # Errors
    /// What the kernel says; `InvalidData` for anything but a setup.
    pub fn receive(keeper: OwnedFd) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let (bytes, fds) = receive(&keeper)?;
        let (threads, kind) = bytes.split_first_chunk().ok_or_else(invalid)?;
        let threads = usize::try_from(u64::from_le_bytes(*threads)).map_err(|_| invalid())?;
        let mut fds = fds.into_iter();
        let (Some(images), Some(listener), Some(lock)) = (fds.next(), fds.next(), fds.next()) else {
            return Err(invalid());
        };
        let faults = match (kind, fds.next().map(File::from)) {
            ([UNKNOWN], None) => Faults::Unknown,
            ([KNOWN], Some(file)) => Faults::Known(file),
            ([WANTED], Some(file)) => Faults::Wanted(file),
            _ => return Err(invalid()),
        };
        Ok(Self { images, listener, lock, keeper, threads, faults })
    }
}
