// SPDX-License-Identifier: Apache-2.0
//! Starts `criu swrk 3`, with exactly the descriptors and the place in the world that it is to have.
//!
//! Owns nothing of the process once it runs and never waits for it. It forks by itself because
//! `std::process::Command` waits for a child that could not run the program, and panics when someone
//! else's `waitpid` was faster.

#[allow(unsafe_code)] // fork, and what the child does before it runs CRIU
mod child;

use std::{
    env,
    ffi::{CStr, CString, OsStr, OsString},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    ptr,
};

use libc::c_char;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Access, Mode, OFlags, access, open},
    io::fcntl_dupfd_cloexec,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use thiserror::Error;

use self::child::{Child, Step};
use crate::{error::BoxError, session::Session};

/// Directories that are searched after those in `PATH`; CRIU runs programs out of them too.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The RPC socket's number in CRIU; 0 to 2 come before, inherited descriptors after it.
const SOCKET: RawFd = 3;
/// How long the child may take until it runs CRIU: only a frozen cgroup delays it.
const START: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A CRIU process to be.
///
/// Its environment is empty except for `PATH` and what is set here, its signal mask and supplementary groups are empty, its
/// session keyring is new, and of this process's descriptors it has only those named here.
#[derive(Debug)]
pub struct Swrk {
    program: PathBuf,
    stdio: Option<[OwnedFd; 3]>,
    inherited: Vec<OwnedFd>,
    unshare_cgroup_namespace: bool,
    searched_first: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
}

/// Why CRIU does not run.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// No such program in any directory of `PATH`.
    #[error("there is no program {} in {path}", .program.display())]
    NotFound {
        /// The name that was looked for.
        program: PathBuf,
        /// Where it was looked for.
        path: String,
    },
    /// A socket, pipe or descriptor for CRIU could not be made.
    #[error("cannot make a {what} for CRIU")]
    Descriptor {
        /// What was to be made.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No new process.
    #[error("cannot fork")]
    Fork {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The new process could not become CRIU. It has exited and waits for its reaper.
    #[error("the process for CRIU could not {step}")]
    Child {
        /// The process.
        pid: i32,
        /// What it could not do.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The new process could not be placed. It has been sent `SIGKILL` and waits for its reaper.
    #[error("the process for CRIU could not be placed: {source}")]
    Place {
        /// The process.
        pid: i32,
        /// Why.
        source: BoxError,
    },
    /// The new process did not become CRIU in time, as in a frozen cgroup. It has been sent `SIGKILL`.
    #[error("the process for CRIU did not start within {} s; is its cgroup frozen?", START.tv_sec)]
    Stuck {
        /// The process.
        pid: i32,
    },
}

impl Swrk {
    /// A CRIU that is run from `program`: a path, or a name that is looked for in `PATH` and in the
    /// usual directories.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            stdio: None,
            inherited: Vec::new(),
            unshare_cgroup_namespace: false,
            searched_first: None,
            environment: Vec::new(),
        }
    }

    /// What CRIU has as 0, 1 and 2; `/dev/null` if not set.
    pub fn stdio(&mut self, descriptors: [OwnedFd; 3]) -> &mut Self {
        self.stdio = Some(descriptors);
        self
    }

    /// Hands one more descriptor to CRIU; returns its number there, for `inherit_fds` of
    /// [`RestoreOptions`](crate::RestoreOptions).
    pub fn inherit(&mut self, descriptor: OwnedFd) -> i32 {
        self.inherited.push(descriptor);
        SOCKET.saturating_add(RawFd::try_from(self.inherited.len()).unwrap_or(RawFd::MAX))
    }

    /// Whether CRIU gets a cgroup namespace of its own, whose roots are the cgroups that it was placed in.
    pub fn unshare_cgroup_namespace(&mut self, yes: bool) -> &mut Self {
        self.unshare_cgroup_namespace = yes;
        self
    }

    /// Programs that CRIU and its plugins run are looked for here before anywhere else; CRIU itself is not.
    pub fn search_first(&mut self, folder: PathBuf) -> &mut Self {
        self.searched_first = Some(folder);
        self
    }

    /// Sets a variable for CRIU and the programs that its plugins run.
    pub fn env(&mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> &mut Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// Starts CRIU where this process is. It is killed when the calling thread ends.
    ///
    /// # Errors
    /// As [`spawn_placed`](Self::spawn_placed).
    pub fn spawn(self) -> Result<Session, SpawnError> {
        self.spawn_placed(|_| Ok(()))
    }

    /// Starts CRIU and has `place` put its process, by pid, where it is to be: into a cgroup, before a cgroup namespace is
    /// made, and before it can be asked for anything. It is killed when the calling thread ends.
    ///
    /// # Errors
    /// [`SpawnError`]; with [`SpawnError::Child`], [`SpawnError::Place`] and [`SpawnError::Stuck`] there was a
    /// process, which the caller's reaper meets.
    pub fn spawn_placed(
        self,
        place: impl FnOnce(i32) -> Result<(), BoxError>,
    ) -> Result<Session, SpawnError> {
        let path = search_path(env::var_os("PATH"));
        let program = find(&self.program, &path)?;
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(descriptor("socket"))?;
        let stdio = self.stdio.map_or_else(null, Ok)?;
        let sources: Vec<OwnedFd> = stdio.into_iter().chain([theirs]).chain(self.inherited).collect();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(descriptor("pipe"))?;
        let (waits, gate) = pipe_with(PipeFlags::CLOEXEC).map_err(descriptor("pipe"))?;

        // Every source is moved above every target, so that no dup2 in the child hits another's source.
        let targets = RawFd::try_from(sources.len()).unwrap_or(RawFd::MAX);
        let above = |fd: OwnedFd| fcntl_dupfd_cloexec(fd, targets).map_err(descriptor("descriptor"));
        let sources = sources.into_iter().map(above).collect::<Result<Vec<_>, _>>()?;
        let (writer, waits) = (above(writer)?, above(waits)?);

        let arguments = [program.as_c_str(), c"--no-default-config", c"swrk", c"3"];
        let path = searched(self.searched_first.as_deref(), &path);
        let variables = self.environment.iter().map(|(key, value)| {
            CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).unwrap_or_default()
        });
        let variables: Vec<CString> = variables.collect();
        let environment: Vec<&CStr> =
            [path.as_c_str()].into_iter().chain(variables.iter().map(CString::as_c_str)).collect();
        let child = Child {
            arguments: &pointers(&arguments),
            environment: &pointers(&environment),
            sources: &numbers(&sources),
            unshare_cgroup_namespace: self.unshare_cgroup_namespace,
            waits: waits.as_raw_fd(),
            gate: gate.as_raw_fd(),
            report: writer.as_raw_fd(),
        };
        let pid = child.fork()?;
        // Gone already is seen at the socket: it has no children yet.
        let process = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Only the child has these now: its end shows as the end of the socket and of the pipe.
        drop((writer, waits, sources));
        let go_on = || retry(|| rustix::io::write(&gate, &[1])).map_err(descriptor("word to the process"));
        // Placing takes a while, and so does becoming CRIU, which does nothing before its first request.
        let early = !self.unshare_cgroup_namespace;
        if early {
            go_on()?;
        }
        if let Err(source) = place(pid) {
            // Without the word, or without our end of the socket, it ends by itself; it may be on its way to CRIU.
            let _ = process.map(|process| pidfd_send_signal(process, Signal::KILL));
            let ended = early.then(|| reported(pid, reader, &Timespec::default()).err()).flatten();
            return Err(match ended {
                // It was gone before it could be placed.
                Some(child @ SpawnError::Child { .. }) => child,
                _ => SpawnError::Place { pid, source },
            });
        }
        if !early {
            go_on()?;
        }
        drop(gate);
        if let Err(error) = reported(pid, reader, &START) {
            if let (SpawnError::Stuck { .. }, Some(process)) = (&error, &process) {
                // Gone already is as good.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
            return Err(error);
        }
        Ok(Session::new(ours, pid, process))
    }
}

/// Waits for the child to run CRIU (the pipe closes) or to report why it could not.
fn reported(pid: i32, reader: OwnedFd, limit: &Timespec) -> Result<(), SpawnError> {
    if retry(|| poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(limit))) == Ok(0) {
        return Err(SpawnError::Stuck { pid });
    }
    let mut report = Vec::new();
    std::fs::File::from(reader)
        .take(8)
        .read_to_end(&mut report)
        .map_err(|source| SpawnError::Descriptor { what: "report of the process", source })?;
    let Some((step, errno)) = report.split_at_checked(4) else { return Ok(()) };
    let number = |bytes: &[u8]| bytes.try_into().map(i32::from_ne_bytes).unwrap_or_default();
    Err(SpawnError::Child {
        pid,
        step: Step::describe(number(step)),
        source: io::Error::from_raw_os_error(number(errno)),
    })
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

/// `PATH=` and our own path, followed by the usual directories.
fn search_path(inherited: Option<OsString>) -> CString {
    let mut path = b"PATH=".to_vec();
    if let Some(inherited) = inherited.filter(|path| !path.is_empty()) {
        path.extend(inherited.into_vec());
        path.push(b':');
    }
    path.extend(SEARCH.bytes());
    CString::new(path).unwrap_or_default()
}

/// The same with one more folder before all others.
fn searched(first: Option<&Path>, path: &CStr) -> CString {
    let Some(first) = first else { return path.to_owned() };
    let rest = path.to_bytes().strip_prefix(b"PATH=").unwrap_or_default();
    let whole = [b"PATH=", first.as_os_str().as_bytes(), b":", rest].concat();
    CString::new(whole).unwrap_or_else(|_| path.to_owned())
}

fn find(program: &Path, path: &CStr) -> Result<CString, SpawnError> {
    let dirs = path.to_bytes().strip_prefix(b"PATH=").unwrap_or_default();
    let found = if program.as_os_str().as_bytes().contains(&b'/') {
        Some(program.to_owned())
    } else {
        env::split_paths(OsStr::from_bytes(dirs))
            .map(|dir| dir.join(program))
            .find(|path| path.is_file() && access(path, Access::EXEC_OK).is_ok())
    };
    found.and_then(|path| CString::new(path.into_os_string().into_vec()).ok()).ok_or_else(|| {
        let path = String::from_utf8_lossy(dirs).into_owned();
        SpawnError::NotFound { program: program.to_owned(), path }
    })
}

fn null() -> Result<[OwnedFd; 3], SpawnError> {
    let one = || open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let all = || Ok([one()?, one()?, one()?]);
    all().map_err(descriptor("/dev/null"))
}

fn descriptor(what: &'static str) -> impl Fn(rustix::io::Errno) -> SpawnError {
    move |errno| SpawnError::Descriptor { what, source: errno.into() }
}

fn numbers(descriptors: &[OwnedFd]) -> Vec<RawFd> {
    descriptors.iter().map(AsRawFd::as_raw_fd).collect()
}

/// A list as `execve` takes it, ended by a null pointer.
fn pointers(strings: &[&CStr]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

#[cfg(test)]
mod tests;
