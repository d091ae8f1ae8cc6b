// SPDX-License-Identifier: Apache-2.0
//! Why a test could not do its work, or what it found.

use std::path::{Path, PathBuf};

use crate::kubelet::cri::CriError;
use crate::kubelet::error::KubeletError;
use crate::kubelet::http::GetError;
use crate::kubelet::stream::StreamError;

/// A failed step of a test.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// The kubelet or the runtime.
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
    /// The frozen program did not answer.
    #[error(transparent)]
    Get(#[from] GetError),
    /// A stream of exec, attach or port-forward.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The runtime.
    #[error(transparent)]
    Cri(#[from] CriError),
    /// A file of the node.
    #[error("cannot {verb} {}", .path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A program ended in failure.
    #[error("{command} failed with {status}: {stderr}")]
    Command {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// A program or the frozen program answered what cannot be understood.
    #[error("cannot understand what {who} said: {said}")]
    Answer {
        /// Who.
        who: String,
        /// What.
        said: String,
    },
    /// The node is not as it was.
    #[error("left behind on the node:\n  {}", .0.join("\n  "))]
    Leaks(Vec<String>),
}

impl HarnessError {
    /// A failed operation on `path`.
    pub(crate) fn file(
        verb: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::File { verb, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// What a program said, where that is no answer.
    #[must_use]
    pub fn answer(who: impl Into<String>, said: impl Into<String>) -> Self {
        Self::Answer { who: who.into(), said: said.into() }
    }
}
