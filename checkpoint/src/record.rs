// SPDX-License-Identifier: Apache-2.0
//! What a shim tells the node's plugin when a restore or a checkpoint has ended, for the node's figures and for events of
//! the pod.
//!
//! One datagram of JSON to a socket in a directory of root's. Nobody answers, and nothing is kept where nobody
//! listens: it is no part of the work.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the plugin listens.
pub const SOCKET: &str = "/run/thaw/records.sock";
/// The longest record, in bytes.
pub const LIMIT: usize = 8192;
/// The longest text of a record, in bytes: as much as an event of Kubernetes shows. Source: Kubernetes
/// pkg/apis/core/validation/events.go, NoteLengthLimit.
pub const TEXT_LIMIT: usize = 1024;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// A container was restored.
    Restore,
    /// A container was frozen.
    Checkpoint,
}

/// Whose container it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// The container's name in the pod.
    pub container: String,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was done.
    pub verb: Verb,
    /// At which step it failed; `None` where it did not.
    pub failed: Option<String>,
    /// The size of the checkpoint in bytes, where it is known.
    pub bytes: u64,
    /// How long each step took, in seconds.
    pub seconds: BTreeMap<String, f64>,
    /// Whose container it was, where it was a pod's.
    #[serde(default)]
    pub subject: Option<Subject>,
    /// What there is to say about it, at most [`TEXT_LIMIT`] bytes.
    #[serde(default)]
    pub text: String,
}

impl Record {
    /// One that went well.
    #[must_use]
    pub fn done(verb: Verb, bytes: u64, steps: &[(&str, Duration)]) -> Self {
        let seconds = steps.iter().map(|(step, took)| ((*step).to_owned(), took.as_secs_f64())).collect();
        Self { verb, failed: None, bytes, seconds, subject: None, text: String::new() }
    }

    /// One that failed at a step.
    #[must_use]
    pub fn failed(verb: Verb, step: &str) -> Self {
        let (seconds, text) = (BTreeMap::new(), String::new());
        Self { verb, failed: Some(step.to_owned()), bytes: 0, seconds, subject: None, text }
    }

    /// The same with whose container it was, and what there is to say about it, which is cut where it is too long.
    #[must_use]
    pub fn about(self, subject: Option<Subject>, text: &str) -> Self {
        let end =
            text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= TEXT_LIMIT).last();
        let text = text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned();
        Self { subject, text, ..self }
    }

    /// Sends it to whoever listens at `socket`, without waiting.
    ///
    /// # Errors
    /// When nobody listens, or does not keep up.
    pub fn send(&self, socket: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let sender = UnixDatagram::unbound()?;
        sender.set_nonblocking(true)?;
        sender.send_to(&json, socket).map(drop)
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_and_without_a_listener_it_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.sock");
        let record = Record::done(Verb::Restore, 7, &[("CRIU", Duration::from_millis(1500))]);
        assert!(record.send(&path).is_err());
        let listener = UnixDatagram::bind(&path).unwrap();
        record.send(&path).unwrap();
        Record::failed(Verb::Checkpoint, "CRIU").send(&path).unwrap();
        let mut buffer = [0; LIMIT];
        let length = listener.recv(&mut buffer).unwrap();
        let arrived = Record::parse(&buffer[..length]).unwrap();
        assert_eq!(arrived, record);
        assert!((arrived.seconds["CRIU"] - 1.5).abs() < f64::EPSILON);
        let length = listener.recv(&mut buffer).unwrap();
        assert_eq!(Record::parse(&buffer[..length]).unwrap().failed.as_deref(), Some("CRIU"));
        assert!(Record::parse(b"{}").is_err());
        // That of a shim of before there were events.
        let old = br#"{"verb": "restore", "failed": null, "bytes": 1, "seconds": {}}"#;
        assert_eq!(Record::parse(old).unwrap().subject, None);
    }

    #[test]
    fn the_longest_record_fits_into_a_datagram() {
        let long = "\u{1}".repeat(2000);
        let name = |length| "n".repeat(length);
        let subject = Subject { namespace: name(63), pod: name(253), uid: name(36), container: name(63) };
        let record = Record::failed(Verb::Restore, "CRIU").about(Some(subject), &long);
        assert_eq!(record.text.len(), TEXT_LIMIT);
        assert!(serde_json::to_vec(&record).unwrap().len() < LIMIT);
        assert_eq!(Record::failed(Verb::Restore, "x").about(None, &"ä".repeat(600)).text.len(), TEXT_LIMIT);
    }
}
