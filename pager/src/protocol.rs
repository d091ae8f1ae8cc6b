// SPDX-License-Identifier: Apache-2.0
//! CRIU's side of the protocol: which process has which userfaultfd.
//!
//! CRIU connects once. For each process it sends its pid, then in a message of one byte its userfaultfd; for a dead
//! one the pid negated and no descriptor. When all mappings are registered it sends a mark, and closes.
//!
//! Source: CRIU 4.2 criu/uffd.c, send_uffd and lazy_pages_finish_restore.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};

/// "RSTF". Source: CRIU 4.2 criu/uffd.c, LAZY_PAGES_RESTORE_FINISHED.
const RESTORED: i32 = 0x5253_5446;

/// What CRIU says.
#[derive(Debug)]
pub enum Said {
    /// This process's memory is to be served.
    Process {
        /// Its pid in the container.
        pid: u32,
        /// Its userfaultfd.
        uffd: OwnedFd,
    },
    /// A dead process: there is nothing to serve.
    Dead,
    /// All mappings are registered; the processes run.
    Restored,
    /// The connection is closed.
    Closed,
}

/// CRIU says something else.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The socket fails.
    #[error("the connection to CRIU fails")]
    Io(#[from] io::Error),
    /// The message is cut off, or no number.
    #[error("CRIU sent {0} bytes where the number of a process was expected")]
    Number(usize),
    /// No descriptor came.
    #[error("CRIU sent no userfaultfd for process {0}")]
    NoDescriptor(u32),
}

/// Reads one thing that CRIU says; waits for it.
///
/// # Errors
/// When it is not what the protocol knows.
pub fn listen(connection: impl AsFd) -> Result<Said, ProtocolError> {
    let mut number = [0; 4];
    let got = loop {
        match recv(&connection, &mut number, RecvFlags::WAITALL) {
            Ok((_, got)) => break got,
            Err(Errno::INTR) => {}
            // CRIU was killed.
            Err(Errno::CONNRESET) => break 0,
            Err(e) => return Err(io::Error::from(e).into()),
        }
    };
    match (got, i32::from_ne_bytes(number)) {
        (0, _) => Ok(Said::Closed),
        (4, RESTORED) => Ok(Said::Restored),
        (4, ..0) => Ok(Said::Dead),
        (4, pid) => {
            let pid = pid.cast_unsigned();
            Ok(Said::Process { pid, uffd: descriptor(&connection)?.ok_or(ProtocolError::NoDescriptor(pid))? })
        }
        _ => Err(ProtocolError::Number(got)),
    }
}

fn descriptor(connection: impl AsFd) -> Result<Option<OwnedFd>, ProtocolError> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&connection, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
            Ok(_) => break,
        }
    }
    Ok(control.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message { fds.next() } else { None }
    }))
}
