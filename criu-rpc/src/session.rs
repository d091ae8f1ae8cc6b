// SPDX-License-Identifier: Apache-2.0
//! Requests to one `criu swrk` process: ask, answer its notifications, take its result.
//!
//! Owns the socket. Neither ends nor waits for the process: dropping a session closes the socket, which
//! makes CRIU give up at its next notification.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use protobuf::{Message, MessageField};

use crate::{
    error::{BoxError, LogLines, RequestError},
    log,
    notify::Event,
    options::{self, DumpOptions, RestoreOptions},
    proto::rpc::{CriuFeatures, CriuNotify, CriuOpts, CriuReq, CriuResp},
    transport::{Deadline, MESSAGE, Peer, TransportError, receive_message, send_message},
    version::{Features, Version},
};

/// What CRIU's client does at an event; an error stops the request.
type OnEvent<'a> = &'a mut dyn FnMut(Event) -> Result<(), BoxError>;

/// A connection to one CRIU process.
#[derive(Debug)]
pub struct Session {
    peer: Peer,
    pid: i32,
}

/// A restored process tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Its init, in CRIU's pid namespace.
    pub pid: i32,
}

/// A kind of request. Source: CRIU 4.2 images/rpc.proto, `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dump = 1,
    Restore = 2,
    Check = 3,
    Notify = 6,
    FeatureCheck = 9,
    Version = 10,
    SinglePreDump = 13,
}

impl Kind {
    /// What goes into "CRIU could not ...".
    fn verb(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Restore => "restore",
            Self::Check => "check the kernel",
            Self::Notify => "go on",
            Self::FeatureCheck => "tell its features",
            Self::Version => "tell its version",
            Self::SinglePreDump => "pre-dump",
        }
    }
}

/// CRIU's log in a client's directory.
#[derive(Clone, Copy)]
struct Log<'a> {
    dir: BorrowedFd<'a>,
    name: &'a str,
}

impl Session {
    /// `process` is a pidfd of CRIU; without it only the end of the socket tells of its death.
    pub(crate) fn new(socket: OwnedFd, pid: i32, process: Option<OwnedFd>) -> Self {
        Self { peer: Peer { socket, process }, pid }
    }

    /// The CRIU process, a child of this process; it stays a zombie until the caller waits for it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// CRIU's version.
    ///
    /// # Errors
    /// [`RequestError`] when CRIU does not answer within `deadline`, or not as it should.
    pub fn version(&mut self, deadline: Duration) -> Result<Version, RequestError> {
        let request = CriuReq { keep_open: Some(true), ..of(Kind::Version) };
        let response = self.exchange(Kind::Version, &request, deadline)?;
        let version = response.version.into_option().ok_or_else(|| lacks(Kind::Version, "a version"))?;
        Ok(Version::new(version.major_number(), version.minor_number(), version.sublevel()))
    }

    /// What CRIU can do on this kernel.
    ///
    /// # Errors
    /// As [`Session::version`].
    pub fn features(&mut self, deadline: Duration) -> Result<Features, RequestError> {
        let asked = CriuFeatures {
            mem_track: Some(true),
            lazy_pages: Some(true),
            pidfd_store: Some(true),
            ..CriuFeatures::default()
        };
        let request =
            CriuReq { keep_open: Some(true), features: MessageField::some(asked), ..of(Kind::FeatureCheck) };
        let response = self.exchange(Kind::FeatureCheck, &request, deadline)?;
        let features =
            response.features.into_option().ok_or_else(|| lacks(Kind::FeatureCheck, "the features"))?;
        Ok(Features {
            mem_track: features.mem_track(),
            lazy_pages: features.lazy_pages(),
            pidfd_store: features.pidfd_store(),
        })
    }

    /// Whether this kernel has what CRIU needs; CRIU logs to `check.log` in `work_dir`.
    ///
    /// # Errors
    /// [`RequestError::Failed`] when something is missing; otherwise as [`Session::version`].
    pub fn check(self, work_dir: BorrowedFd<'_>, deadline: Duration) -> Result<(), RequestError> {
        let log = Log { dir: work_dir, name: "check.log" };
        let opts = options::check(work_dir.as_raw_fd(), log.name);
        self.perform(Kind::Check, opts, log, deadline, &mut |_| Ok(())).map(drop)
    }

    /// Dumps a process tree. `on_event` runs at each of CRIU's events, while CRIU waits; the time it
    /// takes counts.
    ///
    /// # Errors
    /// [`RequestError::Failed`] when CRIU fails, [`RequestError::Refused`] when `on_event` does,
    /// [`RequestError::Deadline`] when CRIU is still at work after `deadline`; it is killed then, for at its own end it
    /// would freeze again what it has found frozen.
    pub fn dump(
        self,
        options: &DumpOptions,
        deadline: Duration,
        on_event: OnEvent<'_>,
    ) -> Result<(), RequestError> {
        let log = Log { dir: options.work_dir.as_fd(), name: &options.log_file };
        self.perform(Kind::Dump, options.to_opts(), log, deadline, on_event).map(drop)
    }

    /// Dumps the memory of a process tree and lets it go on.
    ///
    /// # Errors
    /// As [`Session::dump`].
    pub fn pre_dump(
        self,
        options: &DumpOptions,
        deadline: Duration,
        on_event: OnEvent<'_>,
    ) -> Result<(), RequestError> {
        let log = Log { dir: options.work_dir.as_fd(), name: &options.log_file };
        self.perform(Kind::SinglePreDump, options.to_opts(), log, deadline, on_event).map(drop)
    }

    /// Restores a process tree. `on_event` runs at each of CRIU's events, while CRIU waits; the time it
    /// takes counts. After an error CRIU may have left init behind:
    /// [`Event::SetupNamespaces`] names it.
    ///
    /// # Errors
    /// As [`Session::dump`].
    pub fn restore(
        self,
        options: &RestoreOptions,
        deadline: Duration,
        on_event: OnEvent<'_>,
    ) -> Result<Restored, RequestError> {
        let log = Log { dir: options.work_dir.as_fd(), name: &options.log_file };
        let response = self.perform(Kind::Restore, options.to_opts(), log, deadline, on_event)?;
        match restored_pid(&response) {
            0 => Err(lacks(Kind::Restore, "the pid of init")),
            pid => Ok(Restored { pid }),
        }
    }

    /// A request after which CRIU takes further ones, and which it never interrupts.
    fn exchange(&self, kind: Kind, request: &CriuReq, deadline: Duration) -> Result<CriuResp, RequestError> {
        let deadline = Deadline::after(deadline);
        self.send(kind, None, request, &deadline)?;
        let (response, _) = self.receive(kind, None, &deadline)?;
        result(kind, None, response)
    }

    /// A request with images: answers CRIU's notifications until it has a result.
    fn perform(
        self,
        kind: Kind,
        opts: CriuOpts,
        log: Log<'_>,
        deadline: Duration,
        on_event: OnEvent<'_>,
    ) -> Result<CriuResp, RequestError> {
        let deadline = Deadline::after(deadline);
        let request = CriuReq { opts: MessageField::some(opts), ..of(kind) };
        self.send(kind, Some(log), &request, &deadline)?;
        let mut refused = None;
        let outcome = loop {
            match self.next(kind, log, &deadline, on_event, &mut refused) {
                Ok(None) => {}
                Ok(Some(response)) => break result(kind, Some(log), response),
                Err(error) => break Err(error),
            }
        };
        if matches!(outcome, Err(RequestError::Deadline { .. })) {
            self.peer.kill();
        }
        match refused {
            None => outcome,
            Some(Refusal { script, source }) => {
                let completed = outcome.ok().map(|response| restored_pid(&response));
                Err(RequestError::Refused { request: kind.verb(), script, completed, source })
            }
        }
    }

    /// The next message: a notification is answered (`None`), anything else is the result.
    fn next(
        &self,
        kind: Kind,
        log: Log<'_>,
        deadline: &Deadline,
        on_event: OnEvent<'_>,
        refused: &mut Option<Refusal>,
    ) -> Result<Option<CriuResp>, RequestError> {
        let (response, descriptors) = self.receive(kind, Some(log), deadline)?;
        if response.type_() != Kind::Notify as u32 {
            return Ok(Some(response));
        }
        let notify = response.notify.into_option().unwrap_or_default();
        let Some(event) = Event::parse(&notify, descriptors) else {
            return Err(Self::bad_notification(kind, &notify));
        };
        let script = event.script().to_owned();
        // After a refusal CRIU still tells of its retreat (network-unlock): not the caller's business.
        let answer = if refused.is_some() { Ok(()) } else { on_event(event) };
        let success = answer.is_ok();
        if let Err(source) = answer {
            *refused = Some(Refusal { script, source });
        }
        let reply = CriuReq { notify_success: Some(success), ..of(Kind::Notify) };
        self.send(kind, Some(log), &reply, deadline)?;
        Ok(None)
    }

    fn bad_notification(kind: Kind, notify: &CriuNotify) -> RequestError {
        let what = format!("an incomplete {} notification", log::printable(notify.script()));
        RequestError::Unexpected { request: kind.verb(), what }
    }

    fn send(
        &self,
        kind: Kind,
        log: Option<Log<'_>>,
        request: &CriuReq,
        deadline: &Deadline,
    ) -> Result<(), RequestError> {
        let bytes = request
            .write_to_bytes()
            .map_err(|source| RequestError::Decode { request: kind.verb(), source })?;
        send_message(&self.peer, &bytes, deadline).map_err(|error| match error {
            TransportError::Io(source) => {
                RequestError::Send { request: kind.verb(), log: lines(log), source }
            }
            other @ (TransportError::Deadline | TransportError::Closed | TransportError::TooLarge(_)) => {
                broken(kind, log, other, deadline)
            }
        })
    }

    fn receive(
        &self,
        kind: Kind,
        log: Option<Log<'_>>,
        deadline: &Deadline,
    ) -> Result<(CriuResp, Vec<OwnedFd>), RequestError> {
        let (bytes, descriptors) =
            receive_message(&self.peer, deadline).map_err(|error| broken(kind, log, error, deadline))?;
        let response = CriuResp::parse_from_bytes(&bytes)
            .map_err(|source| RequestError::Decode { request: kind.verb(), source })?;
        Ok((response, descriptors))
    }
}

/// The caller's no.
struct Refusal {
    script: String,
    source: BoxError,
}

fn of(kind: Kind) -> CriuReq {
    CriuReq { type_: Some(kind as u32), ..CriuReq::default() }
}

/// CRIU's last word as a result. A failure that CRIU cannot attribute has another type (`EMPTY`).
fn result(kind: Kind, log: Option<Log<'_>>, response: CriuResp) -> Result<CriuResp, RequestError> {
    if !response.success() {
        let message = response.cr_errmsg().trim_ascii_end();
        return Err(RequestError::Failed {
            request: kind.verb(),
            errno: response.cr_errno(),
            message: if log::is_harmless(message) { String::new() } else { log::printable(message) },
            log: lines(log),
        });
    }
    if response.type_() != kind as u32 {
        let what = format!("an answer of type {}", response.type_());
        return Err(RequestError::Unexpected { request: kind.verb(), what });
    }
    Ok(response)
}

/// The pid of a restored init; 0 when the response has none.
fn restored_pid(response: &CriuResp) -> i32 {
    response.restore.as_ref().map_or(0, |restore| restore.pid().max(0))
}

fn lacks(kind: Kind, what: &str) -> RequestError {
    RequestError::Unexpected { request: kind.verb(), what: format!("an answer without {what}") }
}

fn lines(log: Option<Log<'_>>) -> LogLines {
    LogLines(log.map_or_else(Vec::new, |log| log::last_errors(log.dir, log.name)))
}

fn broken(kind: Kind, log: Option<Log<'_>>, error: TransportError, deadline: &Deadline) -> RequestError {
    let request = kind.verb();
    match error {
        TransportError::Io(source) => RequestError::Receive { request, source },
        TransportError::Deadline => {
            RequestError::Deadline { request, limit: deadline.limit, log: lines(log) }
        }
        TransportError::Closed => RequestError::Closed { request, log: lines(log) },
        TransportError::TooLarge(size) => RequestError::TooLarge { request, size, limit: MESSAGE },
    }
}

#[cfg(test)]
mod tests;
