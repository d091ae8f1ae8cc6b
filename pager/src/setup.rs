// SPDX-License-Identifier: Apache-2.0
//! What a pager is given by who starts it, over the socket that is its standard input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

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
}

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
) -> io::Result<()> {
    send(socket, &(threads as u64).to_le_bytes(), &[images.as_fd(), listener.as_fd(), lock.as_fd()])
}

impl Setup {
    /// Receives it from `keeper`.
    ///
    /// # Errors
    /// What the kernel says; `InvalidData` for anything but a setup.
    pub fn receive(keeper: OwnedFd) -> io::Result<Self> {
        let (bytes, fds) = receive(&keeper)?;
        let threads = bytes.try_into().ok().and_then(|bytes| usize::try_from(u64::from_le_bytes(bytes)).ok());
        let fds = <[OwnedFd; 3]>::try_from(fds).ok();
        let (Some(threads), Some([images, listener, lock])) = (threads, fds) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        Ok(Self { images, listener, lock, keeper, threads })
    }
}
