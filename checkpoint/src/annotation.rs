// SPDX-License-Identifier: Apache-2.0
//! What a pod asks of thaw: the annotation keys under `thaw.dev/` and their grammar.
//!
//! Invariant: a key or value that is not understood is an error and never ignored; all errors come at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::reference::{Lineage, LineageError, Reference, ReferenceError, is_dns_label, shortened};

/// Keys that begin so are thaw's; all others belong to somebody else.
pub const PREFIX: &str = "thaw.dev/";
/// Which checkpoint to restore into every container of the pod.
pub const RESTORE: &str = "thaw.dev/restore";
/// Before a container's name: which checkpoint to restore into that container.
pub const RESTORE_CONTAINER: &str = "thaw.dev/restore.";
/// The line of checkpoints that the pod belongs to.
pub const LINEAGE: &str = "thaw.dev/lineage";
/// What to do where there is nothing to restore.
pub const IF_MISSING: &str = "thaw.dev/if-missing";
/// What to do where the restore failed.
pub const IF_FAILED: &str = "thaw.dev/if-failed";
/// What becomes of sockets that are bound to the address of the pod that was frozen.
pub const ADDRESS: &str = "thaw.dev/address";
/// What becomes of established TCP connections.
pub const TCP: &str = "thaw.dev/tcp";
/// When the memory comes back.
pub const MEMORY: &str = "thaw.dev/memory";
/// Which emptyDir volumes belong to the checkpoint.
pub const VOLUMES: &str = "thaw.dev/volumes";
/// What the new pod's log begins with.
pub const LOG: &str = "thaw.dev/log";
/// Keys that only the node itself may set.
pub const INTERNAL: &str = "thaw.dev/internal.";
/// Set by the node's plugin: the checkpoint, `NAMESPACE/LINEAGE/ID`, that it has prepared the container for.
pub const PREPARED: &str = "thaw.dev/internal.prepared";
/// Set by the node's plugin: what it alone knows against the restore.
pub const REFUSED: &str = "thaw.dev/internal.refused";
/// Set by the node's plugin: the old addresses that the pod has, commas between them.
pub const KEPT_ADDRESSES: &str = "thaw.dev/internal.addresses";

/// What an error lists as known.
const KNOWN: &str = "thaw.dev/restore, thaw.dev/restore.<container>, thaw.dev/lineage, thaw.dev/if-missing, thaw.dev/if-failed, thaw.dev/address, thaw.dev/tcp, thaw.dev/memory, thaw.dev/volumes, thaw.dev/log";

/// What happens instead of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// The container starts afresh.
    Start,
    /// The container does not start.
    Fail,
}

/// What becomes of sockets that are bound to the address of the pod that was frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Address {
    /// They move to the new pod's address.
    #[default]
    Rewrite,
    /// The new pod gets the old address as well.
    Keep,
}

/// What becomes of TCP connections that were established when the pod was frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TcpConnections {
    /// Those inside the pod go on, the others are closed.
    #[default]
    Auto,
    /// All go on: the pod must have its old address.
    Keep,
    /// All are closed.
    Close,
}

/// When the memory of a restored container comes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// Before the container runs.
    #[default]
    Eager,
    /// The container runs at once and its memory follows.
    Lazy,
}

/// What the log of a restored container begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Log {
    /// With what the program writes from then on.
    #[default]
    New,
    /// With the log of the container that was frozen.
    Continue,
}

/// Which annotation asked for the restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `thaw.dev/restore`: a container that the checkpoint does not hold starts normally.
    Pod,
    /// `thaw.dev/restore.<container>`: the checkpoint must hold this container.
    Container,
}

/// What the pod asks for one of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// Which checkpoint.
    pub reference: Reference,
    /// Which annotation named it.
    pub scope: Scope,
    /// What happens where the checkpoint does not exist.
    pub if_missing: Otherwise,
    /// What happens where the checkpoint cannot be restored.
    pub if_failed: Otherwise,
}

/// Everything that a pod asks of thaw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodOptions {
    restore: Option<Reference>,
    restore_container: BTreeMap<String, Reference>,
    lineage: Option<Lineage>,
    if_missing: Option<Otherwise>,
    if_failed: Option<Otherwise>,
    address: Address,
    tcp: TcpConnections,
    memory: Option<Memory>,
    volumes: BTreeSet<String>,
    log: Log,
}

/// One annotation that thaw does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// No such key.
    #[error("annotation {key:?} is not known: the keys are {KNOWN}")]
    Unknown {
        /// The key, shortened.
        key: String,
    },
    /// A key that only the node may set.
    #[error("annotation {key:?} is reserved for the node: remove it from the pod")]
    Reserved {
        /// The key, shortened.
        key: String,
    },
    /// The key names no possible container.
    #[error(
        "annotation {key:?} does not name a container: after `restore.` comes the name of a container of the pod"
    )]
    Container {
        /// The key, shortened.
        key: String,
    },
    /// The value is not a reference.
    #[error("annotation {key:?}: {reason}")]
    Reference {
        /// The key.
        key: String,
        /// What is wrong with the value.
        reason: ReferenceError,
    },
    /// The value is not a DNS label.
    #[error(
        "annotation {LINEAGE:?}: {value:?} is not a DNS label: lower-case letters, digits and '-' inside, at most 63 characters"
    )]
    Lineage {
        /// The value, shortened.
        value: String,
    },
    /// The value is not one of a few words.
    #[error("annotation {key:?}: {value:?} is not allowed: write {allowed}")]
    Choice {
        /// The key.
        key: &'static str,
        /// The value, shortened.
        value: String,
        /// The words.
        allowed: &'static str,
    },
    /// The value is not a list of volume names.
    #[error(
        "annotation {VOLUMES:?}: {value:?} is not the name of a volume: write the names of emptyDir volumes of the pod, separated by commas"
    )]
    Volume {
        /// What stands in the place of a name, shortened.
        value: String,
    },
}

/// Every annotation of the pod that thaw does not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationErrors(pub Vec<AnnotationError>);

impl std::error::Error for AnnotationErrors {}

impl fmt::Display for AnnotationErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::faults::join(f, &self.0)
    }
}

impl PodOptions {
    /// Reads a pod's annotations; keys of others are ignored.
    ///
    /// # Errors
    /// Every key under `thaw.dev/` that is unknown or reserved, and every bad value, in one error.
    pub fn parse<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, AnnotationErrors> {
        let mut options = Self::default();
        let mut errors: Vec<_> = annotations
            .into_iter()
            .filter(|(key, _)| key.starts_with(PREFIX))
            .filter_map(|(key, value)| options.set(key, value).err())
            .collect();
        // The annotations come out of a hash map; the user wants the same message each time.
        errors.sort_by_key(ToString::to_string);
        if errors.is_empty() { Ok(options) } else { Err(AnnotationErrors(errors)) }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), AnnotationError> {
        let reference =
            || value.parse().map_err(|reason| AnnotationError::Reference { key: shortened(key), reason });
        match key {
            RESTORE => self.restore = Some(reference()?),
            LINEAGE if is_dns_label(value) => self.lineage = value.parse().ok(),
            LINEAGE => return Err(AnnotationError::Lineage { value: shortened(value) }),
            IF_MISSING => self.if_missing = Some(choice(IF_MISSING, value, "start or fail", OTHERWISE)?),
            IF_FAILED => self.if_failed = Some(choice(IF_FAILED, value, "start or fail", OTHERWISE)?),
            ADDRESS => self.address = choice(ADDRESS, value, "rewrite or keep", ADDRESSES)?,
            TCP => self.tcp = choice(TCP, value, "auto, keep or close", CONNECTIONS)?,
            MEMORY => self.memory = Some(choice(MEMORY, value, "eager or lazy", MEMORIES)?),
            VOLUMES => self.volumes = volumes(value)?,
            LOG => self.log = choice(LOG, value, "new or continue", LOGS)?,
            _ if key.starts_with(INTERNAL) => return Err(AnnotationError::Reserved { key: shortened(key) }),
            _ => match key.strip_prefix(RESTORE_CONTAINER) {
                Some(container) if is_dns_label(container) => {
                    self.restore_container.insert(container.to_owned(), reference()?);
                }
                Some(_) => return Err(AnnotationError::Container { key: shortened(key) }),
                None => return Err(AnnotationError::Unknown { key: shortened(key) }),
            },
        }
        Ok(())
    }

    /// What the pod asks for this container; `None`: start it normally.
    #[must_use]
    pub fn for_container(&self, container: &str) -> Option<RestoreRequest> {
        let own = self.restore_container.get(container).map(|reference| (reference, Scope::Container));
        let (reference, scope) =
            own.or_else(|| self.restore.as_ref().map(|reference| (reference, Scope::Pod)))?;
        let default = if *reference == Reference::Latest { Otherwise::Start } else { Otherwise::Fail };
        Some(RestoreRequest {
            reference: reference.clone(),
            scope,
            if_missing: self.if_missing.unwrap_or(default),
            if_failed: self.if_failed.unwrap_or(Otherwise::Fail),
        })
    }

    /// What any of its containers is to be restored from, with the name of the only one that it is for, if it is.
    pub fn references(&self) -> impl Iterator<Item = (&Reference, Option<&str>)> {
        let own = self.restore_container.iter().map(|(container, it)| (it, Some(container.as_str())));
        self.restore.iter().map(|it| (it, None)).chain(own)
    }

    /// The pod's lineage: what the annotation says, or else the pod's name.
    ///
    /// # Errors
    /// Without the annotation, when the name is not one that a pod can have.
    pub fn lineage(&self, pod_name: &str) -> Result<Lineage, LineageError> {
        self.lineage.clone().map_or_else(|| pod_name.parse(), Ok)
    }

    /// What becomes of sockets bound to the old address: `thaw.dev/address`.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// What becomes of established connections: `thaw.dev/tcp`.
    #[must_use]
    pub fn tcp(&self) -> TcpConnections {
        self.tcp
    }

    /// When the memory comes back: `thaw.dev/memory`; `None`: as the node has it.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        self.memory
    }

    /// The emptyDir volumes that belong to the checkpoint: `thaw.dev/volumes`.
    #[must_use]
    pub fn volumes(&self) -> &BTreeSet<String> {
        &self.volumes
    }

    /// What the new log begins with: `thaw.dev/log`.
    #[must_use]
    pub fn log(&self) -> Log {
        self.log
    }
}

/// A word, and what it means.
type Word<T> = (&'static str, T);

const OTHERWISE: &[Word<Otherwise>] = &[("start", Otherwise::Start), ("fail", Otherwise::Fail)];
const ADDRESSES: &[Word<Address>] = &[("rewrite", Address::Rewrite), ("keep", Address::Keep)];
const MEMORIES: &[Word<Memory>] = &[("eager", Memory::Eager), ("lazy", Memory::Lazy)];
const LOGS: &[Word<Log>] = &[("new", Log::New), ("continue", Log::Continue)];
const CONNECTIONS: &[Word<TcpConnections>] =
    &[("auto", TcpConnections::Auto), ("keep", TcpConnections::Keep), ("close", TcpConnections::Close)];

fn choice<T: Copy>(
    key: &'static str,
    value: &str,
    allowed: &'static str,
    words: &[Word<T>],
) -> Result<T, AnnotationError> {
    let found = words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
    found.ok_or_else(|| AnnotationError::Choice { key, value: shortened(value), allowed })
}

/// Names separated by commas, with blanks around them. No name at all is no volume.
fn volumes(value: &str) -> Result<BTreeSet<String>, AnnotationError> {
    if value.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let name = |name: &str| {
        let name = name.trim();
        let bad = || AnnotationError::Volume { value: shortened(name) };
        is_dns_label(name).then(|| name.to_owned()).ok_or_else(bad)
    };
    value.split(',').map(name).collect()
}

#[cfg(test)]
mod tests;
