// SPDX-License-Identifier: Apache-2.0
//! The points at which CRIU stops and asks its client to go on.

use std::os::fd::OwnedFd;

use crate::proto::rpc::CriuNotify;

/// A point that CRIU has come to. It waits there for the client's answer.
///
/// On restore the order is `PreRestore`, `SetupNamespaces`, (`OrphanPtsMaster`), `PostSetupNamespaces`,
/// `PostRestore`, (`NetworkUnlock`), `PreResume`, `PostResume`; on dump `PreDump`, `QueryExtFiles`,
/// `NetworkLock`, (`StatusReady`), `PostDump`, (`NetworkUnlock`).
///
/// Source: CRIU 4.2 criu/action-scripts.c, `action_names`.
#[derive(Debug)]
pub enum Event {
    /// Nothing has been done yet.
    PreDump,
    /// CRIU asks for further external files.
    QueryExtFiles,
    /// Packets are to be held back from here on.
    NetworkLock,
    /// The images are complete.
    PostDump,
    /// A lazy dump waits for its page client.
    StatusReady,
    /// An image streamer is about to be used.
    PreStream,
    /// Nothing has been done yet.
    PreRestore,
    /// Init exists in its namespaces, without its mounts.
    SetupNamespaces {
        /// Init, in CRIU's pid namespace.
        pid: i32,
    },
    /// The mount tree is complete.
    PostSetupNamespaces,
    /// Memory and descriptors are there; nothing of the tree runs yet.
    PostRestore {
        /// Init, in CRIU's pid namespace.
        pid: i32,
    },
    /// Packets need not be held back any longer. CRIU only logs a refusal.
    NetworkUnlock,
    /// The last moment before the tree runs. CRIU only logs a refusal.
    PreResume,
    /// The tree runs. CRIU only logs a refusal.
    PostResume,
    /// The master of a terminal whose slave is restored.
    OrphanPtsMaster(OwnedFd),
    /// A script of a newer CRIU.
    Unknown(String),
}

impl Event {
    /// CRIU's name of the point.
    #[must_use]
    pub fn script(&self) -> &str {
        match self {
            Self::PreDump => "pre-dump",
            Self::QueryExtFiles => "query-ext-files",
            Self::NetworkLock => "network-lock",
            Self::PostDump => "post-dump",
            Self::StatusReady => "status-ready",
            Self::PreStream => "pre-stream",
            Self::PreRestore => "pre-restore",
            Self::SetupNamespaces { .. } => "setup-namespaces",
            Self::PostSetupNamespaces => "post-setup-namespaces",
            Self::PostRestore { .. } => "post-restore",
            Self::NetworkUnlock => "network-unlock",
            Self::PreResume => "pre-resume",
            Self::PostResume => "post-resume",
            Self::OrphanPtsMaster(_) => "orphan-pts-master",
            Self::Unknown(script) => script,
        }
    }

    /// The event of a notification and the descriptors that came with it; `None` when the notification
    /// lacks what its script always carries.
    pub(crate) fn parse(notify: &CriuNotify, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let pid = notify.pid.filter(|pid| *pid > 0);
        Some(match notify.script() {
            b"pre-dump" => Self::PreDump,
            b"query-ext-files" => Self::QueryExtFiles,
            b"network-lock" => Self::NetworkLock,
            b"post-dump" => Self::PostDump,
            b"status-ready" => Self::StatusReady,
            b"pre-stream" => Self::PreStream,
            b"pre-restore" => Self::PreRestore,
            b"setup-namespaces" => Self::SetupNamespaces { pid: pid? },
            b"post-setup-namespaces" => Self::PostSetupNamespaces,
            b"post-restore" => Self::PostRestore { pid: pid? },
            b"network-unlock" => Self::NetworkUnlock,
            b"pre-resume" => Self::PreResume,
            b"post-resume" => Self::PostResume,
            b"orphan-pts-master" => Self::OrphanPtsMaster(descriptors.into_iter().next()?),
            script => Self::Unknown(String::from_utf8_lossy(script).into_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn notify(script: &str, pid: Option<i32>) -> CriuNotify {
        CriuNotify { script: Some(script.into()), pid, ..CriuNotify::default() }
    }

    #[test]
    fn every_script_of_criu_has_its_own_event() {
        let scripts = [
            "pre-stream",
            "pre-dump",
            "post-dump",
            "pre-restore",
            "post-restore",
            "network-lock",
            "network-unlock",
            "setup-namespaces",
            "post-setup-namespaces",
            "pre-resume",
            "post-resume",
            "orphan-pts-master",
            "status-ready",
            "query-ext-files",
        ];
        for script in scripts {
            let descriptor = File::open("/dev/null").unwrap().into();
            let event = Event::parse(&notify(script, Some(7)), vec![descriptor]).unwrap();
            assert_eq!(event.script(), script);
            assert!(!matches!(event, Event::Unknown(_)), "{script}");
        }
    }

    #[test]
    fn a_script_that_lacks_its_pid_or_descriptor_is_refused() {
        assert!(Event::parse(&notify("setup-namespaces", None), Vec::new()).is_none());
        assert!(Event::parse(&notify("post-restore", Some(-1)), Vec::new()).is_none());
        assert!(Event::parse(&notify("orphan-pts-master", None), Vec::new()).is_none());
    }

    #[test]
    fn a_script_of_a_newer_criu_keeps_its_name() {
        let event = Event::parse(&notify("pre-thaw", None), Vec::new()).unwrap();
        assert!(matches!(&event, Event::Unknown(name) if name == "pre-thaw"));
    }
}
