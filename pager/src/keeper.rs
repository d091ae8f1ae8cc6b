// SPDX-License-Identifier: Apache-2.0
//! Between the pager and who has started it, its keeper.
//!
//! The keeper has a copy of each userfaultfd. The kernel answers all faults with zeroes once the last copy is
//! closed; so, should the pager die, processes go on waiting until the keeper has killed them, and none ever sees
//! memory that is not its own.
//!
//! ```text
//! keeper → pager   saved: images directory, order of faults; the pager gets ready and waits
//! keeper → pager   setup: threads; listening socket, lock of the checkpoint, where to write the order of faults
//! pager → keeper   hold ID + userfaultfd, release ID, ...
//! pager → keeper   filled, failed, or abandoned
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The longest message, bytes.
const MESSAGE: usize = 4096;
/// The most descriptors in one.
const DESCRIPTORS: usize = 4;

/// What the pager tells its keeper.
#[derive(Debug)]
pub enum Told {
    /// Keep this userfaultfd until it is released.
    Hold(u32, OwnedFd),
    /// All memory of that process is there, or it has ended.
    Release(u32),
    /// All memory of all processes is there.
    Filled(Figures),
    /// It cannot go on; why.
    Failed(String),
    /// CRIU is gone before all mappings were there: nothing has run.
    Abandoned,
}

/// What a pager has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Bytes that were to be served.
    pub bytes: u64,
    /// Faults that were.
    pub faults: u64,
    /// Microseconds from CRIU's mark to the last page.
    pub micros: u64,
}

const HOLD: u8 = 1;
const RELEASE: u8 = 2;
const FILLED: u8 = 3;
const FAILED: u8 = 4;
const ABANDONED: u8 = 5;

/// Sends `message`; waits for room.
///
/// # Errors
/// What the kernel says; `EPIPE` when the other side is gone.
pub(crate) fn tell(socket: impl AsFd, message: &Told) -> io::Result<()> {
    let (bytes, fd) = match message {
        Told::Hold(id, uffd) => (with_kind(HOLD, &id.to_le_bytes()), Some(uffd.as_fd())),
        Told::Release(id) => (with_kind(RELEASE, &id.to_le_bytes()), None),
        Told::Filled(figures) => {
            let numbers = [figures.bytes, figures.faults, figures.micros].map(u64::to_le_bytes);
            (with_kind(FILLED, numbers.as_flattened()), None)
        }
        Told::Failed(reason) => {
            let text = reason.as_bytes();
            (with_kind(FAILED, text.get(..MESSAGE - 1).unwrap_or(text)), None)
        }
        Told::Abandoned => (vec![ABANDONED], None),
    };
    send(socket, &bytes, fd.as_slice())
}

fn with_kind(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind], rest].concat()
}

/// Sends bytes and descriptors as one message.
///
/// # Errors
/// What the kernel says.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives one message of [`tell`]; `None`: the pager has ended.
///
/// # Errors
/// What the kernel says (`EAGAIN` on a socket that does not block), or `InvalidData`.
pub fn hear(socket: impl AsFd) -> io::Result<Option<Told>> {
    let (bytes, mut fds) = receive(socket)?;
    let Some((kind, rest)) = bytes.split_first() else { return Ok(None) };
    let id = || rest.try_into().map(u32::from_le_bytes).ok();
    let told = match *kind {
        HOLD => id().zip(fds.pop()).map(|(id, fd)| Told::Hold(id, fd)),
        RELEASE => id().map(Told::Release),
        FILLED => figures(rest).map(Told::Filled),
        FAILED => Some(Told::Failed(String::from_utf8_lossy(rest).into_owned())),
        ABANDONED => Some(Told::Abandoned),
        _ => None,
    };
    told.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn figures(bytes: &[u8]) -> Option<Figures> {
    let number = |at| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    Some(Figures { bytes: number(0)?, faults: number(8)?, micros: number(16)? })
}

/// Receives one message.
///
/// # Errors
/// What the kernel says.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(got) => break got.bytes,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => break 0,
            Err(e) => return Err(e.into()),
        }
    };
    bytes.truncate(got);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((bytes, fds))
}
