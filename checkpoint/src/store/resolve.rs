// SPDX-License-Identifier: Apache-2.0
//! From a pod's namespace, lineage and reference to an open checkpoint.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::{Root, Store, UnsafeDirectory, check_safe, directories, found};
use crate::beneath;
use crate::id::CheckpointId;
use crate::manifest::{self, Manifest, ManifestError};
use crate::reference::{Lineage, Reference, is_dns_label, shortened};

/// How often a checkpoint whose manifest is locked by somebody else is tried; a publication holds it that briefly.
const LOCK_ATTEMPTS: u32 = 5;
/// How long to wait between two attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How many existing checkpoints an error lists.
const SHOWN_MAX: usize = 3;

/// An open checkpoint, locked against removal as long as this value lives.
#[derive(Debug)]
pub struct CheckpointDir {
    namespace: String,
    lineage: Lineage,
    id: CheckpointId,
    path: PathBuf,
    dir: OwnedFd,
    manifest: Manifest,
    /// Holds the shared lock.
    lock: File,
}

/// The reference leads to no checkpoint that this pod may restore.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is none of that name.
    #[error("namespace {namespace:?} has no checkpoint {reference:?} of lineage \"{lineage}\": {hint}")]
    NotFound {
        /// The pod's namespace.
        namespace: String,
        /// The lineage that was searched.
        lineage: Lineage,
        /// What was asked for.
        reference: String,
        /// What there is instead.
        hint: String,
    },
    /// No namespace is called so.
    #[error("{namespace:?} is not the name of a namespace")]
    BadNamespace {
        /// The name, shortened.
        namespace: String,
    },
    /// It lies in this namespace but was taken of another one's pod.
    #[error(
        "checkpoint {path} belongs to namespace {owner:?}: a pod restores checkpoints of its own namespace only (to give it to another one, import its archive there)", path = path.display()
    )]
    ForeignNamespace {
        /// Where it lies.
        path: PathBuf,
        /// The namespace that its manifest names.
        owner: String,
    },
    /// Somebody removes it right now.
    #[error("checkpoint {path} is being removed", path = path.display())]
    BeingRemoved {
        /// Where it lay.
        path: PathBuf,
    },
    /// Others than root could have planted it.
    #[error(transparent)]
    Unsafe(#[from] UnsafeDirectory),
    /// Its manifest is of no use.
    #[error("checkpoint {path} cannot be used", path = path.display())]
    Manifest {
        /// Where it lies.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// It cannot be opened, locked or read.
    #[error("cannot {step} {path}", path = path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl ResolveError {
    /// Whether there is nothing to restore, as opposed to something that cannot be used.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::BeingRemoved { .. } => true,
            Self::BadNamespace { .. }
            | Self::ForeignNamespace { .. }
            | Self::Unsafe(_)
            | Self::Manifest { .. }
            | Self::Io { .. } => false,
        }
    }
}

impl Store {
    /// Opens and locks the checkpoint that a pod in `namespace` with this lineage means by `reference`.
    ///
    /// Its own namespace is searched in all roots, then each shared namespace likewise.
    ///
    /// # Errors
    /// `NotFound` and `BeingRemoved` when there is nothing to restore; any other when something is wrong with it.
    pub fn resolve(
        &self,
        namespace: &str,
        lineage: &Lineage,
        reference: &Reference,
    ) -> Result<CheckpointDir, ResolveError> {
        if !is_dns_label(namespace) {
            return Err(ResolveError::BadNamespace { namespace: shortened(namespace) });
        }
        let (lineage, id) = match reference {
            Reference::Latest => (lineage, None),
            Reference::Id(id) => (lineage, Some(id)),
            Reference::Of { lineage, id } => (lineage, Some(id)),
        };
        let shared = self.shared_namespaces.iter().map(String::as_str).filter(|name| *name != namespace);
        for namespace in std::iter::once(namespace).chain(shared) {
            let found = match id {
                Some(id) => self.find(namespace, lineage, id)?,
                None => self.find_latest(namespace, lineage)?,
            };
            if let Some(checkpoint) = found {
                return Ok(checkpoint);
            }
        }
        let hint = self.hint(namespace, lineage, id);
        let (namespace, lineage) = (namespace.to_owned(), lineage.clone());
        Err(ResolveError::NotFound { namespace, lineage, reference: reference.to_string(), hint })
    }

    fn find(
        &self,
        namespace: &str,
        lineage: &Lineage,
        id: &CheckpointId,
    ) -> Result<Option<CheckpointDir>, ResolveError> {
        for root in &self.roots {
            if let Some(checkpoint) = root.open(namespace, lineage, id)? {
                return Ok(Some(checkpoint));
            }
        }
        Ok(None)
    }

    fn find_latest(&self, namespace: &str, lineage: &Lineage) -> Result<Option<CheckpointDir>, ResolveError> {
        for id in self.ids(namespace, lineage)?.into_iter().rev() {
            match self.find(namespace, lineage, &id) {
                Ok(None) | Err(ResolveError::BeingRemoved { .. }) => {}
                done => return done,
            }
        }
        Ok(None)
    }

    /// All names of checkpoints in one lineage, oldest first, whether or not they turn out to be checkpoints.
    ///
    /// # Errors
    /// `Io`: a root that does not answer is not one that holds nothing.
    fn ids(&self, namespace: &str, lineage: &Lineage) -> Result<Vec<CheckpointId>, ResolveError> {
        let path = Path::new(namespace).join(lineage.as_str());
        let mut ids: Vec<CheckpointId> = Vec::new();
        for root in &self.roots {
            let names = found(beneath::open_dir(root.dir.as_fd(), &path))
                .and_then(|lineage| lineage.map(|lineage| directories(lineage.as_fd())).transpose())
                .map_err(io_error("list", &root.path.join(&path)))?;
            ids.extend(names.into_iter().flatten().filter_map(|name| name.to_str()?.parse().ok()));
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// What the user can do about a checkpoint that does not exist. Only tells of the pod's own namespace.
    fn hint(&self, namespace: &str, lineage: &Lineage, id: Option<&CheckpointId>) -> String {
        let in_namespace = |root: &Root| directories(beneath::open_dir(root.dir.as_fd(), namespace)?.as_fd());
        let lineages = self.roots.iter().filter_map(|root| in_namespace(root).ok()).flatten();
        let mut lineages = lineages.filter_map(|name| name.to_str()?.parse::<Lineage>().ok());
        let ids = |lineage: &Lineage| self.ids(namespace, lineage).unwrap_or_default();
        if let Some(id) = id
            && let Some(other) = lineages.find(|other| other != lineage && ids(other).contains(id))
        {
            return format!("it is of lineage {:?}, write {other}/{id}", other.as_str());
        }
        let newest = ids(lineage);
        let newest: Vec<&str> = newest.iter().rev().take(SHOWN_MAX).map(CheckpointId::as_str).collect();
        if !newest.is_empty() {
            return format!("the newest there are {}", newest.join(", "));
        }
        match self.absent.first() {
            Some(root) => format!("there is none (and the root {} does not exist)", root.display()),
            None => "there is none; `thaw list` shows what this node has".into(),
        }
    }
}

impl Root {
    /// Opens one checkpoint; `None` where it does not exist.
    pub(super) fn open(
        &self,
        namespace: &str,
        lineage: &Lineage,
        id: &CheckpointId,
    ) -> Result<Option<CheckpointDir>, ResolveError> {
        let mut path = self.path.clone();
        let mut dir = self.dir.try_clone().map_err(io_error("open", &path))?;
        for name in [namespace, lineage.as_str(), id.as_str()] {
            path.push(name);
            match found(beneath::open_dir(dir.as_fd(), name)).map_err(io_error("open", &path))? {
                None => return Ok(None),
                Some(next) => dir = next,
            }
            check_safe(&dir, &path)?;
        }
        let file = path.join(manifest::FILE);
        let Some(lock) =
            found(beneath::open_file(dir.as_fd(), manifest::FILE)).map_err(io_error("open", &file))?
        else {
            return Ok(None);
        };
        if !lock_shared(&lock).map_err(io_error("lock", &file))? {
            return Err(ResolveError::BeingRemoved { path });
        }
        // Whoever removes a checkpoint unlinks its manifest under the exclusive lock, perhaps just before ours.
        if rustix::fs::fstat(&lock).map_err(|error| io_error("examine", &file)(error.into()))?.st_nlink == 0 {
            return Ok(None);
        }
        let json = beneath::read_to_limit(&lock, manifest::LIMIT_BYTES).map_err(io_error("read", &file))?;
        let manifest =
            Manifest::parse(&json).map_err(|source| ResolveError::Manifest { path: path.clone(), source })?;
        if manifest.pod.namespace != namespace {
            return Err(ResolveError::ForeignNamespace { path, owner: manifest.pod.namespace });
        }
        let (namespace, lineage, id) = (namespace.to_owned(), lineage.clone(), id.clone());
        Ok(Some(CheckpointDir { namespace, lineage, id, path, dir, manifest, lock }))
    }
}

/// Takes the shared lock; false when somebody else keeps the exclusive one.
fn lock_shared(file: &File) -> io::Result<bool> {
    for attempt in 1..=LOCK_ATTEMPTS {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if attempt < LOCK_ATTEMPTS => std::thread::sleep(LOCK_PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn io_error(step: &'static str, path: &Path) -> impl Fn(io::Error) -> ResolveError {
    let path = path.to_owned();
    move |source| ResolveError::Io { step, path: path.clone(), source }
}

impl CheckpointDir {
    /// The shared lock: whoever has a copy of this descriptor keeps the checkpoint from being removed.
    #[must_use]
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// The namespace it lies in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The lineage it lies in.
    #[must_use]
    pub fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &CheckpointId {
        &self.id
    }

    /// `<namespace>/<lineage>/<id>`, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.lineage, self.id)
    }

    /// Its absolute path, for programs that take no descriptor.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it consists of.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl AsFd for CheckpointDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
