// SPDX-License-Identifier: Apache-2.0
//! The socket on which the OCI runtime, or CRIU's notification, hands over a terminal's master.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::error::TaskError;

/// How long the runtime may take to connect after its command has succeeded: it connects before it exits, so
/// this only bounds a runtime that never does.
const HANDOVER: Duration = Duration::from_secs(10);

/// A listening socket in a directory of its own; both are removed on drop.
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    directory: PathBuf,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Binds a socket below `/run`, where paths are short enough for `sun_path`.
    ///
    /// # Errors
    /// When the directory or the socket cannot be made.
    pub(crate) fn bind() -> Result<Self, TaskError> {
        let unique = format!(
            "/run/thaw-console-{}-{}",
            std::process::id(),
            time::OffsetDateTime::now_utc().unix_timestamp_nanos()
        );
        let directory = PathBuf::from(unique);
        rustix::fs::mkdir(&directory, rustix::fs::Mode::RWXU)
            .map_err(TaskError::io("make a console directory"))?;
        let path = directory.join("console.sock");
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, directory, path }),
            Err(source) => {
                let _ = std::fs::remove_dir(&directory);
                Err(TaskError::Io { what: format!("bind {}", path.display()), source })
            }
        }
    }

    /// Where the runtime connects to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the runtime and takes the terminal's master.
    ///
    /// # Errors
    /// When nobody connects in time or no descriptor comes.
    pub(crate) async fn receive(self) -> Result<OwnedFd, TaskError> {
        let listener = self.listener.try_clone().map_err(TaskError::io("share the console socket"))?;
        listener.set_nonblocking(true).map_err(TaskError::io("watch the console socket"))?;
        let listener = tokio::net::UnixListener::from_std(listener)
            .map_err(TaskError::io("watch the console socket"))?;
        let accepted = tokio::time::timeout(HANDOVER, listener.accept()).await;
        let (stream, _) = accepted
            .map_err(|_| TaskError::InvalidRequest("the OCI runtime handed over no terminal".into()))?
            .map_err(TaskError::io("accept the runtime's console connection"))?;
        stream.readable().await.map_err(TaskError::io("wait for the terminal"))?;
        take_descriptor(&stream)
    }
}

fn take_descriptor(stream: &tokio::net::UnixStream) -> Result<OwnedFd, TaskError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0u8; 4096];
    let mut iov = [std::io::IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(TaskError::io("receive the terminal"))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(master) = descriptors.next()
        {
            return Ok(master);
        }
    }
    Err(TaskError::InvalidRequest("the OCI runtime sent no terminal on its console socket".into()))
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Best effort: the directory is below /run and empty but for the socket.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_dir(&self.directory);
    }
}
