// SPDX-License-Identifier: Apache-2.0
//! How a pod names a checkpoint: `latest`, `<id>` or `<lineage>/<id>`.
//!
//! Invariant: whatever parses here is a plain name; no part of it can leave the directory in which it is looked up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{CheckpointId, IdError};

/// The longest DNS subdomain (RFC 1123), and so the longest pod name.
const SUBDOMAIN_MAX: usize = 253;
/// The longest DNS label (RFC 1123).
const LABEL_MAX: usize = 63;
/// How much of a bad value an error repeats, in characters.
const SHOWN_MAX: usize = 100;

/// A line of checkpoints: what one pod and its successors have in common. Every pod name is a valid lineage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lineage(String);

/// The text cannot name a lineage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a lineage: it must be lower-case letters, digits and '-' (as in a pod's name), at most {SUBDOMAIN_MAX} characters"
)]
pub struct LineageError {
    text: String,
}

/// Which checkpoint to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The newest one of the pod's lineage.
    Latest,
    /// This one of the pod's lineage.
    Id(CheckpointId),
    /// This one of another lineage.
    Of {
        /// Whose checkpoint.
        lineage: Lineage,
        /// Which of its checkpoints.
        id: CheckpointId,
    },
}

/// The text is not a reference to a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It looks like a path.
    #[error(
        "{text:?} is a path: a pod names a checkpoint and never gives a path; write latest, <id> or <lineage>/<id>"
    )]
    Path {
        /// What was given, shortened.
        text: String,
    },
    /// It has more than two parts.
    #[error(
        "{text:?} has too many parts: a pod names checkpoints of its own namespace only; write latest, <id> or <lineage>/<id>"
    )]
    TooManyParts {
        /// What was given, shortened.
        text: String,
    },
    /// `<lineage>/latest`.
    #[error(
        "{text:?} is not a reference: for the newest checkpoint of that lineage set thaw.dev/lineage to it, and write latest"
    )]
    LatestOfLineage {
        /// What was given, shortened.
        text: String,
    },
    /// The lineage before the `/` is not one.
    #[error(transparent)]
    Lineage(LineageError),
    /// The id is not one.
    #[error("{0}; write latest, <id> or <lineage>/<id>")]
    Id(IdError),
}

impl Lineage {
    /// The lineage as it stands in a path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Lineage {
    type Err = LineageError;

    fn from_str(text: &str) -> Result<Self, LineageError> {
        let valid = text.len() <= SUBDOMAIN_MAX && text.split('.').all(is_dns_label);
        if valid { Ok(Self(text.to_owned())) } else { Err(LineageError { text: shortened(text) }) }
    }
}

impl TryFrom<String> for Lineage {
    type Error = LineageError;

    fn try_from(text: String) -> Result<Self, LineageError> {
        text.parse()
    }
}

impl From<Lineage> for String {
    fn from(lineage: Lineage) -> Self {
        lineage.0
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let shown = || shortened(text);
        if text.split('/').any(|part| part.is_empty() || part.starts_with('.')) && !text.is_empty() {
            return Err(ReferenceError::Path { text: shown() });
        }
        match text.split_once('/') {
            None => Ok(Self::Id(text.parse().map_err(ReferenceError::Id)?)),
            Some((_, rest)) if rest.contains('/') => Err(ReferenceError::TooManyParts { text: shown() }),
            Some((_, "latest")) => Err(ReferenceError::LatestOfLineage { text: shown() }),
            Some((lineage, id)) => Ok(Self::Of {
                lineage: lineage.parse().map_err(ReferenceError::Lineage)?,
                id: id.parse().map_err(ReferenceError::Id)?,
            }),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Id(id) => id.fmt(f),
            Self::Of { lineage, id } => write!(f, "{lineage}/{id}"),
        }
    }
}

/// Whether the text is a DNS label (RFC 1123): what namespaces and container names are.
#[must_use]
pub fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= LABEL_MAX
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The beginning of a text that a stranger wrote, for an error message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "20261122T181500.123Z-7f3a";

    #[test]
    fn the_three_forms_parse_and_print_the_same() {
        for text in
            ["latest".to_owned(), ID.to_owned(), format!("trainer-0/{ID}"), format!("web.example/{ID}")]
        {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_path_instead_of_a_name_is_refused() {
        for text in ["/var/lib/thaw/x", "../x", "./x", "a/../b", "a//b", "a/", "/", "..", ".tmp-x"] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(matches!(error, ReferenceError::Path { .. }), "{text}: {error}");
            assert!(error.to_string().contains("never gives a path"), "{error}");
        }
    }

    #[test]
    fn a_namespace_cannot_be_named() {
        let error = format!("other/trainer/{ID}").parse::<Reference>().unwrap_err();
        assert!(matches!(error, ReferenceError::TooManyParts { .. }), "{error}");
    }

    #[test]
    fn other_bad_references_say_what_to_write() {
        for text in ["", "Latest", "newest", "trainer", "trainer/x", "trainer/latest", "UPPER/x", "a\0b"] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("latest") || error.contains("lineage"), "{text}: {error}");
        }
        let error = "x".repeat(10_000).parse::<Reference>().unwrap_err().to_string();
        assert!(error.len() < 500, "{error}");
    }

    proptest! {
        #[test]
        fn what_parses_is_one_or_two_plain_names(text in "[a-z0-9./_T:Z-]{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let shown = reference.to_string();
                prop_assert_eq!(&shown, &text);
                prop_assert!(shown.split('/').count() <= 2);
                prop_assert!(shown.split('/').all(|part| !part.is_empty() && !part.starts_with('.')));
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text: String) {
            let _ = text.parse::<Reference>();
            let _ = text.parse::<Lineage>();
            let _ = shortened(&text);
        }
    }
}
