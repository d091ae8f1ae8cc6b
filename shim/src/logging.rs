// SPDX-License-Identifier: Apache-2.0
//! Output that does not go to containerd's fifos: `file://PATH` is appended to, and `binary://PATH?KEY=VALUE` is a
//! program that reads it. Both as containerd's own shim has them, by the scheme of stdout alone.
//!
//! Source: containerd `cmd/containerd-shim-runc-v2/process/io.go` (createIO, NewBinaryIO) and `io_util.go`.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Command, Stdio as Standard};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use containerd_shim::asynchronous::io::Stdio;
use percent_encoding::percent_decode_str;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use crate::error::TaskError;

/// How long what a process has written may take to be logged after its end. Source: `binaryIOProcTermTimeout`.
const DRAIN: Duration = Duration::from_secs(12);

/// Where a process's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Log {
    /// To containerd's fifos, or nowhere.
    Fifos,
    /// To the end of a file.
    File(PathBuf),
    /// To a program.
    Binary(Program),
}

/// A program that logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    path: PathBuf,
    /// Keys and values of the query, in turn.
    arguments: Vec<OsString>,
    /// What it is told of whose output it gets: the id of the container or the exec, and containerd's namespace.
    environment: [(&'static str, String); 2],
}

impl Log {
    /// What `stdio` of the container or exec `id` asks for.
    ///
    /// # Errors
    /// When the scheme is unknown.
    pub(crate) fn of(stdio: &Stdio, id: &str, namespace: &str) -> Result<Self, TaskError> {
        let Some((scheme, rest)) = stdio.stdout.split_once("://") else { return Ok(Self::Fifos) };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(OsString::from_vec(percent_decode_str(path).collect()));
        match scheme {
            "file" => Ok(Self::File(path)),
            "binary" => Ok(Self::Binary(Program {
                path,
                arguments: arguments(query),
                environment: [("CONTAINER_ID", id.to_owned()), ("CONTAINER_NAMESPACE", namespace.to_owned())],
            })),
            other => Err(TaskError::InvalidRequest(format!("unknown STDIO scheme {other}"))),
        }
    }
}

/// Each key of a query and its first value.
fn arguments(query: &str) -> Vec<OsString> {
    let mut seen = Vec::new();
    let mut arguments = Vec::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if !seen.contains(&key) {
            arguments.extend([key.as_ref().into(), value.as_ref().into()]);
            seen.push(key);
        }
    }
    arguments
}

/// Logging at work. Dropped without [`Logging::shutdown`], a program goes on to the end of the output and a copy stops.
#[derive(Debug, Default)]
pub(crate) struct Logging {
    copies: JoinSet<()>,
    program: Option<OwnedFd>,
}

impl Logging {
    /// Appends `outputs` to a file, which is made where it is not there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn file(
        path: &PathBuf,
        outputs: impl IntoIterator<Item = impl AsyncRead + Unpin + Send + 'static>,
    ) -> Result<Self, TaskError> {
        let failed = || format!("open the log {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(TaskError::io(failed()))?;
        }
        let file =
            OpenOptions::new().create(true).append(true).open(path).map_err(TaskError::io(failed()))?;
        let (file, mut logging) = (Arc::new(Mutex::new(file)), Self::default());
        for output in outputs {
            logging.copies.spawn(append(output, file.clone()));
        }
        Ok(logging)
    }

    /// Starts a program with `stdout` and `stderr` as its descriptors 3 and 4, and waits for its word on descriptor 5;
    /// a program that closes it says nothing.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) async fn program(
        program: &Program,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<Self, TaskError> {
        let failed = || format!("start the logging program {}", program.path.display());
        let null = || rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let stdout = stdout.map_or_else(null, Ok).map_err(TaskError::io(failed()))?;
        let stderr = stderr.map_or_else(null, Ok).map_err(TaskError::io(failed()))?;
        let (ready, word) = pipe_with(PipeFlags::CLOEXEC).map_err(TaskError::io(failed()))?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).envs(program.environment.clone());
        command.stdin(Standard::null()).stdout(Standard::null()).stderr(Standard::null());
        let mappings = (3..).zip([stdout, stderr, word]);
        let mappings = mappings.map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
        command.fd_mappings(mappings).map_err(|e| TaskError::io(failed())(std::io::Error::other(e)))?;
        let child = command.spawn().map_err(TaskError::io(failed()))?;
        // The command holds the program's ends until it is dropped.
        drop(command);
        let pid = Pid::from_raw(child.id().cast_signed());
        let program = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(TaskError::io(failed()))?;
        // Its end without a word is as good, as for containerd's own shim.
        let _ = ready.read(&mut [0]).await;
        Ok(Self { copies: JoinSet::new(), program })
    }

    /// As [`Logging::program`], of what a terminal shows.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn program_of_terminal(
        program: &Program,
        mut terminal: impl AsyncRead + Unpin + Send + 'static,
    ) -> Result<Self, TaskError> {
        let failed = |e: std::io::Error| TaskError::io("make a pipe of a terminal's output")(e);
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let mut to = pipe::Sender::from_owned_fd(ours).map_err(failed)?;
        let mut logging = Self::program(program, Some(theirs), None).await?;
        logging.copies.spawn(async move {
            // A terminal ends with an error.
            let _ = tokio::io::copy(&mut terminal, &mut to).await;
        });
        Ok(logging)
    }

    /// Waits until all output is logged, but not for ever.
    pub(crate) async fn shutdown(mut self) {
        let Self { copies, program } = &mut self;
        let ended = async {
            while copies.join_next().await.is_some() {}
            if let Some(program) = program {
                ended(program).await;
            }
        };
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            log::warn!("output is not logged {DRAIN:?} after the end of what wrote it");
            if let Some(program) = program {
                // Gone already is as good.
                let _ = pidfd_send_signal(program, Signal::TERM);
            }
        }
    }
}

/// Waits for a process's end; its exit is the reaper's.
async fn ended(pidfd: &OwnedFd) {
    let Ok(pidfd) = pidfd.as_fd().try_clone_to_owned() else { return };
    #[expect(
        deprecated,
        reason = "the caution is for types that give up their descriptor; an OwnedFd does not"
    )]
    let Ok(watched) = tokio::io::unix::AsyncFd::new(pidfd) else { return };
    let _ = watched.readable().await;
}

async fn append(mut output: impl AsyncRead + Unpin, file: Arc<Mutex<std::fs::File>>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read @ 1..) = output.read(&mut buffer).await else { return };
        let part = buffer.get(..read).unwrap_or_default();
        let written = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(part);
        if let Err(e) = written {
            log::error!("cannot log what a process wrote: {e}");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(stdout: &str) -> Result<Log, String> {
        Log::of(&Stdio::new("", stdout, "", false), "c1", "k8s.io").map_err(|e| e.to_string())
    }

    #[test]
    fn the_scheme_says_where_output_goes() {
        assert_eq!(of(""), Ok(Log::Fifos));
        assert_eq!(of("/run/containerd/fifo/1/x-stdout"), Ok(Log::Fifos));
        assert_eq!(of("file:///var/log/a%20b"), Ok(Log::File("/var/log/a b".into())));
        assert_eq!(of("gopher:///x"), Err("unknown STDIO scheme gopher".to_owned()));
    }

    #[test]
    fn a_query_is_the_programs_arguments() {
        let arguments = ["--to", "a b", "-v", ""].map(OsString::from).to_vec();
        let Ok(Log::Binary(program)) = of("binary:///usr/bin/logger?--to=a+b&-v&--to=c") else { panic!() };
        assert_eq!((program.path, program.arguments), (PathBuf::from("/usr/bin/logger"), arguments));
        assert_eq!(program.environment.map(|(_, value)| value), ["c1", "k8s.io"]);
    }

    #[tokio::test]
    async fn both_outputs_come_to_the_end_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/log");
        for words in [[&b"one "[..], b"two "], [b"three ", b"four "]] {
            Logging::file(&path, words).unwrap().shutdown().await;
        }
        let mut words: Vec<_> =
            std::fs::read_to_string(&path).unwrap().split_whitespace().map(str::to_owned).collect();
        words.sort();
        assert_eq!(words, ["four", "one", "three", "two"]);
    }
}
