// SPDX-License-Identifier: Apache-2.0
//! One bounded datagram in or out, with descriptors, before a deadline.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recv, recvmsg, send,
    },
    process::{Signal, pidfd_send_signal},
};

/// The longest message that is read, in bytes. CRIU's own are far below one page.
pub(crate) const MESSAGE: usize = 1 << 20;
/// Descriptors that one message may carry; CRIU sends at most one. The kernel closes further ones.
const DESCRIPTORS: usize = 4;

/// How long a killed CRIU may take to end; it may be in the middle of a write to a slow disk.
const END: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// A moment, and how long it was away when it was set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// `None`: too far away to be expressed.
    at: Option<Instant>,
    pub(crate) limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: Instant::now().checked_add(limit), limit }
    }

    fn left(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

#[derive(Debug)]
pub(crate) enum TransportError {
    Io(io::Error),
    Deadline,
    /// The other side is gone.
    Closed,
    TooLarge(usize),
}

impl From<Errno> for TransportError {
    fn from(errno: Errno) -> Self {
        // A process that is gone shows as a reset or a broken pipe while something is under way to it.
        match errno {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            errno => Self::Io(errno.into()),
        }
    }
}

/// A socket, and the process at its other end. The process's children have the socket as well: only its own end
/// tells that nobody will answer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) socket: OwnedFd,
    /// A pidfd.
    pub(crate) process: Option<OwnedFd>,
}

impl Peer {
    /// Kills the process and waits for its end, which may take it a moment.
    pub(crate) fn kill(&self) {
        let Some(process) = &self.process else { return };
        // Gone already is as good.
        let _ = pidfd_send_signal(process, Signal::KILL);
        let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&END));
    }
}

/// Sends one message.
pub(crate) fn send_message(peer: &Peer, message: &[u8], deadline: &Deadline) -> Result<(), TransportError> {
    loop {
        wait(peer, PollFlags::OUT, deadline)?;
        match send(&peer.socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            // A datagram goes as a whole or not at all.
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message and what descriptors came with it.
pub(crate) fn receive_message(
    peer: &Peer,
    deadline: &Deadline,
) -> Result<(Vec<u8>, Vec<OwnedFd>), TransportError> {
    loop {
        wait(peer, PollFlags::IN, deadline)?;
        match receive_now(&peer.socket) {
            Err(TransportError::Io(error)) if is_transient(&error) => {}
            other => return other,
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    [Some(Errno::AGAIN), Some(Errno::INTR)].contains(&Errno::from_io_error(error))
}

fn receive_now(socket: &OwnedFd) -> Result<(Vec<u8>, Vec<OwnedFd>), TransportError> {
    let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let (_, size) = recv(socket, &mut [0u8; 0], peek)?;
    if size == 0 {
        return Err(TransportError::Closed);
    }
    if size > MESSAGE {
        return Err(TransportError::TooLarge(size));
    }
    let mut message = vec![0; size];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            descriptors.extend(fds);
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(TransportError::TooLarge(got.bytes));
    }
    message.truncate(got.bytes);
    Ok((message, descriptors))
}

/// Waits until the socket is ready; errors and hang-ups count as ready, the call that follows names them.
fn wait(peer: &Peer, flags: PollFlags, deadline: &Deadline) -> Result<(), TransportError> {
    loop {
        let left = deadline.left();
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // Without a pidfd the socket is watched twice, which changes nothing.
        let nothing = || PollFd::new(&peer.socket, PollFlags::empty());
        let process =
            peer.process.as_ref().map_or_else(nothing, |process| PollFd::new(process, PollFlags::IN));
        let mut watched = [PollFd::new(&peer.socket, flags), process];
        match poll(&mut watched, timeout.as_ref()) {
            Ok(0) if deadline.left().is_some_and(|left| left.is_zero()) => {
                return Err(TransportError::Deadline);
            }
            Ok(0) | Err(Errno::INTR) => {}
            // What it has sent before its end is read first.
            Ok(_) if watched[0].revents().is_empty() => return Err(TransportError::Closed),
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
