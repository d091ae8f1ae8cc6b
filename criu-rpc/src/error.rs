// SPDX-License-Identifier: Apache-2.0
//! Why a request did not succeed.

use std::{fmt, io, time::Duration};

use thiserror::Error;

/// The error of a callback.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Error lines of CRIU's log, oldest first; empty when there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogLines(pub Vec<String>);

/// Everything on one line, or nothing: `; CRIU's log: A | B`.
impl fmt::Display for LogLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; CRIU's log: {}", self.0.join(" | ")) }
    }
}

/// Why a request to CRIU did not succeed.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The request or an answer could not be sent.
    #[error("cannot send to CRIU during {request}{log}")]
    Send {
        /// What was asked for.
        request: &'static str,
        /// CRIU's error lines.
        log: LogLines,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket could not be read.
    #[error("cannot receive from CRIU during {request}")]
    Receive {
        /// What was asked for.
        request: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// CRIU did not finish in time, and was killed where it was at work on processes.
    #[error("CRIU did not finish {request} within {limit:?}{log}")]
    Deadline {
        /// What was asked for.
        request: &'static str,
        /// The time that it had.
        limit: Duration,
        /// CRIU's error lines.
        log: LogLines,
    },
    /// CRIU ended without an answer: it crashed or was killed.
    #[error("CRIU ended during {request} without an answer{log}")]
    Closed {
        /// What was asked for.
        request: &'static str,
        /// CRIU's error lines.
        log: LogLines,
    },
    /// A message is longer than any that CRIU sends.
    #[error("CRIU sent a message of {size} bytes during {request}, more than {limit}")]
    TooLarge {
        /// What was asked for.
        request: &'static str,
        /// The length of the message.
        size: usize,
        /// The longest one that is read.
        limit: usize,
    },
    /// A message is not one of CRIU's RPC.
    #[error("CRIU sent a message during {request} that is not of its RPC")]
    Decode {
        /// What was asked for.
        request: &'static str,
        /// Why.
        #[source]
        source: protobuf::Error,
    },
    /// A message is well formed but makes no sense here.
    #[error("CRIU sent {what} during {request}")]
    Unexpected {
        /// What was asked for.
        request: &'static str,
        /// What came.
        what: String,
    },
    /// CRIU says that it failed.
    #[error("CRIU could not {request}{}{log}", reason(*.errno, .message, .log))]
    Failed {
        /// What was asked for.
        request: &'static str,
        /// CRIU's error number, 0 if it named none.
        errno: i32,
        /// CRIU's first error, empty if it named none.
        message: String,
        /// CRIU's error lines.
        log: LogLines,
    },
    /// The caller refused to go on at an event.
    #[error("{request} was stopped at {script}")]
    Refused {
        /// What was asked for.
        request: &'static str,
        /// The event's name.
        script: String,
        /// Set when CRIU went on to success all the same: the restored init, which runs (0 for other
        /// requests). CRIU ignores refusals of network-unlock, pre-resume and post-resume.
        completed: Option<i32>,
        /// The caller's reason.
        #[source]
        source: BoxError,
    },
}

/// What the log does not say anyway.
fn reason(errno: i32, message: &str, log: &LogLines) -> String {
    let named = (errno != 0).then(|| io::Error::from_raw_os_error(errno).to_string());
    let logged = log.0.iter().any(|line| line.contains(message));
    let said = Some(message).filter(|message| !message.is_empty() && !logged);
    match (said, named) {
        (None, None) if log.0.is_empty() => ": it gave no reason".to_owned(),
        (None, None) => String::new(),
        (Some(said), None) => format!(": {said}"),
        (None, Some(named)) => format!(": {named}"),
        (Some(said), Some(named)) => format!(": {said} ({named})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_criu_said_and_what_it_logged() {
        let error = RequestError::Failed {
            request: "restore",
            errno: 17,
            message: "can't fork".to_owned(),
            log: LogLines(vec!["Error (b.c:2): bye".to_owned()]),
        };
        assert_eq!(
            error.to_string(),
            "CRIU could not restore: can't fork (File exists (os error 17)); CRIU's log: Error (b.c:2): bye"
        );
    }

    #[test]
    fn a_failure_does_not_repeat_what_is_in_the_log() {
        let error = RequestError::Failed {
            request: "restore",
            errno: 0,
            message: "Error (a.c:1): can't fork".to_owned(),
            log: LogLines(vec![
                "(0.1) Error (a.c:1): can't fork".to_owned(),
                "Error (b.c:2): bye".to_owned(),
            ]),
        };
        assert_eq!(
            error.to_string(),
            "CRIU could not restore; CRIU's log: (0.1) Error (a.c:1): can't fork | Error (b.c:2): bye"
        );
    }

    #[test]
    fn a_failure_without_any_detail_says_so() {
        let error = RequestError::Failed {
            request: "dump",
            errno: 0,
            message: String::new(),
            log: LogLines::default(),
        };
        assert_eq!(error.to_string(), "CRIU could not dump: it gave no reason");
    }
}
