// SPDX-License-Identifier: Apache-2.0
//! Puts one upper directory on top of another one.

use std::io::{self, BufWriter};
use std::os::fd::BorrowedFd;

use super::{ApplyError, Stack, WriteLayerError, write};

/// The layer cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] WriteLayerError),
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] ApplyError),
    /// There is no pipe or thread to be had.
    #[error("cannot copy a layer")]
    Start(#[source] io::Error),
}

/// Puts the upper directory `dir` on top of what is in `stack`, as the layer that [`write()`] makes of it: what a tar
/// would not carry stays behind here too. Nobody may change the directory meanwhile.
///
/// # Errors
/// All of [`CopyError`]; then the stack is in no defined state.
pub fn copy(dir: BorrowedFd<'_>, stack: &mut Stack<'_>) -> Result<(), CopyError> {
    let (reader, writer) = io::pipe().map_err(CopyError::Start)?;
    std::thread::scope(|scope| {
        let pack = move || write(dir, BufWriter::new(writer));
        let packing = std::thread::Builder::new().spawn_scoped(scope, pack).map_err(CopyError::Start)?;
        // This reads to the end, or drops the reader, which ends the packing.
        let applied = stack.apply(reader);
        let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match packed {
            Err(WriteLayerError::Pack { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {}
            packed => packed?,
        }
        Ok(applied?)
    })
}
