// SPDX-License-Identifier: Apache-2.0
//! Wires a process's streams to containerd's fifos: pipes for most, a terminal where asked for.
//!
//! The process never gets a fifo itself: a fifo is a file outside the container, which CRIU could not dump.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::checkpoint::container_log::Written;
use async_trait::async_trait;
use containerd_shim::asynchronous::io::Pty;
use runc::io::{IoOption, PipedIo};
use runc::{Command, Io, Pipe};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

use crate::console::ConsoleSocket;
use crate::error::TaskError;
use crate::logging::{Log, Logging};
use crate::process::Process;

/// What a runtime command is given, before there is a process.
pub(crate) enum Wiring {
    /// Pipes; without any stream they are all closed.
    Pipes(Arc<Streams>),
    /// A socket on which the runtime hands over the terminal's master.
    Terminal(ConsoleSocket),
}

impl Wiring {
    /// Prepares for `process`; pipes belong to `owner` (uid and gid). A program that logs is ready then.
    ///
    /// # Errors
    /// When pipes or the console socket cannot be made, or the program cannot be started.
    pub(crate) async fn new(process: &Process, owner: (u32, u32)) -> Result<Self, TaskError> {
        let stdio = &process.stdio;
        if stdio.terminal {
            return Ok(Self::Terminal(ConsoleSocket::bind()?));
        }
        let wanted = IoOption {
            open_stdin: !stdio.stdin.is_empty(),
            open_stdout: !stdio.stdout.is_empty(),
            open_stderr: !stdio.stderr.is_empty(),
        };
        let pipes = PipedIo::new(owner.0, owner.1, &wanted).map_err(TaskError::io("make the stdio pipes"))?;
        if let Log::Binary(program) = &process.log {
            let end = |pipe: &Option<Pipe>| pipe.as_ref().map(|pipe| pipe.rd.try_clone()).transpose();
            let ends = end(&pipes.stdout).and_then(|stdout| Ok((stdout, end(&pipes.stderr)?)));
            let (stdout, stderr) = ends.map_err(TaskError::io("share the stdio pipes"))?;
            process.set_logging(Logging::program(program, stdout, stderr).await?);
        }
        Ok(Self::Pipes(Arc::new(Streams(pipes))))
    }

    /// The pipes, for the runtime's command. A terminal needs none.
    pub(crate) fn io(&self) -> Option<Arc<dyn Io>> {
        match self {
            Self::Pipes(pipes) => Some(pipes.clone()),
            Self::Terminal(_) => None,
        }
    }

    /// The socket, for the runtime's command line.
    pub(crate) fn console_socket(&self) -> Option<&std::path::Path> {
        match self {
            Self::Pipes(_) => None,
            Self::Terminal(socket) => Some(socket.path()),
        }
    }

    /// Starts the copies, once the runtime has made the process.
    ///
    /// # Errors
    /// When containerd's fifos cannot be opened, or no terminal was handed over.
    pub(crate) async fn attach(self, process: &Process) -> Result<(), TaskError> {
        match self {
            Self::Pipes(pipes) => attach_pipes(&pipes.0, process),
            Self::Terminal(socket) => attach_terminal(socket.receive().await?, process, Vec::new()).await,
        }
    }
}

/// Pipes for the streams that are wanted, and `/dev/null` for the others: the container would hold the pipes that
/// carry the runtime's own output open for ever.
#[derive(Debug)]
pub(crate) struct Streams(PipedIo);

#[async_trait]
impl Io for Streams {
    async fn set(&self, cmd: &mut Command) -> std::io::Result<()> {
        cmd.stdin(process::Stdio::null()).stdout(process::Stdio::null()).stderr(process::Stdio::null());
        self.0.set(cmd).await
    }

    async fn close_after_start(&self) {
        self.0.close_after_start().await;
    }
}

fn attach_pipes(pipes: &PipedIo, process: &Process) -> Result<(), TaskError> {
    let (stdio, io) = (&process.stdio, process.io());
    let failed = |e| TaskError::shim("open containerd's stdio fifos", e);
    if let (false, Some(to)) = (stdio.stdin.is_empty(), pipes.stdin()) {
        io.copy_from_fifo(&stdio.stdin, to).map_err(failed)?;
    }
    match &process.log {
        Log::Fifos => {
            for (fifo, from) in [(&stdio.stdout, pipes.stdout()), (&stdio.stderr, pipes.stderr())] {
                if let (false, Some(from)) = (fifo.is_empty(), from) {
                    io.copy_to_fifo(from, fifo).map_err(failed)?;
                }
            }
        }
        Log::File(path) => {
            let outputs = [pipes.stdout(), pipes.stderr()].into_iter().flatten();
            process.set_logging(Logging::file(path, outputs)?);
        }
        // It has its ends already.
        Log::Binary(_) => {}
    }
    Ok(())
}

/// Starts the copies of a terminal whose master was handed over; `before` goes in front of what it shows.
///
/// # Errors
/// When containerd's fifos cannot be opened, or what is to log cannot be started.
pub(crate) async fn attach_terminal(
    master: OwnedFd,
    process: &Process,
    before: Vec<u8>,
) -> Result<(), TaskError> {
    let (stdio, io) = (&process.stdio, process.io());
    let failed = |e| TaskError::shim("open containerd's terminal fifos", e);
    let console = std::fs::File::from(master);
    let copy = console.try_clone().map_err(TaskError::io("share the terminal"))?;
    let pty = Pty::new(copy).map_err(|e| TaskError::shim("watch the terminal", e))?;
    if !stdio.stdin.is_empty() {
        io.copy_from_fifo(&stdio.stdin, pty.clone()).map_err(failed)?;
    }
    match &process.log {
        Log::Fifos if stdio.stdout.is_empty() => {}
        Log::Fifos => io.copy_to_fifo(After { before, at: 0, rest: pty }, &stdio.stdout).map_err(failed)?,
        Log::File(path) => process.set_logging(Logging::file(path, [pty])?),
        Log::Binary(program) => process.set_logging(Logging::program_of_terminal(program, pty).await?),
    }
    process.set_console(console);
    Ok(())
}

/// Our ends of fresh pipes for a restored process's descriptors 0, 1 and 2.
pub(crate) struct RestoredStdio([Option<OwnedFd>; 3]);

impl RestoredStdio {
    /// Makes the pipes that `process` asks for, owned by `owner` (uid and gid); gives the container's ends beside ours,
    /// `/dev/null` for what is not wanted. With a terminal there are none: CRIU makes it anew and hands over its master.
    ///
    /// # Errors
    /// When pipes cannot be made; when output is to go elsewhere than to fifos, as no pod asks.
    pub(crate) fn new(process: &Process, owner: (u32, u32)) -> Result<(Self, [OwnedFd; 3]), TaskError> {
        let stdio = &process.stdio;
        if process.log != Log::Fifos {
            let restored = "the output of a restored container can only go to containerd's fifos";
            return Err(TaskError::InvalidRequest(restored.into()));
        }
        let piped = |fifo: &str, is_input| stream(if stdio.terminal { "" } else { fifo }, is_input, owner);
        let (stdin_theirs, stdin_ours) = piped(&stdio.stdin, true)?;
        let (stdout_theirs, stdout_ours) = piped(&stdio.stdout, false)?;
        let (stderr_theirs, stderr_ours) = piped(&stdio.stderr, false)?;
        let ours = Self([stdin_ours, stdout_ours, stderr_ours]);
        Ok((ours, [stdin_theirs, stdout_theirs, stderr_theirs]))
    }

    /// Starts the copies, once the process runs: the end of a copy closes the fifo, and with it the log of the program
    /// that starts where a restore has failed. What was `written` before goes in front.
    ///
    /// # Errors
    /// When containerd's fifos cannot be opened.
    pub(crate) fn attach(self, process: &Process, written: Written) -> Result<(), TaskError> {
        let (stdio, io) = (&process.stdio, process.io());
        let failed = |e| TaskError::shim("open containerd's stdio fifos", e);
        let watched = |e| TaskError::Io { what: "watch a stdio pipe".into(), source: e };
        let [stdin, stdout, stderr] = self.0;
        if let Some(to) = stdin {
            io.copy_from_fifo(&stdio.stdin, pipe::Sender::from_owned_fd(to).map_err(watched)?)
                .map_err(failed)?;
        }
        for (from, path, before) in
            [(stdout, &stdio.stdout, written.stdout), (stderr, &stdio.stderr, written.stderr)]
        {
            if let Some(from) = from {
                let rest = pipe::Receiver::from_owned_fd(from).map_err(watched)?;
                io.copy_to_fifo(After { before, at: 0, rest }, path).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A stream after something that is in memory until it has been read.
struct After<R> {
    before: Vec<u8>,
    at: usize,
    rest: R,
}

impl<R: AsyncRead + Unpin> AsyncRead for After<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let unread = self.before.get(self.at..).unwrap_or_default();
        if unread.is_empty() {
            return Pin::new(&mut self.rest).poll_read(cx, buffer);
        }
        let part = unread.get(..buffer.remaining()).unwrap_or(unread);
        buffer.put_slice(part);
        self.at = self.at.saturating_add(part.len());
        if self.at == self.before.len() {
            // The copy lives as long as the container.
            (self.before, self.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

/// One stream: the container's end, and ours when `fifo` names one.
fn stream(fifo: &str, is_input: bool, owner: (u32, u32)) -> Result<(OwnedFd, Option<OwnedFd>), TaskError> {
    if fifo.is_empty() {
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(TaskError::io("open /dev/null"))?;
        return Ok((null, None));
    }
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(TaskError::io("make a stdio pipe"))?;
    let (uid, gid) = owner;
    rustix::fs::fchown(&read, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))
        .map_err(TaskError::io("give a stdio pipe to the container's user"))?;
    Ok(if is_input { (read, Some(write)) } else { (write, Some(read)) })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn what_was_before_is_read_first_and_then_let_go_of() {
        let before = vec![b'a'; 100_000];
        let mut stream = After { before, at: 0, rest: &b"rest"[..] };
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        assert_eq!((read.len(), &read[99_998..]), (100_004, &b"aarest"[..]));
        assert_eq!(stream.before.capacity(), 0);
    }
}
